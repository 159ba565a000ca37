"Inputs, heads and other units go while a network trains."
import warnings
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.all import *
from fastai.tabular.all import *
from torch import nn
from fasterprune.all import *
from fasterprune.core.models import evaluating
from support.shrinking import Look, best_of, both, cnn, data, far, filters, fit, learner, mlp, noted
from support.shrinking import optimizers, plain_mlp, preds, preds_of, quiet, shapes, shrinks, slow, unit, wave

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

@pytest.mark.parametrize('make', [mlp, wave, slow(plain_mlp), slow(cnn)])
def test_inputs(make):
    "They go from the DataLoaders at the end of an epoch, and the callback still tells of them by their old numbers."
    x = 4 if make is wave else 3 if make is cnn else 20
    s,seen = (.5 if x==4 else .4 if x==3 else .6),[]
    class See(Callback):
        def before_batch(self):
            if self.training: seen.append((self.epoch, self.xb[0].shape[1]))
    masked,small,(cb,_,_) = both(make, lambda: InputPruneCallback(s, schedule=linear), more=[lambda: filters(.5, unit(make)), See], cut=shrinks(steps=None))
    left = [x-round(s*x*k/3) for k in range(4)]
    assert sorted(set(seen[len(seen)//2:]))==list(enumerate(left[:3])) and small.dls.one_batch()[0].shape[1]==left[3]==len(cb.kept)
    old = learner(make)
    set_seed(1)
    other = InputPruneCallback(s, schedule=linear)
    fit(old, other, filters(.5, unit(make)))
    a,b = other.to_frame(),cb.to_frame()
    assert cb.kept.tolist()==other.kept.tolist()==small.condensed.inputs.index0.tolist() and len(cb.scores)==x and cb.sparsifier.deaths==other.sparsifier.deaths
    assert torch.allclose(cb.scores, other.scores, rtol=1e-5) and a.index.tolist()==b.index.tolist() and np.allclose(a.score, b.score, rtol=1e-5)
    assert np.allclose(a.died_at, b.died_at, equal_nan=True)
    assert [r['inputs'] for r in cb.epochs_seen]==left[1:]
    full = masked.dls.valid.one_batch()[0]
    assert torch.equal(preds_of(small.model, small.condensed.inputs(full)), preds_of(small.model, small.dls.valid.one_batch()[0]))

def test_the_scale_of_inputs_that_are_gone_is_still_told():
    res = []
    for cut in ([], [shrinks()]):
        learn,cb = learner(plain_mlp),InputPruneCallback(.6, schedule=linear)
        set_seed(1)
        fit(learn, cb, *cut)
        res.append(cb.to_frame())
    assert res[1].scale.notna().all() and np.allclose(res[0].scale[res[0].kept], res[1].scale[res[1].kept], rtol=1e-5)

@pytest.mark.parametrize('criterion', ['taylor', 'gradient_input', slow('large_final'), slow('fisher')])
def test_criteria_of_inputs(criterion):
    masked,small,(cb,_) = both(plain_mlp, lambda: InputPruneCallback(.6, criterion=criterion), more=[lambda: filters(.5, 'neuron')], cut=shrinks())
    assert cb.kept.tolist()==small.condensed.inputs.index0.tolist() and len(cb.kept)==8

class Two(nn.Module):
    "Two inputs, which layers read that go on by themselves."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(10, 16),nn.Linear(8, 12),nn.Linear(28, 3)
    def forward(self, x, y): return self.c(torch.cat([self.a(x).relu(), self.b(y).relu()], 1))

def two(**kwargs):
    set_seed(0)
    model = Two().double()
    x = torch.randn(40, 18, dtype=torch.float64)
    y = x[:,:9].view(40, 3, 3).sum(2).argmax(1)
    parts = x[:,:10],x[:,10:],y
    dls = tensor_dls([t[:32] for t in parts], [t[32:] for t in parts], bs=8)
    dls.n_inp = 2
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), **kwargs)

@pytest.mark.parametrize('criterion', ['large_scaled', 'fisher', slow('taylor'), slow('gradient_input')])
def test_two_inputs(criterion):
    "Layers that read them become narrow at different rates; features compete all the same."
    res = []
    for cut in ([], [shrinks()]):
        learn = two()
        set_seed(1)
        cb = InputPruneCallback(.5, criterion=criterion)
        fit(learn, cb, filters({'a':.8, 'b':.1}, 'neuron', schedule=agp), *cut, n=3)
        res.append((cb.kept.tolist(), preds(learn if cut else learn.condense()), cb.scores))
    (k,a,s),(l,b,t) = res
    assert k==l and len(k)==9 and far(a, b) <= 1e-9 and torch.allclose(s, t, rtol=1e-4)

def diagonal():
    "Each of the first features is read by one neuron."
    net = plain_mlp()
    with torch.no_grad(): net[0].weight.copy_(torch.eye(16, 20)*(torch.rand(16, 1)+.5) + (torch.arange(20)>=16)*.1)
    return net
shapes['diagonal'] = (20,)

def test_induced_inputs():
    masked,small,(cb,*_) = both(diagonal, lambda: InputPruneCallback(.1, induced=True), more=[KeepZeros, lambda: filters(.5, 'neuron', layers=['0'])], n=2)
    assert len(cb.kept)==small.model[0].in_features <= 12 and cb.kept.tolist()==small.condensed.inputs.index0.tolist()

def table(**kwargs):
    set_seed(0)
    rnd,n = np.random.RandomState(0),64
    df = pd.DataFrame({k:rnd.choice(list('abcd'), n) for k in ('p','q','r')} | {k:rnd.randn(n) for k in ('u','v','w','x')})
    df['y'] = np.where((df.u+df.v>0)^(df.p>'c'), 'yes', 'no')
    df.loc[::7,'w'] = np.nan
    dls = TabularDataLoaders.from_df(df, procs=[Categorify, FillMissing, Normalize], cat_names=['p','q','r'], cont_names=list('uvwx'),
        y_names='y', valid_idx=list(range(16)), bs=16, num_workers=0, device='cpu')
    return tabular_learner(dls, layers=[20,12], **merge(dict(metrics=accuracy), kwargs)),df

@pytest.mark.parametrize('neurons,opt', [(True,'adamw'), *[slow(a, b) for a,b in ((True,'sgd'), (True,'ranger'), (False,'sgd'), (False,'ranger'))]])
def test_tables(neurons, opt, tmp_path):
    res = []
    for cut in ([], [shrinks()]):
        learn,df = table(opt_func=optimizers[opt], path=tmp_path)
        set_seed(1)
        cb = InputPruneCallback(.5, criterion='large_scaled')
        fit(learn, cb, *[filters(.5, 'neuron')]*neurons, *cut, n=4, lr=1e-2)
        res.append((learn, cb))
    (masked,a),(small,b) = res
    after = masked.condense()
    assert a.kept_names==b.kept_names and len(a.kept)==7-round(.5*7) and a.to_frame().index.tolist()==b.to_frame().index.tolist()
    assert list(small.dls.x_names)==list(after.dls.x_names) and set(b.kept_names)=={n.removesuffix('_na') for n in small.dls.x_names}
    assert far(preds(after), preds(small)) <= 1e-4 and n_params(after.model)==n_params(small.model)
    needed = df[[*b.kept_names]]
    assert far(preds(masked, dl=masked.dls.test_dl(df)), preds(small, dl=small.dls.test_dl(needed))) <= 1e-4
    assert {id(p) for g in small.opt.param_groups for p in g['params']}=={id(p) for p in small.model.parameters()}
    small.export('small.pkl')
    back = load_learner(tmp_path/'small.pkl')
    with back.no_bar(): assert torch.equal(back.predict(needed.iloc[0])[2], quiet(lambda: small.predict(needed.iloc[0]), small)[2])
    small.condensed.save(tmp_path/'table.safetensors')
    again = load_condensed(tmp_path/'table.safetensors', table()[0].model)
    xs = small.dls.valid.one_batch()[:2]
    with evaluating(again.model), evaluating(small.model): assert torch.equal(again.model(*xs), small.model(*xs))
    fit(small, n=1)

def of_table(learn):
    with evaluating(learn.model), torch.no_grad(): return learn.model(*learn.dls.valid.one_batch()[:2])

@pytest.mark.parametrize('with_opt', [False, True])
def test_the_best_epoch_of_a_table(tmp_path, with_opt):
    favored,saves = best_of(0, with_opt=with_opt)
    learn,df = table(path=tmp_path, metrics=favored)
    favored.learn,seen = learn,[]
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='Could not load')
        cb = InputPruneCallback(.7, schedule=linear, criterion='large_scaled')
        fit(learn, cb, shrinks(), saves, Look(lambda l: seen.append((list(l.dls.x_names), of_table(l)))), n=3, lr=1e-2)
    assert list(learn.dls.x_names)==seen[0][0]!=seen[2][0] and torch.equal(of_table(learn), seen[0][1])
    assert {id(p) for g in learn.opt.param_groups for p in g['params']}=={id(p) for p in learn.model.parameters()}, 'the optimizer does not know all parameters'
    fit(learn, n=1)

@pytest.mark.parametrize('dtype', [torch.float32, slow(torch.float64)])
@pytest.mark.parametrize('granularity', ['weight', 'kernel', '2:4', 'block(4,4)', *map(slow, ('row', 'column', 'channel', 'layer'))])
def test_other_granularities(granularity, dtype, tmp_path):
    "What they leave behind is exact in number, and a file holds it."
    s = {'2:4':.5, 'layer':.3}.get(granularity, .9)
    def net(): return nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    set_seed(0)
    learn = Learner(data((4,6,6), dtype=dtype), net().to(dtype), loss_func=CrossEntropyLossFlat())
    cb,cut = SparsifyCallback(s, granularity, schedule=linear),shrinks()
    with torch.no_grad(): # there is something to cut
        for i,n in ((0,4), (2,8)): learn.model[i].weight[:n],learn.model[i].bias[:n] = 0,0
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='the network is trained as wide')
        fit(learn, cb, KeepZeros(), cut)
    n = cb.sparsifier.n
    assert len(cut.history)>=1 and n_params(learn.model) < n_params(net())
    assert cb.sparsifier.reached==pytest.approx(cb.sparsifier.sparsity(), abs=1e-12)
    assert cb.history[-1][1] >= round(s*n)/n, 'weights that are gone because of others count, too, so that it may be more'
    learn.condensed.save(tmp_path/'small.safetensors')
    again = load_condensed(tmp_path/'small.safetensors', net().to(dtype))
    x = learn.dls.valid.one_batch()[0]
    assert torch.equal(preds_of(again.model, x), preds_of(learn.model, x))

class Recurrent(nn.Module):
    "Filters whose channels an LSTM reads."
    def __init__(self):
        super().__init__()
        self.a,self.n,self.rnn,self.h = nn.Conv1d(4, 12, 5, padding=2),nn.BatchNorm1d(12),nn.LSTM(12, 10, batch_first=True),nn.Linear(10, 3)
    def forward(self, x): return self.h(self.rnn(self.n(self.a(x)).relu().transpose(1, 2))[0][:,-1])
shapes['Recurrent'] = 4,15

def test_weights_of_a_recurrent_layer_that_gets_narrower():
    learn,cb = learner(Recurrent),SparsifyCallback(.5, layers=nn.LSTM, criterion='updating_movement')
    assert not noted(lambda: fit(learn, filters(.5, layers='a'), cb, shrinks()))
    rnn = learn.model.rnn
    assert rnn.input_size==6 and rnn.weight_ih_l0.shape==(40,6)
    zeros = sum(int((w==0).sum()) for w in (rnn.weight_ih_l0, rnn.weight_hh_l0)) + 40*6 # what is gone counts
    assert cb.sparsifier.reached==pytest.approx(cb.sparsifier.sparsity(), abs=1e-12)==pytest.approx(zeros/cb.sparsifier.n) and zeros>=round(.5*cb.sparsifier.n)

def test_neighbors_when_one_of_them_is_gone():
    def net(): return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    shapes['net'] = (20,)
    learn = learner(net)
    with torch.no_grad(): learn.model[0].weight[0],learn.model[0].bias[0] = 0,0
    cb = SparsifyCallback(.5, '2:4', schedule=linear, layers=['2'])
    fit(learn, cb, KeepZeros(), shrinks())
    assert learn.model[2].in_features==15 and cb.sparsifier.sparsity() >= .5

class Attend(nn.Module):
    "A transformer's layer."
    def __init__(self):
        super().__init__()
        self.embed,self.layer,self.head = nn.Linear(6, 16),nn.TransformerEncoderLayer(16, 4, 32, dropout=0., batch_first=True),nn.Linear(16, 3)
    def forward(self, x): return self.head(self.layer(self.embed(x)).mean(1))
shapes['Attend'] = (5,6)
def test_heads(): both(Attend, lambda: [filters(.5, 'head'), filters(.5, 'neuron', layers=['layer.linear1'])])
