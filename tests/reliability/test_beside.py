"""Beside every callback that fastai ships, and with every optimizer of fastai and torch, counts are exact and nothing fails that fastai alone can do; what
decides no masks ends no training.

As a script the memory of long fits and all pairs, in 15 minutes: `python tests/reliability/test_beside.py`."""
import ctypes, gc, os, resource, sys, tempfile
from copy import deepcopy
from pathlib import Path
import pytest, torch
from fastai.callback.all import *
from fastai.basics import *
from torch import nn
from torch.optim.swa_utils import AveragedModel
from fasterprune.all import *
from fasterprune.learner.condense_callback import CondenseCallback
from fasterprune.sparsify import callback, mask_callback
from support.beside import check, fit, foreign, learner, mlp, ours, pairs
from support.learners import texts
from support.reliability import done, forked, write_rows
from support.sparsity import dead, layers, total

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

def works(pair, path):
    if why := check(*pair, path): pytest.skip(f'fastai alone: {why}')

some = 'FetchPredsCallback HookCallback_kept HookCallback_backward ActivationStats_hist MixUp GradientAccumulation ShortEpochCallback average SaveModelCallback_opt'.split()
@pytest.mark.parametrize('pair', [*[('cnn',c,'Adam') for c in some], ('plain','none','torch_Muon'), ('words','none','torch_SparseAdam'),
    ('cnn','none','torch_Adafactor'), ('mlp','none','Lookahead'),
    ('recurrent','rnn_cbs','Adam')], ids='-'.join)
def test_some(pair, tmp_path): works(pair, tmp_path)

@pytest.mark.long
def test_each_callback_and_each_optimizer(tmp_path):
    """Fastai alone cannot do with these what is asked here: half precision of its own needs a GPU, the closure of LBFGS has no place in its loop, and
    what gathers predictions expects to be the one who asks for them."""
    alone = {(c,o) for net,c,o in [*pairs(opts=['Adam']), *pairs(['none'])] if check(net, c, o, tmp_path)} - {(c,'Adam') for c in foreign}
    assert alone=={('NonNativeMixedPrecision','Adam'), ('GatherPredsCallback','Adam'), ('CutMix','Adam'), ('none','torch_LBFGS')}

class ElsewhereSaves(SaveModelCallback):
    "Saves in a format of its own."
    def _save(self, name):
        self.last_saved_path = Path(self.path)/f'{name}.txt'
        self.last_saved_path.write_text('weights')
    def after_fit(self): pass

class SparseAverage(Callback):
    "A moving average that is kept in a way of its own, which cannot be multiplied in place."
    run_valid = False
    def before_fit(self):
        self.avg = AveragedModel(self.model)
        for m in layers(self.avg): m.weight = nn.Parameter(m.weight.detach().to_sparse())

class Schema(nn.Module):
    "Has 'ema' in its name, and a `module` that is none."
    module = 'of a table'
class Holds(Callback):
    def before_fit(self): self.schema = Schema()

def same_weights(a, b): return all(torch.equal(p, q) for p,q in zip(a.model.parameters(), b.model.parameters()))

class OtherRecorder(Callback):
    "Stands where fastai's recorder is looked for, and has nothing of it."
    name,order = 'recorder',50
def other_recorder(learn):
    learn.remove_cb(Recorder)
    learn.add_cb(OtherRecorder())

class Lost(SaveModelCallback):
    "Its file is gone at the end, which it can do without."
    def after_fit(self): pass
    def before_fit(self):
        super().before_fit()
        self.order = CondenseCallback.order+1
    def after_epoch(self):
        super().after_epoch()
        if self.epoch==1: self.last_saved_path.unlink()

def inputs(): return ours('cnn')[1][1:2]
def units(): return ours('cnn')[1]
@pytest.mark.parametrize('more,prune,words', [(ElsewhereSaves,units,[]), (Lost,units,[]), (Holds,units,[]),
    (SparseAverage,inputs,['moving average']), (SparseAverage,units,['moving average','trained as wide'])],
    ids=['format','gone','schema','average','average, condensed'])
def test_what_others_hold_ends_no_training(more, prune, words, tmp_path):
    "It is told once, and the weights are those of a fit without it."
    alone = learner('cnn', Adam, tmp_path)
    fit(alone, *L(prune()))
    learn = learner('cnn', Adam, tmp_path)
    said = [s for s in fit(learn, *L(prune()), more()) if 'loads epoch' not in s]
    assert len(said)==len(words) and all(w in s for w,s in zip(words, said)), said
    assert learn.epoch==1 and total(learn.model)>=total(alone.model)
    if 'trained as wide' not in words: assert all(torch.equal(p, q) for p,q in zip(alone.model.parameters(), learn.model.parameters()))

def test_another_recorder_ends_no_training(tmp_path):
    learn = learner('cnn', Adam, tmp_path)
    other_recorder(learn)
    with learn.no_bar(): said = fit(learn, *units())
    assert len(said)==3 and all('recorder has no column' in s for s in said) and not any(map(dead, layers(learn.model)))

to_raise = []
class Fragile(nn.Sequential):
    "An error, once, where it is looked at."
    def forward(self, x):
        if not self.training and to_raise: raise to_raise.pop()
        return super().forward(x)

class NoValidation(Callback):
    def before_validate(self): raise CancelValidException

errors = MemoryError('none left'),torch.OutOfMemoryError('CUDA out of memory'),KeyboardInterrupt(),CancelFitException(),CancelEpochException(),IndexError('no')
@pytest.mark.parametrize('error', errors, ids=lambda e: type(e).__name__)
def test_what_passes(error, tmp_path):
    "What is meant to end a fit or an epoch ends it, out of the middle of condensing, too; any other error is told, and the fit goes on."
    def _fit(error, *cut):
        learn = learner('cnn', Adam, tmp_path)
        learn.model = Fragile(*learn.model)
        to_raise[:] = [error]*(error is not None)*(9 if isinstance(error, IndexError) else 1)
        said = fit(learn, SparsifyCallback(.5, 'filter', 'local', coupled=False), NoValidation(), *cut, n=3)
        to_raise.clear()
        return learn,said
    if isinstance(error, (MemoryError,torch.OutOfMemoryError,KeyboardInterrupt)):
        with pytest.raises(type(error)): _fit(error, CondenseCallback(min_gain=0.))
        return
    learn,said = _fit(error, CondenseCallback(min_gain=0.))
    if isinstance(error, CancelFitException): assert learn.epoch==0 and len(said)==1 and 'fit ended in epoch 0' in said[0]
    else: assert learn.epoch==2
    if isinstance(error, CancelEpochException): assert not said and 'parameters' in learn.recorder.metric_names and len(layers(learn.model)[1].weight)==6
    if isinstance(error, IndexError):
        assert len(said)==1 and 'trained as wide as it is' in said[0]
        assert all(torch.equal(p, q) for p,q in zip(learn.model.parameters(), _fit(None)[0].model.parameters()))

def test_moving_averages_elsewhere_get_the_zeros():
    "Those that are kept on another device, too."
    model = mlp()
    sp = Sparsifier(model)
    sp.sparsify(.5)
    sp.apply(deepcopy(model).to('meta'))
    pruner = InputPruner(model, torch.randn(4, 12))
    pruner.apply(deepcopy(model).to('meta'))

def test_fine_tune_while_condensing_is_told(tmp_path):
    "Its frozen epoch and what follows are two fits: the second one's target is of what the first one left."
    learn = learner('mlp', Adam, tmp_path)
    said = [s for s in fit(learn, *ours('mlp')[1], how=Learner.fine_tune) if 'fit before' in s]
    assert len(said)==2 and 'left 6 of 12 units' in said[0] and 'left 14 of 28 units' in said[1]
    assert [len(m.weight) for m in layers(learn.model)]==[4,3,3]

@pytest.mark.parametrize('criterion', ['large_final','lamp','movement','taylor','wanda'])
@pytest.mark.parametrize('granularity', ['weight','neuron'])
def test_scores_that_are_no_numbers_end_the_fit(criterion, granularity, tmp_path):
    "At the step where they come up, with the layer and how many."
    class Diverge(Callback):
        run_valid = False
        def after_loss(self):
            if self.epoch==1 and self.iter==1: self.learn.loss_grad = self.learn.loss_grad*float('nan')
    learn = learner('mlp', Adam, tmp_path)
    with pytest.raises(ValueError, match=r"layer '[046]': \d+ of \d+ scores are not finite: look for NaN"): fit(learn, SparsifyCallback(.5, granularity,
        criterion=criterion, schedule='linear'), Diverge())
    assert (learn.epoch,learn.iter)==(1,1)
    learn = learner('mlp', Adam, tmp_path)
    with pytest.raises(ValueError, match='scores of inputs are not finite'): fit(learn, InputPruneCallback(.5, schedule='linear'), Diverge())

def observing(m, inp, out): seen.append(float(out.mean()))
seen = []
def test_a_hook_that_looks_at_values(tmp_path):
    "It hides what the network computes, which is said with the way out."
    def _fit(hook):
        learn = learner('cnn', Adam, tmp_path)
        learn.model[0].register_forward_hook(hook)
        seen.clear()
        fit(learn, *units())
        return learn
    with pytest.raises(ValueError, match='(?s)depends on the values.*observing.*`observes`'): _fit(observing)
    marked = lambda m, inp, out: observing(m, inp, out)
    marked.observes = True
    assert len(layers(_fit(marked).model)[1].weight)==6 and len(seen)==10 # 8 batches of training, 2 of validation

def test_a_curve_does_not_grow_without_end(tmp_path, monkeypatch):
    "Of long fits every other point is kept, and the last one; points and layers go together."
    for m in (mask_callback,callback): monkeypatch.setattr(m, 'max_points', 16)
    cb = SparsifyCallback(.5, schedule='linear')
    fit(learner('mlp', SGD, tmp_path), cb, n=10)
    assert 8<=len(cb.history)<16 and len(cb.layer_history)==len(cb.history) and cb.history[-1]==(1.,.5)
    assert [s for _,s in cb.history]==sorted(s for _,s in cb.history)

def test_texts_are_refused_with_the_reason():
    with pytest.raises(ValueError, match='input 0 holds whole numbers .*words of a text'): fit(texts(), InputPruneCallback(.5), n=1)

def growth(cbs, path, epochs=24):
    "By how many kilobytes a process has grown from step 6,000 to 12,000, after what is free has been given back to the system."
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', lambda _: 0)
    class Watch(Callback):
        run_valid,order,seen = False,999,()
        def after_batch(self):
            if self.train_iter in (epochs*250,epochs*500):
                gc.collect()
                trim(0)
                self.seen = (*self.seen, int(Path('/proc/self/statm').read_text().split()[1])*resource.getpagesize()/1024)
    learn,x = learner('cnn', Adam, path),torch.randn(4000, 4, 6, 6)
    learn.dls = tensor_dls((x,torch.randint(3, (4000,))), (x[:8],torch.zeros(8).long()), bs=8)
    watch = Watch()
    fit(learn, *cbs, watch, n=epochs)
    return watch.seen[1]-watch.seen[0]

def memory(path):
    """Rows of how much 6,000 steps of a fit add, beyond what fastai's recorder keeps; medians of three fits. At both ends curves have about as many points. Torch keeps what it has compiled for convolutions of each
    width, 1,024 of them at most, which a network that shrinks all the time fills up; here it keeps one, so that what grows without end is seen."""
    os.environ.update(ONEDNN_PRIMITIVE_CACHE_CAPACITY='1', LRU_CACHE_CAPACITY='1') # read at the first convolution
    ways = dict(alone=[], weights=ours('cnn')[0], condensing=ours('cnn')[1], kept=[KeepZeros()])
    grown = {k:[] for k in ways}
    for k,own in 3*[*ways.items()]:
        r,w = os.pipe()
        def _f(): os.write(w, str(growth(own, path)).encode())
        assert not done(forked(_f))
        grown[k].append(float(os.read(r, 99)))
        print(k, grown[k], flush=True)
    grown = {k:sorted(v)[1] for k,v in grown.items()}
    rows = [dict(what=f'{k}, steps 6,000 to 12,000: {v-grown["alone"]:+.0f} kB beside the {grown["alone"]:.0f} kB of fastai alone', tried=3,
        survived=3*(v-grown['alone']<1024), lost=3*(v-grown['alone']>=1024), seeds=1)
        for k,v in grown.items() if k!='alone']
    write_rows('memory over steps', rows)
    return sum(r['lost'] for r in rows)

def main(which='all'):
    "All pairs, or `some`: each callback with three optimizers, each optimizer with three callbacks; or `memory` alone; writes results/reliability.csv."
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d: too_much = memory(Path(d))
    if which=='memory': return too_much
    todo = list(pairs()) if which=='all' else list(dict.fromkeys([*pairs(opts=['Adam','ranger','torch_nesterov']),
        *pairs(['none','ActivationStats','GradientClip'])]))
    rows = {}
    with tempfile.TemporaryDirectory() as d:
        for net,c,o in todo:
            row = rows.setdefault(net, dict(tried=0, survived=0, lost=0, alone=0))
            try: why = check(net, c, o, Path(d))
            except Exception as e:
                why,row['lost'] = None,row['lost']+1
                print('LOST', net, c, o, f'{type(e).__name__}: {e}', flush=True)
            row['alone'] += why is not None
            row['tried'] += why is None
    write_rows('callbacks beside optimizers', [dict(what=f'{net}, {"all" if which=="all" else "some"} pairs; in {r["alone"]} more fastai alone fails',
        tried=r['tried'], survived=r['tried']-r['lost'], lost=r['lost'], seeds=1)
        for net,r in rows.items()])
    return too_much+sum(r['lost'] for r in rows.values())

if __name__=='__main__': sys.exit(bool(main(*sys.argv[1:])))
