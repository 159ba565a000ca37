"""Condensed networks compute what the dense ones do, whatever the architecture: torchvision's classifiers and segmentation models, and families of timm.

Which network is taken whole and which by a shorter or narrower one of the same code path stands in zoo.py; how zeros are made, in zeros.py."""
from copy import deepcopy
import pytest, torch
from torch.utils._pytree import tree_leaves
from fasterprune.all import *
from support.lanes import always, one_of
from support.zeros import cast, gap, images, pairs, reordered, ways, zeroed
from support.zoo import chains, classifiers, families, giants, network, segmenters

def params(model): return sum(p.numel() for p in model.parameters())

def condense(name, way, dtype):
    "Zeros, a condensed network, and what has to hold for both but their outputs."
    model,x = network(name)
    model,x = cast(zeroed(model, x, way), dtype),x.to(dtype)
    before,n = {k:v.clone() for k,v in model.state_dict().items()},params(model)
    c = Condenser(model, x).condense()
    after = model.state_dict()
    assert before.keys()==after.keys() and all(torch.equal(v, after[k]) for k,v in before.items()) and not model.training, 'the dense model is changed'
    assert params(c.model)==c.report.params_after <= c.report.params_before==n==params(model) and type(c.model) is type(model)
    return model,c,(x.shape[-1],x.shape[-1]+32)

def cases(names): return [(n,w) for n in names for w in ways if not (w=='blocks' and n in chains)]

few = ['resnet18','mobilenet_v3_small','densenet121','shufflenet_v2_x0_5','convnext_tiny','swin_t','vit_b_16','lraspp_mobilenet_v3_large',
    'levit_128s','mobilevit_xxs','xcit_nano_12_p16_224']

@pytest.mark.parametrize('name,way', always(3, cases(few)))
def test_exact_in_single(name, way):
    model,c,sides = condense(name, way, torch.float32)
    for a,b in pairs(model, c, [images(3, s) for s in sides]): assert gap(a, b) <= 1e-5

each_family = [(n, w) for n in families for w in ('independent','coupled')]

@pytest.mark.parametrize('name,way', one_of(17, cases([*classifiers, *segmenters])) + one_of(11, each_family))
def test_exact_in_double_and_cast_to_single(name, way):
    model,c,sides = condense(name, way, torch.float64)
    xs = [images(3, s, torch.float64) for s in sides]
    exact = [*pairs(model, c, xs)]
    for a,b in exact: assert gap(a, b) <= 1e-10
    # deep networks with random weights amplify rounding: some are themselves computed no better in single precision
    for (out,_),(a,b) in zip(exact, pairs(model, c, [x.float() for x in xs])):
        assert gap(a, b) <= max(1e-5, 10*gap(out, a)), 'more than single precision makes of the dense network itself'

def channel_gaps(a, b):
    "For each output and each of its channels, largest difference and size."
    for p,q in zip(tree_leaves(a), tree_leaves(b)):
        p,q = [t.movedim(1, 0).flatten(1) for t in (p,q)]
        yield (p-q).abs().amax(1),p.abs().amax(1)

halves = [n for n in [*classifiers,*families] if n not in giants][::2]

in_halves = one_of(11, [(n, d) for n in halves for d in (torch.float16,torch.bfloat16)])

@pytest.mark.parametrize('name,dtype', [('resnet18',torch.bfloat16), ('swin_t',torch.float16), *in_halves])
def test_stored_in_half_precision(name, dtype):
    "What is stored in half precision is judged in float64: the edit is exact for each channel, and no more stays than in float64."
    model,x = network(name)
    model = cast(zeroed(model, x, 'independent'), dtype)
    condenser = Condenser(model, x.to(dtype))
    c = condenser.condense()
    assert condenser.reference.dtype is torch.float64 and c.report.max_error <= 1e-10 and {p.dtype for p in c.model.parameters()}=={dtype}
    assert not any('changed the output' in k['reason'] for k in c.report.kept)
    wide,x = cast(deepcopy(model), torch.float64),x.double()
    exact = Condenser(wide, x).condense(verify=False)
    assert c.report.params_after <= 1.01*exact.report.params_after, 'more stays than of the same weights in float64'
    with torch.no_grad():
        out,small = wide(x),cast(exact.model, torch.float64)(exact.inputs(x))
        gaps = [*channel_gaps(out, small)]
        if all((diff <= 1e-10*size).all() for diff,size in gaps): return
        noises = channel_gaps(out, reordered(wide, x)(x)) # a channel of next to nothing: what does another order of the sums make of it?
        for (diff,size),(noise,_) in zip(gaps, noises, strict=True): assert (diff <= torch.maximum(1e-10*size, 10*noise)).all()

def test_sixty_networks_are_stored_in_half_precision(): assert len(halves) >= 60

def test_all_of_torchvision_and_thirty_families_of_timm(): assert len(classifiers) >= 80 and len(segmenters) >= 6 and len(families) >= 30
