"""Files of strangers: thousands of mutated condensed networks, tickets, folders of paths, results of studies and sidecars of checkpoints. Each is a `ValueError`, or it is right.

Right is what computes the same as the file did before. Where the digest is made anew or gone, nobody can know that a number in a tensor was another one: there a network of the right shapes
with other finite numbers counts as right, too, if numbers are all that was changed. Files without a digest are such as version 0.1 wrote. Results of a study are lines of text that
people may edit: there it is right if each run is there once in the end, and the columns of numbers hold numbers. As a script
(`python tests/reliability/test_mutated_files.py 5000 2000 500 200 500`) it tries so many of each and writes results/reliability.csv."""
import json, math, os, random, shutil, signal, sys, tempfile, warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
import pandas as pd, pytest, torch
from fastai.basics import Callback, CancelFitException, Learner, MSELossFlat, SGD, set_seed
from fastai.callback.all import SaveModelCallback
from fastai.tabular.model import TabularModel
from torch import nn
from fasterprune.all import *
from fasterprune.core.batches import as_tuple
from fasterprune.sparsify.tickets import Ticket
from fasterprune.studies.study import Study, run_study
from support.exact import Standard
from support.mutations import bytes_changed, mutated, of_new_files, of_new_modules, parts, plain_changed, text_changed
from support.nets import perturb
from support.reliability import write_rows

def convnet():
    "Convolutions with BatchNorm, half of the filters zero."
    return perturb(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10), nn.LayerNorm(10), nn.ReLU(), nn.Linear(10, 4)))

class Residual(nn.Module):
    "Branches that are narrower than their stream, one that is a constant, and a layer whose weight is computed."
    def __init__(self):
        super().__init__()
        self.start,self.norm1,self.norm2 = nn.Conv2d(3, 8, 3, padding=1),nn.BatchNorm2d(8),nn.BatchNorm2d(8)
        self.a,self.b,self.c,self.d = nn.Conv2d(8, 8, 3, padding=1),nn.Conv2d(8, 8, 1),Standard(8, 8, 3, padding=1),nn.Linear(8, 4)
    def forward(self, x):
        h = self.start(x)
        h = h + self.norm1(self.a(h).relu())
        h = h + self.b(h)
        return self.d((h + self.norm2(self.c(h).relu())).mean((2, 3)))

class Heads(nn.Module):
    "Attention by hand, whose number of heads is an attribute."
    def __init__(self, n=16, heads=4):
        super().__init__()
        self.heads,self.qkv,self.out,self.norm = heads,nn.Linear(n, 3*n),nn.Linear(n, n),nn.LayerNorm(n)
    def forward(self, x):
        b,l,_ = x.shape
        q,k,v = self.qkv(self.norm(x)).view(b, l, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return x + self.out(((q@k.transpose(-2, -1)).softmax(-1)@v).transpose(1, 2).reshape(b, l, -1))

def attention(): return nn.Sequential(nn.Linear(5, 16), nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), Heads(), nn.Linear(16, 3))
def tabular(): return TabularModel([(4, 3), (6, 4), (3, 2)], 5, 2, [12, 8])
def selected(): return nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 3))
def half(): return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).half()

def rand(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

@torch.no_grad()
def zero(l, rows):
    l.weight[rows] = 0
    if l.bias is not None: l.bias[rows] = 0

def zeros_convnet(m, x): Sparsifier(m, 'filter', sample=x).sparsify(.5)
@torch.no_grad()
def zeros_residual(m, x):
    for l,rows in ((m.a,[0,3,5]), (m.norm1,[0,3,5]), (m.c,[1,2]), (m.norm2,[1,2]), (m.b,slice(None))): zero(l, rows)
    m.b.bias[::2] = .5
@torch.no_grad()
def zeros_attention(m, x):
    for kind in ('neuron','head'): Sparsifier(m[:2], kind, sample=x).sparsify(.5)
    for part in m[2].qkv.weight.view(3, 4, 4, 16), m[2].qkv.bias.view(3, 4, 4): part[:,1] = 0
    m[2].out.weight[:,4:8] = 0
@torch.no_grad()
def zeros_tabular(m, x):
    first = next(l for l in m.layers.modules() if isinstance(l, nn.Linear))
    first.weight[:,[0,1,2,9]] = 0 # a whole embedding, a continuous column
    zero(first, [1, 5, 6])
@torch.no_grad()
def zeros_selected(m, x):
    m[1].weight[:,torch.arange(48)%3!=0] = 0
    zero(m[1], [2, 3])
@torch.no_grad()
def zeros_half(m, x): Sparsifier(m, 'neuron', sample=x).sparsify(.5)

networks = dict(convnet=(convnet, lambda: rand(3, 3, 8, 8), zeros_convnet, {}),
    residual=(Residual, lambda: rand(3, 3, 6, 6), zeros_residual, dict(expand=True)),
    attention=(attention, lambda: rand(3, 7, 5), zeros_attention, {}),
    tabular=(tabular, lambda: (torch.tensor([[1,2,0],[3,5,2],[0,1,1]]), rand(3, 5)), zeros_tabular, {}),
    selected=(selected, lambda: rand(3, 3, 4, 4), zeros_selected, {}), half=(half, lambda: rand(3, 8).half(), zeros_half, {}))

class Net:
    "A condensed network in a file, and what it computes."
    def __init__(self, name, folder):
        self.name,(self.make,x,zeros,options) = name,networks[name]
        torch.manual_seed(0)
        self.x,dense = x(),self.make().eval()
        zeros(dense, self.x)
        torch.manual_seed(1)
        self.model = self.make().eval() # what files are loaded onto
        path = Condenser(dense, self.x, **options).condense().save(folder/f'{name}.safetensors')
        self.data,self.out = path.read_bytes(),None
        self.out = self.use(path)

    def use(self, path):
        "All that is done with a file that is there."
        c = load_condensed(path, self.model)
        str(c.report), repr(c), c.report.removed
        if c.report.layers: c.report.to_frame()
        with torch.no_grad():
            out = c.model.eval()(*as_tuple(c.inputs(*as_tuple(self.x))))
            if None not in (c.blueprint.get('sample') or [None]): c.example() # else it asks for one
        c.save(path.with_name('again.x'))
        return out

@contextmanager
def guarded(seconds=30):
    "What hangs is an error."
    def _late(*_): raise TimeoutError('it takes too long')
    old = signal.signal(signal.SIGALRM, _late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)

def outcome(use, same, numbers):
    "'refused', 'same', 'numbers', or what is wrong."
    try:
        with guarded(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found = use()
    except ValueError as e: return 'refused' if 'file.x' in str(e) else f'a ValueError that does not name the file: {str(e)[:200]}'
    except BaseException as e: return f'{type(e).__name__}: {str(e)[:200]}'
    if same(found): return 'same'
    return 'numbers' if numbers(found) else 'computes something else'

def _without_numbers(data, digest):
    "A blueprint, of what version 0.1 knew if there is no digest, without the values of constants, which stand beside those in tensors, and without what says how large they are."
    plan = json.loads(parts(data)[1]['blueprint'])
    modules = plan['modules']
    for norm in modules['norms'].values(): norm[1] = [g[:2] for g in norm[1]]
    for wide in modules['wide'].values(): wide[2] = len(wide[2])
    for k in of_new_modules*(digest=='none'): modules.pop(k, None)
    return {k:v for k,v in plan.items() if k not in ('tensors','digest','parts','report','fasterprune',*of_new_files*(digest=='none'))}

def changed_numbers(data, new, digest):
    "Are other finite numbers all that was changed, where no digest can tell?"
    if digest=='old': return False
    a,b = (parts(d)[0] for d in (data, new))
    def _forms(header): return {k:(v['dtype'], v['shape']) for k,v in header.items()}
    return _forms(a)==_forms(b) and _without_numbers(data, digest)==_without_numbers(new, digest)

class Fuzz:
    "Tries mutated files and counts what comes out."
    def __init__(self, folder): self.path,self.counts,self.wrong = folder/'file.x',Counter(),[]
    def note(self, result, what):
        good = result in ('refused','same','numbers')
        self.counts[result if good else 'wrong'] += 1
        if not good: self.wrong.append(f'{what}: {result}')
    @property
    def tried(self): return sum(self.counts.values())

def fuzz_condensed(n, seed, folder, show=None):
    "Mutated condensed networks, by network."
    nets,rnd,found = [Net(k, folder) for k in networks],random.Random(seed),{}
    for i in range(n):
        net = nets[i%len(nets)]
        f = found.setdefault(net.name, Fuzz(folder))
        data,what,digest = mutated(net.data, 'blueprint', rnd)
        f.path.write_bytes(data)
        def _same(out): return out.shape==net.out.shape and out.dtype==net.out.dtype and torch.equal(out, net.out)
        def _numbers(out): return changed_numbers(net.data, data, digest) and out.shape==net.out.shape and out.dtype==net.out.dtype
        result = outcome(lambda: net.use(f.path), _same, _numbers)
        f.note(result, f'{net.name} {i}, {what}, digest {digest}')
        if show and result not in ('refused','same','numbers'): shutil.copy(f.path, Path(show)/f'{net.name}_{i}.x')
    return found

def fuzz_tickets(n, seed, folder):
    "Mutated tickets."
    net,rnd,f = convnet(),random.Random(seed),Fuzz(folder)
    rounds = pd.DataFrame([dict(round=1, sparsity=0., loss=2.5, accuracy=.1), dict(round=2, sparsity=.3, loss=math.nan, accuracy=.2)])
    whole = Ticket({k:v.clone() for k,v in net.state_dict().items()}, .5, 2, rounds)
    first = whole.save(f.path).read_bytes()
    for i in range(n):
        data,what,digest = mutated(first, 'fasterprune_ticket', rnd)
        f.path.write_bytes(data)
        def _use():
            t = load_ticket(f.path)
            repr(t), t.rounds.to_dict(), t.epoch+1, 1-t.sparsity
            try: return t,t.apply(convnet()).state_dict()
            except ValueError as e: raise ValueError(f'file.x does not fit: {e}') from e
        def _same(found): return all(torch.equal(v, whole.weights[k]) for k,v in found[1].items())
        def _sound(k, v): return v.shape==whole.weights[k].shape and v.isfinite().all()
        def _numbers(found): return digest!='old' and found[1].keys()==whole.weights.keys() and all(_sound(*o) for o in found[1].items())
        f.note(outcome(_use, _same, _numbers), f'ticket {i}, {what}, digest {digest}')
    return dict(tickets=f)

def squares(scale): return [dict(number=n, kind=k) for n in (2, 3, 4) for k in ('a','b')]
def square(settings): return dict(squared=settings['number']**2, part=1/settings['number'])
def study(name='file'): return Study(name, 'squares', squares, square, ('squared','part'), None, numbers=('squared','part'))

def fuzz_rows(n, seed, folder):
    "Mutated results of a study, which then goes on: all runs are there, and rows that are as they were count."
    rnd,f = random.Random(seed),Fuzz(folder)
    first = run_study(study(), folder, seeds=2, bar=False)
    data,wanted,path = first.path.read_bytes(),{first.key(r) for r in first.rows()},first.path
    texts = dict(scale={'cpu'}, kind={'a','b'})
    for i in range(n):
        for p in folder.glob('file*.csv'): p.unlink()
        path.write_bytes(text_changed(data, rnd))
        def _use():
            try: results = run_study(study(), folder, seeds=2, bar=False)
            except ValueError as e: raise ValueError(str(e).replace('file.csv', 'file.x')) from e
            frame = results.to_frame()
            results.merge()
            frame[['squared','part','seconds','seed']].astype(float).sum()
            frame.groupby('number').squared.mean()
            return results.rows()
        def _same(rows): return wanted<={first.key(r) for r in rows} and len({first.key(r) for r in rows})==len(rows)
        f.note(outcome(_use, _same, lambda _: False), f'rows {i}')
    return {'results of a study':f}

def table(n=96):
    x = rand(n, 8, seed=1)
    return x,torch.stack([x[:,0]+x[:,1], x[:,2]-x[:,0]], 1)

def learner():
    set_seed(0)
    x,y = table()
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 2))
    return Learner(tensor_dls((x[:64], y[:64]), (x[64:], y[64:]), bs=32, device='cpu'), model, loss_func=MSELossFlat(), opt_func=SGD)

def fuzz_folders(n, seed, folder):
    "Mutated files of a path, which then goes on: what is damaged is done again, and comes out the same."
    rnd,f,whole = random.Random(seed),Fuzz(folder),folder/'whole'
    how = dict(epochs=1, retrain=1, lr=.01)
    def _rows(path): return [{k:v for k,v in r.items() if k!='seconds'} for r in [*path.rows, path.dense]]
    first = _rows(feature_path(learner(), [5, 3], path=whole, **how))
    names_ = sorted(p.name for p in whole.iterdir())
    for i in range(n):
        d = folder/'file.x'
        shutil.rmtree(d, ignore_errors=True)
        shutil.copytree(whole, d)
        p = d/rnd.choice(names_)
        if p.suffix=='.json' and rnd.random()<.7:
            found = plain_changed(json.loads(p.read_text()), rnd)
            p.write_text(json.dumps(found))
        else: p.write_bytes(bytes_changed(p.read_bytes(), rnd))
        def _use(): return feature_path(learner(), [5, 3], path=d, **how)
        f.note(outcome(_use, lambda path: _rows(path)==first, lambda _: False), f'folder {i}, {p.name}')
    return {'folders of a path':f}

def equal(a, b): return a.keys()==b.keys() and all(v.shape==b[k].shape and torch.equal(v, b[k]) for k,v in a.items())

def half_way(path):
    "A learner for a fit of four epochs in which its network and inputs shrink, and the callbacks of that fit."
    set_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.LayerNorm(10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    x,y = table()
    learn = Learner(tensor_dls((x[:64], y[:64]), (x[64:], y[64:]), bs=32, device='cpu'), model, loss_func=MSELossFlat(), path=path)
    return learn,[SparsifyCallback(.5, 'neuron', criterion='movement'), InputPruneCallback(.4), CondenseCallback()]

class Stop(Callback):
    "The fit ends with its second epoch."
    order = 90
    def after_epoch(self):
        if self.epoch==1: raise CancelFitException

def fuzz_sidecars(n, seed, folder):
    "Mutated sidecars of a checkpoint: they are refused when they are loaded, or by the fit that goes on from them, and nothing else goes wrong."
    rnd,f,(learn,cbs) = random.Random(seed),Fuzz(folder),half_way(folder)
    def _fit(learn, cbs, **kwargs):
        with learn.no_bar(), learn.no_logging(): learn.fit(4, 1e-2, cbs=cbs, **kwargs)
    _fit(learn, [*cbs, SaveModelCallback(every_epoch=True, with_opt=True), Stop()])
    file = folder/'models'/'model_1.fasterprune'
    data = file.read_bytes()
    learn,cbs = half_way(folder)
    _fit(learn.load_condensed('model_1', with_opt=True), cbs, start_epoch=2)
    wanted = dict(learn.model.state_dict())
    for i in range(n):
        new,what,digest = mutated(data, 'checkpoint', rnd)
        file.write_bytes(new)
        learn,cbs = half_way(folder)
        before,loaded = {k:v.clone() for k,v in learn.model.state_dict().items()},[]
        def _use():
            try:
                learn.load_condensed('model_1', with_opt=True)
                loaded.append(True)
                _fit(learn, cbs, start_epoch=2)
            except ValueError as e:
                if not loaded and not equal(learn.model.state_dict(), before): raise AssertionError('the network is changed') from e
                raise ValueError(f'file.x: {e}' if loaded else str(e).replace('model_1', 'file.x')) from e
            return learn.model.state_dict()
        def _numbers(found): return digest!='old' and all(v.isfinite().all() for v in found.values())
        f.note(outcome(_use, lambda found: equal(found, wanted), _numbers), f'sidecar {i}, {what}, digest {digest}')
    return {'sidecars of checkpoints':f}

def no_files(folder):
    "What is there in the place of a file, by what it is."
    (folder/'folder').mkdir()
    (folder/'empty').touch()
    (folder/'loop').symlink_to('loop')
    (folder/'none').symlink_to('nowhere')
    os.mkfifo(folder/'pipe')
    return [*folder.iterdir(), Path('/dev/zero'), Path('/dev/null'), folder/('a'*300), folder/'empty'/'x']

def test_no_files_at_all(tmp_path):
    for p in no_files(tmp_path):
        with guarded():
            with pytest.raises((ValueError,FileNotFoundError), match=str(p.name)[:50]): load_condensed(p, convnet())
            with pytest.raises(ValueError, match=str(p.name)[:50]): load_ticket(p)

def test_a_link_stays_one_when_it_is_saved_to(tmp_path):
    net = Net('half', tmp_path)
    (tmp_path/'real.safetensors').touch()
    (tmp_path/'link.safetensors').symlink_to('real.safetensors')
    load_condensed(tmp_path/'half.safetensors', net.model).save(tmp_path/'link.safetensors')
    assert (tmp_path/'link.safetensors').is_symlink() and (tmp_path/'real.safetensors').stat().st_size>1000

def test_a_ticket_with_statistics_that_are_no_numbers(tmp_path):
    "It is refused, and the model is as before; infinities that are in the model, too, are none of its faults."
    net = convnet()
    net.register_buffer('mask', torch.tensor([0.,-math.inf]))
    ticket,model = Ticket({k:v.clone() for k,v in net.state_dict().items()}, .5),convnet()
    model.register_buffer('mask', torch.tensor([-math.inf,0.]))
    before = {k:v.clone() for k,v in model.state_dict().items()}
    for bad in (math.nan, math.inf):
        ticket.weights['1.running_mean'][3] = bad
        with pytest.raises(ValueError, match="'1.running_mean' of the ticket holds NaN or infinity"): load_ticket(ticket.save(tmp_path/'a')).apply(model)
        assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())
    ticket.weights['1.running_mean'][3] = .5
    assert torch.equal(load_ticket(ticket.save(tmp_path/'a')).apply(model).mask, net.mask)

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid()==0, reason='root may do anything')
def test_no_permission(tmp_path):
    path = Net('half', tmp_path) and tmp_path/'half.safetensors'
    path.chmod(0)
    with pytest.raises(ValueError, match='Permission'): load_condensed(path, half())
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match='cannot be written'): Ticket(half().state_dict(), .5).save(tmp_path/'b')
    tmp_path.chmod(0o700)

@pytest.mark.parametrize('f,n', [(fuzz_condensed, 120), (fuzz_tickets, 60), (fuzz_rows, 40), (fuzz_sidecars, 20)])
def test_some_mutated_files(f, n, tmp_path):
    for k,v in f(n, 0, tmp_path).items(): assert not v.wrong, (k, v.wrong)

@pytest.mark.long
@pytest.mark.parametrize('f,n', [(fuzz_condensed, 1200), (fuzz_tickets, 500), (fuzz_rows, 150), (fuzz_folders, 60), (fuzz_sidecars, 80)])
def test_mutated_files(f, n, tmp_path):
    for k,v in f(n, 1, tmp_path).items(): assert not v.wrong, (k, v.wrong)

def measure(*numbers, seed=2):
    rows = []
    for f,n in zip((fuzz_condensed, fuzz_tickets, fuzz_rows, fuzz_folders, fuzz_sidecars), numbers):
        with tempfile.TemporaryDirectory() as d: found = f(n, seed, Path(d))
        for k,v in found.items():
            print(k, dict(v.counts), *v.wrong[:20], sep='\n  ')
            rows.append(dict(what=f'{k}: {v.counts["refused"]} refused, {v.counts["same"]} the same, {v.counts["numbers"]} with other numbers', tried=v.tried, survived=v.tried-len(v.wrong), lost=len(v.wrong), seeds=seed))
    write_rows('mutated files', rows)

if __name__=='__main__': measure(*map(int, sys.argv[1:]))
