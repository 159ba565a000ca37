"fastai Learners of all kinds: what `condense` gives goes on as the old one would, and the old one is as it was."
import random
from copy import deepcopy
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.all import *
from fastai.tabular.all import *
from fastai.text.all import *
from fastai.vision.all import *
from torch import nn
from torchvision import models
from fasterprune.all import *
from fasterprune.core.batches import as_tuple
from fasterprune.core.models import evaluating
from fasterprune.core.optimizer_state import slice_state
from support.nets import halve, perturb

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

def quiet(f, *learners):
    "The result of `f`, and no progress bars."
    with ContextManagers([c() for l in learners for c in (l.no_bar, l.no_logging)]): return f()
def fit(learn, n=1, *args, **kwargs): quiet(lambda: learn.fit(n, *args, **kwargs), learn)
def preds(learn, **kwargs): return quiet(lambda: learn.get_preds(**kwargs), learn)[0]
def error(learn, small, **kwargs):
    a,b = preds(learn, **kwargs),preds(small, **kwargs)
    return float((a-b).abs().max()/a.abs().max())
def zeros(learn):
    "Half of the outputs of each layer are zero, BatchNorms are as after training."
    halve(perturb(learn.model), (nn.modules.conv._ConvNd,nn.Linear))
    return learn

# ---- learners

class Picture(Transform):
    "An image for a number: its class is the channel that is bright."
    def encodes(self, i:int):
        x = np.random.RandomState(i).randint(0, 128, (32,32,3), dtype=np.uint8)
        x[...,i%3] += 100
        return PILImage.create(x)
class Shape(Transform):
    "The pixels that are bright."
    def encodes(self, i:int): return PILMask.create((np.asarray(Picture().encodes(i))[...,0] > 128).astype(np.uint8))
def label(i): return 'rgb'[i%3]

def picture_dls(target, n=12, **kwargs):
    dsets = Datasets(list(range(n)), [[Picture()], target], splits=[list(range(n-4)),list(range(n-4, n))])
    tfms = dict(after_item=[ToTensor()], after_batch=[IntToFloatTensor(), Normalize.from_stats(*imagenet_stats)])
    return dsets.dataloaders(bs=4, num_workers=0, device='cpu', **tfms, **kwargs)

def vision(arch): return vision_learner(picture_dls([label, Categorize()]), arch, pretrained=False, metrics=accuracy)
def mobilenet():
    "`vision_learner` does not pass on where to cut this one."
    model = create_vision_model(models.mobilenet_v2, 3, pretrained=False, cut=-1)
    return Learner(picture_dls([label, Categorize()]), model, splitter=default_split, metrics=accuracy)
def unet(**kwargs):
    dls = picture_dls([Shape()])
    dls.vocab = ['dark', 'bright']
    return unet_learner(dls, models.resnet18, pretrained=False, n_out=2, loss_func=CrossEntropyLossFlat(axis=1), **kwargs)

def rows(n=48):
    rnd = np.random.RandomState(0)
    df = pd.DataFrame(dict(a=rnd.choice(list('xyz'), n), b=rnd.choice(list('uv'), n), c=rnd.randn(n), d=rnd.randn(n), e=rnd.randn(n)))
    df['yes'],df['y'] = rnd.choice(['no','yes'], n),rnd.rand(n)
    return df
def table(y_range=None):
    dls = TabularDataLoaders.from_df(rows(), procs=[Categorify, FillMissing, Normalize], cat_names=['a','b'], cont_names=['c','d','e'], y_names='y' if y_range else 'yes',
        y_block=RegressionBlock() if y_range else CategoryBlock(), valid_idx=list(range(16)), bs=16, num_workers=0, device='cpu')
    return tabular_learner(dls, layers=[20,10], y_range=y_range, metrics=rmse if y_range else accuracy)

class Words:
    "Splits texts at blanks."
    def __call__(self, items): return (t.split(' ') for t in items)
def text_dls(n=24, **kwargs):
    rnd = random.Random(0)
    texts = [' '.join(rnd.choices('good bad film plot music long short the a was very'.split(), k=rnd.randint(3, 20))) for _ in range(n)]
    df = pd.DataFrame(dict(text=texts, label=['pos' if 'good' in t else 'neg' for t in texts], is_valid=[i%3==0 for i in range(n)]))
    return TextDataLoaders.from_df(df, text_col='text', valid_col='is_valid', bs=4, seq_len=6, tok_tfm=Words(), device='cpu', num_workers=0, **kwargs)
rnn = dict(emb_sz=12, n_hid=16, n_layers=2)
def texts():
    return text_classifier_learner(text_dls(label_col='label'), AWD_LSTM, seq_len=6, pretrained=False, config=merge(awd_lstm_clas_config, rnn), metrics=accuracy)
def language(): return language_model_learner(text_dls(is_lm=True), AWD_LSTM, pretrained=False, config=merge(awd_lstm_lm_config, rnn))

class Pair(nn.Module):
    "Two inputs, one of them a sequence."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c,self.d = nn.Linear(6, 8),nn.Conv1d(4, 8, 3),nn.Linear(8, 10),nn.Linear(10, 2)
    def forward(self, x, y): return self.d(self.c((self.a(x)+self.b(y).mean(-1)).relu()).relu())
def pair():
    ds = [(torch.randn(6), torch.randn(4, 7), i%2) for i in range(24)]
    dls = DataLoaders.from_dsets(ds[:16], ds[16:], bs=8, num_workers=0, device='cpu')
    dls.n_inp = 2
    def halves(m): return [params(m.a)+params(m.b), params(m.c)+params(m.d)]
    return Learner(dls, Pair(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, splitter=halves)

def slow(name): return pytest.param(name, marks=pytest.mark.long)
kinds = dict( # learner, at most which share of its parameters is left
    resnet18=(lambda: vision(models.resnet18), .5), resnet34=(lambda: vision(models.resnet34), .5), vgg11_bn=(lambda: vision(models.vgg11_bn), .3),
    densenet121=(lambda: vision(models.densenet121), .3), mobilenet_v2=(mobilenet, .6),
    mobilenet_v3_small=(lambda: vision(models.mobilenet_v3_small), .5), squeezenet1_1=(lambda: vision(models.squeezenet1_1), .4),
    timm_resnet18=(lambda: vision('resnet18'), .5), timm_efficientnet_b0=(lambda: vision('efficientnet_b0'), .6), timm_convnext_atto=(lambda: vision('convnext_atto'), .6),
    timm_mobilenetv3=(lambda: vision('mobilenetv3_small_050'), .65), unet=(unet, .6), unet_attention=(lambda: unet(self_attention=True, blur=True), .6),
    table=(table, .6), table_range=(lambda: table(y_range=(0,1)), .6), texts=(texts, .95), language=(language, 1), pair=(pair, .8))
some = [k if k in 'resnet18 mobilenet_v3_small timm_resnet18 unet table table_range texts language pair'.split() else slow(k) for k in kinds]

def named_groups(learn, opt=None):
    "Names of the parameters in each group."
    names = {p:n for n,p in learn.model.named_parameters()}
    return [[names[p] for p in g] for g in (opt or learn.opt).param_lists]

def tensors(learn): return {k:v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

# ---- what all kinds share

@pytest.mark.parametrize('kind', some)
def test_says_the_same_and_leaves_the_old_one_alone(kind):
    make,share = kinds[kind]
    learn = zeros(make())
    learn.create_opt()
    state,opt,dls,cbs,groups = tensors(learn),learn.opt,learn.dls,list(learn.cbs),named_groups(learn)
    small = learn.condense()
    assert same(tensors(learn), state) and learn.opt is opt and learn.dls is dls and named_groups(learn)==groups
    assert list(learn.cbs)==cbs and all(cb.learn is learn for cb in learn.cbs) and all(cb.learn is small for cb in small.cbs)
    assert [type(cb) for cb in small.cbs]==[type(cb) for cb in cbs] and type(small) is type(learn) and type(small.model) is type(learn.model)
    assert small.loss_func is learn.loss_func and small.metrics.attrgot('name')==learn.metrics.attrgot('name') and small.dls is not dls
    assert learn.model.training and small.model.training
    n = sum(p.numel() for p in small.model.parameters())
    assert n==small.condensed.report.params_after <= share*sum(p.numel() for p in learn.model.parameters())
    assert error(learn, small, **(dict(reorder=False) if kind=='language' else {})) <= 1e-5
    a,b = [list(quiet(l.validate, l)) for l in (learn, small)]
    assert a==pytest.approx(b, abs=1e-4) and len(a)==1+len(learn.metrics)

@pytest.mark.parametrize('kind', some)
def test_groups_are_the_same_and_freeze_alike(kind):
    learn = zeros(kinds[kind][0]())
    small = learn.condense()
    for l in (learn, small): l.create_opt()
    left = {n for n,_ in small.model.named_parameters()}
    groups = [{n.removesuffix('_orig') for n in g} & left for g in named_groups(learn)] # the attention of a unet makes its weights of others
    assert [set(g) for g in named_groups(small)]==groups and sum(map(len, groups))==len(left)
    for n in range(len(groups)):
        for l in (learn, small): l.freeze_to(n)
        frozen,small_frozen = [{k.removesuffix('_orig') for k,p in l.model.named_parameters() if not p.requires_grad} for l in (learn, small)]
        assert small_frozen==frozen & left and small.opt.frozen_idx==n
    small.freeze()
    before = tensors(small)
    fit(small, 1, 1e-3)
    changed = {k for k,v in small.model.named_parameters() if not torch.equal(v, before[k])}
    trained = {k for k,p in small.model.named_parameters() if p.requires_grad}
    assert changed and changed <= trained and changed & groups[-1]
    small.unfreeze()
    fit(small, 1, slice(1e-5, 1e-3))
    assert [h['lr'] for h in small.opt.hypers]==pytest.approx(list(even_mults(1e-5, 1e-3, len(groups))) if len(groups)>1 else [1e-3])
    assert {k for k,v in small.model.named_parameters() if not torch.equal(v, before[k])} > changed or len(groups)==1
    assert len(small.recorder.values)==1 and all(np.isfinite(small.recorder.values[0]))

@pytest.mark.parametrize('kind', some)
def test_exact_in_float64(kind):
    learn = zeros(kinds[kind][0]())
    getattr(learn.model.double(), 'reset', noop)() # the hidden states, too
    xs = [cast(x, torch.Tensor) for x in learn.dls.one_batch()[:learn.dls.n_inp]]
    xs = tuple(x.double() if x.is_floating_point() else x for x in xs)
    small = learn.condense(sample=xs)
    for n in (len(xs[0]), 2):
        batch = tuple(x[:n] for x in xs)
        with evaluating(learn.model), evaluating(small.model):
            set_seed(0)
            for m in (learn.model, small.model): getattr(m, 'reset', noop)()
            a,b = [o[0] if isinstance(o, tuple) else o for o in (learn.model(*batch), small.model(*as_tuple(small.condensed.inputs(*batch))))]
        assert float((a-b).abs().max()/a.abs().max()) <= 1e-10

items = dict(resnet18=7, unet=7, table=rows().iloc[0], texts='a good film')
@pytest.mark.parametrize('kind', items)
def test_goes_to_a_file_and_back(kind, tmp_path):
    learn = zeros(kinds[kind][0]())
    learn.path = tmp_path
    small = learn.condense()
    fit(small, 1, 1e-3)
    small.save('small')
    saved = tensors(small)
    fit(small, 1, 1e-2)
    small.load('small')
    assert same(tensors(small), saved) and not small.opt.state_dict()['state'][0].keys() <= {'do_wd', 'force_train'}
    small.export('small.pkl')
    back = load_learner(tmp_path/'small.pkl')
    item = items[kind]
    a,b = [quiet(lambda: l.predict(item), l) for l in (small, back)]
    assert torch.allclose(a[2], b[2], atol=1e-6) and str(a[0])==str(b[0])
    xs = back.dls.test_dl(pd.DataFrame([item]) if kind=='table' else [item]).one_batch()
    again = back.condense(sample=xs[:2 if kind=='table' else 1])
    assert torch.allclose(quiet(lambda: again.predict(item), again)[2], b[2], atol=1e-6)

class Steps(Transform):
    "A sequence for a number."
    def encodes(self, i:int): return torch.randn(7, 16, generator=torch.Generator().manual_seed(i)) + i%2

class Block(nn.Module):
    "A transformer block on a stream of which 4 features and on which a head are dead."
    def __init__(self, n=16):
        super().__init__()
        self.stem,self.norm1,self.norm2,self.head = nn.Linear(n, n),nn.LayerNorm(n),nn.LayerNorm(n),nn.Linear(n, 3)
        self.attn,self.mlp = nn.MultiheadAttention(n, 4, batch_first=True),nn.Sequential(nn.Linear(n, 32), nn.GELU(), nn.Linear(32, n))
        with torch.no_grad():
            for l in (self.stem, self.attn.out_proj, self.mlp[2], self.norm1, self.norm2): l.weight[4:8],l.bias[4:8] = 0,0
            self.attn.in_proj_weight[:4],self.attn.in_proj_weight[16:20],self.attn.in_proj_weight[32:36] = 0,0,0
            self.mlp[0].weight[::2] = 0
    def forward(self, x):
        x = self.stem(x)
        h = self.norm1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return self.head((x + self.mlp(self.norm2(x))).mean(1))

def test_narrow_norms_and_attention_go_to_a_file_and_back(tmp_path):
    dls = Datasets(list(range(24)), [[Steps()], [label, Categorize()]], splits=[list(range(16)),list(range(16, 24))]).dataloaders(bs=4, num_workers=0, device='cpu')
    learn = Learner(dls, Block(), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    small = learn.condense()
    assert small.model.stem.out_features < 16 and small.model.mlp[0].out_features <= 17 and error(learn, small) <= 1e-5
    fit(small, 1, 1e-3)
    small.export('small.pkl')
    back = load_learner(tmp_path/'small.pkl')
    a,b = [quiet(lambda: l.predict(3), l)[2] for l in (small, back)]
    assert torch.allclose(a, b, atol=1e-6)
    path = small.condensed.save(tmp_path/'small.safetensors')
    again = load_condensed(path, Block())
    x = small.dls.one_batch()[0]
    with evaluating(small.model), evaluating(again.model): assert torch.equal(small.model(x), again.model(again.inputs(x)))

@pytest.mark.parametrize('kind', ['table', 'pair'])
def test_condensed_again_while_training_goes_on(kind):
    learn = kinds[kind][0]()
    sizes = []
    for _ in range(3):
        fit(learn, 1, 1e-2, cbs=SparsifyCallback(.4, 'neuron', 'local'))
        small = learn.condense(keep_opt=True)
        assert error(learn, small) <= 1e-5
        sizes.append(small.condensed.report.params_after)
        learn = small
    assert sizes[0] > sizes[1] > sizes[2]

# ---- the optimizer

class Losses(Callback):
    "The loss of each step."
    def before_fit(self): self.losses = []
    def after_loss(self): self.losses.append(self.learn.loss.item())

@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 2))
def split(m): return [params(m[:3]), params(m[3:])]
def bare(opt_func=Adam, splitter=split):
    "A Learner without a Recorder, which would not do with float64."
    x = torch.randn(64, 3, 8, 8)
    ds = list(zip(x, (x.mean((1,2,3))>0).long()))
    dls = DataLoaders.from_dsets(ds[:48], ds[48:], bs=8, num_workers=0, device='cpu')
    return Learner(dls, net(), F.cross_entropy, opt_func, splitter=splitter, default_cbs=False, cbs=TrainEvalCallback())

def trained(*args, **kwargs):
    learn = bare(*args, **kwargs)
    learn.fit(2, slice(1e-4, 1e-3), cbs=SparsifyCallback(.5, 'filter', 'local'))
    learn.fit(1, slice(1e-4, 1e-3), wd=1e-2, cbs=KeepZeros())
    return learn

def step_losses(learn, *cbs):
    cb = Losses()
    set_seed(1)
    learn.fit(3, slice(1e-4, 1e-3), wd=1e-2, cbs=[cb, *cbs])
    return np.array(cb.losses)

def torchs(opt, **kwargs): return partial(OptimWrapper, opt=opt, **kwargs)
optimizers = dict(adam=Adam, sgd=SGD, momentum=partial(SGD, mom=.9), rmsprop=partial(RMSProp, mom=.9), radam=RAdam, qhadam=QHAdam, ranger=ranger,
    torch_sgd=torchs(torch.optim.SGD, momentum=.9), torch_adamw=torchs(torch.optim.AdamW), torch_amsgrad=torchs(torch.optim.Adam, amsgrad=True),
    torch_nadam=torchs(torch.optim.NAdam), torch_adagrad=torchs(torch.optim.Adagrad), torch_asgd=torchs(torch.optim.ASGD))

@pytest.mark.parametrize('name', optimizers)
def test_kept_optimizer_takes_the_steps_of_the_masked_network(name, double):
    learn = trained(optimizers[name])
    small,fresh = learn.condense(keep_opt=True),learn.condense()
    assert small.condensed.report.params_after < .4*small.condensed.report.params_before and fresh.opt is None
    assert small.opt.hypers==learn.opt.hypers and named_groups(small)==named_groups(learn) and type(small.opt) is type(learn.opt)
    masked,cut,anew = step_losses(learn, KeepZeros()),step_losses(small),step_losses(fresh)
    assert abs(masked-cut).max() <= 1e-9
    if name not in ('sgd', 'torch_asgd'): assert abs(masked-anew).max() >= 1e-5, 'the state does not matter, so that nothing was tested'
    assert error(learn, small) <= 1e-9

def test_kept_optimizer_is_a_copy():
    learn = trained(ranger)
    learn.freeze_to(1)
    learn.fit(1, 1e-3, cbs=KeepZeros())
    before,slow = deepcopy(learn.opt.opt.state_dict()),deepcopy(learn.opt.slow_weights)
    small = learn.condense(keep_opt=True)
    assert small.opt.frozen_idx==1 and [p.requires_grad for p in small.model.parameters()]==[p.requires_grad for p in learn.model.parameters()]
    for group,kept in zip(small.opt.param_lists, small.opt.slow_weights): assert [p.shape for p in group]==[p.shape for p in kept]
    small.fit(2, 1e-2)
    assert str(before)==str(learn.opt.opt.state_dict()) and str(slow)==str(learn.opt.slow_weights)

@pytest.mark.parametrize('make', [partial(torch.optim.AdamW, lr=1e-3), partial(torch.optim.SGD, lr=1e-2, momentum=.9), partial(Adam, lr=1e-3)])
def test_in_place_the_optimizer_goes_on(make, double):
    learn = bare()
    learn.fit(1, 1e-3, cbs=SparsifyCallback(.5, 'filter', 'local'))
    x,y = learn.dls.one_batch()
    model = learn.model.train()
    opt = make(list(model.parameters()))
    mask = find_zeros(model, x)
    def steps(model, opt, mask=None):
        found = []
        for i in range(5):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            for n,p in model.named_parameters():
                if mask and n in mask: p.grad.mul_(mask[n])
            opt.step()
            opt.zero_grad()
            found.append(loss.item())
        return np.array(found)
    steps(model, opt, mask)
    masked = deepcopy(model)
    other = make(list(masked.parameters()))
    other.load_state_dict(deepcopy(opt.state_dict()))
    c = Condenser(model, x).condense(inplace=True)
    c.slice_optimizer(opt)
    assert c.model is model and c.report.params_after < .4*c.report.params_before
    assert all(o.shape==p.shape for p in model.parameters() for o in opt.state[p].values() if isinstance(o, torch.Tensor) and o.ndim)
    assert abs(steps(model, opt)-steps(masked, other, find_zeros(masked, x))).max() <= 1e-9

class Branch(nn.Module):
    "A branch without a weight that is not zero, over what came in."
    def __init__(self, n=8):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n))
        self.branch[0].weight.data.zero_()
        self.branch[1].bias.data.uniform_(.5, 1)
    def forward(self, x): return x + self.branch(x)

@pytest.mark.parametrize('name', ['adam', 'ranger', 'torch_adamw'])
def test_constant_takes_the_place_of_a_dead_branch_in_the_groups(name):
    learn = bare(optimizers[name], lambda m: [params(m[:2]), params(m[2:])])
    learn.model = nn.Sequential(nn.Conv2d(3, 8, 3), Branch(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    learn.unfreeze()
    learn.fit(1, 1e-3, cbs=KeepZeros())
    with torch.no_grad(): learn.model[1].branch[0].weight.zero_()
    small = learn.condense(keep_opt=True)
    names = [n for n,_ in small.model.named_parameters()]
    made = [n for n in names if n not in dict(learn.model.named_parameters())]
    assert len(made)==1 and made[0].startswith('1.branch') and error(learn, small) <= 1e-5
    assert named_groups(small)==[[n for n in names if n[0] in '01'], [n for n in names if n[0]=='5']]
    before = tensors(small)
    small.fit(1, 1e-3)
    assert not torch.equal(tensors(small)[made[0]], before[made[0]])
    learn.train_bn,learn.opt = False,None
    learn.freeze()
    frozen = learn.condense()
    assert [p.requires_grad for p in frozen.model.parameters()]==[n[0]=='5' for n in names]

def test_in_place_an_optimizer_without_the_constant_of_a_dead_branch_is_an_error():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Branch(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    opt = torch.optim.SGD(model.parameters(), lr=1e-2)
    c = Condenser(model, torch.randn(2, 3, 8, 8)).condense(inplace=True)
    with pytest.raises(ValueError, match='has taken the place of a dead branch'): c.slice_optimizer(opt)
    opt.add_param_group(dict(params=[p for n,p in model.named_parameters() if n not in c.dense]))
    c.slice_optimizer(opt)

def test_nothing_to_cut_keeps_any_state():
    learn = bare(torchs(torch.optim.Adafactor))
    learn.fit(1, 1e-3)
    assert learn.condense(keep_opt=True).opt.opt.state_dict()['state'].keys()==learn.opt.opt.state_dict()['state'].keys()

def test_state_of_unknown_shape_is_an_error_that_names_it():
    learn = trained(torchs(torch.optim.Adafactor))
    before = tensors(learn)
    with pytest.raises(ValueError, match=r"keeps 'row_var' for '0.weight', which has shape \(8, 3, 3, 1\) where the parameter has \(8, 3, 3, 3\)"): learn.condense(keep_opt=True)
    assert same(tensors(learn), before)
    step_losses(learn.condense())
    learn = trained()
    learn.opt.state[learn.model[3].weight]['blocks'] = [torch.zeros(2)]
    with pytest.raises(ValueError, match="keeps 'blocks' for '3.weight', which is of type list"): learn.condense(keep_opt=True)

def test_slices_are_cut_all_or_none():
    p,q = nn.Parameter(torch.randn(4, 3)),nn.Parameter(torch.randn(5))
    opt = torch.optim.Adam([p, q])
    (p.sum()+q.sum()).backward()
    opt.step()
    state = deepcopy(opt.state_dict())
    opt.state[q]['odd'] = torch.zeros(7)
    slices = {p:('p', p.shape, {0:tensor(1,3), 1:tensor(0,)}), q:('q', q.shape, {})}
    with pytest.raises(ValueError, match="'odd' for 'q'"): slice_state(opt, slices)
    assert opt.state[p]['exp_avg'].shape==(4,3)
    del opt.state[q]['odd']
    slice_state(opt, slices)
    for k in ('exp_avg', 'exp_avg_sq'): assert torch.equal(opt.state[p][k], state['state'][0][k][[1,3]][:,:1]) and torch.equal(opt.state[q][k], state['state'][1][k])
    assert opt.state[p]['step']==1

def test_optimizer_that_was_built_before_goes_over_to_the_small_network():
    learn = bare()
    learn.opt_func = OptimWrapper(opt=torch.optim.SGD(learn.model.parameters(), lr=1e-2, momentum=.9))
    learn.fit(1, 1e-2, cbs=SparsifyCallback(.5, 'filter', 'local'))
    for keep_opt in (False, True):
        small,before = learn.condense(keep_opt=keep_opt),tensors(learn)
        weights = tensors(small)
        small.fit(1, 1e-2)
        assert same(tensors(learn), before) and not torch.equal(small.model[0].weight, weights['0.weight'])

def test_splitter_that_does_not_look_at_its_model_is_an_error():
    learn = bare()
    learn.splitter = lambda m: split(learn.model)
    halve(learn.model)
    with pytest.raises(ValueError, match='the splitter gives parameters of the dense network'): learn.condense()

# ---- data

def features(n=48, width=10, **kwargs):
    "A Learner that reads features 2 and 5 only."
    x = torch.randn(n, width)
    ds = list(zip(x, (x[:,2]>x[:,5]).long()))
    learn = Learner(DataLoaders.from_dsets(ds[:32], ds[32:], bs=8, num_workers=0, device='cpu'), nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 2)),
        loss_func=CrossEntropyLossFlat(), metrics=accuracy, **kwargs)
    with torch.no_grad(): learn.model[0].weight[:,[i for i in range(width) if i not in (2,5)]] = 0
    return learn

class Batches:
    "Batches of any kind: no data set, no length but this."
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __iter__(self):
        for i in range(self.n):
            x = torch.randn(4, 10, generator=torch.Generator().manual_seed(i))
            yield [x, (x[:,0]>0).long()]

def test_loaders_of_any_kind_are_cut():
    learn = features()
    ds = list(learn.dls.train_ds)
    kinds = [Batches(3), torch.utils.data.DataLoader(ds, batch_size=4), learn.dls.train, DataLoader(ds, bs=4, num_workers=2),
        WeightedDL(learn.dls.train_ds, bs=4, wgts=range(len(ds)), shuffle=True, num_workers=0)]
    for dl in kinds:
        learn.dls = DataLoaders(dl, dl, device='cpu')
        small = learn.condense()
        assert small.model[0].in_features==2 and len(small.dls.train)==len(dl)
        np.random.seed(0)
        a = [b[0] for b in learn.dls.train]
        np.random.seed(0)
        b = [b[0] for b in small.dls.train]
        assert len(a)==len(b) and all(torch.equal(p[:,[2,5]], q) for p,q in zip(a, b)), f'{type(dl).__name__} delivers something else'
        fit(small, 1)

def test_weights_of_items_and_what_else_loaders_have_goes_along():
    learn = features()
    learn.dls.train = WeightedDL(learn.dls.train_ds, bs=8, wgts=[1]*4 + [0]*28, shuffle=True, num_workers=0)
    learn.dls.vocab,learn.dls.train.note = list('ab'),'mine'
    small = learn.condense()
    assert small.dls.vocab==['a','b'] and small.dls.train.note=='mine' and type(small.dls.train) is WeightedDL
    seen = torch.cat([b[0] for b in small.dls.train]).unique(dim=0)
    assert len(seen) <= 4
    order = learn.dls.train.rng.getstate()
    fit(small, 1)
    assert learn.dls.train.rng.getstate()==order and small.dls.train.fake_l.d is small.dls.train and learn.dls.train.fake_l.d is learn.dls.train

def test_predictions_for_new_items_and_shown_inputs():
    dsets = Datasets(list(range(24)), [[Picture(), ToTensor()], [label, Categorize()]], splits=[list(range(16)),list(range(16, 24))])
    dls = dsets.dataloaders(bs=4, num_workers=0, device='cpu', after_batch=[IntToFloatTensor(), Normalize.from_stats(*imagenet_stats)])
    learn = Learner(dls, nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)), loss_func=CrossEntropyLossFlat())
    with torch.no_grad(): learn.model[0].weight[:,1] = 0
    small = learn.condense()
    x = small.dls.one_batch()[0]
    assert x.shape==(4,2,32,32) and type(x) is TensorImage
    shown = small.dls.valid.decode(small.dls.valid.one_batch())[0]
    wanted = learn.dls.valid.decode(learn.dls.valid.one_batch())[0]
    assert shown.shape==wanted.shape and torch.allclose(shown[:,[0,2]], wanted[:,[0,2]], atol=1e-5)
    a,b = [quiet(lambda: l.predict(3), l) for l in (learn, small)]
    assert a[0]==b[0] and torch.allclose(a[2], b[2], atol=1e-6)
    a,b = [preds(l, dl=l.dls.test_dl([1,2,3,4,5])) for l in (learn, small)]
    assert torch.allclose(a, b, atol=1e-6)

def test_inputs_stay_where_a_callback_makes_them():
    "The DataLoaders deliver images, and a callback makes vectors of them."
    x = torch.randn(24, 2, 5)
    ds = list(zip(x, (x.sum((1,2))>0).long()))
    cb = before_batch_cb(lambda self, xb, yb: ((xb[0].flatten(1),), yb))
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=8, num_workers=0, device='cpu'), features().model, loss_func=CrossEntropyLossFlat(), cbs=cb)
    learn.model[0].weight.data[:4] = 0
    with pytest.raises(ValueError, match='the model does not run on the sample'): learn.condense()
    small = learn.condense(sample=x[:2].flatten(1))
    assert small.model[0].in_features==10 and small.model[0].out_features==4 and error(learn, small) <= 1e-6
    assert small.condensed.report.kept[-1]==dict(layer='inputs', units=8, reason='the DataLoaders deliver something else than the model gets')
    fit(small, 1)

# ---- callbacks

def test_callbacks_go_along_except_those_that_prune(tmp_path):
    learn = features(cbs=[GradientClip(.5), EarlyStoppingCallback(patience=50), SaveModelCallback(fname='best'), MixUp(), CSVLogger()], path=tmp_path)
    learn.add_cbs([SparsifyCallback(.5, 'neuron'), InputPruneCallback(.5)])
    learn.to_fp16()
    learn.dls.train.to('cpu')
    fit(learn, 2, 1e-2)
    small = learn.condense()
    names = [cb.name for cb in learn.cbs]
    assert [cb.name for cb in small.cbs]==[n for n in names if n not in ('sparsify', 'input_prune')]
    assert hasattr(small, 'mixed_precision') and not hasattr(small, 'sparsify') and not hasattr(small, 'input_prune') and hasattr(learn, 'sparsify')
    assert small.gradient_clip.max_norm==.5 and small.gradient_clip is not learn.gradient_clip
    fit(small, 2, 1e-2)
    assert len(small.recorder.values)==2 and len(learn.recorder.values)==2 and 'sparsity_neuron' not in small.recorder.metric_names
    assert 'mixed_precision' not in [cb.name for cb in small.to_fp32().cbs] and hasattr(learn, 'mixed_precision')

def test_callbacks_with_hooks_look_at_the_small_network():
    learn = bare().add_cbs(ActivationStats())
    learn.fit(1, 1e-3, cbs=SparsifyCallback(.5, 'filter', 'local'))
    small = learn.condense()
    assert [type(m) for m in small.activation_stats.modules]==[type(m) for m in learn.activation_stats.modules]
    assert all(any(m is o for o in small.model.modules()) for m in small.activation_stats.modules)
    small.fit(1, 1e-3)
    assert small.activation_stats.modules[0].out_channels < 8 and len(small.activation_stats.stats)==6

def test_learner_subclasses_and_their_parts_stay():
    learn = zeros(table())
    learn.extra = 'mine'
    small = learn.condense()
    assert type(small) is TabularLearner and small.extra=='mine' and small.lock is not learn.lock and small.path==learn.path and small.model_dir==learn.model_dir
    assert small.wd==learn.wd and small.moms==learn.moms and small.lr==learn.lr and small.opt_func is learn.opt_func and small.splitter is learn.splitter

# ---- bad input

class InFit(Callback):
    "Condenses where it should not."
    def after_batch(self): self.learn.condense()

def test_in_the_middle_of_a_fit_is_an_error():
    learn = features()
    with pytest.raises(ValueError, match='in the middle of a fit'): fit(learn, 1, cbs=InFit())
    assert 'in_fit' not in [cb.name for cb in learn.cbs] and learn.model[0].in_features==10

class Interrupt(Callback):
    def before_batch(self): raise KeyboardInterrupt

def test_after_an_interrupted_fit_it_works():
    learn = features()
    with pytest.raises(KeyboardInterrupt): fit(learn, 1, cbs=Interrupt())
    small = learn.condense()
    assert small.model[0].in_features==2 and small.dl is None and small.xb==(None,) and learn.dl is not None
    fit(small, 1)

def test_without_data_a_sample_does():
    learn = features()
    for dls in (None, DataLoaders(DataLoader([], bs=4), DataLoader([], bs=4))):
        learn.dls = dls
        with pytest.raises(ValueError, match='has no batch to show .*: give one as `sample`'): learn.condense()
        small = learn.condense(sample=torch.randn(3, 10))
        assert small.model[0].in_features==2 and (dls is None)==(small.dls is None)

samples = dict(shape=torch.randn(2, 7), dtype=torch.zeros(2, 10, dtype=torch.long), empty=torch.zeros(0, 10), text='a film', number=3, none=[None],
    two=(torch.randn(2, 10), torch.randn(2, 10)), dictionary=[dict(x=torch.randn(2, 10))])
@pytest.mark.parametrize('kind', samples)
def test_sample_that_the_model_does_not_take_is_an_error(kind):
    learn = features()
    state,parts = tensors(learn),dict(vars(learn))
    with pytest.raises(ValueError, match='the model does not run on the sample|the sample is empty'): learn.condense(sample=samples[kind])
    assert same(tensors(learn), state) and vars(learn).keys()==parts.keys() and all(vars(learn)[k] is v for k,v in parts.items())

def test_batches_that_are_dicts_need_a_sample():
    learn = features()
    learn.dls = DataLoaders(*[[dict(x=torch.randn(4, 10), y=torch.zeros(4).long())]*2]*2)
    with pytest.raises(ValueError, match='has no batch to show'): learn.condense()
    small = learn.condense(sample=torch.randn(4, 10))
    assert small.model[0].in_features==10 and small.condensed.report.kept[-1]['layer']=='inputs'

def test_a_model_without_zeros_gives_an_equal_learner():
    learn = pair()
    small = learn.condense()
    assert same(tensors(learn), tensors(small)) and small.condensed.report.removed=={} and 'Nothing could be removed' in str(small.condensed.report)
    fit(small, 1)
    assert not same(tensors(learn), tensors(small))
