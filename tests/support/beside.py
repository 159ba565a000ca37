"Callbacks and optimizers that fastai and torch ship, and fits with and without ours beside them."
import io, warnings
from contextlib import redirect_stdout
from functools import partial
import torch
from fastai.basics import *
from fastai.callback.all import *
from fastai.callback.core import FetchPredsCallback, GatherPredsCallback
from torch import nn
from torch.optim.swa_utils import AveragedModel
from fasterprune.all import *
from fasterprune.core.warnings import FasterpruneWarning
from fasterprune.learner.condense_callback import CondenseCallback
from support.sparsity import dead, layers

def cnn():
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Dropout(.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
def mlp(bias=True):
    norm = nn.BatchNorm1d(16) if bias else nn.Identity()
    return nn.Sequential(nn.Linear(12, 16, bias), norm, nn.ReLU(), nn.Dropout(.1), nn.Linear(16, 12, bias), nn.ReLU(), nn.Linear(12, 3, bias))
class Recurrent(nn.Module):
    "Gives out what it has in between, as fastai's language models do, and has a state to reset."
    def __init__(self):
        super().__init__()
        self.net,self.mid,self.head = nn.Sequential(nn.Linear(12, 16), nn.ReLU()),nn.Linear(16, 12),nn.Linear(12, 3)
    def reset(self): self.n_resets = getattr(self, 'n_resets', 0)+1
    def forward(self, x):
        h = self.mid(self.net(x))
        return self.head(h),[h],[h]
class Words(nn.Module):
    "Embeddings whose gradients are sparse, and nothing else."
    def __init__(self):
        super().__init__()
        self.emb,self.out = nn.Embedding(20, 6, sparse=True),nn.Embedding(3, 6, sparse=True)
    def forward(self, x): return self.emb(x).mean(1)@self.out(torch.arange(3)).t()

nets = dict(cnn=cnn, mlp=mlp, plain=partial(mlp, False), recurrent=Recurrent, words=Words)
shapes = dict(cnn=(4,6,6))
def learner(net, opt, path, cbs=()):
    set_seed(0)
    x = torch.randint(20, (40,5)) if net=='words' else torch.randn(40, *shapes.get(net, (12,)))
    y = x.flatten(1).float().mean(1).argsort().argsort()*3//40
    dls = tensor_dls((x[:32],y[:32]), (x[32:],y[32:]), bs=8)
    return Learner(dls, nets[net](), CrossEntropyLossFlat(), opt, metrics=accuracy, path=path, cbs=cbs)

def torchs(name, **kwargs): return partial(OptimWrapper, opt=partial(getattr(torch.optim, name), **kwargs))
def lookahead(ps, **kwargs): return Lookahead(SGD(ps, mom=.9, **kwargs), k=3)
optimizers = dict(SGD=SGD, SGD_momentum=partial(SGD, mom=.9, decouple_wd=False), RMSProp=RMSProp, RMSProp_momentum=partial(RMSProp, mom=.9), Adam=Adam,
    Adam_l2=partial(Adam, decouple_wd=False),
    RAdam=RAdam, SAdam=partial(RAdam, beta=50.), QHAdam=QHAdam, Larc=Larc, Lars=partial(Larc, clip=False), Lamb=Lamb, Lookahead=lookahead, ranger=ranger)
optimizers |= {f'torch_{n}':torchs(n) for n in 'Adadelta Adafactor Adagrad Adam AdamW Adamax ASGD LBFGS Muon NAdam RAdam RMSprop Rprop SGD SparseAdam'.split()}
optimizers |= dict(torch_amsgrad=torchs('Adam', amsgrad=True), torch_fused=torchs('AdamW', fused=True), torch_foreach=torchs('AdamW', foreach=True),
    torch_maximize=torchs('SGD', maximize=True),
    torch_nesterov=torchs('SGD', momentum=.9, nesterov=True), torch_centered=torchs('RMSprop', centered=True, momentum=.9),
    torch_loop=torchs('Adam', foreach=False, capturable=False),
    torch_differentiable=torchs('SGD', momentum=.9, foreach=False))
nets_of = dict(torch_Muon=['plain'], torch_SparseAdam=['words'])

def scheduled(): return ParamScheduler(dict(lr=combined_cos(.25, 1e-3, 1e-2, 1e-5)))
def average():
    class Average(Callback):
        run_valid,order = False,100
        def before_fit(self): self.avg = AveragedModel(self.model)
        def after_batch(self): self.avg.update_parameters(self.model)
    return Average()
def hooked(**kwargs): return HookCallback(hook=lambda m, i, o: [t.shape for t in o] if isinstance(o, tuple) else o.shape, **kwargs)
def tensorboard(path, **kwargs):
    from fastai.callback.tensorboard import TensorBoardCallback
    return TensorBoardCallback(log_dir=path/'runs', **kwargs)
def wandb(path):
    from fastai.callback.wandb import WandbCallback
    import wandb
    wandb.init(mode='disabled', dir=path)
    return WandbCallback(log_preds=False)
cbs = dict(none=lambda _: [], CollectDataCallback=lambda _: CollectDataCallback(), ChannelsLast=lambda _: ChannelsLast(),
    MixedPrecision=lambda _: MixedPrecision(), MixedPrecision_bf16=lambda _: MixedPrecision('bf16'),
    NonNativeMixedPrecision=lambda _: [ModelToHalf(), NonNativeMixedPrecision()], HookCallback=lambda _: hooked(),
    HookCallback_kept=lambda _: hooked(remove_end=False, cpu=False, include_paramless=True),
    HookCallback_backward=lambda _: hooked(is_forward=False), ActivationStats=lambda _: ActivationStats(),
    ActivationStats_hist=lambda _: ActivationStats(with_hist=True, every=2),
    MixUp=lambda _: MixUp(), CutMix=lambda _: CutMix(), MCDropoutCallback=lambda _: MCDropoutCallback(), ShowGraphCallback=lambda _: ShowGraphCallback(),
    CSVLogger=lambda _: CSVLogger(),
    GatherPredsCallback=lambda _: GatherPredsCallback(), FetchPredsCallback=lambda _: FetchPredsCallback(), rnn_cbs=lambda _: rnn_cbs(alpha=.1, beta=.1),
    ParamScheduler=lambda _: scheduled(), TerminateOnNaNCallback=lambda _: TerminateOnNaNCallback(),
    TrackerCallback=lambda _: TrackerCallback(), EarlyStoppingCallback=lambda _: EarlyStoppingCallback(patience=1, min_delta=9),
    SaveModelCallback=lambda _: SaveModelCallback(), SaveModelCallback_opt=lambda _: SaveModelCallback(with_opt=True),
    SaveModelCallback_every=lambda _: SaveModelCallback(every_epoch=True, with_opt=True), SaveModelCallback_end=lambda _: SaveModelCallback(at_end=True),
    ReduceLROnPlateau=lambda _: ReduceLROnPlateau(patience=1, min_delta=9),
    ShortEpochCallback=lambda _: ShortEpochCallback(.5), ShortEpochCallback_valid=lambda _: ShortEpochCallback(.5, short_valid=False),
    GradientAccumulation=lambda _: GradientAccumulation(16), GradientClip=lambda _: GradientClip(.1),
    BnFreeze=lambda _: BnFreeze(), average=lambda _: average(), TensorBoardCallback=lambda p: tensorboard(p, trace_model=False, log_preds=False),
    TensorBoardCallback_trace=lambda p: tensorboard(p, log_preds=False), WandbCallback=wandb)
nets_of_cbs = dict(rnn_cbs=['recurrent'])
foreign = 'TensorBoardCallback', 'TensorBoardCallback_trace', 'WandbCallback' # of packages that need not be there
ends_elsewhere = 'EarlyStoppingCallback','SaveModelCallback','SaveModelCallback_opt' # the network of an earlier epoch

def fit(learn, *more, n=2, how=Learner.fit):
    "What fasterprune says in a fit, which prints nothing."
    with warnings.catch_warnings(record=True) as said, redirect_stdout(io.StringIO()):
        warnings.simplefilter('always')
        how(learn, n, 1e-2, cbs=list(more))
    return [str(w.message) for w in said if issubclass(w.category, FasterpruneWarning)]

def pairs(names=cbs, opts=optimizers):
    "Network, callbacks and optimizer, each as it can be had."
    for c in names:
        for o in opts:
            for net in nets_of.get(o) or nets_of_cbs.get(c, ['cnn','mlp']): yield net,c,o

def ours(net):
    "What prunes weights; what prunes units and inputs and condenses."
    weights = SparsifyCallback(.5, layers=nn.Embedding if net=='words' else None)
    if net=='words': return [weights],None
    units = SparsifyCallback(.5, 'filter' if net=='cnn' else 'neuron', 'local', schedule='linear')
    inputs = InputPruneCallback(.5, granularity='channel' if net=='cnn' else 'auto', schedule='linear')
    return [weights],[units,inputs,CondenseCallback(steps=3, min_gain=0.)]

def dead_units(model): return [dead(m) for m in layers(model)[:-1]]
def check_weights(learn, said, elsewhere, net):
    ws = [m.weight for m in learn.model.modules() if isinstance(m, nn.Embedding)] if net=='words' else [m.weight for m in layers(learn.model)]
    n,found = sum(w.numel() for w in ws),sum(int((w==0).sum()) for w in ws)
    if elsewhere and said: assert found<round(.5*n) and ('ended in epoch' in said[0] or 'loads epoch' in said[0]) and len(said)==1, (found, said)
    else: assert found==round(.5*n) and not said, (found, n, said)

def check_condensed(learn, said, elsewhere, net, cannot_follow):
    "Exactly half of all units and inputs are zero, or gone."
    wide = [len(m.weight) for m in layers(nets[net]())][:-1]
    if net=='recurrent': wide[1] = 0 # these are outputs, too, and stay
    n_in = shapes.get(net, (12,))[0]
    told = [s for s in said if 'trained as wide' not in s]
    if not cannot_follow: assert len(told)==len(said), said
    if elsewhere and told: return
    assert not told, told
    first,*_ = layers(learn.model)
    left = [(len(m.weight)-dead(m))*(n>0) for m,n in zip(layers(learn.model), wide)]
    assert left==[n-round(n/2) for n in wide], (left, wide)
    assert int((first.weight!=0).any([0,*range(2,first.weight.ndim)]).sum())==n_in-n_in//2
    if not said: assert [len(m.weight)*(n>0) for m,n in zip(layers(learn.model), wide)]==left

cannot_follow = 'torch_Adafactor', # keeps sums over rows and columns
def check(net, c, o, path):
    "Why fastai alone does not do it, or `None` if ours do as well; an error if not."
    try: fit(learner(net, optimizers[o], path), *L(cbs[c](path)))
    except Exception as e: return f'{type(e).__name__}: {e}'
    weights,units = ours(net)
    learn = learner(net, optimizers[o], path)
    check_weights(learn, fit(learn, *weights, *L(cbs[c](path))), c in ends_elsewhere, net)
    if units is None: return
    learn = learner(net, optimizers[o], path)
    check_condensed(learn, fit(learn, *units, *L(cbs[c](path))), c in ends_elsewhere, net, o in cannot_follow)
