"""The most memory that a fit takes with the callback against without: each fit in a process of its own, three times in turn. Writes results/memory.csv. Three minutes; `--quick`: one.

The network has two layers of 16 million weights, so that it outweighs everything else. `bytes_per_weight` is what the callback takes for each weight that it may zero. On a
CPU the high-water mark of the process is read, with `--device cuda` that of the allocator.
"""
import json
from fastai.basics import *
from fastai.callback.all import *
from peers import *

gpu = 'cuda' in sys.argv
device,side,bs,steps = 'cuda' if gpu else 'cpu',2000 if quick else 4000,8,10
cases = {'plain':lambda: [], 'weight':lambda: [SparsifyCallback(.9)], 'weight, local':lambda: [SparsifyCallback(.9, context='local')],
    'neuron':lambda: [SparsifyCallback(.5, 'neuron')], 'weight, movement':lambda: [SparsifyCallback(.9, criterion='movement')]}

def peak(case):
    "Run a fit, and print the most memory that it took, in bytes."
    torch.set_num_threads(1)
    x,y = torch.randn(bs*steps, side),torch.randint(0, 10, (bs*steps,))
    model = nn.Sequential(nn.Linear(side, side), nn.ReLU(), nn.Linear(side, side), nn.ReLU(), nn.Linear(side, 10)).to(device)
    learn = Learner(tensor_dls((x, y), (x[:bs], y[:bs]), bs=bs, device=device), model, loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(5, 1e-3, cbs=cases[case]())
    if gpu: return torch.cuda.max_memory_allocated()
    return next(1024*int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))

def main():
    found = {c:[] for c in cases}
    for _ in range(1 if quick else 3):
        for c in cases:
            run = subprocess.run([sys.executable, __file__, '--peak', c, *sys.argv[1:]], capture_output=True, text=True, check=True, env={**os.environ, 'MALLOC_ARENA_MAX':'1'})
            found[c].append(json.loads(run.stdout.splitlines()[-1]))
    n,plain = 2*side*side + 10*side,pd.Series(found['plain']).median()
    rows = [dict(case=c, weights=n, peak_mb=pd.Series(m).median()/1e6, lowest_mb=min(m)/1e6, highest_mb=max(m)/1e6, extra_mb=(pd.Series(m).median()-plain)/1e6,
        bytes_per_weight=(pd.Series(m).median()-plain)/n, over_plain=pd.Series(m).median()/plain, runs=len(m)) for c,m in found.items()]
    write(pd.DataFrame(rows), 'memory'+'_cuda'*gpu)

if __name__=='__main__':
    if '--peak' in sys.argv: print(peak(sys.argv[sys.argv.index('--peak')+1]))
    else: main()
