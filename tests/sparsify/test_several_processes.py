"What is wrapped to train on several GPUs is pruned as it is alone."
import pytest
from fastai.basics import Callback
from torch import distributed, nn
from fasterprune.all import *
from support.sparsity import cnn, dead, fit, learner

class Wrap(Callback):
    "What fastai's DistributedTrainer does to the model."
    order = 11
    def before_fit(self): self.learn.model = nn.parallel.DistributedDataParallel(self.model)
    def after_fit(self): self.learn.model = self.learn.model.module

@pytest.fixture
def group(tmp_path):
    "A group of one process."
    distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    distributed.destroy_process_group()

def test_layers_have_their_own_names_and_norms(group):
    for sparsity in (.5, {'0':.5, '3':.5}):
        learn = fit(learner(cnn(), shape=(3,8,8)), 2, SparsifyCallback(sparsity, 'filter', exclude='8'), Wrap())
        assert dead(learn.model[0])+dead(learn.model[3])==12
    fit(learn, 1, KeepZeros(), Wrap())
    assert dead(learn.model[0])+dead(learn.model[3])==12
    assert int((learn.model[1].weight==0).sum())==dead(learn.model[0])

def test_a_group_without_a_wrapper_is_none_of_a_fits_business(group, monkeypatch):
    "Each process trains a network of its own: nobody waits for another one."
    monkeypatch.setattr(distributed, 'get_world_size', lambda *_: 2)
    for cb in (SparsifyCallback(.5, criterion='wanda'), SparsifyCallback(.5, criterion='random'), InputPruneCallback(.5)): fit(learner(), 1, cb)

def test_regularizing_knows_layers_by_their_own_names(group):
    learn = fit(learner(cnn(), shape=(3,8,8)), 1, cb := RegularizeCallback(.1, layers='0'), Wrap())
    assert [*cb.norms()]==['0'] and cb.params['0.weight'] is learn.model[0].weight
