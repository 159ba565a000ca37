"What an import says: nothing, whichever package comes first."
import importlib, subprocess, sys
from pathlib import Path
import pytest

@pytest.mark.parametrize('module', ['all','graph','condense','sparsify','inputs','learner','studies','eeg','demo'])
def test_import_warns_of_nothing(module):
    r = subprocess.run([sys.executable, '-W', 'default', '-c', f'import fasterprune.{module}'], text=True, capture_output=True)
    assert r.returncode==0 and 'Warning' not in r.stderr, r.stderr

@pytest.mark.parametrize('package', ['sparsify'])
def test_a_name_is_a_module_or_a_value(package):
    m = importlib.import_module(f'fasterprune.{package}')
    assert not {p.stem for p in Path(m.__file__).parent.glob('*.py')} & set(m.__all__)
