"Each kind of unit counted by a definition of its own; training that keeps zeros whatever happens; what small networks and masked ones have in common."
import itertools, math
from copy import deepcopy
from functools import partial
from unittest.mock import patch
import numpy as np, pytest, torch
from fastai.basics import Callback, CancelBatchException, CancelFitException, CancelStepException, CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from fastai.optimizer import Adam, Lamb, Larc, Lookahead, OptimWrapper, QHAdam, RAdam, RMSProp, SGD, ranger
from fastai.callback.all import GradientAccumulation, GradientClip, MixedPrecision, SaveModelCallback
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
import torch.nn.functional as F
from fasterprune.all import *
from fasterprune.sparsify.criteria import get_criterion, needs_of
from fasterprune.sparsify.allocation import dead_count, start_count
from support.nets import gap, perturb
from support.sparsity import Count, cnn, dead, fit, layers, learner, mlp, n_mlp, total, zeros

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

# ---- units by a definition of their own: the indices by which they are told apart

plane = Granularity('plane', 'filter channel feature entry')
# group, output, input, depth, height, width of a convolution; output, input of a Linear layer; vector, entry of an Embedding; None: it has no such unit
apart = dict(weight=('goidhw','oi','ve'), row=('goidh','o','v'), column=('goidw','i',None), kernel=('goi',None,None), horizontal_slice=('goh',None,None),
    vertical_slice=('gow',None,None), filter=('go',None,None), channel=('gi',None,None), shared_weight=('gidhw',None,None), shared_row=('gidh',None,None),
    shared_column=('gidw',None,None), shared_kernel=('gi',None,None), neuron=(None,'o',None), feature=(None,'i',None), layer=('','',''), plane=('gdhw','o','v'))
tiles = {'block':(4,4), 'block(2,3)':(2,3), '2:4':(1,4), '1:4':(1,4)}
names = [*apart, *tiles]

def letters(m):
    "Which index is which in a layer's weight, once its groups stand apart; and the sizes."
    if isinstance(m, nn.Linear): return 'oi',m.weight.shape
    if isinstance(m, nn.Embedding): return 've',m.weight.shape
    space,shape = m.weight.shape[2:],m.weight.shape
    return ('gio' if m.transposed else 'goi') + 'dhw'[3-len(space):],(m.groups, shape[0]//m.groups, *shape[1:])

def told_apart(m, name):
    "The indices that tell units apart; `None` if the layer has no such unit."
    found,_ = letters(m)
    if name in tiles: return None if found=='ve' else found
    by = apart[name][0 if 'g' in found else ['oi','ve'].index(found)+1]
    if by is None or name=='column' and 'g' in found and 'h' not in found: return None
    return ''.join(a for a in found if a in by)

def numbered(m, name):
    "The number of the unit that each weight belongs to; `None` if the layer has no such unit."
    (found,shape),by = letters(m),told_apart(m, name)
    if by is None: return None
    index = dict(zip(found, np.indices(shape)))
    if 'block' in name:
        h,w = tiles[name]
        if index['o'].max()+1 < h or (index['o'].max()+1)%h or (index['i'].max()+1)%w: return None
        index['o'],index['i'] = index['o']//h,index['i']//w
    elif name in tiles and (index['i'].max()+1)%4: return None
    number = np.zeros(shape, dtype=int)
    for a in by: number = number*(index[a].max()+1) + index[a]
    return number.reshape(m.weight.shape)

def is_dead(m, number): return np.bincount(number.ravel(), (m.weight.detach()!=0).numpy().ravel())==0
def mean_size(w, number): return np.bincount(number.ravel(), w.abs().double().numpy().ravel())/np.bincount(number.ravel())

def most(name, n):
    "How many of `n` units of a layer may go."
    return n if name=='weight' else n//2 if name=='2:4' else n*3//4 if name=='1:4' else n-1

class Vectors(nn.Module):
    "Two embeddings, with or without a Linear layer behind them."
    def __init__(self, head=nn.Identity):
        super().__init__()
        self.a,self.b,self.head = nn.Embedding(24, 12),nn.Embedding(16, 12),head()
    def forward(self, x): return self.head(self.a(x)*self.b(x.clamp(max=15)))

def two(layer, a, b, groups=(1,1), bias=True):
    "A function that makes two layers, the second one with or without a bias."
    first,second = [{} if layer is nn.Linear else dict(groups=g) for g in groups]
    return lambda: nn.Sequential(layer(*a, **first), nn.ReLU(), layer(*b, bias=bias, **second))

kinds = dict(conv1d=(two(nn.Conv1d, (12,24,3), (24,12,2)), (12,9)), conv2d=(two(nn.Conv2d, (12,24,(2,3)), (24,12,(3,2)), bias=False), (12,6,6)),
    conv3d=(two(nn.Conv3d, (12,12,(2,1,3)), (12,24,2)), (12,4,4,5)), grouped=(two(nn.Conv2d, (24,24,(2,3)), (24,36,2), (2,3)), (24,5,5)),
    depthwise=(two(nn.Conv2d, (12,12,3), (12,24,(1,2)), (12,12)), (12,5,6)), transposed1d=(two(nn.ConvTranspose1d, (12,24,3), (24,12,2)), (12,5)),
    transposed2d=(two(nn.ConvTranspose2d, (12,24,(2,3)), (24,12,2), bias=False), (12,3,3)), linear=(two(nn.Linear, (12,24), (24,12)), (12,)),
    transposed3d=(two(nn.ConvTranspose3d, (12,12,(2,1,3)), (12,24,2)), (12,2,2,2)), embedding=(partial(Vectors, partial(nn.Linear, 12, 2)), None),
    transposed_grouped1d=(two(nn.ConvTranspose1d, (24,24,3), (24,12,2), (2,12)), (24,3)),
    transposed_grouped=(two(nn.ConvTranspose2d, (24,48,(2,3)), (48,36,2), (2,3)), (24,3,3)),
    transposed_grouped3d=(two(nn.ConvTranspose3d, (24,24,(1,2,3)), (24,12,2), (2,1)), (24,2,2,2)))

def rising(groups, s, most): return [([g], s*(i+1)/len(groups)) for i,g in enumerate(groups)]
def near_a_tenth(weight, context): return (weight-.1).square()
who,which = ['local','global','erk',rising],[*criteria, near_a_tenth]
parts = .3,.7,1.

def wanted(name, context, s, sizes):
    "How many units are to be zero, by layer or in all; `None` if that can't be."
    caps = [most(name, n) for n in sizes]
    if context=='local' or context is rising:
        counts = [round((s if context=='local' else s*(i+1)/len(sizes))*n) for i,n in enumerate(sizes)]
        return counts if all(c<=m for c,m in zip(counts, caps)) else None
    n,cap = sum(sizes),sum(caps) if name!='layer' else 0 if context=='erk' else len(sizes)-1 # one layer by itself may not go
    return round(s*n) if round(s*n)<=cap else None

def prepare(sp, net, x, criterion):
    "Give the criterion what it reads."
    if 'input_norm' in needs_of(get_criterion(criterion)): sp.observe(x)
    if 'gradient' in needs_of(get_criterion(criterion)):
        net(x).square().sum().backward()
        sp.observe_gradients()
        net.zero_grad()

def unwilling(criterion, net, coupled):
    "May the criterion refuse such a network?"
    name = getattr(criterion, '__name__', criterion)
    return name=='bn_scale' and not coupled or name=='wanda' and any(isinstance(m, nn.Embedding) for m in net.modules())

def check_table(kind, name, context, criterion, s, dtype=torch.float32, ties=False):
    "Sparsify a network of two layers step by step, and look at every number."
    case = kind,name,getattr(context, '__name__', context),getattr(criterion, '__name__', criterion),s
    set_seed(1)
    build,shape = kinds[kind]
    net = build().to(dtype)
    x = torch.randint(0, 24, (4, 3)) if shape is None else torch.randn(2, *shape, dtype=dtype)
    ls = {n:m for n,m in net.named_modules() if hasattr(m, 'weight') and n!='head'}
    if ties: [nn.init.constant_(m.weight, -.25) for m in ls.values()]
    numbers = {n:numbered(m, name) for n,m in ls.items()}
    make = partial(Sparsifier, net, plane if name=='plane' else name, context, criterion, coupled=False)
    if bad := [n for n,number in numbers.items() if number is None]:
        with pytest.raises(ValueError, match=f"layer '{bad[0]}'"): make(layers=list(ls))
        return 0
    if unwilling(criterion, net, False):
        with pytest.raises(ValueError, match='layer '):
            sp = make(layers=list(ls))
            prepare(sp, net, x, criterion)
            sp.sparsify(.6)
        return 0
    sp = make(layers=list(ls))
    with torch.no_grad():
        if not ties: [p.add_(torch.randn_like(p)*.05) for p in net.parameters()] # for criteria that look back
    prepare(sp, net, x, criterion)
    before = {k:v.clone() for k,v in net.state_dict().items()}
    sizes = [number.max()+1 for number in numbers.values()]
    if (goal := wanted(name, context, s, sizes)) is None:
        with pytest.raises(ValueError): sp.sparsify(s)
        assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items()), case
        return 0
    was = None
    for part in parts:
        sp.sparsify(s, part)
        gone = [is_dead(m, numbers[n]) for n,m in ls.items()]
        counts = [int(d.sum()) for d in gone]
        if context=='local': assert counts==[round(s*part*n) for n in sizes], (case, part)
        elif context is rising: assert counts==[round(s*(i+1)/len(sizes)*part*n) for i,n in enumerate(sizes)], (case, part)
        elif context=='global': assert sum(counts)==round(s*part*sum(sizes)), (case, part)
        else: assert abs(sum(counts)-s*part*sum(sizes))<=len(sizes), (case, part) # each layer is rounded by itself on the way
        assert sp.report().loc['total','zero']==sum(counts) and sp.sparsity()==pytest.approx(sum(counts)/sum(sizes), abs=1e-12)==sp.reached, (case, part)
        assert was is None or all((d|~w).all() for d,w in zip(gone, was)), (case, part)
        if was is None and context=='local' and criterion=='large_final' and not ties:
            for (n,m),d in zip(ls.items(), gone): check_lowest(name, before[f'{n}.weight'], numbers[n], d, m)
        was = gone
    assert (counts if isinstance(goal, list) else sum(counts))==goal, case
    if name!='weight' and name!='layer': assert all(c<n for c,n in zip(counts, sizes)), case
    for (n,m),d in zip(ls.items(), gone):
        held,weight,dead_weights = told_apart(m, name),before.pop(f'{n}.weight'),torch.from_numpy(d[numbers[n]])
        assert torch.equal(m.weight.detach(), torch.where(dead_weights, 0, weight)), case
        if held in ('go','o') and getattr(m, 'bias', None) is not None: # units that make outputs go with their bias
            assert torch.equal(m.bias.detach(), torch.where(torch.from_numpy(d), 0, before.pop(f'{n}.bias'))), case
    assert all(torch.equal(net.state_dict()[k], v) for k,v in before.items()), case
    return 1

def check_lowest(name, w, number, gone, m):
    "The units of the lowest mean size went; of four neighbors the best ones stayed."
    if ':' not in name:
        assert gone.all() or not gone.any() or mean_size(w, number)[gone].max() <= mean_size(w, number)[~gone].min()*(1+1e-5), name
        return
    n,(found,shape) = int(name[0]),letters(m)
    w,d = (np.moveaxis(t.reshape(shape), found.index('i'), -1).reshape(-1, 4) for t in (w.abs().numpy(), gone[number]))
    best = np.argsort(-w, axis=1, kind='stable')
    stays = np.zeros_like(d)
    np.put_along_axis(stays, best[:,:n], True, axis=1)
    assert not d[stays].any() and (not d.any() or w[d].max() <= w[~d & ~stays].min())

@pytest.mark.parametrize('kind', kinds)
def test_table_of_units(kind):
    "Every granularity with every context, by criteria and sparsities that take turns; one in three with a criterion of nothing but ties."
    turn,done = itertools.count(list(kinds).index(kind)),0
    for name,context in itertools.product(names, who):
        i = next(turn)
        criterion = 'large_final' if context=='local' else which[(5*i)%len(which)]
        done += check_table(kind, name, context, criterion, (.25,.5,.4,.7)[i//4%4], ties=i%3==0)
    assert done>=8

@pytest.mark.parametrize('criterion', which, ids=lambda c: getattr(c, '__name__', c))
def test_table_of_criteria(criterion):
    "Every criterion on every type of layer, by granularities that take turns."
    for i,kind in enumerate(kinds): check_table(kind, ('weight','kernel','block(2,3)','shared_row','layer','row')[i%6], who[(i//2)%3], criterion, .5)
    assert check_table('linear', 'neuron', 'global', criterion, .5)==(criterion!='bn_scale')

@pytest.mark.parametrize('dtype', [torch.float64,torch.bfloat16], ids=str)
def test_table_in_other_precisions(dtype):
    for i,(kind,name) in enumerate(itertools.product(('conv2d','transposed_grouped','linear','embedding'), names)):
        check_table(kind, name, who[i%4], ('large_final','squared_final','lamp','movement')[i//4%4], .4, dtype)

@pytest.mark.long
@pytest.mark.parametrize('kind', kinds)
def test_table_in_full(kind):
    for i,(name,context,criterion) in enumerate(itertools.product(names, who, which)): check_table(kind, name, context, criterion, (.1,.25,.5,.4,.75,.9)[i%6])

def test_criteria_are_their_formulas():
    w,o,p,g = [torch.randn(6, 4, dtype=torch.float64) for _ in range(4)]
    c = LayerInfo('fc', nn.Linear(4, 6), torch.rand(1, 4).double(), o, p, g, torch.rand(1, 4).double(), torch.rand(6, 1).double())
    size,began,was = w.abs(),o.abs(),p.abs()
    formulas = dict(large_final=size, squared_final=w*w, small_final=-size, large_init=began, small_init=-began,
        large_init_large_final=torch.minimum(size, began), small_init_small_final=-torch.maximum(size, began), magnitude_increase=size-began,
        movement=(w-o).abs(), movmag=size*(w-o).abs(), updating_magnitude_increase=size-was, updating_movement=(w-p).abs(),
        updating_movmag=size*(w-p).abs(), taylor=w*g, fisher=w*g, wanda=size*c.input_norm, large_scaled=size*c.input_scale, bn_scale=c.norm_scale.expand(6, 4),
        lamp=torch.tensor([[float(v*v/(w*w)[w*w>=v*v].sum()) for v in row] for row in w]).double())
    assert formulas.keys()==criteria.keys()-{'random'}
    for name,formula in formulas.items(): assert torch.allclose(criteria[name](w, c).double(), formula, atol=1e-6), name
    assert criteria['random'](w, c).unique().numel()==24 and not torch.equal(criteria['random'](w, c), criteria['random'](w, c))

# ---- units that the graph ties together

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
    for context,criterion,s in [*itertools.product(who, which, (.4,.75))][some]:
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

# ---- heads

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

# ---- the last step reaches the target

def all_weights(net): return total(net),n_mlp
def two_layers(net): return dead(net[0])+dead(net[3]),len(net[0].weight)+len(net[3].weight)
aims = dict(weights=(mlp, (8,), dict(), all_weights), filters=(cnn, (3,8,8), dict(granularity='filter'), two_layers),
    filters_erk=(cnn, (3,8,8), dict(granularity='filter', context='erk'), two_layers),
    neurons=(mlp, (8,), dict(granularity='neuron', context='local'), two_layers), two_of_four=(mlp, (8,), dict(granularity='2:4'), all_weights),
    erk=(mlp, (8,), dict(context='erk', criterion='movement'), all_weights), wanda=(mlp, (8,), dict(criterion='wanda'), all_weights),
    taylor=(mlp, (8,), dict(granularity='neuron', criterion='taylor'), two_layers))

def check_aim(aim, n, schedule, valid, epochs=1, s=.5, **kwargs):
    build,shape,own,count = aims[aim]
    cb = SparsifyCallback(s, schedule=schedule, **own, **kwargs)
    learn = fit(learner(build(), n=8*n, shape=shape, valid=valid), epochs, cb)
    found,of = count(learn.model)
    assert found==round(s*of)==round(cb.history[-1][1]*of) and len(cb.history)==n*epochs, (aim, n, schedule, valid)

@pytest.mark.parametrize('aim', aims)
def test_last_step_reaches_every_kind_of_target(aim):
    for n,schedule in ((1,'agp'), (2,'one_shot'), (5,'linear'), (17,'dense_sparse_dense'), (23,'one_cycle')): check_aim(aim, n, schedule, n%3!=2)
    check_aim(aim, 4, 'cosine', True, epochs=3, every=5)
    check_aim(aim, 4, 'iterative', False, epochs=3, start_epoch=1, end_epoch=2)

@pytest.mark.long
def test_every_fit_of_1_to_200_steps_reaches_every_kind_of_target():
    for n in range(1, 201): check_aim([*aims][n%len(aims)], n, [*schedules][n//2%7], n%3>0, s=(.5,.33,.4)[n//3%3])

# ---- masked and condensed training are the same

class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1,self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False),nn.BatchNorm2d(o)
        self.conv2,self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False),nn.BatchNorm2d(o)
        self.down = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if i!=o or stride>1 else nn.Identity()
    def forward(self, x): return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.down(x))

def resnet():
    stem,head = [nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()],[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)]
    return nn.Sequential(*stem, Block(8, 8, 1), Block(8, 12, 2), *head)
def bn_mlp(): return nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

def doubled(model, shape, n=40, bs=10, **kwargs):
    "A learner in float64 whose batches depend on the seed alone."
    set_seed(7)
    x = torch.randn(n, *shape, dtype=torch.float64)
    ds = list(zip(x, torch.arange(n)%3))
    return Learner(DataLoaders.from_dsets(ds, ds[:bs], bs=bs, num_workers=0, device='cpu'), model, loss_func=CrossEntropyLossFlat(), **kwargs),x

@pytest.fixture(scope='module')
def pruned():
    "Networks after a fit that pruned them."
    set_seed(0)
    found = {}
    for name,build,shape,granularity in (('resnet',resnet,(3,8,8),'filter'), ('mlp',bn_mlp,(12,),'neuron')):
        learn,x = doubled(build().double(), shape)
        found[name] = fit(learn, 2, SparsifyCallback(.5, granularity, schedule='linear')).model,shape,x
    return found

momentum,torch_adamw = partial(SGD, mom=.9),partial(OptimWrapper, opt=torch.optim.AdamW)
def clip(norm): return partial(GradientClip, norm)
def accumulate(n): return partial(GradientAccumulation, n)
trainings = dict(sgd=(momentum, {}, ()), adamw=(Adam, dict(wd=.1), ()), torch_adamw=(torch_adamw, dict(wd=.1), ()),
    clipped=(momentum, dict(wd=.01), (clip(.1),)), clipped_adamw=(Adam, dict(wd=.1), (clip(.05),)), accumulated=(momentum, {}, (accumulate(20),)),
    accumulated_clipped=(Adam, dict(wd=.1), (accumulate(30),clip(.1))))

@pytest.mark.parametrize('training', trainings)
@pytest.mark.parametrize('net', ['resnet','mlp'])
def test_masked_fine_tuning_equals_condensed_fine_tuning(pruned, net, training):
    model,shape,x = pruned[net]
    opt,kwargs,cbs = trainings[training]
    masked,small = deepcopy(model),Condenser(model, x[:2], inputs=False).condense().model
    assert n_params(small) < .7*n_params(masked)
    for m,keep in ((masked,[KeepZeros()]), (small,[])):
        learn,_ = doubled(m, shape, opt_func=opt)
        fit(learn, 5, *keep, *[cb() for cb in cbs], **kwargs) # 20 batches
        assert learn.train_iter==20
    again = Condenser(masked, x[:2], inputs=False).condense().model
    a,b,start = again.state_dict(),small.state_dict(),Condenser(model, x[:2], inputs=False).condense().model.state_dict()
    assert a.keys()==b.keys() and [v.shape for v in a.values()]==[v.shape for v in b.values()]
    assert max(float((a[k]-b[k]).abs().max()) for k in a) <= 1e-9
    assert max(float((start[k]-b[k]).abs().max()) for k in a if 'weight' in k) > 1e-4 # it has learned something
    assert float((masked.eval()(x)-small.eval()(x)).abs().max()) <= 1e-9

# ---- zeros hold, whoever trains

def ahead(ps, lr): return Lookahead(SGD(ps, lr=lr, mom=.9), k=3)
optimizers = dict(sgd=momentum, adam=partial(Adam, decouple_wd=False), adamw=Adam, ranger=ranger, lookahead=ahead, larc=Larc, lars=partial(Larc, clip=False),
    lamb=Lamb, radam=RAdam, qhadam=QHAdam, rmsprop=partial(RMSProp, mom=.9),
    torch_sgd=partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9, nesterov=True)), torch_adamw=torch_adamw,
    torch_rmsprop=partial(OptimWrapper, opt=partial(torch.optim.RMSprop, momentum=.9)))

class Watch(Callback):
    "What was zero when a batch ended is zero after the next step, and has no gradient when it begins; `order` is behind all others."
    order,run_valid = 1000,False
    def before_fit(self): self.zero,self.seen = {},0
    def after_batch(self): self.zero = {n:p.detach()==0 for n,p in self.model.named_parameters() if (p==0).any() and not (p==0).all()}
    def look(self):
        ps = dict(self.model.named_parameters())
        for n,z in self.zero.items(): assert (ps[n][z]==0).all(), n
        self.seen += sum(int(z.sum()) for z in self.zero.values())
    after_step = look

class WatchGradients(Callback):
    "Looks before anyone clips or accumulates."
    order,run_valid = -1000,False
    def before_step(self):
        for n,p in self.model.named_parameters():
            if n in self.learn.watch.zero and p.grad is not None: assert (p.grad[self.learn.watch.zero[n]]==0).all(), n

@pytest.mark.parametrize('opt', optimizers)
def test_zeros_hold_after_every_step(opt):
    learn = learner(cnn(), shape=(3,8,8), opt_func=optimizers[opt])
    fit(learn, 4, SparsifyCallback(.5, 'filter', schedule='linear'), Watch(), WatchGradients(), wd=.1)
    assert dead(learn.model[0])+dead(learn.model[3])==12
    learn = learner(opt_func=optimizers[opt])
    watch = Watch()
    fit(learn, 4, SparsifyCallback(.8), watch, WatchGradients(), wd=.1)
    assert total(learn.model)==round(.8*n_mlp) and watch.seen>1000
    watch = Watch()
    fit(learn, 2, KeepZeros(), watch, WatchGradients(), wd=.1) # the optimizer still has its moments
    assert total(learn.model)==round(.8*n_mlp) and watch.seen>1000
    fit(learn, 2, SparsifyCallback(.9), Watch(), WatchGradients(), wd=.1)
    assert total(learn.model)==round(.9*n_mlp)

@pytest.mark.parametrize('extra', [GradientClip(.1), GradientAccumulation(16), GradientAccumulation(24)], ids=['clip','two','three'])
def test_gradients_of_the_dead_are_zero_before_clipping_and_steps(extra):
    class Norm(Callback):
        "The norm that clipping sees is that of what is alive."
        order,run_valid = GradientClip.order-1,False
        def before_step(self):
            alive = [p.grad[p!=0] if n.endswith('weight') else p.grad for n,p in self.model.named_parameters()]
            whole = [p.grad for p in self.model.parameters()]
            assert all(g.norm().isfinite() for g in whole)
            assert torch.cat([g.flatten() for g in alive]).norm()==pytest.approx(float(torch.cat([g.flatten() for g in whole]).norm()), rel=1e-5)
    learn = fit(learner(n=96), 2, SparsifyCallback(.9, schedule='one_shot'), extra, Norm(), Watch(), WatchGradients())
    assert total(learn.model)==round(.9*n_mlp)

class ModelEMA(nn.Module):
    "A moving average as outside libraries have it."
    def __init__(self, model):
        super().__init__()
        self.module = deepcopy(model)
    @torch.no_grad()
    def update_parameters(self, model):
        for p,q in zip(self.module.parameters(), model.parameters()): p.lerp_(q, .1)

class Average(Callback):
    run_valid = False
    def __init__(self, make, order): self.make,self.order = make,order
    def before_fit(self): self.avg = self.make(self.model)
    def after_batch(self): self.avg.update_parameters(self.model)

averages = dict(swa=AveragedModel, ema=partial(AveragedModel, multi_avg_fn=get_ema_multi_avg_fn(.9)), buffers=partial(AveragedModel, use_buffers=True),
    own=ModelEMA)

@pytest.mark.parametrize('order', [-5,100])
@pytest.mark.parametrize('kind', averages)
def test_moving_averages_have_the_zeros(kind, order):
    for build,shape,kwargs in ((mlp, (8,), dict()), (cnn, (3,8,8), dict(granularity='filter'))):
        average,learn = Average(averages[kind], order),learner(build(), shape=shape)
        for cbs in ([SparsifyCallback(.5, **kwargs)], [SparsifyCallback(.75, **kwargs)], [KeepZeros()]):
            fit(learn, 2, *cbs, average)
            ps,qs = dict(learn.model.named_parameters()),dict(average.avg.module.named_parameters())
            assert all((qs[n][p==0]==0).all() for n,p in ps.items()) and total(average.avg.module)==total(learn.model)>0
            assert any(not torch.equal(ps[n], qs[n]) for n in ps)

def test_moving_averages_have_the_zeros_of_pruned_inputs():
    average,learn = Average(AveragedModel, 100),learner()
    fit(learn, 2, InputPruneCallback(.5), average)
    gone = (learn.model[0].weight==0).all(0)
    assert int(gone.sum())==4 and (average.avg.module[0].weight[:,gone]==0).all()

def test_fault_one_plain_epoch_after_a_fit_leaves_no_zeros():
    for granularity,build,shape in (('weight',mlp,(8,)), ('neuron',mlp,(8,)), ('filter',cnn,(3,8,8)), ('2:4',mlp,(8,))):
        learn = fit(learner(build(), shape=shape), 2, SparsifyCallback(.5, granularity))
        zero = {n:p.detach()==0 for n,p in learn.model.named_parameters()}
        if granularity in ('weight','2:4'): assert total(fit(learner(deepcopy(learn.model), shape=shape), 1).model)<total(learn.model)/2 # so it is without
        fit(learn, 3, KeepZeros())
        assert all((p[zero[n]]==0).all() and (p[~zero[n]]!=0).all() for n,p in learn.model.named_parameters())

class ZeroInit(nn.Module):
    "Biases, betas and gammas that begin as zeros, and an Embedding with padding."
    def __init__(self):
        super().__init__()
        self.e,self.stem,self.n0 = nn.Embedding(20, 8, padding_idx=0),nn.Conv1d(8, 8, 3, padding=1),nn.BatchNorm1d(8)
        self.a,self.n1,self.b,self.n2 = nn.Conv1d(8, 12, 3, padding=1),nn.BatchNorm1d(12),nn.Conv1d(12, 8, 3, padding=1),nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 2)
        for m in (self.stem, self.a, self.b, self.head): nn.init.zeros_(m.bias)
        nn.init.zeros_(self.n2.weight)
    def forward(self, x):
        y = self.n0(self.stem(self.e(x).transpose(1, 2))).relu()
        return self.head(F.adaptive_avg_pool1d((y+self.n2(self.b(self.n1(self.a(y)).relu()))).relu(), 1).flatten(1))

@pytest.mark.parametrize('granularity', ['weight','filter'])
def test_keep_zeros_leaves_what_merely_began_as_zero(granularity):
    net,x = ZeroInit(),torch.randint(0, 20, (32, 6))
    x[:,0] = 0
    Sparsifier(net, granularity, context='local', sample=x[:2]).sparsify(.5)
    ds = list(zip(x, x.sum(1)%2))
    learn = Learner(DataLoaders.from_dsets(ds, ds[:8], bs=8, num_workers=0, device='cpu'), net, loss_func=CrossEntropyLossFlat())
    zero = {n:p.detach()==0 for n,p in net.named_parameters()}
    old = net.e.weight.detach().clone()
    fit(learn, 6, KeepZeros())
    now = dict(net.named_parameters())
    held = {'weight':dict(stem=0,a=0), 'filter':dict(stem=4,a=6)}[granularity] # biases before a norm get nothing but rounding errors: never mind
    assert int((now['n0.bias']==0).sum())==held['stem'] and int((now['n1.bias']==0).sum())==held['a']
    gone = zero['stem.weight'].flatten(1).all(1) if granularity=='filter' else torch.zeros(8, dtype=torch.bool)
    assert (now['n2.weight'][~gone]!=0).all() and (now['n2.bias'][~gone]!=0).all() and (now['n2.weight'][gone]==0).all() and (now['n2.bias'][gone]==0).all()
    assert (now['head.bias']!=0).all() and (net.e.weight[0]==0).all()
    used = x.unique()[1:]
    assert (net.e.weight[used]!=old[used]).any(1).all()
    for n in ('stem.weight','a.weight','b.weight'): assert torch.equal(now[n]==0, zero[n])

def test_keep_zeros_leaves_a_tensor_of_nothing_but_zeros():
    "As in LoRA: the second factor begins as zeros."
    net = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 16, bias=False), nn.Linear(16, 2))
    nn.init.constant_(net[1].weight, 0)
    nn.init.constant_(net[2].bias, 0)
    Sparsifier(net, layers=['0','2']).sparsify(.5)
    fit(learner(net), 3, KeepZeros())
    assert zeros(net[0])+zeros(net[2])==32 and zeros(net[1])<32 and (net[2].bias!=0).all()

# ---- nothing but training changes anything

def hooks(model):
    kinds = '_forward_hooks','_forward_pre_hooks','_backward_hooks','_backward_pre_hooks'
    return [(n,k,len(getattr(m, k))) for n,m in model.named_modules() for k in kinds if getattr(m, k)]
def traits(model): return [(n,type(m),m.training,sorted(vars(m))) for n,m in model.named_modules()]
def flat(o):
    "A copy of all that is in nested containers."
    if isinstance(o, dict): return {k:flat(v) for k,v in o.items()}
    if isinstance(o, (list,tuple)): return [flat(v) for v in o]
    return o.detach().clone() if isinstance(o, torch.Tensor) else o

def same(a, b):
    if isinstance(a, dict): return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list): return len(a)==len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a==b

def snapshot(learn):
    "All that a learner has, but its hyper-parameters: fastai sets these itself."
    return [flat(dict(learn.model.state_dict())), flat(list(learn.opt.state_dict()['state'])), hooks(learn.model), sorted(cb.name for cb in learn.cbs)]

def every_callback():
    return [SparsifyCallback(.5), SparsifyCallback(.5, criterion='wanda'), SparsifyCallback(.5, 'neuron', criterion='taylor'),
        SparsifyCallback(.5, start_epoch=1, end_epoch=2), KeepZeros(), InputPruneCallback(.5)]

@pytest.mark.parametrize('i', range(6))
@pytest.mark.parametrize('stop', [False,True])
def test_lr_find_leaves_all_as_it_was(i, stop, tmp_path):
    learn = fit(learner(n=80, path=tmp_path), 1, SparsifyCallback(.3))
    learn.add_cb(every_callback()[i])
    before = snapshot(learn)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=15, show_plot=False, stop_div=stop)
    assert same(before, snapshot(learn))

@pytest.mark.parametrize('i', range(6))
def test_validate_and_predictions_change_nothing(i):
    cb = every_callback()[i]
    learn = fit(learner(), 1)
    learn.add_cb(cb)
    for _ in range(2): # before and after a fit with it
        before,seen = snapshot(learn),(getattr(cb, 'sparsifier', None),list(getattr(cb, 'history', ())))
        with learn.no_bar(), learn.no_logging():
            learn.validate()
            learn.get_preds()
            learn.validate(ds_idx=0)
        assert same(before, snapshot(learn)) and seen==(getattr(cb, 'sparsifier', None),list(getattr(cb, 'history', ())))
        fit(learn, 3)

def test_training_mode_and_random_numbers_are_left_alone():
    "A fit with masks of no weights is the plain fit, bit by bit: looking at the graph draws no numbers and changes no statistic."
    build = lambda: nn.Sequential(*cnn()[:3], nn.Dropout(.5), *cnn()[3:])
    net = build()
    results = []
    for cbs in ([], [SparsifyCallback(0., 'filter')], [KeepZeros()], [SparsifyCallback(0., criterion='wanda')], [SparsifyCallback(0., criterion='taylor')]):
        set_seed(3)
        results.append(fit(learner(deepcopy(net), shape=(3,8,8)), 2, *cbs).model.state_dict())
    for r in results[1:]: assert same(flat(results[0]), flat(r))

# ---- resume, and exceptions

@pytest.mark.parametrize('kwargs', [dict(), dict(start_epoch=1), dict(end_epoch=3), dict(start_epoch=1, end_epoch=3), dict(start_epoch=.4, end_epoch=.9),
    dict(every=3), dict(context='erk'), dict(granularity='neuron'), dict(context='local', schedule='agp'), dict(schedule='one_shot')], ids=str)
@pytest.mark.parametrize('at', [1,2,3])
def test_resume_goes_on_exactly(kwargs, at, tmp_path):
    class Stop(Callback):
        def after_epoch(self):
            if self.epoch==at-1: raise CancelFitException
    whole,rest,learn = Count(),Count(),learner(path=tmp_path)
    state = deepcopy(learn.model.state_dict())
    fit(learn, 4, SparsifyCallback(.8, **kwargs) if 'granularity' not in kwargs else SparsifyCallback(.7, **kwargs), whole)
    learn.model.load_state_dict(state)
    learn.create_opt()
    s = .7 if 'granularity' in kwargs else .8
    fit(learn, 4, SparsifyCallback(s, **kwargs), Stop())
    learn.save('half')
    other = learner(path=tmp_path)
    other.create_opt()
    other.load('half')
    cb = SparsifyCallback(s, **kwargs)
    fit(other, 4, cb, rest, start_epoch=at)
    if 'granularity' not in kwargs: assert rest.counts==whole.counts[4*at:]
    else: assert cb.history[-1][1]==round(.7*28)/28 and [round(h[1]*28) for h in cb.history]==[round(.7*one_cycle(h[0])*28) for h in cb.history]

@pytest.mark.parametrize('n', [7,28,64,344])
def test_resume_finds_where_a_fit_began(n):
    "However many units were dead when a fit began: one that was interrupted at any point goes on to its target, and never further."
    for start,s,f in itertools.product(range(0, n, max(1, n//9)), (.1,.33,.5,.73286,.75,.9,.95), (0.,.05,.3,.5,.9,.99,.998,1.)):
        dead = dead_count(n, start, s, f)
        begun = start_count(n, dead, s, f)
        goal = max(start, round(s*n))
        assert 0 <= begun <= n and dead_count(n, begun, s, f)==dead, (start, s, f)
        counts = [dead_count(n, begun, s, f+(1-f)*t) for t in (0,.25,.5,.75,1)]
        if s*n >= start: assert counts==sorted(counts) and counts[-1]==goal, (start, s, f, counts)

class Broken(Callback):
    "Raises at an event of the second batch, or of the first epoch."
    def __init__(self, event, error, order):
        self.order,self.error = order,error
        setattr(self, event, self.fail)
    def fail(self):
        if self.training and self.iter==1 or not self.training: raise self.error

events = ('before_batch','after_pred','after_loss','after_backward','before_step','after_step','after_batch','after_train','before_validate','after_validate',
    'after_epoch')
errors = RuntimeError('broken'),KeyboardInterrupt(),CancelFitException()

def interrupt(learn, broken, *cbs):
    before = [type(cb) for cb in learn.cbs],list(learn.model.state_dict()),[vs for *_,vs in traits(learn.model)]
    try: fit(learn, 2, *cbs, *broken)
    except (RuntimeError,KeyboardInterrupt): pass
    after = [type(cb) for cb in learn.cbs],list(learn.model.state_dict()),[vs for *_,vs in traits(learn.model)]
    assert before==after and not hooks(learn.model)

@pytest.mark.parametrize('event', events)
@pytest.mark.parametrize('order', [-100,200], ids=['first','last'])
def test_fault_an_interrupted_fit_leaves_something(event, order):
    for i,error in enumerate(errors): check_interrupted(event, order, error, 'wanda' if i!=events.index(event)%3 else ('fisher','large_final')[order>0])

@pytest.mark.long
def test_every_interrupted_fit():
    for args in itertools.product(events, (-100,200), errors, ('wanda','fisher','large_final')): check_interrupted(*args)

def check_interrupted(event, order, error, criterion):
    learn = learner(n=16)
    # what measures inputs is on the model from `before_batch` to the end of its next pass, which here never comes
    if (event,order,criterion)==('before_batch',200,'wanda') and not isinstance(error, CancelFitException): return check_one_pass(learn, error)
    interrupt(learn, [Broken(event, error, order)], SparsifyCallback(.5, schedule='linear', criterion=criterion))
    assert total(fit(learn, 1, SparsifyCallback(.6, criterion=criterion)).model)==round(.6*n_mlp), (error, criterion)
    if (event,order)==('after_step',-100) and not isinstance(error, CancelFitException): return # the step is done, and nobody else is asked
    interrupt(learn, [Broken(event, error, order)], KeepZeros())
    assert total(fit(learn, 1, KeepZeros()).model)==round(.6*n_mlp), (error, criterion)

def check_one_pass(learn, error):
    before = [vs for *_,vs in traits(learn.model)]
    with pytest.raises(type(error)): fit(learn, 2, SparsifyCallback(.5, criterion='wanda'), Broken('before_batch', error, 200))
    learn.model(learn.dls.one_batch()[0])
    assert [vs for *_,vs in traits(learn.model)]==before and not hooks(learn.model)

class Fragile(nn.Sequential):
    "Raises at its third batch of training."
    calls,error = 0,None
    def forward(self, x):
        self.calls += self.training
        if self.calls==3 and self.error is not None:
            self[0](x)
            raise self.error
        return super().forward(x)

@pytest.mark.parametrize('error', errors[:2], ids=['error','interrupt'])
def test_fault_an_exception_in_the_model_leaves_something(error):
    for kwargs in (dict(), dict(granularity='neuron'), dict(criterion='taylor'), dict(criterion='wanda')):
        net = Fragile(*mlp())
        net.calls,net.error = 0,error
        learn = learner(net)
        interrupt(learn, [], SparsifyCallback(.5, **kwargs))
        assert net.calls==3
        net.error = None
        fit(learn, 1, SparsifyCallback(.6, **kwargs))
        assert total(net)==round(.6*n_mlp) if 'granularity' not in kwargs else dead(net[0])+dead(net[3])==round(.6*28)
        assert not hooks(net)

def test_cancelled_steps_and_batches():
    "Whoever cancels what, the count is right, and zeros stay."
    class Cancel(Callback):
        run_valid = False
        def __init__(self, event, error, order):
            self.order,self.n = order,0
            def cancel():
                self.n += 1
                if self.n%2: raise error
            setattr(self, event, cancel)
    cases = [('before_step',CancelStepException), *[(event,CancelBatchException) for event in ('before_batch','after_pred','after_loss','before_step')]]
    for (event,error),order in itertools.product(cases, (-100,200)):
        for criterion in ('large_final','wanda'):
            learn = fit(learner(n=64), 2, SparsifyCallback(.7, criterion=criterion), Cancel(event, error, order), Watch())
            assert total(learn.model)==round(.7*n_mlp) and not hooks(learn.model), (event, order, criterion)

class Autocast(Callback):
    "Mixed precision as `MixedPrecision` does it, on the CPU."
    order = MixedPrecision.order
    def before_batch(self):
        self.cast = torch.autocast('cpu', dtype=torch.bfloat16)
        self.cast.__enter__()
    def after_pred(self): self.learn.pred = self.pred.float()
    def after_loss(self): self.cast.__exit__(None, None, None)

@pytest.mark.parametrize('criterion', ['large_final','wanda','taylor'])
def test_mixed_precision(criterion):
    learn = fit(learner(), 3, SparsifyCallback(.7, criterion=criterion), Autocast(), Watch(), WatchGradients())
    assert total(learn.model)==round(.7*n_mlp) and {p.dtype for p in learn.model.parameters()}=={torch.float32}
    if criterion!='wanda':
        net = fit(learner(cnn(), shape=(3,8,8)), 3, SparsifyCallback(.5, 'filter', criterion=criterion), Autocast(), Watch(), WatchGradients()).model
        assert dead(net[0])+dead(net[3])==12
        fit(learner(net, shape=(3,8,8)), 1, KeepZeros(), Autocast(), Watch())
        assert dead(net[0])+dead(net[3])==12

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('mode', ['fp16','bf16'])
@pytest.mark.parametrize('criterion', ['large_final','wanda','taylor'])
def test_mixed_precision_on_a_gpu(mode, criterion):
    learn = learner(cnn().cuda(), n=64, shape=(3,8,8), cbs=MixedPrecision(mode))
    learn.dls.to('cuda')
    fit(learn, 3, SparsifyCallback(.5, 'filter', criterion=criterion), Watch(), WatchGradients(), GradientClip(.5))
    net = learn.model
    assert dead(net[0])+dead(net[3])==12
    fit(learn, 2, SparsifyCallback(.7, criterion=criterion, context='local'), Watch(), WatchGradients())
    assert [zeros(m) for m in layers(net)]==[round(.7*m.weight.numel()) for m in layers(net)]

# ---- bad input leaves weights and optimizer as they were

@torch.no_grad()
def spoil(value):
    net = mlp()
    net[3].weight[2,5] = value
    return net

bad = dict(nan=(lambda: spoil(math.nan), dict(), "layer '3': 1 of 192 weights are not finite"), round_to_weights=(mlp, dict(round_to=8), 'round_to=8'),
    infinite=(lambda: spoil(-math.inf), dict(), "layer '3': 1 of 192 weights are not finite"), min_units=(mlp, dict(min_units=0), 'min_units=0'),
    empty=(mlp, dict(granularity='neuron', sparsity=.97, context='local'), 'removes 16 of 16 units in 0, .*at most 15; ask for 0.93'),
    empty_by_name=(mlp, dict(granularity='neuron', sparsity={'3':.99}), 'removes 12 of 12 units in 3, .*at most 11; ask for 0.91'),
    empty_global=(mlp, dict(granularity='neuron', sparsity=.95), 'removes 27 of 28 units.*at most 26'), beyond=(mlp, dict(end_epoch=7), '0 to 7'),
    empty_erk=(mlp, dict(granularity='neuron', sparsity=.95, context='erk'), 'removes 27 of 28 units.*at most 26'),
    two_of_four=(mlp, dict(granularity='2:4', sparsity=.6), 'removes .*2:4 keeps 2 of each 4'), negative=(mlp, dict(start_epoch=-1), '-1'),
    two_of_four_erk=(mlp, dict(granularity='2:4', sparsity=.6, context='erk'), 'removes .*2:4 keeps 2 of each 4'),
    no_such_unit=(mlp, dict(granularity='filter', layers='0'), "layer '0': a Linear has no unit 'filter'"), percent=(mlp, dict(end_epoch=90.), '90'),
    no_such_unit_at_all=(mlp, dict(granularity='kernel'), "'0': a Linear has no unit 'kernel'"), never=(mlp, dict(start_epoch=.5, end_epoch=.5), '0.5'),
    no_multiple=(mlp, dict(granularity='block(4,4)', layers=['3','5']), "layer '5': its 2 outputs are not a multiple of 4"),
    no_head=(mlp, dict(granularity='head'), "no unit 'head'|no layer to sparsify"), round_to=(mlp, dict(granularity='neuron', round_to=0), 'round_to=0'),
    round_to_half=(mlp, dict(granularity='neuron', round_to=1.5), 'round_to=1.5'), min_units_name=(mlp, dict(min_units='all'), "min_units='all'"),
    min_units_many=(mlp, dict(granularity='neuron', min_units=12, context='local'), 'removes 8 of 16 units in 0, .*keep 12: at most 4; ask for 0.25'),
    backwards=(mlp, dict(start_epoch=2, end_epoch=1), '2 to 1'), no_epoch=(mlp, dict(start_epoch=None), 'start_epoch'),
    word=(mlp, dict(end_epoch='last'), 'end_epoch'), no_norm=(mlp, dict(criterion='bn_scale'), "layer '0': .*norm"),
    no_norm_late=(mlp, dict(criterion='bn_scale', schedule='one_shot'), "layer '0': .*norm"), no_layer=(mlp, dict(layers='9'), "'9' matches no layer"),
    needs=(mlp, dict(criterion=criterion(needs='luck')(lambda w,c: w.abs())), 'luck'), no_type=(mlp, dict(layers=nn.Conv2d), 'Conv2d.* matches no layer'),
    no_glob=(mlp, dict(exclude='head*'), "exclude 'head.' matches no layer"), no_pattern=(mlp, dict(layers=3), 'layers 3'),
    all_excluded=(mlp, dict(exclude=nn.Linear), 'excluded'), no_target=(mlp, dict(sparsity={'0':.5,'x*':.2}), "'x.' matches no layer"),
    left_target=(mlp, dict(sparsity={'5':.5}, exclude='5'), "'5' matches no layer"))

@pytest.mark.parametrize('case', bad)
def test_bad_input_is_a_value_error_and_changes_nothing(case):
    build,kwargs,message = bad[case]
    learn = fit(learner(mlp(), opt_func=Adam), 2)
    learn.model.load_state_dict(build().state_dict())
    before = snapshot(learn)
    kwargs = {**dict(sparsity=.5), **kwargs}
    with pytest.raises(ValueError, match=message): fit(learn, 4, SparsifyCallback(**kwargs))
    after = snapshot(learn)
    for b,a in zip(before[0].values(), after[0].values()): assert torch.equal(b.nan_to_num(7.), a.nan_to_num(7.)) # NaN is not equal to itself
    assert any(before[1]) and same(before[1:], after[1:])

scores = [(lambda w,c: w/0*0, "layer '0': 128 of 128 scores are not finite"), (lambda w,c: torch.where(w>.1, torch.inf, w), "layer '0': [0-9]+ of 128 scores"),
    (lambda w,c: w.flatten(1).sum(1), r"layer '0': .*of shape \(16,\) for weights of \(16, 8\)"), (lambda w,c: torch.tensor(1.), r"layer '0': .*shape \(\)")]

@pytest.mark.parametrize('score,message', scores)
@pytest.mark.parametrize('context', ['local','global','erk'])
def test_bad_scores_are_a_value_error_and_change_nothing(score, message, context):
    net = mlp()
    sp = Sparsifier(net, context=context, criterion=score)
    before = flat(net.state_dict())
    with pytest.raises(ValueError, match=message): sp.sparsify(.5)
    assert same(before, flat(net.state_dict())) and sp.reached==0 and all(m.all() for m in sp.masks.values())

def test_a_bad_score_in_a_later_layer_changes_no_layer():
    net = mlp()
    sp = Sparsifier(net, context='local', criterion=lambda w,c: w.abs() if c.name!='5' else w*math.nan)
    before = flat(net.state_dict())
    with pytest.raises(ValueError, match="layer '5'"): sp.sparsify(.5)
    sp.apply()
    assert same(before, flat(net.state_dict())) and sp.reached==0

@pytest.mark.parametrize('criterion,remedy', [('taylor','backward'), ('fisher','backward'), ('wanda','observe'), ('bn_scale','coupled')])
def test_what_a_criterion_misses_is_said(criterion, remedy):
    net = mlp()
    before = flat(net.state_dict())
    with pytest.raises(ValueError, match=f"layer '0'.*{remedy}"): Sparsifier(net, criterion=criterion).sparsify(.5)
    assert same(before, flat(net.state_dict()))

def test_gradients_of_frozen_layers():
    "A frozen layer gets no gradient: the message says so, or the layer is left alone; it is no news of the training loop's."
    net = mlp()
    net[0].requires_grad_(False)
    before = flat(net.state_dict())
    with pytest.raises(ValueError, match="layer '0'.*(frozen|requires_grad)"): fit(learner(net), 1, SparsifyCallback(.5, criterion='taylor'))
    assert same(before, flat(net.state_dict()))

def shared_mlp():
    a,b = nn.Linear(8, 8),nn.Linear(8, 8)
    b.weight = a.weight
    return nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), nn.Linear(8, 2))

def encoder(): return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 2))

rivals = dict(all=(mlp, dict(), dict(granularity='neuron')), named=(mlp, dict(layers='0'), dict(layers=['3','0'])),
    dicts=(mlp, dict(sparsity={'0':.5}), dict(sparsity={'?':.6})), shared=(shared_mlp, dict(layers='0'), dict(layers='2')),
    heads=(encoder, dict(granularity='head'), dict()))

@pytest.mark.parametrize('case', rivals)
def test_two_callbacks_with_the_same_layer(case):
    build,a,b = rivals[case]
    learn = learner(build(), shape=(5,8) if build is encoder else (8,))
    before = flat(dict(learn.model.state_dict()))
    cbs = [SparsifyCallback(**{**dict(sparsity=.5), **kwargs}) for kwargs in (a, b)]
    with pytest.raises(ValueError, match='claimed by two'): fit(learn, 1, *cbs)
    assert same(before, flat(dict(learn.model.state_dict())))

@pytest.mark.parametrize('n', [2,3])
def test_callbacks_with_layers_of_their_own(n):
    learn = learner()
    cbs = [SparsifyCallback(.25*(i+1), layers=l) for i,l in enumerate('035'[:n])]
    fit(learn, 2, *cbs)
    assert [zeros(learn.model[int(l)]) for l in '035'[:n]]==[round(.25*(i+1)*learn.model[int(l)].weight.numel()) for i,l in enumerate('035'[:n])]
    columns = learn.recorder.metric_names
    assert len(set(columns))==len(columns) and sum('sparsity' in c for c in columns)==n
    for cb,s in zip(cbs, (.25,.5,.75)): assert learn.recorder.values[-1][columns.index(cb.column)-1]==pytest.approx(s, abs=1e-9)

def test_two_kinds_of_units_in_one_fit():
    net = cnn()
    learn = fit(learner(net, shape=(3,8,8)), 2, SparsifyCallback(.5, 'filter', layers=['0','3']), SparsifyCallback(.75, layers='8'))
    assert dead(net[0])+dead(net[3])==12 and zeros(net[8])==24 and [c for c in learn.recorder.metric_names if 'sparsity' in c]==['sparsity','sparsity_weight']

# ---- widths, and who takes part

def alive_counts(net): return [len(m.weight)-dead(m) for m in layers(net)][:-1]

@pytest.mark.parametrize('context', ['local','global','erk'])
@pytest.mark.parametrize('round_to,min_units', [(4,1), (8,1), (4,6), (1,5), (3,4), (16,1)])
def test_round_to_and_min_units(context, round_to, min_units):
    "What stays is a multiple of `round_to`, or all; not less than `min_units`; near what was asked; and what was dead stays dead."
    widths = 24,16,40,10
    dims = list(zip((8, *widths), (*widths, 4)))
    net = nn.Sequential(*[m for i,o in dims for m in (nn.Linear(i, o), nn.ReLU())][:-1])
    sp = Sparsifier(net, 'neuron', context, 'random', sample=torch.randn(2, 8), round_to=round_to, min_units=min_units)
    was = [torch.zeros(n, dtype=torch.bool) for n in widths]
    for f in np.linspace(.04, 1, 25):
        sp.sparsify(.6 if min_units<5 else .4, float(f))
        now = [(m.weight==0).all(1) for m in layers(net)[:-1]]
        left = [int((~d).sum()) for d in now]
        assert all(l==n or l%round_to==0 and l>=min_units for l,n in zip(left, widths)), (f, left)
        assert all((d|~w).all() for d,w in zip(now, was)), (f, left)
        was = now
    if context=='local': assert all(abs(l-(n-round(sp_target(min_units)*n)))<round_to or l==n or l-round_to<min_units for l,n in zip(left, widths)), left
    elif context=='global': assert abs(sum(widths)-sum(left)-round(sp_target(min_units)*sum(widths))) <= round_to+sum(n for n in widths if n<=round_to), left
def sp_target(min_units): return .6 if min_units<5 else .4

def test_fault_round_to_crashes():
    for s in (.1, .3, .5, .7, .8):
        net = cnn()
        sp = Sparsifier(net, 'filter', 'local', sample=torch.randn(2, 3, 8, 8), round_to=4)
        sp.sparsify(s)
        assert alive_counts(net)==[max(4, 4*round((8-round(s*8))/4)), max(4, 4*round((16-round(s*16))/4))], s
    learn = fit(learner(cnn(), shape=(3,8,8)), 3, SparsifyCallback(.5, 'filter', round_to=4), Watch())
    assert all(n%4==0 for n in alive_counts(learn.model)) and sum(alive_counts(learn.model))==12

def test_who_takes_part():
    net,linear = cnn(),lambda m: isinstance(m, nn.Linear)
    def taken(**kwargs): return [g.name for g in Sparsifier(net, **kwargs).groups]
    assert taken()==['0','3','8'] and taken(layers='3')==['3'] and taken(layers='[03]')==['0','3'] and taken(layers=nn.Conv2d)==['0','3']
    assert taken(layers=linear)==['8'] and taken(layers=lambda name,m: name=='3')==['3']
    assert taken(layers=['8',nn.Conv2d])==['0','3','8'] and taken(layers=('0',linear))==['0','8']
    assert taken(exclude='3')==['0','8'] and taken(exclude=nn.Conv2d)==['8'] and taken(exclude=[linear,'0'])==['3']
    assert taken(exclude=lambda name,m: name<'8')==['8']
    assert taken(layers=nn.Conv2d, exclude='0')==['3'] and taken(layers={'0','3'})==['0','3']
    sp = Sparsifier(net, layers=nn.Conv2d, exclude='0')
    assert sp.left_dense=={'0':'excluded', '8':'not among `layers`'}

def test_targets_by_name():
    net = cnn()
    sp = Sparsifier(net)
    sp.sparsify({'*':.25, '3':.5})
    assert [zeros(m) for m in layers(net)]==[54,576,8]
    net = cnn()
    Sparsifier(net, context='global').sparsify({'[03]':.5})
    assert [zeros(m) for m in layers(net)]==[108,576,0]
    net = cnn()
    learn = fit(learner(net, shape=(3,8,8)), 2, SparsifyCallback({'0':.25,'3':.75}, 'filter'))
    assert (dead(net[0]),dead(net[3]))==(2,12) and learn.recorder.values[-1][-1]==pytest.approx(14/24)

def test_targets_by_name_and_the_graph():
    "A target for one layer is one for all that are tied to it."
    net = resnet()
    sp = Sparsifier(net, 'filter', sample=torch.randn(1, 3, 8, 8))
    sp.sparsify({'3.conv2':.5, '4.*1':.25})
    gone = [(m.weight==0).flatten(1).all(1) for m in (net[0], net[3].conv2)]
    assert torch.equal(*gone) and int(gone[0].sum())==4 and dead(net[4].conv1)==3 and dead(net[3].conv1)==dead(net[4].conv2)==0

def test_tied_weights_are_one_tensor():
    for granularity,count in (('weight',64), ('neuron',8), ('row',8), ('2:4',64)):
        net = shared_mlp()
        sp = Sparsifier(net, granularity, layers=['0','2'], coupled=False)
        assert len(sp.groups)==1 and sp.groups[0].name=='0+2' and sp.n==count
        sp.sparsify(.5)
        assert zeros(net[0])==32 and net[2].weight is net[0].weight and (granularity in ('neuron','row'))==(dead(net[0])==4)
    net = shared_mlp()
    fit(learner(net), 2, SparsifyCallback({'2':.75}))
    assert zeros(net[0])==48 and net[2].weight is net[0].weight and zeros(net[4])==0

def test_tied_weights_and_the_graph():
    net,x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), *shared_mlp()),torch.randn(4, 8)
    sp = Sparsifier(net, 'neuron', sample=x)
    sp.sparsify(.5)
    gone = (net[2].weight==0).all(1)
    assert int(gone.sum())==4 and (net[2].bias[gone]==0).all() and (net[4].bias[gone]==0).all()
    assert '2' not in sp.left_dense and '4' not in sp.left_dense # they share a weight: what is zero in one is zero in the other
    fit(learner(net), 2, KeepZeros(), Watch())
    assert (net[2].bias[gone]==0).all() and gap(net, Condenser(net, x).condense(), x) <= 1e-5

def test_groups_print_readably():
    net = resnet()
    sp = Sparsifier(net, 'filter', sample=torch.randn(1, 3, 8, 8))
    sp.sparsify(.5)
    text = repr(sp.groups)
    assert [l for l in text.splitlines() if not l.startswith(' ')]==[f'{g.name}: {g.n} units'+f', {g.dead} of them zero'*bool(g.dead) for g in sp.groups]
    assert {g.name for g in sp.groups}=={'0+3.conv2','3.conv1','4.conv1','4.conv2+4.down.0'}
    assert 'with 1.weight, 1.bias, 3.bn2.weight, 3.bn2.bias' in text and len(text) < 2000 and 'tensor' not in text
    assert f'filter: {round(.5*40)} of 40 units zero' in repr(sp) and "left dense: 7 (a Linear has no unit 'filter')" in repr(sp)

def test_left_dense_says_why():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.e,self.a,self.b,self.unused,self.head = nn.Embedding(9, 8),nn.Linear(8, 8),nn.Linear(8, 8),nn.Linear(8, 8),nn.Linear(8, 2)
            nn.utils.parametrizations.weight_norm(self.b)
        def forward(self, x): return self.head(self.a(self.b(self.e(x).mean(1)).relu()).relu())
    net,x = Many(),torch.randint(0, 9, (2, 3))
    assert Sparsifier(net).left_dense=={'e':'an Embedding, not named in `layers`', 'b':'its weight is computed from others'}
    left = Sparsifier(net, 'neuron', sample=x).left_dense
    assert left.keys()=={'e','b','unused','head'} and 'output' in left['head'] and 'not' in left['unused'] or 'nothing' in left['unused']
    assert 'last layer' in Sparsifier(net, 'neuron', coupled=False).left_dense['head']
    assert "no unit 'filter'" in Sparsifier(cnn(), 'filter', coupled=False).left_dense['8']
    sp = Sparsifier(cnn(), '2:4')
    assert '3 inputs are not a multiple of 4' in sp.left_dense['0'] and '0' in sp.report().index

def test_embeddings_only_when_asked():
    net = Vectors()
    with pytest.raises(ValueError, match='nothing to sparsify|no layer'): Sparsifier(net)
    Sparsifier(net, layers=nn.Embedding).sparsify(.5)
    assert zeros(net.a)+zeros(net.b)==round(.5*40*12)
    net = Vectors()
    Sparsifier(net, 'row', layers='a', context='local').sparsify(.25)
    assert dead(net.a)==6 and zeros(net.a)==72 and zeros(net.b)==0

# ---- faults of a peer that are not in test_sparsify.py

@pytest.mark.parametrize('groups', [2,4,8])
def test_fault_grouped_convolution_crashes(groups):
    grouped,head = nn.Conv2d(8, 16, 3, padding=1, groups=groups),[nn.Conv2d(16, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    net,x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), grouped, nn.BatchNorm2d(16), nn.ReLU(), *head),torch.randn(2, 3, 8, 8)
    perturb(net)
    for granularity in ('weight','kernel','filter','row'):
        model = deepcopy(net)
        sp = Sparsifier(model, granularity, sample=x)
        sp.sparsify(.5)
        assert sp.report().loc['total','zero']==round(.5*sp.n) and gap(model, Condenser(model, x).condense(), x) <= 1e-5
    model = deepcopy(net)
    fit(learner(model, shape=(3,8,8)), 2, SparsifyCallback(.5, 'filter'), Watch(), WatchGradients())
    assert model[3].groups==groups and gap(model, Condenser(model, x).condense(), x) <= 1e-5

def test_fault_wanda_on_a_depthwise_convolution_crashes():
    for groups,out in ((6,6), (6,12), (3,6), (1,8)):
        conv = nn.Conv2d(6, out, 3, groups=groups)
        x = torch.randn(16, 6, 8, 8)*torch.logspace(-2, 2, 6).view(1, 6, 1, 1)
        sp = Sparsifier(conv, criterion='wanda', layers='')
        sp.observe(x)
        w = conv.weight.detach().clone()
        norm = x.square().mean((0,2,3)).sqrt()
        score = torch.stack([w[o].abs()*norm[o//(out//groups)*(6//groups):][:6//groups].view(-1, 1, 1) for o in range(out)])
        sp.sparsify(.5)
        assert torch.equal(conv.weight==0, score < score.flatten().sort().values[round(.5*w.numel())])

def test_fault_nm_on_linear_crashes():
    for name,n,m in (('2:4',2,4), ('1:4',1,4), ('1:2',1,2), ('3:8',3,8)):
        lin = nn.Linear(16, 6)
        w = lin.weight.detach().clone()
        Sparsifier(lin, name, layers='').sparsify(1-n/m)
        kept = (lin.weight!=0).view(6, -1, m)
        assert (kept.sum(2)==n).all() and torch.equal(kept, torch.zeros_like(kept).scatter_(2, w.abs().view(6, -1, m).topk(n, 2).indices, True))

@pytest.mark.parametrize('granularity', ['row','neuron'])
def test_fault_row_on_linear_leaves_bias_and_norm(granularity):
    net = perturb(mlp())
    Sparsifier(net, granularity, 'local', sample=torch.randn(2, 8)).sparsify(.5)
    gone = (net[0].weight==0).all(1)
    assert int(gone.sum())==8 and (net[0].bias[gone]==0).all() and (net[1].weight[gone]==0).all() and (net[1].bias[gone]==0).all()
    assert (net[0].bias[~gone]!=0).all() and (net[1].bias[~gone]!=0).all() and zeros(net[5])==0
    learn = fit(learner(net), 2, SparsifyCallback(.75, granularity), Watch(), WatchGradients())
    out = learn.model.eval()[:3](torch.randn(4, 8))
    assert (out[:,(net[0].weight==0).all(1)]==0).all() and dead(net[0])+dead(net[3])==21

@pytest.mark.parametrize('granularity', ['filter','neuron','row','channel','feature'])
@pytest.mark.parametrize('coupled', [True,False])
def test_fault_heads_get_cut(granularity, coupled):
    "4 classes became 2. Whatever is removed, all classes are still there, and can be told apart."
    conv = granularity in ('filter','channel')
    net,x = (resnet(),torch.randn(8, 3, 8, 8)) if conv else (bn_mlp(),torch.randn(8, 12))
    Sparsifier(net.eval(), granularity, 'local', sample=x, coupled=coupled).sparsify(.7)
    assert dead(layers(net)[-1])==0 and (layers(net)[-1].bias!=0).all()
    c = Condenser(net, x).condense()
    assert c.model(c.inputs(x)).shape==(8,3) and c.model[-1].out_features==3 and gap(net, c, x) <= 1e-5

def test_fault_condensing_changes_the_function():
    "Relative error .55 on a chain, .85 on ResNet-18, by a library that removes by rank again."
    for build,x,granularity in ((cnn, torch.randn(4, 3, 8, 8), 'filter'), (resnet, torch.randn(4, 3, 8, 8), 'filter'), (bn_mlp, torch.randn(4, 12), 'neuron')):
        for coupled in (True,False):
            net = perturb(build())
            sp = Sparsifier(net, granularity, sample=x, coupled=coupled)
            sp.sparsify(.5)
            c = Condenser(net, x).condense()
            assert gap(net, c, x) <= 1e-5 and n_params(c.model)<n_params(net)

def test_fault_every_step_scores_all_weights():
    "A step cost 3 times a plain one: scores are needed only where the count moves."
    calls = []
    def counted(w, c):
        calls.append(c.name)
        return w.abs()
    fit(learner(n=80), 3, SparsifyCallback(.5, criterion=counted, schedule='one_shot'))
    assert calls==['0','3','5']
    calls.clear()
    fit(learner(n=80), 3, SparsifyCallback(.5, 'neuron', criterion=counted, schedule=iterative(4)))
    assert len(calls)==2*4

def test_fault_save_model_callback_and_best_weights(tmp_path):
    "The best weights are put back as they were, with the zeros of their epoch, which the column has told."
    cb,learn = SaveModelCallback(monitor='train_loss', comp=np.less),learner(path=tmp_path)
    fit(learn, 4, SparsifyCallback(.7), cb)
    at = learn.recorder.metric_names.index('sparsity')-1
    best = min(learn.recorder.values, key=lambda v: v[0])
    assert total(learn.model)/n_mlp==pytest.approx(best[at])
    learn = learner(cnn(), shape=(3,8,8), path=tmp_path)
    fit(learn, 4, SparsifyCallback(.5, 'filter'), SaveModelCallback(every_epoch=True))
    assert dead(learn.load('model_3').model[0])+dead(learn.model[3])==12
