"""How `compression_path` is best begun: with the masked network of the budget before or with the dense one, units that compete in all layers or in their own, with or without training after the last cut.
scikit-learn's digits, a network of three convolutions, budgets .5, .25, .12 of the multiply-accumulates, four epochs for each. Writes results/compression_path.csv, row by row: what is there already stays.

    python benchmarks/compression_path.py [--quick] [--seeds 5]

Prints differences in accuracy of `warm_start=True` from `False`, in points, paired by seed, with standard errors. Some seconds for a path on one core."""
import itertools, warnings
from functools import lru_cache

warnings.simplefilter('ignore')
import torch
from fastai.vision.all import *
from fasterprune.all import *
from fasterprune.studies.study import Appender

from rows import circumstances, n_seeds, quick, table_of

budgets = .5,.25,.12
settings = [(context, end, warm) for end in (.75,1.) for context in ('local','global') for warm in (True,False)]

@lru_cache
def dense(seed, epochs=8):
    "A learner whose network is trained as ever."
    data = digits()
    set_seed(seed, reproducible=True)
    net = nn.Sequential(ConvLayer(1, 16), ConvLayer(16, 32, stride=2), ConvLayer(32, 64, stride=2), nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(64, 10))
    learn = Learner(tensor_dls(data.train, data.valid), net, metrics=accuracy, loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-2)
    return learn

def differences(df):
    wide = df.pivot_table(index=['end_epoch','context','budget','seed'], columns='warm_start', values='accuracy')
    gaps = (100*(wide[True]-wide[False])).groupby(level=[0,1,2]).agg(['mean','sem','count'])
    return gaps.join(100*wide.groupby(level=[0,1,2]).mean()).round(2)

def main():
    table = table_of('compression_path', 'seed context end_epoch warm_start budget', 'dense accuracy seconds')
    done = set(map(table.key, table.rows()))
    with Appender(table, table.path) as append:
        for (context,end,warm),seed in itertools.product(settings, range(n_seeds(5))):
            how = dict(context=context, end_epoch=end, warm_start=warm, seed=seed)
            if all(table.key(dict(how, budget=b)) in done for b in budgets): continue
            df = compression_path(dense(seed, 1 if quick else 8), budgets, 1 if quick else 4, 1e-2, **how, seconds=.01).to_frame()
            print(seed, context, end, warm, *df.accuracy.round(3), flush=True)
            for b,a,s in zip(budgets, df.accuracy[1:], df.seconds[1:]):
                found = dict(how, budget=b, dense=df.accuracy['dense'], accuracy=a, seconds=round(s, 1))
                if table.key(found) not in done: append({**found, **circumstances()})
    print(differences(table.to_frame()))

if __name__=='__main__':
    torch.set_num_threads(1)
    main()
