"Exact counts, at each step and at the end of every training."
import pytest, torch
from fastai.basics import Callback, CancelBatchException, set_seed
from fastai.callback.all import GradientAccumulation, ShortEpochCallback
from torch import nn
from fasterprune.all import *
from fasterprune.sparsify.schedule import get_schedule
from support.lanes import soak
from support.sparsity import Count, cnn, dead, fit, layers, learner, mlp, n_mlp, total, zeros

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

sparsities = (.1, .33, .5, .9, .99)

@pytest.mark.parametrize('s', sparsities)
@pytest.mark.parametrize('equal', [False, True])
def test_weights_exact_for_every_size(s, equal):
    for n in range(1, 1001):
        lin = nn.Linear(n, 1)
        if equal: nn.init.constant_(lin.weight, .1)
        Sparsifier(lin).sparsify(s)
        assert zeros(lin)==round(s*n), n

@pytest.mark.parametrize('s', sparsities)
@pytest.mark.parametrize('equal', [False, True])
@pytest.mark.parametrize('granularity', ['filter', 'neuron'])
@pytest.mark.parametrize('step', [9, *soak(1)])
def test_units_exact_for_every_size(s, equal, granularity, step):
    for n in [*range(1, 101), *range(101, 1001, step)]:
        layer = nn.Linear(2, n) if granularity=='neuron' else nn.Conv1d(1, n, 2)
        if equal: nn.init.constant_(layer.weight, .1)
        sp = Sparsifier(layer, granularity, coupled=False, layers='')
        if round(s*n)==n:
            with pytest.raises(ValueError, match=f'removes {n} of {n} units'): sp.sparsify(s)
            assert dead(layer)==0
        else:
            sp.sparsify(s)
            assert dead(layer)==round(s*n) and int((layer.bias==0).sum())==round(s*n), n

@pytest.mark.parametrize('s', sparsities)
@pytest.mark.parametrize('equal', [False, True])
@pytest.mark.parametrize('context', ['local', 'global'])
def test_exact_over_layers(s, equal, context):
    net = mlp()
    if equal: [nn.init.constant_(m.weight, -.1) for m in layers(net)]
    Sparsifier(net, context=context).sparsify(s)
    sizes = [m.weight.numel() for m in layers(net)]
    if context=='local': assert list(map(zeros, layers(net)))==[round(s*n) for n in sizes]
    else: assert total(net)==round(s*n_mlp) and all(zeros(m)<n for m,n in zip(layers(net), sizes))

@pytest.mark.parametrize('s', (.1, .33, .5, .75))
@pytest.mark.parametrize('context', ['local', 'global'])
@pytest.mark.parametrize('criterion', ['large_final', 'squared_final', 'small_final', 'random'])
@pytest.mark.parametrize('granularity', ['filter', 'neuron'])
def test_no_layer_is_emptied_and_counts_are_exact_step_by_step(s, context, criterion, granularity):
    conv = granularity=='filter'
    net = cnn() if conv else mlp()
    sp = Sparsifier(net, granularity, context, criterion, sample=torch.randn(2, *((3,8,8) if conv else (8,))))
    units = [8,16] if conv else [16,12]
    for part in (.2, .5, .9, 1.):
        sp.sparsify(s*part)
        counts = [dead(m) for m in layers(net)]
        assert counts[-1]==0 and all(d<n for d,n in zip(counts, units))
        if context=='local': assert counts[:2]==[round(s*part*n) for n in units]
        else: assert sum(counts)==round(s*part*sum(units))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_exact_in_other_precisions(dtype):
    net = nn.Sequential(nn.Linear(3000, 200), nn.Linear(200, 2)).to(dtype)
    nn.init.constant_(net[0].weight, .2) # their sum is more than float16 can hold
    sp = Sparsifier(net)
    sp.sparsify(.7)
    assert total(net)==round(.7*600_400) and {p.dtype for p in net.parameters()}=={dtype}

@pytest.mark.parametrize('schedule', [*schedules, iterative(5), Schedule(lambda t: t**2, .1, .7)], ids=str)
def test_last_step_reaches_target(schedule):
    for n in (1, 2, 3, 5, 7, 13, 31, 60):
        count = Count()
        fit(learner(n=8*n), 1, SparsifyCallback(.7, schedule=schedule), count)
        sched = get_schedule(schedule)
        assert len(count.counts)==n
        if schedule!='dense_sparse_dense': assert count.counts==[round(.7*sched((i+1)/n)*n_mlp) for i in range(n)], n # there zeros may grow again
        assert count.counts[-1]==round(.7*n_mlp)

@pytest.mark.parametrize('schedule', schedules)
@pytest.mark.parametrize('every', [1, 7])
@pytest.mark.parametrize('valid', [True, False])
def test_reached_with_and_without_validation(schedule, every, valid):
    count = Count()
    fit(learner(n=40, valid=valid), 3, SparsifyCallback(.9, schedule=schedule, every=every), count)
    assert len(count.counts)==15 and count.counts[-1]==round(.9*n_mlp)

@pytest.mark.soak
@pytest.mark.parametrize('schedule', schedules)
def test_every_fit_of_1_to_60_steps_reaches_target(schedule):
    for n in range(1, 61):
        for valid in (True, False):
            learn = fit(learner(n=8*n, valid=valid), 1, SparsifyCallback(.9, schedule=schedule))
            assert total(learn.model)==round(.9*n_mlp), n

def test_short_epoch_and_cancelled_batches_reach_target():
    class SkipFirst(Callback):
        order = -20
        def before_batch(self):
            if self.iter==0: raise CancelBatchException
    for cbs in ([ShortEpochCallback(.5)], [SkipFirst()], [GradientAccumulation(16)]):
        assert total(fit(learner(), 2, SparsifyCallback(.5), *cbs).model)==round(.5*n_mlp), cbs

def all_weights(net): return total(net),n_mlp
def two_layers(net): return dead(net[0])+dead(net[3]),len(net[0].weight)+len(net[3].weight)

aims = dict(weights=(mlp, (8,), dict(), all_weights), filters=(cnn, (3,8,8), dict(granularity='filter'), two_layers),
    filters_erk=(cnn, (3,8,8), dict(granularity='filter', context='erk'), two_layers),
    neurons=(mlp, (8,), dict(granularity='neuron', context='local'), two_layers), two_of_four=(mlp, (8,), dict(granularity='2:4'), all_weights),
    erk=(mlp, (8,), dict(context='erk', criterion='movement'), all_weights), wanda=(mlp, (8,), dict(criterion='wanda'), all_weights),
    taylor=(mlp, (8,), dict(granularity='neuron', criterion='taylor'), two_layers))

def check_aim(aim, n, schedule, valid, epochs=1, s=.5, **kwargs):
    build,shape,own,count = aims[aim]
    cb = SparsifyCallback(s, schedule=schedule, **own, **kwargs)
    learn = fit(learner(build(), n=8*n, shape=shape, valid=valid), epochs, cb)
    found,of = count(learn.model)
    assert found==round(s*of)==round(cb.history[-1][1]*of) and len(cb.history)==n*epochs, (aim, n, schedule, valid)

@pytest.mark.parametrize('aim', aims)
def test_last_step_reaches_every_kind_of_target(aim):
    for n,schedule in ((1,'agp'), (2,'one_shot'), (5,'linear'), (17,'dense_sparse_dense'), (23,'one_cycle')): check_aim(aim, n, schedule, n%3!=2)
    check_aim(aim, 4, 'cosine', True, epochs=3, every=5)
    check_aim(aim, 4, 'iterative', False, epochs=3, start_epoch=1, end_epoch=2)

@pytest.mark.soak
def test_every_fit_of_1_to_200_steps_reaches_every_kind_of_target():
    for n in range(1, 201): check_aim([*aims][n%len(aims)], n, [*schedules][n//2%7], n%3>0, s=(.5,.33,.4)[n//3%3])
