"""Random programs with random zeros: what the Condenser makes of them is the same function, and there is nothing more to take out.
As a script (`python tests/condense/test_fuzz.py 20000 1`) it tries so many with that seed, prints what fails and adds a line to results/condense_fuzz.csv."""
import datetime, os, sys, time
from copy import deepcopy
from pathlib import Path
import pandas as pd, pytest, torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import nn
from fasterprune.all import *
from fasterprune.graph.graph import Graph
from fasterprune.condense.reduced import Constant
from fasterprune.condense.verify import Reference
from fasterprune.studies.circumstances import circumstances
from support.fuzz_nets import cases, random_case, shortest, simple_cases
from support.nets import as_tuple

tolerance = 1e-10

@torch.no_grad()
def outputs(net, xs):
    torch.manual_seed(0)
    return as_tuple(net(*as_tuple(xs)))

def gap(dense, c, x):
    "Largest difference of the outputs over the largest of all outputs."
    a,b = outputs(dense, x),outputs(c.model, c.inputs(x))
    assert [o.shape for o in a]==[o.shape for o in b], f'shapes {[*map(lambda o: tuple(o.shape), b)]}'
    scale = max(float(o.abs().max()) for o in a)
    return max(float((p-q).abs().max()) for p,q in zip(a, b))/(scale if scale>1e-6 else 1)

def batches(case, net):
    "A batch like the sample, one of another number of items, and another resolution where the network takes it."
    for n,more in ((2,0), (3,0), (1,3)):
        x = case.batch(n, more)
        try: outs = outputs(net, x)
        except (RuntimeError, ValueError): continue
        if all(o.isfinite().all() for o in outs): yield x

def check(case, verify):
    "The largest error of a condensed network, that has to be small, and does it lose more the second time? `case` is shown where anything is wrong."
    try: return difference(case, verify)
    except Exception as e: raise AssertionError(f'{type(e).__name__}: {str(e)[:500]}\n{case}') from e

def difference(case, verify):
    net = case.net()
    x,before = case.batch(2),deepcopy(net.state_dict())
    xs = [*batches(case, net)]
    if len(xs)<2 or max(float(o.abs().max()) for o in outputs(net, x))>1e6: return 0.,False
    c = Condenser(net, x).condense(verify=verify)
    errors = [gap(net, c, x) for x in xs]
    assert max(errors) <= tolerance, f'errors {errors}'
    reference = Reference(net, x)
    assert reference.error(c.model, c.inputs) <= reference.tolerance==tolerance, f'{reference.worst}'
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items()), 'the original was changed'
    assert c.report.params_after==sum(p.numel() for p in c.model.parameters()) <= c.report.params_before==sum(p.numel() for p in net.parameters())
    again = Condenser(c.model, c.inputs(x)).condense(verify=verify)
    twice = max(gap(c.model, again, c.inputs(x)) for x in xs)
    assert twice <= tolerance, f'condensed again: {twice}'
    assert again.report.params_after <= c.report.params_after
    return max(*errors, twice),again.report.params_after<c.report.params_after

def fuzz(f, n, number, cases=cases):
    "Try `f` on `n` cases, the same ones each time."
    how = settings(max_examples=n, deadline=None, database=None, phases=[Phase.generate], print_blob=False, suppress_health_check=list(HealthCheck))
    seed(number)(how(given(cases)(f)))()

# `FUZZ=20000` asks for that many instead of 600, `FUZZ_SEED` for others than those of every day
n_long,first = int(os.environ.get('FUZZ', 600)),int(os.environ.get('FUZZ_SEED', 0))
parts = 8

def checks(verify):
    "A function that checks a case, and shows the shortest like it where it is wrong."
    def _fails(case):
        try: outputs(case.net(), case.batch(2))
        except (RuntimeError, ValueError, IndexError): return False # what was cut does not run
        try: check(case, verify)
        except AssertionError: return True
        return False
    def _check(case):
        if (verify or not case.literal) and _fails(case): check(shortest(case, _fails), verify)
    return _check

@pytest.mark.parametrize('verify', [False, True])
def test_random_programs_are_exact(verify): fuzz(checks(verify), 50, 1000+verify)

@pytest.mark.long
@pytest.mark.parametrize('part', range(parts))
def test_many_random_programs_are_exact(part): fuzz(checks(part%2==0), n_long//parts, first*parts+part)

# ---- what is left

def layers_of(net): return {n:m for n,m in net.named_modules() if isinstance(m, (nn.Linear,nn.modules.conv._ConvNd)) and not getattr(m, 'transposed', False)}

@torch.no_grad()
def n_unread(net, x):
    "How many outputs of each layer but the last nobody reads, found out by trying: other weights do not change the output."
    wanted,found = outputs(net, x),{}
    for name,m in list(layers_of(net).items())[:-1]:
        params = [p for p in m.parameters(recurse=False)]
        for i in range(len(m.weight)):
            before = [p[i].clone() for p in params]
            tries = []
            for sign in (1, -1): # a maximum may not change with smaller ones
                for p in params: p[i] = sign*torch.rand(p[i].shape, dtype=p.dtype)
                tries += [torch.equal(a, b) for a,b in zip(wanted, outputs(net, x))]
            found[name] = found.get(name, 0) + all(tries)
            for p,b in zip(params, before): p[i] = b
    return found

def leaves_nothing(case):
    net,x = case.net(),case.batch(2)
    c = Condenser(net, x).condense(verify=False)
    if any(isinstance(m, Constant) for m in c.model.modules()) or not Graph(net, x).live: return # a network that is dead altogether keeps one unit for each reason
    unread = n_unread(c.model, c.inputs(x))
    spare = {n:k for n,k in unread.items() if k>1} # one may carry the constants of others, or be the last of its layer
    if any('max' in l or 'min' in l for l in case.lines): return # who is never the largest is read, but trying does not show it
    assert not spare, f'not read: {spare}\n{c.report}\n{case}'

def tells_what_stays(case):
    if case.literal: return
    net = case.net()
    c = Condenser(net, case.batch(2)).condense(verify=False)
    for name,m in layers_of(net).items():
        if isinstance(dict(c.model.named_modules()).get(name), (Constant,type(None))): continue
        zero = (m.weight==0).flatten(1).all(1)
        if f'{name}.weight' in c.slices: zero = zero[c.slices[f'{name}.weight'].get(0, slice(None))]
        told = sum(k['units'] for k in c.report.kept if k['layer']==name)
        assert int(zero.sum()) <= told, f'{int(zero.sum())} zero outputs of {name} stayed, of {told} it is told why\n{c.report}\n{case}'

left = [(leaves_nothing,simple_cases), (tells_what_stays,cases)]

@pytest.mark.parametrize('f,kinds', left)
def test_what_is_left(f, kinds): fuzz(f, 60, 2000, kinds)

@pytest.mark.long
@pytest.mark.parametrize('f,kinds', left)
def test_what_is_left_of_many(f, kinds): fuzz(f, n_long//8, 3000+first, kinds)

@pytest.mark.parametrize('f,number,simple', [(checks(False),320070,False), (checks(False),18198,False), (checks(True),2273153,False), (leaves_nothing,690,True),
    (checks(False),2619991,False)])
def test_what_once_failed(f, number, simple):
    "A weight that is tied to one that stays; a number that is the size of the batch; a constant into which no value goes; one unit, whose constant differs from token to token."
    f(random_case(number, simple))

# ---- as a script

def measure(n, number):
    "Try `n` cases, every other one without verification, and note how that went."
    torch.set_num_threads(1)
    errors,failures,literal,less,start = [],[],0,0,time.time()
    def _f(case):
        nonlocal literal,less
        literal += case.literal
        try:
            error,more = check(case, case.literal or (len(errors)+len(failures))%2==0)
            errors.append(error)
            less += more
        except AssertionError as e:
            failures.append(case.number)
            print(f'{len(errors)+len(failures)}: {e}', flush=True)
    fuzz(_f, n, number)
    root = Path(__file__).resolve().parents[2]
    row = dict(seed=number, networks=len(errors)+len(failures), with_sizes_in_the_code=literal, failures=len(failures), less_the_second_time=less,
        largest_error=max(errors, default=0.), seconds=round(time.time()-start), date=datetime.date.today().isoformat(),
        **circumstances(threads=1, folder=root))
    path = root/'results'/'condense_fuzz.csv'
    pd.concat([*([pd.read_csv(path)] if path.exists() else []), pd.DataFrame([row])]).to_csv(path, index=False)
    print(row)

if __name__=='__main__': measure(*map(int, sys.argv[1:3]))
