"What an import says: nothing, whichever package comes first."
import subprocess, sys
import pytest

@pytest.mark.parametrize('module', ['all','graph','condense','sparsify','inputs','learner','studies','eeg','demo'])
def test_import_warns_of_nothing(module):
    r = subprocess.run([sys.executable, '-W', 'default', '-c', f'import fasterprune.{module}'], text=True, capture_output=True)
    assert r.returncode==0 and 'Warning' not in r.stderr, r.stderr
