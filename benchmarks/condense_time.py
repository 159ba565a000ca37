"""Time to condense, by torch-pruning and simplify on the same channels, too: interleaved runs in processor seconds, one thread.
Writes results/condense_time.csv; if names of networks are given, only their rows are made anew."""
import itertools
from copy import deepcopy
from statistics import median
from time import process_time
import pandas as pd
from peers import *
from support.zeros import zeroed
from support.zoo import network

names = [a for a in sys.argv[1:] if a[0]!='-']

def seconds(model, x, way, limit, at_least):
    "For each method its times, in turn, on fresh copies of `model`; without those that fail."
    times = {k:[] for k in methods if not k.startswith('torch-pruning') or k==rival[way]}
    end = process_time()+limit
    while times and (process_time() < end or len(min(times.values(), key=len)) < at_least):
        for name in [*times]:
            net = deepcopy(model)
            start = process_time()
            try: methods[name](net, x)
            except Exception as e:
                print(f'{name} fails: {type(e).__name__} {str(e)[:100]}')
                del times[name]
                continue
            times[name].append(process_time()-start)
    return {k:ts[len(ts)>2:] for k,ts in times.items()} # the first run warms up

rival = dict(coupled='torch-pruning, zero shifts', independent='torch-pruning, zero weights') # what it does with the latter is wrong, but it takes its time

def rows():
    for name,way in itertools.product(['resnet18'] if quick else names or ['resnet18','resnet50','vgg16_bn','mobilenet_v2','densenet169'], rival):
        model = zeroed(network(name, short=False)[0], images(2, 64), way)
        times = seconds(model, images(2, 64), way, 5 if quick else 10, 3)
        peer = median(times.get(rival[way], [float('nan')]))
        for method,ts in times.items():
            times_of = dict(seconds=median(ts), least=min(ts), most=max(ts), runs=len(ts), over_torch_pruning=median(ts)/peer)
            yield dict(network=name, way=way, side=64, method=method, **times_of)
            print(name, way, method, f'{median(ts):.2f} s', flush=True)

if __name__=='__main__':
    torch.set_num_threads(1)
    write(renewed(pd.DataFrame(rows()).assign(**versions()), 'condense_time', names), 'condense_time')
