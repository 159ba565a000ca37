"Several processes that train one network on the CPU: forked, with gloo, and ended if they hang."
import builtins, os, signal, tempfile, time, traceback, warnings
from importlib.util import find_spec
from pathlib import Path
import torch, torch._dynamo # which is asked for by the wrapper, in each process that has not imported it
from fastai.basics import Adam, Callback, CrossEntropyLossFlat, DataLoaders, Learner, SGD, set_seed
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from fasterprune.core.ranks import digest, unwrapped

class Process:
    "What came of a process: what its function returned, or the error that it raised; how long it took."
    def __init__(self, result=None, error='', code=0, seconds=0.): self.result,self.error,self.code,self.seconds = result,error,code,seconds
    def __repr__(self): return f'Process({self.error or self.result!r}, code {self.code}, {self.seconds:.1f} s)'

def _run(f, rank, n, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT='29500') # accelerate asks for all
    torch.set_num_threads(1)
    start,result,error = time.perf_counter(),None,''
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=n)
    try: result = f(rank)
    except Exception as e:
        error = f'{type(e).__name__}: {e}'
        (folder/f'trace{rank}').write_text(traceback.format_exc())
    torch.save((result, error, time.perf_counter()-start), folder/f'{rank}.tmp')
    (folder/f'{rank}.tmp').rename(folder/f'{rank}')
    os._exit(0) # whoever waits for this one is told by the connection that closes

def in_ranks(f, n=2, guard=300):
    "Call `f(rank)` in `n` processes of a group: a `Process` for each. What hangs for `guard` seconds of waiting is ended, with code -9."
    folder,pids = Path(tempfile.mkdtemp()),[]
    for rank in range(n):
        if not (pid := os.fork()):
            try: _run(f, rank, n, folder)
            except BaseException: traceback.print_exc()
            finally: os._exit(1)
        pids.append(pid)
    codes,left = {},guard*100 # rounds of waiting, not the clock: where all is suspended for a while, nothing is late
    while len(codes)<n:
        for pid in pids:
            if pid in codes: continue
            if left<0: os.kill(pid, signal.SIGKILL)
            done,status = os.waitpid(pid, 0 if left<0 else os.WNOHANG)
            if done: codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(.01)
        left -= 1
    def _of(rank):
        if not (folder/f'{rank}').exists(): return Process(error='ended without a word', code=codes[pids[rank]])
        result,error,seconds = torch.load(folder/f'{rank}', weights_only=False)
        return Process(result, error, codes[pids[rank]], seconds)
    return [_of(r) for r in range(n)]

class Wrap(Callback):
    "What fastai's `DistributedTrainer` does to the model."
    order = 11
    def __init__(self, **kwargs): self.kwargs = kwargs
    def before_fit(self): self.learn.model = DistributedDataParallel(self.model, **self.kwargs)
    def after_fit(self): self.learn.model = self.model.module

def fastai_distributed():
    "fastai's module, which asks for accelerate when it is imported; without that its loaders can be used all the same."
    if not find_spec('accelerate'): builtins.Accelerator = type('Accelerator', (), {})
    import fastai.distributed
    return fastai.distributed

def shared_trainer():
    "fastai's `DistributedTrainer` on the CPU: loaders that need no GPU, and without accelerate the wrapper that it would make."
    module = fastai_distributed()
    class SharedDL(module.DistributedDL):
        def _broadcast(self, t, rank):
            t = torch.LongTensor(t)
            distributed.broadcast(t, rank)
            return t.tolist()
    class Plain:
        def prepare(self, model): return DistributedDataParallel(model)
        def backward(self, loss): loss.backward()
    class Trainer(module.DistributedTrainer):
        def __init__(self):
            try: super().__init__(sync_bn=False, cpu=True)
            except TypeError: self.sync_bn,self.accelerator = False,Plain()
        def _wrap_dl(self, dl): return dl if isinstance(dl, SharedDL) else SharedDL(dl, device=torch.device('cpu'))
    return Trainer()

def batches(n, bs, rank=None, n_ranks=2):
    "Indices of each batch, the same for all; those of one rank if it is given."
    def _part(b): return b if rank is None else b[rank*len(b)//n_ranks:(rank+1)*len(b)//n_ranks]
    return [_part(list(range(i, min(n, i+bs)))) for i in range(0, n, bs)]

class Given:
    "A loader of the batches that are given."
    def __init__(self, xs, indices): self.xs,self.indices,self.bs = xs,indices,max(map(len, indices), default=0)
    def __iter__(self): return (tuple(x[i] for x in self.xs) for i in self.indices)
    def __len__(self): return len(self.indices)
    def to(self, device): return self

def given_learner(model, xs, indices, opt_func=SGD, **kwargs):
    "A Learner that trains on the batches that are given."
    dls = DataLoaders(Given(xs, indices), Given(xs, [list(range(8))]))
    dls.n_inp,dls.device = len(xs)-1,torch.device('cpu')
    return Learner(dls, model, CrossEntropyLossFlat(), opt_func, **kwargs)

def data(n=48, shape=(4,6,6), dtype=torch.float32):
    "Inputs of different sizes, which are others in the two halves of a batch of 8, and what is to be said of them."
    g,sizes = torch.Generator().manual_seed(1),torch.linspace(.2, 3, shape[0])
    each = torch.stack([sizes if i%8<4 else 1.1*sizes.flip(0) for i in range(n)])
    x = torch.randn(n, *shape, generator=g)*each.view(n, -1, *[1]*(len(shape)-1))
    return x.to(dtype),(x.flatten(1).sum(1)>0).long()

class Weights(Callback):
    "All weights after each batch, once all callbacks are done with it: as a digest, or themselves."
    order = 90
    def __init__(self, whole=False): self.whole = whole
    def before_fit(self): self.seen = []
    def after_batch(self):
        if not self.training: return
        ps = [p.detach().clone() for p in unwrapped(self.model).parameters()]
        self.seen.append(ps if self.whole else digest([*ps, *[p.grad for p in unwrapped(self.model).parameters() if p.grad is not None]]))

def cnn(norm=True):
    def _block(i, o): return [nn.Conv2d(i, o, 3, padding=1), *([nn.BatchNorm2d(o)] if norm else []), nn.ReLU()]
    return nn.Sequential(*_block(4, 8), *_block(8, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 2))
def mlp(norm=True):
    def _block(i, o): return [nn.Linear(i, o), *([nn.BatchNorm1d(o)] if norm else []), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *_block(144, 16), *_block(16, 12), nn.Linear(12, 2))

def fit(learn, n, *cbs, **kwargs):
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit(n, .05, cbs=list(cbs), **kwargs)
    return learn

def shared_dls():
    ds = list(zip(*data(52)))
    return DataLoaders.from_dsets(ds[:44], ds[44:], bs=4, num_workers=0, device='cpu', shuffle=True)

def shared(rank, *cbs, model=None, n=2, folder=None):
    "A fit with fastai's `DistributedTrainer`: weights after each batch, and what is left in the learner."
    set_seed(0)
    model = model or cnn()
    set_seed(rank)
    learn,seen = Learner(shared_dls(), model, CrossEntropyLossFlat(), Adam, path=folder or '.'),Weights()
    fit(learn, n, *cbs, seen, shared_trainer())
    return learn,(seen.seen, [tuple(p.shape) for p in learn.model.parameters()], learn.dls.one_batch()[0].shape, type(learn.dls.train).__name__)
