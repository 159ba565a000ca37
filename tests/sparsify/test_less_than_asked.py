"A fit that leaves fewer zeros than were asked for says so once, with the remedy."
from functools import partial
import pytest
from fastai.basics import Callback, CancelFitException, params, set_seed
from fastai.callback.all import EarlyStoppingCallback, SaveModelCallback
from fasterprune.all import *
from support.sparsity import cnn, dead, fit, learner, n_mlp, told, total

class Losses(Callback):
    "Validation losses as they are wanted."
    order = 55 # behind the recorder, before trackers
    def __init__(self, *losses): self.losses = losses
    def after_epoch(self): self.recorder.values[-1][self.recorder.metric_names[1:].index('valid_loss')] = self.losses[self.epoch]

@pytest.fixture
def new(tmp_path):
    set_seed(0)
    return partial(learner, path=tmp_path)

@pytest.mark.parametrize('best', [0,1,2,3])
def test_the_best_epoch_is_told_if_it_has_fewer_zeros(new, best):
    losses = [1.]*4
    losses[best] = .5
    learn,cb = new(),SparsifyCallback(.8, schedule='linear')
    said = told(lambda: fit(learn, 4, cb, Losses(*losses), SaveModelCallback()))
    left = round(.8*(best+1)/4*n_mlp)
    assert total(learn.model)==left
    assert len(said)==(best<3)
    for one in said: assert f'loads epoch {best}, in which `sparsity` was {left/n_mlp:.3g}, and not the {round(.8*n_mlp)/n_mlp:.3g}' in one and '`KeepZeros()`' in one

@pytest.mark.parametrize('kwargs', [dict(at_end=True), dict(every_epoch=True)], ids=str)
def test_nothing_is_told_where_nothing_is_loaded(new, kwargs):
    assert told(lambda: fit(new(), 3, SparsifyCallback(.8), Losses(.1, .2, .3), SaveModelCallback(**kwargs)))==[]

def test_the_remedies_work(new):
    learn = new()
    assert told(lambda: fit(learn, 3, SparsifyCallback(.8)))==[]
    assert told(lambda: fit(learn, 3, KeepZeros(), Losses(.1, .2, .3), SaveModelCallback(), EarlyStoppingCallback()))==[]
    assert total(learn.model)==round(.8*n_mlp)
    learn = new()
    assert told(lambda: fit(learn, 4, SparsifyCallback(.8, end_epoch=2), Losses(.4, .3, .2, .3), SaveModelCallback()))==[]
    assert total(learn.model)==round(.8*n_mlp)

def test_a_fit_that_ends_early_is_told(new):
    learn = new()
    (one,) = told(lambda: fit(learn, 4, SparsifyCallback(.8, schedule='linear'), Losses(.1, .2, .3, .4), EarlyStoppingCallback()))
    assert f'the fit ended in epoch 1 of 0 to 3, before its schedule: `sparsity` is {round(.4*n_mlp)/n_mlp:.3g}' in one and '`end_epoch`' in one
    assert total(learn.model)==round(.4*n_mlp)
    assert told(lambda: fit(new(), 4, SparsifyCallback(.8, end_epoch=2), Losses(.1, .2, .3, .4), EarlyStoppingCallback()))==[]
    (both,) = told(lambda: fit(new(), 4, SparsifyCallback(.8), Losses(.1, .2, .3, .4), SaveModelCallback(), EarlyStoppingCallback()))
    assert 'ended in epoch 1' in both and 'loads epoch 0' in both

def test_what_a_callback_saved_in_another_fit_is_no_news(new):
    "A callback of the Learner goes through several fits; in the last no epoch was better."
    learn = new(cbs=SaveModelCallback(reset_on_fit=False))
    fit(learn, 1, SparsifyCallback(.5), Losses(.1))
    assert told(lambda: fit(learn, 1, KeepZeros(), Losses(.2)))==[]

def test_a_cancelled_batch_in_the_next_epoch_changes_nothing(new):
    class Stop(Callback):
        def before_batch(self):
            if self.training and self.epoch==2: raise CancelFitException
    (one,) = told(lambda: fit(new(), 4, SparsifyCallback(.8, schedule='linear'), Losses(.1, .2, .3, .4), SaveModelCallback(), Stop()))
    assert 'ended in epoch 2' in one and 'loads epoch 0' in one

def test_inputs_are_told_too(new):
    (one,) = told(lambda: fit(new(), 3, InputPruneCallback(.5, schedule='linear'), Losses(.1, .2, .3), SaveModelCallback()))
    assert 'InputPruneCallback: `SaveModelCallback` loads epoch 0, in which `inputs_pruned` was' in one

def test_validation_and_lr_find_tell_nothing(new):
    learn = new(cbs=SparsifyCallback(.8))
    def _f():
        with learn.no_bar(), learn.no_logging():
            learn.validate()
            learn.get_preds()
            learn.lr_find(num_it=6, show_plot=False)
    assert told(_f)==[]

def split(m): return [params(m[:6]), params(m[6:])]

def test_frozen_layers_are_told_once(new):
    learn = new(cnn(), shape=(3,8,8), splitter=split)
    with learn.no_bar(), learn.no_logging(): (one,) = told(lambda: learn.fine_tune(1, cbs=SparsifyCallback(.5, 'filter')))
    assert "frozen: '0', '3'" in one and 'learn.unfreeze()' in one
    assert dead(learn.model[0])+dead(learn.model[3])==12 # all of it in the frozen epoch

def test_frozen_layers_that_are_left_out_are_not_told(new):
    for kwargs in (dict(exclude='0'), dict(layers='3')):
        learn = new(cnn(), shape=(3,8,8))
        learn.model[0].requires_grad_(False)
        assert told(lambda: fit(learn, 1, SparsifyCallback(.5, 'filter', **kwargs)))==[]
    learn = new(cnn(), shape=(3,8,8))
    learn.model[0].requires_grad_(False)
    assert told(lambda: fit(learn, 1, SparsifyCallback({'3':.5}, 'filter')))==[]
    (one,) = told(lambda: fit(learn, 1, SparsifyCallback({'3':.5, '0':.5}, 'filter')))
    assert "frozen: '0'" in one

def test_a_fit_that_begins_with_all_its_zeros_may_stop_early(new):
    learn = new()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=SparsifyCallback(.5, 'neuron'))
        assert not told(lambda: learn.fit(3, cbs=[SparsifyCallback(.5, 'neuron'), EarlyStoppingCallback(min_delta=99, patience=1)]))
        assert told(lambda: learn.fit(3, cbs=[SparsifyCallback(.7, 'neuron'), EarlyStoppingCallback(min_delta=99, patience=1)]))
