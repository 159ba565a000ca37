"What all tests share: the flags `--long` and `--soak`, the data folder, plots without a screen."
import os
from pathlib import Path
import matplotlib, pytest

matplotlib.use('Agg')
os.environ['MPLBACKEND'] = 'Agg'

_beside = Path(__file__).resolve().parents[1]/'../shared/data'
if not os.environ.get('FASTERPRUNE_DATA') and _beside.is_dir(): os.environ['FASTERPRUNE_DATA'] = str(_beside.resolve())

slow = dict(long='takes minutes', soak='takes hours with its like') # by their marks, which are flags, too

def pytest_addoption(parser):
    for name,why in slow.items(): parser.addoption(f'--{name}', action='store_true', help=f'also run each test that {why}')

def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda o: 'forks' not in o.keywords) # a forked process has none of the threads that other tests have torch begin
    for o in items:
        if 'soak' in o.keywords: o.add_marker(pytest.mark.timeout(7200))
    for name,why in slow.items():
        if config.getoption(f'--{name}'): continue
        for o in items:
            if name in o.keywords: o.add_marker(pytest.mark.skip(reason=f'{why}: run with --{name}'))

@pytest.fixture(scope='session', autouse=True)
def one_thread():
    "Small networks gain nothing from threads, and lose a lot where others use the cores."
    import torch
    torch.set_num_threads(1)

@pytest.fixture
def data_path():
    "`data_path(name)`: a file of the data folder; the test is skipped where there is none."
    def _f(name):
        folder = os.environ.get('FASTERPRUNE_DATA')
        if not folder: pytest.skip(f'needs {name}: FASTERPRUNE_DATA is not set')
        path = Path(folder)/name
        if not path.exists(): pytest.skip(f'needs {name}, which is not in FASTERPRUNE_DATA')
        return path
    return _f

@pytest.fixture(autouse=True)
def rules_hold():
    "No rule of the analysis fails: that would be a fault of ours, which leaves whole what it is about. A test that lets one fail empties the list itself."
    from fasterprune.graph.interpreter import failed_rules
    failed_rules.clear()
    yield
    assert not failed_rules, f'rules that failed: {failed_rules}'
