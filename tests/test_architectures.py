"""Condensed networks compute what the dense ones do, whatever the architecture: torchvision's classifiers and segmentation models, and families of timm.

Which network is taken whole and which by a shorter or narrower one of the same code path stands in zoo.py; how zeros are made, in zeros.py."""
import pytest, torch
from fasterprune.all import *
from zeros import cast, gap, images, pairs, ways, zeroed
from zoo import chains, classifiers, families, network, segmenters

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

@pytest.mark.parametrize('name,way', cases(few))
def test_exact_in_single(name, way):
    model,c,sides = condense(name, way, torch.float32)
    for a,b in pairs(model, c, [images(3, s) for s in sides]): assert gap(a, b) <= 1e-5

@pytest.mark.long
@pytest.mark.parametrize('name,way', cases([*classifiers, *segmenters]) + [(n,w) for n in families for w in ('independent','coupled')])
def test_exact_in_double_and_cast_to_single(name, way):
    model,c,sides = condense(name, way, torch.float64)
    xs = [images(3, s, torch.float64) for s in sides]
    exact = [*pairs(model, c, xs)]
    for a,b in exact: assert gap(a, b) <= 1e-10
    # deep networks with random weights amplify rounding: some are themselves computed no better in single precision
    for (out,_),(a,b) in zip(exact, pairs(model, c, [x.float() for x in xs])):
        assert gap(a, b) <= max(1e-5, 10*gap(out, a)), 'more than single precision makes of the dense network itself'

def test_all_of_torchvision_and_thirty_families_of_timm(): assert len(classifiers) >= 80 and len(segmenters) >= 6 and len(families) >= 30
