"""What a training step costs with the callback, over a step of plain fastai, and with fasterai's: fits whose steps take turns.

Writes results/step_overhead.csv. On a CPU half an hour; `--quick`: one. `--device cuda` runs batches of 512 images in bfloat16 on a GPU, and once more with
torch.compile; it writes results/step_overhead_cuda.csv.

`--own` writes results/step_own_time.csv, in a quarter of an hour: the time that is spent in the callback's events, event by event, over the rest of the step, with one and two threads, with and without
Numba, for steps around 1, 10, 50 and 90 % of ten epochs, for short fits in which thousands of weights die at each step, and with `every=10`. Five rounds, each a process of its own in another order; the median of the rounds' medians.
Unlike the ratio it does not change with where in memory a fit lies, nor with an optimizer that is faster because of the callback.

Each fit runs in a thread of its own, and hands over to the next one after each batch. Batches are measured from the first event to the last, without the DataLoader.
Where in memory a fit comes to lie makes a difference of some hundredths: so there are five rounds, each a process of its own that begins the fits in another order, and a
row has the median of the rounds' medians, the lowest and the highest. `zeros` is what is zero at the end. The rows "as in 10 epochs of" are as many steps out of the
middle of such a fit, in which few weights die at a step, and a filter every few steps; in all others many do.
"""
import contextlib, io, random, subprocess, tempfile, threading, time
from copy import deepcopy
from functools import partial
from importlib.metadata import version
from statistics import median

import torchvision
from fastai.basics import *
from fastai.callback.all import *
from peers import *

gpu = 'cuda' in sys.argv
device = 'cuda' if gpu else 'cpu'

class Turns(Callback):
    "Do a batch when it is one's turn, and measure it."
    order = -1000
    def __init__(self, me, turn): self.me,self.turn,self.times = me,turn,[]
    def before_batch(self):
        if not self.training: return
        self.turn.wait_for(self.me)
        if gpu: torch.cuda.synchronize()
        self.start = time.perf_counter()

class Done(Callback):
    order = 1000
    def __init__(self, turns): self.turns = turns
    def after_batch(self):
        if not self.training: return
        if gpu: torch.cuda.synchronize()
        self.turns.times.append(time.perf_counter()-self.turns.start)
        self.turns.turn.next()

class Turn:
    "Whose turn is it?"
    def __init__(self, n): self.n,self.now,self.changed,self.failed = n,0,threading.Condition(),None
    def wait_for(self, me):
        with self.changed: self.changed.wait_for(lambda: self.now==me or self.failed)
        if self.failed: raise RuntimeError('another fit has failed')
    def fail(self, e):
        with self.changed:
            self.failed = self.failed or e
            self.changed.notify_all()
    def next(self):
        with self.changed:
            self.now = (self.now+1)%self.n
            self.changed.notify_all()

def interleaved(fits, n_threads=1):
    "Run all fits at once, one batch of each in turn; for each the times of its batches."
    turn = Turn(len(fits))
    turns = [Turns(i, turn) for i in range(len(fits))]
    def _run(fit, t):
        torch.set_num_threads(n_threads)
        try: fit([t, Done(t)])
        except Exception as e: turn.fail(e)
    threads = [threading.Thread(target=_run, args=o) for o in zip(fits, turns)]
    with contextlib.redirect_stdout(io.StringIO()):
        for t in threads: t.start()
        for t in threads: t.join()
    if turn.failed: raise turn.failed
    return [t.times for t in turns]

def resnet(): return torchvision.models.resnet18(num_classes=10)
def mlp(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
def wide(millions):
    "Two layers of the same size."
    n = round((millions*1e6/2)**.5)
    return nn.Sequential(nn.Flatten(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 10))

def fit_of(model, shape, bs, steps, make, compiled=False):
    "A fit of `steps` batches in four epochs, with the callback that `make` gives for the learner."
    torch.manual_seed(0)
    n = max(1, steps//4)
    train,valid = (torch.randn(n*bs, *shape), torch.randint(0, 10, (n*bs,))),(torch.zeros(2, *shape), torch.zeros(2).long())
    learn = Learner(tensor_dls(train, valid, bs=bs, device=device), model().to(device), loss_func=CrossEntropyLossFlat())
    if gpu: learn.to_bf16()
    if compiled: learn.model.compile()
    cb = make()
    def _fit(cbs):
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 1e-3, cbs=cbs+[cb]*(cb is not None))
    _fit.cb = cb
    return learn,_fit

def fasterai(granularity, context, sparsity):
    "Theirs, with a schedule of its own: it remembers what it last gave, and fits that share it disturb each other."
    from fasterai.core.all import large_final, one_cycle
    from fasterai.sparse.all import SparsifyCallback as Theirs
    return Theirs(sparsity, granularity, context, large_final, deepcopy(one_cycle), layer_type=(nn.Conv2d,nn.Linear) if granularity=='weight' else nn.Conv2d)

def n_zero(model, granularity):
    ws = [m.weight.detach() for m in model.modules() if isinstance(m, (nn.Conv2d,*([nn.Linear] if granularity!='filter' else [])))]
    return sum(int((w==0).sum()) if granularity=='weight' else int((w==0).flatten(1).all(1).sum()) for w in ws)

def middle(steps, real): return lambda pos: one_cycle(.45 + pos*steps/real) if pos<1 else one_cycle(.45 + steps/real)

class ByNumPy(SparsifyCallback):
    "As if Numba were not installed."
    def make_masker(self):
        sparsifier = super().make_masker()
        sparsifier.scorer.workspace.compiled = None
        return sparsifier

def ours(sparsity, granularity, cls=SparsifyCallback, **kwargs): return partial(cls, sparsity, granularity, **kwargs)

def compared(seed, name, model, shape, bs, cases, steps, compiled=False, n_threads=1):
    "Rows for one network: plain fastai, and whatever callbacks there are; `seed` tells in which order they begin."
    cases = {('plain',''):lambda: None, **cases}
    made = {k:fit_of(model, shape, bs, steps, cases[k], compiled) for k in random.Random(seed).sample(list(cases), len(cases))}
    times = dict(zip(made, interleaved([f for _,f in made.values()], n_threads)))
    plain = median(times['plain',''][5:])
    for method,granularity in cases:
        learn,ts = made[method,granularity][0],times[method,granularity]
        found = dict(zeros=n_zero(learn.model, granularity.split(',')[0])) if granularity else {}
        yield dict(network=name, batch=bs, threads=n_threads, compiled=compiled, granularity=granularity, method=method, ms=1e3*median(ts[5:]),
            over_plain=median(ts[5:])/plain, extra_ms=1e3*(median(ts[5:])-plain), first_ms=1e3*ts[0], steps=len(ts), parameters=n_left(learn.model), **found)

def rows(seed):
    "Those of one round; the largest network is in the first one alone."
    steps = 16 if quick else 60
    cifar,mnist = ', as in 10 epochs of CIFAR-10',', as in 10 epochs of MNIST'
    us,numpy,them = 'fasterprune','fasterprune, NumPy','fasterai'
    weights = {(us,'weight'):ours(.9, 'weight'), (us,'weight'+cifar):ours(.9, 'weight', schedule=middle(steps, 15_630))}
    filters = {(us,'filter'):ours(.5, 'filter'), (us,'filter'+cifar):ours(.5, 'filter', schedule=middle(steps, 15_630))}
    others = {(us,'kernel'):ours(.5, 'kernel'), (us,'2:4'):ours(.5, '2:4')}
    slow = {(numpy,'weight'):ours(.9, 'weight', ByNumPy), (numpy,'weight'+cifar):ours(.9, 'weight', ByNumPy, schedule=middle(steps, 15_630))}
    theirs = {(them,'weight'):partial(fasterai, 'weight', 'global', .9), (them,'filter'):partial(fasterai, 'filter', 'global', .5)}
    cnn = 'resnet18, 32 px',resnet,(3,32,32),512 if gpu else 32
    dense = {(us,'weight'):ours(.9, 'weight'), (us,'weight'+mnist):ours(.9, 'weight', schedule=middle(4*steps, 9_380)), (us,'neuron'):ours(.5, 'neuron')}
    small = {(numpy,'weight'):ours(.9, 'weight', ByNumPy), (them,'weight'):partial(fasterai, 'weight', 'global', .9)}
    if gpu:
        for compiled in (False,True): yield from compared(seed, *cnn, {**weights, **filters, **others}, steps, compiled)
    else:
        yield from compared(seed, *cnn, {**weights, **slow, **filters, **others, **theirs}, steps)
        yield from compared(seed, *cnn, {**weights, **slow, **filters}, steps, n_threads=2)
    perceptron = 'mlp 784-512-512-10',mlp,(784,),64,dense if gpu else {**dense, **small},4*steps
    for n_threads in (1,) if gpu else (1,2): yield from compared(seed, *perceptron, n_threads=n_threads)
    for millions in (1,10,100)[:2 if quick or seed else 3]:
        n = wide(millions)[1].in_features
        yield from compared(seed, f'{millions}M', partial(wide, millions), (n,), 8, {(us,'weight'):ours(.9, 'weight')}, 20 if millions==100 else steps)

class Own:
    "Added to a callback: note how long it takes, event by event."
    def __call__(self, event):
        start = time.perf_counter()
        super().__call__(event)
        self.spent[event] = self.spent.get(event, 0) + time.perf_counter()-start

class Edge(Callback):
    "Before all other callbacks, or behind them: note how long the step took, and what of it was the callback's own."
    def __init__(self, order, cb, steps, start=None): self.order,self.cb,self.steps,self.first = order,cb,steps,start
    def before_batch(self):
        if not self.first and self.training: self.began,self.cb.spent = time.perf_counter(),{}
    def after_batch(self):
        if self.first and self.training: self.steps.append((time.perf_counter()-self.first.began, self.cb.spent))

def around(pos, steps, real):
    "So many steps of a fit of `real` steps, from `pos` on."
    return lambda p: one_cycle(pos + p*steps/real) if p<1 else one_cycle(pos + steps/real)

def own_time(network, model, shape, bs, steps, what, make, n_threads):
    "A row: medians over the steps of a fit, in milliseconds."
    torch.set_num_threads(n_threads)
    learn,fit = fit_of(model, shape, bs, steps, make)
    cb = fit.cb or Callback()
    cb.spent = {}
    if fit.cb: cb.__class__ = type(type(cb).__name__, (Own,type(cb)), {})
    taken = []
    start = Edge(-1000, cb, taken)
    fit([start, Edge(1000, cb, taken, start)])
    taken = taken[5:]
    own = [sum(spent.values()) for _,spent in taken]
    events = {f'{e}_ms':1e3*median(s.get(e, 0) for _,s in taken) for e in ('before_batch','after_backward','before_step','after_step','after_batch')}
    return dict(network=network, what=what, threads=n_threads, own_ms=1e3*median(own), rest_ms=1e3*median(t-o for (t,_),o in zip(taken, own)),
        mean_own_ms=1e3*sum(own)/len(own), **events, steps=len(taken))

def own_times(seed):
    "Those of one round, in another order."
    numba = '--numpy' not in sys.argv
    cls,cnn,dense = SparsifyCallback if numba else ByNumPy,('resnet18, 32 px',resnet,(3,32,32),32),('mlp 784-512-512-10',mlp,(784,),64)
    cases = [(cnn, 60, 'weight, short fit', ours(.9, 'weight', cls)), (dense, 240, 'weight, short fit', ours(.9, 'weight', cls))]
    cases += [(cnn, 60, 'filter, short fit', ours(.5, 'filter', cls, context='local'))]
    for at in (.01,.1,.5,.9) if numba else (.5,):
        cases.append((cnn, 24, f'weight, at {at:.0%}', ours(.9, 'weight', cls, schedule=around(at, 24, 15_630))))
        cases.append((cnn, 24, f'filter, at {at:.0%}', ours(.5, 'filter', cls, context='local', schedule=around(at, 24, 15_630))))
        cases.append((dense, 120, f'weight, at {at:.0%}', ours(.9, 'weight', cls, schedule=around(at, 120, 9_380))))
    if numba:
        cases += [(cnn, 24, 'plain', lambda: None), (dense, 120, 'plain', lambda: None)]
        cases += [(cnn, 40, f'{g}, every=10', ours(s, g, cls, context=c, every=10)) for g,c,s in (('weight','global',.9), ('filter','local',.5))]
        cases += [(dense, 120, 'weight, every=10', ours(.9, 'weight', cls, every=10))]
    todo = [(*c, n_threads) for c in cases for n_threads in (1,2)]
    for network,steps,what,make,n_threads in random.Random(seed).sample(todo, len(todo)):
        yield dict(own_time(*network, steps, what, make, n_threads), numba=numba)

def own_summed_up(df):
    "The rounds in one: own time over the rest of the step, and a step over a plain one."
    df['own_over_rest'],key = df.own_ms/df.rest_ms,['network','numba','what','threads']
    plain = df[df.what=='plain'].groupby(['network','threads']).rest_ms.median()
    by = df[df.what!='plain'].groupby(key)
    rows = by.agg(own_over_rest=('own_over_rest','median'), lowest=('own_over_rest','min'), highest=('own_over_rest','max'), rounds=('own_ms','size'),
        **{c:(c,'median') for c in df if c.endswith('_ms')}, steps=('steps','first')).reset_index()
    rows['over_plain'] = [(o+r)/plain[n,t] for n,t,o,r in zip(rows.network, rows.threads, rows.own_ms, rows.rest_ms)]
    return rows

def run(seed, *options):
    "A round, in a process of its own."
    with tempfile.NamedTemporaryFile(suffix='.json') as f:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], *options, '--round', str(seed), f.name], check=True)
        return pd.read_json(f.name)

def summed_up(df):
    "The rounds in one."
    key = ['network','batch','threads','compiled','granularity','method']
    df['granularity'] = df.granularity.fillna('')
    by = df.groupby(key, sort=False)
    return by.agg(ms=('ms','median'), over_plain=('over_plain','median'), lower=('over_plain','min'), upper=('over_plain','max'), extra_ms=('extra_ms','median'),
        first_ms=('first_ms','median'), rounds=('ms','size'), steps=('steps','first'), parameters=('parameters','first'), zeros=('zeros','first')).reset_index()

if __name__=='__main__':
    if '--round' in sys.argv:
        *_,seed,path = sys.argv
        torch.set_num_threads(1)
        pd.DataFrame((own_times if '--own' in sys.argv else rows)(int(seed))).to_json(path, orient='records')
    elif '--own' in sys.argv:
        found = []
        for i in range(1 if quick else 5):
            found += [run(i, *options) for options in ((),('--numpy',))]
            about = {**versions(threads=None), 'numba_version':version('numba')}
            write(own_summed_up(pd.concat(found)).assign(**about), 'step_own_time') # after each round
    else:
        df = summed_up(pd.concat([run(i) for i in range(1 if quick else 5)]))
        write(df.assign(**versions(threads=None), fasterai=version('fasterai') if not gpu else '', numba=version('numba') if not gpu else ''), 'step_overhead'+'_cuda'*gpu)
