"What several tests of sparsifying need: criteria and contexts, networks, and callbacks that look on."
from functools import partial
import torch
from fastai.basics import Callback
from torch import nn
import torch.nn.functional as F
from fasterprune.all import *
from fasterprune.sparsify.importance import get_criterion, needs_of

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

def prepare(sp, net, x, criterion):
    "Give the criterion what it reads."
    if 'input_norm' in needs_of(get_criterion(criterion)): sp.observe(x)
    if 'gradient' in needs_of(get_criterion(criterion)):
        net(x).square().sum().backward()
        sp.observe_gradients()
        net.zero_grad()

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

def hooks(model):
    kinds = '_forward_hooks','_forward_pre_hooks','_backward_hooks','_backward_pre_hooks'
    return [(n,k,len(getattr(m, k))) for n,m in model.named_modules() for k in kinds if getattr(m, k)]

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
