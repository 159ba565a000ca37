"""Half of a table's columns: a made-up census of 14 columns, six of which tell (`census`), 6,000 rows to train on and 2,000 to judge by.
Accuracy with all columns, with half of them masked, condensed and trained on, and of a fresh network on the columns that were kept.
Writes results/tabular.csv; takes a minute on one core. `--quick`: one seed, nothing is written."""
import sys, time
from pathlib import Path
import pandas as pd, torch
from fastai.tabular.all import Categorify, CategoryBlock, FillMissing, Normalize, TabularDataLoaders, accuracy, set_seed, tabular_learner
from fasterprune.all import *
from fasterprune.studies.circumstances import circumstances

quick,root = '--quick' in sys.argv,Path(__file__).resolve().parent.parent
tells = {'education','occupation','contract','hours','age','tenure'}

def loaders(df, names):
    cats,conts = [[n for n in group if n in names] for group in (df.columns[6:14], df.columns[:6])]
    return TabularDataLoaders.from_df(df, '.', [Categorify,FillMissing,Normalize], cats, conts, 'income', y_block=CategoryBlock(),
        valid_idx=range(6000, 8000), bs=64, device='cpu', num_workers=0)

def fit(learn, n, *cbs):
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(n, 3e-3, wd=.1, cbs=list(cbs))
        return learn.validate()[1]

def rows():
    for seed in range(1 if quick else 5):
        df = census(8000, seed)
        def _learner(names): return tabular_learner(loaders(df, names), layers=[64,32], metrics=accuracy)
        set_seed(seed)
        dense,learn,cb = _learner(df.columns),_learner(df.columns),InputPruneCallback(.5)
        row,start = dict(seed=seed, dense=fit(dense, 5)),time.perf_counter()
        row.update(masked=fit(learn, 5, cb), seconds=time.perf_counter()-start)
        small = learn.condense()
        r = small.condensed.report
        row.update(condensed=fit(small, 2), fresh=fit(_learner(cb.kept_names), 5), columns=len(cb.kept), told=len(tells & set(cb.kept_names)),
            parameters=r.params_before, parameters_left=r.params_after)
        yield row

if __name__=='__main__':
    torch.set_num_threads(1)
    df = pd.DataFrame(rows())
    print(df.round(4).to_string(index=False), '', df.drop(columns='seed').agg(['mean','std']).round(4).to_string(), sep='\n')
    if not quick: df.assign(**circumstances('fastai', threads=1, folder=root)).to_csv(root/'results'/'tabular.csv', index=False, float_format='%.6g')
