"Inputs go in exact numbers, constant ones first, and the condensed network on what is left says what the masked one says."
from copy import deepcopy
import numpy as np, pandas as pd, pytest, torch
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner, accuracy, load_learner, set_seed
from fastai.callback.progress import ProgressCallback
from fastai.tabular.all import Categorify, CategoryBlock, FillMissing, TabularDataLoaders, tabular_learner
from fastai.vision.all import ImageDataLoaders, Normalize, PILImage, get_image_files, imagenet_stats
from torch import nn
from fasterprune.all import *
from fasterprune.inputs.features import InputFeatures, InputMask
from fasterprune.inputs.importance import RunningScale
from support.nets import gap, perturb

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

def learner(model, x, valid=16, **kwargs):
    "A learner whose target is the sign of the sum of the last half of each item."
    flat = x.flatten(1)
    ds = list(zip(x, (flat[:,flat.shape[1]//2:].sum(1)>0).long()))
    return Learner(DataLoaders.from_dsets(ds, ds[:valid], bs=16, num_workers=0, device='cpu'), model, loss_func=CrossEntropyLossFlat(), **kwargs)

def fit(learn, n, *cbs, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-2, cbs=list(cbs), **kwargs)
    return learn

def unread(layer, dims): return int((layer.weight==0).all(dims).sum())

class Recurrent(nn.Module):
    "A recurrent layer reads the columns of a series, as (items, steps, columns); `steps_first` turns it round."
    def __init__(self, kind=nn.LSTM, columns=6, steps_first=False, **kwargs):
        super().__init__()
        self.rnn = kind(columns, 8, batch_first=not steps_first, **kwargs)
        self.steps_first,self.head = steps_first,nn.Linear(16 if kwargs.get('bidirectional') else 8, 2)
    def forward(self, x):
        y = self.rnn(x.transpose(0, 1) if self.steps_first else x)[0]
        return self.head(y[-1] if self.steps_first else y[:,-1])

class Permute(nn.Module):
    def __init__(self, *dims):
        super().__init__()
        self.dims = dims
    def forward(self, x): return x.permute(self.dims)

def video(*dims, n): return nn.Sequential(Permute(*dims), nn.Conv3d(n, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))

kinds = dict( # network, shape of an item, number of features
    vector=(lambda: nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)), (20,), 20),
    pixels=(lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 2)), (3,4,4), 48),
    channels=(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)), (8,5,5), 8),
    sequence=(lambda: nn.Sequential(nn.Conv1d(12, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(),
        nn.Linear(8, 2)), (12,30), 12),
    steps=(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Flatten(), nn.Linear(40, 2)), (5,6), 6),
    series=(Recurrent, (10,6), 6), frames=(lambda: video(0, 1, 3, 4, 2, n=8), (8,3,5,5), 8))

@pytest.mark.parametrize('s', (.1, .33, .5, .8))
@pytest.mark.parametrize('kind', kinds)
def test_exact_number_goes_and_the_rest_says_the_same(kind, s):
    make,shape,n = kinds[kind]
    if round(s*n)==n: pytest.skip('leaves none')
    cb,learn = InputPruneCallback(s),learner(make(), torch.randn(64, *shape))
    fit(learn, 2, cb)
    left = n-round(s*n)
    assert len(cb.kept)==left and cb.sparsifier.n==n and cb.history[-1][1]==(n-left)/n
    c = Condenser(learn.model, torch.randn(4, *shape)).condense()
    for b in (1, 3): assert gap(learn.model, c, torch.randn(b, *shape)) <= 1e-5
    assert c.inputs(torch.randn(2, *shape)).numel()==2*left*(torch.Size(shape).numel()//n)
    small = learn.condense()
    xb,yb = small.dls.one_batch()
    assert xb[0].numel()==left*(torch.Size(shape).numel()//n) and len(yb)==len(xb)==16
    with learn.no_bar(), small.no_bar(): a,b = learn.get_preds()[0],small.get_preds()[0]
    assert float((a-b).abs().max()) <= 1e-5
    fit(small, 1)

@pytest.mark.parametrize('s', (.1, .33, .5, .9, .99))
def test_exact_for_every_number_of_inputs(s):
    for n in range(1, 101):
        net = nn.Linear(n, 2)
        p = InputPruner(net, torch.randn(2, n))
        if round(s*n)==n:
            with pytest.raises(ValueError, match=f'none of {n}'): p.sparsify(s)
            assert unread(net, 0)==0
        else:
            p.sparsify(s)
            assert unread(net, 0)==round(s*n) and p.sparsity()==pytest.approx(round(s*n)/n, abs=1e-6)

@pytest.mark.parametrize('schedule', schedules)
def test_last_step_reaches_target(schedule):
    for n in (1, 2, 3, 7, 20):
        cb = InputPruneCallback(.6, schedule)
        learn = fit(learner(nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16*n, 20)), 1, cb)
        assert unread(learn.model[0], 0)==12 and len(cb.history)==n

@pytest.mark.parametrize('kwargs,first', [(dict(), .1), (dict(warmup=.3), .3), (dict(warmup=0.), 0.), (dict(end_epoch=.5), .05),
    (dict(end_epoch=2, warmup=.6), .3), (dict(start_epoch=.5), .5)])
def test_no_input_dies_before_the_network_knows_it(kwargs, first):
    "After that all is as the schedule says."
    cb,other = InputPruneCallback(.9, 'linear', **kwargs),InputPruneCallback(.9, 'linear', **{**kwargs, 'warmup':0.})
    for c in (cb, other): fit(learner(nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16*10, 40)), 4, c)
    assert len(cb.history)==40
    for (pos,reached),(_,wanted) in zip(cb.history, other.history): assert reached==(0 if pos < first-1e-9 else wanted)
    assert torch.nan_to_num(cb.died_at, 1.).min() >= first-1e-9 and len(cb.kept)==4

@pytest.mark.parametrize('value', [0., .1, -7.3, 1e4])
@pytest.mark.parametrize('kind', kinds)
def test_constant_inputs_go_first(kind, value):
    "Even those with by far the largest weights."
    make,shape,n = kinds[kind]
    x,net = torch.randn(64, *shape),make()
    k = n//3
    first = next(p for p in net.parameters() if p.ndim>1)
    dim = -1 if kind in ('steps','series') else 1
    constant = torch.randperm(n)[:k]
    if kind=='pixels': x.view(64, -1)[:,constant] = value
    else: x.index_fill_(dim, constant, value)
    with torch.no_grad(): first[:,constant] *= 100
    cb = InputPruneCallback(k/n)
    fit(learner(net, x), 1, cb)
    assert not set(cb.kept.tolist()) & set(constant.tolist()) and len(cb.kept)==n-k

def test_criterion_without_scale_is_misled():
    "What makes the test above one of the scale: magnitude alone keeps inputs that hardly vary; those that never do go first all the same."
    x,net = torch.randn(64, 20),kinds['vector'][0]()
    x[:,:5] = 1 + 1e-4*torch.randn(64, 5)
    x[:,5:7] = 3.
    with torch.no_grad(): net[0].weight[:,:7] *= 100
    cb = InputPruneCallback(.5, criterion='large_final')
    fit(learner(net, x), 1, cb)
    assert set(range(5)) <= set(cb.kept.tolist()) and not {5,6} & set(cb.kept.tolist())

def test_scale_is_that_of_all_batches():
    x = torch.randn(160, 6)*torch.tensor([0.,1.,2.,3.,1e-3,1e3]) + torch.tensor([5.,1e3,0.,-1.,0.,0.])
    scale = RunningScale()
    for b in x.split([1,9,50,100]): scale.update(b)
    assert torch.allclose(scale.std, x.double().std(0, unbiased=False), rtol=1e-9, atol=0) and scale.std[0]==0

def test_neurons_and_inputs_in_one_fit():
    cbs = SparsifyCallback(.5, 'neuron'),InputPruneCallback(.75)
    net = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))
    learn = fit(learner(net, torch.randn(64, 20)), 3, *cbs)
    assert sum(unread(learn.model[i], 1) for i in (0,3))==14 and unread(learn.model[0], 0)==15
    small = learn.condense()
    report = small.condensed.report
    assert report.inputs_after==small.model[0].in_features <= 5 and small.model[0].out_features+small.model[3].out_features <= 14
    assert set(small.condensed.inputs.index.tolist()) <= set(cbs[1].kept.tolist())

def test_weights_and_inputs_in_one_fit_are_exact():
    for s,i in ((.5,.3), (.9,.75)):
        cbs = SparsifyCallback(s),InputPruneCallback(i)
        learn = fit(learner(nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2)), torch.randn(64, 20)), 2, *cbs)
        assert unread(learn.model[0], 0) >= round(i*20)
        assert sum(int((m.weight==0).sum()) for m in learn.model[::2])==round(s*704)

def test_second_fit_resume_and_lr_find():
    make = lambda: nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2))
    learn = learner(make(), torch.randn(64, 20))
    first,second = InputPruneCallback(.5),InputPruneCallback(.75)
    fit(learn, 1, first)
    kept = set(first.kept.tolist())
    fit(learn, 1, second)
    assert set(second.kept.tolist()) < kept and len(second.kept)==5 and min(h[1] for h in second.history)>=.5
    learn = learner(make(), torch.randn(64, 20), cbs=InputPruneCallback(.5))
    before = deepcopy(learn.model.state_dict())
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=4, show_plot=False)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

def test_sequences_of_any_length():
    "Channels are features at each length; batches may differ in it."
    net = nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2))
    x = [torch.randn(8, 4, l) for l in (20,30,25)]
    for b in x: b[:,2] = 3.
    dl = [(b,torch.randint(0, 2, (8,))) for b in x]
    cb,learn = InputPruneCallback(.5),Learner(DataLoaders(dl, dl), net, loss_func=CrossEntropyLossFlat())
    fit(learn, 2, cb)
    assert len(cb.kept)==2 and 2 not in cb.kept

def test_plain_torch_loaders():
    ds = list(zip(torch.randn(64, 6), torch.randint(0, 2, (64,))))
    dls = DataLoaders(*[torch.utils.data.DataLoader(ds, 8) for _ in range(2)])
    learn = Learner(dls, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), loss_func=CrossEntropyLossFlat())
    fit(learn, 1, InputPruneCallback(.5), SparsifyCallback(.5, 'neuron'))
    small = fit(learn.condense(), 1)
    assert small.model[0].weight.shape==(4,3) and next(iter(small.dls.train))[0].shape[1]==3 # loaders of any kind deliver what is kept

def images(tmp_path, model, *tfms):
    for i in range(24): PILImage.create((np.random.rand(8, 8, 3)*255).astype(np.uint8)).save(tmp_path/f'{"ab"[i%2]}_{i}.png')
    files = get_image_files(tmp_path)
    dls = ImageDataLoaders.from_name_func(tmp_path, files, _label, bs=4, valid_pct=.5, num_workers=0, batch_tfms=tfms, device='cpu')
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), path=tmp_path),files

def _label(name): return name[0]

@pytest.mark.parametrize('kind', ['channels', 'pixels'])
def test_predict_export_and_load(tmp_path, kind):
    "With normalization, which knows all channels, on the way in and, for what is shown, on the way out."
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 2)) if kind=='pixels' else perturb(nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)))
    learn,files = images(tmp_path, net, Normalize.from_stats(*imagenet_stats))
    fit(learn, 1, InputPruneCallback(2/3))
    small = learn.condense()
    assert small.dls.one_batch()[0][0].numel()==64
    small.export('small.pkl')
    loaded = load_learner(tmp_path/'small.pkl')
    for l in (learn, small, loaded): l.remove_cbs(ProgressCallback)
    for f in files[:3]:
        label,_,probs = learn.predict(f)
        for l in (small, loaded): assert l.predict(f)[0]==label and float((l.predict(f)[2]-probs).abs().max()) <= 1e-5
    dl = small.dls.test_dl(files)
    assert float((small.get_preds(dl=dl)[0]-learn.get_preds(dl=learn.dls.test_dl(files))[0]).abs().max()) <= 1e-5

def test_old_learner_is_left_alone():
    learn = learner(kinds['vector'][0](), torch.randn(64, 20))
    fit(learn, 1, InputPruneCallback(.5))
    before,cbs = deepcopy(learn.model.state_dict()),list(learn.cbs)
    fit(learn.condense(), 1)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    assert list(learn.cbs)==cbs and all(cb.learn is learn for cb in cbs) and learn.dls.one_batch()[0].shape==(16,20)

# ---- features of other kinds

class Attend(nn.Module):
    "A transformer over steps, of which each has as many numbers as there are electrodes."
    def __init__(self):
        super().__init__()
        self.embed,self.layer,self.head = nn.Linear(6, 16),nn.TransformerEncoderLayer(16, 2, 32, dropout=0., batch_first=True),nn.Linear(16, 2)
    def forward(self, x): return self.head(self.layer(self.embed(x)).mean(1))

def conv(): return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2))
def mlp(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 2))
def wave(): return nn.Sequential(nn.Conv1d(4, 8, 5, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(240, 2))

others = { # network, shape of an item, granularity, number of features, are they masks?
    'pixels of an MLP':(mlp, (3,8,8), 'pixel', 64, False), 'patches of an MLP':(mlp, (3,8,8), 'patch(4,2)', 8, False), 'rows of an MLP':(mlp, (3,8,8), 'row', 8, False),
    'colors of an MLP':(mlp, (3,8,8), 'channel', 3, False), 'pixels':(conv, (3,8,8), 'pixel', 64, True), 'rows':(conv, (3,8,8), 'row', 8, True),
    'columns':(conv, (3,8,8), 'column', 8, True), 'patches':(conv, (3,8,8), 'patch(3,3)', 9, True), 'windows':(wave, (4,30), 'window(7)', 5, True),
    'electrodes':(wave, (4,30), 'channel', 4, False), 'electrodes of a transformer':(Attend, (10,6), 'auto', 6, False), 'windows of a transformer':(Attend, (10,6), 'window(3)', 4, True),
    'columns of a square series':(Recurrent, (6,6), 'auto', 6, False), 'windows of a series':(Recurrent, (10,6), 'window(3)', 4, True),
    'frames of a clip':(lambda: video(0, 1, 3, 4, 2, n=8), (8,3,5,5), 'channel', 8, False),
    'colors of a clip':(lambda: video(0, 2, 1, 3, 4, n=3), (8,3,5,5), 'auto', 3, False)}

@pytest.mark.parametrize('kind', others)
def test_features_of_each_kind(kind):
    "As many as asked for are dead, those that never vary first, and what is condensed says the same of what is selected or masked."
    make,shape,granularity,n,masks = others[kind]
    net,x = make().eval(),torch.randn(64, *shape)
    at = InputFeatures(net, x[:2], granularity).elements[0]
    constant = at==n-1
    x[:,constant] = .7
    cb,learn = InputPruneCallback(.5, granularity=granularity),learner(net, x)
    fit(learn, 3, cb)
    p = cb.sparsifier
    assert p.n==n and p.masks==masks and p.dead==round(n/2) and len(cb.kept)==n-p.dead and n-1 not in cb.kept
    assert sorted(p.deaths+cb.kept.tolist())==list(range(n)) and cb.died_at[cb.kept].isnan().all() and cb.died_at[p.deaths].isfinite().all()
    dead = ~torch.isin(at, cb.kept)
    z = torch.randn(5, *shape)
    blank = torch.where(dead, 0., z)
    small = learn.condense()
    masked = learn.model.eval()(blank)
    assert float((small.model.eval()(small.condensed.inputs(blank))-masked).detach().abs().max()) <= 1e-5*float(masked.detach().abs().max())
    got = small.dls.one_batch()[0]
    if masks: assert got.shape[1:]==shape and not got[:,dead].any() and not learn.dls.valid.one_batch()[0][:,dead].any() and bool(got[:,~dead].any())
    else:
        assert float((learn.model(z)-masked).detach().abs().max()) <= 1e-6*float(masked.detach().abs().max()), 'the weights read what is dead'
        assert got[0].numel()==int((~dead).sum()) and small.condensed.report.inputs_after==int((~dead).sum())
    with learn.no_bar(), small.no_bar(): a,b = learn.get_preds()[0],small.get_preds()[0]
    assert float((a-b).abs().max()) <= 1e-5
    fit(small, 1)

@pytest.mark.parametrize('criterion', ['large_scaled','large_final','taylor','fisher','gradient_input','random', lambda w,c: (w*c.input_scale)**2])
def test_criteria(criterion):
    "Each of them gives exact counts, and those that look at the task find the inputs that matter."
    torch.manual_seed(0)
    x = torch.randn(512, 20)
    x[:,3] = 2.
    ds = list(zip(x, (x[:,10:14].sum(1)>0).long()))
    learn = Learner(DataLoaders.from_dsets(ds, ds[:64], bs=16, num_workers=0, device='cpu'), kinds['vector'][0](), loss_func=CrossEntropyLossFlat())
    cb = InputPruneCallback(.8, criterion=criterion)
    fit(learn, 6, cb)
    assert len(cb.kept)==4==int((learn.model[0].weight!=0).any(0).sum()) and cb.sparsifier.deaths[0]==3
    if criterion!='random': assert cb.kept.tolist()==[10,11,12,13]

recurrent = [dict(), dict(kind=nn.GRU), dict(kind=nn.RNN), dict(bidirectional=True), dict(num_layers=2), dict(bias=False), dict(steps_first=True)]

def informed(make, x, at, dim):
    "What is kept of data whose class is told by the features `at` of dimension `dim`, and the Learner that found it."
    ds = list(zip(x, (x.index_select(dim, torch.tensor(at)).flatten(1).mean(1)>0).long()))
    learn,cb = Learner(DataLoaders.from_dsets(ds, ds[:64], bs=16, num_workers=0, device='cpu'), make(), loss_func=CrossEntropyLossFlat()),InputPruneCallback(.5)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(8, 1e-2, cbs=cb)
    return cb.kept.tolist(),learn

@pytest.mark.parametrize('steps', [6, 9])
@pytest.mark.parametrize('kwargs', recurrent, ids=str)
def test_the_columns_of_a_series_that_matter_are_found(kwargs, steps):
    "Also where there are as many steps as columns: the scale is that of columns, not of steps. Magnitude alone keeps what hardly varies."
    x = torch.randn(256, steps, 6)
    x[...,[1,3]] = 1 + 1e-4*torch.randn(256, steps, 2)
    def _make():
        net = Recurrent(**kwargs)
        with torch.no_grad():
            for n,p in net.rnn.named_parameters():
                if 'weight_ih_l0' in n: p[:,[1,3]] *= 100
        return net
    x[...,4] *= .1
    kept,learn = informed(_make, x, [0,2,5], dim=2)
    assert kept==[0,2,5]
    small = learn.condense()
    assert small.model.rnn.input_size==3 and small.dls.one_batch()[0].shape==(16,steps,3)
    assert float((small.model.eval()(x[...,kept])-learn.model.eval()(x)).detach().abs().max()) <= 1e-5

def test_the_frames_of_a_clip_that_matter_are_found():
    x = torch.randn(256, 8, 3, 5, 5)
    x[:,[1,2,4,6]] += torch.randn(256, 1, 1, 1, 1)
    kept,learn = informed(lambda: video(0, 1, 3, 4, 2, n=8), x, [1,2,4,6], dim=1)
    assert kept==[1,2,4,6]
    small = learn.condense()
    assert small.model[1].in_channels==4 and small.dls.one_batch()[0].shape==(16,4,3,5,5)

def test_ties_are_broken_the_same_way():
    for _ in range(2):
        net = nn.Linear(10, 2)
        nn.init.ones_(net.weight)
        p = InputPruner(net, torch.randn(4, 10))
        p.sparsify(.3)
        assert p.deaths==[0,1,2]

def test_induced_alone_and_together():
    "Dead neurons further on leave inputs without a use, though weights still read them."
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.mul_(torch.eye(8)) # one neuron for each input
        net[2].weight[:,5:] = 0
    x = torch.randn(64, 8)
    for sparsity,left in ((0.,5), (.25,5), (.75,2)):
        model = deepcopy(net)
        cb = InputPruneCallback(sparsity, induced=True)
        fit(learner(model, x), 2, cb, KeepZeros())
        assert len(cb.kept)==left and not {5,6,7} & set(cb.kept.tolist())
    cb = InputPruneCallback(0.)
    fit(learner(deepcopy(net), x), 2, cb, KeepZeros())
    assert len(cb.kept)==8

def test_masks_go_on_in_another_fit_and_into_files(tmp_path):
    learn,files = images(tmp_path, conv(), Normalize.from_stats(*imagenet_stats))
    fit(learn, 1, InputPruneCallback(.25, granularity='row'))
    cb = InputPruneCallback(.5, granularity='row')
    fit(learn, 1, cb)
    assert len(cb.kept)==4 and sum(isinstance(f, InputMask) for f in learn.dls.train.after_batch.fs)==1
    dead = [i for i in range(8) if i not in cb.kept]
    learn.export('masked.pkl')
    loaded = load_learner(tmp_path/'masked.pkl')
    for l in (learn, loaded): l.remove_cbs(ProgressCallback)
    for l in (learn, loaded): assert not l.dls.test_dl(files[:2]).one_batch()[0][:,:,dead].any()
    assert float((learn.predict(files[0])[2]-loaded.predict(files[0])[2]).abs().max()) <= 1e-6

def test_columns_of_a_table():
    "Missing values of a column are no column of their own, and all of an embedding goes together."
    n = 400
    g = np.random.default_rng(0)
    df = pd.DataFrame(dict(color=g.choice(list('rgb'), n), noise=g.choice(list('uvwxyz'), n), age=g.normal(size=n), height=g.normal(size=n), luck=g.normal(size=n)))
    df['target'] = ((df.color=='r')*2. + df.age > 1).astype(int)
    df.loc[::7,'luck'] = np.nan
    dls = TabularDataLoaders.from_df(df, '.', [Categorify,FillMissing,Normalize], ['color','noise'], ['age','height','luck'], 'target', y_block=CategoryBlock(),
        valid_idx=range(300, n), bs=32, device='cpu', num_workers=0)
    for criterion in ('auto','fisher'):
        learn = tabular_learner(dls, layers=[32], loss_func=CrossEntropyLossFlat())
        cb = InputPruneCallback(.6, criterion=criterion)
        fit(learn, 6, cb)
        assert cb.feature_names==['color','noise','luck','age','height'] and sorted(cb.kept_names)==['age','color'] and cb.sparsifier.granularity=='column'
        assert list(cb.to_frame().index[:2])==sorted(cb.kept_names, key=lambda k: -float(cb.scores[cb.feature_names.index(k)]))
    with pytest.raises(ValueError, match="take 'taylor'"): fit(learn, 1, InputPruneCallback(.5, criterion='gradient_input'))

def test_half_of_a_census_is_enough(tmp_path):
    "All columns that tell something are found, and a saved learner asks for no others."
    lost = []
    for seed in range(3):
        df = census(8000, seed)
        cats,conts = df.columns[6:14].tolist(),df.columns[:6].tolist()
        dls = TabularDataLoaders.from_df(df, tmp_path, [Categorify,FillMissing,Normalize], cats, conts, 'income', y_block=CategoryBlock(),
            valid_idx=range(6000, 8000), bs=64, device='cpu', num_workers=0)
        def _fit(learn, n, *cbs):
            with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n, 3e-3, wd=.1, cbs=list(cbs))
            return learn.validate()[1]
        set_seed(seed)
        dense,learn,cb = [tabular_learner(dls, layers=[64,32], metrics=accuracy, path=tmp_path) for _ in range(2)] + [InputPruneCallback(.5)]
        whole,_ = _fit(dense, 5),_fit(learn, 5, cb)
        kept = set(cb.kept_names)
        assert len(kept)==7 and {'education','occupation','contract','hours','age','tenure'} <= kept
        small = learn.condense()
        lost.append(whole-_fit(small, 2))
        assert set(small.dls.cont_names)==kept & set(conts) and {n for n in small.dls.cat_names if not n.endswith('_na')}==kept & set(cats)
        small.export('small.pkl')
        loaded = load_learner(tmp_path/'small.pkl')
        for l in (small, loaded): l.remove_cbs(ProgressCallback)
        rows = df.iloc[6000:6200]
        some,all_columns = [l.get_preds(dl=l.dls.test_dl(r))[0] for l,r in ((loaded,rows[sorted(kept)]), (small,rows))]
        assert float((some-all_columns).abs().max()) <= 1e-6
        assert loaded.predict(rows[sorted(kept)].iloc[0])[1]==int(some[0].argmax())
    assert np.mean(lost) <= .005, lost

def test_errors_leave_everything_as_it_was():
    x = torch.randn(64, 3, 8, 8)
    cases = [(dict(criterion='large_scaled', granularity='row'), 'no weight reads a feature that is masked'), (dict(granularity='feature'), "of granularity 'channel'"),
        (dict(names=list('ab')), '2 names for 3 input features'), (dict(granularity='patch(0,2)'), 'is not known'), (dict(criterion='wanda'), 'needs input_norm')]
    for kwargs,message in cases:
        learn = learner(conv(), x)
        before = deepcopy(learn.model.state_dict())
        with pytest.raises(ValueError, match=message): fit(learn, 1, InputPruneCallback(.5, **kwargs))
        assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
        assert not any(isinstance(f, InputMask) for f in learn.dls.train.after_batch.fs)
    for bad in (1, -.1, float('nan')):
        with pytest.raises(ValueError, match='a fraction of the way to end_epoch'): InputPruneCallback(.5, warmup=bad)
    learn = learner(conv(), torch.ones(64, 3, 8, 8))
    with pytest.raises(ValueError, match='all inputs are the same'): fit(learn, 1, InputPruneCallback(.5))
    learn = learner(conv(), x)
    fit(learn, 1, InputPruneCallback(.5, granularity='row'))
    with pytest.raises(ValueError, match=r'items of shape \(3, 9, 8\), but the mask is of shape \(3, 8, 8\)'): learn.dls.train.after_batch((torch.randn(2, 3, 9, 8),))
    small = learner(mlp(), x)
    fit(small, 1, InputPruneCallback(.5))
    with pytest.raises(ValueError, match='features are selected from'): small.condense().condensed.inputs(torch.randn(2, 3, 9, 8))

class Own(nn.Module):
    "A parameter in place of a first layer."
    def __init__(self, f, n):
        super().__init__()
        self.f,self.w,self.head = f,nn.Parameter(torch.randn(8, n)*.1),nn.Linear(8, 2)
    def forward(self, x):
        y = nn.functional.linear(self.f(x), self.w).relu()
        return self.head(y if y.ndim==2 else y.mean(1))

@pytest.mark.parametrize('f,shape,n', [(lambda x: x.flatten(1), (3,4,4), 48), (lambda x: x.transpose(1, 2), (5,5), 5), (lambda x: x.mT.contiguous(), (5,5), 5)],
    ids=['flat', 'transposed', 'copied'])
def test_a_parameter_that_reads_something_else_than_its_module_is_named(f, shape, n):
    "Its scale is measured at the input of the module, so that it would be that of something else."
    with pytest.raises(ValueError, match='w in the model reads inputs as .*, but its module gets'): fit(learner(Own(f, n), torch.randn(64, *shape)), 1, InputPruneCallback(.5))

@pytest.mark.parametrize('f,shape,n', [(lambda x: x, (6,), 6), (lambda x: x, (5,5), 5), (lambda x: 2*x, (5,5), 5)], ids=['vector', 'series', 'doubled'])
def test_a_parameter_that_reads_the_input_is_measured(f, shape, n):
    x = torch.randn(64, *shape)
    x[...,2] = 1.
    cb = InputPruneCallback(.5)
    fit(learner(Own(f, n), x), 2, cb)
    assert cb.sparsifier.n==n and 2 not in cb.kept

def test_windows_of_clips_are_refused():
    with pytest.raises(ValueError, match='no dimension is known to be time'): InputFeatures(video(0, 2, 1, 3, 4, n=3), torch.randn(2, 8, 3, 5, 5), 'window(2)')
