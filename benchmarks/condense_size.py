"""Time and memory to condense large networks, half of whose hidden neurons are zero: processor seconds of one thread, each run in a process of its own.

`--against PATH` measures another checkout of the package in turn with this one, `--runs 3` how often. Writes results/condense_size.csv."""
import json, os, subprocess, sys, threading
from pathlib import Path
from statistics import median
from time import process_time

root = Path(__file__).resolve().parent.parent
networks = dict(resnet50=64, convnext_large=224, vit_l_16=224)

def network(name):
    "A network of torchvision with random weights, half of the neurons of each MLP or of the filters of each block zero, and two images."
    import torch, torchvision
    from torch import nn
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torchvision.models.get_model(name, weights=None).eval()
    if name=='vit_l_16': nn.init.normal_(model.heads.head.weight, std=.02) # is zero at first
    first = dict(vit_l_16=('mlp.0',), convnext_large=('block.3',)).get(name, ('conv1','conv2'))
    with torch.no_grad():
        for n,m in model.named_modules():
            if n.count('.')>1 and n.endswith(first):
                for p in m.parameters(): p[:len(p)//2] = 0
    return model,torch.randn(2, 3, networks[name], networks[name])

def timed(f):
    start = process_time()
    out = f()
    return out,process_time()-start

def peak(f):
    "What `f` gives, and by how many bytes memory was more than before at its peak."
    def _resident(): return int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')
    before,seen,done = _resident(),[0],threading.Event()
    def _watch():
        while not done.wait(.002): seen.append(_resident())
    watcher = threading.Thread(target=_watch)
    watcher.start()
    try: out = f()
    finally:
        done.set()
        watcher.join()
    return out,max(seen)-before

def times(name):
    "Seconds of each part, and of the float64 passes of both networks that the verification needs."
    import torch
    from copy import deepcopy
    from fastcore.basics import tuplify
    from fasterprune.all import Condenser
    try: from fasterprune.condense import Reference
    except ImportError: from fasterprune.verify import Reference # of version 0.1
    model,x = network(name)
    Condenser(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.randn(2, 2)).condense() # imports
    c,edit = timed(lambda: Condenser(model, x).condense(verify=False))
    def _verify():
        reference = Reference(model, x)
        return reference,reference.error(c.model, c.inputs)
    (reference,error),verification = timed(_verify)
    c,everything = timed(lambda: Condenser(model, x).condense())
    dense,small,xs = deepcopy(model).double(),deepcopy(c.model).double(),[xs for xs,_ in reference.cases]
    calls = [(m,tuplify(c.inputs(*x)) if m is small else x) for x in xs for m in (dense,small)]
    with torch.no_grad(): passes = sum(timed(lambda: m(*x))[1] for m,x in calls)
    items,r = ' '.join(f'{len(x[0])}x{x[0].shape[-1]}' for x in xs),c.report
    return dict(analysis_and_edit=edit, verification=verification, passes=passes, seconds=everything, over_passes=verification/passes,
        items=items, error=r.max_error, params=r.params_before, left=r.params_after)

def memory(name):
    "Peak memory beyond that of the model, over it."
    from fasterprune.all import Condenser
    model,x = network(name)
    own = sum(p.numel()*p.element_size() for p in model.parameters())
    return dict(memory_beyond=peak(lambda: Condenser(model, x).condense())[1]/own)

def one(what, name): print(json.dumps(globals()[what](name)))

def measured(path, what, name):
    "A run of this file with the package of the checkout at `path`."
    env = dict(os.environ, PYTHONPATH=str(path), OMP_NUM_THREADS='1')
    out = subprocess.run([sys.executable, __file__, '--run', what, name], env=env, cwd=path, capture_output=True, text=True)
    if out.returncode: raise RuntimeError(out.stderr[-2000:])
    return json.loads(out.stdout.splitlines()[-1])

def code_of(path):
    "The commit of a checkout, and a caveat."
    from fasterprune.studies.circumstances import commit_of
    return dict(zip(('commit','caveat'), commit_of(str(path))))

def about_run():
    "All circumstances but the code, which differs from row to row."
    from fasterprune.studies.circumstances import circumstances
    return dict(seed=0, **{k:v for k,v in circumstances('torchvision', threads=1).items() if k not in ('commit','caveat','fasterprune')})

def rows(paths, names, n):
    for name in names:
        runs = {p:[] for p in paths}
        for _ in range(n):
            for p in paths: runs[p].append(measured(p, 'times', name))
        for p in paths:
            numbers = {k:median(r[k] for r in runs[p]) if isinstance(v, (int,float)) else v for k,v in runs[p][0].items()}
            yield dict(network=name, side=networks[name], **numbers, **measured(p, 'memory', name), runs=n, **code_of(p))
            print(name, code_of(p), numbers, flush=True)

if __name__=='__main__':
    if '--run' in sys.argv: one(*sys.argv[-2:])
    else:
        import pandas as pd
        def _option(name, default=None): return sys.argv[sys.argv.index(name)+1] if name in sys.argv else default
        quick,other = '--quick' in sys.argv,_option('--against')
        paths = [root] + ([Path(other).resolve()] if other else [])
        names = [a for a in sys.argv[1:] if a in networks] or (['resnet50'] if quick else [*networks])
        df = pd.DataFrame(rows(paths, names, int(_option('--runs', 1 if quick else 3)))).assign(**about_run())
        print(df.T)
        path = root/'results'/'condense_size.csv'
        if path.exists():
            old = pd.read_csv(path)
            df = pd.concat([old[~(old.network.isin(names) & old.commit.isin(df.commit))], df])
        if not quick: df.to_csv(path, index=False, float_format='%.6g')
