"Each row of results says which code made it, on what machine and with which versions, or that it cannot be vouched for, and the pages say so."
import csv, subprocess
from collections import Counter
from functools import lru_cache
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
files = sorted((root/'results').glob('*.csv'))
# rows that were written before the model of the processor was noted; no more may come
without_cpu = dict(condense_architectures=639, condense_fuzz=3, condense_latency=48, condense_peers=80, condense_time=39, eeg=82, engine=58,
    feature_selection=746, foundation=42, induced_features=114, late_steps=60, memory=10, one_cycle=837, pretraining=132,
    reliability=62, step_overhead=36, step_phases=6, tabular=5, train_with_shrinking=9, train_with_shrinking_epochs=90)
measures_another_checkout = 'condense_size', # some of its rows name the commit of the code that was measured, which is not that of the script

def rows(path): return list(csv.DictReader(path.open(encoding='utf-8', newline='')))
def has_caveat(r): return bool(r.get('caveat'))

@lru_cache
def git(*args):
    r = subprocess.run(['git',*args], cwd=root, capture_output=True, text=True)
    return r.stdout.strip() if r.returncode==0 else ''

@pytest.mark.parametrize('path', files, ids=lambda p: p.stem)
def test_each_row_has_its_provenance_or_its_mark(path):
    found = rows(path)
    assert found
    for i,r in enumerate(found, 2):
        assert None not in r and None not in r.values(), f'{path.name}, row {i}: as many fields as columns'
        assert has_caveat(r) or r.get('commit'), f'{path.name}, row {i}: neither a commit nor a caveat'
        said = [v for k,v in r.items() if v and any(o in k for o in ('torch','python','versions'))]
        assert said and r.get('machine', r.get('cpu')), f'{path.name}, row {i}: no versions or no machine'
        assert r.get('seed') or r.get('seeds') or has_caveat(r), f'{path.name}, row {i}: no seed'
    blank = sum(not r.get('cpu') for r in found)
    assert blank<=without_cpu.get(path.stem, 0), f'{path.name}: {blank} rows do not say on which processor; `circumstances` gives it'

@pytest.mark.parametrize('path', [p for p in files if p.stem not in measures_another_checkout], ids=lambda p: p.stem)
def test_the_commit_has_the_script(path):
    "The commit that a row names is of this repository, and the script that writes the file is in it; where it is not, the row says so."
    if not git('rev-parse', 'HEAD') or git('rev-parse', '--is-shallow-repository')=='true': pytest.skip('needs the history')
    for commit in {r['commit'] for r in rows(path) if r.get('commit') and not has_caveat(r)}:
        assert git('cat-file', '-t', commit)=='commit', f'{path.name}: {commit} is no commit of this repository'
        assert git('grep', '-lE', rf"\b{path.stem}\.csv|['\"]{path.stem}['\"]", commit, '--', '*.py'), f'{path.name}: nothing at {commit} writes it'

def test_what_cannot_be_vouched_for_is_marked():
    "These rows name no commit, one that cannot be right, or one that was lost; running them again takes them off this list, and nothing else may come on it."
    found = {p.stem:n for p in files if (n := sum(map(has_caveat, rows(p))))}
    known = dict(compression_path=120, condense_architectures=68, condense_fuzz=2, engine=58, feature_selection=127, feature_selection_trials=16,
        induced_features=114, memory=10, one_cycle=837, pretraining=132, reliability=85, step_own_time=48, step_phases=6, tabular=5)
    assert {k:v for k,v in found.items() if v>known.get(k, 0)}=={}
    why = Counter(r['caveat'] for r in rows(root/'results'/'feature_selection.csv') if r['caveat'])
    assert set(why)<={'the commit has no such script','the commit gives other figures'}

@pytest.mark.parametrize('path', [p for p in files if any(map(has_caveat, rows(p)))], ids=lambda p: p.stem)
def test_pages_say_which_rows_cannot_be_vouched_for(path):
    "A page that draws from a file with such rows shows how many there are."
    draw = [p for p in (root/'nbs').rglob('*.ipynb') if f'{path.stem}.csv' in (text := p.read_text(encoding='utf-8')) and 'read_csv' in text or f"get_study('{path.stem}')" in text]
    whole = 'nbs/explain/05_which_inputs.ipynb', # draws from MNIST's rows alone, all of which can be vouched for
    silent = [n for p in draw if 'caveats(' not in p.read_text(encoding='utf-8') and (n := p.relative_to(root).as_posix()) not in whole]
    assert not silent, f'say `caveats(df)` of results/{path.name} in {", ".join(silent)}'
