"The faults measured in a peer, each as a test."
from copy import deepcopy
import numpy as np, pytest, torch
from fastai.basics import Callback, CancelFitException, set_seed
from fastai.callback.all import SaveModelCallback
from torch import nn
from fasterprune.all import *
from fasterprune.sparsify.mask_callback import MaskCallback
from support.nets import gap, perturb
from support.sparsity import Count, cnn, dead, fit, layers, learner, mlp, n_mlp, total, zeros
from support.sparsity_cases import Watch, WatchGradients, bn_mlp, resnet

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

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

@pytest.mark.parametrize('groups', [2,4,8])
def test_fault_grouped_convolution_crashes(groups):
    grouped,head = nn.Conv2d(8, 16, 3, padding=1, groups=groups),[nn.Conv2d(16, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    net,x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), grouped, nn.BatchNorm2d(16), nn.ReLU(), *head),torch.randn(2, 3, 8, 8)
    perturb(net)
    for granularity in ('weight','kernel','filter','row'):
        model = deepcopy(net)
        sp = Sparsifier(model, granularity, sample=x)
        sp.sparsify(.5)
        assert sp.report().loc['total','zero']==round(.5*sp.n) and gap(model, Condenser(model, x).condense(), x) <= 1e-5
    model = deepcopy(net)
    fit(learner(model, shape=(3,8,8)), 2, SparsifyCallback(.5, 'filter'), Watch(), WatchGradients())
    assert model[3].groups==groups and gap(model, Condenser(model, x).condense(), x) <= 1e-5

def test_fault_wanda_on_a_depthwise_convolution_crashes():
    for groups,out in ((6,6), (6,12), (3,6), (1,8)):
        conv = nn.Conv2d(6, out, 3, groups=groups)
        x = torch.randn(16, 6, 8, 8)*torch.logspace(-2, 2, 6).view(1, 6, 1, 1)
        sp = Sparsifier(conv, criterion='wanda', layers='')
        sp.observe(x)
        w = conv.weight.detach().clone()
        norm = x.square().mean((0,2,3)).sqrt()
        score = torch.stack([w[o].abs()*norm[o//(out//groups)*(6//groups):][:6//groups].view(-1, 1, 1) for o in range(out)])
        sp.sparsify(.5)
        assert torch.equal(conv.weight==0, score < score.flatten().sort().values[round(.5*w.numel())])

def test_fault_nm_on_linear_crashes():
    for name,n,m in (('2:4',2,4), ('1:4',1,4), ('1:2',1,2), ('3:8',3,8)):
        lin = nn.Linear(16, 6)
        w = lin.weight.detach().clone()
        Sparsifier(lin, name, layers='').sparsify(1-n/m)
        kept = (lin.weight!=0).view(6, -1, m)
        assert (kept.sum(2)==n).all() and torch.equal(kept, torch.zeros_like(kept).scatter_(2, w.abs().view(6, -1, m).topk(n, 2).indices, True))

@pytest.mark.parametrize('granularity', ['row','neuron'])
def test_fault_row_on_linear_leaves_bias_and_norm(granularity):
    net = perturb(mlp())
    Sparsifier(net, granularity, 'local', sample=torch.randn(2, 8)).sparsify(.5)
    gone = (net[0].weight==0).all(1)
    assert int(gone.sum())==8 and (net[0].bias[gone]==0).all() and (net[1].weight[gone]==0).all() and (net[1].bias[gone]==0).all()
    assert (net[0].bias[~gone]!=0).all() and (net[1].bias[~gone]!=0).all() and zeros(net[5])==0
    learn = fit(learner(net), 2, SparsifyCallback(.75, granularity), Watch(), WatchGradients())
    out = learn.model.eval()[:3](torch.randn(4, 8))
    assert (out[:,(net[0].weight==0).all(1)]==0).all() and dead(net[0])+dead(net[3])==21

@pytest.mark.parametrize('granularity', ['filter','neuron','row','channel','feature'])
@pytest.mark.parametrize('coupled', [True,False])
def test_fault_heads_get_cut(granularity, coupled):
    "4 classes became 2. Whatever is removed, all classes are still there, and can be told apart."
    conv = granularity in ('filter','channel')
    net,x = (resnet(),torch.randn(8, 3, 8, 8)) if conv else (bn_mlp(),torch.randn(8, 12))
    Sparsifier(net.eval(), granularity, 'local', sample=x, coupled=coupled).sparsify(.7)
    assert dead(layers(net)[-1])==0 and (layers(net)[-1].bias!=0).all()
    c = Condenser(net, x).condense()
    assert c.model(c.inputs(x)).shape==(8,3) and c.model[-1].out_features==3 and gap(net, c, x) <= 1e-5

def test_fault_condensing_changes_the_function():
    "Relative error .55 on a chain, .85 on ResNet-18, by a library that removes by rank again."
    for build,x,granularity in ((cnn, torch.randn(4, 3, 8, 8), 'filter'), (resnet, torch.randn(4, 3, 8, 8), 'filter'), (bn_mlp, torch.randn(4, 12), 'neuron')):
        for coupled in (True,False):
            net = perturb(build())
            sp = Sparsifier(net, granularity, sample=x, coupled=coupled)
            sp.sparsify(.5)
            c = Condenser(net, x).condense()
            assert gap(net, c, x) <= 1e-5 and n_params(c.model)<n_params(net)

def test_fault_every_step_scores_all_weights():
    "A step cost 3 times a plain one: scores are needed only where the count moves."
    calls = []
    def counted(w, c):
        calls.append(c.name)
        return w.abs()
    fit(learner(n=80), 3, SparsifyCallback(.5, criterion=counted, schedule='one_shot'))
    assert calls==['0','3','5']
    calls.clear()
    fit(learner(n=80), 3, SparsifyCallback(.5, 'neuron', criterion=counted, schedule=iterative(4)))
    assert len(calls)==2*4

def test_fault_save_model_callback_and_best_weights(tmp_path):
    "The best weights are put back as they were, with the zeros of their epoch, which the column has told."
    cb,learn = SaveModelCallback(monitor='train_loss', comp=np.less),learner(path=tmp_path)
    fit(learn, 4, SparsifyCallback(.7), cb)
    at = learn.recorder.metric_names.index('sparsity')-1
    best = min(learn.recorder.values, key=lambda v: v[0])
    assert total(learn.model)/n_mlp==pytest.approx(best[at])
    learn = learner(cnn(), shape=(3,8,8), path=tmp_path)
    fit(learn, 4, SparsifyCallback(.5, 'filter'), SaveModelCallback(every_epoch=True))
    assert dead(learn.load('model_3').model[0])+dead(learn.model[3])==12
