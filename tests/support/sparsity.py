"Small networks, a Learner, and what counts zeros."
import torch, warnings
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner
from torch import nn
from fasterprune.core.warnings import FasterpruneWarning
from fasterprune.sparsify import MaskCallback

def zeros(m): return int((m.weight==0).sum())
def dead(m): return int((m.weight==0).flatten(1).all(1).sum())
def layers(model): return [m for m in model.modules() if isinstance(m, (nn.Linear,nn.modules.conv._ConvNd))]
def total(model): return sum(map(zeros, layers(model)))

def mlp(): return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))
def cnn():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
n_mlp = 8*16 + 16*12 + 12*2

def learner(model=None, n=32, bs=8, shape=(8,), valid=True, **kwargs):
    "A Learner on data that are drawn anew at each call: `set_seed` before, where two of them shall have the same."
    x = torch.randn(n, *shape)
    ds = list(zip(x, (x.flatten(1).sum(1)>0).long()))
    dls = DataLoaders.from_dsets(ds, ds[:bs] if valid else [], bs=bs, num_workers=0, device='cpu')
    return Learner(dls, model or mlp(), loss_func=CrossEntropyLossFlat(), **kwargs)

def fit(learn, n, *cbs, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-2, cbs=list(cbs), **kwargs)
    return learn

def told(f):
    "What fasterprune says while `f` runs."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        f()
    return [str(w.message) for w in said if issubclass(w.category, FasterpruneWarning)]

class Count(Callback):
    "How many weights are zero after each training batch."
    order = MaskCallback.order+5
    def before_fit(self): self.counts = []
    def after_batch(self):
        if self.training: self.counts.append(total(self.model))
