"Checkpoints of fits that prune and shrink, taken up by fresh learners: to the bit, with whatever is in the way said."
import pytest, torch, warnings
from fastai.basics import *
from fastai.callback.all import *
from fastai.data.load import DataLoader
from fasterprune.all import *
from fasterprune.core.checkpoint_files import sidecar_path
from fasterprune.sparsify.importance import criteria, needs_of
from support.sparsity import told
from support.shrinking import best_of, cnn, fit, learner, mlp, plain_mlp, preds, quiet, residual, shrinks, slow, widths, x_fix

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

class Stop(Callback):
    "Something goes wrong in the middle of epoch 2."
    def after_batch(self):
        if self.training and self.epoch==2: raise KeyboardInterrupt

saves = partial(SaveModelCallback, every_epoch=True, with_opt=True)
def filters(c='movement', s=.7, g='filter'): return SparsifyCallback(s, g, 'local', c, schedule=linear)
def both(c='movement', s=.7): return [filters(c, s), shrinks()]

def interrupted(path, cbs=both, make=cnn, n=4, more=(), **kwargs):
    "A learner that has been interrupted in epoch 2."
    learn = learner(make, path=path, **kwargs)
    with pytest.raises(KeyboardInterrupt): fit(learn, *cbs(), saves(), *more, Stop(), n=n)
    return learn

def check_same(a, b):
    a,b = a.model.state_dict(),b.model.state_dict()
    assert a.keys()==b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k

def goes_on(path, cbs=both, make=cnn, n=4, **kwargs):
    "The fit that was interrupted goes on in a fresh learner, and nothing is said."
    learn = learner(make, path=path, **kwargs)
    torch.rand(3)
    learn.load('model_1')
    assert told(lambda: fit(learn, *cbs(), n=n, start_epoch=2))==[]
    return learn

remembering = [c for c in criteria if needs_of(criteria[c]) or c=='random']

@pytest.mark.long
@pytest.mark.parametrize('criterion,condense', [*[(c, False) for c in criteria], *[(c, True) for c in remembering]])
def test_every_criterion(tmp_path, criterion, condense):
    cbs = lambda: both(criterion) if condense else [filters(criterion)]
    interrupted(tmp_path, cbs)
    check_same(fit(learner(cnn), *cbs(), n=4), goes_on(tmp_path, cbs))

@pytest.mark.parametrize('criterion', ['large_scaled', slow('large_final'), slow('taylor'), slow('fisher')])
@pytest.mark.parametrize('induced', [False, slow(True)])
def test_inputs(tmp_path, criterion, induced):
    cbs = lambda: [InputPruneCallback(.5, linear, criterion, warmup=0., induced=induced), *both(s=.5)]
    cbs = (lambda f: lambda: [f()[0], SparsifyCallback(.5, 'neuron', criterion='movement'), shrinks()])(cbs)
    interrupted(tmp_path, cbs, mlp)
    whole,resumed = fit(learner(mlp), *cbs(), n=4),goes_on(tmp_path, cbs, mlp)
    check_same(whole, resumed)
    assert torch.equal(whole.dls.valid.one_batch()[0], resumed.dls.valid.one_batch()[0])

def test_pixels_are_masked_at_once(tmp_path):
    cbs = lambda: [InputPruneCallback(.5, granularity='pixel')]
    whole = fit(learner(cnn, path=tmp_path), *cbs(), saves(), n=2)
    learn = learner(cnn, path=tmp_path)
    learn.load('model_1')
    assert torch.equal(preds(learn), preds(whole))
    assert torch.equal(learn.dls.valid.one_batch()[0], whole.dls.valid.one_batch()[0])

def test_steps_between_lasso_and_zeros(tmp_path):
    "Shrinking within epochs, beside callbacks that follow."
    cbs = lambda: [RegularizeCallback(.1), KeepZeros(), filters('fisher'), shrinks(steps=1)]
    interrupted(tmp_path, cbs, residual)
    check_same(fit(learner(residual), *cbs(), n=4), goes_on(tmp_path, cbs, residual))

def test_looked_at_before_it_goes_on(tmp_path):
    "Loaded twice, validated, and a learning rate sought in between."
    interrupted(tmp_path)
    learn = learner(cnn, path=tmp_path)
    learn.load_condensed('model_0', with_opt=True)
    learn.load_condensed('model_1', with_opt=True)
    quiet(learn.validate, learn)
    quiet(lambda: learn.lr_find(num_it=10, show_plot=False, suggest_funcs=()), learn)
    assert told(lambda: fit(learn, *both(), n=4, start_epoch=2))==[]
    check_same(fit(learner(cnn), *both(), n=4), learn)

def test_in_the_same_session(tmp_path):
    learn = fit(learner(cnn, path=tmp_path), *both(), saves(), n=4)
    whole = {k:v.clone() for k,v in learn.model.state_dict().items()}
    learn.load('model_1')
    fit(learn, *both(), n=4, start_epoch=2)
    assert all(torch.equal(v, whole[k]) for k,v in learn.model.state_dict().items())

def test_a_second_fit_that_begins_narrow(tmp_path):
    "What is to be zero counts from the network with which the second fit began."
    def _first():
        learn = fit(learner(cnn, path=tmp_path), *both(s=.4), n=2)
        set_seed(1)
        return learn
    whole,one = fit(_first(), *both(s=.5), n=4),_first()
    with pytest.raises(KeyboardInterrupt): fit(one, *both(s=.5), saves(), Stop(), n=4)
    learn = learner(cnn, path=tmp_path).load_condensed('model_1', with_opt=True)
    fit(learn, *both(s=.5), n=4, start_epoch=2)
    check_same(whole, learn)
    assert learn.condensed.report.params_before==n_params(cnn())

def with_its_best_epoch(path, make):
    "A learner whose first epoch is the best one, and the callback that saves it."
    favored,save = best_of(0, with_opt=True, fname='best')
    favored.learn = learn = learner(make, path=path, metrics=[accuracy,favored])
    return learn,save

def test_the_best_epoch_was_before(tmp_path):
    def _learner(): return with_its_best_epoch(tmp_path, cnn)
    one,save = _learner()
    with pytest.raises(KeyboardInterrupt): fit(one, *both(), saves(), save, Stop(), n=4)
    best = torch.load(tmp_path/'models'/'best.pth', weights_only=False)['model'] # it has been written here
    learn,save = _learner()
    learn.load_condensed('model_1', with_opt=True)
    told(lambda: fit(learn, *both(), save, n=4, start_epoch=2))
    assert all(torch.equal(v, best[k]) for k,v in learn.model.state_dict().items())
    fit(learn, KeepZeros(), n=1)

def test_callbacks_know_the_best_epoch_that_was_before(tmp_path):
    cbs = lambda: [InputPruneCallback(.6, schedule=linear, warmup=0.), SparsifyCallback(.5, 'neuron'), shrinks()]
    def _learner(): return with_its_best_epoch(tmp_path, plain_mlp)
    one,save = _learner()
    with pytest.raises(KeyboardInterrupt): fit(one, *cbs(), saves(), save, Stop(), n=4)
    learn,save = _learner()
    learn.load_condensed('model_1', with_opt=True)
    inputs,neurons,cut = cbs()
    told(lambda: fit(learn, inputs, neurons, cut, save, n=4, start_epoch=2))
    n = learn.model[0].in_features
    assert n>8 and learn.dls.one_batch()[0].shape[1]==n==len(inputs.kept)==inputs.to_frame().kept.sum()
    assert inputs.kept.tolist()==learn.condensed.inputs.index0.tolist() and neurons.sparsifier.sparsity()==pytest.approx(neurons.sparsifier.reached)

class Noisy:
    "Items that are drawn anew, by workers."
    def __len__(self): return 40
    def __getitem__(self, i): return torch.full((20,), i/40, dtype=torch.float64)+torch.randn(20),int(i%3)

def test_workers(tmp_path):
    def _learner():
        set_seed(0)
        dls = DataLoaders(DataLoader(Noisy(), bs=8, shuffle=True, num_workers=1), DataLoader(Noisy(), bs=8))
        return Learner(dls, plain_mlp().double(), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    def _fit(learn, *cbs, **kwargs): return fit(learn, filters(g='neuron'), *cbs, n=3, **kwargs)
    whole,one = _fit(_learner()),_learner()
    with pytest.raises(KeyboardInterrupt): _fit(one, saves(), Stop())
    check_same(whole, _fit(_learner().load('model_1'), start_epoch=2))

def test_skipped_epochs_save_nothing(tmp_path):
    interrupted(tmp_path)
    before = {p.name:p.read_bytes() for p in (tmp_path/'models').iterdir()}
    learn = learner(cnn, path=tmp_path).load_condensed('model_1', with_opt=True)
    fit(learn, *both(), saves(), n=4, start_epoch=2)
    assert all((tmp_path/'models'/k).read_bytes()==v for k,v in before.items()) and (tmp_path/'models'/'model_3.pth').exists()

def test_what_is_different_is_said(tmp_path):
    interrupted(tmp_path)
    def _said(*cbs, n=4, start_epoch=2):
        learn = learner(cnn, path=tmp_path).load_condensed('model_1', with_opt=True)
        return ' '.join(told(lambda: fit(learn, *cbs, n=n, start_epoch=start_epoch)))
    assert 'sparsity of SparsifyCallback was 0.7 and is 0.8' in _said(*both(s=.8))
    assert 'it was a fit of 4 epochs and is one of 5' in _said(*both(), n=5)
    assert 'CondenseCallback, which was there before, is not there' in _said(filters())
    assert 'KeepZeros was not there before' in _said(*both(), KeepZeros())
    assert 'when 2 epochs were done, and start_epoch=3' in _said(*both(), start_epoch=3)
    with pytest.raises(ValueError, match='criterion of SparsifyCallback was movement and is wanda'): _said(*both('wanda'))
    with pytest.raises(ValueError, match='granularity of SparsifyCallback was filter and is kernel'): _said(filters(g='kernel'), shrinks())

def test_another_optimizer_is_said(tmp_path):
    interrupted(tmp_path)
    learn = learner(cnn, path=tmp_path, opt_func=partial(OptimWrapper, opt=torch.optim.SGD))
    assert 'without what its optimizer kept' in told(lambda: learn.load_condensed('model_1', with_opt=True))[0]

def test_torn_missing_and_foreign_ones(tmp_path):
    interrupted(tmp_path, lambda: [filters()])
    first,last = [tmp_path/'models'/f'model_{i}.pth' for i in (0,1)]
    last.write_bytes(last.read_bytes()[:2000])
    learn = learner(cnn, path=tmp_path)
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    for load in (learn.load, learn.load_condensed):
        with pytest.raises(ValueError, match='cut short, or has been replaced; the newest checkpoint here that is whole is model_0'):
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                load('model_1')
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    learn.load('model_0')
    sidecar_path(first).unlink()
    assert 'does not know what its criterion' in told(lambda: fit(learn.load('model_0'), filters(), n=4, start_epoch=1))[0]
    assert told(lambda: fit(learn.load('model_0'), filters('large_final'), n=4, start_epoch=1))==[]
    with pytest.raises(ValueError, match='nothing beside it'): learn.load_condensed('model_0')

def test_another_network_is_refused(tmp_path):
    interrupted(tmp_path)
    learn = learner(residual, path=tmp_path)
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match='build the dense network'): learn.load_condensed('model_1')
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

def within(*cbs, **kwargs): return [*cbs, SparsifyCallback(Budget(macs=.4), 'filter', 'local', 'movement', linear, **kwargs), shrinks(steps=1)]
budgets = dict(wide=lambda: within()[:1], narrow=within, pixels=lambda: within(InputPruneCallback(.5, linear, granularity='pixel')),
    seldom=lambda: within(KeepZeros(), GradientAccumulation(16), every=3), reached=lambda: within(end_epoch=.4))

@pytest.mark.parametrize('cbs', ['wide', 'narrow', slow('pixels'), slow('seldom'), slow('reached')])
def test_a_budget(tmp_path, cbs):
    "The places that were asked for are those of the fit that was interrupted: no others are asked for to go on."
    interrupted(tmp_path, budgets[cbs])
    whole,resumed = fit(learner(cnn), *budgets[cbs](), n=4),goes_on(tmp_path, budgets[cbs])
    check_same(whole, resumed)
    condensed = resumed.condense() if cbs=='wide' else resumed
    r = condensed.condensed.report
    assert .3*r.macs_before < r.macs_after <= .4*r.macs_before and r.macs_before==Condenser(cnn(), x_fix.float()).condense().report.macs_before

def test_another_budget_is_said(tmp_path):
    cbs = lambda k: [SparsifyCallback(Budget(max_macs=k), 'filter', schedule=linear)]
    interrupted(tmp_path, lambda: cbs(61_234_567))
    learn = learner(cnn, path=tmp_path).load('model_1')
    assert 'was Budget(max_macs=61234567) and is Budget(max_macs=61234568)' in told(lambda: fit(learn, *cbs(61_234_568), n=4, start_epoch=2))[0]

class Half(Callback):
    order = 70
    def after_batch(self):
        if self.training and (self.epoch,self.iter)==(1,1): self.learn.save('half')

def test_saved_while_a_rate_is_sought(tmp_path):
    "It is a checkpoint of its own, and what stood beside the one before goes."
    learn = fit(learner(cnn, path=tmp_path), filters(), Half(), n=2)
    assert sidecar_path(tmp_path/'models'/'half.pth').exists()
    class Again(Half):
        def after_batch(self): self.learn.save('half')
    learn.add_cb(Again())
    quiet(lambda: learn.lr_find(num_it=3, show_plot=False, suggest_funcs=()), learn)
    assert not sidecar_path(tmp_path/'models'/'half.pth').exists() and told(lambda: learn.load('half'))==[]

def test_saved_by_hand(tmp_path):
    one = fit(learner(cnn, path=tmp_path), *both(), Half(), n=4)
    one.save('end')
    learn = learner(cnn, path=tmp_path).load_condensed('half')
    assert 'saved in the middle of epoch 1' in ' '.join(told(lambda: fit(learn, *both(), n=4, start_epoch=2)))
    learn = learner(cnn, path=tmp_path).load_condensed('end')
    check_same(one, learn)
    assert widths(learn.model)==widths(one.model) and learn.condensed.report.params_after==n_params(one.model)
    assert sidecar_path(tmp_path/'models'/'end.pth').exists()
    learner(cnn, path=tmp_path).save('end')
    assert not sidecar_path(tmp_path/'models'/'end.pth').exists(), 'what stands beside it belongs to another one'
