"Every kind of unit counted by a definition of its own, with every context and criterion."
import itertools
from functools import partial
import numpy as np, pytest, torch
from fastai.basics import set_seed
from torch import nn
from fasterprune.all import *
from fasterprune.sparsify import LayerInfo
from support.lanes import one_of
from support.sparsity_cases import kinds, parts, prepare, rising, which, who

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

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

def wanted(name, context, s, sizes):
    "How many units are to be zero, by layer or in all; `None` if that can't be."
    caps = [most(name, n) for n in sizes]
    if context=='local' or context is rising:
        counts = [round((s if context=='local' else s*(i+1)/len(sizes))*n) for i,n in enumerate(sizes)]
        return counts if all(c<=m for c,m in zip(counts, caps)) else None
    n,cap = sum(sizes),sum(caps) if name!='layer' else 0 if context=='erk' else len(sizes)-1 # one layer by itself may not go
    return round(s*n) if round(s*n)<=cap else None

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

@pytest.mark.parametrize('kind', one_of(7, [(k,) for k in kinds]))
def test_table_in_full(kind):
    for i,(name,context,criterion) in enumerate(itertools.product(names, who, which)): check_table(kind, name, context, criterion, (.1,.25,.5,.4,.75,.9)[i%6])

def test_criteria_are_their_formulas():
    w,o,p,g = [torch.randn(6, 4, dtype=torch.float64) for _ in range(4)]
    c = LayerInfo('fc', nn.Linear(4, 6), torch.rand(1, 4).double(), o, p, g, torch.rand(1, 4).double(), torch.rand(6, 1).double())
    size,began,was = w.abs(),o.abs(),p.abs()
    formulas = dict(large_final=size, squared_final=w*w, small_final=-size, large_init=began, small_init=-began,
        large_init_large_final=torch.minimum(size, began), small_init_small_final=-torch.maximum(size, began), magnitude_increase=size-began,
        movement=(w-o).abs(), movmag=size*(w-o).abs(), weight_change_relative=(w-o).abs()/(began+1e-6),
        updating_magnitude_increase=size-was, updating_movement=(w-p).abs(), updating_movmag=size*(w-p).abs(),
        taylor=w*g, fisher=w*g, group_magnitude=w*w, wanda=size*c.input_norm, large_scaled=size*c.input_scale, bn_scale=c.norm_scale.expand(6, 4),
        lamp=torch.tensor([[float(v*v/(w*w)[w*w>=v*v].sum()) for v in row] for row in w]).double())
    missing = criteria.keys()-formulas.keys()-{'random'}
    assert not missing and formulas.keys() <= criteria.keys(), f'criteria without a formula, add it here: {missing}'
    for name,formula in formulas.items(): assert torch.allclose(criteria[name](w, c).double(), formula, atol=1e-6), name
    assert criteria['random'](w, c).unique().numel()==24 and not torch.equal(criteria['random'](w, c), criteria['random'](w, c))
