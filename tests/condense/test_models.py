"Models that ask for more than layers in a row: never wrong, never a crash, and what stays is told."
from copy import deepcopy
import math
import pytest, torch
import torch.nn.functional as F
from fastcore.test import test_fail as fails
from torch import nn
from fasterprune.all import *
from fasterprune.condense.search import Search
from fasterprune.graph.graph import Graph
from support.nets import gap, perturb

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

class Net(nn.Module):
    "A model that computes `f(self, *inputs)` and has `parts`."
    def __init__(self, f, **parts):
        super().__init__()
        self.f = f
        for k,v in parts.items(): setattr(self, k, v)
    def forward(self, *xs): return self.f(self, *xs)

def P(*size): return nn.Parameter(torch.randn(*size))
def conv(i, o, **kwargs): return nn.Conv2d(i, o, 3, padding=1, **kwargs)
def flat(f, **parts): return Net(f, a=nn.Linear(6, 8), c=nn.Linear(8, 2), **parts)
def flat3(f, **parts): return flat(f, b=nn.Linear(8, 8), **parts)
def deep(f, **parts): return Net(f, a=conv(3, 8), n=nn.BatchNorm2d(8), c=nn.Linear(8, 2), **parts)
def deep3(f, **parts): return deep(f, b=conv(8, 8), **parts)
def h(m, x): return m.n(m.a(x)).relu()
def lstm(m, x, *state): return m.c(m.l(m.a(x)[:,None].relu(), *state)[0][:,-1])
def tied(): # one weight, two biases
    m = flat3(lambda m, x: m.c(m.b(m.a(x).sigmoid()) + m.b2(m.a(x).sigmoid())), b2=nn.Linear(8, 8))
    m.b2.weight = m.b.weight
    return m
def one_bias(): # two weights, one bias
    m = flat3(lambda m, x: m.c(m.b(m.a(x).sigmoid()).relu() + m.b2(m.a2(x).sigmoid()).relu()), a2=nn.Linear(6, 8), b2=nn.Linear(8, 8))
    m.b2.bias = m.b.bias
    return m
def own_bias(m, x): return m.b(m.a(x).sigmoid()) * m.b.bias.exp()[:2].sum()
def written(m, x):
    y = m.b(m.a(x))
    y[:,1] = y[:,7]
    return m.c(y)
def through_view(m, x):
    y = m.b(m.a(x))
    y.view(-1).relu_()
    return m.c(y)
def no_grad(m, x):
    with torch.no_grad(): y = m.a(x)
    return m.c(y.relu())
def autocast(m, x):
    with torch.autocast('cpu', dtype=torch.bfloat16): y = m.a(x)
    return m.c(y.float().relu())
def remember(m, x):
    m.last = m.a(x).relu()
    return m.c(m.last)

flat_models = dict( # on vectors: what the analysis does not know, or could take for something else
    layer_norm=lambda: flat(lambda m, x: m.c(m.n(m.a(x)).relu()), n=nn.LayerNorm(8)),
    attention=lambda: flat(lambda m, x: m.c(m.m(*[m.a(x)[:,None].relu()]*3)[0][:,0]), m=nn.MultiheadAttention(8, 2, batch_first=True)),
    lstm=lambda: flat(lstm, l=nn.LSTM(8, 8, batch_first=True)),
    lstm_with_state=lambda: flat(lambda m, x: lstm(m, x, (torch.zeros(1, len(x), 8), torch.zeros(1, len(x), 8))), l=nn.LSTM(8, 8, batch_first=True)),
    matmul_by_parameter=lambda: flat(lambda m, x: m.c(m.a(x).relu()@m.w), w=P(8, 8)),
    transposed_parameter=lambda: flat(lambda m, x: m.c(F.linear(m.a(x).relu(), m.w.t())), w=P(8, 8)),
    gate_of_a_parameter=lambda: flat(lambda m, x: m.c(m.a(x)*m.g.sigmoid()), g=P(8)),
    computed_bias=lambda: flat3(lambda m, x: m.c(F.linear(m.a(x).relu(), m.b.weight, m.b.bias*2))),
    vector_as_weight=lambda: flat(lambda m, x: F.linear(m.a(x).relu(), m.w), w=P(8)),
    layer_on_a_parameter=lambda: flat(lambda m, x: m.c(m.a(x).relu()) + F.linear(m.w, m.c.weight), w=P(8)),
    weight_norm=lambda: flat(lambda m, x: m.c(m.w(m.a(x).relu())), w=nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))),
    spectral_norm=lambda: flat(lambda m, x: m.c(m.w(m.a(x).relu())), w=nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))),
    tied_weights=tied, tied_biases=one_bias,
    detached_branch=lambda: flat3(lambda m, x: m.c(m.a(x).relu() + m.b(m.a(x).detach()).relu())),
    unused_layer=lambda: flat(lambda m, x: m.c(m.a(x).relu()), unused=nn.Linear(3, 3)),
    cast_to_float=lambda: flat(lambda m, x: m.c(m.a(x.float()).relu())),
    truncated_to_integers=lambda: flat3(lambda m, x: m.c(m.b((m.a(x).sigmoid()*3).to(torch.int32).to(x.dtype)))),
    add_with_alpha=lambda: flat3(lambda m, x: m.c(m.b(torch.add(m.a(x), 1., alpha=3.)).relu())),
    autocast_inside=lambda: flat(autocast), no_grad_inside=lambda: flat(no_grad), keeps_an_activation=lambda: flat(remember),
    written_in_place=lambda: flat3(written), in_place_through_a_view=lambda: flat3(through_view),
    infinite_output=lambda: flat(lambda m, x: torch.cat([m.c(m.a(x).relu()), torch.full((len(x),1), -math.inf, dtype=x.dtype)], 1).softmax(1)),
    scalar_inside=lambda: flat(lambda m, x: m.c((y:=m.a(x).relu())/(1+y.abs().sum()))),
    mean_over_the_batch=lambda: flat(lambda m, x: m.c((y:=m.a(x).relu()) - y.mean(0))),
    gated_halves=lambda: flat(lambda m, x: m.d(F.glu(m.a(x), -1)), d=nn.Linear(4, 2)),
    bias_read_twice=lambda: Net(own_bias, a=nn.Linear(6, 8), b=nn.Linear(8, 2)),
    concatenated_twice=lambda: flat(lambda m, x: m.d(torch.cat([y:=m.a(x), y.sigmoid(), y*0], 1)), d=nn.Linear(24, 2)),
    concatenated_tokens=lambda: flat3(lambda m, x: m.d(torch.cat([m.a(x)[:,None], m.b(m.a(x)).relu()[:,None]], 1).flatten(1)), d=nn.Linear(16, 2)),
    concatenated_batches=lambda: flat(lambda m, x: m.c(torch.cat([y:=m.a(x), y.sigmoid()]).relu())[:len(x)]),
    concatenated_with_an_input=lambda: flat(lambda m, x: m.d(torch.cat([m.a(x).relu(), x], 1)), d=nn.Linear(14, 2)),
    concatenated_with_a_constant=lambda: flat(lambda m, x: m.d(torch.cat([m.a(x).relu(), x.new_ones(len(x), 2)], 1)), d=nn.Linear(10, 2)),
    numbers=lambda: flat3(lambda m, x: m.c(m.b((1-m.a(x))/3).sigmoid()**2 - .5)),
    not_finite=lambda: flat3(lambda m, x: m.c(((m.b(m.a(x)).relu()*0)/0).nan_to_num())),
    ratio=lambda: flat3(lambda m, x: m.c(m.a(x)/(1+m.b(x.new_ones(len(x), 8)).exp()))),
    prelu=lambda: flat(lambda m, x: m.c(m.p(m.a(x))), p=nn.PReLU(8)),
    checkpoint=lambda: flat(lambda m, x: m.c(torch.utils.checkpoint.checkpoint(m.a, x, use_reentrant=False).relu())),
    reads_a_literal_width=lambda: flat(lambda m, x: m.c(m.a(x).relu().view(-1, 8))))
def grouped(o=8, groups=8): return deep(lambda m, x: m.c(m.b(m.g(h(m, x)).relu()).amax((2,3))), g=conv(8, o, groups=groups), b=conv(o, 8))
def deep_cat(f, n, **parts): return Net(lambda m, x: m.c(m.d(f(m, x)).amax((2,3))), a=conv(3, 8), n=nn.BatchNorm2d(8), d=conv(n, 8), c=nn.Linear(8, 2), **parts)
def shuffled(*sizes): return deep3(lambda m, x: m.c(m.b(h(m, x).unflatten(1, sizes).transpose(1, 2).flatten(1, 2)).amax((2,3))))
deep_models = dict( # on images
    grouped=lambda: grouped(groups=4), depthwise=grouped, depthwise_with_several_outputs=lambda: grouped(o=16),
    depthwise_by_a_number=lambda: deep3(lambda m, x: m.c(m.b(F.conv2d(h(m, x), m.w, groups=8)).amax((2,3))), w=P(8, 1, 3, 3)),
    depthwise_on_the_input=lambda: deep3(lambda m, x: m.c(m.b(h(m, m.g(x))).amax((2,3))), g=conv(3, 3, groups=3)),
    depthwise_twice=lambda: deep3(lambda m, x: m.c(m.b(m.g(m.g(h(m, x)).sigmoid()).relu()).amax((2,3))), g=conv(8, 8, groups=8)),
    shuffled_groups=lambda: shuffled(2, -1), shuffled_parts=lambda: shuffled(-1, 2), shuffled_by_numbers=lambda: shuffled(2, 4),
    viewed_shuffle=lambda: deep3(lambda m, x: m.c(m.b(h(m, x).view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)).amax((2,3)))),
    concatenated=lambda: deep_cat(lambda m, x: torch.cat([h(m, x), m.b(h(m, x)).sigmoid()], 1), 14, b=conv(8, 6)),
    concatenated_to_the_image=lambda: deep_cat(lambda m, x: torch.cat([x, h(m, x), x.flip(1)], 1), 14),
    image_beside_image=lambda: Net(lambda m, x: m.d(torch.cat([x, x.sigmoid()], 2).mean((2,3))*2 + torch.cat([x, x], 1).flatten(1)[:,:3]), d=nn.Linear(3, 2)),
    concatenated_rows=lambda: deep3(lambda m, x: m.c(m.b(torch.cat([h(m, x), m.b(h(m, x))], 2)).amax((2,3)))),
    concatenated_to_zeros=lambda: deep_cat(lambda m, x: torch.cat([y:=h(m, x), torch.zeros_like(y)], 1), 16),
    channel_gate=lambda: deep3(lambda m, x: m.c(m.b(m.s(h(m, x).amax((2,3), keepdim=True)).sigmoid()*h(m, x)).mean((-1,-2))), s=nn.Conv2d(8, 8, 1)),
    gate_of_a_vector=lambda: deep3(lambda m, x: m.c(m.b(h(m, x)*m.s(h(m, x).mean((2,3))).sigmoid()[:,:,None,None]).amin((2,3))), s=nn.Linear(8, 8)),
    gate_expanded=lambda: deep3(lambda m, x: m.c(m.b((y:=h(m, x))*m.s(y.mean((2,3), True)).sigmoid().expand_as(y)).amin((2,3))), s=nn.Conv2d(8, 8, 1)),
    spatial_gate=lambda: deep3(lambda m, x: m.c(m.b(h(m, x)*m.s(h(m, x)).sigmoid()).mean((2,3))), s=conv(8, 1)),
    averaged_with_zeros=lambda: deep3(lambda m, x: m.c(m.p(F.avg_pool2d(m.e(x), 3, 1, 1).sigmoid()).amax((2,3))),
        e=conv(3, 8, bias=False), p=nn.Conv2d(8, 8, 1)),
    sums=lambda: deep3(lambda m, x: m.c(m.b(h(m, x)).sigmoid().sum((2,3)))),
    sum_of_all=lambda: deep3(lambda m, x: m.c(m.b(h(m, x)).relu().amax((2,3))) + h(m, x).sum()),
    transposed=lambda: Net(lambda m, x: m.c(m.t(m.b(m.a(x)).relu()).amax((2,3))), a=conv(3, 8), b=conv(8, 8), t=nn.ConvTranspose2d(8, 5, 2), c=nn.Linear(5, 2)),
    softmax_over_channels=lambda: deep3(lambda m, x: m.c(m.b(h(m, x)).softmax(1).mean((2,3)))),
    pixel_shuffle=lambda: Net(lambda m, x: m.d(F.pixel_shuffle(h(m, x), 2)), a=conv(3, 8), n=nn.BatchNorm2d(8), d=conv(2, 2)),
    static_slices=lambda: deep(lambda m, x: m.c(torch.cat([(y:=h(m, x))[:,:4], y[:,4:]], 1).mean((2,3)))),
    mean_over_channels=lambda: Net(lambda m, x: m.b(h(m, x)).mean(1), a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 8)),
    layer_scale=lambda: deep(lambda m, x: m.c((h(m, x)*m.g.view(1,-1,1,1)).mean((2,3))), g=P(8)),
    squeeze_and_excite=lambda: deep(lambda m, x: m.c((h(m, x)*m.s(h(m, x).mean((2,3), keepdim=True)).sigmoid()).mean((2,3))), s=nn.Conv2d(8, 8, 1)),
    padded_and_not=lambda: deep3(lambda m, x: m.c(m.b(y:=m.a(x).sigmoid()).amax((2,3)) + F.conv2d(y, m.b.weight, m.b.bias).amax((2,3)))),
    reflected_border=lambda: deep(lambda m, x: m.c(m.r(h(m, x)).amax((2,3))), r=nn.Conv2d(8, 8, 3, padding=1, padding_mode='reflect')),
    upsampled=lambda: deep3(lambda m, x: m.c(m.b(F.interpolate(h(m, x), scale_factor=2)).amax((2,3)))),
    group_norm=lambda: deep(lambda m, x: m.c(m.gn(h(m, x)).amax((2,3))), gn=nn.GroupNorm(2, 8)),
    squeezed=lambda: deep3(lambda m, x: m.c(F.adaptive_avg_pool2d(m.b(h(m, x)).relu(), 1).squeeze())))

def kill(model, share=.5):
    "Zero the first rows of all layers with more than three."
    with torch.no_grad():
        for m in perturb(model).modules():
            if hasattr(m, 'weight') and isinstance(m.weight, nn.Parameter) and m.weight.ndim>1 and len(m.weight)>3: m.weight[:int(len(m.weight)*share)] = 0
    return model

@pytest.mark.parametrize('share', [.5, .9])
@pytest.mark.parametrize('name', [*flat_models, *deep_models])
def test_never_wrong_and_never_a_crash(name, share):
    net = kill({**flat_models, **deep_models}[name](), share)
    x = torch.randn(4, 6) if name in flat_models else torch.randn(4, 3, 8, 8)
    c = Condenser(net, x).condense()
    others = [torch.randn(3, *x.shape[1:]), *([torch.randn(2, 3, 11, 11)] if name in deep_models else [])]
    for b in (x, *others): assert gap(net, c, b) <= 1e-5
    for m in c.model.modules():
        if isinstance(m, nn.Linear): assert (m.out_features,m.in_features)==m.weight.shape
        if isinstance(m, nn.ConvTranspose2d): assert (m.in_channels,m.out_channels//m.groups)==m.weight.shape[:2]
        elif isinstance(m, nn.Conv2d): assert (m.out_channels,m.in_channels//m.groups)==m.weight.shape[:2]
    zero = sum(int((m.weight==0).flatten(1).all(1).sum()) for m in c.model.modules() if isinstance(m, (nn.Linear,nn.Conv2d)))
    assert zero==0 or c.report.kept, 'zero rows stayed, and the report does not say why'

def test_known_models_are_right_without_verification(): # verification is a net, not a crutch
    for name in [*flat_models, *deep_models]:
        if name in ('reads_a_literal_width','attention'): continue # a number in the code, which the operations do not show
        net,x = kill({**flat_models, **deep_models}[name]()),torch.randn(4, 6) if name in flat_models else torch.randn(4, 3, 8, 8)
        c = Condenser(net, x).condense(verify=False)
        for b in (x, torch.randn(2, *x.shape[1:]), *([torch.randn(2, 3, 11, 11)] if name in deep_models else [])): assert gap(net, c, b) <= 1e-5, name

def mobile(m=1, pad=1, bias=.5): # a depthwise convolution with `m` outputs for each input
    net = perturb(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8*m, 3, padding=pad, groups=8), nn.BatchNorm2d(8*m), nn.ReLU(),
        nn.Conv2d(8*m, 4, 1)))
    with torch.no_grad():
        for n in (0, 1, 4): net[n].bias.fill_(bias)
        net[1].running_mean.zero_()
    return net

@pytest.mark.parametrize('m', [1, 3])
def test_depthwise_convolution_shrinks_with_its_channels(m):
    net,x = mobile(m),torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        net[3].weight[:3*m] = 0                      # zero kernels: the channels before them go, too
        net[0].weight[5],net[1].bias[5],net[0].bias[5] = 0,0,0 # nothing comes in
    c = Condenser(net, x).condense(verify=False)
    assert (c.model[0].out_channels, c.model[3].groups, c.model[3].in_channels, c.model[3].out_channels, c.model[6].in_channels)==(4,4,4,4*m,4*m)
    assert gap(net, c, x) <= 1e-5 and gap(net, c, torch.randn(1, 3, 11, 11)) <= 1e-5
    row = c.report.to_frame().loc['3']
    assert [*row[:5]]==['Conv2d',8,4,8*m,4*m] and c.report.removed=={'0':4, '3':4*m} and c.report.kept==[]

@pytest.mark.parametrize('pad,bias,n', [(1,.5,8), (0,.5,5), (1,-.5,5), (1,0.,5)])
def test_constant_at_the_border_of_a_depthwise_convolution_stays(pad, bias, n):
    net,x = mobile(pad=pad, bias=bias),torch.randn(2, 3, 8, 8)
    with torch.no_grad(): net[0].weight[:3] = 0
    c = Condenser(net, x).condense(verify=False)
    assert c.model[3].groups==n and gap(net, c, x) <= 1e-5
    assert c.report.kept==([] if n==5 else [dict(layer='0', units=3, reason='its constant meets the zeros beyond the border in 3')])

def test_groups_shrink_alike():
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for l,rows in ((net[0],[0,1,2,6,8]), (net[2],[0,4,5])): l.weight[rows],l.bias[rows] = 0,0
    c = Condenser(net, x).condense(verify=False)
    assert (c.model[0].out_channels, c.model[2].groups, c.model[2].in_channels, c.model[2].out_channels)==(8,2,8,6)
    assert gap(net, c, x) <= 1e-5

def test_gates_and_joins_are_told():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.n,self.d,self.s,self.b = conv(3, 8),nn.BatchNorm2d(8),conv(8, 8, groups=8),nn.Conv2d(8, 8, 1),conv(8, 8)
        def forward(self, x):
            x = self.d(self.n(self.a(x)))
            x = x*self.s(x.mean((2,3), keepdim=True))
            return x + self.b(x)
    g = Graph(nn.Sequential(Block(), nn.Conv2d(8, 2, 1)), torch.randn(2, 3, 8, 8))
    assert [why for _,why in g.joins]==['normed by 0.n', 'depthwise convolution 0.d', 'multiplied in 0', 'added in 0']
    units = g.bound['0.a.weight',0]
    assert all(torch.equal(u, units.unique()) for u,_ in g.joins) and all(torch.equal(g.bound[f'0.{n}.weight',0], units) for n in 'ndsb')

@pytest.mark.parametrize('f', [lambda m, x: m.c(x + m.a(x)), lambda m, x: m.c(m.g(x))])
def test_inputs_stay_if_asked_for_whatever_is_tied_to_them(f):
    net,x = Net(f, a=conv(3, 3), g=conv(3, 3, groups=3), c=conv(3, 2)),torch.randn(2, 3, 8, 8)
    with torch.no_grad(): net.c.weight[:,1],net.a.weight[:,1] = 0,0
    assert Condenser(net, x).condense().inputs(x).shape[1]==2
    c = Condenser(net, x, inputs=False).condense()
    assert torch.equal(c.inputs(x), x) and gap(net, c, x) <= 1e-5

@pytest.mark.parametrize('dim', [1, 2])
def test_what_is_concatenated_keeps_its_shape(dim):
    net = Net(lambda m, x, y: m.c(torch.cat([x, y], dim).flatten(1)), c=nn.Linear(18, 2))
    with torch.no_grad(): net.c.weight[:,[0,3,5,7,8,13]] = 0
    x,y = torch.randn(4, *(3,3) if dim==1 else (2,4)),torch.randn(4, *(3,3) if dim==1 else (2,5))
    assert gap(net, Condenser(net, (x,y)).condense(verify=False), x, y) <= 1e-5
    net = flat3(lambda m, x: m.d(torch.cat([m.a(x)[:,None], m.b(x)[:,None]], 1).flatten(1)), d=nn.Linear(16, 2))
    net.b = nn.Linear(6, 8)
    with torch.no_grad(): net.a.weight[:5],net.b.weight[2:] = 0,0
    c = Condenser(net, x:=torch.randn(4, 6)).condense(verify=False)
    assert gap(net, c, x) <= 1e-5 and c.model.a.out_features==c.model.b.out_features==5

def test_sample_of_zeros_verifies_as_well(monkeypatch): # the usual dummy batch
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad(): net[0].weight[:3] = 0
    edited = Search._edited
    def _wrong(self, groups=None):
        found = edited(self, groups)
        if groups!=[]: nn.init.zeros_(found.model[0].weight)
        return found
    monkeypatch.setattr(Search, '_edited', _wrong)
    assert Condenser(net, torch.zeros(4, 6)).condense().report.removed=={}, 'a wrong copy was accepted'

def test_several_inputs():
    net = Net(lambda m, x, y: m.c((m.a(x) + m.d(y)).relu()), a=nn.Linear(6, 8), d=nn.Linear(4, 8), c=nn.Linear(8, 2))
    with torch.no_grad(): net.a.weight[:,1],net.d.weight[:,[0,3]],net.a.weight[:3],net.d.weight[:2] = 0,0,0,0
    x,y = torch.randn(4, 6),torch.randn(4, 4)
    c = Condenser(net, (x,y)).condense()
    assert gap(net, c, x, y) <= 1e-5
    assert [o.shape[1] for o in c.inputs(x, y)]==[5,2]
    assert c.model.a.out_features==6 # the third unit is alive in the other layer, the first two are constant in both

@pytest.mark.parametrize('extra', [None, 3, torch.ones(2), torch.tensor(2.)], ids=repr)
def test_other_arguments(extra):
    net = kill(flat(lambda m, x, o: m.c(m.a(x).relu())*(2. if o is None else o)))
    x = torch.randn(4, 6)
    c = Condenser(net, (x,extra)).condense()
    assert gap(net, c, x, extra) <= 1e-5 and c.model.a.out_features==4

def test_unused_input():
    net,x = kill(flat(lambda m, x, y: m.c(m.a(x).relu()))),torch.randn(4, 6)
    c = Condenser(net, (x,torch.randn(4, 5))).condense()
    assert gap(net, c, x, torch.randn(4, 5)) <= 1e-5 and c.model.a.out_features==4

def test_dead_inputs_that_stay_are_told():
    net = flat(lambda m, x: m.c(m.a(x.view(-1, 6)).relu()))
    with torch.no_grad(): net.a.weight[:,[0,5]] = 0
    x = torch.randn(3, 1, 2, 3)
    c = Condenser(net, x).condense()
    assert gap(net, c, x) <= 1e-5 and (c.report.inputs_after==4 or sum(k['units'] for k in c.report.kept)==2)

def test_model_that_cannot_be_captured_is_named_and_untouched():
    net = kill(flat(lambda m, x: m.c(m.a(x).relu()) if x.sum()>0 else m.c(m.a(x))))
    before = deepcopy(net.state_dict())
    fails(lambda: Condenser(net, torch.randn(4, 6)), exc=ValueError, contains='Net cannot be captured')
    fails(lambda: Condenser(net, torch.randn(4, 6)), exc=ValueError, contains='test_models.py')
    fails(lambda: Condenser(kill(flat(lambda m, x: m.c(m.a(x)))), torch.randn(4, 7)), exc=ValueError, contains='(4, 7)')
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
