"""Fits that are killed, at any moment and in the middle of a save: a fresh learner takes up the newest whole checkpoint, and ends as the fit that nobody killed.
As a script (`python tests/reliability/test_resume.py 25`) it kills so many fits with and without `CondenseCallback`, and writes what survived to results/reliability.csv."""
import os, random, shutil, signal, sys, tempfile, time, warnings
from pathlib import Path
import pytest, torch
from fastai.basics import *
from fastai.callback.all import *
from fasterprune.all import *
from fasterprune.core.checkpoint_files import newest_intact, read_sidecar
from fasterprune.core.warnings import FasterpruneWarning
from fasterprune.sparsify.mask_callback import MaskCallback
from support.reliability import done, ended, forked, write_rows
from support.shrinking import cnn, learner, plain_mlp, quiet, shapes, shrinks

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests
pytestmark = [pytest.mark.forks, pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs processes that fork')]

def dropped(): return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Dropout(.2), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
shapes['dropped'] = (20,)

remember = 'movement','updating_movement','fisher','wanda','magnitude_increase','taylor','random','updating_magnitude_increase','weight_change_relative','large_init'
steady = dict(schedule=linear)
def two(c): return [SparsifyCallback(.6, 'filter', layers='0.0', criterion=c, **steady), SparsifyCallback(.5, criterion=c, exclude='0.0')]
configurations = {
    'single weights, dropout': (dropped, lambda c: [SparsifyCallback(.8, criterion=c, **steady)]),
    'filters of each layer, mixup': (cnn, lambda c: [SparsifyCallback(.7, 'filter', 'local', c, **steady), MixUp()]),
    'inputs and neurons': (plain_mlp, lambda c: [InputPruneCallback(.5, warmup=0., **steady), SparsifyCallback(.5, 'neuron', criterion=c, **steady)]),
    'pixels, moments by torch': (cnn, lambda c: [InputPruneCallback(.5, granularity='pixel', warmup=0., **steady), SparsifyCallback(.5, 'filter', criterion=c, **steady)]),
    'group lasso, kept zeros, two callbacks, gradients of two batches': (cnn, lambda c: [RegularizeCallback(.1), KeepZeros(), *two(c), GradientAccumulation(16)])}

class Kind:
    "A fit with one of the configurations, with a criterion that remembers something, of a network that shrinks or does not."
    n = 4
    def __init__(self, what, criterion, condense):
        self.what,self.condense,self.end = what,condense,None
        self.make,cbs = configurations[what]
        self.cbs = lambda: [*cbs(criterion), *([shrinks()] if condense else [])]
        self.opt_func = partial(OptimWrapper, opt=torch.optim.AdamW) if 'torch' in what else Adam
        self.dtype = torch.float32 if 'mixup' in what else torch.float64 # `MixUp` knows no other

    def learner(self, folder): return learner(self.make, self.dtype, path=folder, opt_func=self.opt_func)

    def fit(self, folder, *cbs, start=0, load=None):
        "A learner as after the fit, and what came of it; `load` is a checkpoint to go on from."
        learn,own = self.learner(folder),self.cbs()
        if load: (partial(learn.load_condensed, with_opt=True) if self.condense else learn.load)(load)
        quiet(lambda: learn.fit_one_cycle(self.n, 2e-2, cbs=[*own, *cbs], start_epoch=start), learn)
        end = dict(weights=learn.model.state_dict(), batch=learn.dls.valid.one_batch()[0])
        if self.condense: end['report'] = [getattr(learn.condensed.report, k) for k in ('params_after','macs_after','inputs_after')]
        if start<self.n:
            masks = [cb for cb in own if isinstance(cb, MaskCallback)]
            end['history'],end['reached'] = [cb.history for cb in masks],[cb.sparsifier.reached for cb in masks]
            end['kept'] = [cb.kept.tolist() for cb in masks if isinstance(cb, InputPruneCallback)]
        return end

    def whole(self):
        "What comes of the fit that nobody kills."
        if self.end is None:
            with tempfile.TemporaryDirectory() as d:
                start = time.perf_counter()
                self.end = self.fit(Path(d))
                self.seconds = time.perf_counter()-start
        return self.end

saves = partial(SaveModelCallback, every_epoch=True, with_opt=True)

def goes_on(kind, folder):
    "In a process of its own: take up the newest checkpoint that is whole, if there is one, and fit to the end."
    warnings.simplefilter('error', FasterpruneWarning)
    newest = newest_intact(folder/'models') if (folder/'models').exists() else None
    start = int(newest.stem.split('_')[1])+1 if newest else 0
    random.seed(),torch.seed() # nothing is the same but what was saved
    end = kind.fit(folder, saves(), start=start, load=newest and newest.stem)
    torch.save(dict(end, start=start), folder/'end.pt')

def leftovers(folder): return [p for p in (folder/'models').glob('.*')]

def kill_one(kind, folder, rnd):
    "Start, and kill at a random moment or when something is being saved; was it in the middle of a save? `None` if it was done before."
    in_save,at = rnd.random()<.5,rnd.uniform(.1, 1.3)*kind.seconds
    pid,start = forked(lambda: goes_on(kind, folder)),time.perf_counter()
    while time.perf_counter()-start<at and not ended(pid): time.sleep(.0005)
    if ended(pid): kind.seconds = time.perf_counter()-start # the machine is less busy than it was
    while in_save and not leftovers(folder) and not ended(pid): time.sleep(.0002)
    os.kill(pid, signal.SIGKILL)
    assert done(pid) in (0,-signal.SIGKILL), 'it failed before it was killed'
    if (folder/'end.pt').exists(): return None
    for p in (folder/'models').glob('*.pth'): assert read_sidecar(p) is not None, f'nothing stands beside {p.name}'
    return bool(leftovers(folder))

def equal(a, b):
    if isinstance(a, Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys()==b.keys() and all(equal(a[k], b[k]) for k in a)
    return a==b

def killed(kind, folder, rnd, kills):
    "Kill a fit so many times, let it go on to the end, and compare; how many of the kills were in the middle of a save."
    whole,caught,n = kind.whole(),0,0
    while n<kills:
        found = kill_one(kind, folder, rnd)
        if found is None: # it was done: begin again
            shutil.rmtree(folder)
            folder.mkdir()
            n = caught = 0
            continue
        n,caught = n+1,caught+found
    assert done(forked(lambda: goes_on(kind, folder)))==0, 'it could not go on'
    end = torch.load(folder/'end.pt', weights_only=False)
    different = [k for k in end if k!='start' and not equal(whole[k], end[k])]
    assert not different, f'after epoch {end["start"]}, others are {different}'
    assert not leftovers(folder) and len(list((folder/'models').glob('*.pth')))==kind.n
    return caught

def many(n, seed, condense, kills=1):
    "Kill so many fits of all configurations in turn; by configuration how often, in how many saves, and what was lost."
    rnd,kinds,found = random.Random(seed),{},{w:[0, 0, []] for w in configurations}
    for i in range(n):
        what,criterion = [*configurations][i%len(configurations)],remember[(i+i//len(configurations))%len(remember)]
        kind = kinds.setdefault((what,criterion), Kind(what, criterion, condense))
        with tempfile.TemporaryDirectory() as d:
            folder = Path(d)/'fit'
            folder.mkdir()
            found[what][0] += kills
            try: found[what][1] += killed(kind, folder, rnd, kills)
            except Exception as e: found[what][2].append(f'{criterion}: {type(e).__name__}: {e}')
    return found

@pytest.mark.parametrize('condense', [False, True])
def test_a_fit_is_killed(tmp_path, condense): killed(Kind('inputs and neurons', 'movement', condense), tmp_path, random.Random(2), 1)

@pytest.mark.long
def test_a_dozen_fits_are_killed():
    for condense in (False, True):
        lost = {k:l for k,(*_,l) in many(6, 3, condense).items() if l}
        assert not lost, lost

if __name__=='__main__':
    n,seed = int(sys.argv[1]),int(sys.argv[2]) if len(sys.argv)>2 else 0
    rows = []
    for condense in (False, True):
        for what,(tried,caught,lost) in many(n, seed, condense).items():
            for l in lost: print(what, l)
            with_ = 'with' if condense else 'without'
            rows.append(dict(what=f'{what}; {with_} CondenseCallback, {caught} killed in a save', tried=tried, survived=tried-len(lost), lost=len(lost), seeds=seed))
    write_rows('killed and resumed fits', rows)
    sys.exit(any(r['lost'] for r in rows))
