"What is read in unusual ways, whole branches, and input that makes no sense."
import inspect, itertools, math
from copy import deepcopy
import pytest, torch
import torch.nn.functional as F
from fastcore.test import test_fail as fails
from torch import nn
from fasterprune.all import *
from support.fuzz_nets import Model, P, zero
from support.nets import perturb
from support.around import condensed, doubled, randn, widths

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

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
    assert f'test_unusual.py:{start+line}' in message or f'line {start+line}' in message and 'test_unusual.py' in message, message
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

# ---- what analysis got wrong once, or only a page tried

@pytest.mark.parametrize('args', [dict(divisor_override=3), dict(divisor_override=None), dict(divisor_override=4)])
@pytest.mark.parametrize('positional', [True, False])
def test_a_pool_with_a_divisor_of_its_own_changes_constants(args, positional):
    "Dead channels give out their bias; the mean of four equal numbers over another divisor is no such number."
    def pool(x):
        if positional: return F.avg_pool2d(x, 2, 2, 0, False, True, args['divisor_override'])
        return F.avg_pool2d(x, 2, **args)
    net = Model(lambda m, x: m.b(pool(m.a(x).sigmoid())), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 1)).double().eval()
    with torch.no_grad(): net.a.weight[1:4] = 0
    x = randn(2, 3, 8, 8)
    c = Condenser(net, x).condense(verify=False) # what the analysis alone says has to be right
    torch.testing.assert_close(c.model(x), net(x))

@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('verify', [False, True])
def test_a_weight_that_is_used_as_it_is_and_transposed(bias, verify):
    "An encoder whose decoder is its transposed weight: hidden units that are dead go."
    net = Model(lambda m, x: F.linear(m.a(x).relu(), m.a.weight.T), a=nn.Linear(6, 8, bias=bias)).double().eval()
    zero(net.a, (1,4,5))
    if bias: net.a.bias.data[[1,4,5]] = 0
    x = randn(3, 6)
    c = Condenser(net, x).condense(verify=verify)
    torch.testing.assert_close(c.model(x), net(x))
    assert len(c.model.a.weight)==5, c.report
