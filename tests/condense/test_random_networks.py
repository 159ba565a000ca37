"Random networks with random zeros: exact, and nothing superfluous is left."
import random
import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn
from fasterprune.all import *
from fasterprune.condense.reduced import Constant
from fasterprune.core.models import evaluating
from support.nets import gap, random_net

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def check(rnd, dim=None, sums=True, more=False):
    "The analysis alone, without the net under it: exact at other batch sizes, and at another resolution if the network takes one."
    net,x = random_net(rnd, rnd.randrange(4) if dim is None else dim, sums, more)
    c = Condenser(net, x).condense(verify=False)
    assert gap(net, c, x) <= 1e-10
    assert gap(net, c, torch.randn(3, *x.shape[1:], dtype=x.dtype)) <= 1e-10
    other = torch.randn(1, x.shape[1], *[s+rnd.randint(1,4) for s in x.shape[2:]], dtype=x.dtype)
    with evaluating(net):
        try: net(other)
        except RuntimeError: return net,x,c
    assert gap(net, c, other) <= 1e-10
    return net,x,c

def fuzz(n): return settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
rnds = st.integers(0, 2**48).map(random.Random)

@fuzz(60)
@given(rnds)
def test_random_network_is_exact(rnd): check(rnd)

@fuzz(150)
@given(rnds)
def test_random_network_of_many_kinds_of_blocks_is_exact(rnd): check(rnd, more=True)

@pytest.mark.long
@pytest.mark.parametrize('more', [False, True])
@fuzz(300)
@given(rnds)
def test_some_hundred_random_networks_are_exact(more, rnd): check(rnd, more=more)

@pytest.mark.soak
@pytest.mark.parametrize('more', [False, True])
@fuzz(5000)
@given(rnds)
def test_thousands_of_random_networks_are_exact(more, rnd): check(rnd, more=more)

def n_needed(net):
    "How many neurons of each hidden Linear layer of an MLP vary and are read, found out by trying: an independent count."
    layers = [m for m in net if isinstance(m, nn.Linear)]
    varies = [torch.ones(layers[0].in_features, dtype=bool)]
    for l in layers: varies.append((l.weight!=0)[:,varies[-1]].any(1))
    needed = [torch.ones(layers[-1].out_features, dtype=bool)]
    for l,v in zip(layers[::-1], varies[-2::-1]): needed.append((l.weight!=0)[needed[-1]].any(0) & v)
    return [int(n.sum()) for n in needed[::-1]]

@fuzz(60)
@given(rnds)
def test_nothing_superfluous_is_left_in_an_mlp(rnd):
    torch.manual_seed(rnd.randrange(2**31))
    sizes = [rnd.randint(2, 12) for _ in range(rnd.randint(3, 6))]
    net = nn.Sequential(*[l for a,b in zip(sizes, sizes[1:]) for l in (nn.Linear(a, b), rnd.choice((nn.ReLU,nn.Sigmoid))())][:-1])
    with torch.no_grad():
        for m in net[::2]:
            m.weight[torch.rand(len(m.weight)) < rnd.choice((0,.5))] = 0
            m.weight[torch.rand(m.weight.shape) < rnd.choice((.3,.7))] = 0
    x = torch.randn(4, sizes[0])
    c = Condenser(net, x).condense()
    assert gap(net, c, x) <= 1e-5
    n_in,*widths,_ = n_needed(net)
    assert [m.out_features for m in c.model[::2]][:-1]==[max(1, n) for n in widths]
    assert c.report.inputs_after==c.model[0].in_features==max(1, n_in)

@fuzz(40)
@given(rnds)
def test_at_most_one_zero_filter_is_left_in_a_chain(rnd):
    net,x,c = check(rnd, rnd.randint(1, 3), sums=False)
    *hidden,_ = [m for m in c.model.modules() if isinstance(m, (nn.Linear,nn.modules.conv._ConvNd))]
    for m in hidden: assert int((m.weight==0).flatten(1).all(1).sum()) <= 1

@fuzz(40)
@given(rnds)
def test_condensing_twice_removes_nothing_more(rnd):
    net,x,c = check(rnd)
    twice = Condenser(c.model, c.inputs(x)).condense(verify=False)
    if any(isinstance(m, Constant) for m in c.model.modules()): return # what is left of dead branches may turn out to be dead, too
    assert twice.report.params_after==c.report.params_after
    for k,v in c.model.state_dict().items(): assert torch.allclose(twice.model.state_dict()[k], v, rtol=1e-12, atol=0)
