"""What does a budget add to a fit? The time of the search for what has to die, over all the rest of the fit, for half of the multiply-accumulates.
Writes results/budget_cost.csv, a row for each fit: what is there already stays. Ten minutes on one core. Needs the data folder (FASTERPRUNE_DATA).

    python benchmarks/budget_cost.py [--quick]

A masked step costs what it costs with a sparsity, so that the rest of the fit is that of a fit with one."""
import time, warnings
from functools import wraps

warnings.simplefilter('ignore')
import torch, torchvision
from fastai.basics import CrossEntropyLossFlat, Learner, set_seed
from fasterprune.all import Budget, SparsifyCallback, tensor_dls
from fasterprune.sparsify import BudgetSearch
from fasterprune.studies.datasets import get_images
from fasterprune.studies.networks import resnet
from fasterprune.studies.study import Appender

from rows import circumstances, quick, table_of

# name -> network, side of the images, how many, batch
cases = {'torchvision resnet18': (lambda: torchvision.models.resnet18(num_classes=10), 32, 2560, 32),
    'resnet20, 8 to 32 channels': (lambda: resnet((3,16,16), 10, widths=(8,16,32), blocks=3), 16, 3000, 64)}

class Clock:
    "Adds up the time that a search takes."
    def __init__(self): self.seconds,self.inside = 0.,False
    def __enter__(self):
        self.plain = {n:getattr(BudgetSearch, n) for n in ('__init__','check','sparsity_at','find')}
        for n,f in self.plain.items(): setattr(BudgetSearch, n, self.timed(f))
        return self
    def __exit__(self, *_):
        for n,f in self.plain.items(): setattr(BudgetSearch, n, f)
    def timed(self, f):
        @wraps(f)
        def _timed(*args, **kwargs):
            if self.inside: return f(*args, **kwargs)
            start,self.inside = time.process_time(),True
            try: return f(*args, **kwargs)
            finally: self.seconds,self.inside = self.seconds+time.process_time()-start,False
        return _timed

def row(name, epochs, seed):
    make,side,n,bs = cases[name]
    data = get_images('cifar10').part(n, bs, side=side)
    set_seed(seed)
    learn = Learner(tensor_dls(data.train, data.valid, bs), make(), loss_func=CrossEntropyLossFlat())
    cb,start = SparsifyCallback(Budget(macs=.5), 'filter'),time.process_time()
    with Clock() as clock, learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 2e-3, cbs=cb)
    rest = time.process_time()-start-clock.seconds
    return dict(steps=epochs*(n//bs), asked=cb.sparsifier.search.asked, own_seconds=clock.seconds, rest_seconds=rest, own_over_rest=clock.seconds/rest)

def main():
    torch.set_num_threads(1)
    table = table_of('budget_cost', 'network epochs seed', 'steps asked own_seconds rest_seconds own_over_rest')
    done = set(map(table.key, table.rows()))
    with Appender(table, table.path) as append:
        for settings in [dict(network=n, epochs=1 if quick else 10, seed=s) for n in cases for s in range(1 if quick else 2)]:
            if table.key(settings) in done: continue
            found = {**settings, **row(**{('name' if k=='network' else k):v for k,v in settings.items()})}
            print(found, flush=True)
            append({**found, **circumstances('torchvision')})

if __name__=='__main__': main()
