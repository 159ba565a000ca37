"""Which allocation and which criterion keep most accuracy at an equal number of multiply-accumulates: a ResNet-20 and a small MobileNetV2 on images of CIFAR-10 that are 16 pixels wide.
Writes results/allocation.csv, row by row: what is there already stays.

    python benchmarks/allocation.py [--quick] [--seeds 3]

Each network is trained once for each seed, and pruned in four more epochs from there to each budget by each allocation, in the order of each criterion: rows of one seed differ in nothing else. The budget is reached after three of the four. Prints differences from 'local' by 'group_magnitude',
paired by seed, with standard errors. About twenty seconds for a row on one core."""
import warnings
from copy import deepcopy
from functools import partial
from time import perf_counter

warnings.simplefilter('ignore')
import torch
from fastai.basics import set_seed
from fasterprune.all import *
from fasterprune.sparsify import by_macs
from fasterprune.studies.networks import make_network, resnet
from fasterprune.studies.study import Appender
from fasterprune.studies.training import accuracy_of, study_data, train

from rows import circumstances, n_seeds, quick, table_of

networks = dict(resnet20=partial(resnet, widths=(16,32,64), blocks=3), mobilenet=partial(make_network, 'mobilenet_small'))
def macs(power):
    "By score per multiply-accumulate; `context='macs'` has a power of .1."
    context = partial(by_macs)
    context.per_mac = power
    return context
budgets,allocations = (.5,.25),{'local':'local', 'global':'global', 'erk':'erk', **{f'macs {p}':macs(p) for p in (.1,.25)}}
criteria_tried = 'group_magnitude','large_final'

def data(n=1000): return study_data('cifar10', 'cpu', n_train=n)

def dense(name, seed, epochs=8):
    "A network trained as ever."
    set_seed(seed)
    model = networks[name](shape=(3,16,16), n_out=10) if name=='resnet20' else networks[name]((3,16,16), 10)
    train(model, data(), epochs, 'cpu', seed)
    return model

def row(model, share, context, criterion, seed, epochs=4):
    "A trained network, pruned to a share of its multiply-accumulates."
    start = perf_counter()
    set_seed(seed+100) # loaders draw the order of batches when they are made
    learn = train(deepcopy(model), data(), epochs, 'cpu', seed+100, cbs=[SparsifyCallback(Budget(macs=share), 'filter', allocations[context], criterion, end_epoch=.75)])
    c = Condenser(learn.model, data().valid[0][:2]).condense()
    r = c.report
    return dict(accuracy=accuracy_of(c.model, data()), macs=round(r.macs_after/r.macs_before, 4), params=round(r.params_after/r.params_before, 4),
        least_width=min(l['outputs_after'] for l in r.layers), seconds=round(perf_counter()-start, 1))

def differences(df):
    "Mean and standard error of the difference from what is usual for a budget, in points, paired by seed."
    wide,usual = df.pivot_table(index=['network','budget','seed'], columns=['criterion','context'], values='accuracy'),('group_magnitude','local')
    gaps = 100*wide.drop(columns=[usual]).sub(wide[usual], axis=0)
    return gaps.groupby(level=['network','budget']).agg(['mean','sem','count']).round(2)

def main():
    table = table_of('allocation', 'network budget context criterion seed', 'dense accuracy macs params least_width seconds')
    done = set(map(table.key, table.rows()))
    with Appender(table, table.path) as append:
        for seed,name in [(s, n) for s in range(n_seeds(3)) for n in networks]:
            todo = [dict(network=name, budget=b, context=c, criterion=by, seed=seed) for by in criteria_tried for b in budgets for c in allocations]
            if not (todo := [t for t in todo if table.key(t) not in done]): continue
            model = dense(name, seed, 1 if quick else 8)
            whole = accuracy_of(model, data())
            for t in todo:
                found = dict(t, dense=whole, **row(model, t['budget'], t['context'], t['criterion'], seed, 1 if quick else 4))
                print(found, flush=True)
                append({**found, **circumstances()})
    print(differences(table.to_frame()))

if __name__=='__main__':
    torch.set_num_threads(1)
    main()
