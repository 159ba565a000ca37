"""How much of what users call is documented: `python docs/complete.py` prints shares, and what is missing.

Each public name needs an entry in the reference, a meaning for each parameter, an example that readers see, and a mention in the prose of a page for readers."""
import re, sys

from fastcore.nbio import read_nb
import fasterprune.all
from build import notebooks, packages, programs
from convert import entries, nbs
from entries import find, is_called, parameters

methods = 'Learner.condense', 'Learner.to_onnx', 'Learner.load_condensed'

def public():
    "Names of `fasterprune.all`, and the methods that `Learner` gets."
    from fastai.learner import Learner
    return [*fasterprune.all.__all__, *[m for m in methods if hasattr(Learner, m.partition('.')[2])]]

def texts():
    "Visible code, and prose without fenced code, of all pages for readers."
    code,prose = [],[]
    for nb in notebooks():
        if nb.parts[0] in packages or nb.stem in programs: continue
        for c in read_nb(nbs/nb).cells:
            if c.cell_type=='markdown': prose.append(re.sub(r'^```\w*$', '', re.sub(r'^```\{entry\} .*$', '', c.source, flags=re.MULTILINE), flags=re.MULTILINE))
            elif c.cell_type=='code' and not re.match(r'#\| *(hide|echo: false)', c.source): code.append(c.source)
    return '\n'.join(code),'\n'.join(prose)

def undocumented(name):
    "Parameters of a name without a meaning."
    o = find(name)
    return [] if not is_called(o) else [r[0] for r in parameters(o, '.' in name)[1] if not r[3]]

def missing():
    "For each of the four claims, the names for which it does not hold."
    names,(code,prose) = public(),texts()
    last = {n:n.rpartition('.')[2] for n in names}
    def _no(found): return [n for n in names if not found(n)]
    return {'an entry': _no(lambda n: n in entries),
        'a meaning for each parameter': [f'{n} ({", ".join(undocumented(n))})' for n in names if undocumented(n)],
        'an example': _no(lambda n: re.search(rf'\b{last[n]}\b', code)),
        'a mention in prose': _no(lambda n: re.search(rf'`[^`\n]*\b{last[n]}\b[^`\n]*`', prose))}

def main():
    n,wrong = len(public()),missing()
    for what,names in wrong.items(): print(f'{1-len(names)/n:6.1%} of {n} public names have {what}' + f'; missing: {", ".join(names)}'*bool(names))
    return any(wrong.values())

if __name__=='__main__': sys.exit(main())
