"What goes with a unit is what condensing saves if it dies; scores that are weighed by it choose the same whatever the fit goes through."
import pytest, torch
from fastai.basics import set_seed
from torch import nn
from torch.nn import functional as F
from fasterprune.all import *
from fasterprune.condense.budget import Costs
from fasterprune.sparsify.choosing import weigh
from support.shrinking import Dense, cnn, conv, grouped, head, residual, separable
from support.sparsity import fit, learner

def flattened(): return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12*64, 3))
def dense(): return nn.Sequential(conv(3, 8), Dense(8, 6), Dense(14, 6), conv(20, 12, 1), head(12))
class Shared(nn.Module):
    "Layers that share a weight, one of which sees larger images, and a weight that is used without its module."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c,self.out = nn.Conv2d(3, 8, 3, padding=1),nn.Conv2d(8, 8, 3, padding=1),nn.Conv2d(8, 8, 3, padding=1),nn.Linear(8, 3)
        self.c.weight = self.b.weight
    def forward(self, x):
        x = F.max_pool2d(F.conv2d(self.a(x).relu(), self.b.weight, padding=1).relu(), 2)
        return self.out(self.c(x).relu().mean((2, 3)))
x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

def kill(sp, group, unit):
    group.state.alive[unit] = False
    group.state.set(group.alive)
    sp._make_masks()
    sp.apply()

@pytest.mark.parametrize('context', ['local','global'])
@pytest.mark.parametrize('make', [residual, cnn, separable, grouped, dense, flattened], ids=lambda f: f.__name__)
def test_what_goes_with_a_unit_is_what_condensing_saves(make, context):
    "In a network that is whole, and in one of which a third is gone."
    set_seed(0)
    model = make().eval()
    costs = Costs(model, x)
    for third in (False,True):
        if third: Sparsifier(model, 'filter', context, sample=x, round_to=4 if make is grouped else 1).sparsify(.3)
        sp = Sparsifier(model, 'filter', 'macs', sample=x)
        for g in sp.groups:
            if make is grouped and g.name!='2.0': continue # filters that are split evenly go together
            unit,before = int(g.alive.nonzero()[0]),costs.left()['macs']
            if int(g.alive.sum())<2: continue
            expected = float(sp.unit_macs.now()[g.key][unit])
            kill(sp, g, unit)
            assert before-costs.left()['macs']==pytest.approx(expected, rel=1e-5), (g.name, third)

def test_shared_weights_count_each_use():
    sp = Sparsifier(Shared(), 'filter', 'macs', sample=x)
    assert sp.unit_macs.uses['b.weight']==sp.unit_macs.uses['c.weight']==64+16
    assert sp.unit_macs.uses['a.weight']==64 and sp.unit_macs.uses['out.weight']==1

def test_a_score_is_per_multiply_accumulate():
    "Costly units go first, whether scores are deviations, sizes, or less than zero."
    for power in (.25,None):
        for s in (2., -2.):
            scores = torch.full((3,), s)
            weigh(scores, torch.tensor([1.,10.,100.]), power)
            assert scores[0]>scores[1]>scores[2], (power, s)

def test_layers_of_more_macs_lose_more():
    "Of two layers with scores alike, the one that sees larger images."
    set_seed(0)
    model = nn.Sequential(conv(3, 16), conv(16, 16), nn.MaxPool2d(4), conv(16, 16), conv(16, 16), head(16))
    def _gone(context):
        sp = Sparsifier(model, 'filter', context, lambda w,c: w.abs()*0 + torch.arange(16.).view(-1, 1, 1, 1)+1, sample=x)
        return [int(low.sum()) for low in sp.full.choose(sp.groups, 16)]
    macs,alike = _gone('macs'),_gone('global')
    assert alike==[4,4,4,4] and macs[1]>macs[3] and sum(macs)==16 # the stage of small images keeps more

def test_it_goes_on_with_batches_of_another_size():
    "How often a weight is used was counted in the fit that goes on, whose images were larger."
    big = torch.randn(2, 3, 16, 16)
    sp,other = Sparsifier(cnn(), 'filter', 'macs', sample=big),Sparsifier(cnn(), 'filter', 'macs', sample=x)
    assert sp.unit_macs.uses!=other.unit_macs.uses
    other.load_state_dict(sp.state_dict())
    assert sp.unit_macs.uses==other.unit_macs.uses

def test_a_fit_ends_within_its_budget():
    set_seed(0)
    learn = learner(cnn(), n=48, shape=(3,8,8))
    fit(learn, 3, SparsifyCallback(Budget(macs=.5), 'filter', 'macs'))
    r = learn.condense().condensed.report
    assert .4*r.macs_before < r.macs_after <= .5*r.macs_before

def test_what_cannot_be_weighed_is_an_error():
    for granularity in ('weight','kernel','2:4'):
        with pytest.raises(ValueError, match="context 'macs' with granularity .*no multiply-accumulates go with its units"): Sparsifier(cnn(), granularity, 'macs', layers='1.0', sample=x)
    with pytest.raises(ValueError, match='give one as `sample`'): Sparsifier(cnn(), 'filter', 'macs', coupled=False)
