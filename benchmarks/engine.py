"Zeros that were asked for and zeros that are there, side by side with fasterai 0.4.1, and what condensing makes of them. Writes results/engine.csv."
import contextlib, io, sys
from pathlib import Path

import pandas as pd, torch, torchvision
from fastai.basics import *
from fasterai.core.all import cos, large_final as fasterai_magnitude, lin, one_cycle as fasterai_one_cycle
from fasterai.sparse.all import Sparsifier as FasteraiSparsifier, SparsifyCallback as FasteraiCallback
from torch import nn

from fasterprune.all import *
from fasterprune.studies.circumstances import circumstances

root = Path(__file__).resolve().parent.parent
quick = '--quick' in sys.argv
layer_types = (nn.Linear, nn.modules.conv._ConvNd)

def n_weights(model): return sum(m.weight.numel() for m in model.modules() if isinstance(m, layer_types))
def n_zero(model): return sum(int((m.weight==0).sum()) for m in model.modules() if isinstance(m, layer_types))
def n_dead(m): return int((m.weight==0).flatten(1).all(1).sum())

def quiet(f, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()): return f(*args, **kwargs)

def fit(learn, n, *cbs, lr=1e-2, **kwargs):
    with learn.no_bar(), learn.no_logging(): quiet(learn.fit_one_cycle, n, lr, cbs=list(cbs), **kwargs)
    return learn

def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))

def cnn():
    def block(i, o): return nn.Conv2d(i, o, 3, padding=1, bias=False),nn.BatchNorm2d(o),nn.ReLU()
    return nn.Sequential(*block(1, 32), *block(32, 64), nn.MaxPool2d(2), *block(64, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

def learner(model, seed, bs=64):
    set_seed(seed)
    data = digits()
    model = model()
    if isinstance(model[0], nn.Conv2d): model = nn.Sequential(Unsqueeze(), *model)
    return Learner(tensor_dls(data.train, data.valid, bs=bs), model, loss_func=CrossEntropyLossFlat(), metrics=accuracy)

class Unsqueeze(nn.Module):
    def forward(self, x): return x if x.ndim==4 else x[:,None]

peer = dict(context='global', criteria=fasterai_magnitude, layer_type=layer_types)
def fasterai_fit(learn, n, sparsity, granularity='weight', schedule=fasterai_one_cycle, **kwargs):
    return fit(learn, n, FasteraiCallback(sparsity, granularity, schedule=schedule, **{**peer, **kwargs}))

def counts():
    "Half of 4 and of 64 filters, and half of constant weights, at once."
    for n in (4, 64):
        a,b = [nn.Sequential(nn.Conv2d(3, n, 3), nn.ReLU(), nn.Conv2d(n, 2, 1)) for _ in range(2)]
        quiet(FasteraiSparsifier(a, 'filter', 'local', fasterai_magnitude, layer_type=nn.Conv2d).sparsify_layer, a[0], .5)
        Sparsifier(b, 'filter', 'local', sample=torch.randn(1, 3, 8, 8)).sparsify(.5)
        yield dict(study=f'half of {n} filters', wanted=n//2, fasterai=n_dead(a[0]), fasterprune=n_dead(b[0]))
    a,b = [nn.Linear(100, 10) for _ in range(2)]
    for m in (a, b): nn.init.constant_(m.weight, .1)
    quiet(FasteraiSparsifier(nn.Sequential(a), 'weight', 'local', fasterai_magnitude, layer_type=nn.Linear).sparsify_layer, a, .5)
    Sparsifier(b).sparsify(.5)
    yield dict(study='half of 1000 equal weights', wanted=500, fasterai=n_zero(a), fasterprune=n_zero(b))

def fits():
    "Short fits: what is zero at the end, after one more epoch, and when a fit goes on."
    for name,sched,ours in (('linear',lin,'linear'), ('cosine',cos,'cosine'), ('one-cycle',fasterai_one_cycle,'one_cycle')):
        a,b = learner(mlp, 0, 300),learner(mlp, 0, 300)
        fasterai_fit(a, 3, .9, schedule=sched)
        fit(b, 3, SparsifyCallback(.9, schedule=ours))
        yield dict(study=f'90 % of the weights in {3*len(a.dls.train)} steps, {name}', wanted=round(.9*n_weights(b.model)), fasterai=n_zero(a.model), fasterprune=n_zero(b.model))
    wanted,before = round(.9*n_weights(b.model)),b.model.state_dict()
    before = {k:v.clone() for k,v in before.items()}
    fit(a, 1)
    fit(b, 1)
    yield dict(study='the same after one more epoch, both without a callback', wanted=wanted, fasterai=n_zero(a.model), fasterprune=n_zero(b.model))
    b.model.load_state_dict(before)
    fit(b, 1, KeepZeros())
    yield dict(study='the same after one more epoch, with KeepZeros, which fasterai has not', wanted=wanted, fasterprune=n_zero(b.model))
    class Lowest(Callback):
        "The fewest zeros that there are after a step."
        order,least = 99,10**9
        def after_batch(self):
            if self.training: self.least = min(self.least, n_zero(self.model))
    a,b,seen = learner(mlp, 0),learner(mlp, 0),[Lowest(),Lowest()]
    fasterai_fit(a, 3, .5)
    fit(b, 3, SparsifyCallback(.5))
    fit(a, 3, FasteraiCallback(.9, 'weight', schedule=fasterai_one_cycle, **peer), seen[0])
    fit(b, 3, SparsifyCallback(.9), seen[1])
    yield dict(study='fewest zeros in a second fit, from 50 to 90 %', wanted=round(.5*n_weights(b.model)), fasterai=seen[0].least, fasterprune=seen[1].least)

def filters(seeds, sparsity):
    "A convolutional network for the digits, a share of the filters of all layers: accuracy, and what is left when condensed."
    for seed in seeds:
        dense,a,b,c = [learner(cnn, seed) for _ in range(4)]
        fit(dense, 12)
        fasterai_fit(a, 12, sparsity, 'filter', layer_type=nn.Conv2d)
        fit(b, 12, SparsifyCallback(sparsity, 'filter'))
        fit(c, 12, SparsifyCallback(sparsity, 'filter', 'local'))
        for name,learn in (('dense',dense), ('fasterai global',a), ('fasterprune global',b), ('fasterprune local',c)):
            convs = [m for m in learn.model.modules() if isinstance(m, nn.Conv2d)]
            alive = [m for m in learn.model.modules() if isinstance(m, nn.BatchNorm2d)]
            regrown = sum(int(((conv.weight==0).flatten(1).all(1) & (bn.bias!=0)).sum()) for conv,bn in zip(convs, alive))
            small = Condenser(learn.model, learn.dls.one_batch()[0][:2]).condense()
            r = small.report
            wanted = 0 if name=='dense' else round(160*sparsity)
            yield dict(study=f'{sparsity:.0%} of the filters, digits', network=name, seed=seed, accuracy=learn.validate()[1], wanted=wanted,
                dead=sum(map(n_dead, convs)), dead_with_shift=regrown, widths=' '.join(str(len(m.weight)-n_dead(m)) for m in convs),
                params=r.params_after, share=r.params_after/r.params_before)

def coupled(names):
    "Half of the coupled filters of torchvision's networks, then condensed."
    x = torch.randn(2, 3, 64, 64)
    for name in names:
        for context in ('local', 'global'):
            torch.manual_seed(0)
            model = torchvision.models.get_model(name, weights=None).eval()
            sp = Sparsifier(model, 'filter', context, sample=x)
            sp.sparsify(.5)
            r = Condenser(model, x).condense().report
            left = [w for w in sp.left_dense.values() if 'no unit' not in w]
            yield dict(study='half of the coupled filters', network=name, context=context, wanted=round(.5*sp.n), dead=round(sp.sparsity()*sp.n),
                params=r.params_after, share=r.params_after/r.params_before, macs_share=r.macs_after/r.macs_before, max_error=r.max_error, left_dense=len(left))

if __name__=='__main__':
    torch.set_num_threads(1)
    networks = ['resnet18'] if quick else ['resnet18','resnet50','mobilenet_v2','densenet121','efficientnet_b0']
    seeds = range(1 if quick else 5)
    tables = [pd.DataFrame(rows) for rows in (counts(), fits(), filters(seeds, .5), filters(seeds, .75), coupled(networks))]
    for t in tables: print(t.to_string(index=False), end='\n\n')
    about = circumstances('fastai', 'torchvision', threads=1, folder=root, fasterai_version='fasterai') # `fasterai` and `fasterprune` are zeros here
    about = {'fasterprune_version' if k=='fasterprune' else k:v for k,v in about.items()}
    if not quick: pd.concat(tables).assign(**about).to_csv(root/'results'/'engine.csv', index=False)
