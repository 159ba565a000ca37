"""Is a fit that shrinks as accurate as the same fit with masks? Twenty seeds of a small network on handwritten digits, in float32 and in float64.
Writes results/shrinking_equivalence.csv, a row for each seed and precision: what is there already stays. Ten minutes on one core.

    python benchmarks/shrinking_equivalence.py [--quick]

Fixed before anything was run: the two are equivalent if the 90 % interval of the difference of their accuracies, paired by seed, lies within one point either way (two
one-sided tests at 5 %). `outputs` is the largest difference of outputs on the test images, over the largest output; `same_widths` says whether their layers are as wide."""
import warnings

warnings.simplefilter('ignore')
import torch
from fastai.basics import CrossEntropyLossFlat, Learner, set_seed
from torch import nn
from fasterprune.all import CondenseCallback, SparsifyCallback, digits, tensor_dls
from fasterprune.studies.study import Appender

from rows import circumstances, n_seeds, table_of

epochs,lr,sparsity = 10,1e-2,.7

def network():
    def _conv(i, o, stride=1): return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    return nn.Sequential(_conv(1, 16), _conv(16, 32, 2), _conv(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

def fit(seed, dtype, cbs):
    "A fit of one seed, condensed in the end; outputs on the test images."
    data = digits()
    (x,y),(test,labels) = data.train,data.valid
    set_seed(seed, reproducible=True)
    learn = Learner(tensor_dls((x.to(dtype), y), (test.to(dtype), labels)), network().to(dtype), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, cbs=[SparsifyCallback(sparsity, 'filter'), *cbs])
    model = learn.condense().model.eval()
    with torch.no_grad(): out = model(test.to(dtype))
    return out,(out.argmax(1)==labels).double().mean().item(),[tuple(p.shape) for p in model.parameters()]

def row(seed, dtype):
    (masked,a,wide),(shrunk,b,narrow) = fit(seed, dtype, []),fit(seed, dtype, [CondenseCallback()])
    return dict(masks=a, shrinking=b, difference=b-a, outputs=((masked-shrunk).abs().max()/masked.abs().max()).item(), same_widths=wide==narrow)

def main():
    torch.set_num_threads(1)
    table = table_of('shrinking_equivalence', 'seed dtype', 'masks shrinking difference outputs same_widths')
    done = set(map(table.key, table.rows()))
    with Appender(table, table.path) as append:
        for seed in range(n_seeds(20)):
            for dtype in (torch.float32,torch.float64):
                settings = dict(seed=seed, dtype=str(dtype).removeprefix('torch.'))
                if table.key(settings) in done: continue
                found = {**settings, **row(seed, dtype)}
                print(found, flush=True)
                append({**found, **circumstances()})

if __name__=='__main__': main()
