"""Saves that are killed, and saves on a full disk: the file that was there is whole, and nothing is left over by the next save.
As a script (`python tests/reliability/test_saves.py 300 20`) it tries so many kills and full disks, and writes what survived to results/reliability.csv."""
import os, random, signal, sys, tempfile, time
from pathlib import Path
import pytest, torch
from torch import nn
from fasterprune.all import *
from fasterprune.core.pages import write_page
from fasterprune.sparsify.tickets import Ticket
from fasterprune.studies.study import Appender, Results
from support.reliability import done, forked, in_small_disk, with_limit, write_rows

pytestmark = [pytest.mark.forks, pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs processes that fork')]

def net(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    with torch.no_grad(): model[0].weight[::2],model[0].bias[::2] = 0,0
    return model.eval()

x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
columns = ['seed'],['a','b']

class Kind:
    "A kind of file: `save(path, i)` writes number `i` (0 or 1), and `read(path)` says which one is there, or fails."
    def __init__(self, name, save, read, slow=False): self.name,self.save,self.read,self.slow = name,save,read,slow

def _which(found, outs):
    same = [i for i,o in enumerate(outs) if torch.equal(found, o)]
    assert same, 'it is neither of the two'
    return same[0]

def kinds(onnx=True):
    "All kinds of files that are written."
    small = [Condenser(net(i), x).condense() for i in (0,1)]
    with torch.no_grad(): outs = [c.model(x) for c in small]
    def _condensed(path):
        with torch.no_grad(): return _which(load_condensed(path, net(2)).model(x), outs)
    tickets = [Ticket(net(i).state_dict(), .5) for i in (0,1)]
    def _rows(path): return Results(path, *columns)
    def _append(path, i):
        with Appender(_rows(path), path) as append: append(dict(seed=len(_rows(path).rows()), a=i, b='x'*20_000))
    def _appended(path):
        rows = _rows(path).rows()
        assert [r['seed'] for r in rows]==[str(k) for k in range(len(rows))] and all(len(r['b'])==20_000 for r in rows)
        return int(rows[-1]['a'])
    def _merge(path, i):
        shard = _rows(path).shard(2, 2)
        if str(i) not in {r['seed'] for r in _rows(path).rows()}: # a kill may have come before the merge
            with Appender(_rows(shard), shard) as append: append(dict(seed=i, a=0, b='y'*5000))
        _rows(path).merge()
    def _merged(path):
        seeds = {r['seed'] for r in _rows(path).rows()}
        assert {'0'}<=seeds<={'0','1'} # no row is lost
        return len(seeds)-1
    pages = [f'{i}'*100_000 for i in (0,1)]
    def _page(path): return [f'<section><h2>a</h2>{p}</section>' in path.read_text() and path.read_text().endswith('</html>') for p in pages].index(True)
    found = [Kind('condensed network', lambda p, i: small[i].save(p), _condensed), Kind('ticket', lambda p, i: tickets[i].save(p), lambda p: _which(load_ticket(p).weights['2.weight'],
        [t.weights['2.weight'] for t in tickets])), Kind('row of a study', _append, _appended), Kind('merged shards', _merge, _merged), Kind('page', lambda p, i: write_page(p, 'a', 'b', [('a', pages[i])]), _page)]
    def _onnx(path):
        import onnxruntime
        out = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider']).run(None, {'input':x.numpy()})[0]
        return min((0,1), key=lambda i: (torch.from_numpy(out)-outs[i]).abs().max())
    if onnx: found.append(Kind('ONNX', lambda p, i: small[i].to_onnx(p, dynamo=False), _onnx, slow=True))
    return found

def leftovers(folder): return [p.name for p in folder.iterdir() if '.part' in p.name or p.name.startswith('.')]

def killed(kind, folder, rnd):
    "Kill a process that saves again and again, and look at the file; was it in the middle of a save?"
    path = folder/'file.x'
    start = time.perf_counter()
    kind.save(path, 0)
    once = time.perf_counter()-start
    def _saves():
        for i in range(1, 10_000): kind.save(path, i%2)
    pid = forked(_saves)
    time.sleep(rnd.random()*once*(2 if kind.slow else 6))
    os.kill(pid, signal.SIGKILL)
    assert done(pid) in (0,-signal.SIGKILL), 'it failed before it was killed'
    caught = bool(leftovers(folder))
    kind.read(path) # or it fails
    kind.save(path, 1)
    assert kind.read(path)==1, 'the next save did not save'
    assert not leftovers(folder), f'{leftovers(folder)} is left over'
    return caught

def full(kind, folder, room, limit=None):
    "Save where there is no room; the file has to be as it was, and the error to say what is wrong."
    path = folder/'file.x'
    kind.save(path, 0)
    before = path.read_bytes()
    def _saves():
        if limit is not None: with_limit(limit)
        else: (folder/'filler').write_bytes(bytes(max(0, room(folder))))
        try: kind.save(path, 1)
        except OSError as e:
            assert str(path.parent) in str(e) and 'bytes were written' in str(e), f'it says only {e}'
            return
        raise AssertionError('there was room')
    assert done(forked(_saves))==0
    for p in folder.glob('filler'): p.unlink()
    assert path.read_bytes()==before, 'what was there is not there any more'
    assert not leftovers(folder), f'{leftovers(folder)} is left over'
    kind.read(path) # or it fails

def _room(folder): # but for a few kilobytes
    s = os.statvfs(folder)
    return s.f_bavail*s.f_frsize - 8192

def many(f, kinds, n, seed):
    "Try `f` on kinds of files in turn; how many there were, what failed, and how often `f` was true."
    rnd,tried,lost = random.Random(seed),{k.name:0 for k in kinds},{k.name:[] for k in kinds}
    of,caught = [k for i in range(4) for k in kinds if not (k.slow and i)],0
    for i in range(n):
        kind = of[i%len(of)]
        tried[kind.name] += 1
        with tempfile.TemporaryDirectory() as d:
            try: caught += bool(f(kind, Path(d), rnd))
            except Exception as e: lost[kind.name].append(f'{i}: {type(e).__name__}: {e}')
    return tried,lost,caught

def limited(kind, folder, rnd): full(kind, folder, _room, limit=rnd.choice((0, 25_000, 35_000)) if kind.name=='row of a study' else rnd.randrange(0, 4000))

@pytest.mark.long
def test_killed_saves():
    _,lost,_ = many(killed, kinds(onnx=False), 60, 0)
    assert not any(lost.values()), lost

@pytest.mark.long
def test_full_disks():
    _,lost,_ = many(limited, kinds(), 12, 0)
    assert not any(lost.values()), lost
    small = in_small_disk(__file__, 4096, 'disk')
    if small is not None: assert small.returncode==0, small.stdout+small.stderr

def test_a_killed_save_and_a_full_disk(tmp_path):
    kind,rnd = kinds(onnx=False)[1],random.Random(1)
    killed(kind, tmp_path, rnd)
    limited(kind, tmp_path, rnd)

def on_disk(folder, only=()):
    "In a small file system: each kind of file, once."
    lost = []
    for kind in kinds():
        (d := Path(folder)/kind.name.replace(' ', '_')).mkdir()
        try: full(kind, d, _room)
        except Exception as e: lost.append(f'{kind.name}: {type(e).__name__}: {e}')
        for p in d.iterdir(): p.unlink()
    return lost

def measure(n_kills, n_disks):
    def _rows(what, tried, lost): return [dict(what=f'{k}, {what}', tried=tried[k], survived=tried[k]-len(lost[k]), lost=len(lost[k]), seeds='0') for k in tried]
    tried,lost,caught = many(killed, kinds(), n_kills, 0)
    print(lost, f'{caught} of {n_kills} left something that the next save removed')
    write_rows('killed saves', _rows('killed while it is saved', tried, lost))
    times = 2
    tried,lost,_ = many(limited, kinds(), n_disks-6*times, 0)
    print(lost)
    rows = _rows('limit of the size of files', tried, lost)
    results = [in_small_disk(__file__, 4096, 'disk') for _ in range(times)]
    if None not in results:
        failed = [l for r in results for l in r.stdout.splitlines() if l.startswith('lost ')]
        assert all('tried' in r.stdout for r in results), results[0].stderr
        print(failed)
        rows.append(dict(what='each kind, a file system of 4 MB', tried=6*times, survived=6*times-len(failed), lost=len(failed), seeds='0'))
    write_rows('full disks', rows)

if __name__=='__main__':
    if sys.argv[1]=='disk':
        for l in (lost := on_disk(sys.argv[2])): print('lost', l)
        print('tried')
        sys.exit(bool(lost))
    measure(*map(int, sys.argv[1:]))
