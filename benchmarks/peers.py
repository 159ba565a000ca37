"What the benchmarks of the Condenser share: torch-pruning and simplify given the same zeros, networks side by side, tables with their circumstances."
import math, sys, warnings
from pathlib import Path

warnings.simplefilter('ignore')
import pandas as pd, simplify, torch, torch_pruning as tp
from torch import nn

from fasterprune.all import *
from fasterprune.studies.circumstances import circumstances

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tests')) # the networks of the tests, and their zeros
from support.zeros import gap, images, n_out

quick = '--quick' in sys.argv

def outputs(m):
    "A row for each output of a layer or norm: its weights, and its bias or shift."
    w = getattr(m, 'weight', None)
    if w is None: return torch.empty(0)
    bias = getattr(m, 'bias', None)
    return torch.cat([w.detach().flatten(1) if w.ndim>1 else w.detach()[:,None], *([] if bias is None else [bias.detach()[:,None]])], 1)

def torch_pruning(model, x, shifts=True):
    "Prune what is zero in all layers that torch-pruning ties together; with `shifts` only where their biases and norms are zero, too."
    graph = tp.DependencyGraph().build_dependency(model, x)
    last = [m for m in model.modules() if isinstance(m, (nn.Linear,nn.Conv2d)) and len(m.weight)==n_out]
    for group in [*graph.get_all_groups(last)]:
        first,fn = group[0].dep.target.module,group[0].dep.handler
        dead = torch.ones(len(group[0].idxs), dtype=torch.bool)
        for dep,idxs in group:
            m = dep.target.module
            if graph.is_out_channel_pruning_fn(dep.handler) and isinstance(m, (nn.Linear,nn.Conv2d,*([nn.BatchNorm2d,nn.LayerNorm] if shifts else []))):
                rows = outputs(m) if shifts else m.weight.detach().flatten(1)
                if len(idxs)==len(dead): dead &= (rows[torch.as_tensor(idxs)]==0).all(1)
        if dead.all(): dead[0] = False # torch-pruning can't remove a layer
        if dead.any(): graph.get_pruning_group(first, fn, dead.nonzero()[:,0].tolist()).prune()
    return model

def by_simplify(model, x): return simplify.simplify(model, x[:1])
def ours(model, x): return Condenser(model, x).condense().model
def ours_unverified(model, x): return Condenser(model, x).condense(verify=False).model
def torch_pruning_weights(model, x): return torch_pruning(model, x, shifts=False)
methods = {'fasterprune':ours, 'fasterprune, verify=False':ours_unverified, 'torch-pruning, zero shifts':torch_pruning,
    'torch-pruning, zero weights':torch_pruning_weights, 'simplify':by_simplify}

def n_left(model): return sum(p.numel() for p in model.parameters())

def difference(dense, small, side):
    "Largest difference over the largest output, or `None` where `dense` takes no such images; infinite where only `small` doesn't."
    x = images(3, side, next(dense.parameters()).dtype)
    with torch.no_grad():
        try: out = dense(x)
        except Exception: return None
        try: return gap(out, small(x))
        except Exception: return math.inf

def versions(seed=0, threads=1):
    "Circumstances of a run, as columns."
    return dict(seed=seed, **circumstances('torch-pruning', 'torchvision', 'timm', threads=threads, folder=root, simplify='torch-simplify'))

def renewed(df, name, networks):
    "The new rows, and those of before of networks that were not asked for by name."
    path = root/'results'/f'{name}.csv'
    if not networks or not path.exists(): return df
    old = pd.read_csv(path)
    return pd.concat([old[~old.network.isin(networks)], df])

def write(df, name):
    "Print the table; save it with its circumstances, if it does not have them already, unless `quick`."
    print(df.to_string(index=False, float_format='{:.3g}'.format))
    if not quick: (df if 'commit' in df else df.assign(**versions())).to_csv(root/'results'/f'{name}.csv', index=False, float_format='%.6g')
