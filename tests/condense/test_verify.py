"""What verification sees: the edit in float64 whatever is stored, each output channel by its own size,
and what is left of networks that do not run in float64."""
from copy import deepcopy
import numpy as np, pytest, torch
from torch import nn
from torch.nn import functional as F
from fasterprune.all import *
from fasterprune.core.batches import tensors_in
from fasterprune.core.models import copy_of
from fasterprune.graph.forms import trace_forms
from fasterprune.graph.trace import trace
from fasterprune.graph.rules import one_operation
from fasterprune.condense.reduced import Constant
from fasterprune.condense.comparison import compare_channels
from fasterprune.condense.search import Search
from fasterprune.condense.verify import Reference
from support.lanes import soak
from support.zeros import reordered, zeroed
from support.zoo import network

half = [torch.float16,torch.bfloat16]
dtypes = [torch.float64,torch.float32,*half]

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def dead(layer, n):
    with torch.no_grad(): layer.weight[:n],layer.bias[:n] = 0,0

def n_params(model): return sum(p.numel() for p in model.parameters())

# ---- the edit is judged

class ByWidth(nn.Module):
    "The code reads the width from an activation: it must not change, or `small` outputs beside `large` ones are wrong."
    def __init__(self, large=0):
        super().__init__()
        self.large,self.a,self.b = nn.Linear(8, large) if large else None,nn.Linear(8, 16),nn.Linear(16, 5)
        dead(self.a, 8)
    def forward(self, x):
        h = self.a(x).relu()
        out = (self.b(h)*h.shape[1]**-.5).sigmoid()
        return out if self.large is None else torch.cat([self.large(x)*1e4, out], 1)

@pytest.mark.parametrize('dtype', dtypes)
@pytest.mark.parametrize('large', [0,4])
def test_a_width_in_a_formula_keeps_its_layer_whole(dtype, large):
    net,x = ByWidth(large).to(dtype).eval(),torch.randn(6, 8).to(dtype)
    c = Condenser(net, x).condense()
    assert c.report.params_after==n_params(net) and torch.equal(c.model(x), net(x)) and c.report.max_error==0
    assert [(k['layer'],k['units'],k['reason']) for k in c.report.kept]==[('a', 8, 'removing units of this layer changed the output')]

class Folds(nn.Module):
    "Dead units with constants, that go to a bias, to a carrier, to a running mean and to a constant module."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.n = nn.Conv2d(3, 8, 3),nn.Conv2d(8, 8, 3, padding=1),nn.BatchNorm2d(8)
        self.c,self.d,self.e = nn.Conv2d(8, 6, 3, bias=False),nn.BatchNorm2d(6),nn.Conv2d(8, 6, 1)
        with torch.no_grad():
            for m in (self.a,self.b): m.weight[::2] = 0
            for m in (self.n,self.d):
                for t,low,high in ((m.bias,.2,.6), (m.running_mean,-.4,.4), (m.running_var,.5,2)): t.uniform_(low, high)
            self.e.weight.zero_()
    def forward(self, x):
        y = self.n(self.b(self.a(x).sigmoid())).relu()
        return self.d(self.c(y)) + self.e(y)[...,1:-1,1:-1]

@pytest.mark.parametrize('dtype', dtypes)
def test_what_is_folded_is_judged_unrounded_and_stored_to_a_few_eps(dtype):
    net,x = Folds().to(dtype).eval(),torch.randn(2, 3, 12, 12).to(dtype)
    con = Condenser(net, x)
    c = con.condense()
    assert c.report.max_error <= 1e-13 and not con.reference.noises and con.reference.dtype is torch.float64
    assert isinstance(c.model.e, Constant)
    same = Condenser(deepcopy(net).double(), x.double()).condense()
    assert c.report.removed==same.report.removed and c.report.params_after==same.report.params_after < n_params(net)
    stored,rounded = c.model.state_dict(),False
    for k,t in same.model.state_dict().items():
        off = (stored[k].double()-t).abs().max()
        assert off <= 2*torch.finfo(dtype).eps*t.abs().max(), k
        rounded |= bool(off > 0)
    assert rounded or dtype is torch.float64, 'nothing was rounded'

def test_what_is_too_large_to_be_stored_is_not_folded():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).half().eval()
    with torch.no_grad():
        net[0].weight[:4],net[0].bias[:4] = 0,3e4
        net[2].weight[:,:4] = torch.tensor([1.,1.,1.,-2.9]) # the sum of the first three is 90,000: float16 ends at 65,504
        net[2].weight[0,3] = 1.
    x = torch.randn(5, 4).half()
    c = Condenser(net, x).condense()
    assert all(p.isfinite().all() for p in c.model.parameters()) and c.model[0].out_features==8

@pytest.mark.parametrize('name', ['resnet18','vit_b_16','convnext_tiny','swin_t','mobilenet_v3_small','densenet121'])
@pytest.mark.parametrize('dtype', [torch.float32,torch.bfloat16])
def test_piece_by_piece_is_what_a_copy_in_float64_computes(name, dtype):
    net,x = network(name)
    net,x = net.to(dtype),x.to(dtype)
    before = {k:v.clone() for k,v in net.state_dict().items()}
    reference = Reference(net, x)
    assert reference.pieces and reference.dtype is torch.float64 and len(reference.cases)==2
    copy = copy_of(net, torch.float64)
    for xs,wanted in reference.cases:
        with torch.no_grad(): out = copy(*xs)
        for (_,a),b in zip(wanted, tensors_in(out)): assert a.dtype==torch.float64 and (a-b).abs().max() <= 1e-12*b.abs().max()
    assert all(torch.equal(v, before[k]) and v.dtype==before[k].dtype for k,v in net.state_dict().items())

class Net(nn.Module):
    def __init__(self, f, *layers, **others):
        super().__init__()
        self.f,self.a,self.b = f,nn.Linear(6, 8),nn.Linear(8, 3)
        for k,v in others.items(): setattr(self, k, v)
        self.register_buffer('memory', torch.zeros(64, 8))
        dead(self.a, 4)
    def forward(self, x): return self.f(self, x)

def as_float(m, x):
    "As norms do."
    h = m.a(x).float()
    return m.b((h*h.mean(1, keepdim=True).rsqrt().nan_to_num(1.)).to(x.dtype))
def new_memory(m, x):
    y = torch.zeros(len(x), 8)
    y[:,:8] = m.a(x)
    return m.b(y.to(x.dtype))
def in_steps(m, x): return m.b(m.l(m.a(x)[None])[0][0])
def attends(m, x): return m.b(m.at(*[m.a(x)[None]]*3)[0][0])
def spectrum(m, x): return m.b(torch.fft.irfft(torch.fft.rfft(m.a(x)), n=8))
def cached(m, x):
    m.cache.setdefault('k', m.a.weight.sum(0))
    return m.b(m.a(x))

@pytest.mark.parametrize('f,others', [(as_float,{}), (new_memory,{}), (spectrum,{}), (cached,dict(cache={})),
    (in_steps,dict(l=nn.LSTM(8, 8, batch_first=True))), (attends,dict(at=nn.MultiheadAttention(8, 2, batch_first=True)))])
def test_code_that_names_a_precision_is_judged_in_float64(f, others):
    net,x = Net(f, **others).eval(),torch.randn(5, 6)
    con = Condenser(net, x)
    c = con.condense()
    assert con.reference.dtype is torch.float64 and con.reference.pieces and c.report.max_error <= 1e-12
    wrong = deepcopy(c.model)
    wrong.b.bias.data[1] += 1e-6
    assert con.reference.error(wrong, c.inputs, con.found.exact) > con.reference.tolerance
    assert not any(t.dtype==torch.float64 for m in (net,c.model) for t in tensors_in(list(m.__dict__.get('cache', {}).values())))

def writes(m, x):
    m.memory[:len(x)] = m.a(x)
    return m.b(m.memory[:len(x)]*1)
def checks(m, x):
    if m.a.weight.dtype!=x.dtype: raise TypeError('another precision')
    return m.b(m.a(x))
def only_float(m, x):
    if x.dtype==torch.float64: raise TypeError('no float64')
    return m.b(m.a(x))

@pytest.mark.parametrize('f,dtype,found', [(writes,torch.float32,torch.float64), (checks,torch.float32,torch.float64),
    (only_float,torch.float32,None), (only_float,torch.bfloat16,torch.float32)])
def test_what_does_not_run_so_is_copied_or_judged_in_less(f, dtype, found):
    net,x = Net(f).to(dtype).eval(),torch.randn(5, 6).to(dtype)
    con = Condenser(net, x)
    c = con.condense()
    assert con.reference.dtype is found and not con.reference.pieces and c.report.max_error <= con.reference.tolerance < 1e-5
    assert c.model.a.out_features==(8 if f is writes else 4)
    wrong = deepcopy(c.model)
    wrong.b.bias.data[1] += .01
    assert con.reference.error(wrong, c.inputs) > con.reference.tolerance

@pytest.mark.parametrize('f', [lambda m, x: m.b(m.a(x)) + float(np.random.rand()), lambda m, x: m.b(m.a(x))*float(np.random.rand())])
def test_what_is_other_each_time_is_not_taken_for_noise(f):
    with pytest.raises(ValueError, match='even an unchanged copy of Net differs'): Condenser(Net(f).eval(), torch.randn(5, 6)).condense()

# ---- each channel by its own size

class Outputs(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.l,self.f = nn.Linear(4, 6),f
    def forward(self, x): return self.f(self.l(x))

scale = torch.tensor([1e4,1e4,1.,1.,1.,1e-4])
forms = dict(columns=(lambda y: y*scale, 'channel 5 of the output'),
    names=(lambda y: dict(boxes=y[:,:2]*1e4, scores=y[:,2:]*scale[2:]), "channel 3 of output 'scores'"),
    images=(lambda y: (y*scale)[:,:,None,None].expand(-1, -1, 3, 2), 'channel 5 of the output'),
    tokens=(lambda y: (y*scale)[:,None].expand(-1, 7, -1), 'channel 5 of the output along dimension 2'),
    boxes=(lambda y: (y*scale)[:,None,None].expand(-1, 3, 2, -1), 'channel 5 of the output along dimension 3'),
    pairs=(lambda y: [y[:,:5], (y[:,1:3], y*scale)], 'channel 5 of output 1, 1'))

@pytest.mark.parametrize('name', forms)
def test_an_error_in_a_small_channel_is_found_and_named(name):
    f,where = forms[name]
    net = Outputs(f).eval()
    reference,other = Reference(net, torch.randn(5, 4)),deepcopy(net)
    assert reference.error(other)==0
    with torch.no_grad(): other.l.weight[5] *= 1+1e-6
    assert 1e-8 < reference.error(other) < 1e-5 and str(reference.worst)==where
    assert not reference.noises.get(0, [torch.zeros(1)])[0].max() > 1e-10

class Nearly(nn.Module):
    "An output of sums that cancel out."
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(8, 64),nn.Linear(64, 3)
        dead(self.a, 20)
        with torch.no_grad(): self.a.bias[:20] = torch.rand(20)
    def forward(self, x):
        h = self.a(x).sigmoid()
        y = self.b(h)
        return torch.cat([y, y[:,:1]-(h*self.b.weight[0]).sum(1, keepdim=True)-self.b.bias[0]], 1)

def test_a_channel_of_nothing_but_rounding_is_judged_by_that():
    net,x = Nearly().double().eval(),torch.randn(6, 8).double()
    con = Condenser(net, x)
    reference,small = Reference(net, x),deepcopy(net)
    order = torch.randperm(64)
    with torch.no_grad():
        for p in (small.a.weight,small.a.bias): p.copy_(p[order])
        small.b.weight.copy_(small.b.weight[:,order])
    error = reference.error(small)
    assert 0 < error <= reference.tolerance and reference.noises, 'the same network with its neurons in another order'
    real = float((small(x)-net(x))[:,3].abs().max().detach())
    assert reference.noise(0)[0][:,3].max() < 30*real + 1e-15, 'noise is far more than another order makes'
    class Off(nn.Module):
        def __init__(self, at):
            super().__init__()
            self.m,self.at = small,at
        def forward(self, x): return self.m(x) + 1e-9*F.one_hot(torch.tensor(self.at), 4)
    for n in range(4): assert reference.error(Off(n)) > reference.tolerance and reference.worst.number==n
    c = con.condense()
    assert c.model.a.out_features==64 and not c.report.kept or c.report.max_error <= con.reference.tolerance

def test_noise_is_that_of_another_order():
    net,x = nn.Sequential(*[l for _ in range(5) for l in (nn.Linear(64, 64), nn.Tanh())]).double().eval(),torch.randn(16, 64).double()
    reference,other = Reference(net, x),reordered(net, x)
    xs,((_,out),) = reference.cases[0]
    real = (other(*xs)-out).abs().amax(0)
    found = reference.noise(0)[0].amax(0)
    assert real.max()>0 and .1 < (found.median()/real.median()) < 10

def test_channels_are_compared_with_what_is_infinite_in_them():
    t,inf,nan = torch.tensor,torch.inf,torch.nan
    same = [t([[1.,-inf]]),t([[1.,nan]]),torch.zeros(2, 3),torch.zeros(0, 3),t(1.),t([True])]
    other = [([[1.,inf]],[[1.,-inf]]), ([[1.,nan]],[[nan,1.]]), ([[0.]],[[1.]]), ([[nan]],[[inf]]), ([1.],[[1.]])]
    for a in same: assert compare_channels('', a, a.clone()).error==0
    for a,b in other: assert compare_channels('', t(a), t(b)).error==inf
    found = compare_channels('', t([[1.,100.],[2.,50.]]), t([[1.,100.],[2.5,51.]]))
    assert (found.error,found.number,found.difference,found.size)==(.25,0,.5,2.)

# ---- what it takes

class Counted(nn.Module):
    n = 0
    def __init__(self, m):
        super().__init__()
        self.m = m
    def forward(self, x):
        Counted.n += 1
        return self.m(x)

@pytest.mark.parametrize('side,fixed,items', [(8,False,[(2,8),(3,12)]), (64,False,[(2,64),(3,32)]), (64,True,[(2,64),(1,64)])])
def test_each_network_is_run_twice_in_float64(side, fixed, items):
    head = [nn.Flatten(), nn.Linear(4*(side-4)**2, 2)] if fixed else [nn.AdaptiveAvgPool2d(1)]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), *head)
    dead(net[0], 4)
    con,Counted.n = Condenser(Counted(net).eval(), torch.randn(4, 3, side, side)),0
    c = con.condense()
    assert [(len(x[0]),x[0].shape[-1]) for x,_ in con.reference.cases]==items and c.report.removed
    assert Counted.n==1 + 2 + 2 + fixed, 'the trial is sketched, both run twice; another resolution is tried once'

@pytest.mark.parametrize('name', ['resnet18','swin_t','shufflenet_v2_x0_5','levit_128s', *soak('vit_b_16','densenet121',
    'convnext_tiny','mobilenet_v3_small','lraspp_mobilenet_v3_large','xcit_nano_12_p16_224')])
def test_a_sketch_has_the_operations_and_forms_of_what_is_performed(name):
    net,x = network(name)
    def _forms(traced): return [(o.name,o.place,o.line,[tuple(t.shape) for t in tensors_in(o.out)]) for o in traced.ops]
    assert _forms(trace_forms(net, x, one_operation))==_forms(trace(net, x, one_operation))

@pytest.mark.parametrize('f', [lambda m, x: m.b(m.a(x))[:int((x>0).sum().item())>=0], lambda m, x: m.b(m.a(x)[(x[:,0]<9).nonzero()[:,0]])])
def test_a_sketch_knows_when_values_are_asked_for(f):
    net,x = Net(f).eval(),torch.randn(5, 6)
    assert [o.name for o in trace_forms(net, x).ops]==[o.name for o in trace(net, x).ops] and trace_forms(net, x).output.shape==net(x).shape
    c = Condenser(net, x).condense()
    assert torch.allclose(c.model(x), net(x), atol=1e-6)

def test_a_sketch_tells_what_is_wrong_as_capture_does():
    cases = [(nn.Linear(4, 3),(2,5)), (nn.Conv2d(3, 4, 3),(2,5,8,8)), (nn.BatchNorm2d(3),(2,4,5,5)),
        (nn.LayerNorm(4),(2,5)), (nn.GroupNorm(2, 4),(2,6,5))]
    for m,shape in cases:
        x = torch.randn(shape)
        with pytest.raises(ValueError) as a: trace(m, x)
        with pytest.raises(ValueError) as b: trace_forms(m, x)
        assert str(a.value)==str(b.value)

@pytest.mark.parametrize('inplace', [False,True])
def test_only_what_is_cut_is_copied_before_all_is_verified(inplace, monkeypatch):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    dead(net[0], 4)
    x,dense = torch.randn(4, 6),deepcopy(net)
    con = Condenser(net, x)
    c = con.condense(inplace=inplace)
    memory = {t.data_ptr() for t in net.parameters()}
    assert (c.model is net)==inplace and (inplace or not memory & {t.data_ptr() for t in c.model.parameters()})
    assert torch.allclose(c.model(x), dense(x), atol=1e-6)

# ---- the report

def why(graph, dead, plan, spared, round_to):
    "Reasons asked for one unit at a time."
    found = {}
    for u in dead.tolist():
        cases = [*((r, u in us.tolist()) for us,r in graph.pins),
            ('carries the constants of dead channels over a padded border', bool(plan.constant_carriers[u])),
            ('the last unit of its layer', bool(plan.last_survivors[u])),
            (f'the width is a multiple of {round_to}', bool(plan.rounded[u])),
            ('removing units of this layer changed the output', any(u in us.tolist() for _,us in spared)),
            *((r, u in us.tolist()) for us,r in graph.borders),
            *((r, bool(graph.needed[u]) and u in us.tolist()) for us,r in graph.lost),
            *((f'tied to a unit that is needed, of {r.layer!r}', bool(graph.needed[u]) and u in r.rows[r.connectivity.any(1)].tolist()) for r in graph.reads),
            ('tied to a unit that is needed', bool(graph.needed[u])),
            ('may not be removed', True)]
        reason = next(r for r,holds in cases if holds)
        found[reason] = found.get(reason, 0)+1
    return found

@pytest.mark.parametrize('name', ['shufflenet_v2_x0_5', *soak('mobilenet_v3_small','xcit_nano_12_p16_224','nf_regnet_b0')])
def test_reasons_are_those_of_each_unit(name):
    net,x = network(name)
    con = Condenser(zeroed(net, x, 'independent'), x, round_to=4)
    c = con.condense(verify=False)
    plan,reasons = con.found.plan,con.reasons
    for r in con.graph.reads[::3]:
        units = r.rows[~r.connectivity.any(1) & plan.keep[r.rows]]
        assert reasons.of(units)==why(con.graph, units, plan, [], 4)
        silent = r.cols[~r.connectivity.any(0)]
        for n in silent.tolist():
            makers = {w for us,w in con.graph.pins if w.startswith('made by') and n in us.tolist()}
            assert {w for w,made in reasons.made.items() if made[n]}==makers

@pytest.mark.parametrize('name', ['nf_regnet_b0','resnet18'])
def test_the_report_takes_little_of_the_time(name, monkeypatch):
    from time import process_time
    seconds,report = [],Condenser._report
    def _timed(self, *args):
        start = process_time()
        out = report(self, *args)
        seconds.append(process_time()-start)
        return out
    monkeypatch.setattr(Condenser, '_report', _timed)
    net,x = network(name)
    net = zeroed(net, x, 'independent')
    shares = []
    for _ in range(3):
        start = process_time()
        Condenser(net, x).condense()
        shares.append(seconds[-1]/(process_time()-start))
    assert min(shares) <= .1, shares

class Counting(nn.Module):
    "Most of `a` is dead, in heads of a size that stands in the code, and half of `c`, whose number of neurons the code uses."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c,self.d = nn.Linear(6, 8),nn.Linear(8, 8),nn.Linear(8, 8),nn.Linear(8, 2)
        for l,n in ((self.a,6),(self.b,2),(self.c,4)): dead(l, n)
    def forward(self, x):
        h = self.a(x).view(len(x), 2, 4).transpose(1, 2).relu().flatten(1)
        return self.d(self.c(self.b(h).relu()).relu())*self.c.out_features

def test_bisection_looks_at_the_analysis_that_was_made_last():
    search = Search(Counting().eval(), (torch.randn(5, 6),))
    first = search.graph
    found,error = search.find()
    assert search.graph is not first and search.graph.n_units!=first.n_units
    for name,units in search.rejected: assert name.startswith('c.') and torch.equal(units, search.graph.bound[name,0])
    assert error <= 1e-10 and [m.out_features for m in (found.model.a,found.model.b,found.model.c)]==[8,6,8]
