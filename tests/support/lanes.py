"When the cases of a large matrix are tried: some always or by `make test-long`, all before a release, by `make test-soak`."
import pytest

def soak(*values):
    "Parameters that are tried before a release only."
    return [pytest.param(v, marks=pytest.mark.soak) for v in values]

def _params(cases, marks_of):
    return [pytest.param(*c, marks=marks_of(i), id='-'.join(getattr(o, '__name__', str(o)) for o in c)) for i,c in enumerate(cases)]

def always(n, cases):
    "Parameters for each of the `cases`: each `n`-th is tried always, the others before a release."
    return _params(cases, lambda i: [pytest.mark.soak]*(i%n>0))

def one_of(n, cases):
    "Parameters for each of the `cases`: each `n`-th is tried by `make test-long`, the others before a release."
    return _params(cases, lambda i: pytest.mark.soak if i%n else pytest.mark.long)
