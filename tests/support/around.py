"Small networks around one operation, condensed and compared."
import torch
from fasterprune.all import *
from support.fuzz_nets import Model
from support.nets import gap

def condensed(net, *xs, verify=False, **kwargs):
    "Condense, and compare at other batch sizes and at another resolution if the network takes one."
    c = Condenser(net, xs if len(xs)>1 else xs[0], **kwargs).condense(verify=verify)
    for n,more in ((2,0), (3,0), (1,2)):
        batch = [torch.randn(n, x.shape[1], *[s+more for s in x.shape[2:]], dtype=x.dtype) if x.is_floating_point() else x[torch.arange(n)%len(x)] for x in xs]
        try: net(*batch)
        except (RuntimeError, ValueError): continue
        assert gap(net, c, *batch) <= 1e-10
    assert gap(net, c, *xs) <= 1e-10
    return c

def doubled(f, **parts): return Model(f, **parts).double().eval()

def randn(*shape): return torch.randn(*shape, dtype=torch.float64)

def widths(c, *names): return [len(c.model.get_submodule(n).weight) for n in names]
