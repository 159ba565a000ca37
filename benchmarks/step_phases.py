"""Where a training step spends its time: forward, backward, optimizer, callbacks. Writes results/step_phases.csv; five minutes, `--quick`: one.

Whole fits in shuffled order, in one process and one thread, medians over the steps and then over the rounds, in ms: plain; plain with `Settled`, which keeps what the optimizer remembers from numbers that a CPU is slow with, as the
callback does; and with `SparsifyCallback(.9)`, as in the middle of a long fit.
"""
import random, time
from collections import defaultdict
from functools import partialmethod
from statistics import median

from fastai.basics import *
from fastai.callback.all import *
from peers import *
from fasterprune.core.optimizer_state import DenormalGuard
from step_overhead import middle, mlp, resnet

events = 'before_batch','after_pred','after_loss','before_backward','after_backward','before_step','after_step','after_batch'
phases = {('before_batch','after_pred'):'forward', ('before_backward','after_backward'):'backward', ('before_step','after_step'):'optimizer'}

class Stamp(Callback):
    "Note when it is called: before all other callbacks, or after them."
    def __init__(self, order, stamps): self.order,self.stamps = order,stamps
    def _note(self, event):
        if self.training: self.stamps.append((event, self.order, time.perf_counter()))
for _e in events: setattr(Stamp, _e, partialmethod(Stamp._note, _e))

class OnlySettled(Callback):
    def before_fit(self): self.settled = DenormalGuard()
    def after_step(self): self.settled.step(self.opt)

def phase(a, b):
    "What happens between two stamps."
    if a[1]<b[1]: return 'callbacks' # within an event
    return phases.get((a[0],b[0]), 'between batches' if a[0]=='after_batch' else 'other')

def fit_of(model, shape, bs, steps, cbs):
    "Median time of each phase of a step."
    torch.manual_seed(0)
    n,stamps = steps//4,[]
    train,valid = (torch.randn(n*bs, *shape), torch.randint(0, 10, (n*bs,))),(torch.zeros(2, *shape), torch.zeros(2).long())
    learn = Learner(tensor_dls(train, valid, bs=bs), model(), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 1e-3, cbs=[Stamp(-1000, stamps), Stamp(1000, stamps), *cbs])
    spent = defaultdict(list)
    for a,b in zip(stamps, stamps[1:]): spent[a[0],b[0],phase(a, b)].append(b[2]-a[2])
    ms = defaultdict(float)
    for (*_,name),times in spent.items():
        if name!='between batches': ms[name] += 1e3*median(times[5:])
    return {**ms, 'total':sum(ms.values())}

def main():
    rounds,rows = 2 if quick else 5,[]
    for name,model,shape,bs,steps,real in (('resnet18, 32 px',resnet,(3,32,32),32,32,15_630), ('mlp 784-512-512-10',mlp,(784,),64,240,9_380)):
        cases = {'plain':lambda: [], 'plain, settled':lambda: [OnlySettled()], 'masked':lambda: [SparsifyCallback(.9, schedule=middle(steps, real))]}
        order = [c for seed in range(rounds) for c in random.Random(seed).sample(list(cases), len(cases))]
        found = [dict(case=c, **fit_of(model, shape, bs, steps, cases[c]())) for c in order]
        mean = pd.DataFrame(found).groupby('case').median().loc[list(cases)].reset_index()
        rows.append(mean.assign(network=name, batch=bs, over_plain=mean.total/mean.total[0], over_settled=mean.total/mean.total[1], steps=steps, rounds=rounds))
    df = pd.concat(rows)
    write(df[['network','batch','case','forward','backward','optimizer','callbacks','other','total','over_plain','over_settled','steps','rounds']], 'step_phases')

if __name__=='__main__':
    torch.set_num_threads(1)
    main()
