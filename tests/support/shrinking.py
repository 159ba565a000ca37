"Networks and learners that shrink while they train, beside what only masks."
import warnings
import numpy as np, pytest, torch
from fastai.callback.all import *
from fastai.tabular.all import *
from torch import nn
from fasterprune.all import *
from fasterprune.sparsify.mask_callback import MaskCallback
from fasterprune.core.models import evaluating
from fasterprune.learner.condense_callback import CondenseCallback

def slow(*args): return pytest.param(*args, marks=pytest.mark.long)

def conv(i, o, k=3, norm=nn.BatchNorm2d, **kwargs): return nn.Sequential(nn.Conv2d(i, o, k, padding=k//2, bias=False, **kwargs), norm(o), nn.ReLU())
def head(n): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 3))
def cnn(norm=nn.BatchNorm2d): return nn.Sequential(conv(3, 12, norm=norm), conv(12, 16, norm=norm), nn.MaxPool2d(2), conv(16, 12, norm=norm), head(12))
def biased(): return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), head(16))

class Residual(nn.Module):
    "A block whose stream goes on as it is, or through a projection."
    def __init__(self, i, o):
        super().__init__()
        self.first,self.second = conv(i, o),nn.Sequential(nn.Conv2d(o, o, 3, padding=1, bias=False), nn.BatchNorm2d(o))
        self.path = nn.Identity() if i==o else nn.Sequential(nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o))
    def forward(self, x): return (self.path(x)+self.second(self.first(x))).relu()

class Dense(nn.Module):
    "A block that puts what it makes beside what came in."
    def __init__(self, i, o):
        super().__init__()
        self.net = conv(i, o)
    def forward(self, x): return torch.cat([x, self.net(x)], 1)

def residual(): return nn.Sequential(conv(3, 12), Residual(12, 12), Residual(12, 16), head(16))
def separable(): return nn.Sequential(conv(3, 12), conv(12, 12, groups=12), conv(12, 16, 1), conv(16, 16, groups=16), conv(16, 12, 1), head(12))
def dense(): return nn.Sequential(conv(3, 8), Dense(8, 6), Dense(14, 6), conv(20, 12, 1), head(12))
def grouped(): return nn.Sequential(conv(3, 12), conv(12, 12, groups=3), conv(12, 16), head(16))
def mlp(): return nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
def plain_mlp(): return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
def wave(): return nn.Sequential(nn.Conv1d(4, 12, 5, padding=2), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
    nn.Flatten(), nn.Linear(16, 3))
def group_norm(): return cnn(lambda n: nn.GroupNorm(4, n))
class Norms(nn.Module):
    "LayerNorms over a residual stream."
    def __init__(self):
        super().__init__()
        self.stem,self.norm,self.up,self.down = nn.Linear(20, 16),nn.LayerNorm(16),nn.Linear(16, 24),nn.Linear(24, 16)
        self.last,self.head = nn.LayerNorm(16),nn.Linear(16, 3)
    def forward(self, x):
        x = self.stem(x)
        return self.head(self.last(x+self.down(self.up(self.norm(x)).relu())))

shapes = dict(mlp=(20,), plain_mlp=(20,), Norms=(20,), wave=(4,15))
def data(shape, n=40, bs=8, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, *shape, dtype=dtype, generator=g)
    y = x.flatten(1)[:,:9].view(n, 3, 3).sum(2).argmax(1)
    return tensor_dls((x[:n-8],y[:n-8]), (x[n-8:],y[n-8:]), bs=bs)

def learner(make=cnn, dtype=torch.float64, bs=8, n=40, **kwargs):
    set_seed(0)
    model = make().to(dtype)
    dls = data(shapes.get(make.__name__, (3,6,6)), n, bs, dtype)
    return Learner(dls, model, **merge(dict(loss_func=CrossEntropyLossFlat(), metrics=accuracy, opt_func=Adam), kwargs))

def quiet(f, *learners):
    with ContextManagers([c() for l in learners for c in (l.no_bar, l.no_logging)]): return f()
def fit(learn, *cbs, n=3, lr=2e-2, **kwargs):
    quiet(lambda: learn.fit(n, lr, cbs=list(cbs), **kwargs), learn)
    return learn
def preds(learn, **kwargs): return quiet(lambda: learn.get_preds(act=noop, **kwargs), learn)[0]
def far(a, b): return float((a-b).abs().max()/a.abs().max())
def widths(model): return [tuple(p.shape) for p in model.parameters()]
def column(learn, name): return [v[list(learn.recorder.metric_names[1:]).index(name)] for v in learn.recorder.values]

def filters(s=.6, granularity='filter', context='local', **kwargs): return SparsifyCallback(s, granularity, context, **kwargs)
def shrinks(**kwargs): return CondenseCallback(**merge(dict(min_gain=0.), kwargs))

def both(make=cnn, prune=filters, more=(), cut=None, train=fit, n=3, alike=1e-9, dtype=torch.float64, **kwargs):
    "Train with masks and condense, and while shrinking: the same outputs and sizes; returns both learners and the callbacks of the second."
    masked,small = [learner(make, dtype, **kwargs) for _ in range(2)]
    found = []
    for learn in (masked, small):
        cbs = [*L(prune()), *[f() for f in more]]
        set_seed(1)
        train(learn, *cbs, *([] if learn is masked else [cut or shrinks()]), n=n)
        found.append(cbs)
    wide,after = masked,masked.condense(round_to=cut.round_to if cut else 1)
    a,b = preds(after),preds(small)
    assert far(a, b) <= alike, f'outputs differ by {far(a, b):.1e}'
    assert far(preds(wide), b) <= alike
    assert n_params(small.model)==n_params(after.model) < n_params(wide.model)
    assert widths(small.model)==widths(after.model)
    for p,q in zip(*found):
        if isinstance(p, SparsifyCallback): assert p.sparsifier.sparsity()==pytest.approx(q.sparsifier.sparsity(), abs=1e-12)
        if isinstance(p, MaskCallback): assert p.history==q.history
    return masked,small,found[1]

def unit(make): return 'neuron' if make in (mlp, plain_mlp, Norms) else 'filter'

def torchs(opt, **kwargs): return partial(OptimWrapper, opt=partial(opt, **kwargs))
optimizers = dict(sgd=partial(SGD, mom=.9), plain_sgd=SGD, adam=partial(Adam, wd=.1), rms=partial(RMSProp, mom=.9), radam=RAdam, qhadam=QHAdam, ranger=ranger,
    lookahead=lambda p, **kw: Lookahead(SGD(p, mom=.9, **kw), k=3), adamw=torchs(torch.optim.AdamW, amsgrad=True),
    torch_sgd=torchs(torch.optim.SGD, momentum=.9, nesterov=True),
    adagrad=torchs(torch.optim.Adagrad), nadam=torchs(torch.optim.NAdam), rprop=torchs(torch.optim.Rprop), asgd=torchs(torch.optim.ASGD))

cuts = dict(every_2=dict(every=2), steps=dict(steps=1), gain=dict(min_gain=.05),
    much=dict(min_gain=.6), round_to=dict(round_to=4), unverified=dict(verify=False), whole=dict(inputs=False))

class Look(Callback):
    order = 90
    def __init__(self, look): self.look = look
    def after_epoch(self): self.look(self.learn)

def best_of(k, **kwargs):
    "A metric that is highest in epoch `k`, and a callback that saves by it."
    def favored(preds, targs): return float(favored.learn.epoch==k)
    return favored,SaveModelCallback(monitor='favored', comp=np.greater, **kwargs)

x_fix = torch.randn(5, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
def preds_of(model, x=x_fix):
    with evaluating(model), torch.no_grad(): return model(x.to(next(model.parameters()).dtype)).clone()

def noted(f):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        f()
    return [str(w.message) for w in seen if 'trained as wide' in str(w.message)]
