"What decides masks is one object: saved and loaded, a sparsifier goes on to the bit."
import io, random
from copy import deepcopy
import pytest, torch
from fastai.basics import Callback, CancelFitException, set_seed
from torch import nn
from fasterprune.all import *
from fasterprune.sparsify.importance import criteria, needs_of
from support.sparsity import cnn, fit, learner, mlp

def step(sp, x, i):
    "A step of a training by noise, with what the criterion has to be told."
    net,needs = sp.model,needs_of(sp.criterion)
    with torch.no_grad():
        for p in net.parameters(): p.add_(torch.randn_like(p)*.05)
    sp.apply()
    if 'input_norm' in needs: sp.observe(x)
    if 'gradient' in needs:
        net.zero_grad()
        net.double()(x.double()).square().sum().backward()
        net.float()
        sp.observe_gradients()
    sp.update(.7, (i+1)/8)

def saved(state):
    "What comes back from a file."
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)

def check(build, shape, granularity, context, criterion, **kwargs):
    "Stop in the middle, load into a fresh sparsifier of a fresh network, and go on."
    set_seed(0)
    x = torch.randn(4, *shape)
    def _make(net): return Sparsifier(net, granularity, context, criterion, sample=x, **kwargs)
    sp = _make(build())
    for i in range(4): step(sp, x, i)
    state,weights = saved(sp.state_dict()),deepcopy(sp.model.state_dict())
    for i in range(4, 8): step(sp, x, i)
    set_seed(1)
    other = _make(build())
    with torch.no_grad():
        for p in other.model.parameters(): p.mul_(1.1)
    other.sparsify(.1) if 'input_norm' not in needs_of(other.criterion) and 'gradient' not in needs_of(other.criterion) else None
    other.model.load_state_dict(weights)
    other.load_state_dict(state)
    for i in range(4, 8): step(other, x, i)
    assert sp.reached==other.reached>.5
    for n,m in sp.masks.items(): assert torch.equal(m, other.masks[n]), n
    for n,w in sp.model.state_dict().items(): assert torch.equal(w, other.model.state_dict()[n]), n
    assert other.sparsity()==sp.sparsity()

@pytest.mark.parametrize('criterion', criteria)
@pytest.mark.parametrize('granularity', ['weight','filter'])
def test_every_criterion_goes_on(criterion, granularity):
    if criterion=='bn_scale' and granularity=='weight': pytest.skip('single weights have no scale')
    check(cnn, (3,8,8), granularity, 'global', criterion)

class Seeded(Callback):
    "An epoch of the same number has the same batches."
    def before_epoch(self):
        set_seed(self.epoch)
        self.dls.train.rng = random.Random(self.epoch)

class SaveAndStop(Callback):
    "Keep the state after two epochs."
    def after_epoch(self):
        if self.epoch!=1: return
        self.state = saved(self.learn.sparsify.sparsifier.state_dict())
        raise CancelFitException

class Load(Callback):
    "Put a state in the sparsifier that the callback has just made."
    order = SparsifyCallback.order+1
    def __init__(self, state): self.state = state
    def before_batch(self):
        if self.state is not None: self.learn.sparsify.sparsifier.load_state_dict(self.state)
        self.state = None

@pytest.mark.parametrize('criterion', ['large_final','movement','updating_movement','weight_change_relative','fisher','wanda'])
def test_a_fit_goes_on(criterion, tmp_path):
    "Saved in the middle of a fit and resumed in another Learner, weights and zeros are those of the fit that was not interrupted."
    def _fit(learn, *cbs, **kwargs): return fit(learn, 4, SparsifyCallback(.8, criterion=criterion), Seeded(), *cbs, **kwargs)
    def _learner():
        set_seed(0)
        return learner(path=tmp_path)
    whole,stop = _fit(_learner()),SaveAndStop()
    _fit(_learner(), stop).save('half')
    rest = _learner()
    rest.create_opt()
    rest.load('half')
    _fit(rest, Load(stop.state), start_epoch=2)
    for n,w in whole.model.state_dict().items(): assert torch.equal(w, rest.model.state_dict()[n]), n

@pytest.mark.parametrize('context', ['local','trunk','erk','macs'])
@pytest.mark.parametrize('kwargs', [dict(), dict(round_to=4), dict(min_units=3)], ids=str)
def test_every_context_goes_on(context, kwargs): check(mlp, (8,), 'neuron', context, 'random', **kwargs)

def test_the_zeros_at_first_are_part_of_it():
    "A fraction leads from what the network came with, not from what it had when the state was saved."
    sp = Sparsifier(nn.Linear(100, 1))
    sp.sparsify(.4)
    sp = Sparsifier(sp.model)
    sp.sparsify(.8, .5)
    other = Sparsifier(deepcopy(sp.model))
    other.load_state_dict(saved(sp.state_dict()))
    assert other.groups[0].start==40 and other.reached==.6
    other.sparsify(.8, .75)
    assert other.reached==.7

def test_random_numbers_go_on_too():
    sp = Sparsifier(nn.Linear(10, 1), criterion='random')
    state = saved(sp.state_dict())
    drawn = torch.rand(3)
    sp.load_state_dict(state)
    assert torch.equal(torch.rand(3), drawn)

def test_a_state_is_of_its_time():
    "What happens later does not change what was saved."
    sp = Sparsifier(nn.Linear(100, 10))
    sp.sparsify(.3)
    state = sp.state_dict()
    sp.sparsify(.5)
    sp.load_state_dict(state)
    assert sp.reached==.3 and int((~sp.masks['weight']).sum())==300

def test_another_network_is_refused():
    state = Sparsifier(nn.Linear(4, 6)).state_dict()
    for other in (nn.Linear(4, 8), nn.Sequential(nn.Linear(4, 6))):
        with pytest.raises(ValueError, match='the same network'): Sparsifier(other).load_state_dict(state)
