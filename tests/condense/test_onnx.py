"Condensed networks elsewhere: torch.compile, torch.export and ONNX say what the masked network says, at any batch size."
import itertools, shutil
from copy import deepcopy
import pytest, torch
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Datasets, Learner, set_seed
from fastai.vision.all import TensorImage, TensorMask, unet_learner
from torch import nn
from torchvision import models
from fasterprune.all import *
from fasterprune.core.batches import as_tuple
from fasterprune.core.models import evaluating
from support.nets import halve, perturb
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

def mlp():
    "The middle of an image is read, and half of the neurons are not zero."
    net = perturb(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.Sigmoid(), nn.Linear(16, 3)))
    halve(net[:-1], nn.Linear)
    with torch.no_grad(): net[1].weight[:,[*range(16), *range(48, 64)]] = 0
    return net,(torch.randn(4, 1, 8, 8),)

def arch(name, size=32): return lambda: (halve(perturb(getattr(models, name)(num_classes=5))),(torch.randn(2, 3, size, size),))

class Block(nn.Module):
    "A transformer block, of which half of the hidden neurons and a head are zero."
    def __init__(self, n=16, heads=4):
        super().__init__()
        self.norm1,self.norm2,self.attn = nn.LayerNorm(n),nn.LayerNorm(n),nn.MultiheadAttention(n, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(n, 4*n), nn.GELU(), nn.Linear(4*n, n))
    def forward(self, x):
        h = self.norm1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))
def transformer():
    net = nn.Sequential(Block(), Block(), nn.Linear(16, 3))
    with torch.no_grad():
        for b in net[:2]:
            b.mlp[0].weight[::2] = 0
            for i in range(3): b.attn.in_proj_weight[16*i:16*i+4] = 0
            b.attn.in_proj_bias.zero_()
            b.attn.out_proj.weight[:,:4] = 0
    return net,(torch.randn(3, 7, 16),)

class Pair(nn.Module):
    "Two inputs, two outputs."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c,self.d = nn.Linear(6, 8),nn.Conv1d(4, 8, 3),nn.Linear(8, 10),nn.Linear(10, 2)
    def forward(self, x, y):
        h = (self.a(x)+self.b(y).mean(-1)).relu()
        return self.d(self.c(h).relu()),h.sum(1)
def pair():
    net = Pair()
    with torch.no_grad():
        net.a.weight[:,:3],net.b.weight[:,1] = 0,0
        for l in (net.a, net.b, net.c): l.weight[:2] = 0
    return net,(torch.randn(4, 6), torch.randn(4, 4, 9))

nets = dict(mlp=mlp, resnet18=arch('resnet18'), mobilenet_v2=arch('mobilenet_v2'), squeezenet=arch('squeezenet1_1', 64), transformer=transformer, pair=pair)

some = [pytest.param(n, marks=dict(squeezenet=[pytest.mark.long], mobilenet_v2=[pytest.mark.soak]).get(n, [])) for n in nets]

def condensed(name):
    net,xs = nets[name]()
    c = Condenser(net, xs).condense()
    assert c.report.params_after < .8*c.report.params_before
    return net,c,xs
def other(xs, n): return tuple(torch.randn(n, *x.shape[1:], generator=torch.Generator().manual_seed(n)) for x in xs)
def outputs(net, xs):
    with evaluating(net): return as_tuple(net(*xs))
def far(wanted, got):
    "The largest difference over the largest output."
    assert [o.shape for o in wanted]==[o.shape for o in got]
    return max(float((a-b).abs().max()/a.abs().max()) for a,b in zip(wanted, got))
def session(path): return ort.InferenceSession(str(path), providers=['CPUExecutionProvider'])
def onnx_outputs(path, xs):
    s = session(path)
    return [torch.from_numpy(o) for o in s.run(None, {i.name:x.numpy() for i,x in zip(s.get_inputs(), xs)})]

# ---- ONNX

@pytest.mark.parametrize('dynamo', [True, False])
@pytest.mark.parametrize('name', some)
def test_onnx_says_the_same_at_every_batch_size(name, dynamo, tmp_path):
    net,c,xs = condensed(name)
    path = c.to_onnx(tmp_path/'deep'/'small.onnx', xs, dynamo=dynamo)
    assert [p.name for p in path.parent.iterdir()]==['small.onnx']
    assert [i.shape[1:] for i in session(path).get_inputs()]==[list(x.shape[1:]) for x in xs]
    for n in (1, 2, 5, 16):
        batch = other(xs, n)
        assert far(outputs(net, batch), onnx_outputs(path, batch)) <= 1e-4
    weights = sum(p.numel() for p in c.model.parameters())
    assert path.stat().st_size <= 4*weights + 60_000, 'more than the condensed weights is in the file'

@pytest.mark.parametrize('name', ['mlp', 'pair'])
def test_onnx_that_takes_kept_inputs(name, tmp_path):
    net,c,xs = condensed(name)
    path = c.to_onnx(tmp_path/'kept.onnx', xs, full_inputs=False)
    kept = as_tuple(c.inputs(*xs))
    assert [i.shape[1:] for i in session(path).get_inputs()]==[list(x.shape[1:]) for x in kept] != [list(x.shape[1:]) for x in xs]
    for n in (1, 3):
        batch = other(xs, n)
        assert far(outputs(net, batch), onnx_outputs(path, as_tuple(c.inputs(*batch)))) <= 1e-4

def test_onnx_of_a_loaded_network(tmp_path):
    net,c,xs = condensed('mlp')
    c.save(tmp_path/'small.safetensors')
    again = load_condensed(tmp_path/'small.safetensors', mlp()[0])
    batch = other(xs, 3)
    assert far(outputs(net, batch), onnx_outputs(again.to_onnx(tmp_path/'small.onnx', xs), batch)) <= 1e-4

def test_onnx_tells_nothing_of_this_machine(tmp_path):
    net,c,xs = condensed('transformer')
    data = c.to_onnx(tmp_path/'small.onnx', xs).read_bytes()
    for path in (nn.__file__, __file__, str(tmp_path)): assert path.rpartition('/')[0].encode() not in data and b'.py' not in data

def test_onnx_leaves_the_network_as_it_was(tmp_path):
    net,c,xs = condensed('resnet18')
    c.model.train()
    c.model.layer1.eval()
    modes,state = [m.training for m in c.model.modules()],deepcopy(c.model.state_dict())
    fast = torch.backends.mha.get_fastpath_enabled()
    c.to_onnx(tmp_path/'small.onnx', xs)
    assert [m.training for m in c.model.modules()]==modes and torch.backends.mha.get_fastpath_enabled()==fast
    assert all(torch.equal(v, state[k]) for k,v in c.model.state_dict().items())

def learner(path=None):
    net,(x,) = mlp()
    x = torch.randn(48, 1, 8, 8)
    ds = list(zip(x, (x.sum((1,2,3))>0).long()))
    return Learner(DataLoaders.from_dsets(ds[:32], ds[32:], bs=8, num_workers=0, device='cpu'), net, loss_func=CrossEntropyLossFlat(), path=path)

def test_onnx_of_a_learner(tmp_path):
    learn = learner(tmp_path)
    small = learn.condense()
    with small.no_bar(), small.no_logging(): small.fit(1, 1e-3)
    x = torch.randn(5, 1, 8, 8)
    wanted = outputs(small.model, as_tuple(small.condensed.inputs(x)))
    assert far(wanted, onnx_outputs(small.to_onnx(tmp_path/'a.onnx'), (x,))) <= 1e-4
    assert far(wanted, onnx_outputs(small.to_onnx(tmp_path/'b.onnx', full_inputs=False), (small.condensed.inputs(x),))) <= 1e-4
    assert far(outputs(learn.model, (x,)), onnx_outputs(learn.to_onnx(tmp_path/'c.onnx'), (x,))) <= 1e-4
    assert (tmp_path/'b.onnx').stat().st_size < (tmp_path/'a.onnx').stat().st_size < (tmp_path/'c.onnx').stat().st_size

# ---- bad input

class Odd(nn.Module):
    "Has an operation that ONNX does not have."
    def forward(self, x): return torch.linalg.eigvals(x.unflatten(1, (8,-1)) @ x.unflatten(1, (8,-1)).mT).real

class Fixed(nn.Module):
    "Counts on 4 items."
    def forward(self, x): return x.view(4, 64)

def small_of(model): return Condensed(model, InputSelector([None]), None)

def test_what_onnx_does_not_have_is_an_error_and_no_file(tmp_path):
    path = tmp_path/'small.onnx'
    path.write_bytes(b'what was there')
    c = small_of(nn.Sequential(nn.Linear(64, 64), Odd()))
    with pytest.raises(ValueError, match='Sequential cannot be written as ONNX'): c.to_onnx(path, torch.randn(4, 64))
    assert path.read_bytes()==b'what was there' and [p.name for p in tmp_path.iterdir()]==['small.onnx']

def test_fixed_batch_size(tmp_path):
    c,x = small_of(nn.Sequential(nn.Linear(64, 64), Fixed())),torch.randn(4, 64)
    with pytest.raises(ValueError, match='takes no batch of 1: dynamic=False'): c.to_onnx(tmp_path/'small.onnx', x)
    path = c.to_onnx(tmp_path/'small.onnx', x, dynamic=False)
    assert far(outputs(c.model, (x,)), onnx_outputs(path, (x,))) <= 1e-4 and session(path).get_inputs()[0].shape==[4,64]

@pytest.mark.parametrize('sample,why', [(torch.randn(4, 9), 'does not run on the sample'), (torch.zeros(4, 1, 8, 8).long(), 'does not run on the sample'),
    ('text', 'batches of tensors'), (None, 'batches of tensors'), (torch.tensor(1.), 'batches of tensors')])
def test_bad_samples(sample, why, tmp_path):
    with pytest.raises(ValueError, match=why): small_of(mlp()[0]).to_onnx(tmp_path/'small.onnx', sample)
    assert not list(tmp_path.iterdir())

def test_bad_paths(tmp_path):
    c,x = small_of(mlp()[0]),torch.randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match='it is a folder'): c.to_onnx(tmp_path, x)
    (tmp_path/'file').touch()
    with pytest.raises(ValueError, match='cannot be written'): c.to_onnx(tmp_path/'file'/'small.onnx', x)

class Noisy(nn.Module):
    "Says something else in a file than here: a file is tried by the exporter outside of Python."
    def forward(self, x): return x*(1. if torch.compiler.is_exporting() else 2.)

def test_a_file_that_says_something_else_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r'differs from it by 5.0e-01 of the largest output at batch size 4: nothing was written'):
        small_of(nn.Sequential(nn.Linear(8, 8), Noisy())).to_onnx(tmp_path/'small.onnx', torch.randn(4, 8))
    assert not list(tmp_path.iterdir())

# ---- what it is shown

def test_onnx_of_a_network_that_knows_its_sample(tmp_path):
    net,c,xs = condensed('pair')
    assert [tuple(x.shape) for x in c.sample]==[(2,6),(2,4,9)]
    c.save(tmp_path/'c.safetensors')
    for cc in (c, load_condensed(tmp_path/'c.safetensors', pair()[0]), deepcopy(c)): # deep copies and files hold no data
        batch = other(xs, 5)
        assert far(outputs(net, batch), onnx_outputs(cc.to_onnx(tmp_path/'c.onnx'), batch)) <= 1e-4
    with pytest.raises(ValueError, match='it is not known which batches of tensors'): Condensed(nn.Linear(2, 2), InputSelector([None]), None).to_onnx(tmp_path/'d.onnx')

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.e,self.a,self.b = nn.Embedding(9, 8),nn.Linear(8, 8),nn.Linear(8, 3)
    def forward(self, ids, weights=None, scale=None):
        h = self.a(self.e(ids)*weights[...,None])
        return self.b((h*(2 if scale else 1)).relu())

@pytest.mark.parametrize('dynamo', [True, False])
def test_onnx_of_a_batch_by_keywords(dynamo, tmp_path):
    net,batch = Words().eval(),dict(weights=torch.rand(4, 5), scale=True, ids=torch.randint(0, 9, (4, 5)))
    with torch.no_grad(): net.a.weight[:4],net.a.bias[:4] = 0,0
    c = Condenser(net, batch).condense()
    path = c.to_onnx(tmp_path/'w.onnx', dynamo=dynamo)
    s = session(path)
    assert [i.name for i in s.get_inputs()]==['weights','ids']
    for n in (1, 3):
        b = dict(weights=torch.rand(n, 5), ids=torch.randint(0, 9, (n, 5)))
        with evaluating(net): wanted = net(**b, scale=True)
        assert far([wanted], [torch.from_numpy(o) for o in s.run(None, {k:v.numpy() for k,v in b.items()})]) <= 1e-4

def unet(folder):
    items = [(torch.randn(3, 32, 32),torch.randint(0, 3, (32, 32))) for _ in range(4)]
    dls = Datasets(range(4), [[lambda i: TensorImage(items[int(i)][0])],[lambda i: TensorMask(items[int(i)][1])]]).dataloaders(bs=2, num_workers=0, device='cpu')
    dls.c = 3
    return unet_learner(dls, models.resnet18, n_out=3, pretrained=False, loss_func=CrossEntropyLossFlat(axis=1), path=folder)

def test_onnx_of_a_unet_and_what_a_failure_leaves(tmp_path):
    "Its features go from hook to hook: what they store is as it was, so that the Learner can still be exported."
    learn = unet(tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    x = torch.randn(3, 3, 32, 32)
    wanted = outputs(learn.model, (x,))[0].as_subclass(torch.Tensor)
    stored,n = [h.stored for h in learn.model.sfs],[len(dl) for dl in learn.dls.loaders]
    assert far([wanted], onnx_outputs(learn.to_onnx(tmp_path/'u.onnx'), (x,))) <= 1e-4
    with pytest.raises(ValueError, match='DynamicUnet cannot be written as ONNX.*\n?.*Try') as e: learn.to_onnx(tmp_path/'u.onnx', dynamic_shapes='wrong')
    assert '\x1b' not in str(e.value) and len(str(e.value).splitlines())==2
    assert all(a is h.stored for a,h in zip(stored, learn.model.sfs)) and [len(dl) for dl in learn.dls.loaders]==n
    learn.export('u.pkl')
    assert [len(dl) for dl in learn.dls.loaders]==n and (tmp_path/'u.pkl').exists()
    small = learn.condense()
    assert small.condensed.to_onnx(tmp_path/'small.onnx', dynamo=False).exists()

# ---- torch

@pytest.mark.parametrize('name', some)
def test_torch_export_at_every_batch_size(name):
    net,c,xs = condensed(name)
    batch = torch.export.Dim('batch')
    with evaluating(c.model): program = torch.export.export(c.joined(), xs, dynamic_shapes=(tuple({0:batch} for _ in xs),), strict=False)
    for n in (2, 5):
        ys = other(xs, n)
        assert far(outputs(net, ys), as_tuple(program.module()(*ys))) <= 1e-5

backends = 'aot_eager','inductor'
@pytest.mark.parametrize('name,backend', [('mlp', 'inductor'), *((n, 'aot_eager') for n in ('mlp','transformer','pair')),
    *(pytest.param(*o, marks=pytest.mark.soak) for o in (('transformer','inductor'), ('pair','inductor'), *itertools.product(('resnet18','mobilenet_v2'), backends)))])
def test_compiled(name, backend):
    if backend=='inductor' and not shutil.which('g++'): pytest.skip('needs a compiler')
    net,c,xs = condensed(name)
    torch.compiler.reset()
    joined = c.joined()
    compiled = torch.compile(joined, backend=backend)
    for n in (2, 5):
        ys = other(xs, n)
        with evaluating(joined): got = as_tuple(compiled(*ys))
        assert far(outputs(net, ys), got) <= 1e-5

def test_joined_trains_the_small_network():
    net,c,xs = condensed('mlp')
    whole = c.joined().train()
    assert set(whole.parameters())==set(c.model.parameters())
    whole(*xs).sum().backward()
    assert all(p.grad is not None and p.grad.shape==p.shape for p in c.model.parameters())
