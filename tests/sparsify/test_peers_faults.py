"What other libraries crash on or get wrong, each as a small network: here the function stays the same, and what is dead is gone."
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from fasterprune.all import *
from support.fuzz_nets import Model, P, zero
from support.nets import gap, perturb

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def net(run, **parts): return perturb(Model(run, **parts)).double().eval()
def conv(i, o, k=3, **kwargs): return nn.Conv2d(i, o, k, **kwargs)
def images(n=2, size=9): return torch.randn(n, 3, size, size, dtype=torch.float64)

def exact(dense, verify=False, sizes=(9,12,17)):
    "The condensed network, that gives what the dense one does at several batch sizes and resolutions."
    c = Condenser(dense, images(size=sizes[0])).condense(verify=verify)
    for size in sizes:
        for n in (1, 2, 5): assert gap(dense, c, images(n, size)) <= 1e-10
    return c

def widths(c, *names): return tuple(len(c.model.get_submodule(n).weight) for n in names)

def around(op, n=8, cols=(3,7), rows=(1,5), **parts):
    "`op` on 8 channels, of which `rows` are constants; of the `n` that come of it `cols` are not read."
    return net(lambda m, x: m.c(op(m, m.n(m.a(x)).relu())).tanh(), a=zero(conv(3, 8), rows), n=nn.BatchNorm2d(8), c=zero(conv(n, 4, 1), cols=cols), **parts)

# ---- torch-pruning crashes

def by_number(m, x): return torch.cat([x[:,:4].sigmoid(), x[:,4:]], 1)
def by_size(m, x): return torch.cat([x[:,:x.shape[1]//2].sigmoid(), x[:,x.shape[1]//2:]], 1)

@pytest.mark.parametrize('op,n', [(by_number,6), (by_size,4)]) # a number in the code counts the first four, and these stay
@pytest.mark.parametrize('verify', [False, True])
def test_static_slice(op, n, verify): assert widths(exact(around(op), verify), 'a')==(n,)

def test_pixel_shuffle():
    c = exact(around(lambda m, x: F.pixel_shuffle(x, 2), n=2, cols=(1,), rows=()))
    assert widths(c, 'a')==(4,) and c.model.c.in_channels==1

@pytest.mark.parametrize('op', [lambda m, x: (x.movedim(1, -1)@m.w).movedim(-1, 1), lambda m, x: torch.einsum('bchw,co->bohw', x, m.w)],
    ids=['matmul', 'einsum'])
def test_product_with_a_parameter(op):
    dense = around(op, n=5, cols=(), w=P(8, 5))
    with torch.no_grad(): dense.w[[3,7]] = 0
    c = exact(dense)
    assert widths(c, 'a')==(5,) and c.model.w.shape==(5,5) # of the two constants one carries both

def test_detached_branch():
    c = exact(around(lambda m, x: x + m.b(x.detach()).relu(), b=zero(conv(8, 8, 1), (1,5), (3,7))))
    assert widths(c, 'a', 'b')==(4,4)

@pytest.mark.parametrize('op', [lambda m, x: x - x.mean(1, keepdim=True), lambda m, x: x*x.mean(1, keepdim=True).sigmoid()])
def test_mean_over_channels(op): # it counts its channels, so those stay; others go
    c = exact(around(lambda m, x: m.e(op(m, m.b(x).relu())).relu(), n=6, cols=(2,), b=zero(conv(8, 8, 1), (0,), (3,7)), e=zero(conv(8, 6, 1), (4,))))
    assert widths(c, 'a', 'e')==(4,4) and (widths(c, 'b')==(7,) or any('mean' in k['reason'] and k['layer']=='b' for k in c.report.kept))

# ---- torch-pruning is silently wrong

def test_softmax_over_channels():
    c = exact(around(lambda m, x: m.e(m.b(x).softmax(1)).relu(), n=6, cols=(2,), b=zero(conv(8, 8, 1), (0,), (3,7)), e=zero(conv(8, 6, 1), (4,))))
    assert widths(c, 'a', 'e')==(4,4) and (widths(c, 'b')==(7,) or any('softmax' in k['reason'] and k['layer']=='b' for k in c.report.kept))

def chain(depth=3, **kwargs):
    "Convolutions with BatchNorms, half of the filters of each zero by chance."
    layers = [l for i in range(depth) for l in (conv(8 if i else 3, 8, **kwargs), nn.BatchNorm2d(8), nn.ReLU())]
    for l in layers[::3]: zero(l, torch.randperm(8)[:4].tolist())
    return perturb(nn.Sequential(*layers, conv(8, 2, 1), nn.Tanh())).double().eval()

def test_shifts_of_dead_channels_in_a_plain_chain(): # 0.55 of the output, sparsified by fasterai and cut by its Pruner
    c = exact(chain(bias=False))
    assert [len(m.weight) for m in c.model if isinstance(m, nn.Conv2d)]==[4,4,4,2] or \
        [len(m.weight) for m in c.model if isinstance(m, nn.Conv2d)]==[5,5,4,2] # without a bias that takes them up the constants of a layer need a carrier

@pytest.mark.parametrize('bias', [False, True])
def test_borders_with_padding(bias): # a bias instead of the constants is wrong at the borders by 0.19
    dense = chain(padding=1, bias=bias)
    c = exact(dense)
    got = [len(m.weight) for m in c.model if isinstance(m, nn.Conv2d)]
    assert got[-2:]==[4,2] and all(g in (4,5) for g in got[:2])
    x = images(1, 14)
    with torch.no_grad(): diff = (dense(x)-c.model(c.inputs(x))).abs()
    for edge in (diff[...,0,:], diff[...,-1,:], diff[...,:,0], diff[...,:,-1]): assert edge.max() <= 1e-10

class Basic(nn.Module):
    "A residual block of a ResNet."
    def __init__(self, n):
        super().__init__()
        self.conv1,self.bn1,self.conv2,self.bn2 = conv(n, n, padding=1, bias=False),nn.BatchNorm2d(n),conv(n, n, padding=1, bias=False),nn.BatchNorm2d(n)
    def forward(self, x): return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()

def test_residual_blocks_with_independent_zeros(): # torch-pruning .55, simplify .45
    dense = net(lambda m, x: m.c(m.two(m.one(m.a(x).relu()))).tanh(), a=conv(3, 8), one=Basic(8), two=Basic(8), c=conv(8, 2, 1))
    for b in (dense.one,dense.two):
        for l in (b.conv1,b.conv2): zero(l, torch.randperm(8)[:4].tolist())
    c = exact(dense)
    assert all(w in (4,5) for w in widths(c, 'one.conv1', 'two.conv1')) and widths(c, 'a', 'one.conv2', 'two.conv2')==(8,8,8)

def test_residual_stream_that_is_dead_in_all_its_members():
    dense = net(lambda m, x: m.c(m.two(m.one(m.a(x).relu()))).tanh(), a=zero(conv(3, 8), (0,6)), one=Basic(8), two=Basic(8), c=conv(8, 2, 1))
    for l in (dense.one.conv2,dense.two.conv2): zero(l, (0,6))
    for b in (dense.a.bias,dense.one.bn2.bias,dense.two.bn2.bias): b.data[[0,6]] = 0
    for m in (dense.one.bn2.running_mean,dense.two.bn2.running_mean): m[[0,6]] = 0
    c = exact(dense)
    assert widths(c, 'a', 'one.conv2', 'two.conv2')==(6,6,6) and c.report.kept==[]

def test_dense_connections_with_independent_zeros(): # torch-pruning 1.1
    def _run(m, x):
        x = m.a(x)
        x = torch.cat([x, m.b(m.n(x).relu())], 1)
        x = torch.cat([x, m.d(m.o(x).relu())], 1)
        return m.c(x).tanh()
    dense = net(_run, a=zero(conv(3, 8), (0,4)), n=nn.BatchNorm2d(8), b=zero(conv(8, 4, padding=1), (1,)), o=nn.BatchNorm2d(12),
        d=zero(conv(12, 4, padding=1), (2,3)), c=conv(16, 2, 1))
    c = exact(dense)
    assert sum(widths(c, 'a', 'b', 'd'))==c.model.c.in_channels and widths(c, 'd')==(2,) and 6+3 <= sum(widths(c, 'a', 'b')) <= 6+3+2 # and carriers

def test_depthwise_convolution_with_live_shifts(): # mobilenet_v2: torch-pruning .77
    dense = around(lambda m, x: m.o(m.d(x)).relu(), d=conv(8, 8, groups=8), o=nn.BatchNorm2d(8))
    assert widths(exact(dense), 'a', 'd')==(4,4)

# ---- simplify is wrong or crashes

def test_weights_whose_sum_cancels(): # it takes `weight.sum() == 0` for a zero
    dense = around(lambda m, x: m.b(x).relu(), n=6, cols=(), rows=(2,), b=conv(8, 6, 1))
    with torch.no_grad():
        for l in (dense.a,dense.b):
            for i in (0, 1): l.weight[i] -= l.weight[i].mean()
            l.weight[0].flatten()[0] -= l.weight[0].sum()
        dense.b.weight[:,4] -= dense.b.weight[:,4].mean()
    c = exact(dense)
    assert widths(c, 'a', 'b')==(7,6) and c.report.removed=={'a':1}

def test_gates(): # squeeze-and-excite: simplify .19 or a crash
    def _op(m, x): return x*m.e(m.s(x.mean((2,3), keepdim=True)).relu()).sigmoid()
    s,e = zero(conv(8, 4, 1), (2,), (3,7)),zero(conv(4, 8, 1), (1,5))
    assert widths(exact(around(_op, s=s, e=e)), 'a', 's', 'e')==(4,3,4)

@pytest.mark.parametrize('groups,rows,cols,n', [(4,(0,1),(4,5),4), (8,(1,5),(3,7),4), (1,(),(3,7),8)])
def test_group_norm(groups, rows, cols, n): # whole groups go; what others of its group are normed with stays
    c = exact(around(lambda m, x: m.g(x), rows=rows, cols=cols, g=nn.GroupNorm(groups, 8)))
    assert widths(c, 'a')==(n,) and c.model.g.num_channels==n and c.model.g.num_groups==groups-(8-n)*groups//8

@pytest.mark.parametrize('groups,left', [(2,4), (4,8)]) # a group that reads one channel would be depthwise
def test_grouped_convolution(groups, left):
    dense = around(lambda m, x: m.g(x).relu(), cols=(3,7), g=conv(8, 8, groups=groups))
    with torch.no_grad(): dense.g.weight.unflatten(0, (groups,-1))[[*range(groups//2-1, groups, groups//2)],:,-1] = 0 # 3 and 7 are not read
    c = exact(dense)
    assert widths(c, 'a')==(left,) and c.model.g.groups==groups

def test_convolution_that_is_shared():
    dense = around(lambda m, x: m.b(m.b(x).relu()).relu(), cols=(2,), rows=(2,), b=zero(conv(8, 8, 1), (2,), (2,)))
    c = exact(dense)
    assert widths(c, 'a', 'b')==(7,7)

def test_channel_shuffle_and_halves(): # shufflenet: torch-pruning crashes, simplify .49
    def _op(m, x):
        a,b = x.chunk(2, 1)
        x = torch.cat([a, m.b(b).relu()], 1)
        return x.view(len(x), 2, x.shape[1]//2, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
    dense = around(_op, cols=(2,3,6,7), b=zero(conv(4, 4, 1), (), (1,3)))
    c = exact(dense)
    assert widths(c, 'a')[0] <= 6 and c.model.c.in_channels <= 6

# ---- fasterai

def test_heads_are_not_cut(): # 4 classes to 2
    dense = net(lambda m, x: m.fc(m.a(x).relu().mean((2,3))), a=zero(conv(3, 8), (0,1)), fc=zero(nn.Linear(8, 4), (0,2), (3,)))
    c = exact(dense)
    assert widths(c, 'a', 'fc')==(5,4) and c.model(images()).shape==(2,4) and c.report.kept==[dict(layer='fc', units=2, reason='an output of the network')]

@pytest.mark.parametrize('order', ['conv1 conv2 bn1 bn2', 'bn2 conv2 bn1 conv1', 'bn1 conv1 bn2 conv2'])
def test_norms_are_found_by_the_graph(order):
    parts = dict(conv1=conv(3, 8), conv2=conv(8, 8), bn1=nn.BatchNorm2d(8), bn2=nn.BatchNorm2d(8))
    dense = net(lambda m, x: m.c(m.bn2(m.conv2(m.bn1(m.conv1(x)).relu())).relu()).tanh(), **{n:parts[n] for n in order.split()}, c=conv(8, 2, 1))
    zero(dense.conv1, (0,1,2))
    zero(dense.conv2, (5,))
    c = exact(dense)
    assert widths(c, 'conv1', 'bn1', 'conv2', 'bn2')==(5,5,7,7)

def test_neurons_go_with_their_bias_and_norm():
    dense = perturb(nn.Sequential(zero(nn.Linear(6, 8), (0,1)), nn.BatchNorm1d(8), nn.ReLU(), zero(nn.Linear(8, 8), (4,)), nn.Sigmoid(),
        nn.Linear(8, 2))).double().eval()
    x = torch.randn(5, 6, dtype=torch.float64)
    c = Condenser(dense, x).condense(verify=False)
    assert gap(dense, c, x) <= 1e-10 and [len(m.weight) for m in c.model if hasattr(m, 'weight')]==[6,6,7,2]

def test_embedding_in_the_model():
    dense = net(lambda m, i: m.c(m.a(m.e(i).mean(1)).relu()), e=nn.Embedding(11, 8), a=zero(nn.Linear(8, 8), (2,), (0,5)), c=nn.Linear(8, 2))
    i = torch.randint(11, (4, 6))
    c = Condenser(dense, i).condense(verify=False)
    assert gap(dense, c, i) <= 1e-10 and c.model.e.weight.shape==(11,6) and widths(c, 'a')==(7,)

# ---- what their users ask for

def test_zeros_of_torch_prune_are_really_removed():
    dense = chain()
    for l in (dense[0],dense[3]): prune.ln_structured(l, 'weight', .5, 2, 0)
    c = exact(dense)
    assert [m.weight.shape[0] for m in c.model if isinstance(m, nn.Conv2d)]==[4,4,4,2]

def test_network_is_not_bound_to_the_size_of_the_sample():
    dense = chain(padding=1)
    small,large = [Condenser(dense, images(size=s)).condense(verify=False) for s in (9, 20)]
    assert {k:v.shape for k,v in small.model.state_dict().items()}=={k:v.shape for k,v in large.model.state_dict().items()}
    for c in (small,large):
        for s in (5, 9, 20, 33): assert gap(dense, c, images(1, s)) <= 1e-10

def test_nothing_dead_stays_without_a_reason():
    c = exact(around(lambda m, x: x.cumsum(1), cols=()))
    assert widths(c, 'a')==(6,) or sum(k['units'] for k in c.report.kept if k['layer']=='a' and 'cumsum' in k['reason'])==2
