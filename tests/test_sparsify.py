"Exact counts, at each step and at the end; and the faults measured in a peer, each as a test."
from copy import deepcopy
import pytest, torch
from fastai.basics import Callback, CancelBatchException, CancelFitException, CrossEntropyLossFlat, DataLoaders, Learner, TensorCategory, TensorImage, set_seed
from fastai.callback.all import ActivationStats, GradientAccumulation, MixUp, SaveModelCallback, ShortEpochCallback
from torch import nn
import torch.nn.functional as F
from fasterprune.all import *
from nets import gap, perturb

sparsities = (.1, .33, .5, .9, .99)

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

def zeros(m): return int((m.weight==0).sum())
def dead(m): return int((m.weight==0).flatten(1).all(1).sum())
def layers(model): return [m for m in model.modules() if isinstance(m, (nn.Linear,nn.modules.conv._ConvNd))]
def total(model): return sum(map(zeros, layers(model)))

def mlp(): return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))
def cnn():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
n_mlp = 8*16 + 16*12 + 12*2

def learner(model=None, n=32, bs=8, shape=(8,), valid=True, **kwargs):
    x = torch.randn(n, *shape)
    ds = list(zip(x, (x.flatten(1).sum(1)>0).long()))
    dls = DataLoaders.from_dsets(ds, ds[:bs] if valid else [], bs=bs, num_workers=0, device='cpu')
    return Learner(dls, model or mlp(), loss_func=CrossEntropyLossFlat(), **kwargs)

def fit(learn, n, *cbs, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-2, cbs=list(cbs), **kwargs)
    return learn

class Count(Callback):
    "How many weights are zero after each training batch."
    order = MaskCallback.order+5
    def before_fit(self): self.counts = []
    def after_batch(self):
        if self.training: self.counts.append(total(self.model))

# ---- exact counts

@pytest.mark.parametrize('s', sparsities)
@pytest.mark.parametrize('equal', [False, True])
def test_weights_exact_for_every_size(s, equal):
    for n in range(1, 1001):
        lin = nn.Linear(n, 1)
        if equal: nn.init.constant_(lin.weight, .1)
        Sparsifier(lin).sparsify(s)
        assert zeros(lin)==round(s*n), n

@pytest.mark.parametrize('s', sparsities)
@pytest.mark.parametrize('equal', [False, True])
@pytest.mark.parametrize('granularity', ['filter', 'neuron'])
def test_units_exact_for_every_size(s, equal, granularity):
    for n in range(1, 1001):
        layer = nn.Linear(2, n) if granularity=='neuron' else nn.Conv1d(1, n, 2)
        if equal: nn.init.constant_(layer.weight, .1)
        sp = Sparsifier(layer, granularity, coupled=False, layers='')
        if round(s*n)==n:
            with pytest.raises(ValueError, match=f'removes {n} of {n} units'): sp.sparsify(s)
            assert dead(layer)==0
        else:
            sp.sparsify(s)
            assert dead(layer)==round(s*n) and int((layer.bias==0).sum())==round(s*n), n

@pytest.mark.parametrize('s', sparsities)
@pytest.mark.parametrize('equal', [False, True])
@pytest.mark.parametrize('context', ['local', 'global'])
def test_exact_over_layers(s, equal, context):
    net = mlp()
    if equal: [nn.init.constant_(m.weight, -.1) for m in layers(net)]
    Sparsifier(net, context=context).sparsify(s)
    sizes = [m.weight.numel() for m in layers(net)]
    if context=='local': assert list(map(zeros, layers(net)))==[round(s*n) for n in sizes]
    else: assert total(net)==round(s*n_mlp) and all(zeros(m)<n for m,n in zip(layers(net), sizes))

@pytest.mark.parametrize('s', (.1, .33, .5, .75))
@pytest.mark.parametrize('context', ['local', 'global'])
@pytest.mark.parametrize('criterion', ['large_final', 'squared_final', 'small_final', 'random'])
@pytest.mark.parametrize('granularity', ['filter', 'neuron'])
def test_no_layer_is_emptied_and_counts_are_exact_step_by_step(s, context, criterion, granularity):
    conv = granularity=='filter'
    net = cnn() if conv else mlp()
    sp = Sparsifier(net, granularity, context, criterion, sample=torch.randn(2, *((3,8,8) if conv else (8,))))
    units = [8,16] if conv else [16,12]
    for part in (.2, .5, .9, 1.):
        sp.sparsify(s*part)
        counts = [dead(m) for m in layers(net)]
        assert counts[-1]==0 and all(d<n for d,n in zip(counts, units))
        if context=='local': assert counts[:2]==[round(s*part*n) for n in units]
        else: assert sum(counts)==round(s*part*sum(units))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_exact_in_other_precisions(dtype):
    net = nn.Sequential(nn.Linear(3000, 200), nn.Linear(200, 2)).to(dtype)
    nn.init.constant_(net[0].weight, .2) # their sum is more than float16 can hold
    sp = Sparsifier(net)
    sp.sparsify(.7)
    assert total(net)==round(.7*600_400) and {p.dtype for p in net.parameters()}=={dtype}

# ---- the last step reaches the target

@pytest.mark.parametrize('schedule', [*schedules, iterative(5), Schedule(lambda t: t**2, .1, .7)], ids=str)
def test_last_step_reaches_target(schedule):
    for n in (1, 2, 3, 5, 7, 13, 31, 60):
        count = Count()
        fit(learner(n=8*n), 1, SparsifyCallback(.7, schedule=schedule), count)
        sched = get_schedule(schedule)
        assert len(count.counts)==n
        if schedule!='dense_sparse_dense': assert count.counts==[round(.7*sched((i+1)/n)*n_mlp) for i in range(n)], n # there zeros may grow again
        assert count.counts[-1]==round(.7*n_mlp)

@pytest.mark.parametrize('schedule', schedules)
@pytest.mark.parametrize('every', [1, 7])
@pytest.mark.parametrize('valid', [True, False])
def test_reached_with_and_without_validation(schedule, every, valid):
    count = Count()
    fit(learner(n=40, valid=valid), 3, SparsifyCallback(.9, schedule=schedule, every=every), count)
    assert len(count.counts)==15 and count.counts[-1]==round(.9*n_mlp)

@pytest.mark.long
@pytest.mark.parametrize('schedule', schedules)
def test_every_fit_of_1_to_60_steps_reaches_target(schedule):
    for n in range(1, 61):
        for valid in (True, False):
            learn = fit(learner(n=8*n, valid=valid), 1, SparsifyCallback(.9, schedule=schedule))
            assert total(learn.model)==round(.9*n_mlp), n

def test_short_epoch_and_cancelled_batches_reach_target():
    class SkipFirst(Callback):
        order = -20
        def before_batch(self):
            if self.iter==0: raise CancelBatchException
    for cbs in ([ShortEpochCallback(.5)], [SkipFirst()], [GradientAccumulation(16)]):
        assert total(fit(learner(), 2, SparsifyCallback(.5), *cbs).model)==round(.5*n_mlp), cbs

# ---- faults of a peer

def test_fault_reported_is_not_actual_sparsity():
    "Validation batches advanced the schedule; what was printed was what was wanted."
    for schedule in schedules:
        cb = SparsifyCallback(.9, schedule=schedule)
        learn = fit(learner(n=40), 3, cb)
        i = learn.recorder.metric_names.index('sparsity')-1
        assert learn.recorder.values[-1][i]==pytest.approx(total(learn.model)/n_mlp, abs=1e-9)
        assert cb.history[-1]==(1., pytest.approx(round(.9*n_mlp)/n_mlp, abs=1e-9))
        assert cb.sparsifier.report().loc['total','zero']==total(learn.model)

def test_fault_off_by_one_filter():
    "1 of 4 and 31 of 64 filters at 0.5."
    for n in (4, 64):
        net = nn.Sequential(nn.Conv2d(3, n, 3), nn.ReLU(), nn.Conv2d(n, 2, 3))
        Sparsifier(net, 'filter', sample=torch.randn(1, 3, 8, 8)).sparsify(.5)
        assert dead(net[0])==n//2

def test_fault_constant_weights_stay():
    net = mlp()
    for m in layers(net): nn.init.constant_(m.weight, .3)
    Sparsifier(net, context='local').sparsify(.5)
    assert [zeros(m) for m in layers(net)]==[64,96,12]

def test_fault_state_dict_grows(tmp_path):
    "SaveModelCallback and lr_find crashed, because buffers were added to the model; an interrupted fit left them there."
    learn = learner(path=tmp_path)
    keys = list(learn.model.state_dict())
    fit(learn, 2, SparsifyCallback(.5), SaveModelCallback(every_epoch=True, with_opt=True))
    assert list(learn.model.state_dict())==keys and list(torch.load(tmp_path/'models'/'model_1.pth', weights_only=False)['model'])==keys
    class Stop(Callback):
        def after_step(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(learn, 1, SparsifyCallback(.7), Stop())
    assert list(learn.model.state_dict())==keys and not any(m._forward_pre_hooks or m._forward_hooks for m in learn.model.modules())

def test_fault_lr_find_crashes():
    learn = learner(n=400, cbs=SparsifyCallback(.5))
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=12, show_plot=False)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    assert total(fit(learn, 1).model)==round(.5*n_mlp)

@pytest.mark.parametrize('granularity', ['weight', 'neuron'])
def test_fault_second_fit_restarts_at_zero(granularity):
    learn = fit(learner(), 2, SparsifyCallback(.5, granularity))
    masked = [m.weight==0 for m in layers(learn.model)]
    class Stay(Callback):
        order = MaskCallback.order+5
        def after_batch(self): assert all((m.weight[z]==0).all() for m,z in zip(layers(self.model), masked))
    cb = SparsifyCallback(.75, granularity)
    fit(learn, 2, cb, Stay())
    reached = [h[1] for h in cb.history]
    n = n_mlp if granularity=='weight' else 28
    assert reached[0]>=.5 and reached==sorted(reached) and reached[-1]==cb.sparsifier.sparsity()==round(.75*n)/n

def test_fault_resume_with_start_epoch_restarts_at_zero(tmp_path):
    class Stop(Callback):
        def after_epoch(self):
            if self.epoch==1: raise CancelFitException
    for s in (.5, .9):
        whole,rest,learn = Count(),Count(),learner(path=tmp_path)
        state = deepcopy(learn.model.state_dict())
        fit(learn, 4, SparsifyCallback(s), whole)
        learn.model.load_state_dict(state)
        fit(learn, 4, SparsifyCallback(s), Stop())
        learn.save('half')
        other = learner(path=tmp_path)
        other.create_opt()
        other.load('half')
        fit(other, 4, SparsifyCallback(s), rest, start_epoch=2)
        assert rest.counts==whole.counts[8:]

def test_fault_dead_filters_come_back_through_batchnorm():
    learn = learner(cnn(), shape=(3,8,8))
    cb = SparsifyCallback(.5, 'filter', schedule='one_shot')
    fit(learn, 8, cb)
    net,x = learn.model.eval(),torch.randn(2, 3, 8, 8)
    for conv,bn,n in ((net[0],net[1],8), (net[3],net[4],16)):
        gone = (conv.weight==0).flatten(1).all(1)
        assert (conv.bias[gone]==0).all() and (bn.weight[gone]==0).all() and (bn.bias[gone]==0).all()
    assert dead(net[0])+dead(net[3])==12
    assert (net[:3](x)[:,(net[0].weight==0).flatten(1).all(1)]==0).all()

class Shuffled(nn.Module):
    "Registered in an order that is not that of the computation."
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.bn2,self.conv1,self.conv2,self.bn1 = nn.BatchNorm2d(8),nn.Conv2d(3, 8, 3),nn.Conv2d(8, 8, 3),nn.BatchNorm2d(8)
    def forward(self, x): return self.head(self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu().amax((2,3)))

def test_fault_batchnorm_paired_by_registration_order():
    net = perturb(Shuffled())
    for m in (net.bn1, net.bn2): nn.init.constant_(m.weight, 2.)
    with torch.no_grad(): net.conv1.weight[5:].mul_(1e-3)
    Sparsifier(net, 'filter', layers='conv1', sample=torch.randn(1, 3, 8, 8)).sparsify(3/8)
    assert (net.conv1.weight==0).flatten(1).all(1).nonzero().flatten().tolist()==[5,6,7]
    assert (net.bn1.weight==0).nonzero().flatten().tolist()==[5,6,7]
    assert (net.bn2.weight!=0).all() and dead(net.conv2)==0

def test_fault_dead_neurons_keep_bias_and_batchnorm():
    net = perturb(mlp())
    Sparsifier(net, 'neuron', context='local', sample=torch.randn(2, 8)).sparsify(.5)
    gone = (net[0].weight==0).all(1)
    assert int(gone.sum())==8 and (net[0].bias[gone]==0).all() and (net[1].weight[gone]==0).all() and (net[1].bias[gone]==0).all()
    assert (net.eval()[:3](torch.randn(4, 8))[:,gone]==0).all()

def test_fault_filter_fails_on_a_network_with_linear_layers():
    net = cnn()
    sp = Sparsifier(net, 'filter', sample=torch.randn(2, 3, 8, 8))
    sp.sparsify(.5)
    assert dead(net[0])+dead(net[3])==12 and zeros(net[8])==0 and '8' in sp.left_dense

def test_fault_heads_are_cut():
    "4 classes became 2."
    for net,x,granularity in ((cnn(), torch.randn(2, 3, 8, 8), 'filter'), (mlp(), torch.randn(2, 8), 'neuron')):
        Sparsifier(net.eval(), granularity, sample=x).sparsify(.8)
        c = Condenser(net, x).condense()
        assert c.model(x).shape==(2,2) and zeros(layers(net)[-1])==0 and gap(net, c, x) <= 1e-5

def test_fault_embedding_in_the_model_crashes():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.e,self.a,self.b = nn.Embedding(20, 6),nn.Linear(6, 8),nn.Linear(8, 2)
        def forward(self, x): return self.b(self.a(self.e(x).mean(1)).relu())
    net,x = Text(),torch.randint(0, 20, (4, 5))
    Sparsifier(net, 'neuron', sample=x).sparsify(.5)
    c = Condenser(net, x).condense()
    assert (net.e.weight!=0).all() and c.model.a.out_features==4 and gap(net, c, x) <= 1e-5

def test_fault_simplify_removes_weights_that_cancel():
    lin = nn.Linear(4, 2)
    with torch.no_grad(): lin.weight[:,:] = torch.tensor([[1.,-1.,2.,-2.],[0.,0.,0.,0.]])
    assert Sparsifier(lin, 'neuron', layers='', coupled=False).groups[0].alive.tolist()==[True,False]

# ---- models that are not layers in a row

@pytest.mark.parametrize('wrap', [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_computed_weights_are_left_dense_and_told(wrap):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), wrap(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))
    sp = Sparsifier(net)
    sp.sparsify(.5)
    assert zeros(net[0])+zeros(net[4])==40 and '2' in sp.left_dense

def test_weights_pruned_by_torch_are_left_or_masked():
    from torch.nn.utils import prune
    net = nn.Sequential(prune.l1_unstructured(nn.Linear(8, 8), 'weight', .5), nn.ReLU(), nn.Linear(8, 2))
    Sparsifier(net).sparsify(.75)
    assert zeros(net[2])<16

def test_shared_weights_count_once():
    a,b = nn.Linear(8, 8),nn.Linear(8, 8)
    b.weight = a.weight
    net = nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), nn.Linear(8, 2))
    sp = Sparsifier(net)
    sp.sparsify(.5)
    assert zeros(a)+zeros(net[4])==40 and sp.report().loc['total','units']==80

def test_residual_units_die_together():
    class Res(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.c,self.n,self.h = nn.Conv2d(3, 8, 1),nn.Conv2d(8, 6, 1),nn.Conv2d(6, 8, 1),nn.BatchNorm2d(8),nn.Linear(8, 2)
        def forward(self, x): return self.h(F.adaptive_avg_pool2d((y:=self.a(x)) + self.n(self.c(self.b(y).relu())), 1).flatten(1))
    net,x = perturb(Res()),torch.randn(2, 3, 4, 4)
    sp = Sparsifier(net, 'filter', 'local', sample=x)
    sp.sparsify(.5)
    gone = (net.a.weight==0).flatten(1).all(1)
    assert int(gone.sum())==4 and torch.equal(gone, (net.c.weight==0).flatten(1).all(1)) and (net.n.bias[gone]==0).all() and dead(net.b)==3
    assert {g.name for g in sp.groups}=={'a+c','b'} and gap(net, Condenser(net, x).condense(), x) <= 1e-5

def test_vision_batches_with_mixup_and_hooks():
    "Tensor subclasses, mixed batches, and hooks that look at activations, as in a usual vision fit."
    x = [(TensorImage(torch.rand(3, 8, 8)),TensorCategory(i%2)) for i in range(32)]
    dls = DataLoaders.from_dsets(x, x, bs=8, num_workers=0, device='cpu')
    learn = Learner(dls, cnn(), loss_func=CrossEntropyLossFlat(), cbs=[MixUp(), ActivationStats(with_hist=True)])
    fit(learn, 2, SparsifyCallback(.5, 'filter', 'local'))
    assert (dead(learn.model[0]),dead(learn.model[3]))==(4,8)
    assert learn.condense().condensed.report.removed.keys()=={'0','3'}

# ---- bad input, with the model untouched

@pytest.mark.parametrize('s', [80, 1, 1., -.1, 'x', None, float('nan'), True, [.5], {}, {'0':80}, {'zz':.5}, {'0':'x'}], ids=repr)
def test_bad_sparsity_is_a_value_error(s):
    net = mlp()
    before = {k:v.clone() for k,v in net.state_dict().items()}
    with pytest.raises(ValueError): Sparsifier(net).sparsify(s)
    with pytest.raises(ValueError): fit(learner(net), 1, SparsifyCallback(s))
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())

@pytest.mark.parametrize('kwargs', [dict(granularity='atom'), dict(criterion='beauty'), dict(context='here'), dict(schedule='soon'), dict(layers='nope'), dict(exclude='nope'),
    dict(granularity=['filter']), dict(schedule=['linear']), dict(criterion=['random']), dict(every=0), dict(every=.5)], ids=str)
def test_bad_argument_is_a_value_error_before_training(kwargs):
    net = mlp()
    before = {k:v.clone() for k,v in net.state_dict().items()}
    with pytest.raises(ValueError): fit(learner(net), 1, SparsifyCallback(.5, **kwargs))
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
