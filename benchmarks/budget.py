"""Forty networks, each within {.75, .5, .25} of its multiply-accumulates, and of its parameters, with units that compete in all layers and in their own.
Writes results/budget.csv, row by row: what is there already stays.

    python benchmarks/budget.py [--quick] [names ...]

For each: what was predicted, what condensing a copy has left, with outputs compared, and the least that would be left if one unit more lived. Where a budget is below what is possible, the least. Some hours on one core."""
import math, sys, warnings
from time import perf_counter

warnings.simplefilter('ignore')
import torch
from fasterprune.all import *
from fasterprune.sparsify import BudgetSearch
from fasterprune.studies.study import Appender

from rows import circumstances, quick, root, table_of
sys.path.insert(0, str(root/'tests')) # the networks of the tests
from support.zoo import network

by_filter = '''resnet18 resnet50 wide_resnet50_2 resnext50_32x4d vgg11_bn vgg16 alexnet mobilenet_v2 mobilenet_v3_small mnasnet0_5 shufflenet_v2_x0_5 squeezenet1_1 densenet121
    googlenet efficientnet_b0 efficientnet_v2_s regnet_y_400mf regnet_x_400mf inception_v3 res2net50_14w_8s seresnet18 skresnet18 resnest14d ese_vovnet19b_slim_dw dla46_c ghostnet_050
    mobileone_s0 repvgg_a0 hrnet_w18_small dpn48b rexnet_100 xception41'''.split()
by_neuron = 'vit_b_16 swin_t swin_v2_t convnext_tiny mixer_s32_224 deit_tiny_distilled_patch16_224 beit_base_patch16_224 gmlp_ti16_224'.split()

def one_more(search, dead, kind, n=8):
    "The least that is left if one more unit lives, of those groups whose units cost least by their weights."
    costs = [float(c[d].min()) if d.any() else math.inf for c,d in zip(search.unit_costs(dead)[kind], dead)]
    def _left(i):
        more = [d.clone() for d in dead]
        more[i][dead[i].nonzero()[0]] = False
        return search.left(more)[kind]
    return min([_left(i) for i in sorted(range(len(dead)), key=costs.__getitem__)[:n] if dead[i].any()], default='')

def row(cell):
    "What comes of it if a network is asked for what its cell of the table says."
    name,granularity,context,kind,share = cell.values()
    found = dict(cell)
    torch.manual_seed(0)
    model,x = network(name)
    start = perf_counter()
    try:
        sp,budget = Sparsifier(model, granularity, context, sample=x),Budget(**{kind:share})
        search = BudgetSearch(sp, budget)
        found.update(whole=search.whole[kind], limit=search.limits[kind])
        try: dead = search.find()
        except ValueError as e:
            if 'but the least' not in str(e): raise
            return dict(found, least=search.left(search.dead_at(search.last))[kind], asked=search.asked, seconds=round(perf_counter()-start, 2))
        found.update(predicted=search.left(dead)[kind], asked=search.asked, one_more=one_more(search, dead, kind))
        sp.sparsify(budget)
        found.update(seconds=round(perf_counter()-start, 2), reached=round(sp.reached, 4))
        r = Condenser(model, x).condense().report
        return dict(found, counted=dict(macs=r.macs_after, params=r.params_after)[kind], error=f'{r.max_error:.1e}')
    except Exception as e: return dict(found, failure=f'{type(e).__name__}: {str(e)[:200]}')

def main():
    names = [a for a in sys.argv[1:] if a[0]!='-'] or [*by_filter,*by_neuron]
    table = table_of('budget', 'network granularity context budget share', 'limit predicted counted one_more least whole error reached asked seconds failure seed')
    done = set(map(table.key, table.rows()))
    with Appender(table, table.path) as append:
        for name in names[:2] if quick else names:
            for kind,share,context in [(k, s, c) for k in ('macs','params') for s in (.75,.5,.25) for c in ('global','local')]:
                cell = dict(network=name, granularity='neuron' if name in by_neuron else 'filter', context=context, budget=kind, share=share)
                if table.key(cell) in done: continue
                r = row(cell)
                print(r, flush=True)
                append({**dict.fromkeys(table.columns, ''), **r, 'seed':0, **circumstances('timm')})

if __name__=='__main__':
    torch.set_num_threads(1)
    main()
