"Files of small networks: what is in them comes back, and damage is noticed."
import json, os, random
from copy import deepcopy
import pytest, torch
from fastcore.test import test_fail as fails
from torch import nn
from fasterprune.all import *
from fasterprune.core.models import evaluating
from support.nets import cnn, halve, mlp

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def saved(tmp_path, net, x):
    c = Condenser(net, x).condense()
    return c,c.save(tmp_path/'small.safetensors')

class Split(nn.Module):
    "Parts of a convolution, by sizes that are an attribute."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.sizes = nn.Conv2d(3, 8, 1),nn.Conv2d(8, 2, 1),(2, 6)
    def forward(self, x):
        y,z = torch.split(self.a(x), self.sizes, 1)
        return self.b(torch.cat([y, z.relu()], 1))

def test_a_part_of_a_split_of_which_nothing_is_left(tmp_path):
    net,x = Split().eval(),torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        for p in net.a.parameters(): p[[0, 1, 4]] = 0
    c,path = saved(tmp_path, net, x)
    back = load_condensed(path, Split().eval())
    assert back.model.sizes==(0, 5) and torch.equal(back.model(x), c.model(x))

@pytest.mark.parametrize('kind', ['pixels', 'channels', 'none'])
def test_file_gives_back_network_inputs_and_report(tmp_path, kind):
    x = torch.randn(3, 3, 4, 4)
    net = halve(cnn()) if kind!='pixels' else nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        if kind=='pixels': net[1].weight[:,torch.randperm(48)[:30]] = 0
        if kind=='channels': net[0].weight[:,1] = 0
    fresh = deepcopy(net)
    c,path = saved(tmp_path, net, x)
    for p in fresh.parameters(): nn.init.normal_(p)
    back = load_condensed(path, fresh)
    assert torch.equal(back.inputs(x), c.inputs(x)) and back.report==c.report and str(back.inputs)==str(c.inputs)
    assert c.inputs(x)[0].numel()==dict(pixels=18, channels=32, none=48)[kind]
    with evaluating(back.model), evaluating(c.model): assert torch.equal(back.model(back.inputs(x)), c.model(c.inputs(x)))

@pytest.mark.parametrize('groups,out', [(6,6), (6,12), (3,6), (2,6)])
def test_file_of_a_network_condensed_again_and_again(tmp_path, groups, out): # what is left looks like another kind of convolution
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, out, 3, groups=groups), nn.ReLU(), nn.Conv2d(out, 8, 1))
    fresh,x = deepcopy(net),torch.randn(2, 3, 8, 8)
    for rows in (slice(1,None,2), slice(1), slice(-1,None), slice(1,None)):
        with torch.no_grad():
            for l in (net[0],net[2]): l.weight[rows],l.bias[rows] = 0,0
        c = Condenser(net, x, inputs=False).condense(inplace=True)
    c.dense = {k:tuple(v.shape) for k,v in fresh.state_dict().items()}
    back = load_condensed(c.save(tmp_path/'small.safetensors'), fresh)
    assert c.report.params_after < sum(p.numel() for p in fresh.parameters())
    with evaluating(back.model), evaluating(net): assert torch.equal(back.model(x), net(x))

def test_file_cut_anywhere_is_a_value_error(tmp_path):
    _,path = saved(tmp_path, halve(cnn()), torch.randn(2, 3, 8, 8))
    data = path.read_bytes()
    for n in sorted({*range(0, len(data), 41), *range(12), *range(len(data)-40, len(data))}):
        path.write_bytes(data[:n])
        fails(lambda: load_condensed(path, cnn()), exc=ValueError, contains=f'({n} bytes)')

def test_damaged_header_is_a_value_error_or_harmless(tmp_path):
    _,path = saved(tmp_path, halve(cnn()), torch.randn(2, 3, 8, 8))
    data,rnd,wrong = path.read_bytes(),random.Random(0),[]
    for i in range(8, 8+int.from_bytes(data[:8], 'little'), 3):
        path.write_bytes(data[:i] + bytes([rnd.choice(b'"{}[],:019aZ_. ')]) + data[i+1:])
        try: load_condensed(path, cnn())
        except ValueError: pass
        except Exception as e: wrong.append(f'byte {i}: {type(e).__name__} {e}')
    assert not wrong, f'{len(wrong)}, first {wrong[0]}'

@pytest.mark.parametrize('other', [lambda: cnn(16), lambda: mlp(), lambda: cnn()[:-1], lambda: nn.Sequential(*cnn(), nn.Linear(4, 4))])
def test_file_of_another_architecture_is_a_value_error(tmp_path, other):
    _,path = saved(tmp_path, halve(cnn()), torch.randn(2, 3, 8, 8))
    net = other()
    before = deepcopy(net.state_dict())
    fails(lambda: load_condensed(path, net), exc=ValueError, contains='was saved from a network with')
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())

def test_file_is_not_pickled(tmp_path):
    c,path = saved(tmp_path, halve(cnn()), torch.randn(2, 3, 8, 8))
    data = path.read_bytes()
    n = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:8+n])
    assert json.loads(header['__metadata__']['blueprint'])['report']['params_after']==c.report.params_after
    assert len(data)==8+n+sum(v.numel()*v.element_size() for v in c.model.state_dict().values())

@pytest.mark.skipif(os.name=='nt', reason='files have no modes')
def test_a_file_may_be_read_by_whom_files_may_be_read(tmp_path):
    "As any new file; one that is replaced keeps the mode that it had."
    net,x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),torch.randn(2, 4)
    (tmp_path/'plain').touch()
    condensed = Condenser(net, x).condense()
    path = condensed.save(tmp_path/'small.safetensors')
    assert path.stat().st_mode==(tmp_path/'plain').stat().st_mode
    path.chmod(0o640)
    assert condensed.save(path).stat().st_mode & 0o777==0o640
