"One small network for each operation: what is dead around it goes, and the output stays exactly the same. And input that makes no sense."
from copy import deepcopy
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from fasterprune.all import *
from support.fuzz_nets import Model, P, zero
from support.nets import Do, perturb
from support.around import condensed, doubled, randn, widths

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
    logaddexp=lambda x: torch.logaddexp(x, x.cos()), logaddexp2=lambda x: torch.logaddexp2(x, -x), renorm=lambda x: x.renorm(2, 1, .5),
    renorm_in_space=lambda x: x.renorm(1, 1, .5).amax(3),
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
no_constants = 'stack cat_others_in_space unbind divided_by_sum l2 softmax_in_space renorm renorm_in_space cumsum position linear_in_space class_token_of_tokens'.split()
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
