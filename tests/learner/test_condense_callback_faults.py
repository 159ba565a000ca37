"Whatever cannot follow a network that shrinks, the training goes on, and all is as it was."
import warnings
from importlib import import_module
import numpy as np, pytest, torch
from fastai.callback.all import *
from fastai.tabular.all import *
from torch import nn
from fasterprune.all import *
from fasterprune.learner.condense_callback import CondenseCallback
from support.shrinking import both, cnn, column, far, filters, fit, learner, mlp, noted, preds, preds_of
from support.shrinking import residual, shrinks, slow, torchs, widths

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

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
    "It shrinks in its wrapper; where that cannot lay out its gradients anew it stays wide, and says so."
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        def wrap(learn): learn.model = nn.parallel.DistributedDataParallel(learn.model)
        (a,_),(b,said) = train_both(cnn, lambda: filters(.5, coupled=True), setup=wrap)
        assert not said and widths(b.model) < widths(a.model) and far(preds(a), preds(b)) <= 1e-9
        def apart(learn): learn.model = nn.parallel.DistributedDataParallel(learn.model, process_group=torch.distributed.new_group([0]))
        (a,_),(b,said) = train_both(cnn, lambda: filters(.5, coupled=False), setup=apart)
        assert len(said)==1 and 'process group of its own' in said[0] and torch.equal(preds(a), preds(b)) and widths(a.model)==widths(b.model)
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
