"The command that a newcomer types: what it writes, what it reaches, and what it says when something is wrong."
import re, subprocess, sys, sysconfig
from pathlib import Path
import pytest
from fastai.basics import CrossEntropyLossFlat, Learner, accuracy, set_seed
from torch import nn
from fasterprune.all import *
from fasterprune.core.models import evaluating
from fasterprune.demo import mlp, recipes
from support.lanes import soak

command = Path(sysconfig.get_path('scripts'))/'fasterprune-demo'

def run(*args, cwd, **kwargs): return subprocess.run([sys.executable, str(command), *map(str, args)], cwd=cwd, text=True, capture_output=True, **kwargs)

@pytest.fixture(scope='module')
def digits_demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp('demo')
    r = run(cwd=folder)
    assert r.returncode==0, r.stderr
    return folder,r.stdout

def row(out, name): return re.search(rf'^{name} +(.*)$', out, re.MULTILINE)[1].split()
def cells(out, name):
    "Accuracy in %, inputs, parameters and largest difference."
    acc,n_in,n_params,*_,last = row(out, name)
    return float(acc.strip('%')),int(n_in.replace(',','')),int(n_params.replace(',','')),last

def test_demo_keeps_its_promises(digits_demo):
    folder,out = digits_demo
    dense,condensed,retrained = (cells(out, o) for o in ('dense','condensed','retrained'))
    assert dense[1]==64 and dense[0]>=95
    assert condensed[1]==retrained[1]<=32 and condensed[2]==retrained[2]<=dense[2]/5
    assert retrained[0]>=dense[0]-1
    assert float(condensed[3])<=1e-5 and float(cells(out, 'loaded')[3])==0

def test_a_log_gets_whole_lines_only(digits_demo):
    out = digits_demo[1]
    assert '\r' not in out and '\x1b' not in out and '█' not in out and out.count('train_loss')==3

def test_report_is_one_self_contained_page(digits_demo):
    folder,out = digits_demo
    assert sorted(p.name for p in (folder/'demo').iterdir())==['report.html','report.safetensors']
    page = (folder/'demo'/'report.html').read_text(encoding='utf-8')
    assert page.startswith('<!doctype html>') and page.endswith('</html>') and page.count('<h2>')==page.count('</section>')>=4
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"|url\(|@import|<script|<link', page)
    assert page.count('src="data:image/png;base64,')>=3
    for name in ('dense','masked','condensed','retrained','loaded'): assert f'<td>{name}</td>' in page and row(out, name)[0] in page

def test_saved_network_is_the_retrained_one(digits_demo):
    folder,out = digits_demo
    data = digits()
    c = load_condensed(folder/'demo'/'report.safetensors', mlp((1,8,8), recipes['digits'].hidden))
    with evaluating(c.model): right = (c.model(c.inputs(data.valid[0])).argmax(1)==data.valid[1]).float().mean()
    acc,n_in,n_params,_ = cells(out, 'retrained')
    assert 100*float(right)==pytest.approx(acc, abs=.006)
    assert sum(p.numel() for p in c.model.parameters())==n_params and c.inputs(data.valid[0])[0].numel()==n_in

def quick_error(*args, cwd):
    r = run(*args, cwd=cwd)
    assert r.returncode==1 and 'Traceback' not in r.stderr and 'Training' not in r.stdout
    return r.stderr

def test_unwritable_path_is_told_before_training(tmp_path):
    (tmp_path/'file').write_text('x')
    (tmp_path/'folder.html').mkdir()
    for out in ('file/report.html', 'folder.html'):
        err = quick_error('--out', out, cwd=tmp_path)
        assert out in err and 'choose another path' in err
    assert sorted(p.name for p in tmp_path.iterdir())==['file','folder.html'] and (tmp_path/'file').read_text()=='x'

def test_unknown_data_is_told(tmp_path):
    err = quick_error('--data', 'imagenet', cwd=tmp_path)
    assert "'imagenet'" in err and 'digits, mnist' in err

# ---- MNIST

def images(data_path):
    data_path('mnist.npz')
    return mnist()

@pytest.mark.parametrize('norm', [*soak(False), pytest.param(True, marks=pytest.mark.long)])
def test_mnist_50_pixels(data_path, norm):
    "784-512-256-10, 50 pixels left, condensed, shortly retrained: at least 96.5 % on the official test set."
    data = images(data_path)
    set_seed(0)
    def _layer(i, o): return [nn.Linear(i, o), *([nn.BatchNorm1d(o)] if norm else []), nn.ReLU()]
    net = nn.Sequential(nn.Flatten(), *_layer(784, 512), *_layer(512, 256), nn.Linear(256, 10))
    learn = Learner(tensor_dls(data.train, data.valid, 128), net, loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    cb = InputPruneCallback(1-50/784)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(8, 5e-3 if norm else 1e-3, cbs=cb)
    x,y = data.valid
    c = learn.condense()
    with evaluating(learn.model), evaluating(c.model):
        a,b = learn.model(x),c.model(c.condensed.inputs(x))
        assert float((a-b).abs().max()/a.abs().max()) <= 1e-5
    with c.no_bar(), c.no_logging(): c.fit_one_cycle(4, 1e-3)
    with evaluating(c.model): acc = float((c.model(c.condensed.inputs(x)).argmax(1)==y).float().mean())
    print(f'norm {norm}: {acc:.2%}')
    assert len(y)==10_000 and acc >= .965
    constant = (data.train[0]==data.train[0][:1]).all(0).flatten()
    assert constant.sum()>0 and len(cb.kept)==50 and not constant[cb.kept].any()
    assert set(c.condensed.inputs.index.tolist()) <= set(cb.kept.tolist()) and c.model[1].in_features <= 50

@pytest.mark.soak
def test_demo_on_mnist(tmp_path, data_path):
    data_path('mnist.npz')
    r = run('--data', 'mnist', '--out', 'm.html', cwd=tmp_path)
    assert r.returncode==0, r.stderr
    assert cells(r.stdout, 'retrained')[0]>=96.5 and cells(r.stdout, 'retrained')[1]<=50
    assert float(cells(r.stdout, 'condensed')[3])<=1e-5 and (tmp_path/'m.html').exists()
