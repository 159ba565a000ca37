"""Which features would do? SelectFromNet beside its rivals: the same split, and the same network retrained from scratch on what each selects.

Writes results/feature_selection.csv row by row, and skips what is there: an interrupted run goes on. On one core the tables take about half an hour,
MNIST one, and LassoNet as long as all the others. `--quick`: two small tables, one seed, nothing written. Names of data sets
and methods on the command line restrict the run to them.

`recall` is the share of the true features that were found; of redundant copies, one of each counts. `fitted_on` is the number of rows that a method
selected by: where that is less than all, it is too slow for more. All methods get the same standardized columns, pixels as shares of
the largest value. EEG is split by time; what lies far out in it is pulled in for all.
"""
import csv, math, os, platform, subprocess, sys, time, warnings
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path

warnings.simplefilter('ignore')
import numpy as np, pandas as pd, torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine, make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import f_classif, mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

import fasterprune
from fasterprune.core.files import data_file
from fasterprune.inputs.sklearn import SelectFromNet

root = Path(__file__).resolve().parent.parent
quick = '--quick' in sys.argv
out = root/'results'/'feature_selection.csv'
torch.set_num_threads(1)

# data

@dataclass(eq=False)
class Data:
    name: str
    train: tuple           # features and classes
    test: tuple
    ks: tuple
    true: tuple = ()       # sets of features; of each one should be found
    pixels: bool = False   # do all columns have one unit?
    hidden: tuple = (128,64)

    @property
    def p(self): return self.train[0].shape[1]
    def recall(self, kept): return sum(bool(t & set(kept)) for t in self.true)/len(self.true) if self.true else math.nan
    def rows(self, most): return replace(self, train=tuple(a[:most] for a in self.train))

def standardized(name, x, y, xt, yt, ks=None, **kwargs):
    x,xt = x.astype(np.float64),xt.astype(np.float64)
    mean,std = x.mean(0),x.std(0)
    std[x.max(0)==x.min(0)] = 1
    return Data(name, *[(((a-mean)/std).astype(np.float32), b.astype(int)) for a,b in ((x, y), (xt, yt))], ks or (math.ceil(x.shape[1]/3),), **kwargs)

def small(load, name, seed):
    x,xt,y,yt = train_test_split(*load(return_X_y=True), test_size=.2, random_state=seed, stratify=load().target)
    if name!='digits': return standardized(name, x, y, xt, yt)
    return Data(name, ((x/16).astype(np.float32), y), ((xt/16).astype(np.float32), yt), (22,), pixels=True)

@lru_cache(1)
def mnist(seed):
    with np.load(data_file('mnist.npz')) as d: parts = [((d[f'x_{s}'].reshape(-1, 784)/255).astype(np.float32), d[f'y_{s}'].astype(int)) for s in ('train','test')]
    return Data('mnist', *parts, (25, 50, 100), pixels=True, hidden=(512,256))

def eeg_eye_state(seed):
    with np.load(data_file('eeg_eye_state.npz')) as d: x,y = d['x'].astype(np.float64),d['y']
    n = int(.7*len(x))
    low,high = np.quantile(x[:n], (.25,.75), axis=0)
    x = x.clip(low-10*(high-low), high+10*(high-low))
    return standardized('eeg_eye_state', x[:n], y[:n], x[n:], y[n:])

def made(name, seed, n=10_000, n_test=4_000, p=500):
    "Data of which the true features are known."
    g = np.random.default_rng(seed)
    x,at = g.standard_normal((n+n_test, p)),g.permutation(p)
    true = [{int(i)} for i in at[:20]]
    if name=='madelon':
        x,y = make_classification(n+n_test, p, n_informative=5, n_redundant=15, n_clusters_per_class=16, flip_y=.01, class_sep=2, shuffle=False,
            random_state=seed)
        rows = g.permutation(len(x))
        x,y,true = x[rows][:,at],y[rows],[{int(i)} for i in np.argsort(at)[:20]]
    elif name=='xor': y = np.sign(x[:,at[:10]]*x[:,at[10:20]]).sum(1) + .01*g.standard_normal(len(x)) > 0
    elif name=='redundant':
        true = [{int(j) for j in at[i:50:10]} for i in range(10)]
        for i in range(10, 50): x[:,at[i]] = x[:,at[i%10]] + .3*x[:,at[i]]
        y = x[:,at[:10]].sum(1)>0
    else:
        f = [lambda a: a, lambda a: 1.45*np.sin(2*a), lambda a: (a**2-1)/2**.5, lambda a: 1.66*(np.abs(a)-.8)]
        y = sum(f[i%4](x[:,at[i]]) for i in range(20))>0
        if name=='constant': x[:,at[20:140]] = g.uniform(-100, 100, 120)
    return standardized(name, x[:n], y[:n], x[n:], y[n:], (10 if name=='redundant' else 20,), true=tuple(true))

datasets = dict(wine=partial(small, load_wine, 'wine'), breast_cancer=partial(small, load_breast_cancer, 'breast_cancer'), mnist=mnist,
    **{n:partial(made, n) for n in ('additive','xor')}, digits=partial(small, load_digits, 'digits'), eeg_eye_state=eeg_eye_state,
    **{n:partial(made, n) for n in ('redundant','constant','madelon')})

# the network that all are judged by

def network(p, hidden, n_out):
    layers = [l for a,b in zip((p, *hidden), hidden) for l in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], n_out))

def trained(data, cols, seed, lr=3e-3):
    "A network trained on some columns: at least 8 epochs and 800 steps of AdamW, one-cycle."
    x,y = torch.from_numpy(data.train[0][:,cols]),torch.from_numpy(data.train[1])
    torch.manual_seed(seed)
    model = network(len(cols), data.hidden, int(y.max())+1)
    bs = min(256, max(16, len(x)//8))
    n = len(x)//bs
    epochs = max(8, math.ceil(800/n))
    opt = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-2)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=n*epochs, pct_start=.25)
    for _ in range(epochs):
        for i in torch.randperm(len(x))[:n*bs].view(n, bs):
            F.cross_entropy(model(x[i]), y[i]).backward()
            opt.step()
            opt.zero_grad()
            sched.step()
    return model.eval()

def accuracy(data, cols, seed):
    model = trained(data, cols, 100+seed)
    with torch.no_grad(): return float((model(torch.from_numpy(data.test[0][:,cols])).argmax(1)==torch.from_numpy(data.test[1])).float().mean())

# the methods: columns, the best first, for all numbers of features, or for one

def best(scores): return np.argsort(-np.nan_to_num(scores, nan=-1.), kind='stable')
def by_f(data, seed): return best(f_classif(*data.train)[0])
def by_mutual_info(data, seed): return best(mutual_info_classif(*data.train, random_state=seed))
def by_forest(data, seed): return best(RandomForestClassifier(200, random_state=seed).fit(*data.train).feature_importances_)
def by_l1(data, seed):
    c = 1. if len(data.train[0])<2000 else .05
    return best(np.abs(LogisticRegression(l1_ratio=1., C=c, solver='saga', max_iter=100, random_state=seed).fit(*data.train).coef_).sum(0))
def by_dense_norm(data, seed): return best(trained(data, range(data.p), seed)[0].weight.detach().norm(dim=0).numpy())
def by_chance(data, seed): return np.random.default_rng(seed).permutation(data.p)

def by_lassonet(data, seed):
    from lassonet import LassoNetClassifier
    kwargs = dict(hidden_dims=(100,), path_multiplier=1.1)
    # by default it takes all rows as one batch, and after ten minutes was still looking for the penalty to begin with
    if data.name=='mnist': kwargs = dict(hidden_dims=(512,), path_multiplier=1.05, batch_size=256, n_iters=(100,10), patience=(10,2), lambda_start=100.)
    model = LassoNetClassifier(M=10, random_state=seed, torch_seed=seed, device='cpu', verbose=0, **kwargs)
    sets = [h.selected.numpy() for h in model.path(*data.train)]
    return lambda k: np.flatnonzero(next(x for x in sorted(sets, key=np.sum, reverse=True) if x.sum()<=k)) # many vanish at once: the largest set of its path that has no more

def ours(data, k, seed, **kwargs):
    s = SelectFromNet(k, seed=seed, scale='table' if data.pixels else 'column', **kwargs).fit(*data.train)
    return s.get_support(indices=True)

for_each = dict(ours=ours, ours_large_scaled=partial(ours, criterion='large_scaled'), ours_large_final=partial(ours, criterion='large_final'))
for_all = dict(f_classif=by_f, l1_logistic=by_l1, random=by_chance, dense_norm=by_dense_norm, random_forest=by_forest,
    mutual_info=by_mutual_info, lassonet=by_lassonet)
slow = dict(random_forest=20_000, mutual_info=10_000, l1_logistic=10_000, lassonet=10_000)

def results(data, method, seed, done):
    "Columns, number of rows they were selected by, and seconds, for each number of features that is not done."
    ks = [k for k in ((data.p,) if method=='all' else data.ks) if (data.name,method,k,seed) not in done]
    if not ks: return
    some,order,start = data.rows(slow.get(method)),None,time.perf_counter()
    if method in for_all: order,seconds = for_all[method](some, seed),time.perf_counter()-start
    for k in ks:
        start = time.perf_counter()
        if method in for_each: cols,seconds = for_each[method](data, k, seed),time.perf_counter()-start
        else: cols,seconds = (range(data.p),0.) if method=='all' else (order(k) if callable(order) else order[:k],seconds)
        cols = sorted(int(c) for c in cols)
        yield dict(data=data.name, method=method, k=k, seed=seed, accuracy=accuracy(data, cols, seed), recall=data.recall(cols), seconds=seconds,
            fitted_on=len(some.train[0]))

# all of it

seeds = dict(mnist=3, additive=10, wine=20, breast_cancer=20) # of the others 5; LassoNet takes 5 at most, and one where that is long, the ablations one
ablations = 'ours_large_scaled','ours_large_final'

def jobs():
    "Data set, seed and methods, what matters most first."
    words = [a for a in sys.argv[1:] if not a.startswith('-')]
    names = [n for n in datasets if n in words] or (['wine','digits'] if quick else list(datasets))
    methods = [m for m in ('all',*for_each,*for_all) if m in words] or ['all',*for_each,*for_all]
    for late in (False,True):
        for name,seed in ((n, s) for s in range(1 if quick else max(seeds.values())) for n in names):
            if name in ('mnist','eeg_eye_state') and not data_file(f'{name}.npz') or seed>=seeds.get(name, 5): continue
            def _wanted(m):
                if m=='lassonet': return late and (not seed or seed<5 and name in ('wine','breast_cancer','digits','mnist'))
                return late and not seed if m in ablations else not late
            if chosen := [m for m in methods if _wanted(m)]: yield name,seed,chosen

def circumstances():
    commit = subprocess.run(['git','rev-parse','--short','HEAD'], cwd=root, capture_output=True, text=True).stdout.strip()
    return dict(fasterprune=fasterprune.__version__, torch=torch.__version__, sklearn=version('scikit-learn'), lassonet=version('lassonet'), python=platform.python_version(),
        machine=f'{platform.machine()}, {os.cpu_count()} cores, one thread', commit=commit)

def show(df):
    "Mean and standard deviation over the seeds, a row for each method."
    for (name,k),part in df[df.method!='all'].groupby(['data','k'], sort=False):
        part = pd.concat([df[(df.data==name) & (df.method=='all')], part])
        t = part.groupby('method', sort=False).agg(accuracy=('accuracy','mean'), sd=('accuracy','std'), recall=('recall','mean'), seconds=('seconds','mean'),
            fitted_on=('fitted_on','max'), seeds=('seed','count'))
        print(f'\n{name}, {k} features\n{t.sort_values("accuracy", ascending=False).dropna(axis=1, how="all").round(4).to_string()}')

def main():
    rows = [] if quick or not out.exists() else pd.read_csv(out).to_dict('records')
    done = {(r['data'], r['method'], r['k'], r['seed']) for r in rows}
    about = circumstances()
    for name,seed,methods in jobs():
        data = datasets[name](seed)
        for method in methods:
            for row in results(data, method, seed, done):
                rows.append({**row, **about})
                print({k:round(v, 4) if isinstance(v, float) else v for k,v in row.items()}, flush=True)
                if quick: continue
                new = not out.exists()
                with out.open('a', newline='') as f:
                    w = csv.DictWriter(f, rows[-1])
                    if new: w.writeheader()
                    w.writerow(rows[-1])
    show(pd.DataFrame(rows))

if __name__=='__main__': main()
