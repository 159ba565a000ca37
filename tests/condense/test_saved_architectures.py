"A condensed network is saved, and loaded onto a fresh dense one: nothing sound is refused, and it computes the same to the bit. A third of the architectures, and one that splits into parts of nothing."
import pytest, torch
from torch.utils._pytree import tree_leaves
from fasterprune import condense
from fasterprune.all import *
from support.lanes import one_of
from support.zeros import images, zeroed
from support.zoo import classifiers, families, network, segmenters

few = ['resnet18','swin_t','rexnet_100','inception_next_atto']
others = one_of(7, [(n,) for n in [*classifiers,*segmenters,*families][::3] if n not in few] + [('densenet121',),('beit_base_patch16_224',),('levit_128s',)])

@pytest.mark.parametrize('name', [*few,*others])
def test_comes_back_from_its_file(name, tmp_path):
    model,x = network(name, True)
    c = Condenser(zeroed(model, x, 'coupled'), x).condense()
    fresh = network(name, True)[0]
    with torch.no_grad():
        for p in fresh.parameters(): p.fill_(.5)
    back = load_condensed(c.save(tmp_path/'small.safetensors'), fresh.eval())
    xs = images(2, x.shape[-1])
    with torch.no_grad(): pairs = zip(tree_leaves(c.model.eval()(c.inputs(xs))), tree_leaves(back.model(back.inputs(xs))), strict=True)
    assert all(torch.equal(a, b) for a,b in pairs)
    assert back.report==c.report and back.report.params_after<back.report.params_before

def test_no_memory_is_no_damage(tmp_path, monkeypatch):
    "A file that there is no room for may be sound: it is not said to be damaged."
    net,x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)),torch.randn(2, 4)
    path = Condenser(net, x).condense().save(tmp_path/'small.safetensors')
    def _full(*args): raise MemoryError
    with monkeypatch.context() as m:
        m.setattr(condense.serialization, 'rebuild', _full)
        with pytest.raises(MemoryError): load_condensed(path, net)
    load_condensed(path, net)
