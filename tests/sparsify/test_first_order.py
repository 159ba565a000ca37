"What `taylor` and `fisher` say of a unit is how much the loss would change, to first order, if what it gives out were zero."
from functools import partial
import pytest, torch
from torch import nn
from torch.nn import functional as F
from fasterprune.all import Sparsifier

class Residual(nn.Module):
    "Two blocks which add to one stream, made by another layer."
    def __init__(self, norm):
        super().__init__()
        def _part(n, m): return nn.Sequential(nn.Conv2d(n, m, 3, padding=1, bias=norm is nn.Identity), norm(m))
        self.stem,self.inner,self.out,self.head = _part(3, 6),_part(6, 8),_part(8, 6),nn.Linear(6, 4)
    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.out(self.inner(x).relu())).relu().mean((2,3)))

def plain(norm):
    first = nn.Conv2d(3, 6, 3, bias=norm is nn.Identity),norm(6),nn.ReLU()
    return nn.Sequential(*first, nn.Conv2d(6, 8, 3), norm(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

def trained_a_little(net):
    "Shifts and biases that are not zero, scales that are not one."
    torch.manual_seed(3)
    for p in net.parameters():
        if p.ndim==1: p.data += .3*torch.randn_like(p)
    return net.double()

def changes(net, made, x, y):
    "For each name of units the first-order change of the loss if what these modules give out were zero."
    outs,hooks = {},[]
    def _keep(name, m, xs, out):
        out.retain_grad()
        outs[name] = out
    for n in [n for names in made.values() for n in names]: hooks.append(net.get_submodule(n).register_forward_hook(partial(_keep, n)))
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    for h in hooks: h.remove()
    return {k:sum((o*o.grad).transpose(0, 1).flatten(1).sum(1) for o in map(outs.get, names)).detach() for k,names in made.items()}

nets = {'plain':(plain, {'0':['1'], '3':['4']}), 'residual':(Residual, {'stem.0':['stem.1','out.1'], 'inner.0':['inner.1']})}

@pytest.mark.parametrize('criterion', ['taylor','fisher'])
@pytest.mark.parametrize('mode', ['train','eval'])
@pytest.mark.parametrize('norm', [nn.BatchNorm2d, nn.Identity], ids=['norm','bias'])
@pytest.mark.parametrize('net', nets)
def test_scores_are_first_order_changes(net, norm, mode, criterion):
    make,made = nets[net]
    model,x,y = trained_a_little(make(norm)),torch.randn(5, 3, 8, 8).double(),torch.tensor([0,1,2,3,0])
    if mode=='eval' and norm is nn.BatchNorm2d:
        with torch.no_grad(): [model(x) for _ in range(3)] # running statistics that are not those of a batch
    sp = Sparsifier(model, 'filter', 'local', criterion, sample=x)
    getattr(model, mode)()
    if mode=='eval' and norm is nn.BatchNorm2d: # a norm that does not look at the batch leaves a filter its size
        made = {k:[n[:-1]+str(int(n[-1])-1) for n in names] for k,names in made.items()}
    wanted = changes(model, made, x, y)
    sp.observe_gradients()
    for g in sp.groups:
        w = wanted[g.key].abs() if criterion=='taylor' else wanted[g.key]**2
        assert torch.allclose(sp.scorer.score(g).double(), w, rtol=2e-3, atol=0), (g.key, sp.scorer.score(g), w)
        assert len(set(w.tolist())-{0.})>=g.n-1 # one may be behind a rectifier

@pytest.mark.parametrize('norm', [nn.BatchNorm2d, nn.Identity], ids=['norm','bias'])
def test_what_is_read_is_told_by_its_readers(norm):
    model,x,y = trained_a_little(plain(norm)).train(),torch.randn(5, 3, 8, 8).double(),torch.tensor([0,1,2,3,0])
    sp = Sparsifier(model, 'channel', 'local', 'taylor', exclude='0', sample=x)
    wanted = changes(model, {'3':['2']}, x, y)['3'].abs()
    sp.observe_gradients()
    assert torch.allclose(sp.scorer.score(sp.groups[0]).double(), wanted, rtol=2e-3, atol=0)
