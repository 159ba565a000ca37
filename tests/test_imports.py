"What an import says: nothing, whichever package comes first."
import importlib, os, subprocess, sys
from pathlib import Path
import pytest

def says_nothing(*args):
    r = subprocess.run([sys.executable, *args], text=True, capture_output=True)
    assert r.returncode==0 and 'Warning' not in r.stderr, r.stderr

def test_import_warns_of_nothing(): says_nothing('-W', 'default', '-c', 'import fasterprune.all, fasterprune.studies, fasterprune.eeg, fasterprune.demo')

first = '''
import importlib, os, sys, warnings
import fastai.vision.all, fastai.tabular.all # what ours is built on, once
warnings.simplefilter('default')
assert not any(n.startswith('fasterprune') for n in sys.modules)
for package in sys.argv[1:]:
    child = os.fork()
    if not child: break
    if os.waitpid(child, 0)[1]: sys.exit(f'{package} cannot come first')
else: sys.exit()
importlib.import_module(f'fasterprune.{package}')
sys.stderr.flush()
os._exit(0) # without the seconds in which all is torn down
'''

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs processes that fork')
def test_any_package_may_come_first():
    says_nothing('-W', 'ignore', '-c', first, 'graph', 'condense', 'sparsify', 'inputs', 'learner', 'studies', 'eeg', 'demo')

@pytest.mark.parametrize('package', ['sparsify'])
def test_a_name_is_a_module_or_a_value(package):
    m = importlib.import_module(f'fasterprune.{package}')
    assert not {p.stem for p in Path(m.__file__).parent.glob('*.py')} & set(m.__all__)
