"""Networks that are analyzed more than once, for their code does something else with fewer units than it seemed to: what goes is no less for that.

Each is the smallest that shows what kept units in a network of a package, with the number of parameters that the arithmetic leaves."""
from math import ceil
import pytest, torch
from torch import nn
from fasterprune.all import Condenser
from fasterprune.condense.reduced import Constant
from support.nets import gap

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

@torch.no_grad()
def dead(layer, *rows):
    "Outputs `rows` of a layer are zero."
    layer.weight[list(rows)] = layer.bias[list(rows)] = 0
    return layer

def condensed(net, x):
    "Condensed by analysis alone: exact for other batch sizes, and once more for what is left."
    net,x = net.double().eval(),x.double()
    c = Condenser(net, x).condense(verify=False)
    for n in (2,5): assert gap(net, c, x[torch.arange(n)%len(x)]) <= 1e-10
    assert Condenser(c.model, x).condense(verify=False).report.params_after==c.report.params_after
    return c

# ---- a cut that leaves everything, or nothing

class Grows(nn.Module):
    "What comes in is added to the first of the channels, as in ReXNet."
    def __init__(self, n, m):
        super().__init__()
        self.n,self.conv = n,nn.Conv2d(n, m, 1)
    def forward(self, x):
        y = self.conv(x)
        return torch.cat([y[:,0:self.n] + x, y[:,self.n:]], 1)

@pytest.mark.parametrize('side', [1,5]) # with one position, what is empty has two shapes that are as empty
def test_channels_behind_a_cut_that_are_all_gone(side):
    net = nn.Sequential(dead(nn.Conv2d(3, 6, 1), 0, 1), Grows(6, 8), Grows(8, 10), nn.Conv2d(10, 2, 1))
    for m,rows in ((net[1],(0,1,6,7)), (net[2],(0,1,6,7))): dead(m.conv, *rows)
    c = condensed(net, torch.randn(3, 3, side, side))
    assert [m.conv.out_channels for m in c.model[1:3]]==[4,6] and (c.model[1].n,c.model[2].n)==(4,4)
    assert c.report.params_after==(3+1)*4 + (4+1)*4 + (4+1)*6 + (6+1)*2 and not c.report.kept

class Dual(nn.Module):
    "Two paths side by side in one tensor, as in DPN: one is added to, the other grows."
    def __init__(self, n, more, k):
        super().__init__()
        self.k,self.add,self.more = k,nn.Conv2d(n, k, 1),nn.Conv2d(n, more, 1)
    def forward(self, x): return torch.cat([x[:,:self.k] + self.add(x), x[:,self.k:], self.more(x)], 1)

def test_one_of_two_paths_that_is_all_gone():
    net = nn.Sequential(dead(nn.Conv2d(3, 7, 1), 5, 6), Dual(7, 2, 5), Dual(9, 3, 5), nn.Conv2d(12, 2, 1))
    dead(net[1].more, 0, 1)
    c = condensed(net, torch.randn(3, 3, 5, 5))
    assert [c.model[i].add.in_channels for i in (1,2)]==[5,6] and c.model[3].in_channels==9
    assert isinstance(c.model[1].more, Constant) and c.model[1].more.value.tolist()==[0.]

# ---- a layer that gives out a constant, next to something else that is taken for what it is not

class Classic(nn.Module):
    "Attention that is reshaped to the width of its input; `scaled` by the size of a head, as in Swin, that is computed from it."
    def __init__(self, d=32, h=4, scaled=False, rows=()):
        super().__init__()
        self.num_heads,self.scaled = h,scaled
        self.qkv,self.proj = dead(nn.Linear(d, 3*d), *rows),nn.Linear(d, d)
    def forward(self, x):
        B,N,C = x.shape
        q,k,v = self.qkv(x).reshape(B, N, 3, self.num_heads, C//self.num_heads).permute(2, 0, 3, 1, 4)
        if self.scaled: q = q*(C//self.num_heads)**-.5
        return self.proj((q@k.transpose(-2, -1)).softmax(-1).matmul(v).transpose(1, 2).reshape(B, N, C))

def heads(*gone, d=32, h=4): return [i for i in range(3*d) if i%d//(d//h) in gone]

class Branch(nn.Sequential):
    def forward(self, x): return x + super().forward(x)

def test_constants_take_the_place_of_layers_though_attention_is_read_again():
    branch = Branch(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    with torch.no_grad(): branch[2].weight.zero_()
    c = condensed(nn.Sequential(nn.Linear(6, 32), branch, Classic(rows=heads(0, 2)), nn.Linear(32, 2)), torch.randn(3, 7, 6))
    constant = c.model[1][2]
    assert isinstance(constant, Constant) and c.model[2].num_heads==2
    left = sum(p.numel() for i in (0,2,3) for p in c.model[i].parameters())
    assert left==(6+1)*32 + (32+1)*48 + (16+1)*32 + (32+1)*2 and [p.shape for p in c.model[1].parameters()]==[(32,)]

def test_no_layer_becomes_a_constant_where_that_is_not_wanted_though_others_are():
    branches = [Branch(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(2)]
    with torch.no_grad(): branches[0][2].weight.zero_()
    x = torch.randn(3, 7, 6)
    first = condensed(nn.Sequential(nn.Linear(6, 32), *branches, Classic(), nn.Linear(32, 2)), x).model
    dead(first[3].qkv, *heads(0, 2))
    with torch.no_grad(): first[2][2].weight.zero_()
    c = Condenser(first, x.double(), constants=False).condense()
    assert isinstance(c.model[1][2], Constant) and isinstance(c.model[2][2], nn.Linear) and c.model[3].num_heads==2

# ---- widths that are divided

@pytest.mark.parametrize('units,gone', [(16,2), (12,1), (20,1), (4,3), (12,3), (16,3), (31,3), (0,3)])
def test_width_and_heads_go_in_proportion_where_code_computes_with_their_quotient(units, gone):
    stem = dead(nn.Linear(6, 32), *range(units))
    c = condensed(nn.Sequential(stem, Classic(scaled=True, rows=heads(*range(gone))), nn.Linear(32, 2)), torch.randn(3, 7, 6))
    n = max(4-gone, ceil((32-units)/8)) # as many heads as are alive, and as the living units fill
    assert (c.model[0].out_features,c.model[1].num_heads)==(8*n,n)
    assert c.report.params_after==(6+1)*8*n + (8*n+1)*24*n + (8*n+1)*32 + (32+1)*2
    reasons = {k['reason'] for k in c.report.kept}
    assert bool(reasons)==(8*n>32-units or n>4-gone) and all("a width is 8 times 'num_heads' in 1 at " in r for r in reasons)
