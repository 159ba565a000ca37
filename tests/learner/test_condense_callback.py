"A network that shrinks while it trains is the one that masks alone, and condensing afterwards, would have given."
import warnings
from importlib import import_module
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.all import *
from fastai.tabular.all import *
from torch import nn
from torch.optim.swa_utils import AveragedModel
from fasterprune.all import *
from fasterprune.core.data import Tensors
from fasterprune.sparsify.mask_callback import MaskCallback
from fasterprune.core.models import evaluating
from fasterprune.learner.condense_callback import CondenseCallback

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

def slow(*args): return pytest.param(*args, marks=pytest.mark.long)

# ---- networks and learners

def conv(i, o, k=3, norm=nn.BatchNorm2d, **kwargs): return nn.Sequential(nn.Conv2d(i, o, k, padding=k//2, bias=False, **kwargs), norm(o), nn.ReLU())
def head(n): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 3))
def cnn(norm=nn.BatchNorm2d): return nn.Sequential(conv(3, 12, norm=norm), conv(12, 16, norm=norm), nn.MaxPool2d(2), conv(16, 12, norm=norm), head(12))
def biased(): return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), head(16))

class Residual(nn.Module):
    "A block whose stream goes on as it is, or through a projection."
    def __init__(self, i, o):
        super().__init__()
        self.first,self.second = conv(i, o),nn.Sequential(nn.Conv2d(o, o, 3, padding=1, bias=False), nn.BatchNorm2d(o))
        self.path = nn.Identity() if i==o else nn.Sequential(nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o))
    def forward(self, x): return (self.path(x)+self.second(self.first(x))).relu()

class Dense(nn.Module):
    "A block that puts what it makes beside what came in."
    def __init__(self, i, o):
        super().__init__()
        self.net = conv(i, o)
    def forward(self, x): return torch.cat([x, self.net(x)], 1)

def residual(): return nn.Sequential(conv(3, 12), Residual(12, 12), Residual(12, 16), head(16))
def separable(): return nn.Sequential(conv(3, 12), conv(12, 12, groups=12), conv(12, 16, 1), conv(16, 16, groups=16), conv(16, 12, 1), head(12))
def dense(): return nn.Sequential(conv(3, 8), Dense(8, 6), Dense(14, 6), conv(20, 12, 1), head(12))
def grouped(): return nn.Sequential(conv(3, 12), conv(12, 12, groups=3), conv(12, 16), head(16))
def mlp(): return nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
def plain_mlp(): return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
def wave(): return nn.Sequential(nn.Conv1d(4, 12, 5, padding=2), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
    nn.Flatten(), nn.Linear(16, 3))
def group_norm(): return cnn(lambda n: nn.GroupNorm(4, n))
class Norms(nn.Module):
    "LayerNorms over a residual stream."
    def __init__(self):
        super().__init__()
        self.stem,self.norm,self.up,self.down = nn.Linear(20, 16),nn.LayerNorm(16),nn.Linear(16, 24),nn.Linear(24, 16)
        self.last,self.head = nn.LayerNorm(16),nn.Linear(16, 3)
    def forward(self, x):
        x = self.stem(x)
        return self.head(self.last(x+self.down(self.up(self.norm(x)).relu())))

shapes = dict(mlp=(20,), plain_mlp=(20,), Norms=(20,), wave=(4,15))
def data(shape, n=40, bs=8, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, *shape, dtype=dtype, generator=g)
    y = x.flatten(1)[:,:9].view(n, 3, 3).sum(2).argmax(1)
    return tensor_dls((x[:n-8],y[:n-8]), (x[n-8:],y[n-8:]), bs=bs)

def learner(make=cnn, dtype=torch.float64, bs=8, n=40, **kwargs):
    set_seed(0)
    model = make().to(dtype)
    dls = data(shapes.get(make.__name__, (3,6,6)), n, bs, dtype)
    return Learner(dls, model, **merge(dict(loss_func=CrossEntropyLossFlat(), metrics=accuracy, opt_func=Adam), kwargs))

def quiet(f, *learners):
    with ContextManagers([c() for l in learners for c in (l.no_bar, l.no_logging)]): return f()
def fit(learn, *cbs, n=3, lr=2e-2, **kwargs):
    quiet(lambda: learn.fit(n, lr, cbs=list(cbs), **kwargs), learn)
    return learn
def preds(learn, **kwargs): return quiet(lambda: learn.get_preds(act=noop, **kwargs), learn)[0]
def far(a, b): return float((a-b).abs().max()/a.abs().max())
def widths(model): return [tuple(p.shape) for p in model.parameters()]
def column(learn, name): return [v[list(learn.recorder.metric_names[1:]).index(name)] for v in learn.recorder.values]

def filters(s=.6, granularity='filter', context='local', **kwargs): return SparsifyCallback(s, granularity, context, **kwargs)
def shrinks(**kwargs): return CondenseCallback(**merge(dict(min_gain=0.), kwargs))

def both(make=cnn, prune=filters, more=(), cut=None, train=fit, n=3, alike=1e-9, dtype=torch.float64, **kwargs):
    "Train with masks and condense, and while shrinking: the same outputs and sizes; returns both learners and the callbacks of the second."
    masked,small = [learner(make, dtype, **kwargs) for _ in range(2)]
    found = []
    for learn in (masked, small):
        cbs = [*L(prune()), *[f() for f in more]]
        set_seed(1)
        train(learn, *cbs, *([] if learn is masked else [cut or shrinks()]), n=n)
        found.append(cbs)
    wide,after = masked,masked.condense(round_to=cut.round_to if cut else 1)
    a,b = preds(after),preds(small)
    assert far(a, b) <= alike, f'outputs differ by {far(a, b):.1e}'
    assert far(preds(wide), b) <= alike
    assert n_params(small.model)==n_params(after.model) < n_params(wide.model)
    assert widths(small.model)==widths(after.model)
    for p,q in zip(*found):
        if isinstance(p, SparsifyCallback): assert p.sparsifier.sparsity()==pytest.approx(q.sparsifier.sparsity(), abs=1e-12)
        if isinstance(p, MaskCallback): assert p.history==q.history
    return masked,small,found[1]

# ---- the same network

nets = [cnn, biased, residual, separable, dense, grouped, mlp, plain_mlp, wave, group_norm, Norms]
def unit(make): return 'neuron' if make in (mlp, plain_mlp, Norms) else 'filter'

@pytest.mark.parametrize('make', nets)
def test_networks(make):
    cut = shrinks()
    masked,small,(cb,) = both(make, lambda: filters(.6, unit(make)), cut=cut)
    assert len(cut.history)>=2 and n_params(small.model) < .7*n_params(masked.model)

@pytest.mark.parametrize('make', [residual, mlp, *map(slow, (cnn, grouped, separable, wave))])
def test_channels(make):
    g = 'feature' if make is mlp else 'channel'
    both(make, lambda: filters(.5, g, 'global', layers=None))

@pytest.mark.parametrize('context', ['global', 'erk'])
@pytest.mark.parametrize('make', [residual, slow(dense)])
def test_contexts(make, context): both(make, lambda: filters(.5, context=context))

@pytest.mark.parametrize('criterion', ['taylor', 'bn_scale', 'updating_movement', 'wanda',
    *map(slow, ('squared_final', 'fisher', 'movement', 'magnitude_increase', 'large_init', 'movmag'))])
def test_criteria(criterion): both(residual if criterion!='bn_scale' else cnn, lambda: filters(.5, context='global', criterion=criterion), cut=shrinks(steps=2))

@pytest.mark.parametrize('schedule', [agp, one_shot, *map(slow, (linear, iterative, cosine))])
def test_schedules(schedule): both(cnn, lambda: filters(.6, schedule=schedule))

def halves(m): return [params(m[:2]), params(m[2:])]
def torchs(opt, **kwargs): return partial(OptimWrapper, opt=partial(opt, **kwargs))
optimizers = dict(sgd=partial(SGD, mom=.9), plain_sgd=SGD, adam=partial(Adam, wd=.1), rms=partial(RMSProp, mom=.9), radam=RAdam, qhadam=QHAdam, ranger=ranger,
    lookahead=lambda p, **kw: Lookahead(SGD(p, mom=.9, **kw), k=3), adamw=torchs(torch.optim.AdamW, amsgrad=True),
    torch_sgd=torchs(torch.optim.SGD, momentum=.9, nesterov=True),
    adagrad=torchs(torch.optim.Adagrad), nadam=torchs(torch.optim.NAdam), rprop=torchs(torch.optim.Rprop), asgd=torchs(torch.optim.ASGD))
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

cuts = dict(every_2=dict(every=2), steps=dict(steps=1), gain=dict(min_gain=.05),
    much=dict(min_gain=.6), round_to=dict(round_to=4), unverified=dict(verify=False), whole=dict(inputs=False))
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

# ---- a network that is easily mistaken for dead

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

# ---- counts

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

class Look(Callback):
    order = 90
    def __init__(self, look): self.look = look
    def after_epoch(self): self.look(self.learn)

# ---- checkpoints

def best_of(k, **kwargs):
    "A metric that is highest in epoch `k`, and a callback that saves by it."
    def favored(preds, targs): return float(favored.learn.epoch==k)
    return favored,SaveModelCallback(monitor='favored', comp=np.greater, **kwargs)

@pytest.mark.parametrize('with_opt', [False, True])
@pytest.mark.parametrize('k', [0, 3, slow(1)])
def test_best_epoch_comes_back(tmp_path, k, with_opt):
    favored,saves = best_of(k, with_opt=with_opt)
    learn = learner(residual, path=tmp_path, metrics=[accuracy,favored], opt_func=partial(SGD, mom=.9))
    favored.learn,seen = learn,[]
    cb,cut = filters(.7, schedule=linear, context='global'),shrinks()
    fit(learn, cb, cut, saves, Look(lambda l: seen.append((preds_of(l.model), widths(l.model)))), n=4)
    assert len({str(w) for _,w in seen})==4, 'no epoch has the widths of another'
    out,size = seen[k]
    assert widths(learn.model)==size and torch.equal(preds_of(learn.model), out)
    assert learn.condensed.model is learn.model and learn.condensed.report.params_after==n_params(learn.model)
    path = learn.condensed.save(tmp_path/'small.safetensors')
    again = load_condensed(path, residual().double())
    assert torch.equal(preds_of(again.model), out)
    kept = [(p, s) for p,state in learn.opt.state.items() for s in state.values() if isinstance(s, Tensor) and s.numel()>1]
    assert all(s.shape==p.shape for p,s in kept), 'the optimizer keeps something of another shape'
    fit(learn, KeepZeros(), n=1)
    fit(learn, filters(.5), shrinks(), n=1)
    assert n_params(learn.model) < sum(np.prod(s) for s in size)

x_fix = torch.randn(5, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
def preds_of(model, x=x_fix):
    with evaluating(model), torch.no_grad(): return model(x.to(next(model.parameters()).dtype)).clone()

@pytest.mark.parametrize('kwargs', [dict(every_epoch=True), dict(at_end=True)], ids=('every_epoch','at_end'))
def test_other_ways_of_saving(tmp_path, kwargs):
    learn = learner(path=tmp_path)
    saves,seen = SaveModelCallback(**kwargs),[]
    fit(learn, filters(.6, schedule=linear), shrinks(), saves, Look(lambda l: seen.append(preds_of(l.model))))
    assert torch.equal(preds_of(learn.model), seen[-1])
    learn.load(saves.fname + '_2'*('every_epoch' in kwargs))
    assert torch.equal(preds_of(learn.model), seen[-1])

def test_the_best_of_two_fits(tmp_path):
    "The second fit is no better; what is loaded at its end is of the first."
    learn = learner(path=tmp_path)
    saves,seen = SaveModelCallback(monitor='parameters', comp=np.greater, reset_on_fit=False),[]
    look = Look(lambda l: seen.append(preds_of(l.model)))
    fit(learn, filters(.3), shrinks(), saves, look, n=1)
    fit(learn, KeepZeros(), filters(.6), shrinks(), saves, look, n=2)
    assert torch.equal(preds_of(learn.model), seen[0]) and learn.condensed.report.params_after==n_params(learn.model)

def test_inputs_of_the_best_epoch_come_back(tmp_path):
    favored,saves = best_of(0)
    learn = learner(plain_mlp, path=tmp_path, metrics=favored)
    favored.learn,seen = learn,[]
    cb = InputPruneCallback(.6, schedule=linear)
    def see(l): seen.append((preds_of(l.model, l.dls.valid.one_batch()[0]), l.model[0].in_features))
    fit(learn, cb, filters(.5, 'neuron'), shrinks(), saves, Look(see), n=3)
    assert learn.model[0].in_features==seen[0][1]==16 and learn.dls.one_batch()[0].shape[1]==16
    assert torch.equal(preds_of(learn.model, learn.dls.valid.one_batch()[0]), seen[0][0])
    assert len(cb.kept)==16 and len(cb.to_frame())==20 and cb.to_frame().kept.sum()==16
    assert cb.kept.tolist()==learn.condensed.inputs.index0.tolist()
    fit(learn, n=1)

def test_early_stopping(tmp_path):
    learn = learner(path=tmp_path)
    fit(learn, filters(.6), shrinks(min_gain=.5), EarlyStoppingCallback(monitor='parameters', comp=np.greater, patience=2), n=6)
    assert len(learn.recorder.values)<6 and column(learn, 'parameters')[-1]==n_params(learn.model)
    fit(learn, n=1)

# ---- moving averages

class Average(Callback):
    order = 80
    def before_fit(self): self.ema = AveragedModel(self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(.7), use_buffers=self.buffers)
    def __init__(self, buffers): self.buffers = buffers
    def after_step(self): self.ema.update_parameters(self.model)

@pytest.mark.parametrize('buffers', [slow(False), True])
@pytest.mark.parametrize('make', [slow(cnn), residual])
def test_moving_averages(make, buffers):
    masked,small,(_,average) = both(make, more=[lambda: Average(buffers)], cut=shrinks())
    wide = learner(make)
    cb = Average(buffers)
    set_seed(1)
    fit(wide, filters(), cb)
    assert widths(average.ema.module)==widths(small.model)
    a,b = preds_of(cb.ema.module),preds_of(average.ema.module)
    assert far(a, b) <= 1e-9

class Semantics(nn.Module):
    "A module of one's own whose name has the three letters in it."
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(3, 3).double()
class Holds(Callback):
    def __init__(self): self.module = Semantics()
def test_another_module_is_no_moving_average(): both(cnn, more=[Holds])

# ---- files and further fits

def test_files_and_what_comes_after(tmp_path):
    learn = learner(residual, path=tmp_path)
    learn.add_cbs([filters(.6), shrinks()])
    learn.logger = noop
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(): learn.lr_find(num_it=4, show_plot=False)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    fit(learn, n=2)
    a,n = preds(learn),n_params(learn.model)
    with learn.no_bar(): learn.lr_find(num_it=4, show_plot=False)
    assert torch.equal(preds(learn), a)
    learn.save('small', with_opt=True)
    learn.export('small.pkl')
    learn.condensed.save(tmp_path/'small.safetensors')
    with torch.no_grad(): learn.model[0][0].weight.zero_()
    learn.load('small')
    assert torch.equal(preds(learn), a)
    back,again = load_learner(tmp_path/'small.pkl'),load_condensed(tmp_path/'small.safetensors', residual().double())
    x = learn.dls.valid.one_batch()[0]
    for m in (back.model, again.model): assert torch.equal(preds_of(m, x), preds_of(learn.model, x))
    loss,*_ = quiet(learn.validate, learn)
    assert loss==pytest.approx(float(nn.functional.cross_entropy(a, learn.dls.valid.dataset.tensors[1])), abs=1e-6) # fastai averages in float32
    fit(learn, n=2)
    assert n_params(learn.model)<=n and learn.condensed.report.params_before==n_params(residual())
    learn.remove_cbs([CondenseCallback, SparsifyCallback])
    fit(learn, n=1)
    fit(learn, KeepZeros(), filters(.7), shrinks(), n=2)
    m = n_params(learn.model)
    learn.condensed.save(tmp_path/'smaller.safetensors')
    again = load_condensed(tmp_path/'smaller.safetensors', residual().double())
    assert m<n and torch.equal(preds_of(again.model), preds_of(learn.model)) and again.report.params_before==n_params(residual())

def test_learner_can_be_condensed_that_has_the_callback():
    learn = learner(cbs=[filters(.5), shrinks(every=1)])
    fit(learn)
    small = learn.condense()
    assert far(preds(learn), preds(small)) <= 1e-9

def test_what_validate_says_before_and_after():
    "With callbacks that stay, as without."
    a,b = learner(),learner(cbs=[filters(.5), shrinks()])
    fit(b)
    a.model,a.dls = b.model,b.dls
    x,y = [list(quiet(l.validate, l)) for l in (a, b)]
    assert y[:2]==pytest.approx(x[:2])

# ---- inputs

@pytest.mark.parametrize('make', [mlp, wave, slow(plain_mlp), slow(cnn)])
def test_inputs(make):
    "They go from the DataLoaders at the end of an epoch, and the callback still tells of them by their old numbers."
    x = 4 if make is wave else 3 if make is cnn else 20
    s,seen = (.5 if x==4 else .4 if x==3 else .6),[]
    class See(Callback):
        def before_batch(self):
            if self.training: seen.append((self.epoch, self.xb[0].shape[1]))
    masked,small,(cb,_,_) = both(make, lambda: InputPruneCallback(s, schedule=linear), more=[lambda: filters(.5, unit(make)), See], cut=shrinks(steps=None))
    left = [x-round(s*x*k/3) for k in range(4)]
    assert sorted(set(seen[len(seen)//2:]))==list(enumerate(left[:3])) and small.dls.one_batch()[0].shape[1]==left[3]==len(cb.kept)
    old = learner(make)
    set_seed(1)
    other = InputPruneCallback(s, schedule=linear)
    fit(old, other, filters(.5, unit(make)))
    a,b = other.to_frame(),cb.to_frame()
    assert cb.kept.tolist()==other.kept.tolist()==small.condensed.inputs.index0.tolist() and len(cb.scores)==x and cb.sparsifier.deaths==other.sparsifier.deaths
    assert torch.allclose(cb.scores, other.scores, rtol=1e-5) and a.index.tolist()==b.index.tolist() and np.allclose(a.score, b.score, rtol=1e-5)
    assert np.allclose(a.died_at, b.died_at, equal_nan=True)
    assert [r['inputs'] for r in cb.epochs_seen]==left[1:]
    full = masked.dls.valid.one_batch()[0]
    assert torch.equal(preds_of(small.model, small.condensed.inputs(full)), preds_of(small.model, small.dls.valid.one_batch()[0]))

def test_the_scale_of_inputs_that_are_gone_is_still_told():
    res = []
    for cut in ([], [shrinks()]):
        learn,cb = learner(plain_mlp),InputPruneCallback(.6, schedule=linear)
        set_seed(1)
        fit(learn, cb, *cut)
        res.append(cb.to_frame())
    assert res[1].scale.notna().all() and np.allclose(res[0].scale[res[0].kept], res[1].scale[res[1].kept], rtol=1e-5)

@pytest.mark.parametrize('criterion', ['taylor', 'gradient_input', slow('large_final'), slow('fisher')])
def test_criteria_of_inputs(criterion):
    masked,small,(cb,_) = both(plain_mlp, lambda: InputPruneCallback(.6, criterion=criterion), more=[lambda: filters(.5, 'neuron')], cut=shrinks())
    assert cb.kept.tolist()==small.condensed.inputs.index0.tolist() and len(cb.kept)==8

class Two(nn.Module):
    "Two inputs, which layers read that go on by themselves."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(10, 16),nn.Linear(8, 12),nn.Linear(28, 3)
    def forward(self, x, y): return self.c(torch.cat([self.a(x).relu(), self.b(y).relu()], 1))

def two(**kwargs):
    set_seed(0)
    model = Two().double()
    x = torch.randn(40, 18, dtype=torch.float64)
    y = x[:,:9].view(40, 3, 3).sum(2).argmax(1)
    parts = x[:,:10],x[:,10:],y
    dls = tensor_dls([t[:32] for t in parts], [t[32:] for t in parts], bs=8)
    dls.n_inp = 2
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), **kwargs)

@pytest.mark.parametrize('criterion', ['large_scaled', 'fisher', slow('taylor'), slow('gradient_input')])
def test_two_inputs(criterion):
    "Layers that read them become narrow at different rates; features compete all the same."
    res = []
    for cut in ([], [shrinks()]):
        learn = two()
        set_seed(1)
        cb = InputPruneCallback(.5, criterion=criterion)
        fit(learn, cb, filters({'a':.8, 'b':.1}, 'neuron', schedule=agp), *cut, n=3)
        res.append((cb.kept.tolist(), preds(learn if cut else learn.condense()), cb.scores))
    (k,a,s),(l,b,t) = res
    assert k==l and len(k)==9 and far(a, b) <= 1e-9 and torch.allclose(s, t, rtol=1e-4)

def diagonal():
    "Each of the first features is read by one neuron."
    net = plain_mlp()
    with torch.no_grad(): net[0].weight.copy_(torch.eye(16, 20)*(torch.rand(16, 1)+.5) + (torch.arange(20)>=16)*.1)
    return net
shapes['diagonal'] = (20,)

def test_induced_inputs():
    masked,small,(cb,*_) = both(diagonal, lambda: InputPruneCallback(.1, induced=True), more=[KeepZeros, lambda: filters(.5, 'neuron', layers=['0'])], n=2)
    assert len(cb.kept)==small.model[0].in_features <= 12 and cb.kept.tolist()==small.condensed.inputs.index0.tolist()

def table(**kwargs):
    set_seed(0)
    rnd,n = np.random.RandomState(0),64
    df = pd.DataFrame({k:rnd.choice(list('abcd'), n) for k in ('p','q','r')} | {k:rnd.randn(n) for k in ('u','v','w','x')})
    df['y'] = np.where((df.u+df.v>0)^(df.p>'c'), 'yes', 'no')
    df.loc[::7,'w'] = np.nan
    dls = TabularDataLoaders.from_df(df, procs=[Categorify, FillMissing, Normalize], cat_names=['p','q','r'], cont_names=list('uvwx'),
        y_names='y', valid_idx=list(range(16)), bs=16, num_workers=0, device='cpu')
    return tabular_learner(dls, layers=[20,12], **merge(dict(metrics=accuracy), kwargs)),df

@pytest.mark.parametrize('neurons,opt', [(True,'adamw'), *[slow(a, b) for a,b in ((True,'sgd'), (True,'ranger'), (False,'sgd'), (False,'ranger'))]])
def test_tables(neurons, opt, tmp_path):
    res = []
    for cut in ([], [shrinks()]):
        learn,df = table(opt_func=optimizers[opt], path=tmp_path)
        set_seed(1)
        cb = InputPruneCallback(.5, criterion='large_scaled')
        fit(learn, cb, *[filters(.5, 'neuron')]*neurons, *cut, n=4, lr=1e-2)
        res.append((learn, cb))
    (masked,a),(small,b) = res
    after = masked.condense()
    assert a.kept_names==b.kept_names and len(a.kept)==7-round(.5*7) and a.to_frame().index.tolist()==b.to_frame().index.tolist()
    assert list(small.dls.x_names)==list(after.dls.x_names) and set(b.kept_names)=={n.removesuffix('_na') for n in small.dls.x_names}
    assert far(preds(after), preds(small)) <= 1e-4 and n_params(after.model)==n_params(small.model)
    needed = df[[*b.kept_names]]
    assert far(preds(masked, dl=masked.dls.test_dl(df)), preds(small, dl=small.dls.test_dl(needed))) <= 1e-4
    assert {id(p) for g in small.opt.param_groups for p in g['params']}=={id(p) for p in small.model.parameters()}
    small.export('small.pkl')
    back = load_learner(tmp_path/'small.pkl')
    with back.no_bar(): assert torch.equal(back.predict(needed.iloc[0])[2], quiet(lambda: small.predict(needed.iloc[0]), small)[2])
    small.condensed.save(tmp_path/'table.safetensors')
    again = load_condensed(tmp_path/'table.safetensors', table()[0].model)
    xs = small.dls.valid.one_batch()[:2]
    with evaluating(again.model), evaluating(small.model): assert torch.equal(again.model(*xs), small.model(*xs))
    fit(small, n=1)

def of_table(learn):
    with evaluating(learn.model), torch.no_grad(): return learn.model(*learn.dls.valid.one_batch()[:2])

@pytest.mark.parametrize('with_opt', [False, True])
def test_the_best_epoch_of_a_table(tmp_path, with_opt):
    favored,saves = best_of(0, with_opt=with_opt)
    learn,df = table(path=tmp_path, metrics=favored)
    favored.learn,seen = learn,[]
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='Could not load')
        cb = InputPruneCallback(.7, schedule=linear, criterion='large_scaled')
        fit(learn, cb, shrinks(), saves, Look(lambda l: seen.append((list(l.dls.x_names), of_table(l)))), n=3, lr=1e-2)
    assert list(learn.dls.x_names)==seen[0][0]!=seen[2][0] and torch.equal(of_table(learn), seen[0][1])
    assert {id(p) for g in learn.opt.param_groups for p in g['params']}=={id(p) for p in learn.model.parameters()}, 'the optimizer does not know all parameters'
    fit(learn, n=1)

# ---- other units

@pytest.mark.parametrize('dtype', [torch.float32, slow(torch.float64)])
@pytest.mark.parametrize('granularity', ['weight', 'kernel', '2:4', 'block(4,4)', *map(slow, ('row', 'column', 'shared_kernel', 'layer'))])
def test_other_granularities(granularity, dtype, tmp_path):
    "What they leave behind is exact in number, and a file holds it."
    s = {'2:4':.5, 'layer':.3}.get(granularity, .9)
    def net(): return nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    set_seed(0)
    learn = Learner(data((4,6,6), dtype=dtype), net().to(dtype), loss_func=CrossEntropyLossFlat())
    cb,cut = SparsifyCallback(s, granularity, schedule=linear),shrinks()
    with torch.no_grad(): # there is something to cut
        for i,n in ((0,4), (2,8)): learn.model[i].weight[:n],learn.model[i].bias[:n] = 0,0
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='the network is trained as wide')
        fit(learn, cb, KeepZeros(), cut)
    n = cb.sparsifier.n
    assert len(cut.history)>=1 and n_params(learn.model) < n_params(net())
    assert cb.sparsifier.reached==pytest.approx(cb.sparsifier.sparsity(), abs=1e-12)
    assert cb.history[-1][1] >= round(s*n)/n, 'weights that are gone because of others count, too, so that it may be more'
    learn.condensed.save(tmp_path/'small.safetensors')
    again = load_condensed(tmp_path/'small.safetensors', net().to(dtype))
    x = learn.dls.valid.one_batch()[0]
    assert torch.equal(preds_of(again.model, x), preds_of(learn.model, x))

class Recurrent(nn.Module):
    "Filters whose channels an LSTM reads."
    def __init__(self):
        super().__init__()
        self.a,self.n,self.rnn,self.h = nn.Conv1d(4, 12, 5, padding=2),nn.BatchNorm1d(12),nn.LSTM(12, 10, batch_first=True),nn.Linear(10, 3)
    def forward(self, x): return self.h(self.rnn(self.n(self.a(x)).relu().transpose(1, 2))[0][:,-1])
shapes['Recurrent'] = 4,15

def test_weights_of_a_recurrent_layer_that_gets_narrower():
    learn,cb = learner(Recurrent),SparsifyCallback(.5, layers=nn.LSTM, criterion='updating_movement')
    assert not noted(lambda: fit(learn, filters(.5, layers='a'), cb, shrinks()))
    rnn = learn.model.rnn
    assert rnn.input_size==6 and rnn.weight_ih_l0.shape==(40,6)
    zeros = sum(int((w==0).sum()) for w in (rnn.weight_ih_l0, rnn.weight_hh_l0)) + 40*6 # what is gone counts
    assert cb.sparsifier.reached==pytest.approx(cb.sparsifier.sparsity(), abs=1e-12)==pytest.approx(zeros/cb.sparsifier.n) and zeros>=round(.5*cb.sparsifier.n)

def test_neighbors_when_one_of_them_is_gone():
    def net(): return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    shapes['net'] = (20,)
    learn = learner(net)
    with torch.no_grad(): learn.model[0].weight[0],learn.model[0].bias[0] = 0,0
    cb = SparsifyCallback(.5, '2:4', schedule=linear, layers=['2'])
    fit(learn, cb, KeepZeros(), shrinks())
    assert learn.model[2].in_features==15 and cb.sparsifier.sparsity() >= .5

class Attend(nn.Module):
    "A transformer's layer."
    def __init__(self):
        super().__init__()
        self.embed,self.layer,self.head = nn.Linear(6, 16),nn.TransformerEncoderLayer(16, 4, 32, dropout=0., batch_first=True),nn.Linear(16, 3)
    def forward(self, x): return self.head(self.layer(self.embed(x)).mean(1))
shapes['Attend'] = (5,6)
def test_heads(): both(Attend, lambda: [filters(.5, 'head'), filters(.5, 'neuron', layers=['layer.linear1'])])

# ---- bad input

class RowSums(torch.optim.SGD):
    "Keeps a sum for each row of a weight."
    def step(self, closure=None):
        for g in self.param_groups:
            for p in g['params']:
                if p.grad is None: continue
                st = self.state[p]
                st['rows'] = st.get('rows', 0) + p.grad.flatten(1).sum(1) if p.ndim>1 else p.grad.sum()
        super().step()

def train_both(make=cnn, *more, setup=noop, **kwargs):
    res = []
    for cut in ([], [shrinks()]):
        learn = learner(make, **kwargs)
        setup(learn)
        set_seed(1)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            fit(learn, *[f() for f in more or (filters,)], *cut)
        res.append((learn, [str(w.message) for w in seen if 'trained as wide' in str(w.message)]))
    return res

@pytest.mark.parametrize('opt,word', [(torch.optim.Adafactor, 'row_var'), (RowSums, 'rows')], ids=('adafactor','rows'))
def test_optimizer_that_cannot_follow(opt, word):
    (a,_),(b,said) = train_both(opt_func=torchs(opt))
    assert len(said)==1 and repr(word) in said[0] and widths(a.model)==widths(b.model) and column(b, 'parameters')==[n_params(cnn())]*3
    assert not hasattr(b, 'condensed') and torch.equal(preds(a), preds(b))

def test_model_that_cannot_be_captured():
    class Depends(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = cnn()
        def forward(self, x): return self.net(x if x.sum()>0 else x+1)
    (a,_),(b,said) = train_both(Depends, lambda: filters(.5, coupled=False))
    assert len(said)==1 and 'depends on the values' in said[0] and torch.equal(preds(a), preds(b)) and widths(a.model)==widths(b.model)

def test_distributed(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        def wrap(learn): learn.model = nn.parallel.DistributedDataParallel(learn.model)
        (a,_),(b,said) = train_both(cnn, lambda: filters(.5, coupled=False), setup=wrap)
        assert len(said)==1 and 'DistributedDataParallel' in said[0] and torch.equal(preds(a), preds(b)) and widths(a.model)==widths(b.model)
    finally: torch.distributed.destroy_process_group()

def test_what_comes_back_is_an_error():
    learn = learner()
    before = preds(learn)
    with pytest.raises(ValueError, match='lets go what was zero'): fit(learn, filters(.5, schedule='dense_sparse_dense'), shrinks())
    assert torch.equal(preds(learn), before)
    nn.utils.parametrizations.weight_norm(learn.model[0][0])
    with pytest.raises(ValueError, match='computed from others'): fit(learn, filters(.5, layers=['1.0']), shrinks())
    assert torch.equal(preds(learn), before) or far(preds(learn), before) <= 1e-12

@pytest.mark.parametrize('kwargs', [dict(every=0), dict(every=1.5), dict(steps=0), dict(steps=-1), dict(min_gain=1.5), dict(min_gain=-.1), dict(min_gain=1),
    dict(round_to=0), dict(round_to='8')], ids=str)
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))): CondenseCallback(**kwargs)

class Stop(Callback):
    "Raises an error in the second epoch: after its second batch, or later."
    def __init__(self, error, event):
        self.error,self.inside = error,event in ('after_step','after_batch')
        setattr(self, event, self.stop)
    def stop(self):
        if self.epoch==1 and (not self.inside or self.training and self.iter>=1): raise self.error

@pytest.mark.parametrize('event', ['after_batch', 'before_validate', slow('after_step'), slow('after_epoch')])
@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError('no'), CancelFitException, CancelTrainException, CancelEpochException],
    ids=lambda e: getattr(e, '__name__', 'RuntimeError'))
def test_interrupted(error, event):
    unexpected = {CancelTrainException:('before_validate','after_epoch'), CancelEpochException:('after_epoch',)}
    if event in unexpected.get(error, ()): pytest.skip('fastai does not expect it there')
    learn,cb,cut = learner(),filters(.6, schedule=linear),shrinks()
    try: fit(learn, cb, cut, Stop(error, event))
    except (KeyboardInterrupt, RuntimeError): pass
    assert not {'sparsify','condense'} & {c.name for c in learn.cbs}
    n = n_params(learn.model)
    out = preds(learn)
    fit(learn, KeepZeros(), n=1)
    fit(learn, filters(.8), shrinks(), n=2)
    assert n_params(learn.model)<n and column(learn, 'parameters')[-1]==n_params(learn.model) and torch.isfinite(out).all()

# ---- layouts, precision, compilers

def test_channels_last():
    def last(learn, *cbs, n):
        learn.model.to(memory_format=torch.channels_last)
        fit(learn, *cbs, n=n)
    masked,small,_ = both(residual, train=last)
    for m in small.model.modules():
        if isinstance(m, nn.Conv2d): assert m.weight.is_contiguous(memory_format=torch.channels_last)

class Autocast(Callback):
    "bfloat16 on the CPU; fastai's is for GPUs."
    order = MixedPrecision.order
    def before_batch(self):
        self.context = torch.autocast('cpu', torch.bfloat16)
        self.context.__enter__()
    def after_pred(self): self.learn.pred = to_float(self.pred)
    def after_loss(self): self.context.__exit__(None, None, None)
    def after_cancel_batch(self): self.context.__exit__(None, None, None)

def test_bfloat16():
    learn,cut = learner(dtype=torch.float32, cbs=Autocast()),shrinks()
    fit(learn, filters(.6), cut)
    assert [m.out_channels for m in learn.model.modules() if isinstance(m, nn.Conv2d)]==[5,6,5] and len(cut.history)>=2
    assert all(p.dtype==torch.float32 for p in learn.model.parameters()) and max(cut.to_frame().error) <= 1e-5

@pytest.mark.parametrize('wrap', ['parallel', slow('compiled')])
def test_wrapped(wrap, tmp_path):
    def wrapped(learn, *cbs, n):
        learn.path = tmp_path
        learn.model = nn.DataParallel(learn.model) if wrap=='parallel' else torch.compile(learn.model, backend='eager')
        fit(learn, *cbs, n=n)
    learn,other = learner(),learner()
    for l,cut in ((learn, [shrinks()]), (other, [])):
        set_seed(1)
        wrapped(l, filters(.6, coupled=True), *cut, n=2)
    assert widths(learn.model) < widths(other.model) and far(preds(other), preds(learn)) <= 1e-9
    learn.condensed.save(tmp_path/'small.safetensors')
    again = load_condensed(tmp_path/'small.safetensors', cnn().double())
    assert torch.equal(preds_of(again.model), preds_of(learn.model))

# ---- whatever goes wrong, the training goes on

class Attached(Callback):
    "Hooks of its own, that keep what they see."
    def before_fit(self):
        def _back(m, grads, outs): self.seen.append(outs[0].shape[1])
        self.seen,self.handles = [],[m.register_forward_hook(self.look) for m in self.model.modules() if isinstance(m, nn.Conv2d)]
        self.handles += [m.register_full_backward_hook(_back) for m in self.model.modules() if isinstance(m, nn.Linear)]
    def look(self, m, x, y): self.seen.append(y.shape[1])
    def after_fit(self):
        for h in self.handles: h.remove()

def stats(): return ActivationStats(with_hist=True)
@pytest.mark.parametrize('watch', [stats, Attached])
def test_callbacks_with_hooks(watch):
    "They lead to the learner, which cannot be copied; they go on to see the network, which shrinks."
    both(cnn, more=[watch])
    learn,cb = learner(),watch()
    said = noted(lambda: fit(learn, filters(), shrinks(steps=2), cb))
    assert not said and n_params(learn.model)<n_params(cnn())
    if isinstance(cb, Attached): assert {12,16} & set(cb.seen[:4]) and set(cb.seen[-4:])=={5,6,3}
    else: assert len(cb.stats)>=12 and all(s is not None and np.isfinite(s['mean']) for row in cb.stats for s in row)
    assert not any(m._forward_hooks or m._backward_hooks for m in learn.model.modules())

def noted(f):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        f()
    return [str(w.message) for w in seen if 'trained as wide' in str(w.message)]

def test_condensed_after_a_fit_that_left_its_hooks():
    class Bang(Callback):
        order = 99
        def after_batch(self): raise KeyError('bang')
    learn = learner()
    fit(learn, filters(schedule='one_shot'))
    with pytest.raises(KeyError): fit(learn, KeepZeros(), ActivationStats(), Bang())
    assert any(m._forward_hooks for m in learn.model.modules())
    small = learn.condense()
    assert n_params(small.model)<n_params(learn.model) and not any(m._forward_hooks for m in small.model.modules())
    fit(small, ActivationStats(), n=1)

class CannotFollow(Callback):
    order = 99
    def apply_slicing(self, cuts, inputs): raise RuntimeError('no way')

def breaks_at(monkeypatch, name):
    "An error after a step of the edit has been done."
    module = import_module('fasterprune.learner.'+('shrink' if name in ('slice_state','check_state') else 'condense_callback'))
    whole = getattr(module, name)
    def _half(*args, **kwargs):
        whole(*args, **kwargs)
        raise KeyError('half done')
    monkeypatch.setattr(module, name, _half)

@pytest.mark.parametrize('step', ['cut', 'slice_state', 'select_dls', 'Condenser', *map(slow, ('check_state', 'shrink'))])
def test_what_fails_halfway_is_undone(step, monkeypatch):
    "The training is, to the bit, the one without: weights, optimizer, masks, data."
    make,ends = mlp if step=='select_dls' else cnn,[]
    def prune():
        if make is mlp: return [SparsifyCallback(.5, 'neuron', criterion='updating_movement'), InputPruneCallback(.5)]
        return [filters(criterion='updating_movement'), RegularizeCallback(1e-3, layers='0.0')]
    for cut in (False, True):
        if cut and step!='cut': breaks_at(monkeypatch, step)
        learn = learner(make, opt_func=torchs(torch.optim.AdamW))
        set_seed(1)
        said = noted(lambda: fit(learn, *prune(), *[shrinks(steps=None if make is mlp else 3)]*cut, *[CannotFollow()]*cut*(step=='cut')))
        assert len(said)==cut and (not cut or ('no way' if step=='cut' else 'half done') in said[0])
        kept = [t for s in learn.opt.opt.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        ends.append([*learn.model.state_dict().values(), *kept, preds(learn)])
        assert not hasattr(learn, 'condensed')
    assert len(ends[0])==len(ends[1]) and all(torch.equal(a, b) for a,b in zip(*ends))
    monkeypatch.undo()
    small = learn.condense()
    assert n_params(small.model)<n_params(learn.model)
    fit(learn, *prune(), shrinks(), n=1) # another fit, in which nothing fails
    assert n_params(learn.model)<n_params(make())
