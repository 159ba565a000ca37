"A step costs next to nothing: the same zeros as by the slow way, found without copies of the weights, and without waiting for a GPU."
import itertools, pickle, subprocess, sys, tracemalloc

import pytest, torch
from fastai.basics import *
from torch.utils._python_dispatch import TorchDispatchMode
from fasterprune.sparsify import choosing, granularity, scoring, workspace, zeros
from fasterprune.sparsify.learners import gradients_matter
from fasterprune.sparsify.selection import Candidates, LowestAlive, row_sums
from fasterprune.sparsify.workspace import Workspace, piece, worth_compiling
from fasterprune.sparsify.zeros import Zeros
from fasterprune.all import *
from fasterprune.core.optimizer_state import DenormalGuard
from fastai.callback.training import GradientClip
from fastai.optimizer import Lamb, QHAdam, RAdam, RMSProp, ranger

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

def mlp(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 30), nn.ReLU(), nn.Linear(30, 10))

def cnn():
    def block(i, o, **kwargs): return nn.Conv2d(i, o, 3, padding=1, bias=False, **kwargs),nn.BatchNorm2d(o),nn.ReLU()
    return nn.Sequential(*block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 32, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

def learner(model=mlp, n=192, bs=32, dtype=torch.float32, **kwargs):
    set_seed(0)
    x,y = digits().train
    x = x[:n].view(-1, 1, 8, 8).to(dtype)
    return Learner(tensor_dls((x, y[:n]), (x[:bs], y[:bs]), bs=bs), model().to(dtype), loss_func=CrossEntropyLossFlat(), **kwargs)

def fit(learn, n, *cbs, lr=1e-2):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n, lr, cbs=list(cbs))
    return learn

def not_installed(): "Numba is not there."

class Watch(Callback):
    "The masks after each batch."
    order = 99
    def __init__(self, cb): self.cb,self.masks = cb,[]
    def after_batch(self):
        if self.training: self.masks.append({n:m.clone() for n,m in self.cb.sparsifier.masks.items()})

ways = [dict(sparsity=.9), dict(sparsity=.7, context='local'), dict(sparsity=.8, context='erk'), dict(sparsity={'*1':.5, '*4':.95}), dict(sparsity=.9, every=3),
    dict(sparsity=.95, min_units=20), dict(sparsity=.6, criterion='squared_final'), dict(sparsity=.6, criterion='small_final'), dict(sparsity=.9, schedule='iterative'),
    dict(sparsity=.8, schedule='dense_sparse_dense'), dict(sparsity=.9, schedule='one_shot', start_epoch=1)]

@pytest.mark.parametrize('model', [mlp,cnn])
@pytest.mark.parametrize('way', ways, ids=str)
def test_one_pass_finds_what_all_scores_find(model, way, monkeypatch):
    "The few that die at each step are those that a selection from the scores of all weights gives, after each batch, and so is the network."
    if isinstance(way['sparsity'], dict) and model is cnn: way = dict(way, sparsity={'0':.5, '*':.8})
    runs,found = [],[]
    find = choosing.IncrementalChoice.find
    for slow in (False,True):
        def _find(self, groups, k):
            f = None if slow else find(self, groups, k)
            found.append(f is not None)
            return f
        monkeypatch.setattr(choosing.IncrementalChoice, 'find', _find)
        cb = SparsifyCallback(**way)
        watch = Watch(cb)
        learn = fit(learner(model), 3, cb, watch)
        runs.append((learn.model.state_dict(), watch.masks, cb))
        for g in cb.sparsifier.groups: assert g.dead==g.n-int(g.alive.sum()) and torch.equal(cb.sparsifier.masks[g.weights[0].param].flatten(), g.alive)
        for n,m in cb.sparsifier.masks.items(): assert not (learn.model.get_parameter(n)[~m]!=0).any()
    (a,masks_a,cb),(b,masks_b,_) = runs
    assert any(found) or 'min_units' in way
    assert all(torch.equal(p[n], q[n]) for p,q in zip(masks_a, masks_b) for n in p)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert cb.sparsifier.reached==pytest.approx(cb.sparsifier.sparsity(), abs=1e-12) or 'dense' in way.get('schedule', '')

def chosen(found, n_tensors=1):
    "For each tensor the places of the lowest scores that have been found."
    at = [[] for _ in range(n_tensors)]
    for share,(ends,places,values) in zip(found.shares, found.found):
        for (t,start,_),i,j in zip(share, ends, ends[1:]): at[t].append(start + places[i:j][values[i:j]<=found.threshold])
    return [np.concatenate(a) if a else np.empty(0, int) for a in at]

def test_the_bound_may_be_wrong():
    "Weights that the sample misses altogether: the smallest are where it does not look."
    n = 1<<17
    w = torch.rand(n)+1
    step = n//(1<<14)
    hidden = torch.arange(n)%step!=0
    w[hidden.nonzero()[:4000,0]] *= 1e-3
    alive = torch.ones(n, dtype=torch.bool)
    for k in (1,3999,4000,4001,n//2,n-1,n):
        found = LowestAlive().find([w], [alive], k)
        at, = chosen(found)
        assert len(at)==k and found.leaves([k]) and not found.leaves([k-1])
        assert np.array_equal(at, w.argsort(stable=True)[:k].sort().values)

def test_where_the_last_ones_were_may_mislead(monkeypatch):
    "A search is exact whatever has become of the weights since it last looked: larger, smaller, drifted, or all the same."
    g = torch.Generator().manual_seed(0)
    w,alive = torch.randn(40_000, generator=g),torch.ones(40_000, dtype=torch.bool)
    search,bounds = LowestAlive(),[]
    look = Candidates.look
    monkeypatch.setattr(Candidates, 'look', lambda self, bound, room: (bounds.append(bound), look(self, bound, room))[1])
    def _drift(w): return w+.01*torch.randn(w.shape, generator=g)
    changes = [lambda w: w]*6 + [lambda w: 100*w, lambda w: w/100, _drift, torch.sign, lambda w: w*torch.rand(w.shape, generator=g)]
    for k in (1, 50, 3000):
        for i,change in enumerate(changes):
            w = change(w)
            n = len(bounds)
            at, = chosen(search.find([w], [alive], k))
            scores = torch.where(alive, w.abs(), torch.inf)
            assert np.array_equal(at, scores.argsort(stable=True)[:k].sort().values), (k, i)
            if 0<i<6: assert len(bounds)==n+1 # nothing has moved: one pass
            alive[at] = False
    assert torch.inf not in bounds

@pytest.mark.parametrize('loops', ['compiled','numpy'])
def test_loops(loops, monkeypatch):
    "Large tensors, half of them dead and not yet zeroed: as sorting finds them, ties and few candidates' room included, and what is not finite."
    if loops=='compiled': pytest.importorskip('numba', reason='Numba is not installed')
    else: monkeypatch.setattr(workspace, 'compiled', not_installed)
    assert bool(workspace.compiled())==(loops=='compiled')
    g = torch.Generator().manual_seed(0)
    sizes = worth_compiling+77,1000,3*worth_compiling
    full = [torch.randn(n, generator=g) for n in sizes]
    full[2] = (8*full[2]).round()/8
    alive = [torch.rand(n, generator=g)>.5 for n in sizes]
    for k in (1, 500, 100_000, int(sum(a.sum() for a in alive))):
        ts = [t.clone() for t in full]
        masks = [a.clone() for a in alive]
        found = LowestAlive(Workspace(sum(sizes))).find(ts, masks, k)
        assert all(torch.equal(t, f*a) for t,f,a in zip(ts, full, alive))
        scores = torch.cat([torch.where(a, f.abs(), torch.inf) for f,a in zip(full, alive)])
        at = np.concatenate([p+o for p,o in zip(chosen(found, 3), (0, sizes[0], sizes[0]+sizes[1]))])
        assert np.array_equal(at, scores.argsort(stable=True)[:k].sort().values)
        counts = found.kill()
        assert sum(counts)==k and counts==[int((a&~m).sum()) for a,m in zip(alive, masks)]
        assert np.array_equal(torch.cat([a&~m for a,m in zip(alive, masks)]).nonzero()[:,0], at)
        assert all(torch.equal(t, f*m) for t,f,m in zip(ts, full, masks))
    for bad in (torch.nan, torch.inf, -torch.inf):
        ts = [t.clone() for t in full]
        ts[2][alive[2].nonzero()[5]] = bad
        assert LowestAlive(Workspace(sum(sizes))).find(ts, alive, 500) is None
    t,m = torch.randn(512, 300, generator=g),torch.rand(512, 300, generator=g)>.5
    wanted = t*m
    Zeros({'t':m}).apply({'t':t})
    assert torch.equal(t, wanted)

@pytest.mark.parametrize('way', [dict(sparsity=.9), dict(sparsity=.5, context='local')], ids=str)
def test_a_fit_is_the_same_with_and_without_numba(way, monkeypatch):
    pytest.importorskip('numba', reason='Numba is not installed')
    ends = []
    for loops in (workspace.compiled, not_installed):
        monkeypatch.setattr(workspace, 'compiled', loops)
        learn = learner(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2100), nn.ReLU(), nn.Linear(2100, 10)))
        fit(learn, 2, SparsifyCallback(**way))
        ends.append(learn.model.state_dict())
    assert all(torch.equal(v, ends[1][k]) for k,v in ends[0].items())

def test_rows_with_and_without_numba():
    "The same sums, up to the order of adding, and the same columns."
    pytest.importorskip('numba', reason='Numba is not installed')
    g = torch.Generator().manual_seed(0)
    for shape in ((300, 700), (64, 27), (1, 5), (5, 1)):
        t = torch.randn(shape, generator=g)
        t[::3],t[:,1::4] = 0,0
        for alive,counts in itertools.product((None, (t!=0).any(1)), (None, torch.rand(shape[1], generator=g)>.5)):
            (a,n),(b,m) = [row_sums(t, alive, counts, Workspace(size)) for size in (worth_compiling, 0)]
            torch.testing.assert_close(a, b)
            assert n==m and torch.equal(a==0, b==0)
    assert Workspace(worth_compiling).compiled and not Workspace(worth_compiling-1).compiled

def test_masks_together_and_alone():
    "Zeros of all callbacks are there before one of them scores; with one callback, the step itself does all."
    class Seen(Callback):
        order = 99
        def __init__(self, cb): self.cb,self.after = cb,[]
        def after_step(self): self.after.append(self.cb.sparsifier.reached)
        def after_batch(self):
            if self.training: self.after[-1] = self.after[-1],self.cb.sparsifier.reached
    for others,same in (([],True), ([lambda: InputPruneCallback(.3)],False)):
        cb = SparsifyCallback(.5, schedule='linear')
        seen = Seen(cb)
        fit(learner(), 2, cb, seen, *[o() for o in others])
        assert all(a==b for a,b in seen.after)==same and seen.after[-1][1]==cb.sparsifier.reached

@pytest.mark.parametrize('loops', ['compiled','numpy'])
def test_no_copy_of_the_weights(loops, monkeypatch):
    "An update in which one weight in a hundred dies takes less memory than a tenth of the weights do."
    if loops=='numpy': monkeypatch.setattr(workspace, 'compiled', not_installed)
    model = nn.Sequential(nn.Linear(1500, 1500, bias=False), nn.Linear(1500, 1000, bias=False))
    sp = Sparsifier(model, layers='*')
    sp.sparsify(.5)
    n = sum(p.numel() for p in model.parameters())
    sizes,known = [],{t.untyped_storage().data_ptr() for t in (*model.parameters(), *sp.masks.values())}
    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in known: sizes.append(out.numel())
            return out
    tracemalloc.start()
    sp.update(.51)
    peak = tracemalloc.get_traced_memory()[1] # NumPy's arrays
    tracemalloc.stop()
    with Sizes(): sp.update(.52)
    assert peak < .4*n and max(sizes, default=0) <= piece+n//10, (peak, sizes)
    assert sum(int((p==0).sum()) for p in model.parameters())==round(.52*n)
    assert sum(m.numel() for m in sp.masks.values())==n and all(m.dtype==torch.bool for m in sp.masks.values()) # one byte each
    assert not sp.criterion_state.weights

class Waits(TorchDispatchMode):
    "What a GPU would be waited for: numbers read, and sizes that depend on values."
    def __init__(self):
        super().__init__()
        self.found = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        by_mask = name in ('aten::index','aten::index_put_') and any(isinstance(i, Tensor) and i.dtype==torch.bool for i in args[1])
        if by_mask or name in ('aten::_local_scalar_dense','aten::nonzero','aten::masked_select','aten::equal','aten::_unique2','aten::bincount'): self.found.append(name)
        return func(*args, **(kwargs or {}))

@pytest.mark.parametrize('kind,context,criterion', [*itertools.product(('weight','filter','kernel','2:4'), ('global','local'), ('large_final',)),
    ('weight','global','movement'), ('filter','global','taylor'), ('weight','global','lamp'), ('filter','local','bn_scale')])
def test_an_update_waits_for_nothing(kind, context, criterion, monkeypatch):
    "With the operations that a GPU gets, no number is read while the masks are updated, but the zeros are the same."
    torch.manual_seed(0)
    nets = [cnn() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(4, 1, 8, 8)
    sps = [Sparsifier(net, kind, context, criterion, layers=['3','7'] if kind=='2:4' else None, sample=x) for net in nets]
    for net,sp in zip(nets, sps):
        net(x).square().sum().backward()
        with torch.no_grad(): [p.mul_(1.01) for p in net.parameters()] # for criteria that look back
        sp.observe_gradients()
        sp.sparsify(.2)
    for s in (.3,.4,.45):
        with monkeypatch.context() as m:
            for module in (granularity,choosing,scoring,zeros): m.setattr(module, 'has_numpy', lambda t: False)
            with Waits() as waits:
                sps[1].update(s)
                sps[1].apply()
                sps[1].apply_grad()
                reached = sps[1].reached
        assert waits.found==[], waits.found
        sps[0].update(s)
        assert reached==sps[0].reached==pytest.approx(s, abs=.05)
        for (n,a),(_,b) in zip(nets[0].state_dict().items(), nets[1].state_dict().items()): assert torch.allclose(a, b, atol=1e-6), n
    assert all(bool(f) for f in sps[1].scorer.finite.values())
    with torch.no_grad(): nets[1][3].weight[0] = torch.nan
    with monkeypatch.context() as m:
        for module in (granularity,choosing,scoring,zeros): m.setattr(module, 'has_numpy', lambda t: False)
        if criterion=='large_final' and kind!='2:4':
            sps[1].update(.6)
            with pytest.raises(ValueError, match="'3'.*not finite"): sps[1].sparsity()

def test_stands_still():
    "Where the count does not move, nothing is scored."
    calls = []
    def counted(weight, context):
        calls.append(weight.numel())
        return weight.abs()
    fit(learner(), 4, SparsifyCallback(.5, criterion=counted, schedule='one_shot', every=1))
    assert len(calls)==3 # one for each layer, once

@pytest.mark.parametrize('dtype', [torch.float32,torch.float64], ids=str)
def test_channels_last(dtype):
    "The layout of the weights makes no difference, and stays."
    ends = []
    for last in (False,True):
        learn = learner(cnn, dtype=dtype)
        if last: learn.model.to(memory_format=torch.channels_last)
        fit(learn, 2, SparsifyCallback(.8))
        assert learn.model[3].weight.is_contiguous(memory_format=torch.channels_last)==last
        ends.append({k:v.clone() for k,v in learn.model.state_dict().items()})
    assert sum(int((v==0).sum()) for k,v in ends[0].items() if k in ('0.weight','3.weight','7.weight','12.weight'))==sum(int((v==0).sum()) for k,v in ends[1].items()
        if k in ('0.weight','3.weight','7.weight','12.weight'))
    if dtype==torch.float64: assert all(torch.allclose(ends[0][k].double(), ends[1][k].double(), atol=1e-8) for k in ends[0])

def test_compiled_and_accumulated():
    "With torch.compile in place, and gradients accumulated: exact counts."
    from fastai.callback.training import GradientAccumulation
    learn = learner()
    learn.model.compile(backend='eager')
    cb = SparsifyCallback(.9)
    fit(learn, 3, cb, GradientAccumulation(64))
    n = sum(m.weight.numel() for m in learn.model if isinstance(m, nn.Linear))
    assert sum(int((m.weight==0).sum()) for m in learn.model if isinstance(m, nn.Linear))==round(.9*n)

class Table(nn.Module):
    "A layer reads what a buffer makes, too."
    def __init__(self):
        super().__init__()
        self.first,self.inner,self.last = nn.Linear(64, 8),nn.Linear(4, 8),nn.Linear(8, 10)
        self.register_buffer('table', torch.randn(1, 4))
    def forward(self, x): return self.last(self.first(x.flatten(1)).relu()*self.inner(self.table).sigmoid())

def test_a_layer_that_reads_a_buffer():
    "A buffer makes units as a weight does, but it is no parameter."
    cb = SparsifyCallback(.5, 'neuron')
    learn = fit(learner(Table), 2, cb)
    assert cb.sparsifier.sparsity()==cb.sparsifier.reached==.5

def test_no_compiler_is_imported():
    "What a first fit and a first `condense` need of PyTorch is there already: its compiler would take seconds to import."
    code = """
import sys, torch
from torch import nn
from fasterprune.all import *
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
if 'torch._dynamo' in sys.modules: sys.exit('imported already by fastai or torch')
Sparsifier(net, 'filter', layers=nn.Conv2d, sample=torch.randn(2, 1, 8, 8)).sparsify(.5)
Condenser(net, torch.randn(2, 1, 8, 8)).condense()
assert 'torch._dynamo' not in sys.modules
"""
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if 'imported already' in r.stderr: pytest.skip('fastai or torch imports the compiler by itself')
    assert r.returncode==0, r.stderr

def _denormals(learn):
    "How many of the optimizer's numbers, of all parameters, are denormal."
    opt = learn.opt
    while hasattr(opt, 'opt'): opt = opt.opt
    tensors = [t for s in opt.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    assert tensors
    return sum(int(((t!=0) & (t.abs()<torch.finfo(t.dtype).tiny)).sum()) for t in tensors)

masking = dict(weight=lambda: SparsifyCallback(.9), neuron=lambda: SparsifyCallback(.5, 'neuron'), inputs=lambda: InputPruneCallback(.5), kept=KeepZeros)

@pytest.mark.parametrize('kind', masking)
def test_no_denormal_numbers_in_the_optimizer(kind, monkeypatch):
    "With decays that come to them in a hundred steps: what is alive learns as if nothing had been done, and without it there are thousands."
    found = []
    for every in (32, 10**9):
        for module in ('mask_callback','keep_zeros'): monkeypatch.setattr(f'fasterprune.sparsify.{module}.DenormalGuard', lambda: DenormalGuard(every))
        learn = learner(mlp, 128, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW, betas=(.6,.6)))
        if kind=='kept': Sparsifier(learn.model).sparsify(.9)
        with learn.no_bar(), learn.no_logging(): learn.fit(90, 1e-3, cbs=[masking[kind](), GradientClip(1e9)]) # so that gradients are masked
        found.append((_denormals(learn), learn.model.state_dict(), float((learn.model[1].weight==0).float().mean())))
    (few,a,_),(many,b,zero) = found
    assert zero>.2 and many>500 and few < many/50
    assert all(torch.equal(v, b[k]) for k,v in a.items())

class Reads(Callback):
    "Comes between the backward pass and the step, and does nothing."
    def before_step(self): pass

def seen_by_the_optimizer(cbs, **kwargs):
    "A fit: the weights in the end, and how many gradients of dead weights the optimizer has seen that are not zero."
    learn,seen = learner(cnn, **kwargs),[]
    Sparsifier(learn.model).sparsify(.3)
    cb = cbs[0]
    step = learn.opt_func
    def _opt(*args, **kw):
        opt = step(*args, **kw)
        inner = opt.step
        def _step(*a, **k):
            masks = cb.sparsifier.masks if getattr(cb, 'sparsifier', None) else getattr(cb, 'masks', {})
            seen.append(sum(int((learn.model.get_parameter(n).grad[~m.expand_as(learn.model.get_parameter(n))]!=0).sum()) for n,m in masks.items()))
            return inner(*a, **k)
        opt.step = _step
        return opt
    learn.opt_func = _opt
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, cbs=cbs) # not all have the momentum that one cycle sets
    return learn.model.state_dict(),sum(seen)

@pytest.mark.parametrize('kind', ['weight','kernel','kept'])
def test_gradients_are_masked_where_they_matter(kind):
    "And only there; what is alive learns the same to the bit."
    def _cb(): return KeepZeros() if kind=='kept' else SparsifyCallback(.6, kind)
    ends = {}
    fits = dict(plain=([],{}), read=([Reads()],{}), clip=([GradientClip(1e9)],{}), lamb=([],dict(opt_func=Lamb)))
    fits['own'] = [],dict(opt_func=partial(OptimWrapper, opt=Own))
    for name,(cbs,kwargs) in fits.items():
        model,n = seen_by_the_optimizer([_cb(), *cbs], **kwargs)
        ends[name] = model
        assert (n>0)==(name=='plain'), (name, n)
    for name in ('read','clip'): assert all(torch.equal(v, ends['plain'][k]) for k,v in ends[name].items()), name

known = [SGD,partial(SGD, mom=.9),RMSProp,Adam,RAdam,QHAdam,ranger,*(partial(OptimWrapper, opt=getattr(torch.optim, n))
    for n in 'SGD Adam AdamW NAdam RAdam Adamax RMSprop Adagrad Adadelta ASGD Rprop'.split())]

@pytest.mark.parametrize('opt', known, ids=lambda o: getattr(o, '__name__', str(getattr(o, 'keywords', o))))
def test_with_known_optimizers_gradients_of_the_dead_make_no_difference(opt):
    "Each moves a number by itself: what is alive is the same to the bit, whether gradients are masked or not."
    (a,n),(b,m) = [seen_by_the_optimizer([SparsifyCallback(.6), *cbs], opt_func=opt) for cbs in ([],[Reads()])]
    assert n>0 and m==0
    assert all(torch.equal(v, b[k]) for k,v in a.items())

def test_gradients_are_masked_for_hooks_and_learners_with_a_step_of_their_own():
    def _hooked(*args, **kwargs):
        opt = OptimWrapper(*args, opt=torch.optim.SGD, **kwargs)
        opt.opt.register_step_pre_hook(lambda *_: None)
        return opt
    assert seen_by_the_optimizer([SparsifyCallback(.6)], opt_func=_hooked)[1]==0
    class Clips(Learner):
        def _step(self):
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.)
            super()._step()
    learn = learner(cnn)
    learn.create_opt()
    assert not gradients_matter(learn)
    learn.__class__ = Clips
    assert gradients_matter(learn)

class Own(torch.optim.SGD): "An optimizer that is not known: it may mix weights."

def test_a_criterion_that_reads_gradients_sees_them_masked():
    assert seen_by_the_optimizer([SparsifyCallback(.5, criterion='taylor')])[1]==0
    assert seen_by_the_optimizer([SparsifyCallback(.5), InputPruneCallback(.3)])[1]==0

def test_sparse_moments_are_left_alone():
    "Of an embedding with sparse gradients the momentum is sparse, too."
    class Net(nn.Sequential):
        def forward(self, x): return super().forward(x.long())
    net = Net(nn.Embedding(20, 8, sparse=True), nn.Flatten(), nn.Linear(40, 2))
    x,y = torch.randint(0, 20, (64,5)),torch.randint(0, 2, (64,))
    learn = Learner(tensor_dls((x, y), (x, y), bs=16), net, loss_func=CrossEntropyLossFlat(), opt_func=partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2, cbs=SparsifyCallback(.5))
    assert int((net[2].weight==0).sum())==40 and learn.opt.opt.state[net[0].weight]['momentum_buffer'].is_sparse

def test_a_copy_of_a_callback_goes_on():
    "What is copied, or pickled, while a fit is going on has masks and room of its own, and no compiled loops."
    cb = SparsifyCallback(.5)
    learn = fit(learner(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2100), nn.ReLU(), nn.Linear(2100, 10))), 1, cb)
    for copied in (deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        sp = copied(cb.sparsifier)
        before = {n:m.clone() for n,m in cb.sparsifier.masks.items()}
        assert not any(search.arrays for search in sp.incremental.searches.values())
        assert 'compiled' not in vars(sp.scorer.workspace) and not sp.scorer.workspace.made
        sp.update(.9)
        for p in sp.params.values(): p.grad = torch.ones_like(p)
        sp.apply_grad()
        for n,m in sp.masks.items(): assert torch.equal(sp.params[n].grad!=0, m) and torch.equal(sp.params[n]!=0, m)
        assert sp.reached==pytest.approx(.9, abs=1e-5)
        assert all(torch.equal(m, before[n]) for n,m in cb.sparsifier.masks.items()) and cb.sparsifier.reached==pytest.approx(.5, abs=1e-5)
