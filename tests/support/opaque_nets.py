"Networks with an operation between two layers that the analysis looks into, or does not."
import concurrent.futures
import numpy as np, torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from fasterprune.core.models import evaluating

def dead(layer, n):
    "The first `n` outputs of a layer are zero."
    with torch.no_grad(): layer.weight[:n],layer.bias[:n] = 0,0

def run(net, *xs, **batch):
    with evaluating(net): return net(*xs, **batch)

class Base(nn.Module):
    "Four of eight neurons of the first layer are dead, and three of the second; between them is something."
    def __init__(self):
        super().__init__()
        self.a,self.m,self.b = nn.Linear(6, 8),nn.Linear(8, 8),nn.Linear(8, 3)
        dead(self.a, 4)
        dead(self.m, 3)
    def mid(self, h): return h
    def forward(self, x): return self.b(self.mid(self.m(self.a(x).relu())).relu())
    least = 4*7 + 4*5+5 + 5*3+3        # all that is dead goes
    whole = 4*7 + 4*8+8 + 8*3+3        # what the operation reads and makes stays

class Vmap(Base):
    def mid(self, h): return torch.vmap(lambda r: r*r.sum())(h)
    whole = Base.least
class VmapOfLayers(Base):
    def mid(self, h): return h
    def forward(self, x): return torch.vmap(lambda r: self.b(self.m(self.a(r).relu()).relu()))(x)
    whole = Base.least
class Gradient(Base):
    "The sum of all, which the gradient does not need, is what keeps them."
    def mid(self, h): return torch.func.grad(lambda r: (r**3).sum())(h)
class Jvp(Base):
    def mid(self, h): return torch.func.jvp(torch.sin, (h,), (h*2,))[1]
class Sparse(Base):
    def mid(self, h): return torch.sparse.mm(torch.eye(8).to_sparse(), h.t()).t()
class ToSparse(Base):
    def mid(self, h): return h.to_sparse().to_dense()*2
class SparseBuffer(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer('adj', torch.eye(8).flip(0).to_sparse_csr())
    def mid(self, h): return (self.adj@h.t()).t()
class SparseAttribute(Base):
    def __init__(self):
        super().__init__()
        self.adj = torch.eye(8).flip(0).to_sparse_csr()
    def mid(self, h): return (self.adj@h.t()).t()
class Nested(Base):
    def mid(self, h): return torch.cat((torch.nested.nested_tensor([h[:1], h[1:]])*2).unbind())
class Jagged(Base):
    def forward(self, x):
        h = self.a(x).relu()
        n = self.m(torch.nested.nested_tensor([h[:1], h[1:]], layout=torch.jagged))
        return self.b(torch.cat(n.unbind()).relu())
    whole = 8*7 + 8*8+8 + 8*3+3
class Quantized(Base):
    def mid(self, h): return torch.dequantize(torch.quantize_per_tensor(h, .1, 0, torch.qint8))
class Condition(Base):
    def mid(self, h): return torch.cond(h.sum()>1, lambda h: h*2, lambda h: h*3, (h,))
class NumPy(Base):
    def mid(self, h): return torch.from_numpy(np.tanh(h.detach().numpy()))
class NumPyList(Base):
    def mid(self, h): return torch.tensor(h.tolist())
class WrittenByNumPy(Base):
    def mid(self, h):
        out = torch.zeros(h.shape)
        out.numpy()[:] = h.detach().numpy()
        return out
class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h): return h*2
    @staticmethod
    def backward(ctx, g): return g*2
class OwnFunction(Base):
    def mid(self, h): return Twice.apply(h)
    whole = Base.least
class Checkpoint(Base):
    def forward(self, x): return self.b(checkpoint(self.m, self.a(x).relu(), use_reentrant=False).relu())
    whole = Base.least
@torch.library.custom_op('fasterprune_tests::twice', mutates_args=())
def twice(h:torch.Tensor) -> torch.Tensor: return torch.from_numpy(h.numpy()*2)
class OwnOperation(Base):
    def mid(self, h): return twice(h)
class Fourier(Base):
    def mid(self, h): return torch.fft.irfft(torch.fft.rfft(h)*2, n=8)
class Complex(Base):
    def mid(self, h): return torch.view_as_real(torch.view_as_complex(h.view(-1, 4, 2))*(1+2j)).flatten(1)
@torch.jit.script
def scripted_function(h): return h*2 + torch.relu(h)
class ScriptedFunction(Base):
    def mid(self, h): return scripted_function(h)
    whole = Base.least
class ScriptedLayer(Base):
    def __init__(self):
        super().__init__()
        self.s = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    def mid(self, h): return self.s(h)
    whole = Base.whole+72
class InnerGradient(Base):
    "A force is the gradient of an energy."
    def __init__(self):
        super().__init__()
        self.force = Force()
    def mid(self, h): return self.force(h)
class Force(nn.Module):
    def forward(self, h):
        with torch.enable_grad():
            z = h.detach().clone().requires_grad_()
            return torch.autograd.grad((z**3).sum(), z)[0]
class Threads(Base):
    def __init__(self):
        super().__init__()
        self.other = InThread()
    def mid(self, h): return self.other(h)
class InThread(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(8, 8)
    def forward(self, h):
        with concurrent.futures.ThreadPoolExecutor(1) as pool: return pool.submit(lambda: self.l(h)*2).result().detach()
Threads.whole = Base.whole+72
class ShapeInPlace(Base):
    def forward(self, x):
        h = self.a(x).relu().unsqueeze(1)
        h.squeeze_(1)
        return self.b(self.m(h).relu())
    whole = Base.least
class Caught(Base):
    "An error inside of a layer is no end."
    def __init__(self):
        super().__init__()
        self.bad = nn.Linear(3, 3)
    def mid(self, h):
        try: self.bad(h)
        except RuntimeError: pass
        return h
    whole = Base.least+12
class Functional(Base):
    def forward(self, x):
        h = torch.func.functional_call(self.m, {k:v*2 for k,v in self.m.named_parameters()}, (self.a(x).relu(),))
        return self.b(h.relu())
    whole = Base.least
