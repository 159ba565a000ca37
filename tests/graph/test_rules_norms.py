"Norms without a mean, reductions over units and over what is no batch, matrices that mix nodes, weights that are computed in forward."
import pytest, torch
import torch.nn.functional as F
from timm.layers.grn import GlobalResponseNorm
from torch import nn
from fasterprune.all import *
from support.fuzz_nets import Model, zero
from support.nets import gap
from support.exact import Standard, condensed, dead, randn, Root, stream

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

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
    count=lambda a, x: a(x).count_nonzero(1)[:,None]*x[:,:1], renorm=lambda a, x: a(x).renorm(2, 0, .5),
    renorm_largest=lambda a, x: a(x).renorm(torch.inf, -2, .5))

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

@pytest.mark.parametrize('dim,of_zero,of_constant', [(0,7,8), (1,7,8), (2,5,6)])
def test_channels_with_a_limit_to_their_norm(dim, of_zero, of_constant):
    "Normed together, for each item or position, channels stay that are not 0, read or not; normed one by one, those go that nobody reads."
    net = Model(lambda m, x: m.b(m.a(x).renorm(2, dim, .5)), a=dead(nn.Linear(5, 8), (1,)), b=zero(nn.Linear(8, 3), cols=(6,7))).double().eval()
    assert len(condensed(net, randn(2, 4, 5)).model.a.weight)==of_zero
    net.a.bias.data[1] = .5
    c = condensed(net, randn(2, 4, 5))
    assert len(c.model.a.weight)==of_constant and (dim==2 or any('normed over channels by renorm' in k['reason'] for k in c.report.kept)), c.report

def test_weights_with_a_limit_to_their_norm_stay_whole_and_are_named():
    net = Model(lambda m, x: m.c(F.linear(m.b(x), m.a.weight.renorm(2, 0, .5))),
        a=dead(nn.Linear(8, 8), (1,)), b=dead(nn.Linear(5, 8), (2,)), c=nn.Linear(8, 3))
    c = condensed(net.double().eval(), randn(2, 5))
    assert len(c.model.a.weight)==8 and any('renorm' in k['reason'] for k in c.report.kept), c.report

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
