"What cannot be cut is refused with the way out, and nothing that is shown is touched."
import functools, threading
from copy import deepcopy
import pytest, torch
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from torch import nn
from fasterprune.all import *
from support.opaque_nets import Base, Threads, dead, run

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

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
