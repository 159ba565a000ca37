"What cannot be seen in the pass of a network stays whole, and is named."
from collections import namedtuple
import pytest, torch
from fastai.basics import set_seed
from torch import nn
from fasterprune.all import *
from support.opaque_nets import Base, Caught, Checkpoint, Complex, Condition, Fourier, Functional, Gradient
from support.opaque_nets import InnerGradient, Jagged, Jvp, Nested, NumPy, NumPyList, OwnFunction, OwnOperation
from support.opaque_nets import Quantized, ScriptedFunction, ScriptedLayer, ShapeInPlace, Sparse, SparseAttribute, SparseBuffer, Threads
from support.opaque_nets import ToSparse, Vmap, VmapOfLayers, WrittenByNumPy
from support.opaque_nets import dead, run

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

seen_through = (Vmap,VmapOfLayers,Gradient,Functional,OwnFunction,Checkpoint,ScriptedFunction,ShapeInPlace,Caught)
not_looked_into = (Jvp,Sparse,ToSparse,SparseBuffer,SparseAttribute,Nested,Jagged,Quantized,Condition,
    NumPy,NumPyList,WrittenByNumPy,OwnOperation,Fourier,Complex,ScriptedLayer,InnerGradient,Threads)

@pytest.mark.parametrize('verify', (True,False))
@pytest.mark.parametrize('cls', (*seen_through,*not_looked_into))
def test_what_is_not_looked_into_stays_whole(cls, verify):
    net,x = cls().eval(),torch.randn(4, 6)
    c = Condenser(net, x).condense(verify=verify)
    other = torch.randn(7, 6)
    torch.testing.assert_close(run(c.model, other), run(net, other))
    assert c.report.params_after==cls.whole
    if cls not in not_looked_into: return
    assert any('not analyzed' in k['reason'] or 'used outside' in k['reason'] for k in c.report.kept), 'the report names it'

@pytest.mark.parametrize('cls', (SparseBuffer,SparseAttribute,ScriptedLayer))
def test_such_networks_are_saved(cls, tmp_path):
    c,x = Condenser(cls().eval(), torch.randn(4, 6)).condense(),torch.randn(3, 6)
    again = load_condensed(c.save(tmp_path/'c.safetensors'), cls().eval())
    assert torch.equal(run(again.model, x), run(c.model, x))
    assert [b.layout for b in again.model.buffers()]==[b.layout for b in c.model.buffers()]

@pytest.mark.parametrize('cls', (NumPy,NumPyList,WrittenByNumPy,Threads,OwnOperation))
def test_what_comes_back_from_elsewhere_is_no_constant(cls):
    "Were it taken for a constant, the layers behind it would be replaced by what they give out for the sample."
    class Behind(cls):
        def __init__(self):
            super().__init__()
            self.c = nn.Linear(3, 2)
        def forward(self, x): return self.c(super().forward(x).relu())
    net = Behind().eval()
    c = Condenser(net, torch.randn(4, 6)).condense(verify=False)
    x = torch.randn(3, 6)
    torch.testing.assert_close(run(c.model, x), run(net, x))
    assert type(c.model.b) is nn.Linear and type(c.model.c) is nn.Linear

def test_a_sparse_input():
    class Nodes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Linear(6, 8),nn.Linear(8, 3)
            dead(self.a, 4)
        def forward(self, x, adj): return self.b((adj@self.a(x)).relu())
    net,adj = Nodes().eval(),torch.eye(5).flip(0).to_sparse()
    x = torch.randn(5, 6)
    c = Condenser(net, (x,adj)).condense()
    small = c.inputs(x, adj)
    torch.testing.assert_close(run(c.model, *small), run(net, x, adj))
    assert c.report.params_after==8*7 + 8*3+3 and any('(sparse' in k['reason'] for k in c.report.kept)

def test_hidden_inputs_are_no_constants():
    class Box:
        def __init__(self, t): self.t = t
        def update(self, t): self.t = t
    class Boxed(Base):
        def forward(self, x, box): return super().forward(x+box.t)
    net = Boxed().eval()
    c = Condenser(net, (torch.randn(4, 6), Box(torch.randn(1, 6)))).condense(verify=False)
    x,box = torch.randn(3, 6),Box(torch.randn(1, 6))
    torch.testing.assert_close(run(c.model, *c.inputs(x, box)), run(net, x, box))

Pair = namedtuple('Pair', 'u v')

def test_an_input_that_is_a_tuple_with_names():
    class Takes(Base):
        def forward(self, pair): return super().forward(pair.u+pair.v)
    net = Takes().eval()
    c = Condenser(net, (Pair(torch.randn(4, 6), torch.randn(4, 6)),)).condense()
    pair = Pair(torch.randn(3, 6), torch.randn(3, 6))
    assert len(c.model.a.weight)==4
    torch.testing.assert_close(run(c.model, c.inputs(pair)), run(net, pair))
