"fastai Learners of all kinds: what `condense` gives goes on as the old one would, and the old one is as it was."
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.all import *
from fastai.tabular.all import *
from fastai.text.all import *
from fastai.vision.all import *
from torch import nn
from fasterprune.all import *
from fasterprune.core.batches import as_tuple
from fasterprune.core.models import evaluating
from support.learners import bare, error, features, fit, items, kinds, label, named_groups, pair, quiet
from support.learners import same, some, table, tensors, zeros

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

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
    assert 'taken out before, or a later fit has changed them: `KeepZeros` holds them.\n\nlayer' in str(small.condensed.report)
    fit(small, 1)
    assert not same(tensors(learn), tensors(small))
