"""Every architecture with zeros made in four ways, condensed; and a handful of them by torch-pruning and simplify.
Writes results/condense_architectures.csv and results/condense_peers.csv.

    python benchmarks/condense.py [--quick] [--short] [--peers] [names ...]

Takes an hour on two cores; `--short` takes the shortened networks of the tests, `--peers` is the second table alone. If names are given, only the rows
of these networks are made anew, in the first table or with `--peers` in the second; each row says with which commit it was made."""
import json, multiprocessing, os, subprocess
from copy import deepcopy
from concurrent.futures import ProcessPoolExecutor, as_completed
from time import perf_counter
import pandas as pd
from peers import *
from support.zeros import cast, pairs, ways, zeroed
from support.zoo import chains, classifiers, families, giants, network, segmenters

workers = int(os.environ.get('WORKERS', 2))
names = [a for a in sys.argv[1:] if a[0]!='-']
compared = 'resnet18 resnet50 vgg16_bn mobilenet_v2 densenet121 efficientnet_b0 shufflenet_v2_x1_0 convnext_tiny swin_t vit_b_16'.split()

def main_reason(kept):
    "Why most of what is dead stayed."
    by_reason = {}
    for k in kept: by_reason[k['reason']] = by_reason.get(k['reason'], 0) + k['units']
    return max(by_reason, key=by_reason.get, default='')

def row(name, way, short):
    "Condense a network in double precision, and compare the outputs in both; what fails is told."
    torch.set_num_threads(1)
    res = dict(network=name, way=way, short=short or name in giants)
    try:
        model,x = network(name, short)
        model = cast(zeroed(model, x, way), torch.float64)
        start = perf_counter()
        c = Condenser(model, x.double()).condense()
        seconds,r = perf_counter()-start,c.report
        xs = [images(3, s, torch.float64) for s in (x.shape[-1], x.shape[-1]+32)]
        double,single = [*pairs(model, c, xs)],[*pairs(model, c, [x.float() for x in xs])]
        res.update(parameters=r.params_before, left=r.params_after, share=r.params_after/r.params_before, macs=r.macs_before)
        res.update(macs_share=r.macs_after/r.macs_before, sizes=len(double), seconds=seconds)
        res.update(error_double=max(gap(*o) for o in double), error_single=max(gap(*o) for o in single),
            dense_single=max(gap(a, b) for (a,_),(b,_) in zip(double, single)))
        res.update(dead_kept=sum(k['units'] for k in r.kept), main_reason=main_reason(r.kept))
    except Exception as e: res['failure'] = f'{type(e).__name__}: {str(e)[:200]}'
    return res

def peer(name, way, method):
    "Give a network with zeros to a method; prints a line of JSON."
    torch.set_num_threads(1)
    side = network(name)[1].shape[-1]
    model = zeroed(network(name, name=='vit_b_16')[0], images(2, side), way)
    dense = deepcopy(model)
    start = perf_counter()
    small = methods[method](model, images(2, side))
    seconds = perf_counter()-start
    res = dict(share=n_left(small)/n_left(dense), error=difference(dense, small, side), error_at_another_size=difference(dense, small, side+32))
    print(json.dumps(dict(seconds=seconds, **res)))

def peers():
    "Each method in a process of its own, that ends after two minutes."
    for name in compared[:2] if quick else names or compared:
        for way in ('independent','coupled'):
            for method in methods:
                if 'verify' in method: continue
                try:
                    run = subprocess.run([sys.executable, __file__, '--peer', name, way, method], capture_output=True, text=True, timeout=120)
                    res = json.loads(run.stdout.splitlines()[-1]) if run.returncode==0 else dict(failure=run.stderr.strip().splitlines()[-1][:200])
                except subprocess.TimeoutExpired: res = dict(failure='over 120 s')
                yield dict(network=name, way=way, method=method, **res)

def best(df):
    "For each network and way the smallest share that each library gets right."
    df = df.assign(library=df.method.str.split(',').str[0], right=df.share.where(df.error<=1e-5))
    return df.pivot_table(index=['network','way'], columns='library', values='right', aggfunc='min', sort=False).reset_index()

def architectures():
    "All networks, two at a time."
    nets = names or (compared[:2] if quick else [*classifiers, *segmenters, *families])
    todo = [(n,w,'--short' in sys.argv) for n in nets for w in ways if not (w=='blocks' and n in chains)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context('spawn')) as pool:
        for f in as_completed([pool.submit(row, *o) for o in todo]):
            r = f.result()
            print(' '.join(f'{k}={v:.3g}' if isinstance(v, float) else f'{k}={v}' for k,v in r.items() if k!='short'), flush=True)
            yield r

def main():
    if '--peer' in sys.argv: return peer(*sys.argv[-3:])
    if '--peers' not in sys.argv:
        df = renewed(pd.DataFrame(architectures()).assign(**versions()), 'condense_architectures', names)
        order = {n:i for i,n in enumerate([*classifiers, *segmenters, *families, *ways])}
        write(df.sort_values(['network','way'], key=lambda c: c.map(order)), 'condense_architectures')
        print(f"\n{len(df)} cases, {int(df.get('failure', pd.Series(dtype=str)).notna().sum())} failures; largest error {df.error_double.max():.1e} in double, "
            f"{df.error_single.max():.1e} in single precision; longest {df.seconds.max():.1f} s\n")
        if names: return
    df = renewed(pd.DataFrame(peers()).assign(**versions()), 'condense_peers', names)
    write(df, 'condense_peers')
    print('\nParameters left in the best case that is right:', best(df).to_string(index=False, float_format='{:.4f}'.format), sep='\n')

if __name__=='__main__': main()
