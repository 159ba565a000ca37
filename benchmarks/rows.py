"What benchmarks share that write a table row by row: where it is, what is there already, and what a row was measured with."
import sys, tempfile
from pathlib import Path

from fasterprune.studies.circumstances import circumstances as of_run
from fasterprune.studies.study import Results

root = Path(__file__).resolve().parent.parent
quick = '--quick' in sys.argv

def circumstances(*packages):
    "Columns for a row: commit, CPU, versions of torch, fastai and other packages by name, and a caveat if it cannot be vouched for."
    about = of_run('fastai', *packages, threads=1, folder=root)
    def _said(n): return f'{n} {v}' if (v := about[n.replace('-', '_')]) else f'no {n}'
    return dict({k:about[k] for k in ('commit','cpu')}, versions=', '.join(map(_said, ('fasterprune','torch','fastai',*packages,'python'))), caveat=about['caveat'])

def table_of(name, settings, measured, folder=None):
    "A table in results/, or with `--quick` in a folder that nobody keeps: columns that tell rows apart, what is measured, circumstances."
    folder = Path(folder or (tempfile.mkdtemp() if quick else root/'results'))
    return Results(folder/f'{name}.csv', settings.split(), [*measured.split(), *circumstances()])

def n_seeds(usual): return int(sys.argv[sys.argv.index('--seeds')+1]) if '--seeds' in sys.argv else 1 if quick else usual
