"Networks along budgets: within them, the same after an interruption, and the learner that was given is as before."
import random
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.all import *
from fastai.basics import *
from fasterprune.all import *
from fasterprune.core.warnings import FasterpruneWarning
from fasterprune.learner import CompressionPath
from support.learners import table, vision
from support.sparsity import cnn

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

def images(metrics=accuracy, seed=0, **kwargs):
    "A learner whose network was trained a little."
    set_seed(seed, reproducible=True)
    x = torch.randn(64, 3, 8, 8)
    ds = list(zip(x, (x.mean((1,2,3))>0).long()))
    dls = DataLoaders.from_dsets(ds[:48], ds[48:], bs=16, num_workers=0, device='cpu')
    learn = Learner(dls, cnn(), loss_func=CrossEntropyLossFlat(), metrics=metrics, **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return learn

def trace(learn): return {k:v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def numbers(path): return path.to_frame().drop(columns=['latency_ms','seconds'])
def random_states(learn): return torch.get_rng_state().tolist(),np.random.get_state()[1].tolist(),random.getstate(),learn.dls.train.rng.getstate()
def weights(path): return [trace(path.learner(r['network'])) for r in path.rows]

def equal(a, b):
    pd.testing.assert_frame_equal(numbers(a), numbers(b), check_exact=True)
    assert all(map(same, weights(a), weights(b)))

@pytest.mark.parametrize('warm_start', [True, False])
def test_networks_are_within_their_budgets_and_the_learner_is_as_before(warm_start, tmp_path):
    learn = images(cbs=[SaveModelCallback(), CSVLogger()], path=tmp_path)
    before,files,opt,cbs,drawn = trace(learn),{p:p.read_bytes() for p in tmp_path.rglob('*.*')},learn.opt,list(learn.cbs),random_states(learn)
    path = compression_path(learn, [.4, Budget(params=.5), .7], epochs=2, lr=1e-2, warm_start=warm_start, seconds=.01)
    assert files and files=={p:p.read_bytes() for p in tmp_path.rglob('*.*')}
    assert same(before, trace(learn)) and learn.opt is opt and list(learn.cbs)==cbs and learn.model.training==images().model.training
    assert drawn==random_states(learn)
    df = path.to_frame()
    assert df.index.tolist()==['dense','macs=0.7','params=0.5','macs=0.4'] and len(path)==4
    assert (df.MACs.values[[1,3]] <= df.MACs.dense*np.array([.7,.4])).all() and df.parameters['params=0.5'] <= .5*df.parameters.dense
    assert (df.latency_ms>0).all() and df.MACs.dense==n_macs(learn.model, learn.dls.one_batch()[0])
    for r in path.rows: # what it says is what its networks are
        small = path.learner(r['network'])
        with small.no_bar(): assert [float(v) for v in small.validate()]==pytest.approx(list(r['metrics'].values()), abs=1e-6)
        assert n_params(small.model)==r['parameters'] and n_macs(small.model, small.dls.one_batch()[0])==r['MACs']
    assert path.learner(.7).condensed.report.macs_after==path.learner('macs=.7').condensed.report.macs_after==df.MACs['macs=0.7'] and 'macs=0.4' in repr(path)
    with small.no_bar(), small.no_logging(): small.fit(1, 1e-3) # trains on

class Stop(Callback):
    "Ends the program, as it were, in the n-th fit."
    fits = 0
    def __init__(self, at, what=KeyboardInterrupt): self.at,self.what = at,what
    def before_fit(self): type(self).fits += 1
    def after_batch(self):
        if self.training and type(self).fits==self.at and self.learn.epoch==1: raise self.what()

@pytest.mark.parametrize('warm_start', [True, False])
def test_it_goes_on_where_it_was_interrupted(warm_start, tmp_path):
    learn,args = images(),dict(budgets=[.7, .5, .3], epochs=2, lr=1e-2, warm_start=warm_start, seconds=.01)
    whole,before = compression_path(learn, cbs=Stop(9), **args),trace(learn)
    Stop.fits = 0
    with pytest.warns(FasterpruneWarning, match='1 of 3 networks are finished and kept; with path='), pytest.raises(KeyboardInterrupt):
        compression_path(learn, cbs=Stop(2), path=tmp_path, **args)
    assert same(before, trace(learn)) and {p.name for p in tmp_path.glob('*.json')}=={'dense.json','macs=0.7.json'}
    done = (tmp_path/'macs=0.7.json').stat().st_mtime_ns
    Stop.fits = 3
    rest = compression_path(images(), cbs=Stop(9), path=tmp_path, **args) # another program, the same network
    assert (tmp_path/'macs=0.7.json').stat().st_mtime_ns==done
    equal(whole, rest)

class EndsIn(Callback):
    "Ends the n-th fit in an epoch."
    fits = 0
    def __init__(self, fit, epoch, what=CancelFitException): self.fit,self.at,self.what = fit,epoch,what
    def before_train(self): type(self).fits += self.epoch==0
    def after_batch(self):
        if self.training and type(self).fits==self.fit and self.epoch==self.at: raise self.what()

class Diverges(EndsIn):
    def after_batch(self):
        if self.training and type(self).fits==self.fit and self.epoch==self.at: next(self.model.parameters()).data.fill_(float('nan'))

def swallows(learn, epochs, lr, cbs):
    try: learn.fit(epochs, lr, cbs=cbs)
    except KeyboardInterrupt: pass
def forgets(learn, epochs, lr, cbs): learn.fit(epochs, lr, cbs=cbs if EndsIn.fits==0 else cbs[1:])

early = dict(ended=(dict(cbs=EndsIn(2, 1)), 'macs=0.4 ended in epoch 1 of 0 to 3, before SparsifyCallback had reached its target'), swallowed=(dict(cbs=EndsIn(2, 0, KeyboardInterrupt), fit=swallows), 'ended in epoch 0 of 0 to 3'),
    not_passed_on=(dict(cbs=EndsIn(9, 0), fit=forgets), 'macs=0.4 made no use of SparsifyCallback: `fit` has to pass on its `cbs`'), no_numbers=(dict(cbs=Diverges(2, 3)), "macs=0.4 has left NaN or infinity in '0.weight'"))

@pytest.mark.parametrize('case', early)
def test_a_fit_that_ended_early_is_no_network_of_its_budget(case, tmp_path):
    "What is finished stays, and the next call goes on with it."
    kwargs,message = early[case]
    args = dict(budgets=[.7, .4], epochs=4, lr=1e-2, seconds=.01)
    EndsIn.fits = Diverges.fits = 0
    with pytest.warns(FasterpruneWarning, match='1 of 2 networks are finished and kept'), pytest.raises(ValueError, match=message):
        compression_path(images(), path=tmp_path, **{**args, **kwargs})
    assert {p.name for p in tmp_path.glob('*.json')}=={'dense.json','macs=0.7.json'}
    EndsIn.fits = Diverges.fits = 2 if case!='not_passed_on' else -9
    if case!='not_passed_on': equal(compression_path(images(), path=tmp_path, **{**args, **kwargs}), compression_path(images(), **{**args, **kwargs}))

late = EndsIn(1, 3),EndsIn(1, 3, CancelTrainException),EarlyStoppingCallback(min_delta=99., patience=3),ShortEpochCallback(.3)
@pytest.mark.parametrize('cb', late, ids=lambda c: f'{type(c).__name__}')
def test_a_fit_that_ended_later_than_its_schedule_counts(cb):
    EndsIn.fits = 0
    path = compression_path(images(), [.5], epochs=4, lr=1e-2, seconds=.01, cbs=cb)
    assert .5*path.to_frame().MACs.dense - path.to_frame().MACs['macs=0.5'] < 4*27*64 # a filter of the first two layers, about

def test_a_feature_path_takes_no_fit_that_ended_early(tmp_path):
    learn = table().add_cb(EndsIn(2, 0))
    EndsIn.fits = -1 # the dense one
    with pytest.raises(ValueError, match='the fit to 2 inputs ended in epoch 0 of 0 to 1, before InputPruneCallback had'): feature_path(learn, [3, 2], epochs=2, retrain=0, path=tmp_path)
    assert {p.name for p in tmp_path.glob('*.json')}=={'dense.json','inputs_3.json'}

def test_what_was_done_without_a_folder_is_kept_too():
    learn,args = images(),dict(epochs=2, lr=1e-2, seconds=.01)
    Stop.fits = 0
    with pytest.warns(FasterpruneWarning) as told, pytest.raises(KeyboardInterrupt): compression_path(learn, [.7, .4], cbs=Stop(2), **args)
    folder = next(m for m in (str(w.message) for w in told) if 'interrupted' in m).split('path=')[1].split("'")[1]
    Stop.fits = 3
    equal(compression_path(learn, [.7, .4], cbs=Stop(9), path=folder, **args), compression_path(learn, [.7, .4], cbs=Stop(9), **args))

def test_a_folder_goes_with_its_path():
    path = compression_path(images(), [.5], epochs=1, seconds=.01)
    folder = path.folder
    assert (folder/'macs=0.5.safetensors').exists()
    del path
    assert not folder.exists()

def test_more_budgets_are_added(tmp_path):
    "Smaller ones go on from what is there; ones in between, or without one, would begin with another network."
    learn,args = images(),dict(epochs=1, lr=1e-2, seconds=.01, path=tmp_path)
    compression_path(learn, [.7, .5], **args)
    done = (tmp_path/'macs=0.5.json').stat().st_mtime_ns
    assert len(compression_path(learn, [.7, .5, .3], **args))==4 and (tmp_path/'macs=0.5.json').stat().st_mtime_ns==done
    with pytest.raises(ValueError, match='holds macs=0.5 begun with macs=0.7, but this path begins it with macs=0.6'): compression_path(learn, [.7, .6, .5], **args)

@pytest.mark.parametrize('other,message', [(dict(epochs=2), 'epochs=1, but this one has epochs=2'), (dict(lr=.1), "lr='0.01', but this one has lr='0.1'"),
    (dict(criterion='squared_final'), 'pruning='), (dict(fit='fit_flat_cos'), "fit='fit_one_cycle', but this one has fit='fit_flat_cos'"), (dict(cbs=TerminateOnNaNCallback()), 'cbs='),
    (dict(warm_start=False), 'warm_start=True, but this one has warm_start=False'), (dict(seed=1), 'seed=0, but this one has seed=1')], ids=lambda o: str(o)[:30])
def test_a_folder_of_other_arguments_is_refused_by_name(other, message, kept):
    with pytest.raises(ValueError, match=message): compression_path(images(), **{**kept, **other})

def test_a_folder_of_another_network_is_refused_by_name(kept):
    with pytest.raises(ValueError, match='holds a path of another network, or of other weights'): compression_path(images(seed=1), **kept)

@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    "The arguments of a path that is in a folder."
    args = dict(budgets=[.5], epochs=1, lr=1e-2, seconds=.01, path=tmp_path_factory.mktemp('path'))
    compression_path(images(), **args)
    return args

@pytest.mark.parametrize('end', ['.json','.safetensors','_masked.safetensors'])
def test_a_damaged_step_is_done_again(end, tmp_path):
    args = dict(budgets=[.7, .4], epochs=1, lr=1e-2, seconds=.01, path=tmp_path)
    whole = compression_path(images(), **args)
    expected,was = numbers(whole),weights(whole)
    file = tmp_path/f'macs=0.7{end}'
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.warns(FasterpruneWarning, match='damaged|cut short|is not whole|done again'): again = compression_path(images(), **args)
    pd.testing.assert_frame_equal(expected, numbers(again), check_exact=True)
    assert all(map(same, was, weights(again)))

bad = dict(no_budgets=(dict(budgets=[]), 'budgets names none'), percent=(dict(budgets=[50]), r'macs=50: .*above 0 and at most 1; write 0.5 for 50 %'), text=(dict(budgets=['half']), "macs='half'"),
    too_small=(dict(budgets=[.7,.001]), r'Budget\(macs=0.001\) is .* MACs, but the least that filter units leave .* is .* MACs'), epochs=(dict(epochs=0), 'epochs=0: it is 1 or more'),
    fit=(dict(fit='fit_two_cycles'), "fit='fit_two_cycles' is no method of a Learner"), weights=(dict(granularity='weight'), "condensing takes out whole units only"),
    context=(dict(context='here'), "context 'here' is not known"), condense=(dict(cbs=CondenseCallback()), 'leave `CondenseCallback` out'), best=(dict(cbs=SaveModelCallback()), '`SaveModelCallback` would load an epoch'))

@pytest.mark.parametrize('case', bad)
def test_bad_input_is_told_before_anything_is_trained(case, tmp_path):
    kwargs,message = bad[case]
    learn = images()
    before = trace(learn)
    with pytest.raises(ValueError, match=message): compression_path(learn, **{**dict(budgets=[.5], path=tmp_path), **kwargs})
    assert same(before, trace(learn)) and not list(tmp_path.iterdir())

def path_of(accuracies, macs, metric='accuracy'):
    rows = [dict(network=n, metrics={'valid_loss':1., metric:a}, MACs=m, parameters=m, inputs=3, latency_ms=1., seconds=0.) for n,a,m in zip(['dense','a','b','c'], accuracies, macs)]
    return CompressionPath(rows, ['valid_loss',metric], Path(), None)

def test_the_smallest_network_within_a_point():
    path = path_of([.62, .63, .61, .60], [100, 75, 50, 25])
    assert path.smallest()=='b' and path.smallest(.03)=='c' and path.smallest(0.)=='a' and path.smallest(-.05)=='dense'
    assert path_of([.62, .5, .4, .3], [100, 75, 50, 25]).smallest()=='dense'
    errors = path_of([.38, .37, .385, .5], [100, 75, 50, 25], 'error_rate')
    assert errors.smallest()=='b' and errors.smallest(.01, lower=False)=='c' and errors.smallest(metric='valid_loss')=='c'
    with pytest.raises(ValueError, match="metric='f1': take one of valid_loss, accuracy"): path.smallest(metric='f1')
    with pytest.raises(ValueError, match="by='size'"): path.smallest(by='size')
    with pytest.raises(ValueError, match="'macs=0.3' is not on the path: it has dense, a, b, c"): path.learner(.3)
    for ax,k in zip(path.plot(.03), ('MACs','parameters','latency_ms')): assert ax.lines[1].get_xdata().tolist()==path.to_frame()[k].tolist()

def test_no_metrics_and_another_fit():
    "The loss stands for a metric; training is a function."
    fits = []
    def twice(learn, epochs, lr, cbs):
        fits.append((epochs, lr))
        learn.fit(epochs, lr, cbs=cbs)
    path = compression_path(images(metrics=None), [.5], epochs=1, lr=1e-2, fit=twice, seconds=.01)
    assert path.metric=='valid_loss' and fits==[(1, 1e-2)] and path.smallest(9.)=='macs=0.5'

def test_tables_and_inputs():
    "Neurons of a table's network, with columns that are pruned at the same time."
    path = compression_path(table(), [.6, .3], epochs=2, lr=1e-2, cbs=InputPruneCallback(.4, warmup=0.), seconds=.01)
    df = path.to_frame()
    assert (df.inputs[1:]<df.inputs.dense).all() and (df.MACs.values[1:]<=np.array([.6,.3])*df.MACs.dense).all()
    small = path.learner(.3)
    with small.no_bar(): assert len(small.validate())==2

@pytest.mark.long
def test_a_vision_learner():
    "Frozen parts stay frozen; learning rates by group."
    learn = vision('resnet18')
    learn.freeze()
    path = compression_path(learn, [.6, .4], epochs=1, lr=slice(1e-4, 1e-3), seconds=.1)
    df,small = path.to_frame(),path.learner(.4)
    assert df.MACs['macs=0.4']<=.4*df.MACs.dense
    assert [p.requires_grad for p in small.model.parameters()]==[p.requires_grad for p in learn.model.parameters()]
