"""Two processes that train one network: the same weights in both at every step, exact counts, the weights of one process, and no process that waits for ever.
As a script (`python tests/reliability/test_ranks.py`) it tries all criteria, and writes what held to results/reliability.csv."""
import os, re, warnings
from functools import partial
import numpy as np, pytest, torch
from fastai.basics import Adam, Callback, CrossEntropyLossFlat, Learner, SGD, set_seed
from fastai.callback.all import GradientAccumulation, GradientClip, SaveModelCallback
from torch import distributed
from fasterprune.all import *
from fasterprune.core import FasterpruneWarning
from fasterprune.sparsify import criteria
from support.ranks import Weights, Wrap, batches, cnn, data, fit, given_learner, in_ranks, mlp, shared, shared_dls, shared_trainer
from support.reliability import write_rows

pytestmark = [pytest.mark.forks, pytest.mark.skipif(not hasattr(os, 'fork') or not distributed.is_available(), reason='needs processes that fork, and torch.distributed')]

def wanda(): return SparsifyCallback(.5, 'filter', criterion='wanda')

def train(rank, make, *cbs, n=1, dtype=torch.float32, whole=False, bs=8, wrap=True, items=48):
    "Train a network in one of two processes, or in one alone if `rank` is `None`; the weights after each batch, and the learner."
    set_seed(0)
    model = make().to(dtype)
    if rank: set_seed(rank) # what each draws by itself is not the same
    learn,seen = given_learner(model, data(items, dtype=dtype), batches(items, bs, rank)),Weights(whole)
    fit(learn, n, *cbs, seen, *([Wrap()] if wrap and rank is not None else []))
    return seen.seen,learn

kinds = dict(weight=(cnn, .5), filter=(cnn, .5), neuron=(mlp, .5))
def cases(names=tuple(criteria)): return [(c, g, norm, inputs) for c in names for g in kinds for norm in (True, False) for inputs in (False, True)]
def name_of(c, g, norm, inputs): return f'{c}, {g}, {"with" if norm else "without"} BatchNorm{", inputs" if inputs else ""}'

def prune(rank, criterion, granularity, norm, inputs):
    "A fit with a criterion: what the weights were, whether all counts are exact, or the error."
    make,sparsity = kinds[granularity]
    cb = SparsifyCallback(sparsity, granularity, 'local', criterion=criterion)
    cut = [InputPruneCallback(.5, granularity='channel' if make is cnn else 'auto', warmup=0.)] if inputs else []
    try: seen,_ = train(rank, lambda: make(norm), cb, *cut, n=2)
    except ValueError as e: return str(e)
    s = cb.sparsifier
    in_weights = s.sparsity()==s.reached or inputs and s.sparsity() > s.reached # what went last with an input was alive
    exact = in_weights and all(g.dead==round(sparsity*g.n) for g in s.groups)
    return seen,exact and all(c.pruner.dead==round(.5*c.pruner.n) for c in cut)

def count(which):
    "How many of the cases `which` were tried, and the names of those that did not hold; those that have no norm to score by are refused by both."
    a,b = in_ranks(lambda rank: [prune(rank, *c) for c in which], guard=60+2*len(which))
    assert not (a.error or b.error), (a, b)
    def _refused(x, y): return x==y and isinstance(x, str) and 'the scale of a norm' in x
    tried = [(c, x, y) for c,x,y in zip(which, a.result, b.result) if not _refused(x, y)]
    return len(tried),[name_of(*c) for c,x,y in tried if isinstance(x, str) or x!=y or not x[1]]

def test_both_have_the_same_weights_at_every_step():
    cases = ('wanda','filter',True,True),('random','weight',False,False),('taylor','neuron',True,True),('large_final','filter',False,True)
    assert count(cases)==(4, [])

@pytest.mark.long
def test_criteria_that_measure_draw_and_remember():
    assert count([c for c in cases(['wanda','random','updating_movmag','fisher','bn_scale']) if c[2]])==(28, [])

# ## Against one process that gets the same batches

def alike(rank, criterion, granularity, inputs, n):
    make,sparsity = kinds[granularity]
    cut = [InputPruneCallback(.5, granularity='channel' if make is cnn else 'auto', warmup=0.)] if inputs else []
    cb = SparsifyCallback(sparsity, granularity, 'local', criterion=criterion)
    return train(rank, lambda: make(False), cb, *cut, n=n, dtype=torch.float64, whole=True)[0]

def apart(xs, ys): return [max(float((p-q).abs().max()) if p.shape==q.shape else float('inf') for p,q in zip(a, b)) for a,b in zip(xs, ys)]

def against_one(which, n=2):
    "The largest difference of a weight between two processes and one, for each case; between the two there is none."
    a,b = in_ranks(lambda rank: [alike(rank, *c, n) for c in which], guard=60+3*len(which))
    assert not (a.error or b.error), (a, b)
    alone = [alike(None, *c, n) for c in which]
    assert all(max(apart(x, y))==0 for x,y in zip(a.result, b.result))
    return [max(apart(x, y)) for x,y in zip(a.result, alone)]

def test_as_one_process_with_the_same_batches():
    found = against_one([('wanda','filter',True), ('fisher','weight',False), ('random','neuron',False), ('taylor','neuron',True)])
    assert max(found) <= 1e-12, found

class Norms(Callback):
    "What `wanda` knows of the first layer after each batch."
    order = 89
    def __init__(self, cb): self.cb,self.seen = cb,[]
    def after_batch(self):
        if self.training: self.seen.append(self.cb.sparsifier.criterion_state.norms['0.weight'].mean.clone())

def test_what_each_has_seen_counts_by_its_size():
    "Three items of a batch in one process, two in the other."
    def _measure(rank):
        cut,cb = InputPruneCallback(.5, warmup=0.),wanda()
        norms = Norms(cb)
        try_bad(rank, cut, part=slice(3-rank), cbs=[cb, norms])
        return cut.pruner.feature_scale(),norms.seen[0]
    a,b = in_ranks(_measure)
    assert not (a.error or b.error) and all(map(torch.equal, a.result, b.result)), (a, b)
    x = data()[0]
    first,seen = x[[0,1,2,4,5]],x[[i for i in range(48) if i%8 in (0,1,2,4,5)]]
    torch.testing.assert_close(a.result[0], seen.double().movedim(1, -1).flatten(0, -2).std(0, correction=0).float())
    torch.testing.assert_close(a.result[1], first.square().mean((0,2,3)))

# ## A network that shrinks

class Follows(Callback):
    "Cannot follow in the process `rank`."
    def __init__(self, rank): self.rank = rank
    def apply_slicing(self, cuts, inputs):
        if distributed.get_rank()==self.rank: raise KeyError('cannot follow')

def shrink(rank, make=cnn, opt=SGD, inputs=False, steps=None, criterion='large_final', ddp=None, cbs=(), n=3, granularity='filter'):
    "Weights after each batch, what was taken out, the warnings, and the shapes in the end."
    set_seed(0)
    model = make().double()
    if rank: set_seed(rank)
    learn,seen = given_learner(model, data(dtype=torch.float64), batches(48, 8, rank), opt),Weights(True)
    cut = CondenseCallback(min_gain=0, steps=steps, inputs=inputs)
    cbs = [*cbs, SparsifyCallback(.5, granularity, criterion=criterion), cut, seen, *([InputPruneCallback(.5, warmup=0.)] if inputs else [])]
    with warnings.catch_warnings(record=True) as said, learn.no_bar(), learn.no_logging():
        warnings.simplefilter('always')
        learn.fit(n, .05, cbs=[*cbs, *([Wrap(**(ddp or {}))] if rank is not None else [])])
    said = [str(w.message) for w in said if issubclass(w.category, FasterpruneWarning)]
    return seen.seen,cut.to_frame().parameters.tolist(),said,[p.shape for p in learn.model.parameters()]

shrinking = dict(norms=dict(inputs=True), alone=dict(make=partial(cnn, False), opt=partial(SGD, mom=.9), inputs=True), steps=dict(opt=Adam, steps=2),
    static=dict(opt=Adam, inputs=True, ddp=dict(static_graph=True)), unused=dict(opt=Adam, criterion='wanda', ddp=dict(find_unused_parameters=True)),
    neurons=dict(make=mlp, opt=Adam, granularity='neuron', inputs=True))

def shrunk(which):
    "Which of these configurations had the same weights in both processes at every step, and shrank; how far `alone` is from one process."
    a,b = in_ranks(lambda rank: {k:shrink(rank, **shrinking[k]) for k in which}, guard=120)
    assert not (a.error or b.error), (a, b)
    def _held(x, y): return max(apart(x[0], y[0]))==0 and x[1:]==y[1:] and len(x[1]) > 1 and not x[2]
    far = max(apart(a.result['alone'][0], shrink(None, **shrinking['alone'])[0])) if 'alone' in which else None
    return [k for k in which if _held(a.result[k], b.result[k])],far

def test_it_shrinks_in_both():
    held,far = shrunk(['norms','alone'])
    assert held==['norms','alone'] and far <= 1e-12

@pytest.mark.long
def test_it_shrinks_whatever_the_options(): assert shrunk([*shrinking])[0]==[*shrinking]

def test_who_cannot_follow_keeps_all_wide():
    a,b = in_ranks(lambda rank: shrink(rank, cbs=[Follows(1)]))
    assert max(apart(a.result[0], b.result[0]))==0 and a.result[3]==b.result[3]==[p.shape for p in cnn().parameters()]
    why = "KeyError: 'cannot follow'"
    assert 'process 1 of 0 to 1 has failed' in a.result[2][0] and why in a.result[2][0] and b.result[2][0].endswith(why)

# ## fastai's own loaders and trainer

def pixels(rank, _):
    cut = InputPruneCallback(.5, granularity='pixel', warmup=0.)
    learn,out = shared(rank, cut)
    assert cut.pruner.dead==18 and int((learn.dls.train.one_batch()[0]==0).all((0,1)).sum())==18
    return out,cut.kept.tolist(),cut.to_frame().scale.tolist()
def inputs(rank, _):
    cut = InputPruneCallback(.5, warmup=0.)
    out = shared(rank, SparsifyCallback(.5, 'filter', criterion='wanda'), cut, CondenseCallback(min_gain=0))[1]
    assert out[2]==(4,2,6,6) and out[1][0][1]==2 and out[3]=='TfmdDL'
    return out,cut.to_frame().values.tolist()
def best(rank, folder):
    "`SaveModelCallback` saves in the first process, and all load what it has saved: a wider network."
    save = SaveModelCallback(fname='best', monitor='parameters', comp=np.greater)
    return shared(rank, SparsifyCallback(.6, 'filter'), CondenseCallback(min_gain=0), save, folder=folder, n=3)[1]
def accumulated(rank, _): return shared(rank, SparsifyCallback(.5, 'filter', criterion='fisher'), GradientAccumulation(8), GradientClip(.1))[1]
def zeros(rank, _):
    model = cnn()
    with torch.no_grad(): model[3].weight[:4],model[3].bias[:4] = 0,0
    learn,out = shared(rank, KeepZeros(), RegularizeCallback(.01), model=model)
    assert int((learn.model[3].weight==0).flatten(1).all(1).sum()) >= 4
    return out
def compiled(rank, _):
    cb = SparsifyCallback(.5, 'filter', criterion='wanda')
    out = shared(rank, cb, CondenseCallback(min_gain=0), model=torch.compile(cnn(), backend='eager'))[1]
    assert [g.name for g in cb.sparsifier.groups][0]=='0'
    return out

def slow(o): return pytest.param(o, marks=pytest.mark.long)
@pytest.mark.parametrize('f', [pixels, inputs, best, slow(accumulated), slow(zeros), slow(compiled)])
def test_with_the_trainer_of_fastai(f, tmp_path):
    a,b = in_ranks(lambda rank: str(f(rank, tmp_path)))
    assert not (a.error or b.error) and a.result==b.result, (a, b)

# ## Killed, and gone on with: the first process has written, and all read

class Stop(Callback):
    def after_batch(self):
        if self.training and self.epoch==2: raise KeyboardInterrupt

def resumed(rank, make, folder):
    "The weights after each batch of the epochs that are trained by another learner are those of a fit that nobody ended."
    whole = shared(rank, *make(), n=4)[1][0]
    with pytest.raises(KeyboardInterrupt): shared(rank, *make(), SaveModelCallback(every_epoch=True, with_opt=True), Stop(), n=4, folder=folder)
    learn,seen = Learner(shared_dls(), cnn(), CrossEntropyLossFlat(), Adam, path=folder),Weights()
    learn.load('model_1', with_opt=True)
    fit(learn, 4, *make(), seen, shared_trainer(), start_epoch=2)
    assert seen.seen==whole[len(whole)//2:] and len(whole)==4*5
    return seen.seen

def shrinks(granularity='channel', **kwargs):
    return [SparsifyCallback(kwargs.get('target', .5), 'filter', schedule='linear', criterion='wanda'),
        InputPruneCallback(.5, 'linear', granularity=granularity, warmup=0.), CondenseCallback(min_gain=0)]
goes_on = dict(sizes=shrinks, budget=partial(shrinks, target=Budget(macs=.5)), pixels=partial(shrinks, 'pixel'))

@pytest.mark.parametrize('name', ['sizes', slow('budget'), slow('pixels')])
def test_it_goes_on_in_both(name, tmp_path):
    a,b = in_ranks(lambda rank: resumed(rank, goes_on[name], tmp_path))
    assert not (a.error or b.error) and a.result==b.result, (a, b)

@pytest.mark.parametrize('criterion', ['wanda', slow('random')])
def test_both_search_the_same_budget(criterion):
    def _fit(rank): return shared(rank, SparsifyCallback(Budget(macs=.5), 'filter', schedule='linear', criterion=criterion), CondenseCallback(min_gain=0))[1]
    a,b = in_ranks(_fit)
    assert not (a.error or b.error) and a.result==b.result and a.result[1][0][0] < 8, (a, b)

# ## What is wrong in one process is said by all, and none hangs

def own(rank):
    def _c(weight, context): return weight.abs()*(1+rank*torch.linspace(0, 5, weight.numel()).view(weight.shape))
    return _c
def fails(rank):
    calls = []
    def _c(weight, context):
        calls.append(1)
        if len(calls)>9 and rank: raise KeyError('of a criterion')
        return weight.abs()
    return _c
class At(Callback):
    "Something happens after the third batch, in the second process."
    order = 89
    def __init__(self, what): self.what = what
    def after_batch(self):
        if self.training and self.learn.train_iter==3 and distributed.get_rank(): self.what()
def lose(): raise KeyError('of a callback')

def try_bad(rank, cb=None, n_batches=None, model=None, const=False, part=slice(None), cbs=()):
    set_seed(rank) # weights that are drawn by each are those of the first by now
    model,(x,y) = (model or cnn)(),data()
    xs = (torch.ones_like(x) if const else x),y
    given = [b[part] for b in batches(48, 8, rank)][:n_batches]
    learn,seen = given_learner(model, xs, given),Weights()
    fit(learn, 2, cb or SparsifyCallback(.5, 'filter'), *cbs, seen, Wrap())
    return seen.seen

bad = dict( # what is different, and what both say: `None` where it does not matter
    seeds=(lambda r: try_bad(r), None),
    sizes=(lambda r: try_bad(r, wanda(), part=slice(3-r)), None),
    constant_in_one=(lambda r: try_bad(r, InputPruneCallback(.5), const=bool(r)), None),
    constant=(lambda r: try_bad(r, InputPruneCallback(.5), const=True), 'all inputs are the same'),
    models=(lambda r: try_bad(r, model=partial(cnn, bool(r))), 'same model'),
    batches=(lambda r: try_bad(r, n_batches=6-r), 'differ in the number of batches: it is 6, 5'),
    no_data=(lambda r: try_bad(r, n_batches=None if r==0 else 0), 'differ in the number of batches: it is 6, 0'),
    targets=(lambda r: try_bad(r, SparsifyCallback(.5-r/10)), 'differ in a digest of the settings'),
    criterion=(lambda r: try_bad(r, SparsifyCallback(.5, 'filter', criterion=own(r))), "the end of epoch 0: .*differ in a digest of the masks of '0'"),
    error_in_update=(lambda r: try_bad(r, SparsifyCallback(.5, 'filter', criterion=fails(r))), 'of a criterion'),
    error_elsewhere=(lambda r: try_bad(r, cbs=[At(lose)]), 'of a callback|[Cc]onnection'),
    death=(lambda r: try_bad(r, cbs=[At(lambda: os._exit(3))]), '[Cc]onnection|without a word'))

def said_by_both(name):
    "Is what differs said by both processes, or does it not matter? And after how many seconds the last one has ended."
    f,what = bad[name]
    a,b = in_ranks(f, guard=90)
    ok = not (a.error or b.error) and a.result==b.result if what is None else all(re.search(what, p.error, re.S) for p in (a, b))
    return (ok and -9 not in (a.code, b.code)),a.seconds,(a, b)

short = 'seeds','no_data','criterion','error_in_update','death'
@pytest.mark.parametrize('name', [k if k in short else slow(k) for k in bad])
def test_bad_input(name):
    ok,_,found = said_by_both(name)
    assert ok, found

def test_sharded_networks_are_refused():
    from torch.distributed.fsdp import FullyShardedDataParallel
    def _fit(rank):
        model = FullyShardedDataParallel(cnn(), device_id=torch.device('cpu'))
        fit(given_learner(model, data(), batches(48, 8, rank)), 1, SparsifyCallback(.5))
    for p in in_ranks(_fit): assert 'sharded by FullyShardedDataParallel' in p.error and 'Train it with DistributedDataParallel' in p.error

def row(what, tried, survived): return dict(what=what, tried=tried, survived=survived, lost=tried-survived, seeds=0)

def rows():
    "Tries all, and says for each what held."
    found = []
    for c in criteria:
        tried,lost = count(cases([c]))
        found.append(row(f'{c}: same weights in both at every step, exact counts' + (f'; not: {lost}' if lost else ''), tried, tried-len(lost)))
    far = against_one([(c, g, i) for c in criteria if c!='bn_scale' for g in kinds for i in (False, True)], 3)
    found.append(row(f'as one process with the same batches, float64: at most {max(far):.0e} apart', len(far), sum(d<=1e-10 for d in far)))
    held,far = shrunk([*shrinking])
    found.append(row(f'shrinking: same weights in both at every step; without norms {far:.0e} from one process', len(shrinking), len(held)))
    for name,(_,what) in bad.items():
        ok,seconds,_ = said_by_both(name)
        came = 'makes no difference' if what is None else f'said by both, the first of which ended {seconds:.1f} s after it began'
        found.append(row(f'{name.replace("_", " ")}: {came}', 1, int(ok)))
    return found

if __name__=='__main__': write_rows('ranks', rows())
