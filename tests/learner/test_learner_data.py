"DataLoaders of any kind deliver what a condensed network reads."
import numpy as np, pytest, torch
from fastai.callback.all import *
from fastai.tabular.all import *
from fastai.text.all import *
from fastai.vision.all import *
from torch import nn
from fasterprune.all import *
from support.learners import Picture, error, features, fit, label, preds, quiet

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

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
