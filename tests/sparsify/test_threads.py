"Masks on all of torch's threads: the same to the bit as on one, whatever the weights are like, with no threads of our own; and on a GPU nothing is waited for."
import os, threading, time

import pytest, torch
from torch import nn
from fasterprune.all import *
from fasterprune.core.threads import openmp, on_threads
from fasterprune.sparsify import workspace

@pytest.fixture(params=[1,2,3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)

def net(seed=0):
    "More than a million weights, so that threads are worth it; many equal scores in one layer."
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1100, 700), nn.ReLU(), nn.Linear(700, 700), nn.ReLU(), nn.Linear(700, 400))
    with torch.no_grad(): model[2].weight.mul_(200).round_().div_(200)
    return model

def masks_of(model, granularity, context, changes=(), steps=(.2,.21,.5,.9)):
    "Masks and weights after each of some updates, between which the weights move."
    for change in changes: change(model)
    sp = Sparsifier(model, granularity, context, coupled=granularity=='weight', layers='*')
    g,found = torch.Generator().manual_seed(1),[]
    for s in steps:
        with torch.no_grad():
            for p in model.parameters(): p.add_(torch.randn(p.shape, generator=g), alpha=1e-3)
        sp.update(s)
        for p in model.parameters(): p.grad = torch.ones_like(p)
        sp.apply_grad()
        for n,m in sp.masks.items(): assert torch.equal(sp.params[n].grad!=0, m.expand_as(sp.params[n]))
        found += [m.clone() for m in sp.masks.values()] + [p.detach().clone() for p in model.parameters()]
    return found

expected = {}

@pytest.mark.parametrize('numba', [True,False])
@pytest.mark.parametrize('granularity,context', [('weight','global'), ('weight','local'), ('neuron','local'), ('feature','global'), ('block','global')])
def test_the_same_on_any_number_of_threads(n_threads, granularity, context, numba, monkeypatch):
    "With and without Numba; only sums over rows may be added in another order by it, which decides nothing here."
    if numba: pytest.importorskip('numba', reason='Numba is not installed')
    else: monkeypatch.setattr(workspace, 'compiled', lambda: None)
    found = masks_of(net(), granularity, context)
    wanted = expected.setdefault((granularity,context), found)
    assert all(torch.equal(a, b) for a,b in zip(found, wanted, strict=True))

def turned(model):
    "Weights whose memory is that of their transpose."
    for m in model[::2]: m.weight.data = m.weight.data.t().contiguous().t()

def shared(model):
    "Two layers with one weight."
    model.append(nn.ReLU())
    model.append(nn.Linear(700, 700))
    model.insert(3, nn.Linear(700, 700))
    model[3].weight = model[2].weight
    del model[-2:]

@pytest.mark.parametrize('change', [turned,shared,lambda m: m.double(),lambda m: m.bfloat16(),lambda m: m.half()],
    ids=['turned','shared','float64','bfloat16','float16'])
def test_other_weights(n_threads, change):
    "Exact counts, and on each number of threads the same, where the compiled loops do not fit."
    found = masks_of(net(), 'weight', 'global', [change])
    wanted = expected.setdefault(getattr(change, '__name__', '') + str(found[0].shape) + str(found[-1].dtype), found)
    assert all(torch.equal(a, b) for a,b in zip(found, wanted, strict=True))
    model = net()
    change(model)
    n = sum(p.numel() for p in model.parameters() if p.ndim>1)
    Sparsifier(model, layers='*').sparsify(.7)
    assert sum(int((p==0).sum()) for p in model.parameters() if p.ndim>1)==round(.7*n)

def test_turned_weights_die_as_others():
    "The order of the elements in memory decides nothing but which of equal ones go."
    a,b = net(),net()
    turned(b)
    for m in (a,b):
        with torch.no_grad(): m[2].weight.copy_(torch.randn(700, 700, generator=torch.Generator().manual_seed(3))) # no equal ones
        Sparsifier(m, layers='*').sparsify(.6)
    assert all(torch.equal(p, q) for p,q in zip(a.parameters(), b.parameters()))

@pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='the system does not list threads')
def test_no_threads_of_our_own():
    "What runs on several threads runs on those that torch has made."
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        if openmp() is None: pytest.skip('torch computes without OpenMP here')
        x = torch.randn(3000, 1000)
        for _ in range(3): x = x.exp().log()
        there = set(os.listdir('/proc/self/task'))
        used = set()

        def work(i, thread):
            used.add((thread, threading.get_native_id()))
            time.sleep(.02) # lets go of Python's lock, so that the others come in
        on_threads(work, 12)
        assert {str(i) for _,i in used} <= there and len({i for _,i in used})==3
        assert set(os.listdir('/proc/self/task')) <= there
    finally: torch.set_num_threads(before)

def test_an_error_on_a_thread_is_raised(n_threads):
    "After all have ended."
    done = []
    def work(i, thread):
        if i==1: raise ValueError('the second')
        done.append(i)
    with pytest.raises(ValueError, match='the second'): on_threads(work, 4)
    on_threads(lambda i, thread: done.append(i), 4)
    assert done[-4:] and set(done[-4:])=={0,1,2,3}

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('granularity,context', [('weight','global'), ('filter','local'), ('2:4','local')])
def test_a_gpu_is_not_waited_for(granularity, context):
    "torch itself raises an error where a step would wait."
    model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(2304, 10)).cuda()
    x = torch.randn(2, 4, 16, 16, device='cuda')
    sp = Sparsifier(model, granularity, context, layers=[nn.Conv2d], sample=x)
    sp.update(.1)
    for p in model.parameters(): p.grad = torch.ones_like(p)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for s in (.2,.3,.4):
            sp.update(s)
            sp.apply()
            sp.apply_grad()
    finally: torch.cuda.set_sync_debug_mode('default')
    assert sp.sparsity()==pytest.approx(.4, abs=.05)
