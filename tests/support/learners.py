"fastai Learners of all kinds, small enough for tests."
import random
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.all import *
from fastai.tabular.all import *
from fastai.text.all import *
from fastai.vision.all import *
from torch import nn
from torchvision import models
from fasterprune.all import *
from support.nets import halve, perturb

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

items = dict(resnet18=7, unet=7, table=rows().iloc[0], texts='a good film')

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

def features(n=48, width=10, **kwargs):
    "A Learner that reads features 2 and 5 only."
    x = torch.randn(n, width)
    ds = list(zip(x, (x[:,2]>x[:,5]).long()))
    learn = Learner(DataLoaders.from_dsets(ds[:32], ds[32:], bs=8, num_workers=0, device='cpu'), nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 2)),
        loss_func=CrossEntropyLossFlat(), metrics=accuracy, **kwargs)
    with torch.no_grad(): learn.model[0].weight[:,[i for i in range(width) if i not in (2,5)]] = 0
    return learn
