"Files that version 0.1.0 wrote, in tests/fixtures: they load, and give the outputs that they gave."
import importlib, importlib.util, shutil
from pathlib import Path
import pytest, torch
from fastai.learner import load_learner
from safetensors.torch import load_file
from fasterprune.all import feature_path, load_condensed, load_ticket
from fasterprune.core.warnings import FasterpruneWarning

folder = Path(__file__).parent/'fixtures'
old = folder/'v0_1_0'
spec = importlib.util.spec_from_file_location('make_fixtures', folder/'make.py')
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)
outputs = load_file(old/'outputs.safetensors')

def _same(condensed, name):
    with torch.no_grad(): y = condensed.model.eval()(condensed.inputs(outputs[f'{name}.x']))
    torch.testing.assert_close(y, outputs[f'{name}.y'])

@pytest.mark.parametrize('name', make.networks)
def test_condensed_networks_load(name):
    with pytest.warns(FasterpruneWarning, match='of version 0.1.0, which wrote no digest'):
        condensed = load_condensed(old/f'{name}.safetensors', make.networks[name][0]())
    _same(condensed, name)
    assert condensed.report.params_after < condensed.report.params_before and condensed.report.removed

@pytest.mark.parametrize('name', make.networks)
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_pickled_condensed_networks_load(name): _same(torch.load(old/f'{name}.pickle', weights_only=False), name)

@pytest.mark.filterwarnings('ignore:load_learner', 'ignore::DeprecationWarning')
def test_an_exported_learner_predicts():
    learn,x = load_learner(old/'learner.pickle'),outputs['learner.x']
    assert sum(p.numel() for p in learn.model.parameters()) < sum(p.numel() for p in make.dense_mlp().parameters())
    inputs = learn.dls.valid.after_batch # the transforms that deliver only the inputs which are kept
    with torch.no_grad(): torch.testing.assert_close(learn.model.eval()(*inputs((x, torch.zeros(len(x), 2)))[:1]), outputs['learner.y'])

def test_a_ticket_loads():
    ticket = load_ticket(old/'ticket.safetensors')
    assert ticket.weights.keys()=={k.removeprefix('ticket.') for k in outputs if k.startswith('ticket.')}
    for k,v in ticket.weights.items(): assert torch.equal(v, outputs[f'ticket.{k}']), k
    model = ticket.apply(make.dense_mlp())
    zeros,n = [sum(f(p) for p in (m.weight for m in model if isinstance(m, torch.nn.Linear))) for f in (lambda p: int((p==0).sum()), lambda p: p.numel())]
    assert zeros==round(.75*n) and len(ticket.rounds)==2

def test_a_feature_path_goes_on_from_its_folder(tmp_path, monkeypatch):
    "Every step is found in the folder, so nothing is trained."
    from fastai.learner import Learner
    learn = make.learner()
    def _no_fit(*args, **kwargs): raise AssertionError('a finished step is trained again')
    monkeypatch.setattr(Learner, 'fit', _no_fit)
    path = feature_path(learn, [6, 3], epochs=1, retrain=1, path=old/'feature_path')
    assert torch.equal(torch.tensor([r['retrained'] for r in path.rows], dtype=torch.float64), outputs['feature_path.retrained'])

def test_rows_of_a_study_count_as_done(tmp_path):
    from fasterprune.studies.study import Study, run_study
    def _not_again(settings): raise AssertionError('a finished run is done again')
    shutil.copytree(old/'rows', tmp_path/'rows') # a form of before is brought up to date
    rows = run_study(Study('toy', 'squares', make.squares, _not_again, ('squared',), None), out=tmp_path/'rows', seeds=2, bar=False).rows()
    assert [(r['number'], r['squared'], r['fasterprune']) for r in rows]==[('2', '4', '0.1.0'), ('3', '9', '0.1.0')]*2

@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('name', (old/'names.txt').read_text().split())
def test_what_version_0_1_called_so_is_to_be_had(name):
    "Code and pickles of version 0.1 ask for these: all public names of its modules, and private classes of what could be saved."
    module,_,attr = name.rpartition('.')
    assert getattr(importlib.import_module(f'fasterprune.{module}'), attr) is not None
