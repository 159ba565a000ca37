"Networks of torchvision with dead filters: exact at several resolutions, and as small as they can be."
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from fasterprune.all import *
from fasterprune.graph.graph import Graph
from fasterprune.graph.trace import trace
from support.lanes import always, one_of
from support.nets import as_tuple, gap, halve, perturb

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def arch(name, **kwargs): return getattr(pytest.importorskip('torchvision').models, name)(weights=None, **kwargs)

def test_vgg16_bn_is_exact_at_two_resolutions_and_shrinks():
    net = halve(perturb(arch('vgg16_bn')))
    c = Condenser(net, torch.randn(3, 3, 32, 32)).condense()
    for size in (32, 64):
        for n in (1, 3): assert gap(net, c, torch.randn(n, 3, size, size)) <= 1e-5
    assert c.report.max_error <= 1e-5
    assert c.report.params_after <= .56*c.report.params_before
    widths = c.report.to_frame().outputs_after.filter(like='features')
    before = c.report.to_frame().outputs_before.filter(like='features')
    assert (widths <= before//2 + 1).all(), 'more than one carrier stayed'

def exact(name, size, prune):
    "The network, pruned by `prune` and condensed by the analysis alone, has to be the same at other batch sizes and another resolution."
    net = perturb(arch(name, **(dict(image_size=64) if 'vit' in name else {}))).double().eval()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    prune(net, x)
    c = Condenser(net, x).condense(verify=False)
    for s in (size, *([size+32] if 'vit' not in name else [])): assert gap(net, c, torch.randn(1, 3, s, s, dtype=torch.float64)) <= 1e-10
    assert gap(net, c, x) <= 1e-10
    return c.report

# fraction of the parameters that may be left where each filter is zero by chance in a half of all layers: ties keep what one of them needs
halved = dict(mobilenet_v2=.38, mnasnet0_5=.43, densenet121=.30, mobilenet_v3_small=.71, squeezenet1_1=.36, shufflenet_v2_x1_0=.49)
more_halved = dict(vgg11_bn=.75, vgg13_bn=.75, vgg16_bn=.75, vgg19_bn=.75, vgg11=.75, vgg16=.75, alexnet=.75, resnet18=.47, resnet50=.6, googlenet=.65,
    efficientnet_b0=.70, inception_v3=.45, regnet_x_400mf=1, regnet_y_400mf=.93, resnext50_32x4d=.96, vit_b_32=1)
large = {n:64 for n in ('alexnet','squeezenet1_1','shufflenet_v2_x1_0','googlenet','vit_b_32')} | dict(inception_v3=96)

@pytest.mark.parametrize('name,share', [*halved.items(), *one_of(3, more_halved.items())])
def test_architecture_is_exact_in_double(name, share):
    report = exact(name, large.get(name, 32), lambda net, x: halve(net))
    assert report.params_after <= share*report.params_before

# the same, where filters that belong together were pruned together; nothing dead may stay then
coupled = dict(resnet18=.265, mobilenet_v2=.35, densenet121=.29, mobilenet_v3_small=.62, shufflenet_v2_x1_0=.52)
more_coupled = dict(mnasnet1_0=.34, efficientnet_b0=.33, regnet_y_400mf=.28, resnext50_32x4d=.275, squeezenet1_1=.36, googlenet=.64, inception_v3=.37)

@pytest.mark.parametrize('name,share', [*always(2, coupled.items()), *one_of(3, more_coupled.items())])
def test_filters_pruned_together_all_go(name, share):
    report = exact(name, large.get(name, 32), lambda net, x: Sparsifier(net, 'filter', 'local', sample=x).sparsify(.5))
    assert report.params_after <= share*report.params_before and report.kept==[]
    convs = report.to_frame().query('type=="Conv2d"')
    dense = [*convs.index[convs.outputs_after!=convs.outputs_before//2]]
    if name!='shufflenet_v2_x1_0': assert dense==(['classifier.1'] if name=='squeezenet1_1' else []), 'more than the output was left dense'

class Largest(TorchDispatchMode):
    "How many elements the largest tensor has that is made inside the context."
    n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.n = max([self.n, *(o.untyped_storage().nbytes()//o.element_size() for o in as_tuple(out) if isinstance(o, torch.Tensor))])
        return out

def test_dense_connections_at_full_resolution_are_cheap(): # nothing is written out that is only expanded
    net,x = arch('densenet121'),torch.randn(8, 3, 224, 224)
    traced = trace(net, x)
    with Largest() as seen: Graph(net, x, traced)
    assert seen.n <= max(p.numel() for p in net.parameters()), f'{seen.n} elements in one tensor'

def test_resnet18_is_exact():
    net = halve(perturb(arch('resnet18')))
    c = Condenser(net, torch.randn(3, 3, 32, 32)).condense()
    for size in (32, 64): assert gap(net, c, torch.randn(2, 3, size, size)) <= 1e-5
    inner = c.report.to_frame().filter(regex=r'layer\d\.\d\.conv1', axis=0)
    assert len(inner)==8 and (inner.outputs_after <= inner.outputs_before//2 + 1).all(), 'the inner convolutions of the blocks are not halved'
