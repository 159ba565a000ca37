"One small network for each operation: what is dead around it goes, and the output stays exactly the same. And input that makes no sense."
import inspect, itertools, math
from copy import deepcopy
import pytest, torch
import torch.nn.functional as F
from fastcore.test import test_fail as fails
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from fasterprune.all import *
from support.fuzz_nets import Model, P, zero
from support.nets import Do, gap, perturb

convs,norms = (nn.Linear,nn.Conv1d,nn.Conv2d,nn.Conv3d),(nn.BatchNorm1d,nn.BatchNorm1d,nn.BatchNorm2d,nn.BatchNorm3d)

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

@torch.no_grad()
def cut(op, unread):
    "Let an operation that mixes 8 channels not read some of them."
    for p in op.parameters():
        if isinstance(op, nn.modules.conv._ConvNd) and op.groups>1 and p.ndim>1:
            for u in unread:
                n,group = 8//op.groups,u//(8//op.groups)
                if op.transposed: p[u] = 0
                else: p.unflatten(0, (op.groups,-1))[group,:,u%n] = 0
        elif p.ndim>1:
            d = 0 if getattr(op, 'transposed', False) else max(d for d in range(p.ndim) if p.shape[d]==8)
            p.movedim(d, 0)[list(unread)] = 0

# ---- one operation between a layer with 8 channels and one that reads what it makes

def around(op, dim=2, dead=(1,5), unread=(3,7), last=False, bias=True, flat=False):
    "`op` between layers: the channels `dead` are constants, not zero, and the channels that come from `unread` are not read."
    def _front(m, x):
        y = m.norm(m.a(x))
        if last: y = y.movedim(1, -1) if dim!=1 else y.transpose(1, 2)
        return m.op(y)
    def _run(m, x):
        y = _front(m, x)
        if last: y = y.movedim(-1, 1)
        return m.out(m.read(y.flatten(1) if flat else y))
    net = Model(_run, a=zero(convs[dim](3, 8, *[1]*(dim>0)), dead), norm=norms[dim](8), op=op if isinstance(op, nn.Module) else Do(op))
    perturb(net).double().eval()
    x = torch.randn(2, 3, *(6,6,5)[:dim], dtype=torch.float64)
    with torch.no_grad():
        for t in (net.norm.bias,net.norm.running_mean): t[list(dead)] = torch.linspace(.2, .6, len(dead)).double()
        reached = net.norm.register_forward_hook(lambda m, i, o: o.index_fill(1, torch.tensor(unread, dtype=torch.long), torch.nan))
        y = _front(net, x)
        reached.remove()
    if last: y = y.movedim(-1, 1)
    if flat: y = y.flatten(1)
    d = y.ndim-2
    cols = y.isnan().transpose(0, 1).flatten(1).any(1)
    net.read,net.out = convs[d](y.shape[1], 4, *[1]*(d>0), bias=bias),Do(lambda y: y.tanh().flatten(2).mean(2) if d else y.tanh())
    if cols.all(): cut(net.op, unread) # it mixes channels
    else: zero(net.read, cols=cols.nonzero()[:,0].tolist())
    return net.double().eval(),x

def condensed(net, *xs, verify=False, **kwargs):
    "Condense, and compare at other batch sizes and at another resolution if the network takes one."
    c = Condenser(net, xs if len(xs)>1 else xs[0], **kwargs).condense(verify=verify)
    for n,more in ((2,0), (3,0), (1,2)):
        batch = [torch.randn(n, x.shape[1], *[s+more for s in x.shape[2:]], dtype=x.dtype) if x.is_floating_point() else x[torch.arange(n)%len(x)] for x in xs]
        try: net(*batch)
        except (RuntimeError, ValueError): continue
        assert gap(net, c, *batch) <= 1e-10
    assert gap(net, c, *xs) <= 1e-10
    return c

conv2 = dict(in_channels=8, out_channels=8)
class Scaled(nn.Module):
    "A parameter of a module: `f(x, p)`."
    def __init__(self, p, f):
        super().__init__()
        self.p,self.f = p,f
    def forward(self, x): return self.f(x, self.p)
class Biased(nn.Module):
    "A Linear layer as GPT-2 has it."
    def __init__(self, weight, bias):
        super().__init__()
        self.weight,self.bias = weight,bias
    def forward(self, x): return torch.addmm(self.bias, x, self.weight)

# name -> operation
moves = dict(transpose_channels=lambda x: x.transpose(1, 2).transpose(1, 2), permute=lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    movedim=lambda x: x.movedim(1, -1).exp().movedim(-1, 1), flatten=lambda x: x.flatten(2), view=lambda x: x.view(len(x), x.shape[1], -1),
    reshape=lambda x: x.reshape(x.shape[0], x.shape[1], -1, 2), squeeze=lambda x: x.unsqueeze(2).squeeze(2),
    expand=lambda x: x.unsqueeze(2).expand(-1, -1, 3, -1, -1).flatten(2, 3), repeat=lambda x: x.repeat(1, 2, 1, 1),
    repeat_in_space=lambda x: x.repeat(1, 1, 2, 1), repeat_interleave=lambda x: x.repeat_interleave(2, 1), roll=lambda x: x.roll((1,2), (2,3)),
    flip=lambda x: x.flip(1), flip_in_space=lambda x: x.flip(3), pad=lambda x: F.pad(x, (1,1,1,1), mode='reflect'),
    pad_circular=lambda x: F.pad(x, (1,1,1,1), mode='circular'), pad_replicate=lambda x: F.pad(x, (1,1,1,1), mode='replicate'),
    crop=lambda x: x[:,:,1:-1,::2], select=lambda x: x[...,0], ellipsis=lambda x: x[...,None,:], unfold=lambda x: F.unfold(x, 3))
parts = dict(chunk=lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), halves_multiplied=lambda x: x.chunk(2, 1)[0]*x.chunk(2, 1)[1].sigmoid(),
    split=lambda x: torch.cat([o.sigmoid() for o in x.split(x.shape[1]//2, 1)], 1),
    slices=lambda x: torch.cat([x[:,x.shape[1]//2:],x[:,:x.shape[1]//2]], 1), stack=lambda x: torch.stack([x, x.sigmoid()], 2).flatten(2, 3),
    stack_before=lambda x: torch.stack([x, x.sigmoid()], 1).flatten(1, 2), cat=lambda x: torch.cat([x, x.cos()], 1),
    cat_in_space=lambda x: torch.cat([x, x], 2), cat_others_in_space=lambda x: torch.cat([x, x.cos()], 2),
    cat_with_zeros=lambda x: torch.cat([x, torch.zeros_like(x)], 1), unbind=lambda x: sum(x.unbind(2)), glu=lambda x: F.glu(x, 1),
    shuffle=lambda x: x.unflatten(1, (2,-1)).transpose(1, 2).flatten(1, 2), shuffle_pairs=lambda x: x.unflatten(1, (-1,2)).transpose(1, 2).flatten(1, 2),
    view_shuffle=lambda x: x.view(x.shape[0], 2, x.shape[1]//2, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    channel_shuffle=lambda x: F.channel_shuffle(x, 2), pixel_unshuffle=lambda x: F.pixel_unshuffle(x, 2), pixel_shuffle=lambda x: F.pixel_shuffle(x, 2),
    interpolate=lambda x: F.interpolate(x, scale_factor=2), bilinear=lambda x: F.interpolate(x, scale_factor=2, mode='bilinear'),
    bicubic=lambda x: F.interpolate(x, size=7, mode='bicubic', align_corners=True), area=lambda x: F.interpolate(x, size=4, mode='area'))
numbers = dict(add=lambda x: x + x.sigmoid(), add_number=lambda x: x.add(1, alpha=3), sub=lambda x: 1 - x, sub_tensors=lambda x: x.cos() - x,
    mul=lambda x: x*x.sigmoid(), div=lambda x: x/(x.abs()+1), div_number=lambda x: x/3, maximum=lambda x: torch.maximum(x, -x/2),
    where=lambda x: torch.where(x>0, x, x/4-.1), gate=lambda x: x*x.mean((2,3), keepdim=True).sigmoid(),
    divided_by_sum=lambda x: x/(x.abs().sum((2,3), keepdim=True) + 1), mean=lambda x: x.mean((2,3)), mean_keepdim=lambda x: x.mean(3, keepdim=True),
    amax=lambda x: x.amax((2,3)), amin=lambda x: x.amin(-1), max=lambda x: x.max(3)[0], std=lambda x: x.std((2,3)), var=lambda x: x.var(2, unbiased=False),
    l2=lambda x: F.normalize(x, dim=2), softmax_in_space=lambda x: x.softmax(2), cumsum=lambda x: x.cumsum(3), pow=lambda x: x**3,
    sqrt=lambda x: (x.abs()+1).sqrt(), rsqrt=lambda x: (x**2+.1).rsqrt(), log=lambda x: (x.abs()+.5).log(), clamp=lambda x: x.clamp(-.3, .4),
    log1p=lambda x: x.abs().log1p(), reciprocal=lambda x: (x.abs()+1).reciprocal(), cast=lambda x: x.float().double(), nan_to_num=lambda x: x.nan_to_num(),
    detach=lambda x: x + x.detach().relu(), in_place=lambda x: x.clone().relu_().add_(1).mul_(2), contiguous=lambda x: x.contiguous().clone(),
    softplus=lambda x: F.softplus(x, beta=2), checkpointed=lambda x: torch.utils.checkpoint.checkpoint(torch.sigmoid, x, use_reentrant=False), relu=F.relu,
    Threshold=nn.Threshold(.3, .7), RReLU=nn.RReLU(), Hardtanh_wide=nn.Hardtanh(-.2, 3.))
parameters = dict(layer_scale=Scaled(P(8,1,1), lambda x, p: x*p), layer_scale_view=Scaled(P(8), lambda x, p: x*p.view(1, -1, 1, 1)),
    position=Scaled(P(8,6,6), lambda x, p: x+p), gate_parameter=Scaled(P(8), lambda x, p: x*p.sigmoid()[:,None,None]),
    matmul=Scaled(P(8,5), lambda x, p: x.mean((2,3))@p), matmul_left=Scaled(P(5,8), lambda x, p: p@x.flatten(2)),
    bmm=Scaled(P(5,8), lambda x, p: torch.bmm(p.expand(len(x), -1, -1), x.flatten(2))),
    einsum=Scaled(P(5,8), lambda x, p: torch.einsum('bchw,oc->bohw', x, p)), einsum_gate=Scaled(P(8), lambda x, p: torch.einsum('bchw,c->bchw', x, p)),
    functional_linear=Scaled(P(5,8), lambda x, p: F.linear(x.mean((2,3)), p)), functional_conv=Scaled(P(5,8,3,3), lambda x, p: F.conv2d(x, p)))
layers = dict(conv1d=nn.Conv1d(8, 6, 3, stride=2, dilation=2), linear_over_channels=nn.Linear(8, 8), linear_in_space=nn.Linear(6, 4),
    identity=nn.Identity(), dropout=nn.Dropout(), dropout2d=nn.Dropout2d(), batch_norm=nn.BatchNorm2d(8), batch_norm_bare=nn.BatchNorm2d(8, affine=False),
    instance_norm=nn.InstanceNorm2d(8), instance_norm_affine=nn.InstanceNorm2d(8, affine=True),
    instance_norm_tracked=nn.InstanceNorm2d(8, affine=True, track_running_stats=True), group_norm=nn.GroupNorm(4, 8), group_norm_each=nn.GroupNorm(8, 8),
    prelu=nn.PReLU(), prelu_each=nn.PReLU(8), transposed_conv=nn.ConvTranspose2d(8, 6, 3),
    transposed_conv_grouped=nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2), transposed_depthwise=nn.ConvTranspose2d(8, 8, 2, groups=8, stride=2),
    transposed_conv1d=nn.ConvTranspose1d(8, 6, 3), transposed_conv3d=nn.ConvTranspose3d(8, 6, 2), depthwise=nn.Conv2d(8, 8, 3, groups=8),
    depthwise_more=nn.Conv2d(8, 16, 3, groups=8), depthwise_circular=nn.Conv2d(8, 8, 3, padding=1, padding_mode='circular', groups=8),
    grouped=nn.Conv2d(8, 6, 3, groups=2), grouped_quarters=nn.Conv2d(8, 8, 3, groups=4), grouped1d=nn.Conv1d(8, 6, 3, groups=2),
    grouped3d=nn.Conv3d(8, 6, 3, groups=2), dilated=nn.Conv2d(8, 6, 2, dilation=3, stride=2), reflect=nn.Conv2d(8, 6, 3, padding=1, padding_mode='reflect'),
    replicate=nn.Conv2d(8, 6, 3, padding=1, padding_mode='replicate'), circular=nn.Conv2d(8, 6, 3, padding=1, padding_mode='circular'),
    conv3d=nn.Conv3d(8, 6, 3), flat_linear=lambda x: x, max_pool_padded=nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    avg_pool_uncounted=nn.AvgPool2d(3, 2, 1, count_include_pad=False), lp_pool=nn.LPPool2d(2, 2), max_pool_dilated=nn.MaxPool2d(2, 1, dilation=2),
    global_pool=nn.AdaptiveAvgPool2d(1), max_pool_indices=lambda x: F.max_pool2d(x, 2, return_indices=True)[0])
ops = moves | parts | numbers | parameters | layers
for kind in ('Max', 'Avg', 'AdaptiveAvg', 'AdaptiveMax'): ops |= {f'{kind}Pool{d}d':getattr(nn, f'{kind}Pool{d}d')(2) for d in (1,2,3)}
others = 'MultiheadAttention', 'PReLU', 'Softmax', 'Softmax2d', 'LogSoftmax', 'Softmin', 'GLU', 'Threshold', 'RReLU'
ops |= {n:getattr(nn, n)() for n in nn.modules.activation.__all__ if n not in others}
ops |= {n:getattr(torch, n) for n in 'sin cos exp erf abs neg square atan sigmoid tanh expm1 sinh'.split()}
vectors = dict(linear=nn.Linear(8, 6), relu=F.relu, batch_norm=nn.BatchNorm1d(8), gate=lambda x: x*x.sigmoid(), matmul=Scaled(P(8,5), lambda x, p: x@p),
    addmm=Biased(P(8,5), P(5)), unsqueezed=lambda x: x[:,None].expand(-1, 3, -1).mean(1))
tokens = dict(linear=nn.Linear(8, 6), first=lambda x: x[:,0], mean=lambda x: x.mean(1), gelu=F.gelu, scale=Scaled(P(8), lambda x, p: x*p),
    shift=lambda x: torch.cat([x[:,1:], x[:,:1]], 1), class_token=Scaled(P(1,1,8), lambda x, p: torch.cat([p.expand(len(x), -1, -1), x], 1)))
ops |= {f'{n}_of_vectors':f for n,f in vectors.items()} | {f'{n}_of_tokens':f for n,f in tokens.items()}

# what `around` should know of them: where constants are none behind them, where they need one carrier or one in each group
no_constants = 'stack cat_others_in_space unbind divided_by_sum l2 softmax_in_space cumsum position linear_in_space class_token_of_tokens'.split()
bare = 'matmul matmul_left bmm einsum functional_linear functional_conv matmul_of_vectors'.split() # there is no bias
knows = dict.fromkeys(no_constants, dict(dead=())) | dict.fromkeys(['shuffle_pairs','group_norm'], dict(dead=(0,1), unread=(6,7)))
knows |= dict.fromkeys([*bare, 'transposed_conv', 'transposed_conv1d', 'transposed_conv3d'], dict(keep=5))
knows |= dict(transposed_depthwise=dict(keep=6), nan_to_num=dict(keep=6))
knows |= dict.fromkeys(['grouped','grouped1d','grouped3d'], dict(keep=6)) # tied channels of the groups emit different constants
knows |= dict.fromkeys(['transposed_conv_grouped','grouped_quarters','bmm'], dict(keep=8)) # barriers, and groups of two
knows |= dict(pixel_shuffle=dict(dead=(), unread=(4,5,6,7)), linear_over_channels=dict(last=True), flat_linear=dict(flat=True))

def dim_of(name): return 0 if name.endswith('vectors') else 1 if name.endswith('tokens') else next((d for d in (1,3) if f'{d}d' in name), 2)

@pytest.mark.parametrize('name', ops)
def test_what_is_dead_around_an_operation_goes(name):
    kwargs = dict(dead=(1,5), unread=(3,7)) | knows.get(name, {})
    keep = kwargs.pop('keep', 8-len(kwargs['dead'])-len(kwargs['unread']))
    net,x = around(deepcopy(ops[name]), dim_of(name), last=name.endswith('tokens') or kwargs.pop('last', False), **kwargs)
    c = condensed(net, x)
    assert len(c.model.a.weight)==keep, f'{len(c.model.a.weight)} of 8 channels stayed, not {keep}\n{c.report}'
    assert condensed(net, x, verify=True).report.params_after==c.report.params_after and c.report.removed.get('a', 0)==8-keep

# ---- what needs more than one operation

def doubled(f, **parts): return Model(f, **parts).double().eval()
def randn(*shape): return torch.randn(*shape, dtype=torch.float64)
def widths(c, *names): return [len(c.model.get_submodule(n).weight) for n in names]
def kept(c, word): return sum(k['units'] for k in c.report.kept if word in k['reason'])

@pytest.mark.parametrize('mode', ['zeros', 'reflect'])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('constant', [0., .5])
def test_padding_takes_one_carrier_only_for_constants_at_zeros(mode, bias, constant):
    net = doubled(lambda m, x: m.c(m.b(m.a(x).relu()).tanh()), a=zero(nn.Conv2d(3, 8, 3), (0,2,5)), c=nn.Conv2d(6, 2, 1),
        b=nn.Conv2d(8, 6, 3, padding=1, padding_mode=mode, bias=bias))
    with torch.no_grad(): net.a.bias[[0,2,5]] = constant
    c = condensed(net, randn(2, 3, 7, 7))
    carrier = constant!=0 and (mode=='zeros' or not bias)
    assert widths(c, 'a')==[5 + carrier]
    assert not carrier or c.report.kept and 'carr' in c.report.kept[0]['reason']

@pytest.mark.parametrize('dim', [1, 2, 3])
def test_strides_dilation_and_padding_of_each_convolution(dim):
    Conv = convs[dim]
    net = doubled(lambda m, x: m.c(m.b(m.a(x).sigmoid()).relu()).flatten(2).mean(2), a=zero(Conv(2, 8, 1), (1,4,6)), c=Conv(6, 3, 1),
        b=zero(Conv(8, 6, 2, stride=2, padding=1, dilation=2), (0,3), (7,)))
    with torch.no_grad(): net.b.bias[[0,3]] = torch.tensor([.5, -.5]).double()
    c = condensed(net, randn(2, 2, *[6]*dim))
    assert widths(c, 'a', 'b', 'c')==[5,4,3] and (c.model.b.in_channels,c.model.b.out_channels)==(5,4) # the constants of `a` need a carrier

@pytest.mark.parametrize('dead,gate,n', [((),(),6), ((1,4),(1,4),4), ((1,4),(),6)])
def test_squeeze_and_excite(dead, gate, n): # the gate of a constant depends on the input, unless it is a constant, too
    net = doubled(lambda m, x: m.c((y:=m.n(m.a(x)).relu())*m.e(m.s(y.mean((2,3), keepdim=True)).relu()).sigmoid()), a=zero(nn.Conv2d(3, 8, 3), dead),
        n=nn.BatchNorm2d(8), s=zero(nn.Conv2d(8, 4, 1), (2,), (3,7)), e=zero(nn.Conv2d(4, 8, 1), gate), c=zero(nn.Conv2d(8, 2, 1), cols=(3,7)))
    perturb(net)
    with torch.no_grad(): net.n.bias.uniform_(.3, .6)
    c = condensed(net, randn(2, 3, 7, 7))
    assert widths(c, 'a', 's', 'e')==[n,3,n] and c.model.n.num_features==n

def test_layer_norm_over_channels():
    def _run(m, x): return m.c(m.n(m.a(x)).relu())
    # a constant varies behind the norm, and what is not read there is heard by it
    for dead,cols,n in (((1,4,5),(1,4,5),5), ((1,4,5),(4,),7), ((1,4,5),(),8), ((),(1,4,5),8)):
        net = doubled(_run, a=zero(nn.Linear(6, 8), dead), n=nn.LayerNorm(8), c=zero(nn.Linear(8, 2), cols=cols))
        c = condensed(net, randn(3, 6))
        assert widths(c, 'a', 'n')==[n,n] and c.model.c.in_features==n

def test_scale_of_a_norm_that_is_zero(): # what comes in is not read there, and what goes out is a constant
    net = doubled(lambda m, x: m.d(m.c(m.n(y:=m.a(x)).relu()).relu()), a=nn.Linear(6, 8), n=nn.LayerNorm(8), c=nn.Linear(8, 6), d=nn.Linear(6, 2))
    with torch.no_grad(): net.n.weight.zero_()
    net.n.bias.data.uniform_(.1, 1)
    c = condensed(net, randn(3, 6))
    assert widths(c, 'd')==[2] and c.report.params_after <= 2 + 2 + 1 + 1 + 7 + 2 + 2 # all but a row each

def test_group_norm_shrinks_by_groups_and_counts_its_channels():
    net = doubled(lambda m, x: m.c(m.n(m.a(x)).relu()).tanh(), a=zero(nn.Conv2d(3, 12, 1), (0,1,2,4)), n=nn.GroupNorm(4, 12),
        c=zero(nn.Conv2d(12, 2, 1), cols=(9,10,11)))
    c = condensed(net, randn(2, 3, 6, 6))
    assert c.model.n.num_groups==2 and c.model.n.num_channels==len(c.model.a.weight) in (5,6) # 4 is a constant in a group of others

@pytest.mark.parametrize('bag', [False, True])
def test_embedding(bag):
    net = doubled(lambda m, x: m.c(m.a(m.e(x)).relu()), e=(nn.EmbeddingBag if bag else nn.Embedding)(9, 8), a=zero(nn.Linear(8, 6), (5,), cols=(0,3,4)),
        c=nn.Linear(6, 2))
    with torch.no_grad(): net.e.weight[:,[1,3]] = 0
    c = condensed(net, torch.randint(9, (4, 3)))
    assert c.model.e.weight.shape==(9,4) and c.model.e.embedding_dim==4 and c.model.a.weight.shape==(5,4)

@pytest.mark.parametrize('cls', [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize('bidirectional', [False, True])
def test_recurrent_layers_do_not_hide_what_is_before_and_behind(cls, bidirectional):
    net = doubled(lambda m, x: m.d(m.c(m.l(m.b(m.a(x).relu()).relu())[0]).relu()), a=zero(nn.Linear(5, 8), (1,4)), b=zero(nn.Linear(8, 6), (2,), (7,)),
        l=cls(6, 4, batch_first=True, bidirectional=bidirectional), c=zero(nn.Linear(4+4*bidirectional, 8), (0,3)), d=zero(nn.Linear(8, 2), cols=(5,)))
    c = condensed(net, randn(3, 4, 5))
    assert widths(c, 'a', 'c')==[5,5]
    assert widths(c, 'b')==[5] or kept(c, cls.__name__.lower())==1

def heads(f, *shape, **parts):
    "An attention block with 8 numbers for queries, keys and values."
    def _run(m, x):
        q,k,v = [o(x).unflatten(-1, shape).transpose(1, 2) for o in (m.q,m.k,m.v)]
        return m.o(f(q, k, v).transpose(1, 2).flatten(2))
    return doubled(_run, q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 8), o=nn.Linear(8, 6))
def by_hand(q, k, v): return (q@k.transpose(-2, -1)*.5).softmax(-1)@v
sdpa = F.scaled_dot_product_attention

@pytest.mark.parametrize('f', [by_hand, sdpa])
def test_whole_dead_heads_go(f):
    net = heads(f, -1, 4)
    zero(net.o, cols=range(4, 8))
    assert widths(condensed(net, randn(2, 5, 6)), 'q', 'k', 'v')==[4,4,4]

@pytest.mark.parametrize('f', [by_hand, sdpa])
def test_values_that_are_not_read_go(f):
    net = heads(f, 2, -1)
    zero(net.o, cols=(0,4))
    assert widths(condensed(net, randn(2, 5, 6)), 'q', 'k', 'v')==[8,8,6]

def test_values_that_are_constant_go(): # what attention makes of a constant is the constant, for its weights sum up to 1
    net = heads(sdpa, 2, -1)
    zero(net.v, (0,4))
    assert widths(condensed(net, randn(2, 5, 6)), 'q', 'k', 'v')==[8,8,6]

@pytest.mark.parametrize('f,n', [(by_hand,6), (sdpa,None), (lambda q, k, v: sdpa(q, k, v, scale=.5),6)])
def test_products_of_zeros_go_and_the_scale_stays(f, n):
    net = heads(f, 2, -1)
    for l in (net.q,net.k):
        zero(l, (1,5))
        l.bias.data[[1,5]] = 0
    assert widths(condensed(net, randn(2, 5, 6)), 'q', 'k')==[n,n] if n else condensed(net, randn(2, 5, 6)).report

def test_module_of_attention_is_exact_and_does_not_hide_the_rest():
    net = doubled(lambda m, x: m.c((x + m.m(y:=m.a(x).relu(), y, y)[0])), a=nn.Linear(8, 8), m=nn.MultiheadAttention(8, 2, batch_first=True),
        c=zero(nn.Linear(8, 3), cols=(1,2)))
    zero(net.m.out_proj, (1,2), (0,1,2,3))
    c = condensed(net, randn(2, 5, 8))
    assert c.report.params_after < c.report.params_before or kept(c, 'attention')

def test_shared_layer_keeps_what_one_of_its_calls_needs():
    net = doubled(lambda m, x: m.c(m.b(m.a(x).relu())) + m.d(m.b(m.a(-x).relu())), a=zero(nn.Conv2d(3, 8, 1), (0,1)), b=zero(nn.Conv2d(8, 8, 3), (2,)),
        c=zero(nn.Conv2d(8, 2, 1), cols=(4,5,6)), d=zero(nn.Conv2d(8, 2, 1), cols=(5,6,7)))
    c = condensed(net, randn(2, 3, 7, 7))
    assert widths(c, 'a', 'b')==[6,5] # not 2, 5 and 6

def test_tied_weights_shrink_together_and_stay_tied():
    net = doubled(lambda m, x: m.c(m.b(m.a(x).relu()).sigmoid() + m.d(m.a(x).relu()).sigmoid()), a=zero(nn.Linear(6, 8), (0,1)), b=nn.Linear(8, 7),
        d=nn.Linear(8, 7), c=nn.Linear(7, 2))
    net.d.weight = zero(net.b, (3,)).weight
    c = condensed(net, randn(3, 6))
    assert c.model.d.weight is c.model.b.weight and tuple(c.model.b.weight.shape)==(6,8) # what is constant in front of two biases stays

def test_tied_embedding_and_output():
    net = doubled(lambda m, x: m.d(m.a(m.e(x)).relu()), e=nn.Embedding(9, 8), a=zero(nn.Linear(8, 8), (1,4), (2,4)), d=nn.Linear(8, 9))
    net.d.weight = net.e.weight
    net.a.bias.data[[1,4]] = 0
    c = condensed(net, torch.randint(9, (4, 3)))
    assert c.model.d.weight is c.model.e.weight and len(c.model.e.weight)==9
    assert c.model.e.weight.shape[1]==7 # 4 is neither read nor made; 1 is read, 2 is made

@pytest.mark.parametrize('make', [lambda m: prune.ln_structured(zero(m, (3,)), 'weight', .5, 1, 0), parametrizations.weight_norm,
    lambda m: parametrize.register_parametrization(zero(m, (3,)), 'weight', Do(torch.tanh))])
def test_weights_that_are_computed(make):
    net = doubled(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), a=zero(nn.Linear(6, 8), (0,1)), b=nn.Linear(8, 8), c=nn.Linear(8, 2))
    make(net.b)
    pruned = hasattr(net.b, 'weight_mask')
    c = condensed(net, randn(3, 6))
    assert not pruned or (c.model.a.out_features,c.model.b.out_features)==(6,4)
    assert c.report.params_after < c.report.params_before or c.report.kept

def test_pruned_by_torch_goes_with_its_masks():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    for m in (net[0],net[3]): prune.ln_structured(m, 'weight', .5, 2, 0)
    c = condensed(perturb(net).double().eval(), randn(2, 3, 9, 9))
    assert [m.weight.shape[0] for m in c.model if isinstance(m, nn.Conv2d)]==[4,4,2]

# name -> operation that mixes its channels or takes them apart in a way that is not to be changed, and what the report says of it
barriers = dict(softmax=lambda x: x.softmax(1), log_softmax=lambda x: x.log_softmax(1), cumsum=lambda x: x.cumsum(1), sort=lambda x: x.sort(1)[0],
    median=lambda x: x.median(1, keepdim=True)[0], fft=lambda x: torch.fft.rfft(x, dim=1).real, logsumexp=lambda x: x.logsumexp(1, keepdim=True),
    prod=lambda x: x.prod(1, keepdim=True), batch_mean=lambda x: x - x.mean(0))

@pytest.mark.parametrize('name', barriers)
def test_barriers_are_named_and_do_not_hide_the_rest(name):
    op = barriers[name]
    n = op(torch.zeros(2, 8, 4, 4)).shape[1]
    net = doubled(lambda m, x: m.d(m.c(op(m.b(m.a(x).relu()))).relu()), a=zero(nn.Conv2d(3, 8, 3), (0,1)), b=zero(nn.Conv2d(8, 8, 1), (2,5)),
        c=zero(nn.Conv2d(n, 6, 1), (4,)), d=nn.Conv2d(6, 2, 1))
    c = condensed(net, randn(2, 3, 7, 7))
    word = dict(batch_mean='mean').get(name, name)
    assert widths(c, 'a', 'c')==[6,5]
    assert widths(c, 'b')==[6] or kept(c, word)==2, f'{word} is not named\n{c.report}'

@pytest.mark.parametrize('op', [lambda x: x.mean(1), lambda x: x.sum(1), lambda x: x.amax(1), lambda x: x.var(1), lambda x: x.norm(dim=1)],
    ids=['mean', 'sum', 'amax', 'var', 'norm'])
def test_reductions_over_channels(op):
    net = doubled(lambda m, x: m.c(op(m.b(m.a(x).relu())).flatten(1)), a=zero(nn.Conv2d(3, 8, 1), (0,1)), b=zero(nn.Conv2d(8, 8, 1), (2,5)), c=nn.Linear(16, 2))
    net.b.bias.data[[2,5]] = 0
    c = condensed(net, randn(2, 3, 4, 4))
    assert widths(c, 'a')==[6] and (widths(c, 'b')==[6] or kept(c, 'over') + kept(c, ' in ')==2)

# ---- what is read in unusual ways: exact by analysis alone

M = nn.MultiheadAttention
def attended(f, heads=2, **parts):
    "`f` with attention `m` on what a layer with two constants makes."
    parts.update(a=zero(nn.Linear(8, 8), (1,2)), m=M(8, heads, batch_first=True), c=nn.Linear(8, 3))
    return doubled(lambda m, x: m.c(f(m, x, m.a(x).relu())), **parts),randn(2, 5, 8)
def vectors_of(f, **parts): return doubled(f, a=zero(nn.Linear(8, 8), (1,2), (3,)), c=nn.Linear(8, 2), **parts),randn(3, 8)
def bag(): return doubled(lambda m, i, x: m.c(m.e(i, per_sample_weights=m.w(x).sigmoid())), e=nn.EmbeddingBag(9, 8, mode='sum'), w=nn.Linear(4, 3),
    c=zero(nn.Linear(8, 3), cols=(1,2))),torch.randint(9, (4, 3)),randn(4, 4)
def written(m, x):
    y = m.a(x).clone()
    y[:,2:4] = y[:,4:6]*2
    return m.c(y)
def halves_changed(m, x):
    y = m.a(x)
    y.chunk(2, 1)[0].relu_()
    return m.c(y)
def zeros_filled(m, x):
    y = torch.zeros(len(x), 12, dtype=x.dtype)
    y[:,2:10] = m.a(x)
    return m.d(y)
def weight_standardized(m, x): return m.c(F.linear(x, (m.a.weight-m.a.weight.mean(1, keepdim=True))/(m.a.weight.std(1, keepdim=True)+.1), m.a.bias).relu())
odd = dict(
    attention_by_keywords=lambda: attended(lambda m, x, y: m.m(query=y, key=y, value=y)[0]),
    mask_of_a_layer=lambda: attended(lambda m, x, y: m.m(y, y, y, attn_mask=m.k(x).transpose(1, 2), need_weights=False)[0], 1, k=nn.Linear(8, 5)),
    padding_of_a_layer=lambda: attended(lambda m, x, y: m.m(y, y, y, key_padding_mask=m.k(x)[...,0]>1)[0], k=nn.Linear(8, 3)),
    attention_weights_used=lambda: attended(lambda m, x, y: y*m.m(y, y, y)[1].mean(1)[...,None]), weights_of_samples=bag,
    parameter_given_out=lambda: vectors_of(lambda m, x: (m.c(m.a(x).relu()), m.a.weight)), written_in_slices=lambda: vectors_of(written),
    parameter_squared=lambda: vectors_of(lambda m, x: m.c(m.a(x).relu()) + (m.a.weight**2).sum()), halves_changed=lambda: vectors_of(halves_changed),
    zeros_filled=lambda: vectors_of(zeros_filled, d=nn.Linear(12, 2)), weight_standardized=lambda: vectors_of(weight_standardized),
    decoder_with_the_same_weight=lambda: vectors_of(lambda m, x: F.linear(m.a(x).relu(), m.a.weight.t())),
    bias_as_a_gate=lambda: vectors_of(lambda m, x: m.c(m.a(x).relu()*m.a.bias.sigmoid())), state_of_a_layer=lambda: attended(
        lambda m, x, y: m.l(y, m.h(x.mean(1))[None].contiguous())[0], l=nn.GRU(8, 8, batch_first=True), h=nn.Linear(8, 8)),
    chosen_by_a_layer=lambda: vectors_of(lambda m, x: m.c(m.a(x).gather(1, m.b(x).argsort(1))), b=nn.Linear(8, 8)),
    nearest_of_a_codebook=lambda: vectors_of(lambda m, x: m.c(m.p[torch.cdist(m.a(x), m.p).argmin(1)]), p=P(5, 8)),
    outer_product=lambda: vectors_of(lambda m, x: m.d((m.a(x)[:,:,None]*m.b(x)[:,None]).flatten(1)), b=zero(nn.Linear(8, 4), (2,)), d=nn.Linear(32, 2)),
    padded_to_a_width=lambda: vectors_of(lambda m, x: m.d(F.pad(y:=m.a(x), (0,12-y.shape[1])).relu()), d=nn.Linear(12, 2)),
    filled_up_to_a_width=lambda: vectors_of(lambda m, x: m.d(torch.cat([y:=m.a(x), y.new_zeros(len(y), 12-y.shape[1])], 1)), d=nn.Linear(12, 2)),
    shared_on_other_constants=lambda: (doubled(lambda m, x: m.c(m.b(m.a(x))) + m.d(m.b(m.e(x))), a=zero(nn.Linear(8, 2), (0,1)), e=zero(nn.Linear(8, 2), (0,1)),
        b=nn.Linear(2, 6, bias=False), c=nn.Linear(6, 2, bias=False), d=nn.Linear(6, 2, bias=False)),randn(3, 8)),
    coordinates=lambda: (doubled(lambda m, x: m.c(torch.cat([m.a(x), torch.linspace(0, 1, x.shape[-1], dtype=x.dtype).expand(len(x), 1, *x.shape[2:])], 1)),
        a=zero(nn.Conv2d(3, 8, 1), (1,2)), c=nn.Conv2d(9, 2, 1)),randn(2, 3, 6, 6)))

@pytest.mark.parametrize('verify', [False, True])
@pytest.mark.parametrize('name', odd)
def test_read_in_unusual_ways(name, verify):
    net,*xs = odd[name]()
    c = condensed(net, *xs, verify=verify)
    assert not hasattr(net, 'a') or 'a' in c.report.removed or sum(k['units'] for k in c.report.kept if k['layer']=='a')==2

@pytest.mark.parametrize('f', [lambda y: y/y.shape[1], lambda y: y/y.shape[-1], lambda y: y*len(y), lambda y: y.relu() if y.shape[1]>7 else y.sigmoid()],
    ids=['channels', 'width', 'items', 'branch'])
def test_sizes_in_the_arithmetic_are_found_by_verification(f): # Python computes with numbers of which the operations tell nothing
    net = doubled(lambda m, x: m.d(m.c(f(m.a(x))).relu()), a=zero(nn.Conv2d(3, 8, 1), (1,2)), c=zero(nn.Conv2d(8, 6, 1), (3,)), d=nn.Conv2d(6, 2, 1))
    c = condensed(net, randn(2, 3, 6, 6), verify=True)
    assert widths(c, 'c')==[5] and (widths(c, 'a')==[6] or sum(k['units'] for k in c.report.kept if k['layer']=='a')==2)

# ---- whole branches

def test_dead_branches_become_their_constant():
    net = doubled(lambda m, x: m.c(m.a(x).relu() + m.b2(m.b1(x).relu())), a=nn.Conv2d(3, 6, 1), b1=nn.Conv2d(3, 20, 1), b2=nn.Conv2d(20, 6, 1),
        c=nn.Conv2d(6, 2, 1))
    net.b2.weight.data.zero_()
    c = condensed(net, randn(2, 3, 5, 5))
    assert c.report.params_after <= sum(p.numel() for m in (net.a,net.c) for p in m.parameters()) + 3+1 + 6+6 # b1 with one unit, b2 with one input

def test_dead_residual_block_becomes_the_identity():
    block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
    net = perturb(doubled(lambda m, x: m.c((y:=m.a(x)) + m.block(y)), a=nn.Conv2d(3, 6, 1), block=block, c=nn.Conv2d(6, 2, 1)))
    for t in (net.block[4].weight,net.block[4].bias): t.data.zero_()
    c = condensed(net, randn(2, 3, 5, 5))
    assert c.report.params_after <= sum(p.numel() for m in (net.a,net.c) for p in m.parameters()) + 6*9+1+2 + 9*6+6+12
    assert c.report.macs_after < .5*c.report.macs_before

class Resized(nn.Module):
    "Zeros of a size of their own."
    def __init__(self, conv):
        super().__init__()
        self.conv = conv
    def forward(self, x): return F.interpolate(self.conv(x), size=6)

def dead(*args, **kwargs): return zero(nn.Conv2d(3, 4, *args, **kwargs), range(4))
def beside(b, d=None, f=lambda m, x: m.c(m.d(x) + m.b(x)), n=6): return doubled(f, b=b, d=d or nn.Conv2d(3, 4, 1), c=nn.Conv2d(4, 2, 1)),randn(2, 3, n, n)
branches = dict(conv=lambda: beside(dead(1)), strided=lambda: beside(dead(3, stride=2, padding=1), nn.Conv2d(3, 4, 1, stride=2)),
    strided_on_a_point=lambda: beside(dead(3, stride=2, padding=1), nn.Conv2d(3, 4, 1, stride=2), n=1),
    padded_otherwise=lambda: beside(dead(3, stride=2, padding=1, padding_mode='circular'), nn.Conv2d(3, 4, 1, stride=2)),
    same=lambda: beside(dead(4, padding='same')), pooled=lambda: beside(nn.Sequential(nn.MaxPool2d(2), dead(1)), nn.Conv2d(3, 4, 2, stride=2)),
    pooled_to_a_size=lambda: beside(nn.Sequential(dead(1), nn.AdaptiveAvgPool2d(6)), nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(6))),
    resized_inside=lambda: beside(Resized(dead(1)), Resized(nn.Conv2d(3, 4, 1))),
    resized=lambda: beside(nn.Sequential(nn.MaxPool2d(2), dead(1)), f=lambda m, x: m.c((y:=m.d(x)) + F.interpolate(m.b(x), size=y.shape[2:]))),
    called_twice=lambda: beside(dead(1), f=lambda m, x: m.c(m.d(x) + m.b(x)*m.b(F.pad(x, (1,1)))[...,1:-1])),
    read_by_its_weight=lambda: beside(dead(1), f=lambda m, x: m.c(m.d(x) + m.b(x) + m.b.weight.sum())),
    asked_for_its_width=lambda: beside(dead(1), f=lambda m, x: m.c(m.d(x) + m.b(x)) if m.b.out_channels==m.d.out_channels else m.b(x)),
    carrier_beside_what_is_not_read=lambda: (doubled(lambda m, x: m.b(m.a(x)), a=zero(nn.Conv2d(2, 8, 3), (0,1,2,4,5,6,7)),
        b=zero(nn.Conv2d(8, 3, 2, padding=1), (0,), cols=(3,))),randn(2, 2, 5, 9)))

@pytest.mark.parametrize('verify', [False, True])
@pytest.mark.parametrize('name', branches)
def test_dead_branches(name, verify): condensed(*branches[name](), verify=verify)

def test_hooks_of_dead_branches_are_called():
    net,x = beside(dead(1))
    seen = []
    net.b.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    c = Condenser(net, x).condense()
    seen.clear()
    c.model(x)
    assert [s[2:] for s in seen]==[(6,6)]

# ---- bad input

def mlp(): return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
def same(net, before): return all(torch.equal(v, before[k]) for k,v in net.state_dict().items())

class Depends(nn.Module):
    "Takes another path for another input."
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(6, 8),nn.Linear(8, 2)
    def forward(self, x):
        x = self.a(x)
        if x.sum()>0: x = x.relu() # the line to be named
        return self.b(x)

def test_control_flow_that_depends_on_data_is_named_with_its_line_and_the_way_out():
    net = nn.Sequential(nn.Linear(6, 6), Depends())
    before = deepcopy(net.state_dict())
    lines,start = inspect.getsourcelines(Depends.forward)
    with pytest.raises(ValueError) as e: Condenser(net, torch.randn(4, 6)).condense()
    message = str(e.value)
    line = next(i for i,l in enumerate(lines) if 'to be named' in l)
    assert 'Depends' in message or 'Sequential' in message
    assert f'test_ops.py:{start+line}' in message or f'line {start+line}' in message and 'test_ops.py' in message, message
    assert 'torch.where' in message and same(net, before)

@pytest.mark.parametrize('sample,words', [
    (torch.randn(4, 7),('(4, 7)',)), (torch.randn(0, 6),('empty',)), (torch.randn(4, 6).double(),('float64','float32')),
    (torch.ones(4, 6).long(),('int64','float32')),
    (torch.empty(4, 6, device='meta'),('meta','cpu')), (torch.randn(4, 3, 6, 6),('(4, 3, 6, 6)',)),
    ((torch.randn(4, 6),torch.randn(4, 6)),('(4, 6)','(4, 6)')), ('image',('str',)),
    (None,('NoneType',)), ((),('sample',))], ids=['shape', 'empty', 'double', 'whole', 'device', 'dimensions', 'two', 'text', 'none', 'nothing'])
@pytest.mark.parametrize('training', [False, True])
def test_sample_that_does_not_fit_is_a_value_error(sample, words, training):
    net = mlp().train(training)
    before = deepcopy(net.state_dict())
    with pytest.raises(ValueError) as e: Condenser(net, sample).condense(inplace=True)
    for w in words: assert w in str(e.value), str(e.value)
    assert same(net, before) and all(m.training==training for m in net.modules())

def test_no_zeros_give_an_equal_copy_and_the_report_says_so():
    net,x = mlp(),torch.randn(4, 6)
    c = Condenser(net, x).condense()
    assert c.model is not net and same(c.model, net.state_dict()) and c.report.removed=={} and c.report.kept==[] and 'Nothing could be removed' in str(c.report)
    assert c.report.params_after==c.report.params_before and c.report.macs_after==c.report.macs_before and torch.equal(c.inputs(x), x)

@pytest.mark.parametrize('inplace', [False, True])
def test_modes_stay_and_so_do_statistics(inplace):
    net,x = mlp().train(),torch.randn(4, 6)
    zero(net[0], (1,2))
    net[1].eval()
    net[2].seen = 3
    modes,stats = [m.training for m in net.modules()],net[1].num_batches_tracked.clone()
    c = Condenser(net, x).condense(inplace=inplace)
    assert [m.training for m in net.modules()]==modes==[m.training for m in c.model.modules()] and c.report.removed=={'0':2}
    assert c.model[1].num_batches_tracked==stats and c.model[2].seen==3 and (c.model is net)==inplace

def test_output_that_is_never_the_same_is_an_error_and_nothing_is_edited():
    net = zero(nn.Linear(6, 8), (1,2))
    calls = itertools.count()
    net = Model(lambda m, x: m.b(m.a(x).relu()) + next(calls), a=net, b=nn.Linear(8, 2))
    before = deepcopy(net.state_dict())
    fails(lambda: Condenser(net, torch.randn(4, 6)).condense(inplace=True), exc=ValueError)
    assert same(net, before) and net.a.out_features==8

def test_error_in_the_middle_leaves_all_as_it_was(monkeypatch):
    net,x = mlp(),torch.randn(4, 6)
    zero(net[0], (1,2))
    before,params = deepcopy(net.state_dict()),[*net.parameters()]
    c = Condenser(net, x)
    net[3].register_forward_hook(lambda m, i, o: 1/0 if m.in_features<8 else None)
    try: c = c.condense(inplace=True)
    except (ValueError, ZeroDivisionError): pass
    else: assert c.report.removed=={}
    assert same(net, before) and all(p is q for p,q in zip(params, net.parameters())) and net[0].out_features==8

def test_weights_that_are_no_numbers_are_not_zeros():
    net,x = mlp().eval(),torch.randn(4, 6)
    zero(net[0], (1,2))
    with torch.no_grad(): net[0].weight[3],net[3].weight[1,4] = math.nan,math.inf
    c = Condenser(net, x).condense()
    assert c.model[0].out_features in (6,8) and (c.model[0].weight.isnan().any(1).sum())==1
    with torch.no_grad(): assert torch.equal(c.model(c.inputs(x)).isnan(), net(x).isnan())

@pytest.mark.parametrize('model', [torch.relu, 'net', None])
def test_model_that_is_none(model):
    with pytest.raises((TypeError,ValueError), match='Module'): Condenser(model, torch.randn(4, 6)).condense()

def test_all_of_it_zero():
    net,x = mlp().eval(),torch.randn(4, 6)
    for p in net.parameters(): p.data.zero_()
    net[3].bias.data.fill_(.5)
    c = Condenser(net, x).condense()
    with torch.no_grad(): assert torch.equal(c.model(c.inputs(x)), torch.full((4, 2), .5))
    assert c.report.params_after <= 1+1+2+2+2 # one unit in each layer, and one input
