"Rules: which names they may have, what they have to give, and what a report says where they do not reach."
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fasterprune.all import *
from fasterprune.graph import Graph, failed_rules, one_operation, rule
from fasterprune.graph.ops.pointwise import pointwise
from fasterprune.graph.rules import rules
from support.fuzz_nets import Model, zero
from support.exact import condensed, dead, randn

aten = torch.ops.aten

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

@pytest.fixture
def undone():
    "Rules as they were before."
    before = dict(rules)
    yield
    rules.clear()
    rules.update(before)
    failed_rules.clear()

def test_each_rule_is_that_of_an_operation():
    gone = [n for n in rules if not hasattr(aten, n) and n not in {c.__name__ for c in one_operation}]
    assert not gone, f'no operation of this PyTorch is called {gone}: take the name that a trace notes'

def test_names_of_rules_are_checked(undone):
    def _f(graph, op, x): "A rule of a user."
    with pytest.raises(ValueError, match='torch.ops.aten has no logcumsumexpp: did you mean logcumsumexp'): rule('logcumsumexpp')(_f)
    with pytest.raises(ValueError, match='relu has a rule already, pointwise in fasterprune.graph.ops.pointwise'): rule('logcumsumexp', 'relu')(_f)
    assert 'logcumsumexp' not in rules and rules['relu'] is pointwise
    for _ in range(2): rule('logcumsumexp')(_f) # as a cell that is run again

@pytest.mark.parametrize('f,says', [(lambda graph, op, x, dim: x.ids, 'Tensor, not AbstractValue'),
    (lambda graph, op, x, dim: x.moved(lambda t: t[...,:3]), r'it gives shape (2, 3), and the operation (2, 8)')], ids=['no_value', 'shape'])
def test_what_a_rule_gives_is_checked(undone, f, says):
    f.__name__ = 'of_a_user'
    rule('logcumsumexp')(f)
    net = Model(lambda m, x: m.b(m.a(x).logcumsumexp(1)), a=zero(nn.Linear(5, 8), (1,)), b=nn.Linear(8, 3)).double().eval()
    c = Condenser(net, randn(2, 5)).condense()
    why, = {k['reason'] for k in c.report.kept if k['layer']=='a'}
    assert len(c.model.a.weight)==8 and 'logcumsumexp' in why and 'whose rule of_a_user fails' in why and says in why, why

def _takes_one(name):
    f = getattr(aten, name, None)
    if f is None or 'default' not in f.overloads() or 'bitwise' in name or name in ('where','clamp','clip'): return False
    return sum(not a.has_default_value() for a in f.default._schema.arguments)==1

@pytest.mark.parametrize('name', [n for n,f in rules.items() if f is pointwise and _takes_one(n)])
def test_functions_of_one_tensor_are_followed(name):
    f = getattr(aten, name)
    net = Model(lambda m, x: m.b(f(m.a(x)).to(x.dtype)), a=zero(nn.Linear(5, 4), (0,1)), b=nn.Linear(4, 3)).double().eval()
    net.a.bias.data[:2] = torch.tensor([.3,.6])
    const,right = Graph(net, randn(2, 5)).reads[1].const,f(net.a.bias.data[:2]).double()
    torch.testing.assert_close(const[:2], torch.where(right.isfinite(), right, torch.nan), equal_nan=True)
    assert const[2:].isnan().all()

@pytest.mark.parametrize('f', [lambda x: x.cumsum(1), lambda x: x.cumprod(1), lambda x: x.prod(1), lambda x: x.count_nonzero(1).double(),
    lambda x: x.nansum(1)], ids=['cumsum', 'cumprod', 'prod', 'count_nonzero', 'nansum'])
def test_zeros_along_positions_give_zero(f):
    net = Model(lambda m, x: m.b(f(m.a(x))), a=dead(nn.Linear(5, 8), (1,4,6)), b=nn.Linear(8, 3)).double().eval()
    assert len(condensed(net, randn(2, 4, 5)).model.a.weight)==5

def why(net, *shape): return ' '.join(k['reason'] for k in Condenser(net.double().eval(), randn(*shape)).condense().report.kept if k['layer']=='a')

def test_an_operation_that_makes_a_constant_vary_is_named():
    net = Model(lambda m, x: m.b(m.a(x).relu().cumsum(1).tanh()), a=zero(nn.Linear(5, 8), (1,4)), b=nn.Linear(8, 3))
    net.a.bias.data[[1,4]] = .5
    said = why(net, 2, 4, 5)
    assert 'made to vary by cumsum' in said and 'tied to' not in said, said

def test_a_weight_that_is_computed_is_named():
    net = Model(lambda m, x: m.c(F.linear(m.b(x), m.a.weight.renorm(2, 0, .5))),
        a=dead(nn.Linear(8, 8), (1,)), b=dead(nn.Linear(5, 8), (2,)), c=nn.Linear(8, 3))
    c = Condenser(net.double().eval(), randn(2, 5)).condense()
    assert any('whose weight is computed by renorm' in k['reason'] for k in c.report.kept), c.report

def test_long_lines_of_code_are_quoted_in_part():
    def _forward(m, x):
        return m.b(m.a(x).softmax(1) + 0*m.a(x).relu().sigmoid().tanh().relu().sigmoid().tanh().relu().sigmoid().tanh().relu())
    said = why(Model(_forward, a=dead(nn.Linear(5, 8), (1,)), b=nn.Linear(8, 3)), 2, 5)
    assert '...`' in said and max(len(o) for o in said.split('`')[1::2])==80, said
