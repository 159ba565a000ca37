"A network that shrinks while it trains is the one that masks alone, and condensing afterwards, would have given."
import warnings
import numpy as np, pytest
from fastai.callback.all import *
from fastai.tabular.all import *
from torch import nn
from fasterprune.all import *
from fasterprune.core.data import Tensors
from support.shrinking import Look, Norms, Residual, biased, both, cnn, column, conv, cuts, dense, filters, fit
from support.shrinking import group_norm, grouped, head, learner, mlp, optimizers, plain_mlp, quiet, residual
from support.shrinking import separable, shrinks, slow, unit, wave

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

nets = [cnn, biased, residual, separable, dense, grouped, mlp, plain_mlp, wave, group_norm, Norms]

@pytest.mark.parametrize('make', nets)
def test_networks(make):
    cut = shrinks()
    masked,small,(cb,) = both(make, lambda: filters(.6, unit(make)), cut=cut)
    assert len(cut.history)>=2 and n_params(small.model) < .7*n_params(masked.model)

@pytest.mark.parametrize('make', [residual, mlp, *map(slow, (cnn, grouped, separable, wave))])
def test_channels(make):
    g = 'feature' if make is mlp else 'channel'
    both(make, lambda: filters(.5, g, 'global', layers=None))

@pytest.mark.parametrize('context', ['global', 'erk', 'macs'])
@pytest.mark.parametrize('make', [residual, slow(dense)])
def test_contexts(make, context): both(make, lambda: filters(.5, context=context))

@pytest.mark.parametrize('criterion', ['taylor', 'bn_scale', 'updating_movement', 'wanda',
    *map(slow, ('squared_final', 'fisher', 'movement', 'magnitude_increase', 'large_init', 'movmag'))])
def test_criteria(criterion): both(residual if criterion!='bn_scale' else cnn, lambda: filters(.5, context='global', criterion=criterion), cut=shrinks(steps=2))

@pytest.mark.parametrize('schedule', [agp, one_shot, *map(slow, (linear, iterative, cosine))])
def test_schedules(schedule): both(cnn, lambda: filters(.6, schedule=schedule))

def halves(m): return [params(m[:2]), params(m[2:])]

quick = 'sgd','adam','ranger','adamw'
@pytest.mark.parametrize('name', [n if n in quick else slow(n) for n in optimizers])
def test_optimizers(name): both(cnn, opt_func=optimizers[name], splitter=halves, cut=shrinks(steps=3))

def frozen_fit(learn, *cbs, n):
    learn.freeze()
    fit(learn, *cbs[1:], n=1)
    learn.unfreeze()
    fit(learn, *cbs, n=n, lr=slice(1e-3, 2e-2))
def test_discriminative_learning_rates(): both(cnn, train=frozen_fit, splitter=halves, opt_func=Adam)

@pytest.mark.parametrize('train_bn', [True, False])
def test_frozen_groups(train_bn):
    "What is frozen is pruned and cut, too."
    def train(learn, *cbs, n):
        learn.freeze()
        fit(learn, *cbs, n=n)
    masked,small,_ = both(cnn, train=train, splitter=halves, train_bn=train_bn)
    assert [p.requires_grad for p in small.model.parameters()]==[p.requires_grad for p in masked.model.parameters()]

def cycle(learn, *cbs, n): quiet(lambda: learn.fit_one_cycle(n, 2e-2, cbs=list(cbs)), learn)
mores = dict(clip=[lambda: GradientClip(.05)], accumulate=[lambda: GradientAccumulation(24)],
    both=[lambda: GradientAccumulation(16), lambda: GradientClip(.05)])
@pytest.mark.parametrize('steps', [slow(None), slow(1), 3])
@pytest.mark.parametrize('more', mores)
def test_gradients_and_steps(more, steps):
    if more=='both' and steps: steps = 2 # in between the gradients to clip are shorter: what read the dead has gathered some before
    both(cnn, more=mores[more], cut=shrinks(steps=steps), train=cycle)

@pytest.mark.parametrize('kind', [k if k in ('every_2','steps','round_to') else slow(k) for k in cuts])
def test_how_and_when(kind):
    cut = shrinks(**cuts[kind])
    masked,small,_ = both(residual, lambda: filters(.6, every=2 if kind=='steps' else 1), cut=cut, n=4)
    if kind=='every_2': assert {h['epoch'] for h in cut.history} <= {1,3} and len(cut.history)==2
    if kind=='round_to': assert all(m.out_channels%4==0 for m in small.model.modules() if isinstance(m, nn.Conv2d))

def test_two_callbacks_on_different_layers(): both(cnn, lambda: [filters(.5, layers=['0.0','1.0']), filters(.75, layers=['3.0'], schedule=agp)])
def test_rounded(): both(cnn, lambda: filters(.6, round_to=4, context='global'), cut=shrinks(steps=2))
def test_minimum(): both(cnn, lambda: filters(.7, min_units=3, context='global'))
def test_targets_by_layer(): both(residual, lambda: filters({'0.0':.5, '2.first*':.7}))
def test_uncoupled(): both(cnn, lambda: filters(.5, coupled=False), alike=np.inf)

@pytest.mark.parametrize('steps', [None, 2])
def test_kept_zeros_in_a_second_fit(steps):
    "The first fit makes zeros, the second keeps and then cuts them."
    def train(learn, *cbs, n):
        fit(learn, filters(), n=2)
        fit(learn, KeepZeros(), *cbs, n=n)
    both(residual, prune=list, train=train, cut=shrinks(steps=steps))

def test_nothing_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        both(cnn)

class Late(nn.Module):
    "A residual block whose last norm begins at 0, and a head of zeros."
    def __init__(self):
        super().__init__()
        self.stem,self.block,self.head = conv(3, 12),Residual(12, 12),head(12)
        for p in (self.block.second[1].weight, self.head[2].weight): nn.init.zeros_(p)
    def forward(self, x): return self.head(self.block(self.stem(x)))

@pytest.mark.parametrize('kind', ['steps', 'epochs'])
def test_what_has_not_learned_yet_is_not_dead(kind):
    "No step has been taken when it is condensed for the first time."
    both(Late, more=[lambda: GradientAccumulation(48 if kind=='epochs' else 16)], cut=shrinks(steps=1 if kind=='steps' else None), n=4)

@pytest.mark.parametrize('kind', ['none', 'empty'])
def test_without_validation(kind):
    def train(learn, *cbs, n):
        if kind=='empty': learn.dls = DataLoaders(learn.dls.train, learn.dls.valid.new(Tensors(*[t[:0] for t in learn.dls.valid.dataset.tensors])))
        fit(learn, *cbs, *[CancelValid()]*(kind=='none'), n=n)
        learn.dls = learner().dls
        learn.recorder.log = L()
    both(cnn, train=train)

class CancelValid(Callback):
    def before_validate(self): raise CancelValidException

@pytest.mark.parametrize('context', ['local', 'global', 'erk'])
def test_counts_refer_to_the_network_as_it_was(context):
    learn,cb,cut = learner(residual),filters(.6, context=context, schedule=linear),shrinks()
    n = n_params(learn.model)
    seen = []
    fit(learn, cb, cut, Look(lambda l: seen.append(n_params(l.model))), n=4)
    total = cb.sparsifier.n
    wanted = [sum(round(.6*k/4*m) for m in ([g.n for g in cb.sparsifier.groups] if context=='local' else [total]))/total for k in range(1, 5)]
    assert total==12+12+16+16 and cb.sparsifier.reached==wanted[-1]
    assert cb.sparsifier.sparsity()==pytest.approx(cb.sparsifier.reached, abs=1e-12)
    if context!='erk': assert column(learn, 'sparsity')==pytest.approx(wanted, abs=1e-12)
    assert column(learn, 'parameters')==seen==[h['parameters'] for h in cut.history]
    assert seen==sorted(seen, reverse=True) and seen[0]<n and seen[-1]==n_params(learn.model)
    assert learn.condensed.report.params_before==n and learn.condensed.report.params_after==seen[-1] and learn.condensed.model is learn.model
    assert list(learn.recorder.metric_names)==['epoch','train_loss','valid_loss','accuracy','sparsity','parameters','time']
    assert all(len(v)==5 for v in learn.recorder.values)
    convs = [m for m in learn.model.modules() if isinstance(m, nn.Conv2d)]
    assert all(((m.weight!=0).flatten(1).any(1)).all() for m in convs), 'something dead was left'
