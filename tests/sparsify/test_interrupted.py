"Nothing but training changes anything; a fit goes on where it ended, and leaves nothing behind."
import itertools
from copy import deepcopy
import pytest, torch
from fastai.basics import Callback, CancelBatchException, CancelFitException, CancelStepException, set_seed
from fastai.callback.all import GradientClip, MixedPrecision
from torch import nn
from fasterprune.all import *
from fasterprune.sparsify.allocation import dead_count, start_count
from support.sparsity import Count, cnn, dead, fit, layers, learner, mlp, n_mlp, total, zeros
from support.sparsity_cases import Watch, WatchGradients, flat, hooks, same, snapshot

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

def traits(model): return [(n,type(m),m.training,sorted(vars(m))) for n,m in model.named_modules()]

def every_callback():
    return [SparsifyCallback(.5), SparsifyCallback(.5, criterion='wanda'), SparsifyCallback(.5, 'neuron', criterion='taylor'),
        SparsifyCallback(.5, start_epoch=1, end_epoch=2), KeepZeros(), InputPruneCallback(.5)]

@pytest.mark.parametrize('i', range(6))
@pytest.mark.parametrize('stop', [False,True])
def test_lr_find_leaves_all_as_it_was(i, stop, tmp_path):
    learn = fit(learner(n=80, path=tmp_path), 1, SparsifyCallback(.3))
    learn.add_cb(every_callback()[i])
    before = snapshot(learn)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=15, show_plot=False, stop_div=stop)
    assert same(before, snapshot(learn))

@pytest.mark.parametrize('i', range(6))
def test_validate_and_predictions_change_nothing(i):
    cb = every_callback()[i]
    learn = fit(learner(), 1)
    learn.add_cb(cb)
    for _ in range(2): # before and after a fit with it
        before,seen = snapshot(learn),(getattr(cb, 'sparsifier', None),list(getattr(cb, 'history', ())))
        with learn.no_bar(), learn.no_logging():
            learn.validate()
            learn.get_preds()
            learn.validate(ds_idx=0)
        assert same(before, snapshot(learn)) and seen==(getattr(cb, 'sparsifier', None),list(getattr(cb, 'history', ())))
        fit(learn, 3)

def test_training_mode_and_random_numbers_are_left_alone():
    "A fit with masks of no weights is the plain fit, bit by bit: looking at the graph draws no numbers and changes no statistic."
    build = lambda: nn.Sequential(*cnn()[:3], nn.Dropout(.5), *cnn()[3:])
    net = build()
    results = []
    for cbs in ([], [SparsifyCallback(0., 'filter')], [KeepZeros()], [SparsifyCallback(0., criterion='wanda')], [SparsifyCallback(0., criterion='taylor')]):
        set_seed(3)
        results.append(fit(learner(deepcopy(net), shape=(3,8,8)), 2, *cbs).model.state_dict())
    for r in results[1:]: assert same(flat(results[0]), flat(r))

@pytest.mark.parametrize('kwargs', [dict(), dict(start_epoch=1), dict(end_epoch=3), dict(start_epoch=1, end_epoch=3), dict(start_epoch=.4, end_epoch=.9),
    dict(every=3), dict(context='erk'), dict(granularity='neuron'), dict(context='local', schedule='agp'), dict(schedule='one_shot')], ids=str)
@pytest.mark.parametrize('at', [1,2,3])
def test_resume_goes_on_exactly(kwargs, at, tmp_path):
    class Stop(Callback):
        def after_epoch(self):
            if self.epoch==at-1: raise CancelFitException
    whole,rest,learn = Count(),Count(),learner(path=tmp_path)
    state = deepcopy(learn.model.state_dict())
    fit(learn, 4, SparsifyCallback(.8, **kwargs) if 'granularity' not in kwargs else SparsifyCallback(.7, **kwargs), whole)
    learn.model.load_state_dict(state)
    learn.create_opt()
    s = .7 if 'granularity' in kwargs else .8
    fit(learn, 4, SparsifyCallback(s, **kwargs), Stop())
    learn.save('half')
    other = learner(path=tmp_path)
    other.create_opt()
    other.load('half')
    cb = SparsifyCallback(s, **kwargs)
    fit(other, 4, cb, rest, start_epoch=at)
    if 'granularity' not in kwargs: assert rest.counts==whole.counts[4*at:]
    else: assert cb.history[-1][1]==round(.7*28)/28 and [round(h[1]*28) for h in cb.history]==[round(.7*one_cycle(h[0])*28) for h in cb.history]

@pytest.mark.parametrize('n', [7,28,64,344])
def test_resume_finds_where_a_fit_began(n):
    "However many units were dead when a fit began: one that was interrupted at any point goes on to its target, and never further."
    for start,s,f in itertools.product(range(0, n, max(1, n//9)), (.1,.33,.5,.73286,.75,.9,.95), (0.,.05,.3,.5,.9,.99,.998,1.)):
        dead = dead_count(n, start, s, f)
        begun = start_count(n, dead, s, f)
        goal = max(start, round(s*n))
        assert 0 <= begun <= n and dead_count(n, begun, s, f)==dead, (start, s, f)
        counts = [dead_count(n, begun, s, f+(1-f)*t) for t in (0,.25,.5,.75,1)]
        if s*n >= start: assert counts==sorted(counts) and counts[-1]==goal, (start, s, f, counts)

class Broken(Callback):
    "Raises at an event of the second batch, or of the first epoch."
    def __init__(self, event, error, order):
        self.order,self.error = order,error
        setattr(self, event, self.fail)
    def fail(self):
        if self.training and self.iter==1 or not self.training: raise self.error

events = ('before_batch','after_pred','after_loss','after_backward','before_step','after_step','after_batch','after_train','before_validate','after_validate',
    'after_epoch')

errors = RuntimeError('broken'),KeyboardInterrupt(),CancelFitException()

def interrupt(learn, broken, *cbs):
    before = [type(cb) for cb in learn.cbs],list(learn.model.state_dict()),[vs for *_,vs in traits(learn.model)]
    try: fit(learn, 2, *cbs, *broken)
    except (RuntimeError,KeyboardInterrupt): pass
    after = [type(cb) for cb in learn.cbs],list(learn.model.state_dict()),[vs for *_,vs in traits(learn.model)]
    assert before==after and not hooks(learn.model)

@pytest.mark.parametrize('event', events)
@pytest.mark.parametrize('order', [-100,200], ids=['first','last'])
def test_fault_an_interrupted_fit_leaves_something(event, order):
    for i,error in enumerate(errors): check_interrupted(event, order, error, 'wanda' if i!=events.index(event)%3 else ('fisher','large_final')[order>0])

@pytest.mark.long
def test_every_interrupted_fit():
    for args in itertools.product(events, (-100,200), errors, ('wanda','fisher','large_final')): check_interrupted(*args)

def check_interrupted(event, order, error, criterion):
    learn = learner(n=16)
    # what measures inputs is on the model from `before_batch` to the end of its next pass, which here never comes
    if (event,order,criterion)==('before_batch',200,'wanda') and not isinstance(error, CancelFitException): return check_one_pass(learn, error)
    interrupt(learn, [Broken(event, error, order)], SparsifyCallback(.5, schedule='linear', criterion=criterion))
    assert total(fit(learn, 1, SparsifyCallback(.6, criterion=criterion)).model)==round(.6*n_mlp), (error, criterion)
    if (event,order)==('after_step',-100) and not isinstance(error, CancelFitException): return # the step is done, and nobody else is asked
    interrupt(learn, [Broken(event, error, order)], KeepZeros())
    assert total(fit(learn, 1, KeepZeros()).model)==round(.6*n_mlp), (error, criterion)

def check_one_pass(learn, error):
    before = [vs for *_,vs in traits(learn.model)]
    with pytest.raises(type(error)): fit(learn, 2, SparsifyCallback(.5, criterion='wanda'), Broken('before_batch', error, 200))
    learn.model(learn.dls.one_batch()[0])
    assert [vs for *_,vs in traits(learn.model)]==before and not hooks(learn.model)

class Fragile(nn.Sequential):
    "Raises at its third batch of training."
    calls,error = 0,None
    def forward(self, x):
        self.calls += self.training
        if self.calls==3 and self.error is not None:
            self[0](x)
            raise self.error
        return super().forward(x)

@pytest.mark.parametrize('error', errors[:2], ids=['error','interrupt'])
def test_fault_an_exception_in_the_model_leaves_something(error):
    for kwargs in (dict(), dict(granularity='neuron'), dict(criterion='taylor'), dict(criterion='wanda')):
        net = Fragile(*mlp())
        net.calls,net.error = 0,error
        learn = learner(net)
        interrupt(learn, [], SparsifyCallback(.5, **kwargs))
        assert net.calls==3
        net.error = None
        fit(learn, 1, SparsifyCallback(.6, **kwargs))
        assert total(net)==round(.6*n_mlp) if 'granularity' not in kwargs else dead(net[0])+dead(net[3])==round(.6*28)
        assert not hooks(net)

def test_cancelled_steps_and_batches():
    "Whoever cancels what, the count is right, and zeros stay."
    class Cancel(Callback):
        run_valid = False
        def __init__(self, event, error, order):
            self.order,self.n = order,0
            def cancel():
                self.n += 1
                if self.n%2: raise error
            setattr(self, event, cancel)
    cases = [('before_step',CancelStepException), *[(event,CancelBatchException) for event in ('before_batch','after_pred','after_loss','before_step')]]
    for (event,error),order in itertools.product(cases, (-100,200)):
        for criterion in ('large_final','wanda'):
            learn = fit(learner(n=64), 2, SparsifyCallback(.7, criterion=criterion), Cancel(event, error, order), Watch())
            assert total(learn.model)==round(.7*n_mlp) and not hooks(learn.model), (event, order, criterion)

class Autocast(Callback):
    "Mixed precision as `MixedPrecision` does it, on the CPU."
    order = MixedPrecision.order
    def before_batch(self):
        self.cast = torch.autocast('cpu', dtype=torch.bfloat16)
        self.cast.__enter__()
    def after_pred(self): self.learn.pred = self.pred.float()
    def after_loss(self): self.cast.__exit__(None, None, None)

@pytest.mark.parametrize('criterion', ['large_final','wanda','taylor'])
def test_mixed_precision(criterion):
    learn = fit(learner(), 3, SparsifyCallback(.7, criterion=criterion), Autocast(), Watch(), WatchGradients())
    assert total(learn.model)==round(.7*n_mlp) and {p.dtype for p in learn.model.parameters()}=={torch.float32}
    if criterion!='wanda':
        net = fit(learner(cnn(), shape=(3,8,8)), 3, SparsifyCallback(.5, 'filter', criterion=criterion), Autocast(), Watch(), WatchGradients()).model
        assert dead(net[0])+dead(net[3])==12
        fit(learner(net, shape=(3,8,8)), 1, KeepZeros(), Autocast(), Watch())
        assert dead(net[0])+dead(net[3])==12

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('mode', ['fp16','bf16'])
@pytest.mark.parametrize('criterion', ['large_final','wanda','taylor'])
def test_mixed_precision_on_a_gpu(mode, criterion):
    learn = learner(cnn().cuda(), n=64, shape=(3,8,8), cbs=MixedPrecision(mode))
    learn.dls.to('cuda')
    fit(learn, 3, SparsifyCallback(.5, 'filter', criterion=criterion), Watch(), WatchGradients(), GradientClip(.5))
    net = learn.model
    assert dead(net[0])+dead(net[3])==12
    fit(learn, 2, SparsifyCallback(.7, criterion=criterion, context='local'), Watch(), WatchGradients())
    assert [zeros(m) for m in layers(net)]==[round(.7*m.weight.numel()) for m in layers(net)]
