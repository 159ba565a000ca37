"""On given weights `sparsify()` gives the same masks on any number of threads, with and without Numba; a fit is the same when it is repeated, and torch's
deterministic algorithms suffice.

As a script for more networks: `python tests/reliability/test_determinism.py`."""
import sys, tempfile
from copy import deepcopy
from pathlib import Path
import pytest, torch
from fastai.basics import *
from torch import nn
from fasterprune.all import *
from fasterprune.sparsify import importance, workspace
from fasterprune.sparsify.choosing import standardize
from support.beside import fit, learner, ours
from support.reliability import write_rows

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

@contextmanager
def on(n_threads, numba=True):
    "So many threads, with or without Numba."
    before,compiled = torch.get_num_threads(),workspace.compiled
    torch.set_num_threads(n_threads)
    if not numba: workspace.compiled = lambda: None
    try: yield
    finally:
        torch.set_num_threads(before)
        workspace.compiled = compiled

def wide(seed=0):
    "More than a million weights, so that threads are worth it."
    set_seed(seed)
    return nn.Sequential(nn.Linear(700, 900), nn.BatchNorm1d(900), nn.ReLU(), nn.Linear(900, 700), nn.BatchNorm1d(700), nn.ReLU(),
        nn.Linear(700, 10)),torch.randn(64, 700)
def convs(seed=0):
    "As many, and 90,000 kernels in a layer."
    set_seed(seed)
    return nn.Sequential(nn.Conv2d(16, 300, 3), nn.BatchNorm2d(300), nn.ReLU(), nn.Conv2d(300, 300, 3), nn.BatchNorm2d(300), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(300, 10)),torch.randn(2, 16, 8, 8)

def prepared(make, seed, granularity, context, criterion):
    "A Sparsifier that knows what its criterion needs."
    model,x = make(seed)
    layers = ['0','3'] if criterion=='bn_scale' else None
    sp = Sparsifier(model, granularity, context, criterion, layers, sample=x)
    if 'input_norm' in sp.criterion_state.needs: sp.observe(x)
    set_seed(seed+1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=.02)
            p.grad = torch.randn_like(p)
    sp.observe_gradients()
    return sp

def masks(make, seed, granularity, context, criterion, n_threads, numba, steps=(.3,.301,.6)):
    "Masks after each of some updates; what the criterion measures in the network is measured on one thread."
    with on(1): sp = prepared(make, seed, granularity, context, criterion)
    found = []
    with on(n_threads, numba):
        for s in steps:
            set_seed(seed+2)
            sp.sparsify(s)
            found += [m.clone() for m in sp.masks.values()]
    return found

def differences(make, seed, granularity, context, criterion, ways):
    "How many masks are others in some of `ways` than on one thread with Numba."
    wanted = masks(make, seed, granularity, context, criterion, 1, True)
    return {way:n for way in ways if (n := sum(not torch.equal(a, b) for a,b in zip(wanted, masks(make, seed, granularity, context, criterion, *way),
        strict=True)))}

ways = (2,True),(3,True),(1,False),(2,False)
kinds = dict(weight=wide, neuron=wide, filter=convs, kernel=convs, row=wide, column=wide, feature=wide, channel=convs)
def possible(granularity, criterion):
    if criterion=='bn_scale': return granularity in ('neuron','filter')
    return True

def bits_of_scores(make, granularity, n_threads, numba):
    "The score of each unit, as it is and as it is compared with those of other layers."
    with on(1): sp = prepared(make, 0, granularity, 'global', 'large_final')
    with on(n_threads, numba), torch.no_grad():
        sp.scorer.workspace = workspace.Workspace(sp.scorer.workspace.n, sp.scorer.workspace.score)
        found = [sp.scorer.score_now(g) for g in sp.groups]
        relative = [s.clone() for s in found]
        for s,g in zip(relative, sp.groups): standardize(s, g.alive)
    return found+relative

@pytest.mark.parametrize('granularity', ['neuron','filter','kernel','weight'])
def test_scores_are_the_same_to_the_bit(granularity):
    "Their sums are made in float64, where the order decides nothing: 3 threads, or NumPy in place of Numba."
    wanted = bits_of_scores(kinds[granularity], granularity, 1, True)
    for way in ((3,True),(2,False)):
        assert all(torch.equal(a, b) for a,b in zip(wanted, bits_of_scores(kinds[granularity], granularity, *way), strict=True)), way

@pytest.mark.parametrize('granularity,criterion', [('weight','squared_final'), ('neuron','wanda'), ('filter','taylor')])
def test_masks(granularity, criterion): assert not differences(kinds[granularity], 0, granularity, 'global', criterion, [(3,True),(2,False)])

@pytest.mark.long
@pytest.mark.parametrize('granularity', ['weight','filter'])
def test_masks_of_all_criteria(granularity):
    found = {c:differences(kinds[granularity], 0, granularity, 'global', c, ways) for c in importance.criteria if possible(granularity, c)}
    assert not any(found.values()), found

def trained(net, path, cbs, n_threads=1):
    with on(n_threads):
        learn = learner(net, Adam, path)
        said = fit(learn, *cbs)
    return said,[*learn.model.state_dict().values()]

@pytest.mark.parametrize('net,which', [('cnn',0), ('cnn',1), ('mlp',1)])
def test_a_fit_is_the_same_again(net, which, tmp_path):
    (a,p),(b,q) = [trained(net, tmp_path, ours(net)[which], 2) for _ in range(2)]
    assert a==b==[] and all(torch.equal(s, t) for s,t in zip(p, q, strict=True))

@pytest.mark.parametrize('net', ['cnn','mlp'])
def test_deterministic_algorithms_suffice(net, tmp_path):
    "Memory that nobody has written to is filled with NaN then, too: the weights are those of a fit without it."
    for cbs in (ours(net)[0], ours(net)[1], [SparsifyCallback(.5, 'neuron' if net=='mlp' else 'filter', criterion='taylor')], [SparsifyCallback(.5,
        context='erk', criterion='lamp')]):
        said,wanted = trained(net, tmp_path, deepcopy(cbs))
        try:
            torch.use_deterministic_algorithms(True)
            found = trained(net, tmp_path, cbs)
        finally: torch.use_deterministic_algorithms(False)
        assert found[0]==said==[] and all(torch.equal(s, t) for s,t in zip(wanted, found[1], strict=True))

def main(n_nets=2):
    "All criteria and kinds of units, in several ways; writes results/reliability.csv."
    rows = []
    for granularity,make in kinds.items():
        tried,lost = 0,0
        for c in importance.criteria:
            for seed in range(n_nets) if possible(granularity, c) else ():
                tried += len(ways)
                if found := differences(make, seed, granularity, 'global', c, ways):
                    lost += len(found)
                    print('DIFFERS', granularity, c, seed, found, flush=True)
        rows.append(dict(what=f'masks by {granularity}: 21 criteria, 1 to 3 threads, with and without Numba', tried=tried, survived=tried-lost, lost=lost,
            seeds=n_nets))
    tried,lost = 0,0
    for net in ('cnn','mlp'):
        for which in (0,1):
            for n_threads in (1,2,3):
                for deterministic in (False,True):
                    torch.use_deterministic_algorithms(deterministic)
                    (_,p),(_,q) = [trained(net, Path(tempfile.gettempdir()), ours(net)[which], n_threads) for _ in range(2)]
                    tried,lost = tried+1,lost+(not all(map(torch.equal, p, q)))
    rows.append(dict(what='fits repeated on 1 to 3 threads, with and without deterministic algorithms', tried=tried, survived=tried-lost, lost=lost, seeds=1))
    write_rows('determinism', rows)
    return sum(r['lost'] for r in rows)

if __name__=='__main__': sys.exit(bool(main(*map(int, sys.argv[1:]))))
