"""Sizes in the code: those that stand in attributes, layers and shapes change with the units that they count, others do not.

And heads of attention, however they are told apart, and whatever is done to each of them."""
import pickle
from copy import deepcopy
import pytest, torch
from torch import nn
from torch.nn import functional as F
from fasterprune.all import Condenser, Sparsifier, load_condensed
from fasterprune.graph.graph import Graph
from fasterprune.graph.interpreter import failed_rules
from support.nets import gap

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

class Net(nn.Module):
    "Computes `run(self, *inputs)`; has layers and other attributes."
    def __init__(self, run, **attrs):
        super().__init__()
        for k,v in attrs.items(): setattr(self, k, v)
        self.run = run
    def forward(self, *xs): return self.run(self, *xs)

@torch.no_grad()
def dead(layer, *rows, dim=0):
    "Outputs `rows` of a layer are zero."
    layer.weight.transpose(0, dim)[list(rows)] = 0
    if layer.bias is not None: layer.bias[list(rows)] = 0
    return layer

def condensed(net, *xs, verify=False):
    "Condensed by analysis alone, unless `verify`: exact for other batch sizes, and once more for what is left."
    net,xs = net.double().eval(),[x.double() if x.is_floating_point() else x for x in xs]
    c = Condenser(net, tuple(xs)).condense(verify=verify)
    for n in (2,5):
        batch = [x[torch.arange(n)%len(x)] for x in xs]
        assert gap(net, c, *batch) <= 1e-10
    again = Condenser(c.model, c.inputs(*xs) if len(xs)>1 else (c.inputs(*xs),)).condense(verify=verify)
    assert again.report.params_after==c.report.params_after, 'what is left can be condensed again, and nothing more goes'
    return c

def width(c, *names): return [l.out_channels if hasattr(l := c.model.get_submodule(n), 'out_channels') else l.out_features for n in names]

# ---- a constant of the code comes first

first = dict(
    type_as=lambda k, h: h*k.type_as(h),
    to=lambda k, h: h*k.to(h),
    where=lambda k, h: torch.where(k>0, h, k),
    masked_fill=lambda k, h: h + k.masked_fill(h[:,:1]>0, 1),
    lerp=lambda k, h: k.lerp(h, .5),
    maximum=lambda k, h: torch.maximum(k-9, h),
    power=lambda k, h: h*(2+k)**h.tanh(),
    sub=lambda k, h: 1-h+k,
    expand_as=lambda k, h: h + k.expand_as(h),
    broadcast=lambda k, h: h*k.broadcast_to(h.shape),
    new=lambda k, h: h*k.new_ones(1),
    full_like=lambda k, h: h + torch.full_like(k, .5),
    addcmul=lambda k, h: torch.addcmul(k, h, h),
    clone=lambda k, h: h*k.clone().contiguous().detach(),
    rsub=lambda k, h: torch.rsub(k, h),
    atan2=lambda k, h: torch.atan2(k+1, h),
    stack=lambda k, h: torch.stack([k.expand_as(h), h], 1).sum(1),
    dropout=lambda k, h: h*F.dropout(k, .5, False),
    copied=lambda k, h: h + k.expand_as(h).clone().copy_(h),
    cumsum=lambda k, h: h*k.cumsum(0)[:1])

@pytest.mark.parametrize('name', first)
def test_a_constant_may_come_first(name):
    def run(m, x): return m.b(first[name](torch.full((len(x),1), .5, dtype=x.dtype), m.a(x).relu()))
    net = Net(run, a=dead(nn.Linear(6, 8), 0, 1, 2), b=nn.Linear(8, 3))
    c = condensed(net, torch.randn(4, 6))
    assert width(c, 'a')==[5] or c.report.kept

def test_a_rule_that_fails_is_a_barrier_with_a_name(monkeypatch):
    from fasterprune.graph import rules
    def _fails(graph, op, *args): raise IndexError('of a rule')
    monkeypatch.setitem(rules.rules, 'sigmoid', _fails)
    net = Net(lambda m, x: m.c(m.b(m.a(x).relu()).sigmoid()), a=dead(nn.Linear(6, 8), 0, 1, 2), b=dead(nn.Linear(8, 8), 0, 1), c=nn.Linear(8, 3))
    c = condensed(net, torch.randn(4, 6))
    assert width(c, 'a', 'b')==[5,8] and any('sigmoid' in k['reason'] and 'IndexError: of a rule' in k['reason'] for k in c.report.kept)
    assert len(failed_rules)==2 and {f[0] for f in failed_rules}=={'sigmoid'} # of the network and of what is left
    Sparsifier(net, 'neuron', 'local', sample=torch.randn(4, 6).double()).sparsify(.5)
    failed_rules.clear()

def test_places_where_a_condition_holds():
    net = Net(lambda m, x: m.b(h := m.a(x).relu()) + torch.where(h>0)[1].sum(), a=dead(nn.Linear(6, 8), 0, 1, 2), b=nn.Linear(8, 3))
    n = len(failed_rules)
    assert width(condensed(net, torch.randn(4, 6)), 'a')==[8] and len(failed_rules)==n

# ---- parts of 16 channels, of which every second one is dead

def parted(run, right=8, **attrs):
    "A layer whose outputs are parted by `run`, and how many of them are needed."
    def joined(m, x): return m.b(torch.cat([o.sigmoid() if i else o for i,o in enumerate(run(m, m.a(x)))], 1))
    net = Net(joined, a=nn.Conv2d(3, 16, 1), b=nn.Conv2d(16, 4, 1), **attrs)
    with torch.no_grad(): net.b.weight[:,::2] = 0
    return net,right

class Box(nn.Module):
    def __init__(self, **attrs):
        super().__init__()
        for k,v in attrs.items(): setattr(self, k, v)

same = dict(
    by_size=lambda: parted(lambda m, y: y.split(m.c, 1), c=8),
    by_sizes=lambda: parted(lambda m, y: y.split([m.c,m.c], 1), c=8),
    by_list=lambda: parted(lambda m, y: y.split([m.c]*2, 1), c=8),
    by_function=lambda: parted(lambda m, y: torch.split(y, (m.c,m.d), 1), c=8, d=8),
    by_tuple=lambda: parted(lambda m, y: y.split(m.cs, 1), cs=(8,8)),
    by_list_of_three=lambda: parted(lambda m, y: y.split(m.cs, 1), cs=[4,4,8]),
    by_slices=lambda: parted(lambda m, y: (y[:,:m.c],y[:,m.c:]), c=8),
    from_behind=lambda: parted(lambda m, y: (y[:,:-m.c],y[:,-m.c:]), c=4),
    uneven=lambda: parted(lambda m, y: (y[:,:m.c],y[:,m.c:]), c=6),
    by_narrow=lambda: parted(lambda m, y: (y.narrow(1, 0, m.c),y.narrow(1, m.c, m.d)), c=6, d=10),
    multiples=lambda: parted(lambda m, y: (y[:,:m.c],y[:,m.c:2*m.c],y[:,2*m.c:]), c=4),
    rest=lambda: parted(lambda m, y: y.split([m.c,y.shape[1]-m.c], 1), c=6),
    of_a_layer=lambda: parted(lambda m, y: y.split([m.l.in_channels,m.k.num_features], 1), 16, l=nn.Conv2d(4, 4, 1), k=nn.BatchNorm2d(12)),
    halves=lambda: parted(lambda m, y: (y[:,:y.shape[1]//2],y[:,y.shape[1]//2:])),
    half_of_an_attribute=lambda: parted(lambda m, y: (y[:,:m.n//2],y[:,m.n//2:]), n=16),
    paths=lambda: parted(lambda m, y: y.split(m.n//m.k, 1), n=16, k=2),
    chunks=lambda: parted(lambda m, y: y.chunk(4, 1)),
    of_a_part=lambda: parted(lambda m, y: y.split(m.box.c, 1), box=Box(c=8)),
    same_value=lambda: parted(lambda m, y: y.split([m.c,m.d], 1), c=8, d=8, e=8),
    literal=lambda: parted(lambda m, y: y.split([8,8], 1), 16),
    literal_size=lambda: parted(lambda m, y: y.split(8, 1), 16),
    literal_slices=lambda: parted(lambda m, y: (y[:,:6],y[:,6:]), 11))

@pytest.mark.parametrize('name', same)
def test_parts(name):
    net,right = same[name]()
    values = {k:v for k,v in vars(net).items() if type(v) is int}
    c = condensed(net, torch.randn(2, 3, 5, 5))
    assert width(c, 'a')==[right]
    if name=='same_value': assert (c.model.c,c.model.d,c.model.e)==(4,4,8), 'the attributes that the code reads, and no others'
    assert all(getattr(net, k)==v for k,v in values.items()), 'the dense network keeps its own'

def test_channels_that_are_told_apart_by_a_number_of_parts():
    "As in split attention: the parts are as many as ever, whatever the attribute is called, and their channels go."
    def run(m, x):
        y = m.a(x)
        return m.b(y.view(len(y), m.radix, y.shape[1]//m.radix, *y.shape[2:]).sum(1))
    net = Net(run, radix=2, a=dead(nn.Conv2d(3, 16, 1), 1, 3, 9, 11), b=nn.Conv2d(8, 2, 1))
    c = condensed(net, torch.randn(2, 3, 5, 5))
    assert width(c, 'a')==[12] and c.model.radix==2

def test_sizes_that_code_reads_from_a_layer():
    "As in networks that split what comes before by the widths of what comes after."
    def run(m, x):
        a,b = m.a(x).relu().split([m.block[0].in_channels,m.c.in_channels], 1)
        return m.d(torch.cat([m.block(a), m.c(b)], 1))
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    net = Net(run, a=dead(nn.Conv2d(3, 12, 1), 0, 1, 5, 6, 11), block=block, c=nn.Conv2d(8, 6, 3, padding=1), d=nn.Conv2d(10, 2, 1))
    c = condensed(net, torch.randn(2, 3, 6, 6))
    assert width(c, 'a')==[7] and c.model.block[0].in_channels==2 and c.model.c.in_channels==5

class Conv1D(nn.Module):
    "As GPT-2 has it: the view takes the outputs from one of two attributes of the same value."
    def __init__(self, nf, nx):
        super().__init__()
        self.nf,self.nx,self.weight,self.bias = nf,nx,nn.Parameter(torch.randn(nx, nf)),nn.Parameter(torch.randn(nf))
    def forward(self, x): return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(x.size()[:-1]+(self.nf,))

def test_of_two_attributes_with_one_value_the_right_one():
    net = Net(lambda m, x: m.c(m.b(m.a(x)).relu()), a=nn.Linear(6, 8), b=Conv1D(8, 8), c=nn.Linear(8, 3))
    with torch.no_grad():
        net.b.weight[:,:3] = 0
        net.b.bias[:3] = 0
    c = condensed(net, torch.randn(2, 5, 6))
    assert (c.model.b.nf,c.model.b.nx)==(5,8) and tuple(c.model.b.weight.shape)==(8,5)

# ---- a vector becomes channels

def decoder(shaped, **attrs):
    "16 channels of 4x4 positions, of which four are dead."
    def run(m, x): return m.e(m.d(shaped(m, m.a(x).relu())).relu())
    a = dead(nn.Linear(6, 256), *range(32), *range(64, 96))
    return Net(run, a=a, d=nn.ConvTranspose2d(16, 8, 4, 2, 1), e=nn.Conv2d(8, 3, 3), **attrs)

shapes = dict(
    of_the_next=lambda: decoder(lambda m, y: y.view(-1, m.d.in_channels, 4, 4)),
    attribute=lambda: decoder(lambda m, y: y.view(-1, m.ch, 4, 4), ch=16),
    all_attributes=lambda: decoder(lambda m, y: y.view(len(y), m.ch, m.side, m.side), ch=16, side=4),
    shape=lambda: decoder(lambda m, y: y.view(-1, *m.shape), shape=(16,4,4)),
    list=lambda: decoder(lambda m, y: y.reshape([-1]+m.shape), shape=[16,4,4]),
    unflatten=lambda: decoder(lambda m, y: y.unflatten(1, (m.ch,4,4)), ch=16),
    module=lambda: decoder(lambda m, y: m.un(y), un=nn.Unflatten(1, (16,4,4))),
    sequential=lambda: decoder(lambda m, y: m.un(y), un=nn.Sequential(nn.ReLU(), nn.Unflatten(1, (16,4,4)))),
    open=lambda: decoder(lambda m, y: y.view(len(y), -1, 4, 4)),
    computed=lambda: decoder(lambda m, y: y.view(len(y), y.shape[1]//16, 4, 4)),
    literal=lambda: decoder(lambda m, y: y.view(-1, 16, 4, 4)))

@pytest.mark.parametrize('name', shapes)
def test_a_vector_becomes_channels(name):
    net = shapes[name]()
    c = condensed(net, torch.randn(4, 6))
    assert width(c, 'a')==[256 if name=='literal' else 192] and c.model.d.in_channels==(16 if name=='literal' else 12)
    if name=='shape': assert c.model.shape==(12,4,4)
    if name=='list': assert c.model.shape==[12,4,4] and net.shape==[16,4,4]
    if name=='module': assert tuple(c.model.un.unflattened_size)==(12,4,4)
    if name!='literal':
        s = Sparsifier(shapes[name]().eval(), 'neuron', 'local', sample=torch.randn(4, 6))
        assert s.groups[0].n==16, 'each channel is a unit'

# ---- tensors that the code makes

made = dict(
    new_zeros=lambda m, x: x.new_zeros(len(x), m.h, *x.shape[2:]),
    zeros=lambda m, x: torch.zeros(len(x), m.h, x.shape[2], x.shape[3], dtype=x.dtype),
    of_a_layer=lambda m, x: x.new_zeros(len(x), m.n.out_channels, *x.shape[2:]),
    of_a_weight=lambda m, x: x.new_zeros(len(x), m.n.weight.shape[0], *x.shape[2:]),
    new_full=lambda m, x: x.new_full((len(x),m.h,*x.shape[2:]), 0),
    full=lambda m, x: torch.full((len(x),m.h,*x.shape[2:]), 0., dtype=x.dtype),
    like=lambda m, x: torch.zeros_like(m.n(torch.cat([x, x.new_zeros(len(x), m.h, *x.shape[2:])], 1))))

class ConvGRU(nn.Module):
    "A recurrent cell written by hand, over four steps."
    def __init__(self, start, c=3, h=8):
        super().__init__()
        self.start,self.h = start,h
        self.z,self.r,self.n = [nn.Conv2d(c+h, h, 3, padding=1) for _ in range(3)]
        self.out = nn.Conv2d(h, 2, 1)
    def forward(self, x):
        h = self.start(self, x)
        for t in range(4):
            z,r = [f(torch.cat([x*(t+1), h], 1)).sigmoid() for f in (self.z,self.r)]
            h = (1-z)*h + z*self.n(torch.cat([x, r*h], 1)).tanh()
        return self.out(h)

class ConvLSTM(nn.Module):
    "Four gates in one convolution."
    def __init__(self, start, c=3, h=8):
        super().__init__()
        self.start,self.h,self.gates,self.out = start,h,nn.Conv2d(c+h, 4*h, 3, padding=1),nn.Conv2d(h, 2, 1)
    def forward(self, x):
        h = c = self.start(self, x)
        for t in range(3):
            i,f,o,g = self.gates(torch.cat([x+t, h], 1)).split(self.h, 1)
            c = f.sigmoid()*c + i.sigmoid()*g.tanh()
            h = o.sigmoid()*c.tanh()
        return self.out(h)

@pytest.mark.parametrize('name', made)
def test_a_state_that_starts_at_zero_stays_there_if_its_candidate_is_dead(name):
    net = ConvGRU(made[name])
    for l in (net.z,net.r,net.n): dead(l, 0, 3, 4)
    c = condensed(net, torch.randn(2, 3, 6, 6))
    assert width(c, 'z', 'r', 'n')==[5]*3 and c.model.h==(8 if name in ('of_a_layer','of_a_weight') else 5)

@pytest.mark.parametrize('name', ['new_zeros','zeros'])
def test_all_gates_of_a_cell_in_one_layer(name):
    net = ConvLSTM(made[name])
    dead(net.gates, *[8*g+i for g in range(4) for i in (0,3,4)])
    c = condensed(net, torch.randn(2, 3, 6, 6))
    assert width(c, 'gates')==[20] and c.model.h==5

def test_a_cell_of_linear_layers():
    def run(m, x):
        h = x.new_zeros(len(x), m.width)
        for t in range(x.shape[1]): h = (m.i(x[:,t]) + m.s(h)).tanh()
        return m.o(h)
    net = Net(run, width=8, i=dead(nn.Linear(4, 8), 1, 2), s=dead(nn.Linear(8, 8), 1, 2), o=nn.Linear(8, 2))
    assert width(condensed(net, torch.randn(3, 5, 4)), 'i', 's')==[6,6]

def test_a_start_that_is_not_zero_stays():
    net = ConvGRU(lambda m, x: x.new_ones(len(x), m.h, *x.shape[2:]))
    for l in (net.z,net.r,net.n): dead(l, 0, 3, 4)
    assert width(condensed(net, torch.randn(2, 3, 6, 6)), 'z')==[8]

# ---- heads

class Attention(nn.Module):
    "Four heads of eight numbers, two of them dead, told apart by `parts` and put together by `meet`."
    def __init__(self, parts, meet, d=32, h=4, kv=4):
        super().__init__()
        self.num_heads,self.num_kv_heads,self.head_dim,self.scale = h,kv,d//h,(d//h)**-.5
        self.parts,self.meet = parts,meet
        angle = torch.outer(torch.arange(64.), 100**-(torch.arange(0, d//h, 2)/(d//h))).repeat(1, 2)
        self.register_buffer('cos', angle.cos(), persistent=False)
        self.register_buffer('sin', angle.sin(), persistent=False)
        self.bias = nn.Embedding(64, h)
        self.slopes = nn.Parameter(torch.rand(h, 1, 1))
    def forward(self, x, *more):
        q,k,v = self.parts(self, x)
        y = self.meet(self, q, k, v, *more)
        return self.o(y.transpose(1, 2).reshape(len(x), x.shape[1], -1))

def attention(parts, meet, kv=4, rows=None):
    "Half of the heads are dead: the first ones, or `rows` of a layer that makes all three."
    net = Attention(parts, meet, kv=kv)
    net.o = nn.Linear(32, 32)
    if rows: net.qkv = dead(nn.Linear(32, 96), *rows)
    else: net.q,net.k,net.v = [dead(nn.Linear(32, 8*n), *range(4*n)) for n in (4,kv,kv)]
    return net

def three(m, x):
    layers = (m.q,m.num_heads),(m.k,m.num_kv_heads),(m.v,m.num_kv_heads)
    return [f(x).view(len(x), x.shape[1], n, -1).transpose(1, 2) for f,n in layers]

def by_hand(m, q, k, v, *bias):
    a = q@k.transpose(2, 3)*m.scale
    for b in bias: a = a+b
    return a.softmax(-1)@v

def rotated(m, y):
    "By tables of angles, in halves."
    a,b = y.chunk(2, -1)
    return y*m.cos[:y.shape[2]] + torch.cat((-b,a), -1)*m.sin[:y.shape[2]]

def interleaved(m, y):
    "By tables of angles, in pairs."
    a,b,cos,sin = y[...,::2],y[...,1::2],m.cos[:y.shape[2],:4],m.sin[:y.shape[2],:4]
    return torch.stack([a*cos-b*sin, b*cos+a*sin], -1).flatten(-2)

def relative(m, t):
    "A bias for each head, by how far apart two positions are."
    i = torch.arange(t)
    return m.bias((i[:,None]-i[None]).abs()).permute(2, 0, 1)[None]

def sloped(m, t): return m.slopes*torch.arange(t)

def repeated(m, y): return y[:,:,None].expand(-1, -1, m.num_heads//m.num_kv_heads, -1, -1).reshape(len(y), -1, *y.shape[2:])

sdpa = F.scaled_dot_product_attention
first_rows = [i for g in range(3) for i in range(32*g, 32*g+16)]
def joint(m, x, *sizes): return m.qkv(x).view(len(x), x.shape[1], *sizes)
told = dict(
    qkv_heads_open=lambda: (lambda m, x: joint(m, x, 3, m.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0), first_rows),
    qkv_heads_dim=lambda: (lambda m, x: joint(m, x, 3, m.num_heads, m.head_dim).permute(2, 0, 3, 1, 4).unbind(0), first_rows),
    open_heads_dim=lambda: (lambda m, x: joint(m, x, 3, -1, m.head_dim).permute(2, 0, 3, 1, 4), first_rows),
    chunks=lambda: (lambda m, x: [y.unflatten(-1, (m.num_heads,m.head_dim)).transpose(1, 2) for y in m.qkv(x).chunk(3, -1)], first_rows),
    heads_first=lambda: (lambda m, x: joint(m, x, m.num_heads, 3, -1).permute(3, 0, 2, 1, 4), range(48)),
    heads_threefold=lambda: (lambda m, x: joint(m, x, m.num_heads, 3*m.head_dim).transpose(1, 2).chunk(3, -1), range(48)),
    dim_computed=lambda: (lambda m, x: joint(m, x, 3, m.num_heads, m.qkv.out_features//3//m.num_heads).permute(2, 0, 3, 1, 4), first_rows))

@pytest.mark.parametrize('name', told)
@pytest.mark.parametrize('meet', [by_hand, lambda m, *qkv: sdpa(*qkv)], ids=['by_hand','sdpa'])
def test_heads_in_every_order(name, meet):
    parts,rows = told[name]()
    c = condensed(attention(parts, meet, rows=rows), torch.randn(3, 10, 32))
    assert width(c, 'qkv')==[48] and c.model.o.in_features==16

@pytest.mark.parametrize('attr', ['h','nh','n_h','heads','pieces'])
@pytest.mark.parametrize('joint_layer', [True,False])
def test_heads_are_known_by_attention_whatever_they_are_called(attr, joint_layer):
    def parts(m, x):
        n = getattr(m, attr)
        if joint_layer: return joint(m, x, 3, n, -1).permute(2, 0, 3, 1, 4)
        return [f(x).view(len(x), x.shape[1], n, -1).transpose(1, 2) for f in (m.q,m.k,m.v)]
    for meet in (by_hand, lambda m, *qkv: sdpa(*qkv)):
        net = attention(parts, meet, rows=first_rows if joint_layer else None)
        del net.num_heads, net.num_kv_heads
        setattr(net, attr, 4)
        c = condensed(net, torch.randn(3, 10, 32))
        assert c.model.o.in_features==16 and getattr(c.model, attr)==2

def test_scores_by_baddbmm():
    def meet(m, q, k, v, *bias):
        b,h,t,d = q.shape
        q,k,v = [y.reshape(b*h, t, d) for y in (q,k,v)]
        a = torch.baddbmm(torch.zeros(1, dtype=q.dtype).expand(b*h, t, t), q, k.mT, beta=0, alpha=m.scale).softmax(-1)
        return (a@v).view(b, h, t, d)
    c = condensed(attention(three, meet), torch.randn(3, 10, 32))
    assert c.model.o.in_features==16

masks = dict(
    zeros=lambda q: torch.zeros(1, 4, 10, 10, dtype=q.dtype),
    slopes=lambda q: torch.tensor([.5**i for i in range(4)], dtype=q.dtype)[:,None,None]*torch.arange(10))

@pytest.mark.parametrize('name', masks)
def test_a_mask_with_a_number_for_each_head_that_stands_in_the_code_keeps_them(name):
    "By analysis alone: nothing fails."
    c = condensed(attention(three, lambda m, q, k, v: sdpa(q, k, v, masks[name](q))), torch.randn(3, 10, 32))
    assert c.model.o.in_features==32

def test_a_mask_for_each_head_that_is_an_input_keeps_them():
    mask = torch.rand(3, 4, 10, 10)
    c = condensed(attention(three, lambda m, q, k, v, mask: sdpa(q, k, v, mask)), torch.randn(3, 10, 32), mask)
    assert c.model.o.in_features==32

met = dict(
    rotary_tables=lambda m, q, k, v: by_hand(m, rotated(m, q), rotated(m, k), v),
    rotary_tables_sdpa=lambda m, q, k, v: sdpa(rotated(m, q), rotated(m, k), v),
    rotary_interleaved=lambda m, q, k, v: sdpa(interleaved(m, q), interleaved(m, k), v),
    relative=lambda m, q, k, v: by_hand(m, q, k, v, relative(m, q.shape[2])),
    relative_sdpa=lambda m, q, k, v: sdpa(q, k, v, attn_mask=relative(m, q.shape[2])),
    slopes=lambda m, q, k, v: by_hand(m, q, k, v, sloped(m, q.shape[2])),
    slopes_sdpa=lambda m, q, k, v: sdpa(q, k, v, attn_mask=sloped(m, q.shape[2])[None]),
    causal=lambda m, q, k, v: by_hand(m, q, k, v, torch.full((q.shape[2],)*2, -1e4).triu(1)),
    causal_sdpa=lambda m, q, k, v: sdpa(q, k, v, is_causal=True))

@pytest.mark.parametrize('name', met)
def test_what_is_done_to_each_head_does_not_tie_them(name):
    c = condensed(attention(three, met[name]), torch.randn(3, 10, 32))
    assert width(c, 'q', 'k', 'v')==[16]*3 and c.model.num_heads==2
    if 'relative' in name: assert c.model.bias.embedding_dim==2
    if 'slopes' in name: assert len(c.model.slopes)==2

def scores(m, q, k): return q@k.transpose(2, 3)*m.scale
def far(keep, dtype): return (1-keep[:,None,None].to(dtype))*-1e4
keeps = dict(
    added=lambda m, q, k, v, keep: (scores(m, q, k)+far(keep, q.dtype)).softmax(-1)@v,
    filled=lambda m, q, k, v, keep: scores(m, q, k).masked_fill(keep[:,None,None]==0, -1e4).softmax(-1)@v,
    where=lambda m, q, k, v, keep: torch.where(keep[:,None,None]>0, scores(m, q, k), -1e4).softmax(-1)@v,
    multiplied=lambda m, q, k, v, keep: (scores(m, q, k).softmax(-1)*keep[:,None,None])@v,
    for_each_head=lambda m, q, k, v, keep: by_hand(m, q, k, v, far(keep, q.dtype).expand(-1, m.num_heads, -1, -1)),
    sdpa=lambda m, q, k, v, keep: sdpa(q, k, v, attn_mask=keep[:,None,None]>0),
    sdpa_added=lambda m, q, k, v, keep: sdpa(q, k, v, attn_mask=far(keep, q.dtype)),
    queries=lambda m, q, k, v, keep: by_hand(m, q, k, v)*keep[:,None,:,None])

@pytest.mark.parametrize('name', keeps)
def test_a_mask_that_is_an_input_does_not_tie_the_heads(name):
    keep = torch.ones(3, 10, dtype=torch.long).index_fill(1, torch.tensor([7,8]), 0)
    c = condensed(attention(three, keeps[name]), torch.randn(3, 10, 32), keep)
    assert width(c, 'q', 'k', 'v')==[16]*3 and c.model.num_heads==2

def twice(m, y): return y.repeat_interleave(m.num_heads//m.num_kv_heads, 1)
grouped = dict(
    sdpa=lambda m, q, k, v: sdpa(q, k, v, enable_gqa=True),
    repeat_interleave=lambda m, q, k, v: sdpa(q, twice(m, k), twice(m, v)),
    expand=lambda m, q, k, v: by_hand(m, q, repeated(m, k), repeated(m, v)),
    expand_sdpa=lambda m, q, k, v: sdpa(q, repeated(m, k), repeated(m, v)))

@pytest.mark.parametrize('name', grouped)
def test_heads_that_share_keys_and_values_go_with_them(name):
    c = condensed(attention(three, grouped[name], kv=2), torch.randn(3, 10, 32))
    assert width(c, 'q', 'k', 'v')==[16,8,8] and (c.model.num_heads,c.model.num_kv_heads)==(2,1)

def test_code_that_takes_no_other_numbers_than_its_own():
    "What is handed to it while the network is watched are whole numbers of another class."
    def _strict(m, x):
        if type(m.k) is not int: raise TypeError(f'{m.k} is a {type(m.k).__name__}')
        return m.b(m.a(x).relu().view(-1, m.k))
    assert width(condensed(Net(_strict, a=dead(nn.Linear(4, 6), 0, 1), b=nn.Linear(6, 3), k=6), torch.randn(3, 4)), 'a')==[4]

def test_one_head_of_keys_for_all_queries():
    net = attention(three, lambda m, q, k, v: sdpa(q, k, v, enable_gqa=True), kv=1)
    net.k,net.v = nn.Linear(32, 8),nn.Linear(32, 8)
    with torch.no_grad(): net.o.weight[:,:16] = 0
    c = condensed(net, torch.randn(3, 10, 32))
    assert width(c, 'q', 'k', 'v')==[16,8,8] and c.model.num_heads==2

def test_a_gate_for_each_position_does_not_tie_channels():
    "A map of weights over positions, for all channels."
    net = Net(lambda m, x, gate: m.b(m.a(x)*gate.sigmoid()), a=dead(nn.Conv2d(3, 8, 1), 1, 2), b=nn.Conv2d(8, 2, 1))
    xs = torch.randn(2, 3, 6, 6),torch.randn(2, 1, 6, 6)
    assert width(condensed(net, *xs), 'a')==[6]
    assert len(Graph(net.float(), xs).reads[0].rows.unique())==8

# ---- sizes that are read from what comes in, which is wider

class Classic(nn.Module):
    "Attention as it is often written: what the heads make is given the width of the input."
    def __init__(self, d=32, h=4):
        super().__init__()
        self.num_heads,self.scale,self.qkv,self.proj = h,(d//h)**-.5,dead(nn.Linear(d, 3*d), *first_rows),nn.Linear(d, d)
    def forward(self, x):
        B,N,C = x.shape
        q,k,v = self.qkv(x).reshape(B, N, 3, self.num_heads, C//self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(((q*self.scale)@k.transpose(-2, -1)).softmax(-1).matmul(v).transpose(1, 2).reshape(B, N, C))

def test_attention_that_is_reshaped_to_the_width_of_its_input(tmp_path):
    net = nn.Sequential(nn.Linear(6, 32), Classic(), Classic(), nn.Linear(32, 2))
    c = condensed(net, torch.randn(3, 7, 6))
    assert width(c, '1.qkv', '2.qkv')==[48,48] and c.model[1].num_heads==2 and isinstance(c.model[1], Classic)
    x = torch.randn(2, 5, 6).double()
    c.save(tmp_path/'c.safetensors')
    for other in (load_condensed(tmp_path/'c.safetensors', net).model, deepcopy(c.model), pickle.loads(pickle.dumps(c.model)), torch.export.export(c.model, (x,)).module()):
        torch.testing.assert_close(other(x), c.model(x))
    c.model(x).sum().backward()
    assert c.model[1].qkv.weight.grad.shape==(48,32)
    with pytest.raises(RuntimeError): c.model(torch.randn(2, 5, 7).double())

def test_what_is_wrong_without_heads_that_are_gone_is_still_an_error():
    "A size is left open only where nothing else fits."
    from fasterprune.condense.reduced import Reshaped
    with Reshaped([(3,2)]):
        assert torch.zeros(2, 3, 4).reshape(2, 3, 8).shape==(2,3,4) and torch.zeros(2, 12).view(2, 3, 4).shape==(2,3,4)
        for sizes in ((5,3,8), (2,24), (2,3,4,5)):
            with pytest.raises(RuntimeError): torch.zeros(2, 3, 4).reshape(*sizes).shape[9]
