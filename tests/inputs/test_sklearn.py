"The selected features are the right ones, exactly as many as asked for, and an interrupted path ends as an uninterrupted one."
import json, random
from copy import deepcopy
import numpy as np, pandas as pd, pytest, torch
from fastai.basics import Callback, CrossEntropyLossFlat, Learner, accuracy, set_seed
from sklearn.base import clone
from sklearn.feature_selection import SelectorMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from fasterprune.learner.feature_path import FeaturePath, feature_path
from fasterprune.inputs.sklearn import SelectFromNet
from fasterprune.sparsify.callback import SparsifyCallback
from fasterprune.core.data import tensor_dls

def table(n=600, p=12, seed=0):
    "Three columns that decide, two of which matter only together; the rest is noise."
    g = np.random.default_rng(seed)
    x = g.standard_normal((n, p)).astype(np.float32)
    return x, (x[:,1]*x[:,4] + x[:,7] > 0).astype(int)

def net(**kwargs): return SelectFromNet(**{**dict(hidden=(32,16), epochs=12, bs=32, lr=1e-2), **kwargs})

def learner(seed=0, **kwargs):
    x,y = map(torch.from_numpy, table())
    set_seed(seed)
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.1), nn.Linear(16, 2))
    return Learner(tensor_dls((x[:400], y[:400]), (x[400:], y[400:]), 32), model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, **kwargs)

ks,how = [8, 5, 3],dict(epochs=4, retrain=2, lr=1e-2)
def values(path): return path.to_frame().drop(columns='seconds').to_dict('records')

# the path

@pytest.mark.parametrize('scratch', (False,True))
def test_path_is_nested_exact_and_finds_what_decides(scratch):
    path = feature_path(learner(), [3, 8, 5, 5, 12], scratch=scratch, **how)
    df = path.to_frame()
    assert df.index.tolist()==[12, 8, 5, 3] and [len(path.kept(k)) for k in df.index]==[12, 8, 5, 3]
    assert all(set(path.kept(a))>set(path.kept(b)) for a,b in zip(df.index, df.index[1:]))
    assert path.kept(3)==[1, 4, 7] and path.kept(12)==list(range(12))
    assert df.parameters.tolist()==[16*k + 3*16 + 34 for k in df.index] # the first layer shrinks by its columns
    assert path.dense['parameters']==df.parameters[12] and path.dense['retrained']>.8 and df.accuracy_retrained[3]>.8
    assert (df.seconds>0).all()

def test_learner_and_random_numbers_are_left_alone():
    learn = learner()
    before,cbs,rng = deepcopy(learn.model.state_dict()),list(learn.cbs),[dl.rng.getstate() for dl in learn.dls.loaders]
    states = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state()
    feature_path(learn, [4], **how)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items()) and learn.opt is None
    assert list(learn.cbs)==cbs and all(cb.learn is learn for cb in cbs) and not hasattr(learn, 'condensed')
    assert random.getstate()==states[0] and np.random.get_state()[1].tolist()==states[1] and torch.equal(torch.get_rng_state(), states[2])
    assert [dl.rng.getstate() for dl in learn.dls.loaders]==rng and learn.dls.one_batch()[0].shape[1]==12 and learn.model.training

class Crash(Exception): pass

@pytest.mark.parametrize('batch', (3, 70, 125, 170))
def test_interrupted_path_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, batch):
    "The crash comes in the dense run, while a step prunes, while it retrains, or in the next one."
    whole = feature_path(learner(), ks, **how)
    count = [0]
    def crash(self):
        count[0] += 1
        if count[0]==batch: raise Crash('here')
    learn = learner()
    class _Crash(Callback): before_batch = crash
    with pytest.raises(Crash): feature_path(learner(cbs=_Crash()), ks, path=tmp_path, **how)
    torch.rand(3), np.random.rand(3) # a new program is elsewhere in its random numbers
    resumed = feature_path(learn, ks, path=tmp_path, **how)
    assert values(resumed)==values(whole) and resumed.dense['retrained']==whole.dense['retrained']
    again = feature_path(learner(seed=1), ks, path=tmp_path, **how) # all is there: nothing is trained
    assert values(again)==values(whole) and again.to_frame().seconds.tolist()==resumed.to_frame().seconds.tolist()
    assert not list(tmp_path.glob('*.part'))

def test_torn_files_are_ignored(tmp_path):
    whole = feature_path(learner(), ks, path=tmp_path, **how)
    for name,torn in (('inputs_3.json', b'{"settings": {"ks": [8'), ('inputs_3.json', b''), ('inputs_5.safetensors', b'\x10\0'), ('inputs_8.json', b'[1]'), ('dense.json', b'null')):
        (tmp_path/name).write_bytes(torn)
        assert values(feature_path(learner(), ks, path=tmp_path, **how))==values(whole)
        assert json.loads((tmp_path/'inputs_3.json').read_text())['row']['inputs']==3

@pytest.mark.parametrize('other', (dict(ks=[8, 3]), dict(epochs=5), dict(seed=1), dict(retrain=0), dict(scratch=True), dict(lr=.1), dict(criterion='large_final'), dict(schedule='agp')))
def test_other_settings_in_the_folder_are_an_error(tmp_path, other):
    feature_path(learner(), ks, path=tmp_path, dense=False, **{**how, 'epochs':1})
    with pytest.raises(ValueError, match='another folder, or the same settings'): feature_path(learner(), path=tmp_path, dense=False, **{'ks':ks, **how, 'epochs':1, **other})

def test_path_errors():
    for bad,match in (([13, 3], '13 inputs are to be kept, but there are 12'), ([3, 0], '0 inputs are to be kept of 12'), ([-2], '-2 inputs'), ([], 'no number')):
        with pytest.raises(ValueError, match=match): feature_path(learner(), bad, **how)
    path = FeaturePath([dict(inputs=2, features=[0,3], masked=.5, retrained=.75, parameters=9, seconds=1.)], list('abcd'), 'accuracy', None)
    with pytest.raises(ValueError, match='3 inputs are not on the path: it has 2'): path.kept(3)
    assert path.kept_names(2)==['a','d'] and path.to_frame().features[2]==['a','d']

def test_channels_of_a_convolution_are_features():
    set_seed(0)
    x = torch.randn(160, 6, 5, 5)
    y = (x[:,2].mean((1,2))>0).long()
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    path = feature_path(Learner(tensor_dls((x, y), (x, y), 16), model, loss_func=CrossEntropyLossFlat(), metrics=accuracy), [4, 2], dense=False, **how)
    assert path.dense is None and 2 in path.kept(2) and path.to_frame().parameters.tolist()==[8*9*k + 8 + 18 for k in (4, 2)]
    with pytest.raises(ValueError, match="granularity 'pixel' masks inputs"):
        feature_path(Learner(tensor_dls((x, y), (x, y), 16), model, loss_func=CrossEntropyLossFlat()), [4], granularity='pixel')

def test_path_plot_shows_every_number_and_the_dense_network():
    rows = [dict(inputs=k, features=list(range(k)), masked=.5, retrained=v, parameters=9, seconds=1.) for k,v in ((100,.9), (25,.8), (5,.6))]
    ax = FeaturePath(rows, list(range(200)), 'accuracy', dict(retrained=.95)).plot()
    assert ax.get_xscale()=='log' and [t.get_text() for t in ax.get_xticklabels()]==['100','25','5'] and len(ax.lines)==3
    assert FeaturePath(rows[:1], list(range(200)), 'accuracy', None).plot().get_xscale()=='linear'

def test_callbacks_and_learners_without_metric():
    learn = learner()
    learn.metrics = []
    learn.add_cb(SparsifyCallback(.5)) # masks of the given learner are not part of the path
    df = feature_path(learn, [4], names=list('abcdefghijkl'), **how).to_frame()
    assert {'valid_loss_masked','valid_loss_retrained'} <= set(df.columns) and 'h' in df.features[4] and set(df.features[4]) < set('abcdefghijkl')

# the selector

@parametrize_with_checks([SelectFromNet(hidden=(8,), epochs=2, n_features_to_select=.5)])
def test_sklearn_checks(estimator, check): check(estimator)

def test_finds_single_columns_and_pairs():
    x,y = table()
    s = net(n_features_to_select=3, epochs=40).fit(x, y)
    assert isinstance(s, SelectorMixin) and s.get_support(indices=True).tolist()==[1, 4, 7]
    assert np.array_equal(s.transform(x), x[:,[1, 4, 7]])
    back = s.inverse_transform(s.transform(x))
    assert np.array_equal(back[:,[1,4,7]], x[:,[1,4,7]]) and not np.delete(back, [1,4,7], 1).any()

def test_finds_what_decides_in_regression():
    x,_ = table(seed=1)
    y = 1e6 + 1e4*(2*x[:,0]-x[:,5]*x[:,6])
    assert net(n_features_to_select=3).fit(x, y).get_support(True).tolist()==[0, 5, 6]

@pytest.mark.parametrize('wanted, count', [(1,1), (5,5), (12,12), (.25,3), (.01,1), (1.,12), (np.int64(4),4)])
def test_counts_are_exact_and_ranks_are_a_permutation(wanted, count):
    x,y = table(100)
    s = net(n_features_to_select=wanted, epochs=1).fit(x, y)
    assert s.get_support().sum()==count and (s.ranking_==1).sum()==count and np.array_equal(s.ranking_==1, s.get_support())
    assert sorted(s.ranking_[~s.get_support()])==list(range(2, 14-count)) and s.scores_.shape==(12,) and np.isfinite(s.scores_).all()

def test_noise_dies_before_what_decides():
    x,y = table()
    assert set(np.argsort(net(n_features_to_select=1, epochs=40).fit(x, y).ranking_)[:3])=={1, 4, 7}

@pytest.mark.parametrize('value', (0., .1, -7.3, 1e9))
def test_constants_go_first(value):
    x,y = table(200)
    x = x.astype(np.float64)
    x[:,[0,1,2,3,5]] = value
    for k in (1, 4, 7): assert not set(net(n_features_to_select=k, epochs=2).fit(x, y).get_support(True)) & {0,1,2,3,5}
    assert set(np.argsort(net(n_features_to_select=1, epochs=2).fit(x, y).ranking_)[-5:])=={0,1,2,3,5}

def test_units_do_not_matter():
    x,y = table()
    scales,shifts = 10.**np.linspace(-30, 30, 12),np.linspace(-5, 5, 12)
    a,b = net(n_features_to_select=3, epochs=40).fit(x, y),net(n_features_to_select=3, epochs=40).fit((x.astype(np.float64)+shifts)*scales, y)
    assert a.get_support(True).tolist()==b.get_support(True).tolist()==[1, 4, 7]

def test_outliers_do_not_hide_a_column():
    x,y = table()
    x[::300,7] = 1e6
    assert 7 in net(n_features_to_select=3).fit(x, y).get_support(True)

def test_one_unit_for_the_whole_table():
    "A column that hardly varies is worth less then, though it decides; constants, again, nothing."
    x,y = table()
    x[:,7] *= 1e-4
    x[:,0] = 3.
    a,b = [net(n_features_to_select=3, scale=s).fit(x, y) for s in ('column','table')]
    assert 7 in a.get_support(True) and 7 not in b.get_support(True) and a.ranking_[0]==b.ranking_[0]==10

def test_verbose_shows_training(capfd):
    x,y = table(100)
    for verbose in (False,True): assert ('inputs_pruned' in (net(epochs=2, verbose=verbose).fit(x, y) and capfd.readouterr().out))==verbose

def test_same_seed_same_result_and_random_numbers_left_alone():
    x,y = table(200)
    before = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state()
    a = net(epochs=2).fit(x, y)
    assert random.getstate()==before[0] and np.random.get_state()[1].tolist()==before[1] and torch.equal(torch.get_rng_state(), before[2])
    torch.rand(5)
    b,c = net(epochs=2).fit(x, y),net(epochs=2, seed=1).fit(x, y)
    assert np.array_equal(a.scores_, b.scores_) and np.array_equal(a.ranking_, b.ranking_) and not np.array_equal(a.scores_, c.scores_)

def test_pandas_keeps_names():
    x,y = table(200)
    df = pd.DataFrame(x, columns=[f'c{i}' for i in range(12)])
    s = net(n_features_to_select=4, epochs=2).fit(df, pd.Series(np.where(y, 'yes', 'no'), dtype=object))
    names = s.get_feature_names_out().tolist()
    assert names==df.columns[s.get_support()].tolist() and s.feature_names_in_.tolist()==df.columns.tolist()
    assert s.set_output(transform='pandas').transform(df).columns.tolist()==names
    with pytest.raises(ValueError, match='feature names'): s.transform(df.rename(columns={'c0':'other'}))

def test_pipeline_grid_search_and_clone():
    x,y = table(300)
    pipe = make_pipeline(net(epochs=6), LogisticRegression())
    search = GridSearchCV(pipe, {'selectfromnet__n_features_to_select':[1, 3]}, cv=2).fit(x, y)
    assert search.best_estimator_[0].get_support().sum() in (1, 3) and 7 in search.best_estimator_[0].get_support(True)
    s = net(n_features_to_select=2, criterion='large_final', task='classification')
    assert clone(s).get_params()==s.get_params() and not hasattr(clone(s), 'support_')

def test_selector_errors():
    x,y = table(50)
    s = net(epochs=1).fit(x, y)
    with pytest.raises(ValueError, match='X has 5 features, but SelectFromNet is expecting 12'): s.transform(x[:,:5])
    bad = x.copy()
    bad[3,2] = np.nan
    with pytest.raises(ValueError, match='NaN'): net().fit(bad, y)
    for wanted,match in ((13, '=13, but X has 12 features: ask for 12'), (0, '=0 of 12'), (-1, '=-1'), (1.5, '=1.5'), (0., '=0.0'), (True, 'True'), ('half', "'half'")):
        with pytest.raises(ValueError, match=match): net(n_features_to_select=wanted).fit(x, y)
    with pytest.raises(ValueError, match='all 12 features are constant'): net().fit(np.ones_like(x), y)
    with pytest.raises(ValueError, match='y has 1 class'): net().fit(x, np.ones(50, dtype=int))
    with pytest.raises(ValueError, match="task 'rank' is not known"): net(task='rank').fit(x, y)
    with pytest.raises(ValueError, match="scale 'row' is not known"): net(scale='row').fit(x, y)
    with pytest.raises(ValueError, match="'nonsense'"): net(criterion='nonsense').fit(x, y)
    with pytest.raises(ValueError, match='requires y'): net().fit(x, None)
