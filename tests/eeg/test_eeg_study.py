"The study of EEG goes on where it was, and its committed results are whole."
import importlib.util, sys
import numpy as np, pandas as pd, pytest
from support.eeg import root

mne = pytest.importorskip('mne')

@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['eeg.py'])
    spec = importlib.util.spec_from_file_location('eeg_study', root/'benchmarks'/'eeg.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.results.path = tmp_path/'eeg.csv'
    return module

def _keys(study, path):
    "What tells runs apart, of each line of a file, and of the runs that are wanted."
    lines = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict('records')
    return [study.results.key(l) for l in lines],[tuple(map(str, j)) for j in study.jobs()]

def test_study_goes_on_after_a_torn_line(study, capsys):
    ran = []
    def _part(snr, method, seed):
        ran.append((snr, method, seed))
        if len(ran)==3: raise KeyboardInterrupt
        return dict(electrodes=4, side_auc=.5)
    study.parts = {k:_part for k in study.parts}
    with pytest.raises(KeyboardInterrupt): study.main()
    path = study.results.path
    path.write_text(path.read_text()[:-20]) # the second line is torn
    study.main()
    cells,wanted = _keys(study, path)
    assert sorted(cells)==sorted(wanted) and len(set(cells))==len(cells) and len(ran)==len(cells)+2
    n = len(ran)
    study.main()
    assert len(ran)==n # nothing is left to do

def test_committed_results_are_whole(study):
    cells,wanted = _keys(study, root/'results'/'eeg.csv')
    df = pd.read_csv(root/'results'/'eeg.csv')
    assert sorted(cells)==sorted(wanted)
    assert (df.max_diff.dropna()<1e-5).all()

@pytest.mark.long
def test_real_left_right(study, data_path):
    "Stimulus side on held-out recordings: as good as a ridge regression, and half of the electrodes do as well."
    data_path('eeg_left_right.npz')
    auc = {m:study.left_right(np.nan, m, 0)['side_auc'] for m in ('network','taylor','ridge')}
    assert auc['network']>=.68 and auc['taylor']>=auc['network']-.02 and auc['ridge']>=.67
