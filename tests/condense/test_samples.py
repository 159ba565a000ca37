"""A network is shown a batch in any form that it takes; what cannot be seen in its pass stays whole and is named,
and what cannot be cut is refused with the way out."""
import concurrent.futures, functools, threading
from collections import OrderedDict, UserDict, namedtuple
from copy import deepcopy
from dataclasses import dataclass
import numpy as np, pytest, torch
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from torch import nn
from torch.utils.checkpoint import checkpoint
from fasterprune.all import *
from fasterprune.core.models import evaluating
from fasterprune.graph.trace import trace
from fasterprune.graph.graph import trace_sample
from fasterprune.condense.verify import Reference

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

def dead(layer, n):
    "The first `n` outputs of a layer are zero."
    with torch.no_grad(): layer.weight[:n],layer.bias[:n] = 0,0

def run(net, *xs, **batch):
    with evaluating(net): return net(*xs, **batch)

# ---- batches by keywords

class Words(nn.Module):
    "Takes what a tokenizer gives."
    right = 9*8 + 4*9 + 4*3+3
    def __init__(self):
        super().__init__()
        self.e,self.a,self.b = nn.Embedding(9, 8),nn.Linear(8, 8),nn.Linear(8, 3)
        dead(self.a, 4)
    def forward(self, input_ids, attention_mask=None, extra=(), scale=True):
        h = self.e(input_ids)
        for t in extra: h = h*t if t is not None else h
        if attention_mask is not None: h = h*attention_mask[...,None]
        return self.b(self.a(h).relu()*2 if scale else self.a(h))

class OneDict(Words):
    def forward(self, batch): return super().forward(**batch)
class OnlyKeywords(Words):
    def forward(self, **batch): return super().forward(**batch)
class Encoding(UserDict): "What tokenizers give is a Mapping, and no dict."

def words(n=4): return dict(input_ids=torch.randint(0, 9, (n,5)), attention_mask=(torch.rand(n, 5)>.3).float())
batches = dict(plain=words,
    mapping=lambda: Encoding(words()),
    other_order=lambda: dict(reversed(words().items())),
    with_none=lambda: dict(words(), attention_mask=None),
    nested=lambda: dict(words(), extra=[torch.rand(4, 1, 1), None, torch.rand(4, 5, 1)]),
    flag=lambda: dict(words(), scale=False))

@pytest.mark.parametrize('kind', batches)
@pytest.mark.parametrize('cls', (Words, OnlyKeywords, OneDict))
def test_a_batch_by_keywords(cls, kind, tmp_path):
    net,batch = cls().eval(),batches[kind]()
    by_name = cls is not OneDict
    def _run(m, b): return run(m, **b) if by_name else run(m, b)
    before = deepcopy(net.state_dict())
    c = Condenser(net, batch).condense()
    assert c.report.params_after==cls.right and c.report.max_error < 1e-12
    assert type(c.inputs(batch)) is type(batch) and (not by_name or type(c.inputs(**batch)) is dict)
    for b in (batch, words(7)): torch.testing.assert_close(_run(c.model, c.inputs(b)), _run(net, b))
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    again = load_condensed(c.save(tmp_path/'c.safetensors'), cls().eval())
    assert torch.equal(_run(again.model, again.inputs(batch)), _run(c.model, batch)) and again.inputs.names==c.inputs.names==tuple(batch)
    s = Sparsifier(cls(), 'neuron', sample=batch)
    s.sparsify(.5)
    assert s.groups[0].n==8 and s.reached==.5
    s.observe(batch)
    assert n_macs(net, batch)==5*(64+24) and len(trace(net, batch).ops)==len(trace_sample(net, batch).ops)
    assert Reference(net, batch).error(c.model, c.inputs) < 1e-12
    assert set(find_zeros(net, batch))=={'a.weight','a.bias'}

class TwoInputs(nn.Module):
    "Reads two of six columns of the one and one of three channels of the other."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(6, 8),nn.Conv1d(3, 8, 1),nn.Linear(8, 2)
        with torch.no_grad(): self.a.weight[:,:4],self.b.weight[:,1:] = 0,0
    def forward(self, x, y, add=0.): return self.c((self.a(x)+self.b(y).mean(-1)+add).relu())

def two(n=4): return dict(x=torch.randn(n, 6), y=torch.randn(n, 3, 5))

def test_inputs_that_are_cut_keep_their_names(tmp_path):
    net,batch = TwoInputs().eval(),two()
    c = Condenser(net, dict(y=batch['y'], x=batch['x'])).condense() # in another order than those of the function
    assert (c.report.inputs_before, c.report.inputs_after)==(6+15, 2+5)
    for cc in (c, load_condensed(c.save(tmp_path/'c.safetensors'), TwoInputs().eval())):
        for b in (two(7), dict(two(3), add=1.), Encoding(two(2))):
            small = cc.inputs(b)
            assert {k:tuple(v.shape[1:]) for k,v in small.items() if k in 'xy'}==dict(x=(2,), y=(1,5)) and type(small) is type(b)
            assert small.get('add')==b.get('add') and b['x'].shape[1]==6 and [*small]==[*b]
            torch.testing.assert_close(run(cc.model, **small), run(net, **b))
            torch.testing.assert_close(run(cc.joined(), **b), run(net, **b))
    by_place = Condenser(net, tuple(batch.values())).condense()
    with pytest.raises(ValueError, match='x, y are given by keywords, but .* by position'): by_place.inputs(**batch)
    p = InputPruner(net, batch)
    p.observe(batch)
    assert (p.n, p.dead)==(6+3, 4+2)
    p.sparsify(.8)
    assert p.dead==7

def test_an_error_names_the_keywords():
    with pytest.raises(ValueError, match=r'does not run on the sample \(input_ids: \(2, 5\) int64 on cpu, mask: \(2, 5\) float32 on cpu'):
        Condenser(Words(), dict(input_ids=torch.zeros(2, 5, dtype=torch.long), mask=torch.ones(2, 5)))
    for empty in ({}, (), [], dict(input_ids=torch.zeros(0, 5, dtype=torch.long))):
        with pytest.raises(ValueError, match='the sample is empty'): Condenser(Words(), empty)

# ---- what comes out

class Out(OrderedDict):
    def __getattr__(self, k): return self[k]
@dataclass
class Answer:
    logits: torch.Tensor
    other: object = None
class Plain:
    def __init__(self, logits, other): self.logits,self.other = logits,other
class Memory(Plain):
    def update(self, x): self.other = x

class Two(nn.Module):
    "Two heads; that of the second is to stay, for it is given out, too."
    def __init__(self, make):
        super().__init__()
        self.a,self.b,self.c,self.make = nn.Linear(6, 8),nn.Linear(8, 3),nn.Linear(8, 2),make
        dead(self.a, 4)
    def forward(self, x):
        h = self.a(x).relu()
        return self.make(self.b(h), self.c(h))

makers = dict(dataclass=Answer, object=Plain,
    ordered=lambda a, b: Out(logits=a, other=[b]),
    mapping=lambda a, b: Encoding(a=a, b=b),
    inside=lambda a, b: (a, dict(p=[Plain(b, None)])))

@pytest.mark.parametrize('kind', makers)
def test_outputs_in_containers_and_objects(kind):
    net = Two(makers[kind]).eval()
    c = Condenser(net, torch.randn(4, 6)).condense()
    assert c.report.params_after==4*7 + 4*3+3 + 4*2+2 and c.report.max_error < 1e-12
    x = torch.randn(5, 6)
    from fasterprune.core.batches import all_tensors
    for a,b in zip(all_tensors(c.model(x)), all_tensors(net(x)), strict=True): torch.testing.assert_close(a, b)

def test_a_cache_is_no_output():
    class Cached(Two):
        def forward(self, x):
            h = self.a(x).relu()
            return self.b(h),Memory(h, None)
    c = Condenser(Cached(None).eval(), torch.randn(4, 6)).condense()
    assert c.report.params_after==4*7 + 4*3+3 + 8*2+2 # c is not called

# ---- operations that are not looked into

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

# ---- what cannot be cut

plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
x = torch.randn(4, 6)
class Holding(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.l,self.o = nn.Linear(6, 3),o
    def forward(self, x): return self.l(x)
def program(m, x): return torch.export.export(m, (x,))
refused = dict( # what is refused, and words that have to stand in the error
    scripted=(lambda: torch.jit.script(plain), 'ScriptModule', 'nn.Module'),
    traced=(lambda: torch.jit.trace(plain, x), 'ScriptModule', 'nn.Module'),
    exported=(lambda: program(plain, x).module(), 'exported', 'nn.Module'),
    program=(lambda: program(plain, x), 'ExportedProgram', 'nn.Module'),
    inside=(lambda: nn.Sequential(plain[:2], program(plain[2], torch.randn(4, 8)).module()), "layer '1'", 'exported'),
    dynamic=(lambda: torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}), "layer '0'", 'quantized', 'quantize the small network'),
    meta=(lambda: deepcopy(plain).to('meta'), '0.weight', 'meta'))
only_with_a_pass = dict(empty=(lambda: nn.Sequential(nn.Linear(6, 0), nn.ReLU(), nn.Linear(0, 3)), "layer '0' is empty", '(0, 6)'))
attributes = dict(lock=(threading.Lock,'lock'),
    file=(lambda: open('/dev/null'),'TextIOWrapper'),
    generator=(lambda: (i for i in range(3)),'generator'))
only_copied = {k:(lambda o=o: Holding(o()), "attribute 'o'", 'cannot be copied', what) for k,(o,what) in attributes.items()}

def fit(model, cb):
    data = [(x[i],i%3) for i in range(4)]
    learn = Learner(DataLoaders.from_dsets(data, data, bs=4, num_workers=0, device='cpu'), model, loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=cb)

@pytest.mark.parametrize('kind', {**refused, **only_with_a_pass, **only_copied})
def test_what_cannot_be_cut_is_refused(kind):
    make,*words = {**refused, **only_with_a_pass, **only_copied}[kind]
    ways = dict(condense=lambda m: Condenser(m, x), sparsify=lambda m: Sparsifier(m, 'neuron', sample=x))
    if kind in refused: ways.update(report=sparsity_report, zeros=find_zeros, weights=Sparsifier)
    if kind in ('scripted','traced','empty'): # others are not trained by fastai
        ways['callback'] = lambda m: fit(m, SparsifyCallback(.5, 'neuron'))
    if kind in only_copied: ways = dict(condense=ways['condense'])
    for name,way in ways.items():
        model,random = make(),torch.get_rng_state()
        modes = [m.training for m in model.modules()] if isinstance(model, nn.Module) else None
        with pytest.raises(ValueError) as e: way(model)
        assert all(w in str(e.value) for w in words), f'{name}: {e.value}'
        if name=='callback': continue
        assert modes is None or [m.training for m in model.modules()]==modes
        assert torch.equal(torch.get_rng_state(), random)

def test_lazy_networks_need_a_batch():
    def lazy(): return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    for way in (Sparsifier, sparsity_report, find_zeros):
        with pytest.raises(ValueError, match="'0.weight' has no shape yet.*run a batch"): way(lazy())
    assert Condenser(lazy(), x).condense().report.params_before==83 and Sparsifier(lazy(), 'neuron', sample=x).n==8

@pytest.mark.parametrize('wrap', (nn.DataParallel, lambda m: torch.compile(m, backend='aot_eager'), torch.fx.symbolic_trace))
def test_wrappers(wrap):
    net = deepcopy(plain)
    dead(net[0], 4)
    model = wrap(net)
    c = Condenser(model, x).condense()
    assert c.report.params_after==4*7 + 4*3+3
    torch.testing.assert_close(run(c.model, x), run(net, x))

def test_nothing_is_touched():
    "Mode, hooks, random numbers, gradients, and what hooks store."
    class Store:
        def __init__(self): self.stored = None
        def see(self, m, xs, out): self.stored = out
    net,store = Threads(),Store()
    net.a.eval()
    net.m.register_forward_hook(store.see)
    net(x).sum().backward()
    def _state(): return {n:(m.training, len(m._forward_hooks), set(vars(m))) for n,m in net.named_modules()}
    state,grads,stored,random = _state(),[p.grad for p in net.parameters()],store.stored,torch.get_rng_state()
    Condenser(net, x).condense()
    assert _state()==state and store.stored is stored and torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is g for p,g in zip(net.parameters(), grads))

@functools.lru_cache
def table(n): return torch.linspace(0, 1, n)

class Remembers(nn.Module):
    "Keeps tables of numbers for each width in a function, in the class, and in the module."
    of_all = {}
    def __init__(self):
        super().__init__()
        self.a,self.b,self.own = nn.Conv2d(3, 8, 1),nn.Conv2d(8, 3, 1),{}
        dead(self.a, 4)
    def forward(self, x):
        n = x.shape[-1]
        for d in (self.own,self.of_all):
            if n not in d: d[n] = torch.linspace(0, 1, n)
        return self.b((self.a(x)*table(n)).relu()*self.own[n]*self.of_all[n])

@pytest.mark.parametrize('dtype', (torch.float32,torch.float64))
def test_what_code_remembers_of_a_pass_is_forgotten(dtype):
    "Else the next pass would get what cannot be trained, or is of another precision."
    net,x = Remembers().to(dtype).eval(),torch.randn(2, 3, 6, 6, dtype=dtype)
    Sparsifier(net, 'filter', sample=x)
    c = Condenser(net, x).condense()
    assert c.report.params_after==4*4 + 3*5
    assert not (net.own or net.of_all or c.model.own or table.cache_info().currsize)
    for n in (6,9,5):
        for model in (net,c.model): model(torch.randn(2, 3, n, n, dtype=dtype)).sum().backward()
        assert table(n).dtype==torch.float32 and not table(n).is_inference()
    net.own[9] = kept = torch.ones(9) # what was there stays
    Condenser(net, x).condense()
    assert net.own[9] is kept
    table.cache_clear(), net.of_all.clear()

class Counts(Base):
    "Writes to its buffers, weights and input."
    def __init__(self):
        super().__init__()
        self.register_buffer('n', torch.tensor(0))
        self.register_buffer('mean', torch.zeros(8))
    def forward(self, x):
        h = self.a(x.mul_(2)).relu()
        self.n += 1
        self.mean.lerp_(h.mean(0).to(self.mean.dtype), .1)
        self.m.weight.data.clamp_(-.2, .2)
        return self.b(h)*(self.n>0)

@pytest.mark.parametrize('dtype', (torch.float32,torch.float64,torch.bfloat16))
def test_what_a_network_writes_to_itself_and_to_its_input_is_undone(dtype):
    net,x = Counts().to(dtype).eval(),torch.randn(4, 6, dtype=dtype)
    state,sample = {k:v.clone() for k,v in net.state_dict().items()},x.clone()
    Sparsifier(net, 'neuron', sample=x)
    c = Condenser(net, x).condense()
    assert torch.equal(x, sample) and all(torch.equal(v, state[k]) for k,v in net.state_dict().items())
    assert len(c.model.a.weight)==4
    torch.testing.assert_close(run(c.model, x.clone()), run(net, x.clone()))

# ---- the mode of a small network

def test_it_says_in_which_mode_it_is(tmp_path):
    net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3))
    c = Condenser(net.eval(), x).condense()
    assert c.mode=='evaluation' and 'in evaluation mode' in repr(c) and 'model.eval()' not in repr(c)
    again = load_condensed(c.save(tmp_path/'c.safetensors'), deepcopy(net).train())
    assert again.mode=='training' and 'in training mode; for predictions call model.eval()' in repr(again)
    again.model.eval()
    assert torch.equal(again.model(x), c.model(x)) and again.mode=='evaluation'
    again.model[1].train()
    assert again.mode=='training (in part)'

# ---- a Learner whose batches are dicts

class Dicts(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(6, 8),nn.Linear(8, 3)
    def out(self, u, v): return self.b(self.a(u+v).relu())
class TakesDict(Dicts):
    def forward(self, batch): return self.out(batch['u'], batch['v'])
class TakesKeywords(Dicts):
    def forward(self, u, v): return self.out(u, v)
class Unpack(Callback):
    order = -10
    def before_batch(self): self.learn.xb = tuple(self.xb[0].values())

def dict_learner(model, cbs=None):
    data = [(dict(u=torch.randn(6), v=torch.randn(6)),i%3) for i in range(32)]
    return Learner(DataLoaders.from_dsets(data, data, bs=8, num_workers=0, device='cpu'), model, loss_func=CrossEntropyLossFlat(), cbs=cbs)

@pytest.mark.parametrize('make', (lambda: dict_learner(TakesDict()), lambda: dict_learner(TakesKeywords(), Unpack())))
def test_a_learner_with_batches_of_dicts(make):
    learn = make()
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2, cbs=SparsifyCallback(.5, 'neuron'))
    assert sparsity_report(learn.model).zero_outputs['a']==4
    small = learn.condense()
    assert small.condensed.report.params_after==4*7 + 4*3+3
    with learn.no_bar(), small.no_bar(): a,b = learn.get_preds()[0],small.get_preds()[0]
    torch.testing.assert_close(a, b)
    with small.no_bar(), small.no_logging(): small.fit(1, cbs=KeepZeros())

def test_inputs_in_dicts():
    "Without tensors there are no features; where a callback unpacks them, there are."
    learn = dict_learner(TakesDict())
    why = pytest.raises(ValueError, match='the network gets dict: let the DataLoaders deliver the tensors')
    with why, learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=InputPruneCallback(.5))
    learn = dict_learner(TakesKeywords(), Unpack())
    cb = InputPruneCallback(.5)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2, cbs=cb)
    assert len(cb.kept)==3
    small = learn.condense()
    assert small.dls.one_batch()[0]['u'].shape==(8,3) and small.condensed.report.inputs_after==6
    with learn.no_bar(), small.no_bar(): torch.testing.assert_close(learn.get_preds()[0], small.get_preds()[0])
