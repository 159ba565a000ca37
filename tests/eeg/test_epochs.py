"Recordings in four formats and gaze tables become epochs and maps; what is wrong with them is named."
import subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from scipy.io import savemat
from fasterprune.eeg.epochs import draw_maps, load_eeg, read_gaze
from fasterprune.eeg.data import eeg_cueing, eeg_eye_state, eeg_left_right, side_score
from support.eeg import root

mne = pytest.importorskip('mne')

def write_edf(path, x, names, fs, bits=16):
    "A minimal EDF, or with 24 bits BDF, of microvolts `x` in steps of 1/4, in records of 1 s."
    n,top = len(names),2**(bits-1)
    x = np.pad(x, ((0,0),(0,-x.shape[1]%fs)))
    def _text(values, width): return ''.join(str(v).ljust(width) for v in values).encode('ascii')
    version = b'0       ' if bits==16 else b'\xffBIOSEMI'
    head = version + _text(['X X X X','Startdate X X X X'], 80) + b'01.01.2000.00.00' + _text([256*(n+1)], 8) + _text(['' if bits==16 else '24BIT'], 44) + _text([x.shape[1]//fs,1], 8) + _text([n], 4)
    head += _text(names, 16) + _text(['']*n, 80) + _text(['uV']*n, 8) + _text([-top//4]*n, 8) + _text([top//4-1]*n, 8) + _text([-top]*n, 8) + _text([top-4]*n, 8)
    head += _text(['']*n, 80) + _text([fs]*n, 8) + _text(['']*n, 32)
    digital = np.round(x*4).astype('<i4').reshape(n, -1, fs).transpose(1, 0, 2).ravel()
    data = digital.astype('<i2').tobytes() if bits==16 else digital.view(np.uint8).reshape(-1, 4)[:,:3].tobytes()
    Path(path).write_bytes(head+data)

def write_set(path, x, names, fs):
    "A minimal SET of EEGLAB."
    locs = np.array([(n,) for n in names], dtype=[('labels','O')])
    empty = {k:np.array([]) for k in ('event','epoch','icawinv','icaweights','icasphere')}
    savemat(path, dict(EEG=dict(data=x, srate=float(fs), nbchan=len(x), trials=1, pnts=x.shape[1], xmin=0., xmax=(x.shape[1]-1)/fs, chanlocs=locs, setname='s',
        ref='common', filename='', filepath='', **empty)), appendmat=False)

@pytest.fixture
def packed(data_path):
    "Real epochs of one recording in a row as a continuous recording, what they are, and a gaze table made of their sides."
    data_path('eeg_left_right.npz')
    e = eeg_left_right()
    e = e[(e.metadata.recording==3).to_numpy()][:60]
    x = e.x.permute(1, 0, 2).reshape(4, -1).numpy().astype(float)
    onsets = np.arange(60)*154/256 + 26/256
    side = e.metadata.side.to_numpy()
    gaze = pd.DataFrame(dict(time=onsets+.1, x=np.where(side, 1440, 480), y=540))
    raw = mne.io.RawArray(x*1e-6, mne.create_info(e.names, 256., 'eeg'), verbose='error')
    raw.set_annotations(mne.Annotations(onsets, 0., np.where(side, 'right', 'left')))
    return e,x,onsets,gaze,raw

def written(form, folder, x, names, raw):
    path = folder/f'me{"_raw" if form=="fif" else ""}.{form}'
    if form=='fif': raw.save(path, verbose='error')
    elif form=='set': write_set(path, x, names, 256)
    else: write_edf(path, x, names, 256, 24 if form=='bdf' else 16)
    return path

@pytest.mark.parametrize('form', ['fif','edf','bdf','set'])
def test_files_give_back_the_epochs_of_the_pack(form, packed, tmp_path):
    e,x,onsets,gaze,raw = packed
    path = written(form, tmp_path, x, e.names, raw)
    gaze.to_csv(tmp_path/'gaze.csv', index=False)
    got = load_eeg(path, tmp_path/'gaze.csv', onsets=onsets, channels=e.names, band=None, fs=None, window=(-26/256,128/256))
    assert got.names==e.names and got.fs==256 and len(got)==60
    assert (got.x-e.x).abs().max()<2e-3
    assert torch.equal(got.y[:,0].flatten(2).sum(1).argmax(1)>15, torch.tensor(e.metadata.side.to_numpy())>0)
    assert torch.allclose(got.y, draw_maps(gaze[['x','y']].to_numpy()[:,None]), atol=1e-7)

def test_edf_of_mne_with_annotations(packed, tmp_path):
    pytest.importorskip('edfio')
    e,x,onsets,gaze,raw = packed
    mne.export.export_raw(tmp_path/'me.edf', raw, physical_range=(-8192, 8191.75), verbose='error')
    right = load_eeg(tmp_path/'me.edf', gaze, onsets='right', band=None, fs=None, window=(-26/256,128/256))
    side = e.metadata.side.to_numpy()>0
    assert len(right)==side.sum() and (right.x-e[side].x).abs().max()<.3
    assert (side_score(right.y[:,0])>.9).all()

@pytest.mark.parametrize('kind', ['crop','date','both'])
def test_onsets_count_from_the_first_sample(kind, packed, tmp_path):
    "Annotations of recordings that were cut, or that know the date, are where they were."
    e,x,onsets,gaze,raw = packed
    if kind!='crop': raw = raw.set_meas_date(946684800)
    if kind!='date': raw = raw.crop(tmin=10*154/256)
    raw.save(tmp_path/'me_raw.fif', verbose='error')
    shift = 0 if kind=='date' else 10
    got = load_eeg(tmp_path/'me_raw.fif', gaze.assign(time=gaze.time-shift*154/256)[shift:], band=None, fs=None, window=(-26/256,128/256))
    assert len(got)==60-shift and (got.x-e[shift:].x).abs().max()<2e-3

def test_band_and_resampling():
    "What is out of the band is gone, what is in it stays, and time is not shifted."
    t = np.arange(0, 60, 1/500)
    wave = 20*np.sin(2*np.pi*10*t)
    raw = mne.io.RawArray(1e-6*(wave+50+30*np.sin(2*np.pi*90*t))[None], mne.create_info(['Oz'], 500., 'eeg'), verbose='error')
    got = load_eeg(raw, pd.DataFrame(dict(time=t[::50], x=9, y=9)), onsets=np.arange(5, 50, 5.))
    want = 20*np.sin(2*np.pi*10*(got.times+5))
    assert got.x.shape==(9,1,1000) and np.abs(got.x[0,0].numpy()-want).max()<.2
    assert raw.info['sfreq']==500 # the recording that was given is as it was

def test_channels_of_other_types_can_be_named():
    info = mne.create_info(['Oz','EOG'], 100., ['eeg','eog'])
    raw = mne.io.RawArray(np.random.default_rng(0).standard_normal((2,6000))*1e-5, info, verbose='error')
    both = load_eeg(raw, good, onsets=[10], channels=['Oz','EOG'], fs=None, band=(1,40))
    assert load_eeg(raw, good, onsets=[10], fs=None, band=(1,40)).names==['Oz'] and both.names==['Oz','EOG']
    assert (both.x[0].std(-1).numpy()<.95*raw.get_data()[:,900:1300].std(-1)*1e6).all() # both are filtered

def test_gaze_counts_where_it_should():
    raw = mne.io.RawArray(np.random.default_rng(0).standard_normal((1,6000))*1e-6, mne.create_info(['Oz'], 100., 'eeg'), verbose='error')
    gaze = pd.DataFrame(dict(time=[9.99,10,10.5,12.99,13,30], x=[10,20,2000,np.nan,40,50], y=[10,20,30,40,50,60]))
    got = load_eeg(raw, gaze, onsets=[10,20,30], band=None, fs=None, size=(10,10), screen=(100,100), sigma=5)
    assert got.metadata.onset.tolist()==[10,30] and got.metadata.n_gaze.tolist()==[1,1] and got.metadata.attrs['dropped']==dict(outside=0, gaze=1, reject=0)
    assert got.y[:,1].nonzero().tolist()==[[0,2,2],[1,6,5]]
    early = load_eeg(raw, gaze, onsets=[10], band=None, fs=None, look=(-.5,0), size=(10,10), screen=(100,100), sigma=5)
    assert early.y[0,1].nonzero().tolist()==[[1,1]]
    fixations = pd.DataFrame(dict(time=[10,11], x=[20,80], y=50, duration=[.1,.3]))
    weighted = load_eeg(raw, fixations, onsets=[10], band=None, fs=None, size=(10,10), screen=(100,100), sigma=5)
    assert abs(float(weighted.y[0,0,:,5:].sum())-.75)<1e-3

good = pd.DataFrame(dict(time=np.arange(0, 60, .5), x=100., y=100.))

@pytest.mark.parametrize('change,says', [
    (dict(channels=['Oz','C3']), "no channel 'C3'"),
    (dict(gaze=good.assign(time=good.time+60.5)), 'do not overlap: the recording takes 60 s, the gaze table goes from 60.5 to 120 s'),
    (dict(gaze=good.assign(time=good.time-80)), 'do not overlap'),
    (dict(gaze=good[:0]), 'is empty'),
    (dict(gaze=good.drop(columns='y')), "no column 'y'"),
    (dict(gaze=good.rename(columns=dict(time='t'))), "no column 'time'"),
    (dict(gaze=good.assign(x=np.nan)), 'in 5 nothing on the screen is looked at'),
    (dict(gaze=good.assign(x=-5.)), 'in 5 nothing on the screen is looked at'),
    (dict(gaze=good.assign(time=good.time.where(good.time!=3))), 'row 6 of the gaze table has no time'),
    (dict(gaze=good.assign(y=['1 00']*120)), "column 'y' of the gaze table holds '1 00' in row 0"),
    (dict(gaze=good.assign(y=np.inf)), "column 'y' of the gaze table holds"),
    (dict(gaze=good.iloc[::-1]), 'go back in row 1'),
    (dict(gaze='no_such.csv'), "no gaze table 'no_such.csv'"),
    (dict(recording='no_such.edf'), "no recording 'no_such.edf'"),
    (dict(window=(-1,60)), 'an epoch takes 61 s, but the recording only 60 s'),
    (dict(window=(3,3)), 'from 3 to 3 s'),
    (dict(look=(2,1)), 'from 2 to 1 s'),
    (dict(onsets=[0,59]), '2 reach over an end'),
    (dict(onsets='blink'), "no annotation 'blink': there are picture"),
    (dict(onsets=[np.nan]), '1 onsets, 0 of them finite'),
    (dict(band=(30,5)), 'a band of 30 to 5 Hz'),
    (dict(band=(1,200)), 'half of the sampling rate, which is 125 Hz'),
    (dict(sigma=0), 'sigma 0 is too narrow'),
    (dict(reject=1e-3), '5 hold more than reject')], ids=lambda o: '-'.join(o) if isinstance(o, dict) else '')
def test_bad_input_is_named(change, says):
    raw = mne.io.RawArray(np.random.default_rng(0).standard_normal((2,15000))*1e-5, mne.create_info(['O1','Oz'], 250., 'eeg'), verbose='error')
    raw.set_annotations(mne.Annotations(np.arange(5, 30, 5.), 0., 'picture'))
    args = dict(recording=raw, gaze=good, channels=None) | change
    with pytest.raises(ValueError) as e: load_eeg(**args)
    assert says in str(e.value)

def test_torn_files(tmp_path):
    "A table whose last line is torn within a number tells, for time goes back; one torn within a place has one place less; a torn header is no recording."
    lines = ['time,x,y']+[f'{t:.1f},100,100' for t in range(5, 60)]
    raw = mne.io.RawArray(np.zeros((1,15000))+1e-6*np.sin(np.arange(15000)), mne.create_info(['Oz'], 250., 'eeg'), verbose='error')
    (tmp_path/'a.csv').write_text('\n'.join(lines)+'\n6')
    with pytest.raises(ValueError, match='times of the gaze table go back in row 55, from 59 to 6 s'): load_eeg(raw, tmp_path/'a.csv', onsets=[10,20])
    (tmp_path/'b.csv').write_text('\n'.join(lines)+'\n60.0,10')
    assert len(read_gaze(tmp_path/'b.csv').dropna())==55
    for name in ('me.edf','me_raw.fif','me.set','me.what'):
        (tmp_path/name).write_bytes(b'0       torn')
        with pytest.raises(ValueError, match='MNE cannot read the recording'): load_eeg(tmp_path/name, good)

def test_missing_data_is_said(monkeypatch, tmp_path):
    for folder in (None, tmp_path):
        monkeypatch.delenv('FASTERPRUNE_DATA', raising=False) if folder is None else monkeypatch.setenv('FASTERPRUNE_DATA', str(folder))
        for f in (eeg_left_right, eeg_cueing, eeg_eye_state):
            with pytest.raises(ValueError, match=f'{f.__name__}.npz is not there: set FASTERPRUNE_DATA to a folder with that file'): f()
    np.savez(tmp_path/'eeg_eye_state.npz', x=np.zeros((9,2)))
    with pytest.raises(ValueError, match="eeg_eye_state.npz has no array 'y'"): eeg_eye_state()

def test_mne_is_wanted_only_when_needed():
    "`fasterprune.all` and the modules themselves come without MNE; what needs it says how to get it."
    code = '''
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mne','torchvision'): raise ImportError(name)
sys.meta_path.insert(0, Block())
import fasterprune.all
from fasterprune.eeg_simulator import *; from fasterprune.eeg_models import *; from fasterprune.eeg_data import *; from fasterprune.eeg import *
for f in (lambda: simulate_eeg(4), lambda: adversarial_learner(None, None)):
    try: f()
    except ImportError as e: print(e)
'''
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=root, capture_output=True, text=True)
    assert out.stdout.splitlines()==['EEG needs MNE: pip install fasterprune[eeg]','an adversarial learner needs torchvision: pip install torchvision'], out.stdout+out.stderr
