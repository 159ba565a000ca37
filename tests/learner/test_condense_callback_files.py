"A network that shrinks while it trains, and what is saved meanwhile: checkpoints, moving averages, files."
import numpy as np, pytest, torch
from fastai.callback.all import *
from fastai.tabular.all import *
from torch import nn
from torch.optim.swa_utils import AveragedModel
from fasterprune.all import *
from fasterprune.learner.condense_callback import CondenseCallback
from support.shrinking import Look, best_of, both, cnn, column, far, filters, fit, learner, plain_mlp, preds, preds_of
from support.shrinking import quiet, residual, shrinks, slow, widths

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

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
