"Weights that are computed in forward: known by what they do, and plain where something of them goes."
from copy import deepcopy
from functools import partial
import pytest, timm, torch
from fastai.basics import DataLoader, DataLoaders, Learner, SGD
import torch.nn.functional as F
from timm.layers import StdConv2d
from timm.models.nfnet import NormFreeNet, _dm_nfnet_cfg
from timm.models.resnetv2 import ResNetV2
from torch import nn
from torch.utils.data import TensorDataset
from fasterprune.all import *
from support.fuzz_nets import Model
from support.nets import gap
from support.zeros import cast, gap as largest_gap, images, pairs, zeroed
from support.exact import Root, Standard, condensed, dead, randn, stream

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

# ---- weights that are computed in forward

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

class Sealed(nn.Module):
    "Cuts off at a number that it reads out of a buffer."
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(6, 16),nn.Linear(16, 3)
        self.register_buffer('most', torch.tensor(2.))
    def forward(self, x): return self.b(self.a(x).clamp(max=self.most.item()))

def cut_off(m):
    m.a.weight.data[::2],m.a.bias.data[::2] = 0,3 # constants, as large as the buffer lets them be
    m.most.fill_(1.)

later = dict(standard=(lambda: nn.Sequential(Hand(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)), lambda m: dead(m[0], range(4))),
    masked=(lambda: nn.Sequential(Inline('masked', 3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)), lambda m: dead(m[0], range(4))), number=(Sealed, cut_off))

@pytest.mark.parametrize('back', [False,True])
@pytest.mark.parametrize('name', later)
def test_zeros_that_come_and_go_after_a_condenser_was_made(name, back):
    "What was computed of other values is not taken for what it is now."
    make,change = later[name]
    net,x = make(),torch.randn(2, 6) if name=='number' else torch.randn(2, 3, 8, 8)
    before = deepcopy(net.state_dict())
    if back: change(net)
    c = Condenser(net, x)
    net.load_state_dict(before)
    if not back: change(net)
    small,fresh = c.condense(verify=False),Condenser(net, x).condense()
    assert small.report.params_after==fresh.report.params_after and gap(net, small, x) <= 1e-5
    assert (small.report.params_after<small.report.params_before)==(not back)

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
