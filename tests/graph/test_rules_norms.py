"Norms without a mean, reductions over units and over what is no batch, matrices that mix nodes, weights that are computed in forward."
from copy import deepcopy
from functools import partial
import pytest, timm, torch
from fastai.basics import DataLoader, DataLoaders, Learner, SGD
import torch.nn.functional as F
from timm.layers import StdConv2d
from timm.layers.grn import GlobalResponseNorm
from timm.models.nfnet import NormFreeNet, _dm_nfnet_cfg
from timm.models.resnetv2 import ResNetV2
from torch import nn
from torch.utils.data import TensorDataset
from fasterprune.all import *
from support.fuzz_nets import Model, zero
from support.nets import gap
from support.zeros import cast, gap as largest_gap, images, pairs, zeroed

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def randn(*shape): return torch.randn(*shape, dtype=torch.float64)
def dead(layer, rows): # outputs that are 0
    zero(layer, rows)
    if layer.bias is not None: layer.bias.data[list(rows)] = 0
    return layer
def condensed(net, *xs, batches=(1,3), tol=1e-10):
    "Condense, and compare at other batch sizes."
    c = Condenser(net, xs if len(xs)>1 else xs[0]).condense()
    assert gap(net, c, *xs) <= tol and c.report.max_error <= tol
    def _other(x, n): return torch.randn(n, *x.shape[1:], dtype=x.dtype) if x.is_floating_point() else x[torch.arange(n)%len(x)]
    for n in batches: assert gap(net, c, *[_other(x, n) for x in xs]) <= tol
    return c

# ---- reductions over units

adds_nothing = dict( # of the layer `a` of a model and its input
    normalize=lambda a, x: F.normalize(a(x), dim=1), normalize_p=lambda a, x: F.normalize(a(x), p=1, dim=-1),
    norm=lambda a, x: a(x).norm(dim=1, keepdim=True), linalg_norm=lambda a, x: torch.linalg.norm(a(x), dim=1)[:,None],
    largest=lambda a, x: torch.linalg.vector_norm(a(x), torch.inf, dim=1)[:,None],
    divided=lambda a, x: (y := a(x))/y.pow(2).sum(1, keepdim=True).sqrt(), by_norm=lambda a, x: (y := a(x))/y.norm(dim=1)[:,None],
    square=lambda a, x: (a(x)*a(x)).sum(-1, True), cosine=lambda a, x: F.cosine_similarity(a(x), a(x.flip(1)), dim=-1)[:,None],
    gram=lambda a, x: (F.normalize(a(x)[:,None], dim=-1)@F.normalize(a(x)[:,:,None], dim=1)).flatten(1),
    distance=lambda a, x: torch.cdist(a(x)[:,None], a(x.flip(1))[:,None]).flatten(1), vecdot=lambda a, x: torch.linalg.vecdot(a(x), a(x.cos()))[:,None],
    inner=lambda a, x: torch.einsum('bi,bi->b', a(x), a(x.cos()))[:,None], product=lambda a, x: (a(x)+1).prod(1, keepdim=True),
    count=lambda a, x: a(x).count_nonzero(1)[:,None]*x[:,:1])

@pytest.mark.parametrize('name', adds_nothing)
def test_what_is_zero_adds_nothing_to_a_reduction_over_units(name):
    f = adds_nothing[name]
    with torch.no_grad(): n = f(nn.Linear(5, 8), torch.randn(2, 5)).shape[1]
    net = Model(lambda m, x: m.b(f(m.a, x)), a=dead(nn.Linear(5, 8), (1,4,6)), b=nn.Linear(n, 3)).double().eval()
    c = condensed(net, randn(2, 5))
    assert len(c.model.a.weight)==5, c.report

@pytest.mark.parametrize('f', [lambda x: x.mean(1, keepdim=True), lambda x: x.std(1, keepdim=True), lambda x: x.softmax(1),
    lambda x: x.logsumexp(1, keepdim=True), lambda x: x.amax(1, keepdim=True),
    lambda x: torch.linalg.vector_norm(x, -1, dim=1, keepdim=True), lambda x: F.pairwise_distance(x, x.flip(0))[:,None]])
def test_a_zero_that_counts_stays(f):
    net = Model(lambda m, x: f(m.a(x)), a=dead(nn.Linear(5, 8), (1,4,6))).double().eval()
    c = condensed(net, randn(3, 5), batches=())
    assert len(c.model.a.weight)==8 and sum(k['units'] for k in c.report.kept)==3

def test_a_constant_that_is_not_zero_stays_in_a_sum_over_units():
    net = Model(lambda m, x: m.a(x).relu().sum(1, keepdim=True), a=zero(nn.Linear(5, 8), (1,4,6))).double().eval()
    net.a.bias.data[[1,4,6]] = torch.tensor([.5,-.5,0.]).double()
    assert len(condensed(net, randn(2, 5)).model.a.weight)==6

# ---- what is no batch

over_parts = dict(mean=lambda xs: torch.stack(xs).mean(0), sum=lambda xs: torch.stack(xs).sum(0), amax=lambda xs: torch.stack(xs).amax(0),
    weighted=lambda xs: (torch.stack(xs)*torch.tensor([.2,.3,.5]).view(3,1,1)).sum(0), softmax=lambda xs: (torch.stack(xs).softmax(0)*torch.stack(xs)).sum(0))

@pytest.mark.parametrize('name', ['mean','sum','amax','weighted','softmax'])
def test_parts_that_are_stacked_are_no_batch(name):
    f,gone = over_parts[name],(1,4,6)
    parts = {k:zero(nn.Linear(5, 8), gone) for k in 'abc'}
    net = Model(lambda m, x: m.d(f([m.a(x), m.b(x), m.c(x)])), **parts, d=nn.Linear(8, 3)).double().eval()
    c = condensed(net, randn(2, 5))
    assert len(c.model.a.weight)==(5 if name!='softmax' else 8) # of which the constants are not known
    for l in (net.a,net.b,net.c): l.bias.data[list(gone)] = 0
    assert len(condensed(net, randn(2, 5)).model.a.weight)==5

@pytest.mark.parametrize('f,n', [(lambda x: x-x.mean(0), 5), (lambda x: x/(x.abs().sum(0)+1), 8), (lambda x: x-x.mean(0, keepdim=True).sigmoid(), 5)])
def test_what_is_done_over_the_batch_mixes_no_units(f, n):
    net = Model(lambda m, x: m.b(f(m.a(x))), a=zero(nn.Linear(5, 8), (1,4,6)), b=nn.Linear(8, 3)).double().eval()
    assert len(condensed(net, randn(4, 5)).model.a.weight)==n # a sum of constants depends on how many there are
    net.a.bias.data[[1,4,6]] = 0
    assert len(condensed(net, randn(4, 5)).model.a.weight)==5

def test_how_large_a_sum_is_depends_on_the_resolution():
    net = Model(lambda m, x: m.b(m.a(x).sum((2,3))), a=zero(nn.Conv2d(3, 8, 1), (1,4,6)), b=nn.Linear(8, 3)).double().eval()
    x = randn(2, 3, 6, 6)
    c = condensed(net, x)
    assert gap(net, c, randn(2, 3, 9, 5)) <= 1e-10 and len(c.model.a.weight)==8

# ---- matrices that mix nodes

adjacent = dict(matmul=lambda a, h: a@h, einsum=lambda a, h: torch.einsum('bij,bjc->bic', a, h) if a.ndim==3 else torch.einsum('ij,bjc->bic', a, h),
    turned=lambda a, h: (h.transpose(1, 2)@a.mT).transpose(1, 2), normed=lambda a, h: a/a.sum(-1, keepdim=True)@h,
    softmax=lambda a, h: a.softmax(-1)@h, residual=lambda a, h: h + a@h, both=lambda a, h: a.mT@(a@h), repeated=lambda a, h: (a if a.ndim==3 else a[None])@h)

@pytest.mark.parametrize('how', ['input', 'one_for_all', 'buffer', 'parameter'])
@pytest.mark.parametrize('name', adjacent)
def test_units_go_through_a_matrix_that_connects_nodes(name, how):
    f,n = adjacent[name],6
    def _run(m, x, a=None):
        a = m.adj if a is None else a
        return m.c(f(a, m.b(f(a, m.a(x))).relu())).mean(1)
    net = Model(_run, a=dead(nn.Linear(5, 8), (1,4,6)), b=dead(nn.Linear(8, 7), (0,2)), c=nn.Linear(7, 3))
    adj = torch.rand(n, n)
    if how=='buffer': net.register_buffer('adj', adj)
    if how=='parameter': net.adj = nn.Parameter(adj)
    net = net.double().eval()
    xs = [randn(4, n, 5)]
    if how=='input': xs.append(torch.rand(4, n, n, dtype=torch.float64))
    if how=='one_for_all': xs.append(torch.rand(n, n, dtype=torch.float64))
    c = condensed(net, *xs, batches=() if how=='one_for_all' else (1,3))
    assert len(c.model.a.weight)==len(c.model.b.weight)==5, c.report

@pytest.mark.parametrize('how', ['input', 'buffer'])
def test_nodes_mixed_before_the_first_layer(how):
    net = Model(lambda m, x, a=None: m.b((m.a((m.adj if a is None else a)@x))).mean(1), a=zero(dead(nn.Linear(5, 8), (1,4,6)), cols=(0,3)), b=nn.Linear(8, 3))
    if how=='buffer': net.register_buffer('adj', torch.rand(6, 6))
    net = net.double().eval()
    c = condensed(net, randn(4, 6, 5), *[torch.rand(4, 6, 6, dtype=torch.float64)]*(how=='input'))
    assert c.model.a.weight.shape==(5,3), c.report

# ---- norms without a mean

class Root(nn.Module):
    "As `how` has it; the scale is `offset` + weight."
    def __init__(self, n, how='llama', offset=0., bias=False, eps=.05):
        super().__init__()
        self.weight,self.how,self.offset,self.eps = nn.Parameter(torch.rand(n)+.5-offset),how,int(offset),eps
        self.bias = nn.Parameter(torch.randn(n)) if bias else None
        if how=='width': self.n = n
    def forward(self, x):
        w = self.weight + self.offset if self.offset else self.weight
        out = getattr(self, self.how)(x, w)
        return out if self.bias is None else out+self.bias
    def llama(self, x, w): return w*(x*torch.rsqrt(x.pow(2).mean(-1, keepdim=True)+self.eps))
    def root(self, x, w): return x/torch.sqrt((x*x).mean(-1, keepdim=True)+self.eps)*w
    def power(self, x, w): return x*(self.eps+x.square().mean(dim=-1, keepdim=True)).pow(-.5)*w
    def reciprocal(self, x, w): return (1/torch.sqrt(x.pow(2).mean(-1)+self.eps))[...,None]*x*w
    def norm(self, x, w): return x/(x.norm(dim=-1, keepdim=True).square()/x.shape[-1]+self.eps).sqrt()*w
    def width(self, x, w): return x/((x**2).sum(-1, keepdim=True)/self.n+self.eps).sqrt()*w
    def torchs(self, x, w): return F.rms_norm(x, (x.shape[-1],), w, self.eps)
    def shaped(self, x, w): return F.rms_norm(x, self.weight.shape, w, self.eps)
    def cast(self, x, w):
        y = x.float()
        return w*(y*torch.rsqrt(y.pow(2).mean(-1, keepdim=True)+self.eps)).to(x.dtype)
    def literal(self, x, w): return w*x*torch.rsqrt(x.pow(2).mean(-1, keepdim=True)+1e-3)

def stream(norm, n=12, gone=(1,4,6,9), vocab=None):
    "A residual stream of which some units are zero everywhere."
    def _run(m, x):
        h = m.start(x)
        for i in (1,2): h = h + m.get_submodule(f'down{i}')(F.silu(m.get_submodule(f'up{i}')(m.get_submodule(f'norm{i}')(h))))
        return m.head(m.last(h))
    parts = {f'{k}{i}':v for i in (1,2) for k,v in (('norm',norm(n)), ('up',nn.Linear(n, 10)), ('down',dead(nn.Linear(10, n), gone)))}
    start,head = nn.Embedding(vocab, n) if vocab else dead(nn.Linear(5, n), gone),nn.Linear(n, vocab or 3, bias=not vocab)
    net = Model(_run, start=start, last=norm(n), head=head, **parts)
    if vocab:
        net.head.weight = net.start.weight
        with torch.no_grad(): net.start.weight[:,list(gone)] = 0
    return net.double().eval()

hows = 'llama root power reciprocal norm width torchs shaped'.split()

@pytest.mark.parametrize('how,offset,bias', [(h,0.,False) for h in hows] + [('llama',1.,False), ('root',0.,True), ('power',1.,True), ('torchs',0.,True)])
def test_dead_units_of_a_stream_go_through_norms_without_a_mean(how, offset, bias, tmp_path):
    net,x = stream(lambda n: Root(n, how, offset, bias)),randn(3, 7, 5)
    old = {k:v.clone() for k,v in net.state_dict().items()}
    c = condensed(net, x)
    assert c.model.last.weight.shape==(8,) and c.model.up1.in_features==c.model.head.in_features==c.model.down2.out_features==8, c.report
    assert c.model.last.eps==pytest.approx(.05*12/8) and net.last.eps==.05 and all(torch.equal(v, old[k]) for k,v in net.state_dict().items())
    assert condensed(c.model, x).report.params_after==c.report.params_after
    c.save(tmp_path/'c.safetensors')
    back = load_condensed(tmp_path/'c.safetensors', net)
    assert torch.equal(back.model(x), c.model(x)) and back.model.last.eps==c.model.last.eps
    with torch.no_grad():
        for l in (c.model.start,c.model.down1,c.model.down2): dead(l, (0,5))
    more = condensed(c.model, x) # cut twice
    assert len(more.model.last.weight)==6
    both = c.then(more)
    both.save(tmp_path/'b.safetensors')
    assert torch.equal(load_condensed(tmp_path/'b.safetensors', net).model(x), more.model(x))

def test_what_is_constant_but_not_zero_adds_to_eps():
    net = Model(lambda m, x: m.b(m.n(m.a(x))), a=zero(nn.Linear(5, 8), (1,4,6)), n=Root(8), b=zero(nn.Linear(8, 3), cols=(1,4,6))).double().eval()
    c = condensed(net, randn(3, 5))
    assert len(c.model.n.weight)==5 and c.model.n.eps==pytest.approx((.05*8+float(net.a.bias.detach()[[1,4,6]].square().sum()))/5)
    with torch.no_grad(): net.b.weight[:,4] = 1. # what comes of it is not constant, and read
    assert len(condensed(net, randn(3, 5)).model.n.weight)==6

def test_a_norm_in_single_precision_only():
    net = stream(lambda n: Root(n, 'cast')).float()
    assert len(condensed(net, torch.randn(3, 7, 5), tol=1e-5).model.last.weight)==8

def test_an_eps_that_stands_in_the_code_keeps_all_units_and_is_named():
    c = condensed(stream(lambda n: Root(n, 'literal')), randn(3, 7, 5))
    assert len(c.model.last.weight)==12 and any('eps that stands in the code' in k['reason'] for k in c.report.kept)

def test_no_norm_is_taken_for_one():
    class Centered(Root):
        def llama(self, x, w): return super().llama(x-x.mean(-1, keepdim=True), w)
    class Other(Root): # the mean is not squared
        def llama(self, x, w): return w*x/(x.abs().mean(-1, keepdim=True)+self.eps)
    for cls in (Centered,Other): assert len(condensed(stream(lambda n: cls(n)), randn(3, 7, 5)).model.last.weight)==12

def test_a_norm_with_a_limit_is_none_however_seldom_it_is_reached():
    class Limited(Root):
        def llama(self, x, w): return w*x*torch.rsqrt(x.pow(2).mean(-1, keepdim=True)+self.eps).clamp(max=2.)
    class Bounded(Root):
        def llama(self, x, w): return w*x*torch.rsqrt(x.pow(2).mean(-1, keepdim=True).clamp(max=1e4)+self.eps)
    for cls in (Limited,Bounded):
        net = stream(lambda n: cls(n))
        c = Condenser(net, randn(3, 7, 5)).condense(verify=False)
        for scale in (1e-2,1.,1e3): assert gap(net, c, randn(3, 7, 5)*scale) <= 1e-10

@pytest.mark.parametrize('make', [lambda n: Root(n), nn.RMSNorm, nn.LayerNorm])
def test_a_norm_that_stands_in_two_places(make):
    net = stream(make)
    net.norm2 = net.norm1
    c = condensed(net, randn(3, 7, 5))
    assert len(c.model.norm1.weight)==(12 if make is nn.LayerNorm else 8) and c.model.norm1 is c.model.norm2

@pytest.mark.parametrize('cls', [nn.LayerNorm,nn.RMSNorm])
@pytest.mark.parametrize('affine', [True,False])
@pytest.mark.parametrize('same', [True,False])
def test_a_norm_that_is_called_twice(cls, affine, same):
    "With the same units dead, or with others; along the same dimension, or along others."
    def _run(m, x): return m.c(m.n(m.a(x))).mean(1) + m.d(m.n(m.b(x.mean(1))) if other else m.n(m.b(x)).mean(1))
    for other in (False,True):
        gone = [1,4,6] if same else [0,2,6]
        parts = dict(a=dead(nn.Linear(5, 8), (1,4,6)), b=dead(nn.Linear(5, 8), gone), n=cls(8, elementwise_affine=affine))
        net = Model(_run, **parts, c=nn.Linear(8, 3), d=nn.Linear(8, 3)).double().eval()
        with torch.no_grad():
            net.c.weight[:,[1,4,6]] = 0
            net.d.weight[:,gone] = 0
        c = condensed(net, randn(3, 7, 5))
        if not other: assert len(c.model.a.weight)==len(c.model.b.weight)==(5 if same else 7), c.report

@pytest.mark.parametrize('make', [lambda: Standard(8, 8, 3, padding=1), lambda: nn.Conv2d(8, 8, 3, padding=1), lambda: nn.Conv2d(8, 8, 3, groups=8)])
@pytest.mark.parametrize('twice', [True,False])
def test_a_layer_that_stands_in_two_places(make, twice):
    def _run(m, x): return m.z(m.q(m.p(m.a(x))) if twice else m.p(m.a(x)))
    net = Model(_run, a=dead(nn.Conv2d(3, 8, 1), (0,1,2)), p=dead(make(), (0,1,2)), z=nn.Conv2d(8, 3, 1)).double().eval()
    net.q = net.p
    assert len(condensed(net, randn(2, 3, 6, 6)).model.p.weight)==5

@pytest.mark.parametrize('norm', [nn.RMSNorm, lambda n: Root(n), lambda n: Root(n, offset=1.)])
def test_an_embedding_that_is_the_output_layer_too(norm, tmp_path):
    net,x = stream(norm, vocab=9),torch.randint(9, (3, 6))
    c = condensed(net, x)
    assert c.model.start.weight is c.model.head.weight and c.model.head.weight.shape==(9,8), c.report
    assert c.model.start.embedding_dim==c.model.head.in_features==8
    c.save(tmp_path/'c.safetensors')
    assert torch.equal(load_condensed(tmp_path/'c.safetensors', net).model(x), c.model(x))

@pytest.mark.parametrize('last', [False, True])
def test_channels_compared_by_their_size(last, tmp_path):
    norm = GlobalResponseNorm(8, channels_last=last, eps=.05)
    def _normed(m, y): return m.n(y.movedim(1, -1)).movedim(-1, 1) if last else m.n(y)
    net = Model(lambda m, x: m.b(_normed(m, m.a(x).relu())).mean((2,3)), a=dead(nn.Conv2d(3, 8, 3, padding=1), (1,4,6)), n=norm, b=nn.Conv2d(8, 3, 3))
    for p in norm.parameters(): nn.init.normal_(p)
    net,x = net.double().eval(),randn(2, 3, 9, 9)
    c = condensed(net, x)
    assert len(c.model.n.weight)==5 and c.model.n.eps==pytest.approx(.05*8/5)
    assert gap(net, c, randn(2, 3, 13, 7)) <= 1e-10
    c.save(tmp_path/'c.safetensors')
    assert torch.equal(load_condensed(tmp_path/'c.safetensors', net).model(x), c.model(x))
    net.a.bias.data[4] = .5 # how large it is depends on the resolution
    assert len(condensed(net, x).model.n.weight)==6
    with torch.no_grad(): net.n.weight[4] = 0
    assert len(condensed(net, x).model.n.weight)==6

def test_channels_of_images_normed_at_each_position():
    class Root2d(Root):
        def llama(self, x, w): return x*torch.rsqrt(x.pow(2).mean(1, keepdim=True)+self.eps)*w[:,None,None]
    net = Model(lambda m, x: m.b(m.n(m.a(x))).mean((2,3)), a=dead(nn.Conv2d(3, 8, 3, padding=1), (1,4,6)), n=Root2d(8), b=nn.Conv2d(8, 3, 3)).double().eval()
    assert len(condensed(net, randn(2, 3, 9, 9)).model.n.weight)==5

def test_units_of_a_normed_stream_are_sparsified_together():
    net = stream(lambda n: Root(n, 'root'), gone=())
    s = Sparsifier(net, 'neuron', sample=randn(2, 7, 5))
    s.sparsify(.5)
    for n in ('start','down1','down2'): assert torch.equal((net.get_submodule(n).weight==0).all(1), net.last.weight==0)
    assert len(condensed(net, randn(2, 7, 5)).model.last.weight)==6

# ---- weights that are computed in forward

class Standard(nn.Conv2d):
    "Weight standardization, as `how` has it."
    how,eps = 'standard',1e-3
    def __init__(self, *args, how='standard', **kwargs):
        super().__init__(*args, **kwargs)
        self.how,self.gain = how,nn.Parameter(torch.rand(self.out_channels, 1, 1, 1)+.5)
        self.register_buffer('mask', (torch.rand_like(self.weight)>.3).float())
        self.register_buffer('u', F.normalize(torch.randn(self.out_channels), dim=0))
    def computed(self, w):
        if self.how=='standard': return self.gain*(w-w.mean((1,2,3), keepdim=True))/(w.var((1,2,3), keepdim=True)+self.eps).sqrt()
        if self.how=='batch_norm': # as timm does
            flat = w.reshape(1, self.out_channels, -1)
            return F.batch_norm(flat, None, None, self.gain.view(-1), training=True, momentum=0., eps=self.eps).reshape_as(w)
        if self.how=='masked': return w*self.mask
        if self.how=='scaled': return w*self.gain
        if self.how=='spectral':
            v = F.normalize(w.flatten(1).T@self.u, dim=0)
            return w/(self.u@(w.flatten(1)@v))
        if self.how=='quantized': return torch.fake_quantize_per_tensor_affine(w, .05, 0, -128, 127)
        if self.how=='by_channel':
            return torch.fake_quantize_per_channel_affine(w, self.gain.flatten().float()/20, torch.zeros_like(self.u).int(), 0, -128, 127)
        if self.how=='normed': return F.normalize(w.flatten(1), dim=1).view_as(w)
        if self.how=='centered': return w - w.mean()
    def forward(self, x): return F.conv2d(x, self.computed(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups)

class Hand(nn.Module):
    "As `Standard`, but no convolution of torch."
    def __init__(self, i, o, k, padding=0, stride=1, bias=True, groups=1):
        super().__init__()
        self.weight,self.bias = nn.Parameter(torch.randn(o, i//groups, k, k)),nn.Parameter(torch.randn(o)) if bias else None
        self.padding,self.stride,self.groups = padding,stride,groups
    def forward(self, x):
        w = self.weight
        w = (w-w.mean(dim=(1,2,3), keepdim=True))/(w.std(dim=(1,2,3), keepdim=True)+1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, groups=self.groups)

class Same(Standard): # as many outputs as its strides
    def forward(self, x):
        p = [max((-(-n//s)-1)*s + k - n, 0) for n,k,s in zip(x.shape[2:], self.kernel_size, self.stride)]
        return F.conv2d(F.pad(x, [p[1]//2,p[1]-p[1]//2,p[0]//2,p[0]-p[0]//2]), self.computed(self.weight), self.bias, self.stride)

class Reflecting(Standard):
    def forward(self, x): return F.conv2d(F.pad(x, [1]*4, mode='reflect'), self.computed(self.weight), self.bias, self.stride)

class Around(nn.Module):
    "A convolution inside of what rounds its weight."
    def __init__(self, i, o):
        super().__init__()
        self.conv,self.fake,self.step = nn.Conv2d(i, o, 3, padding=1),nn.Tanh(),nn.Parameter(torch.rand(o)/10+.02)
    def forward(self, x):
        s = self.step[:,None,None,None]
        return F.conv2d(x, self.fake((self.conv.weight/s).round())*s, self.conv.bias, self.conv.stride, self.conv.padding)

class Factor(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.scale = self.in_features**-.5
    def forward(self, x): return F.linear(x, self.weight*self.scale, self.bias*2)

def standard(make, gone=(1,4,6)):
    "Three of 8 filters are dead, of a layer between two others."
    net = Model(lambda m, x: m.c(m.b(m.a(x).relu()).relu()).mean((2,3)), a=nn.Conv2d(3, 6, 3), b=make(6, 8), c=nn.Conv2d(8, 3, 1)).double().eval()
    with torch.no_grad():
        net.a.weight[[0,5]],net.a.bias[[0,5]] = 0,-1
        if gone: net.b.weight[list(gone)] = 0
        if gone and net.b.bias is not None: net.b.bias[list(gone)] = -.5
    return net

@pytest.mark.parametrize('padding', [0, 1])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_constants_are_folded_with_the_computed_weight_unrounded(dtype, padding):
    "What is dead before such a layer gives out its bias: with the weight as it is stored, rounded, all would be off."
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), Standard(8, 6, 3, padding=padding), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    with torch.no_grad(): net[0].weight[1:6] = 0
    c = Condenser(net.to(dtype), torch.randn(2, 3, 9, 9).to(dtype)).condense()
    assert c.report.max_error <= 1e-10 and len(c.model[0].weight)==3+bool(padding) # with zeros around it, one carries the constants

computed = {how:lambda i, o, how=how: Standard(i, o, 3, padding=1, how=how)
    for how in 'standard batch_norm masked scaled spectral quantized by_channel normed'.split()}
computed |= dict(by_hand=lambda i, o: Hand(i, o, 3, 1), no_bias=lambda i, o: Hand(i, o, 3, bias=False),
    same=lambda i, o: Same(i, o, 3, stride=2), reflecting=lambda i, o: Reflecting(i, o, 3),
    strided=lambda i, o: Standard(i, o, 2, stride=2, dilation=2), grouped=lambda i, o: Standard(i, o, 3, groups=2))

@pytest.mark.parametrize('name', computed)
def test_filters_whose_weight_is_computed_go(name, tmp_path):
    gone = (1,3,5,7) if name=='grouped' else (1,4,6)
    net,x = standard(computed[name], gone),randn(2, 3, 9, 9)
    old,kinds = {k:v.clone() for k,v in net.state_dict().items()},[type(m) for m in net.modules()]
    c = condensed(net, x)
    assert len(c.model.b.weight)==c.model.c.in_channels==8-len(gone) and c.model.a.out_channels==(4 if name!='grouped' else 6), c.report
    assert [type(m) for m in net.modules()]==kinds and all(torch.equal(v, old[k]) for k,v in net.state_dict().items())
    for side in (12,13): assert gap(net, c, randn(2, 3, side, side)) <= 1e-10
    assert isinstance(c.model.b, nn.Conv2d) and not hasattr(c.model.b, 'gain') and isinstance(deepcopy(c.model).b, nn.Conv2d)
    c.save(tmp_path/'c.safetensors')
    assert gap(c.model, load_condensed(tmp_path/'c.safetensors', net), x) <= 1e-14
    with torch.no_grad(): c.model.b.weight[0],c.model.b.bias = 0,None
    if name!='grouped': assert len((more := condensed(c.model, x)).model.b.weight)==4
    same = Condenser(net, x).condense(inplace=True)
    assert same.model is net and len(net.b.weight)==8-len(gone)

def bit(): return ResNetV2([1,1,1,1], [128,128,256,256], num_classes=7, stem_type='fixed', stem_chs=32, conv_layer=partial(StdConv2d, eps=1e-8))
def dm_nfnet(): return NormFreeNet(_dm_nfnet_cfg(depths=(1,1,1,1), channels=(256,256,256,256)), num_classes=7)
def of_timm(name): return lambda: timm.create_model(name, num_classes=7)

@pytest.mark.parametrize('make', [bit, dm_nfnet, *[pytest.param(of_timm(n), marks=pytest.mark.long, id=n) for n in ('nf_regnet_b0','nfnet_l0')]])
def test_networks_of_timm_that_standardize_weights(make):
    x = images(2, 64)
    net,x = cast(zeroed(make().eval(), x, 'coupled'), torch.float64),x.double()
    c = Condenser(net, x).condense()
    assert c.report.params_after < .27*c.report.params_before and c.report.max_error <= 1e-10, c.report
    for a,b in pairs(net, c, [images(3, side, torch.float64) for side in (64,75)]): assert largest_gap(a, b) <= 1e-10

def test_a_layer_of_which_nothing_goes_computes_its_weight_as_before():
    net = standard(computed['standard'], ())
    with torch.no_grad(): net.a.weight.normal_()
    assert type(condensed(net, randn(2, 3, 9, 9)).model.b) is Standard
    net.c = Standard(8, 3, 1) # and one of which something goes is no other kind of layer
    net = net.double()
    with torch.no_grad(): net.b.weight[[1,4]],net.b.bias[[1,4]] = 0,0
    c = condensed(net, randn(2, 3, 9, 9))
    assert type(c.model.b) is type(c.model.c) is nn.Conv2d and type(c.model.a) is nn.Conv2d and c.model.c.in_channels==6

def test_a_layer_that_runs_in_its_own_precision_only():
    class Single(Standard):
        def computed(self, w): return torch.ops.aten._make_per_tensor_quantized_tensor(torch.round(w*16).to(torch.int8), 1/16, 0).dequantize()
    net = standard(lambda i, o: Single(i, o, 3, padding=1)).float()
    assert len(condensed(net, torch.randn(2, 3, 9, 9), tol=1e-5).model.b.weight)==5

def test_a_convolution_inside_of_what_computes_its_weight(tmp_path):
    net,x = standard(Around, ()),randn(2, 3, 9, 9)
    for layer,rows in ((net.a,(0,5)), (net.b.conv,(1,4,6))): dead(layer, rows)
    c = condensed(net, x)
    assert c.model.b.conv.weight.shape==(5,4,3,3) and [n for n,_ in c.model.b.named_parameters()]==['conv.weight','conv.bias']
    assert [*c.model.b._modules]==['conv']
    c.save(tmp_path/'c.safetensors')
    assert gap(c.model, load_condensed(tmp_path/'c.safetensors', net), x) <= 1e-14
    s = Sparsifier(net, 'filter', 'local', sample=x)
    assert any(g.weights[0].param=='b.conv.weight' and 'b.step' in [o.param for o in g.others] for g in s.groups)

inline = dict( # weight -> what is computed of it, in the middle of other code
    masked=lambda m: m.weight*m.mask, scaled=lambda m: m.weight*m.gain[:,None,None,None], both=lambda m: m.gain.view(-1, 1, 1, 1)*(m.weight*m.mask),
    by_input=lambda m: m.weight/m.steps[None,:,None,None], rounded=lambda m: (m.weight/.1).round()*.1,
    quantized=lambda m: torch.fake_quantize_per_tensor_affine(m.weight, .05, 0, -128, 127),
    spread=lambda m: m.weight*m.gain.sigmoid().view(-1, 1, 1, 1).expand_as(m.weight), window=lambda m: m.weight*m.window, number=lambda m: m.weight*.3)

class Inline(nn.Conv2d):
    "A convolution in the middle of other code, whose weight is computed number by number."
    def __init__(self, how, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.how,self.window = how,nn.Parameter(torch.rand(3, 3))
        self.gain,self.steps = [nn.Parameter(torch.rand(n)+.5) for n in (self.out_channels,self.in_channels)]
        self.register_buffer('mask', (torch.rand_like(self.weight)>.3).float())
    def forward(self, x): return F.gelu(F.conv2d(x.sigmoid()-.5, inline[self.how](self), self.bias*2, padding=1))*.5

@pytest.mark.parametrize('name', inline)
def test_weights_that_are_computed_number_by_number_are_cut_with_what_they_are_computed_of(name):
    net,x = standard(lambda i, o: Inline(name, i, o, 3), ()),randn(2, 3, 9, 9)
    for layer,rows in ((net.a,(0,5)), (net.b,(1,4,6))): dead(layer, rows)
    c = condensed(net, x)
    b = c.model.b
    assert type(b) is Inline and b.weight.shape==(5,4,3,3), c.report
    assert name not in ('masked','both') or b.mask.shape==b.weight.shape
    assert name not in ('scaled','both','spread') or len(b.gain)==5
    assert name!='by_input' or len(b.steps)==4
    assert name!='window' or b.window.shape==(3,3)
    net.a.bias.data[[0,5]] = .5 # a constant can't be folded into a weight that is multiplied afterwards
    assert condensed(net, x).model.b.weight.shape==(5,6,3,3)
    if name=='scaled': assert any('b.gain' in [o.param for o in g.others] for g in Sparsifier(net, 'filter', sample=x).groups if 'b' in g.layers)

@pytest.mark.parametrize('f', [lambda w: w-w.mean(), lambda w: w+.1, lambda w: w/w.norm(), lambda w: w*w.transpose(2, 3)], ids=['centered','shifted','normed','turned'])
def test_weights_that_are_not_computed_number_by_number_stay(f):
    class Other(nn.Conv2d):
        def forward(self, x): return F.gelu(F.conv2d(x, f(self.weight), self.bias, padding=1))
    net = standard(lambda i, o: Other(i, o, 3))
    assert condensed(net, randn(2, 3, 9, 9)).model.b.weight.shape==(8,6,3,3)

@pytest.mark.parametrize('norm', ['computed', 'root', 'torch'])
def test_in_the_middle_of_a_fit_what_is_learned_stays_the_same(norm):
    "A layer goes on computing its weight, and a norm keeps its weight; all else is cut."
    if norm=='computed': net,x = standard(computed['standard']),randn(2, 3, 9, 9)
    else: net,x = stream(nn.RMSNorm if norm=='torch' else Root),randn(2, 7, 5)
    if norm!='computed': dead(net.up1, (0,3))
    c = Condenser(net, x, constants=False).condense()
    if norm=='computed': assert type(c.model.b) is Standard and len(c.model.b.weight)==8
    else: assert len(c.model.last.weight)==(8 if norm=='torch' else 12) and len(c.model.up1.weight)==8

def test_linear_layers_whose_weight_is_computed():
    net = Model(lambda m, x: m.c(m.b(m.a(x)).relu()), a=dead(Factor(5, 9), (0,7)), b=dead(Factor(9, 8), (1,4,6)), c=Factor(8, 3)).double().eval()
    c = condensed(net, randn(2, 5))
    assert [tuple(m.weight.shape) for m in (c.model.a,c.model.b,c.model.c)]==[(7,5),(5,7),(3,5)]

def test_zeros_that_are_computed_as_something_else_stay_and_are_named():
    net = standard(lambda i, o: Standard(i, o, 3, padding=1, how='centered'), ())
    with pytest.raises(ValueError, match='computed as something else'): Sparsifier(net, 'filter', layers='b', sample=randn(2, 3, 9, 9))
    assert len(condensed(net, randn(2, 3, 9, 9)).model.b.weight)==8

def test_filters_that_are_computed_as_zeros_of_several_parameters_go_at_once():
    class LowRank(nn.Conv2d):
        def __init__(self):
            super().__init__(6, 8, 3, padding=1)
            self.p,self.q = nn.Parameter(torch.randn(8, 2)),nn.Parameter(torch.randn(2, 54))
        def forward(self, x): return self._conv_forward(x, self.weight + (self.p@self.q).view_as(self.weight), self.bias)
    net = standard(lambda i, o: LowRank())
    with torch.no_grad(): net.b.p[[1,4,6]] = 0
    net.a.bias.data[[0,5]] = -1
    assert condensed(net, randn(2, 3, 9, 9)).model.b.weight.shape==(5,4,3,3)

def test_filters_whose_weight_is_computed_are_sparsified_by_the_name_of_their_parameter():
    net,x = standard(computed['standard'], ()),randn(2, 3, 9, 9)
    s = Sparsifier(net, 'filter', 'local', sample=x)
    group = next(g for g in s.groups if g.layers==['b'])
    assert [o.param for o in group.weights]==['b.weight'] and {'b.gain','b.bias'} <= {o.param for o in group.others}
    s.sparsify(.5)
    assert int((net.b.weight==0).flatten(1).all(1).sum())==4 and len(condensed(net, x).model.b.weight)==4

def test_a_module_that_does_more_than_a_layer_stays():
    class More(Standard):
        def forward(self, x): return super().forward(x)+x[:,:1].mean()
    c = condensed(standard(lambda i, o: More(i, o, 3, padding=1)), randn(2, 3, 9, 9))
    assert type(c.model.b) is More and len(c.model.b.weight)==8 and c.report.kept

def test_a_weight_that_depends_on_the_input_is_not_taken_for_one_that_is_computed():
    class Dynamic(Standard):
        def forward(self, x): return F.conv2d(x, self.weight*x.mean().sigmoid(), self.bias, padding=1)
    c = condensed(standard(lambda i, o: Dynamic(i, o, 3, padding=1)), randn(2, 3, 9, 9), batches=())
    assert type(c.model.b) is Dynamic

class Wrapped(nn.Module):
    "What fastai's Learner takes for no part of itself."
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x): return self.net(x)

@pytest.mark.parametrize('make,shape,unit', [(lambda: standard(computed['standard'], ()), (3,9,9), 'filter'), (lambda: stream(Root, gone=()), (7,5), 'neuron')],
    ids=['computed','root'])
def test_a_network_that_shrinks_while_it_trains_is_the_one_that_masks_alone_would_have_given(make, shape, unit):
    net,x = make().float(),torch.randn(24, *shape)
    with torch.no_grad(): y = torch.randn_like(net(x))
    def _trained(*cbs):
        dls = DataLoaders(*[DataLoader(TensorDataset(x, y), batch_size=8) for _ in range(2)])
        learn = Learner(dls, Wrapped(deepcopy(net)), nn.MSELoss(), opt_func=SGD)
        with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-2, cbs=[SparsifyCallback(.5, unit, 'local'), *cbs])
        small = learn.condense()
        with torch.no_grad(): return small.model.eval()(x),sum(p.numel() for p in small.model.parameters())
    (a,n),(b,m) = _trained(),_trained(CondenseCallback())
    assert n==m < .4*sum(p.numel() for p in net.parameters()) and torch.allclose(a, b, atol=1e-5)
