"The benchmark of accuracy at a budget: our own runs are within it and the same each time, and constants are chosen by what trials say."
import json, sys
import pytest
from pathlib import Path
from fasterprune.studies.study import Appender

sys.path.append(str(Path(__file__).parents[2]/'benchmarks')) # where it has what it shares with others
import accuracy as bench

def test_ours_is_within_the_budget_and_the_same_each_time(data_path):
    data_path('mnist.npz')
    rows = [bench.do('mnist', 'fasterprune defaults', .5, 0, dict(lr=1e-2), 'valid', quick=True) for _ in range(2)]
    a,b = [{k:v for k,v in r.items() if k!='seconds'} for r in rows]
    assert a==b and 'why' not in a
    assert a['macs_dense']==784*100+100*50+50*10 and .45*a['macs_dense'] < a['macs'] <= .5*a['macs_dense'] and a['accuracy']>.5

def test_each_method_has_as_many_trials():
    n = {m:1+sum(len(o)-1 for o in bench.grid_of('resnet', m).values()) for m in bench.methods}
    assert {n[m] for m in ('fasterprune',*bench.peers)}=={7} and n['dense']==n['fasterprune defaults']==3

def test_constants_are_the_best_of_one_after_the_other(tmp_path):
    b = bench.Bench(tmp_path)
    first,row = bench.first_of('mnist', 'fasterprune'),dict(setting='mnist', method='fasterprune')
    said = [(first, .7), ({**first, 'lr':1e-2}, .8), ({**first, 'lr':1e-2, 'context':'local'}, .9), ({**first, 'context':'local'}, .99)]
    rows = [dict(constants=json.dumps(c), accuracy=accuracy) for c,accuracy in said] + [dict(constants=json.dumps({**first, 'lr':1e-3}), why='it failed')]
    with Appender(b.trials, b.trials.path) as append:
        for r in rows: append({**dict.fromkeys(b.trials.columns, ''), **row, **r})
    assert b.best_constants('mnist', 'fasterprune', False)=={**first, 'lr':1e-2, 'context':'local'}
    assert b.best_constants('mnist', 'fasterprune defaults', False)=={'lr':1e-2}

def test_a_crash_ends_one_run_only(tmp_path, monkeypatch):
    "torch-pruning's Taylor scores of a ResNet end the process by a double free: the row says so, and the next run goes on."
    (tmp_path/'runs_to_try.py').write_text('import os\ndef crash(*job): os.abort()\ndef fail(*job): 1/0\ndef first_two(*job): return job[:2]\n')
    monkeypatch.syspath_prepend(tmp_path) # other processes import it from there
    import runs_to_try
    job = ('mnist', 'dense', 1., 0, dict(lr=1e-2), 'valid', 1)
    named = dict(setting='mnist', method='dense', budget=1., seed=0, constants='{"lr": 0.01}')
    assert bench.alone(job, runs_to_try.crash)==dict(named, why='the process of this run was ended by SIGABRT')
    with pytest.raises(RuntimeError, match='did not begin'): bench.alone(job, runs_to_try.fail) # such as data that are not there
    assert bench.alone(job, runs_to_try.first_two)==job[:2]
