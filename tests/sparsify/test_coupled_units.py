"Units that the graph ties together, and heads of attention."
import itertools
from copy import deepcopy
from functools import partial
from unittest.mock import patch
import pytest, torch
from fastai.basics import set_seed
from torch import nn
import torch.nn.functional as F
from fasterprune.all import *
from support.nets import perturb
from support.sparsity import fit, learner, zeros
from support.sparsity_cases import parts, prepare, rising, which, who

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

def normed(dim):
    "A chain of convolutions of that many dimensions, or of Linear layers, with norms; and a batch for it."
    dense = nn.Linear(4, 8),nn.BatchNorm1d(8),nn.ReLU(),nn.Linear(8, 12),nn.BatchNorm1d(12),nn.ReLU(),nn.Linear(12, 4)
    if not dim: return perturb(nn.Sequential(*dense)),torch.randn(2, 4)
    conv,norm = (nn.Conv1d,nn.Conv2d,nn.Conv3d)[dim-1],(nn.BatchNorm1d,nn.BatchNorm2d,nn.BatchNorm3d)[dim-1]
    return perturb(nn.Sequential(conv(4, 8, 3, padding=1), norm(8), nn.ReLU(), conv(8, 12, 2), norm(12), nn.ReLU(), conv(12, 4, 1))),torch.randn(2, 4, *[5]*dim)

@pytest.mark.parametrize('dim', [0,1,2,3])
@pytest.mark.parametrize('side', ['outputs','inputs'])
def test_table_of_coupled_units(dim, side): check_coupled(dim, side, slice(dim, None, 5))

@pytest.mark.long
@pytest.mark.parametrize('dim', [0,1,2,3])
@pytest.mark.parametrize('side', ['outputs','inputs'])
def test_table_of_coupled_units_in_full(dim, side): check_coupled(dim, side, slice(None))

def check_coupled(dim, side, some):
    net,x = normed(dim)
    granularity = {'outputs':'filter' if dim else 'neuron', 'inputs':'channel' if dim else 'feature'}[side]
    first = deepcopy(net.eval().state_dict())
    ls = [net[i] for i in ((0,3) if side=='outputs' else (0,3,6))] # what the network gives out stays
    sizes = [8,12] if side=='outputs' else [4,8,12]
    def gone(m): return (m.weight if side=='outputs' else m.weight.transpose(0, 1)).detach().flatten(1).eq(0).all(1)
    sp0 = Sparsifier(net, granularity, sample=x)
    assert [g.n for g in sp0.groups]==sizes
    for context,criterion,s in [*itertools.product([*who,'trunk'], which, (.4,.75))][some]:
        net.load_state_dict(first)
        case = context,criterion,s
        if criterion=='bn_scale' and side=='inputs':
            with pytest.raises(ValueError, match='scale of a norm'): Sparsifier(net, granularity, context, criterion, sample=x).sparsify(s)
            continue
        sp = Sparsifier(net, granularity, context, criterion, sample=x) if criterion in ('taylor',) else sp_like(sp0, context, criterion)
        prepare(sp, net, x, criterion)
        was = None
        for part in parts:
            sp.sparsify(s, part)
            now = [gone(m) for m in ls]
            counts = [int(d.sum()) for d in now]
            if context=='local': assert counts==[round(s*part*n) for n in sizes], case
            if context=='global': assert sum(counts)==round(s*part*sum(sizes)), case
            assert was is None or all((d|~w).all() for d,w in zip(now, was)), case
            was = now
        if context=='erk': assert sum(counts)==round(s*sum(sizes)), case
        if context is rising: assert counts==[round(s*(i+1)/len(sizes)*n) for i,n in enumerate(sizes)], case
        assert all(c<n for c,n in zip(counts, sizes)) and sp.report().loc['total','zero']==sum(counts), case
        after = net.state_dict()
        for i,d in zip((0,3,6), now):
            if side=='outputs':
                for k in (f'{i}.weight',f'{i}.bias',f'{i+1}.weight',f'{i+1}.bias'):
                    assert (after[k][d]==0).all() and torch.equal(after[k][~d], first[k][~d]), (case, k)
            else: assert torch.equal(after[f'{i}.weight'][:,~d], first[f'{i}.weight'][:,~d]), case
        touched = [f'{i}.{k}' for i in ((0,1,3,4) if side=='outputs' else (0,3,6)) for k in ('weight','bias') if side=='outputs' or k=='weight']
        assert all(torch.equal(after[k], v) for k,v in first.items() if k not in touched), case

def sp_like(sp, context, criterion):
    "Another sparsifier over the same units: a graph takes its time to trace."
    units = deepcopy(sp.groups, {id(p):p for p in sp.params.values()}),dict(sp.left_dense)
    with patch('fasterprune.sparsify.sparsifier.find_groups', lambda *args: units): return Sparsifier(sp.model, sp.granularity, context, criterion)

class Attention(nn.Module):
    "As in timm."
    def __init__(self, dim=24, num_heads=4, bias=True, split_bias=False):
        super().__init__()
        self.num_heads,self.qkv,self.proj = num_heads,nn.Linear(dim, 3*dim, bias=bias and not split_bias),nn.Linear(dim, dim)
        if split_bias: self.q_bias,self.v_bias = nn.Parameter(torch.randn(dim)),nn.Parameter(torch.randn(dim))
    def forward(self, x, keep=None):
        b,n,c = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias]) if hasattr(self, 'q_bias') else self.qkv.bias
        q,k,v = F.linear(x, self.qkv.weight, bias).reshape(b, n, 3, self.num_heads, c//self.num_heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        if keep is not None: out = out*keep.view(1, -1, 1, 1)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))

class Native(nn.Module):
    "`nn.MultiheadAttention`, and what it is made of."
    def __init__(self, **kwargs):
        super().__init__()
        self.att = nn.MultiheadAttention(24, 4, batch_first=True, **kwargs)
        if self.att.in_proj_bias is not None: nn.init.normal_(self.att.in_proj_bias)
    def forward(self, x, keep=None):
        m,y = self.att,x[...,:self.att.kdim]
        if keep is None: return m(x, y, x[...,:m.vdim], need_weights=False)[0]
        ws = m.in_proj_weight.chunk(3) if m.in_proj_weight is not None else (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
        bs = m.in_proj_bias.chunk(3) if m.in_proj_bias is not None else [None]*3
        q,k,v = (F.linear(t, w, b).unflatten(-1, (4,6)).transpose(1, 2) for t,w,b in zip((x, y, x[...,:m.vdim]), ws, bs))
        return m.out_proj((F.scaled_dot_product_attention(q, k, v)*keep.view(1, -1, 1, 1)).transpose(1, 2).flatten(2))

def head_parts(m, h):
    "All that belongs to head `h`, and to nothing else."
    a,s = getattr(m, 'att', m),slice(6*h, 6*h+6)
    if isinstance(m, Native):
        rows = [a.in_proj_weight[24*i:][s] for i in range(3)] if a.in_proj_weight is not None else [a.q_proj_weight[s], a.k_proj_weight[s], a.v_proj_weight[s]]
        return rows + ([a.in_proj_bias[24*i:][s] for i in range(3)] if a.in_proj_bias is not None else []) + [a.out_proj.weight[:,s]]
    biases = [a.q_bias[s], a.v_bias[s]] if hasattr(a, 'q_bias') else [a.qkv.bias[24*i:][s] for i in range(3)] if a.qkv.bias is not None else []
    return [a.qkv.weight[24*i:][s] for i in range(3)] + biases + [a.proj.weight[:,s]]

attentions = dict(native=Native, no_bias=partial(Native, bias=False), other_sizes=partial(Native, kdim=12, vdim=18), timm=Attention,
    timm_no_bias=partial(Attention, bias=False), beit=partial(Attention, split_bias=True))

@pytest.mark.parametrize('kind', attentions)
def test_heads_go_whole_and_are_counted(kind):
    x = torch.randn(2, 5, 24)
    for i,criterion in enumerate(c for c in which if c not in ('wanda','bn_scale')): # heads have no norm, and no input of their own
        set_seed(2)
        context = ('local','global')[i%2]
        net = nn.Sequential(attentions[kind](), attentions[kind]())
        sp = Sparsifier(net, 'head', context, criterion)
        before = deepcopy(net)
        prepare(sp, net, x, criterion)
        for part in parts:
            sp.sparsify(.5, part)
            gone = [torch.tensor([all((p==0).all() for p in head_parts(m, h)) for h in range(4)]) for m in net]
            counts = [int(d.sum()) for d in gone]
            assert sum(counts)==round(.5*part*8) if context=='global' else counts==[round(.5*part*4)]*2, (criterion, part)
            assert sp.report().loc['total','zero']==sum(counts) and sp.reached==sp.sparsity()==sum(counts)/8
        with torch.no_grad(): # the others are as they were, and do as they did
            for m,old,d in zip(net, before, gone):
                for h in range(4):
                    if not d[h]: assert all(torch.equal(p, q) for p,q in zip(head_parts(m, h), head_parts(old, h)))
                assert torch.allclose(m(x), old(x, (~d).float()), atol=1e-5), criterion
                assert all(torch.equal(p, q) for (k,p),q in zip(m.named_parameters(), old.parameters()) if k.endswith(('out_proj.bias','proj.bias')))

@pytest.mark.parametrize('criterion', ['wanda','bn_scale'])
def test_heads_and_criteria_that_do_not_suit(criterion):
    net = nn.Sequential(Native())
    state = deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="layer '0.att'"): Sparsifier(net, 'head', criterion=criterion).sparsify(.5)
    assert all(torch.equal(v, state[k]) for k,v in net.state_dict().items())

def test_attention_whose_heads_are_not_equal_parts_is_a_value_error():
    "Queries have more heads than keys and values: `qkv` has 16+2*8 rows for 4 heads."
    class Grouped(Attention):
        def __init__(self):
            super().__init__(16)
            self.qkv = nn.Linear(16, 32)
    with pytest.raises(ValueError, match="layer '0'"): Sparsifier(nn.Sequential(Grouped()), 'head')

def test_weights_of_attention_in_a_transformer_are_counted():
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 4, 32, batch_first=True), 2)
    sp = Sparsifier(net)
    sp.sparsify(.5)
    ws = [m.weight for m in net.modules() if isinstance(m, nn.Linear)]
    assert sum(int((w==0).sum()) for w in ws)==round(.5*sum(w.numel() for w in ws))
    assert all((p!=0).all() for n,p in net.named_parameters() if 'in_proj_weight' in n)

def test_wanda_in_a_transformer():
    "`nn.MultiheadAttention` reads the weight of its `out_proj` and never calls it: it has no input that could be measured."
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 2))
    fit(learner(net, shape=(5,8)), 1, SparsifyCallback(.5, criterion='wanda', context='local'))
    assert zeros(net[0].linear1)==64 and zeros(net[2])==40
