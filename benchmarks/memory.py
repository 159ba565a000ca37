"""The most memory that a fit takes with the callback against without: each fit in a process of its own. Writes results/memory.csv. Ten minutes; `--quick`: three.

The network has two layers, of 25 million weights each, and once more of 9: large enough for the peak to be in a step, and not where the program starts. `bytes_per_weight` is what the callback takes for each weight that it may zero: what it takes more
of the large network than of the small one, over the number of weights that that one has more. What it takes for any network (code that is loaded, the graph) is so left out, and is in `extra_mb`. On a
CPU the high-water mark of the process is read, with `--device cuda` that of the allocator; large pieces of memory go straight back to the system (`MALLOC_MMAP_THRESHOLD_`), for
what the allocator keeps for later differs by hundreds of megabytes from run to run.
"""
import json, os, subprocess
from fastai.basics import *
from fastai.callback.all import *
from peers import *

gpu = 'cuda' in sys.argv
device,sides,bs,steps,runs = 'cuda' if gpu else 'cpu',(1000,2000) if quick else (3000,5000),8,10,1
cases = {'plain':lambda: [], 'weight':lambda: [SparsifyCallback(.9)], 'weight, local':lambda: [SparsifyCallback(.9, context='local')],
    'neuron':lambda: [SparsifyCallback(.5, 'neuron')], 'weight, movement':lambda: [SparsifyCallback(.9, criterion='movement')]}

def peak(case, side):
    "Run a fit, and print the most memory that it took, in bytes."
    torch.set_num_threads(1)
    x,y = torch.randn(bs*steps, side),torch.randint(0, 10, (bs*steps,))
    model = nn.Sequential(nn.Linear(side, side), nn.ReLU(), nn.Linear(side, side), nn.ReLU(), nn.Linear(side, 10)).to(device)
    learn = Learner(tensor_dls((x, y), (x[:bs], y[:bs]), bs=bs, device=device), model, loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(5, 1e-3, cbs=cases[case]())
    if gpu: return torch.cuda.max_memory_allocated()
    return next(1024*int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))

def main():
    found = {(c,side):[] for side in sides for c in cases}
    for _ in range(runs):
        for c,side in found:
            env = {**os.environ, 'MALLOC_ARENA_MAX':'1', 'MALLOC_MMAP_THRESHOLD_':'65536'}
            run = subprocess.run([sys.executable, __file__, '--peak', c, str(side), *sys.argv[1:]], capture_output=True, text=True, check=True, env=env)
            found[c,side].append(json.loads(run.stdout.splitlines()[-1]))
    peaks = {k:pd.Series(v).median() for k,v in found.items()}
    small,large = (2*s*s + 10*s for s in sides)
    def _extra(c, side): return peaks[c,side]-peaks['plain',side]
    rows = [dict(case=c, weights=2*s*s + 10*s, peak_mb=peaks[c,s]/1e6, lowest_mb=min(m)/1e6, highest_mb=max(m)/1e6, extra_mb=_extra(c, s)/1e6,
        bytes_per_weight=(_extra(c, sides[1])-_extra(c, sides[0]))/(large-small), over_plain=peaks[c,s]/peaks['plain',s], runs=len(m)) for (c,s),m in found.items()]
    write(pd.DataFrame(rows), 'memory'+'_cuda'*gpu)

if __name__=='__main__':
    if '--peak' in sys.argv:
        at = sys.argv.index('--peak')
        print(peak(sys.argv[at+1], int(sys.argv[at+2])))
    else: main()
