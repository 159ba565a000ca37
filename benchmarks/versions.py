"""This version beside an earlier one in one run: a masked step, condensing, and the latency of the small network, as ratios of processor seconds of one thread.

    python benchmarks/versions.py PATH [--runs 5]

`PATH` is a checkout of the earlier version. Runs are taken in turn, each in a process of its own. Writes results/versions.csv."""
import json, os, subprocess, sys
from pathlib import Path
from statistics import median
from time import process_time

root = Path(__file__).resolve().parent.parent

def timed(f, n):
    "Median processor seconds of `n` calls."
    times = []
    for _ in range(n):
        start = process_time()
        f()
        times.append(process_time()-start)
    return median(times)

def network():
    import torch, torchvision
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return torchvision.models.resnet18(num_classes=10)

def step(granularity, context):
    "Seconds of a step of training, plain and masked, of ResNet-18 on images of 32 pixels."
    import torch
    from fastai.basics import Callback, CrossEntropyLossFlat, Learner
    from fasterprune.all import SparsifyCallback, tensor_dls
    x,y = torch.randn(32*24, 3, 32, 32),torch.randint(0, 10, (32*24,))
    class Steps(Callback):
        def before_batch(self): self.start = process_time()
        def after_batch(self):
            if self.training: times.append(process_time()-self.start)
    found = {}
    for name,cbs in (('plain',[]), ('masked',[SparsifyCallback(.9 if granularity=='weight' else .5, granularity, context)])):
        times = []
        learn = Learner(tensor_dls((x, y), (x[:32], y[:32]), bs=32), network(), loss_func=CrossEntropyLossFlat())
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3, cbs=[Steps(), *cbs])
        found[name] = median(times[4:])
    return found

def condensing():
    "Seconds to condense ResNet-18 with half of its filters zero, and the latency of what comes out."
    import torch
    from fasterprune.all import Condenser, Sparsifier
    model,x = network().eval(),torch.randn(2, 3, 64, 64)
    Sparsifier(model, 'filter', sample=x).sparsify(.5)
    Condenser(model, x).condense()
    seconds = timed(lambda: Condenser(model, x).condense(), 5)
    small = Condenser(model, x).condense().model
    with torch.no_grad(): return dict(condense=seconds, latency=timed(lambda: small(x), 40))

def all_figures():
    return dict(**{f'step, {g}, {k}':v for g,c in (('weight','global'), ('filter','local')) for k,v in step(g, c).items()}, **condensing())

# what is freed is kept: else whether memory comes anew from the system, which is up to chance, changes a step by a third
_allocator = dict(MALLOC_MMAP_THRESHOLD_=str(2**32), MALLOC_TRIM_THRESHOLD_=str(2**34))

def measured(path):
    env = dict(os.environ, PYTHONPATH=str(path), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', **_allocator)
    out = subprocess.run([sys.executable, __file__, '--run'], env=env, cwd=path, capture_output=True, text=True)
    if out.returncode: raise RuntimeError(out.stderr[-2000:])
    return json.loads(out.stdout.splitlines()[-1])

def main():
    import pandas as pd
    from condense_size import about_run, code_of
    if sys.argv[1:] in ([], ['--quick']): return print(__doc__) # there is nothing to compare with
    other,n = Path(sys.argv[1]).resolve(),int(sys.argv[sys.argv.index('--runs')+1]) if '--runs' in sys.argv else 5
    runs = [(measured(root),measured(other)) for _ in range(n)]
    def _row(k):
        new,old = [r[0][k] for r in runs],[r[1][k] for r in runs]
        ratios = sorted(a/b for a,b in zip(new, old))
        return dict(what=k, seconds=median(new), seconds_before=median(old), ratio=median(ratios), lowest=ratios[0], highest=ratios[-1])
    df = pd.DataFrame([_row(k) for k in runs[0][0]]).assign(runs=n, **code_of(root), commit_before=code_of(other)['commit'], **about_run())
    print(df[['what','seconds','seconds_before','ratio','lowest','highest']].round(3).to_string(index=False))
    df.to_csv(root/'results'/'versions.csv', index=False, float_format='%.4g')

if __name__=='__main__': print(json.dumps(all_figures())) if '--run' in sys.argv else main()
