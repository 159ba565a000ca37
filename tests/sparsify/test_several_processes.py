"What is wrapped to train on several GPUs is pruned as it is alone, and what could not agree is refused."
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

@pytest.mark.parametrize('cb', [lambda: SparsifyCallback(.5, criterion='wanda'), lambda: SparsifyCallback(.5, criterion='random'), lambda: InputPruneCallback(.5)])
def test_what_each_process_sees_alone_decides_nothing(group, cb, monkeypatch):
    fit(learner(), 1, cb())
    monkeypatch.setattr(distributed, 'get_world_size', lambda *_: 2)
    with pytest.raises(ValueError, match='2 processes train, and what .* is another in each of them'): fit(learner(), 1, cb())
    fit(learner(), 1, SparsifyCallback(.5, criterion='movement'))
