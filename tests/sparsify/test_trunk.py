"What a shortcut bypasses loses more than the trunk, through which everything has to go; which is which the graph says."
import pytest, torch
from torch import nn
from fasterprune.all import Budget, Condenser, Sparsifier, SparsifyCallback
from fasterprune.sparsify import find_groups

def conv(n, m, **kwargs): return nn.Conv2d(n, m, 3, padding=1, **kwargs)

class Net(nn.Module):
    "A stem `a`, and what a function makes of it, of other inputs and of other layers."
    def __init__(self, forward, **layers):
        super().__init__()
        for k,m in layers.items(): setattr(self, k, m)
        self.f = forward
    def forward(self, x, *others): return self.f(self, self.a(x), *others)

def pooled(x): return x.mean((2,3))
def images(*shape): return torch.randn(2, *(shape or (3,8,8)))

def chain(s, x): return s.head(pooled(s.c(s.b(x))))
def residual(s, x): return s.head(pooled(x + s.c(s.b(x).relu())))
def dense(s, x): return s.head(pooled(torch.cat([x, s.b(x)], 1)))
def two_ways(s, x): return s.head(pooled(torch.cat([s.b(x), s.c(x)], 1)))
def unet(s, x): return s.head(pooled(torch.cat([s.c(s.b(x)), x], 1)))
def gated(s, x): return s.head(pooled(x*s.c(s.b(x.mean((2,3), keepdim=True))).sigmoid()))
def inverted(s, x): return s.head(pooled(s.c(s.d(s.b(x)))))
def two_inputs(s, x, y): return s.head(pooled(x + s.b(y)))
def fused(s, x, y): return s.head(pooled(torch.cat([x, s.b(y)], 1)))
def twice(s, x): return s.head(pooled(x + s.b(x) + s.b(s.b(x))))
def of_words(s, x): return s.head((x + s.c(s.b(x).relu())).mean(1))
def outputs(s, x): return dict(boxes=s.b(x), classes=s.head(pooled(s.c(x))))
head = nn.Linear
cases = { # network, its batch, what has a way around it
    'chain':(chain, dict(a=conv(3, 8), b=conv(8, 9), c=conv(9, 7), head=head(7, 4)), (images(),), set()),
    'residual':(residual, dict(a=conv(3, 8), b=conv(8, 9), c=conv(9, 8), head=head(8, 4)), (images(),), {'b'}),
    'dense':(dense, dict(a=conv(3, 8), b=conv(8, 9), head=head(17, 4)), (images(),), {'b'}),
    'two ways':(two_ways, dict(a=conv(3, 8), b=conv(8, 9), c=conv(8, 7), head=head(16, 4)), (images(),), {'b','c'}),
    'unet':(unet, dict(a=conv(3, 8), b=conv(8, 9), c=conv(9, 7), head=head(15, 4)), (images(),), {'b','c'}),
    'gated':(gated, dict(a=conv(3, 8), b=nn.Conv2d(8, 4, 1), c=nn.Conv2d(4, 8, 1), head=head(8, 4)), (images(),), {'b'}),
    'no shortcut':(inverted, dict(a=conv(3, 4), b=nn.Conv2d(4, 12, 1), d=conv(12, 12, groups=12), c=nn.Conv2d(12, 5, 1), head=head(5, 4)), (images(),), set()),
    'two inputs':(two_inputs, dict(a=conv(3, 8), b=conv(2, 8), head=head(8, 4)), (images(), images(2,8,8)), set()),
    'fused':(fused, dict(a=conv(3, 8), b=conv(2, 6), head=head(14, 4)), (images(), images(2,8,8)), {'a','b'}),
    'twice':(twice, dict(a=conv(3, 8), b=conv(8, 8), head=head(8, 4)), (images(),), set()),
    'outputs':(outputs, dict(a=conv(3, 8), b=conv(8, 4), c=conv(8, 6), head=head(6, 4)), (images(),), {'c'})} # the boxes come without them

@pytest.mark.parametrize('name', cases)
def test_what_has_a_way_around_it(name):
    f,layers,xs,around = cases[name]
    groups,_ = find_groups(Net(f, **layers).eval(), 'filter', sample=xs)
    assert {g.key for g in groups if g.bypassed}==around

def test_words():
    "A stream that begins with an embedding."
    net = Net(of_words, a=nn.Embedding(20, 8), b=head(8, 16), c=head(16, 8), head=head(8, 4))
    assert {g.key:g.bypassed for g in find_groups(net, 'neuron', sample=torch.randint(0, 20, (2,5)))[0]}=={'b':True}
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    assert {g.key:g.bypassed for g in find_groups(net, 'neuron', sample=torch.randn(2, 5, 8))[0]}=={'linear1':True}

@pytest.mark.parametrize('budget', [Budget(macs=.5), Budget(macs=.2), Budget(params=.4), Budget(macs=.5, params=.45)], ids=str)
def test_a_budget_is_met(budget):
    "It is within the budget after condensing, and the trunk keeps the larger share."
    torch.manual_seed(1)
    net,x = Net(residual, a=conv(3, 16), b=conv(16, 24), c=conv(24, 16), head=head(16, 4)).eval(),images()
    sp = Sparsifier(net, 'filter', sample=x)
    assert sp.context_for(budget)=='trunk'
    sp.sparsify(budget)
    trunk,inner = [1-g.dead/g.n for g in sp.groups]
    r = Condenser(net, x).condense().report
    limits = budget.limits(macs=r.macs_before, params=r.params_before)
    assert r.max_error<1e-6 and all(dict(macs=r.macs_after, params=r.params_after)[k]<=most for k,most in limits.items())
    assert inner<trunk<=1 and abs(trunk-inner**(1/8))<2/16

def test_counts_of_a_sparsity():
    net = Net(residual, a=conv(3, 16), b=conv(16, 24), c=conv(24, 16), head=head(16, 4))
    for s in (.1,.5,.9):
        sp = Sparsifier(net, 'filter', 'trunk', sample=images(), min_units=2)
        sp.sparsify(s)
        assert sum(g.dead for g in sp.groups)==min(round(s*40), 36)
    with pytest.raises(ValueError, match='at most 36'): sp.sparsify(.95)
    assert SparsifyCallback(Budget(macs=.5), 'filter').context=='trunk' and SparsifyCallback(.5, 'filter').context=='global'
