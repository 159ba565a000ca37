"""What a training step costs with the callback, over a step of plain fastai, and with fasterai's: fits whose steps take turns, medians, one thread.

Writes results/step_overhead.csv. On a CPU ten minutes, most of them for 100 million parameters; `--quick`: one. `--device cuda` runs batches of 512 images in
bfloat16 on a GPU, and once more with torch.compile; it writes results/step_overhead_cuda.csv.

Each fit runs in a thread of its own, and hands over to the next one after each batch. Batches are measured from the first event to the last, without the DataLoader.
`zeros` is what is zero at the end, `wanted` what was asked for. The rows "as in 10 epochs of CIFAR-10" are 60 steps out of the middle of a fit of 15,630, in which
few weights die at a step, and a filter every few steps; in all others many do.
"""
import contextlib, io, threading, time
from functools import partial
from statistics import median

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

def interleaved(fits):
    "Run all fits at once, one batch of each in turn; for each the times of its batches."
    turn = Turn(len(fits))
    turns = [Turns(i, turn) for i in range(len(fits))]
    def _run(fit, t):
        torch.set_num_threads(1)
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
    return learn,_fit

def fasterai(granularity, context, sparsity):
    from fasterai.core.all import large_final, one_cycle
    from fasterai.sparse.all import SparsifyCallback as Theirs
    return Theirs(sparsity, granularity, context, large_final, one_cycle, layer_type=(nn.Conv2d,nn.Linear) if granularity=='weight' else nn.Conv2d)

def n_zero(model, granularity):
    ws = [m.weight.detach() for m in model.modules() if isinstance(m, (nn.Conv2d,*([nn.Linear] if granularity!='filter' else [])))]
    return sum(int((w==0).sum()) if granularity=='weight' else int((w==0).flatten(1).all(1).sum()) for w in ws)

def middle(pos, real=15_630, steps=60): return one_cycle(.45 + pos*steps/real) if pos<1 else one_cycle(.45 + steps/real)

def compared(name, model, shape, bs, cases, steps, compiled=False):
    "Rows for one network: plain fastai first, and whatever callbacks there are."
    made = {k:fit_of(model, shape, bs, steps, make, compiled) for k,make in {('plain',''):lambda: None, **cases}.items()}
    times = interleaved([f for _,f in made.values()])
    plain = median(times[0][5:])
    for ((method,granularity),(learn,_)),ts in zip(made.items(), times):
        rest = sorted(t/p for t,p in zip(ts[5:], times[0][5:]))
        found = dict(zeros=n_zero(learn.model, granularity.split(',')[0])) if granularity else {}
        yield dict(network=name, batch=bs, compiled=compiled, granularity=granularity, method=method, ms=1e3*median(ts[5:]),
            over_plain=median(ts[5:])/plain, lower=rest[len(rest)//4], upper=rest[3*len(rest)//4], extra_ms=1e3*(median(ts[5:])-plain),
            first_ms=1e3*ts[0], steps=len(ts), parameters=n_left(learn.model), **found)

def ours(granularity, sparsity, **kwargs): return partial(SparsifyCallback, sparsity, granularity, **kwargs)

def rows():
    steps = 16 if quick else 60
    real = ', as in 10 epochs of CIFAR-10'
    cases = {('fasterprune','weight'):ours('weight', .9), ('fasterprune','weight'+real):ours('weight', .9, schedule=middle), ('fasterprune','filter'):ours('filter', .5),
        ('fasterprune','filter'+real):ours('filter', .5, schedule=middle), ('fasterprune','kernel'):ours('kernel', .5), ('fasterprune','2:4'):ours('2:4', .5)}
    if not gpu: cases.update({('fasterai','weight'):partial(fasterai, 'weight', 'global', .9), ('fasterai','filter'):partial(fasterai, 'filter', 'global', .5)})
    yield from compared('resnet18, 32 px', resnet, (3,32,32), 512 if gpu else 32, cases, steps)
    if gpu: yield from compared('resnet18, 32 px', resnet, (3,32,32), 512, cases, steps, True)
    dense = {('fasterprune','weight'):ours('weight', .9), ('fasterprune','neuron'):ours('neuron', .5), **({} if gpu else {('fasterai','weight'):partial(fasterai, 'weight', 'global', .9)})}
    yield from compared('mlp 784-512-512-10', mlp, (784,), 64, dense, 4*steps)
    for millions in (1,10) if quick else (1,10,100):
        n = wide(millions)[1].in_features
        yield from compared(f'{millions}M', partial(wide, millions), (n,), 8, {('fasterprune','weight'):ours('weight', .9)}, 20 if millions==100 else steps)

if __name__=='__main__':
    torch.set_num_threads(1)
    write(pd.DataFrame(rows()).assign(**versions(), fasterai=version('fasterai') if not gpu else '', numba=version('numba') if not gpu else ''), 'step_overhead'+'_cuda'*gpu)
