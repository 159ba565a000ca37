"""Which features would do? SelectFromNet beside its rivals: the same split, and the same network retrained from scratch on what each selects.

Writes results/feature_selection.csv row by row, and skips what is there: an interrupted run goes on. On one core the tables take about half an hour,
MNIST one, and LassoNet as long as all the others. `--quick`: two small tables, one seed, nothing written. Names of data sets
and methods on the command line restrict the run to them.

Needs lassonet; `pip install stg Orange3` besides for stochastic gates and the tables that were never used before.

Splits: those of seeds below 1,000 are the ones on which warm-up and the cap of epochs of SelectFromNet were looked at, with test figures in view. Since then these are frozen, and `--fresh` takes seeds from 1,000 on, which are
splits and networks that nobody has seen before, and two data sets that were never used, ionosphere and the yeast genes of Brown et al., both from the package Orange3. What has constants to choose (`tuned`) has as many
trials of them as the others, judged on a fifth of the rows to train on; those are in results/feature_selection_trials.csv. `kept` is the number of columns that were really kept: LassoNet has the sets of its path.

`recall` is the share of the true features that were found; of redundant copies, one of each counts. `fitted_on` is the number of rows that a method
selected by: where that is less than all, it is too slow for more. All methods get the same standardized columns, pixels as shares of
the largest value. EEG is split by time; what lies far out in it is pulled in for all.
"""
import math, sys, tempfile, time, warnings
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
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

from fasterprune.core.files import data_file
from fasterprune.inputs.sklearn import SelectFromNet
from fasterprune.studies.circumstances import circumstances
from fasterprune.studies.study import Appender, Results

root = Path(__file__).resolve().parent.parent
quick,fresh = '--quick' in sys.argv,'--fresh' in sys.argv
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

def orange(file, seed):
    "A table that the package Orange3 carries, in its format of three heading lines; a missing value is the column's mean."
    path = Path(find_spec('Orange').origin).parent/file
    lines = [l.split('\t') for l in path.read_text().splitlines() if l.strip()]
    at = next(i for i,v in enumerate(lines[2]) if v.strip()=='class')
    used = [i for i,v in enumerate(lines[2]) if not v.strip()]
    x = pd.DataFrame([[l[i] for i in used] for l in lines[3:]]).apply(pd.to_numeric, errors='coerce')
    y = np.unique([l[at] for l in lines[3:]], return_inverse=True)[1]
    x,xt,y,yt = train_test_split(x.to_numpy(float), y, test_size=.2, random_state=seed, stratify=y)
    mean = np.nanmean(x, axis=0)
    x,xt = (np.where(np.isnan(a), mean, a) for a in (x,xt))
    return standardized(Path(file).stem.split('-')[0], x, y, xt, yt)

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
if fresh: datasets |= {'ionosphere':partial(orange, 'tests/datasets/ionosphere.tab'), 'brown':partial(orange, 'datasets/brown-selected.tab')} # never used before
small_tables = 'wine','breast_cancer','digits','ionosphere','brown'

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

def along_path(model, data):
    "Of LassoNet's path the largest set that has no more than so many columns, as many vanish at once."
    sets = [h.selected.numpy() for h in model.path(*data.train)]
    return lambda k: np.flatnonzero(next(x for x in sorted(sets, key=np.sum, reverse=True) if x.sum()<=k))

def by_lassonet(data, seed):
    from lassonet import LassoNetClassifier
    kwargs = dict(hidden_dims=(100,), path_multiplier=1.1)
    # by default it takes all rows as one batch, and after ten minutes was still looking for the penalty to begin with
    if data.name=='mnist': kwargs = dict(hidden_dims=(512,), path_multiplier=1.05, batch_size=256, n_iters=(100,10), patience=(10,2), lambda_start=100.)
    model = LassoNetClassifier(M=10, random_state=seed, torch_seed=seed, device='cpu', verbose=0, **kwargs)
    return along_path(model, data)

def by_mrmr(data, k, seed, relevance='f', scheme='quotient'):
    """Minimum redundancy, maximum relevance (Ding and Peng, 2005; Zhao, Anand and Wang, 2019): the next column is the one whose relevance, an F statistic or mutual information
    with the classes, is largest over its mean absolute correlation with those that are chosen already, or less it."""
    x,y = data.train
    r = np.nan_to_num(f_classif(x, y)[0] if relevance=='f' else mutual_info_classif(x, y, random_state=seed))
    if scheme=='difference': r = r/max(r.max(), 1e-12) # of the order of a correlation
    z = x-x.mean(0)
    z = z/np.maximum(np.linalg.norm(z, axis=0), 1e-12)
    chosen,redundant = [int(r.argmax())],np.zeros(len(r))
    while len(chosen)<k:
        redundant += np.abs(z.T@z[:,chosen[-1]])
        mean = redundant/len(chosen)
        score = r-mean if scheme=='difference' else r/np.maximum(mean, 1e-3)
        score[chosen] = -np.inf
        chosen.append(int(score.argmax()))
    return chosen

def by_stg(data, k, seed, lam=.5, n_steps=3000):
    "Stochastic gates (Yamada et al., 2020) by their authors' package `stg`: the columns with the largest gates, of a network as wide as ours."
    import collections
    from collections import abc
    for n in ('Sequence','Mapping','Set'): setattr(collections, n, getattr(abc, n)) # where `stg` 0.1.2 looks for them
    from stg import STG
    x,y = data.train
    bs = min(256, max(16, len(x)//8))
    torch.manual_seed(seed)
    model = STG(task_type='classification', input_dim=data.p, output_dim=int(y.max())+1, hidden_dims=[512,256], activation='relu', optimizer='Adam', learning_rate=1e-3,
        batch_size=bs, feature_selection=True, sigma=.5, lam=lam, random_state=seed, device='cpu')
    model.fit(x, y, nr_epochs=math.ceil(n_steps/math.ceil(len(x)/bs)), verbose=False, shuffle=True)
    return best(model.get_gates('raw'))[:k]

def by_lassonet_default(data, seed):
    "LassoNet with its own path and all that is default in it, as wide as our network, on all rows."
    from lassonet import LassoNetClassifier
    model = LassoNetClassifier(hidden_dims=(512,256), random_state=seed, torch_seed=seed, device='cpu', verbose=0)
    return along_path(model, data)

def ours(data, k, seed, **kwargs):
    s = SelectFromNet(k, seed=seed, scale='table' if data.pixels else 'column', **kwargs).fit(*data.train)
    return s.get_support(indices=True)

for_each = dict(ours=ours, ours_large_scaled=partial(ours, criterion='large_scaled'), ours_large_final=partial(ours, criterion='large_final'))
trials = dict(stg=[dict(lam=l) for l in (.1,.5,2.)], mrmr=[dict(relevance='f', scheme='quotient'), dict(relevance='f', scheme='difference'), dict(relevance='mi', scheme='quotient')],
    ours_tuned=[dict(), dict(criterion='large_scaled'), dict(networks=5)]) # three each
ways = dict(stg=by_stg, mrmr=by_mrmr, ours_tuned=ours)
averages = [dict(networks=n) for n in (1,3,5)] # how many networks? judged on validation rows alone, by `--average`

def validated(data, seed, share=.2):
    "The rows to train on, a fifth of them in the place of those to judge by."
    x,y = data.train
    x,xv,y,yv = train_test_split(x, y, test_size=share, random_state=seed, stratify=y)
    return replace(data, train=(x, y), test=(xv, yv))

def tuned(data, method, k, seed, note=None):
    "The columns by those constants whose columns do best on validation rows, and the constants."
    part = validated(data, seed)
    def _try(c):
        a = accuracy(part, sorted(map(int, ways[method](part, k, seed, **c))), seed)
        if note: note(dict(data=data.name, method=method, constants=as_text(c), k=k, seed=seed, accuracy=a))
        return a
    c = max(trials[method], key=_try)
    return ways[method](data, k, seed, **c),as_text(c)

def as_text(constants): return ' '.join(f'{k}={v}' for k,v in constants.items()) or 'default'

for_all = dict(f_classif=by_f, l1_logistic=by_l1, random=by_chance, dense_norm=by_dense_norm, random_forest=by_forest,
    mutual_info=by_mutual_info, lassonet=by_lassonet, lassonet_default=by_lassonet_default)
slow = dict(random_forest=20_000, mutual_info=10_000, l1_logistic=10_000, lassonet=10_000)

def results(data, method, seed, done, note=None):
    "Columns, number of rows they were selected by, and seconds, for each number of features that is not done."
    ks = [k for k in ((data.p,) if method=='all' else data.ks) if table.key(dict(data=data.name, method=method, k=k, seed=seed)) not in done]
    if not ks: return
    some,order,start = data.rows(slow.get(method)),None,time.perf_counter()
    if method in for_all: order,seconds = for_all[method](some, seed),time.perf_counter()-start
    for k in ks:
        start,constants = time.perf_counter(),''
        if method in trials: cols,constants = tuned(data, method, k, seed, note)
        elif method in for_each: cols = for_each[method](data, k, seed)
        else: cols = range(data.p) if method=='all' else order(k) if callable(order) else order[:k]
        if method not in for_all: seconds = time.perf_counter()-start if method!='all' else 0.
        cols = sorted(int(c) for c in cols)
        yield dict(data=data.name, method=method, k=k, seed=seed, accuracy=accuracy(data, cols, seed), recall=data.recall(cols), seconds=seconds,
            fitted_on=len(some.train[0]), kept=len(cols), constants=constants)

# all of it

about = circumstances('lassonet', 'stg', threads=1, folder=root, sklearn='scikit-learn')
table = Results(root/'results'/'feature_selection.csv', ['data','method','k','seed'], ['accuracy','recall','seconds','fitted_on','kept','constants',*about])
tried = Results(root/'results'/'feature_selection_trials.csv', ['data','method','constants','k','seed'], ['accuracy',*about])
seeds = dict(mnist=3, additive=10, wine=20, breast_cancer=20) # of the others 5; LassoNet takes 5 at most, and one where that is long, the ablations one
ablations = 'ours_large_scaled','ours_large_final'
slow_on_large = 'lassonet_default','stg' # take hours on tens of thousands of rows, or hundreds of columns

def jobs():
    "Data set, seed and methods, what matters most first."
    words = [a for a in sys.argv[1:] if not a.startswith('-')]
    names = [n for n in datasets if n in words] or (['wine','digits'] if quick else [n for n in datasets if not fresh or n in small_tables])
    every = ('all',*for_each,*ways,*for_all) if fresh else ('all',*for_each,*[m for m in for_all if m!='lassonet_default'])
    methods = [m for m in every if m in words] or [m for m in every if not fresh or m not in (*ablations,'lassonet')]
    if fresh:
        most = {n:20 if n in ('wine','breast_cancer','ionosphere','brown') else 5 for n in names}
        for late in (False,True): # the slow ones in the end
            now = [m for m in methods if (m in slow_on_large)==late]
            yield from ((n, 1000+s, now) for s in range(1 if quick else 20) for n in names if s<most[n] and now)
        return
    for late in (False,True):
        for name,seed in ((n, s) for s in range(1 if quick else max(seeds.values())) for n in names):
            if name in ('mnist','eeg_eye_state') and not data_file(f'{name}.npz') or seed>=seeds.get(name, 5): continue
            def _wanted(m):
                if m=='lassonet': return late and (not seed or seed<5 and name in ('wine','breast_cancer','digits','mnist'))
                return late and not seed if m in ablations else not late
            if chosen := [m for m in methods if _wanted(m)]: yield name,seed,chosen

def show(df):
    "Mean and standard deviation over the seeds, a row for each method; fresh splits by themselves."
    df = df.assign(data=df.data.where(df.seed<1000, df.data+' (fresh)'))
    for (name,k),part in df[df.method!='all'].groupby(['data','k'], sort=False):
        part = pd.concat([df[(df.data==name) & (df.method=='all')], part])
        t = part.groupby('method', sort=False).agg(accuracy=('accuracy','mean'), sd=('accuracy','std'), recall=('recall','mean'), seconds=('seconds','mean'),
            fitted_on=('fitted_on','max'), kept=('kept','mean'), seeds=('seed','count'))
        print(f'\n{name}, {k} features\n{t.sort_values("accuracy", ascending=False).dropna(axis=1, how="all").round(4).to_string()}')

def average():
    "How many networks should be averaged? Rows to train on alone, a fifth of them to judge by."
    done = set(map(tried.key, tried.rows()))
    with Appender(tried, tried.path) as append:
        for seed in range(2000, 2020):
            for name in [n for n in small_tables if n in datasets]:
                part = validated(datasets[name](seed), seed)
                for c in averages:
                    row = dict(data=name, method='average', constants=as_text(c), k=part.ks[0], seed=seed)
                    if tried.key(row) not in done: append({**row, 'accuracy':accuracy(part, sorted(map(int, ours(part, part.ks[0], seed, **c))), seed), **about})

def main():
    if '--average' in sys.argv: return average()
    done = set() if quick else set(map(table.key, table.rows()))
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        append,note = (stack.enter_context(Appender(r, folder/r.path.name if quick else r.path)) for r in (table,tried))
        for name,seed,methods in jobs():
            data = datasets[name](seed)
            for method in methods:
                for row in results(data, method, seed, done, lambda r: note({**r, **about})):
                    print({k:round(v, 4) if isinstance(v, float) else v for k,v in row.items()}, flush=True)
                    append({**row, **about})
                    rows.append(row)
    show(pd.DataFrame(rows) if quick else table.to_frame())

if __name__=='__main__': main()
