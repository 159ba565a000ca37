"""Speed-up over the masked dense network, of torch-pruning and simplify, too: medians of interleaved runs, one thread.
Writes results/condense_latency.csv; if names of networks are given, only their rows are made anew. Ten minutes."""
from copy import deepcopy
import pandas as pd
from peers import *
from support.zeros import zeroed
from support.zoo import network

names = [a for a in sys.argv[1:] if a[0]!='-']

def rows():
    for name in ['resnet18'] if quick else names or ['resnet18','vgg16_bn']:
        for side in [32,64] if quick else [32,64,224]:
            x = images(2, side)
            dense = zeroed(network(name, short=False)[0], x, 'coupled')
            nets = {'dense':dense}
            for method in ('fasterprune','torch-pruning, zero shifts','simplify'):
                small = methods[method](deepcopy(dense), x)
                error = difference(dense, small, side)
                if error<=1e-5: nets[method] = small
                else: print(f'{method} differs by {error:.1e} for {name} at {side} px')
            for n in (1, 8):
                batch = images(n, side)
                times = dict(zip(nets, latency([*nets.values()], [batch]*len(nets), 2 if quick else 12, 7)))
                for method,net in nets.items():
                    yield dict(network=name, side=side, batch=n, method=method, ms=1e3*times[method], speed_up=times['dense']/times[method],
                        macs_ratio=n_macs(dense, batch)/n_macs(net, batch), parameters=n_left(net), error=difference(dense, net, side))

if __name__=='__main__':
    torch.set_num_threads(1)
    write(renewed(pd.DataFrame(rows()).assign(**versions()), 'condense_latency', names), 'condense_latency')
