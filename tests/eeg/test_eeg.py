"EEG to visual attention: recordings in four formats, maps, measures against brute force, the simulator against MNE, networks that lose electrodes, a study that survives."
import importlib.util, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch

mne = pytest.importorskip('mne')
from fastai.basics import Learner, load_learner, set_seed
from fastai.callback.all import LRFinder
from scipy.io import savemat
from sklearn.metrics import roc_auc_score

from fasterprune.condense.condenser import Condenser
from fasterprune.eeg.epochs import draw_maps, load_eeg, read_gaze
from fasterprune.eeg.data import eeg_cueing, eeg_eye_state, eeg_left_right, side_score
from fasterprune.eeg.features import band_power, eeg_images, electrode_places, hjorth, project
from fasterprune.eeg.models import EEG2Saliency, EEG2SaliencyVAE, KLCallback, adversarial_learner, gaussian_kl
from fasterprune.eeg.simulator import simulate_eeg, sphere_potential
from fasterprune.inputs.callback import InputPruneCallback
from fasterprune.eeg.saliency import SaliencyLoss, auc_judd, auc_shuffled, cc, centre_bias, kld, mean_map, mean_measure
from fasterprune.eeg.saliency import measures, nss, paired_p, permutation_p, saliency_metrics, sim

root = Path(__file__).resolve().parents[2]

def quiet_fit(learn, epochs, lr=1e-2, cbs=None, one_cycle=True):
    with learn.no_bar(), learn.no_logging(): (learn.fit_one_cycle if one_cycle else learn.fit)(epochs, lr, cbs=cbs)
    return learn

def preds_of(learn):
    with learn.no_bar(): return learn.get_preds()

# files

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

# features

def test_features_against_formulas():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, 400)).cumsum(-1)
    activity,mobility,complexity = hjorth(x, 100).unbind(-1)
    d,dd = np.diff(x)*100,np.diff(x, 2)*1e4
    assert np.allclose(activity, x.var(-1), rtol=1e-5) and np.allclose(mobility, np.sqrt(d.var(-1)/x.var(-1)), rtol=1e-5)
    assert np.allclose(complexity, np.sqrt(dd.var(-1)/d.var(-1))/np.sqrt(d.var(-1)/x.var(-1)), rtol=1e-5)
    white = rng.standard_normal((200, 1, 500))*3
    assert np.allclose(band_power(white, 250).mean(0)[0], 9*np.array([4,5,17])/125, rtol=.05) # white noise has its power everywhere

@pytest.mark.parametrize('montage', ['biosemi32','biosemi64','easycap-M1'])
def test_images_meet_the_electrodes(montage):
    names = [n for n in mne.channels.make_standard_montage(montage).ch_names if n in 'Fp1 Fp2 F7 F3 Fz F4 F8 T7 C3 Cz C4 T8 P7 P3 Pz P4 P8 O1 O2'.split()]
    flat = project(electrode_places(names, montage))
    values = np.random.default_rng(0).standard_normal((2, len(names), 3))
    big = eeg_images(values, flat, 301)
    edge = np.linalg.norm(flat, axis=1).max()
    for (u,v),val in zip(flat, values.transpose(1, 0, 2)):
        if np.hypot(u, v)<.97*edge: assert np.abs(big[:,:,int((1-v/edge)*150.5),int((1+u/edge)*150.5)].numpy()-val).max()<.1
    assert flat[names.index('C3'),0]<0<flat[names.index('C4'),0] and flat[names.index('O1'),1]<0<flat[names.index('Fp1'),1]

# measures

def slow_nss(p, c):
    z = (p-p.mean())/p.std()
    return sum(z[i]*c[i] for i in range(len(p)))/c.sum()

def slow_kld(p, q): return sum(q[i]/q.sum()*np.log(q[i]/q.sum()/(p[i]/p.sum())) for i in range(len(p)) if q[i])

def random_case(seed, ties=False):
    rng = np.random.default_rng(seed)
    h,w,n = rng.integers(2, 9),rng.integers(2, 9),rng.integers(2, 6)
    pred,density = (rng.random((n,h,w))+.01 for _ in range(2))
    if ties: pred = (pred*3).round()/3+.1
    counts = rng.poisson(.4, (n,h,w)).astype(float)
    counts[:,0,0] += 1
    counts[:,-1,-1] = 0
    return pred,density,counts,torch.tensor(np.stack([density,counts], 1))

@pytest.mark.parametrize('ties', [False,True])
@pytest.mark.parametrize('seed', range(12))
def test_measures_against_brute_force(seed, ties):
    pred,density,counts,y = random_case(seed, ties)
    p = torch.tensor(pred)
    rows = [m.reshape(len(m), -1) for m in (pred,density,counts)]
    for i,(a,q,c) in enumerate(zip(*rows)):
        others = rows[2].sum(0)-c
        assert np.isclose(nss(p, y)[i], slow_nss(a, c)) and np.isclose(cc(p, y)[i], np.corrcoef(a, q)[0,1])
        assert np.isclose(kld(p, y)[i], slow_kld(a, q), atol=1e-9) and np.isclose(sim(p, y)[i], sum(min(s, t) for s,t in zip(a/a.sum(), q/q.sum())))
        assert np.isclose(auc_judd(p, y)[i], roc_auc_score(c>0, a))
        pos,neg = (np.repeat(a, k.astype(int)) for k in (c,others))
        assert np.isclose(auc_shuffled(p, y)[i], roc_auc_score([1]*len(pos)+[0]*len(neg), np.r_[pos,neg]))

@pytest.mark.parametrize('seed', range(5))
def test_measures_do_not_mind_what_they_should_not(seed):
    pred,_,_,y = random_case(seed)
    p = torch.tensor(pred)
    for f in (nss,cc): assert torch.allclose(f(3*p+2, y), f(p, y))
    for f in (kld,sim): assert torch.allclose(f(3*p, y), f(p, y))
    for f in (auc_judd,auc_shuffled):
        assert torch.allclose(f(p**3, y), f(p, y))
        assert torch.allclose(f(-p, y), 1-f(p, y))
    assert (kld(p, y)>=0).all() and (sim(p, y)<=1).all()

def test_edge_cases_of_measures():
    _,_,_,y = random_case(0)
    flat,zero = torch.full_like(y[:,0], .25),torch.zeros_like(y[:,0])
    for m in (flat,zero):
        assert (nss(m, y)==0).all() and (cc(m, y)==0).all() and (auc_judd(m, y)==.5).all() and (auc_shuffled(m, y)==.5).all()
        assert kld(m, y).isfinite().all() and torch.allclose(kld(m, y), kld(flat, y))
    none = y.clone()
    none[0,1] = 0
    assert all(f(flat, none).isnan().tolist()==[True]+[False]*(len(y)-1) for f in (nss,auc_judd,auc_shuffled))
    assert mean_measure(y[:,0], none, 'nss')==pytest.approx(float(nss(y[:,0], none)[1:].mean()))
    for f in measures.values():
        with pytest.raises(ValueError, match='both have to be'): f(flat[:,:1], y)
    for f in (kld,sim):
        with pytest.raises(ValueError, match='0 or more everywhere'): f(-flat, y)

def test_losses_have_true_gradients():
    pred,_,_,y = random_case(3)
    x = torch.tensor(pred, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: SaliencyLoss(1, 2, 3)(p, y), x, eps=1e-7, atol=1e-4)

def test_p_values_are_uniform_under_chance():
    "Of predictions that know nothing, one in ten has p of .1 or less."
    rng,ps,qs = np.random.default_rng(0),[],[]
    for i in range(200):
        y = torch.tensor(rng.random((12,2,3,3))>.6).double()
        y[:,1,0,0] = 1
        pred = torch.tensor(rng.random((12,3,3)))
        ps.append(permutation_p(pred, y, 'nss', 99, i))
        qs.append(paired_p(rng.standard_normal(12), np.zeros(12), 99, i))
    for p in (ps,qs): assert .05<np.mean(np.array(p)<=.1)<.17 and min(p)>=.01

# simulator

def test_sphere_against_mne():
    "MNE's sphere of four shells with the same conductivity is a homogeneous one."
    names = mne.channels.make_standard_montage('biosemi32').ch_names
    info = mne.create_info(names, 100., 'eeg').set_montage('biosemi32')
    places = electrode_places(names, 'biosemi32')
    rng = np.random.default_rng(0)
    pos,ori = rng.standard_normal((2,6,3))
    pos *= .7*.095/np.linalg.norm(pos, axis=1, keepdims=True)
    with mne.use_log_level('error'):
        for c in info['chs']: c['loc'][:3] = .095*places[names.index(c['ch_name'])]
        for d in info['dig'] or []: d['r'] = d['r']*0+.095
        sphere = mne.make_sphere_model((0.,0.,0.), .095, info, relative_radii=(.9,.92,.97,1.), sigmas=(.33,.33,.33,.33))
        dip = mne.Dipole(np.arange(6)/100, pos, np.ones(6), ori/np.linalg.norm(ori, axis=1, keepdims=True), np.ones(6))
        fwd,_ = mne.make_forward_dipole(dip, sphere, info)
        theirs = mne.convert_forward_solution(fwd, force_fixed=True)['sol']['data'].T
    ours = sphere_potential(.095*places, pos, ori/np.linalg.norm(ori, axis=1, keepdims=True))/.33
    for a,b in zip(ours, theirs):
        a,b = a-a.mean(),b-b.mean()
        assert np.corrcoef(a, b)[0,1]>.999 and .97<np.linalg.norm(a)/np.linalg.norm(b)<1.03

@pytest.mark.parametrize('snr', [10.,0.,-10.])
@pytest.mark.parametrize('shared', [0.,.5,1.])
def test_signal_to_noise_is_as_stated(snr, shared):
    noisy,clean = simulate_eeg(300, snr, shared=shared, seed=1),simulate_eeg(300, np.inf, seed=1)
    at = [clean.names.index(n) for n in clean.informative]
    noise = noisy.x-clean.x
    assert abs(10*np.log10(float(clean.x.var(0)[at].mean()/noise[:,at].var()))-snr)<.3
    assert torch.equal(noisy.y, clean.y)

def test_only_informative_electrodes_inform():
    "A regression on any other electrode finds nothing of gaze; on each informative one it does."
    e = simulate_eeg(1500, 0., seed=2)
    x,train = e.x.double(),slice(0, 1000)
    found = {}
    for i,n in enumerate(e.names):
        a = torch.cat([x[:,i],torch.ones(1500, 1)], 1)
        target = torch.tensor(e.metadata[['x','y']].to_numpy())
        w = torch.linalg.solve(a[train].T@a[train]+3e4*torch.eye(101), a[train].T@(target[train]-target[train].mean(0)))
        r = [np.corrcoef((a[1000:]@w)[:,k], target[1000:,k])[0,1] for k in (0,1)]
        found[n] = max(r)
    inside,outside = ([found[n] for n in e.names if (n in e.informative)==k] for k in (True,False))
    assert min(inside)>.25>.16>max(outside), (inside,outside)

def test_gaze_is_where_the_maps_are():
    e = simulate_eeg(50, seed=3)
    cx = (torch.arange(16)+.5)/16
    x,y = ((e.y[:,0].sum(d)*cx).sum(1).numpy() for d in (1,2))
    inside = ((e.metadata-.5).abs()<.2).all(axis=1).to_numpy() # elsewhere the border cuts the Gaussians
    assert inside.sum()>15 and np.abs(np.stack([x,y], 1)-e.metadata)[inside].to_numpy().max()<.01

# networks

nets = dict(plain=EEG2Saliency, vae=EEG2SaliencyVAE)

@pytest.mark.parametrize('kind', nets)
@pytest.mark.parametrize('size,samples', [((16,16),100), ((9,14),154), ((24,32),250)])
def test_condensed_network_is_the_masked_one(kind, size, samples):
    torch.manual_seed(0)
    net = nets[kind](12, samples, size)
    x = torch.randn(16, 12, samples)
    net(x) # a step of the running means
    net.eval()
    gone = [0,3,4,7,11]
    with torch.no_grad():
        net.encoder.spatial.weight[:,gone] = 0
        net.encoder.temporal.weight[[2,5]] = 0 # and two filters
        want = net(x)
        c = Condenser(net, x).condense()
        got = c.model.eval()(c.inputs(x))
        cut = x[:,[i for i in range(12) if i not in gone]]
        assert c.model.encoder.spatial.in_channels==7 and c.model.encoder.temporal.out_channels<=14 and torch.equal(c.inputs(x), cut)
        assert (got-want).abs().max()<1e-5*want.max()
        assert (c.model(c.inputs(x[:3]))-net(x[:3])).abs().max()<1e-5*want.max()
    c.model.train()(c.inputs(x)).sum().backward() # it can go on

@pytest.fixture(scope='module')
def epochs(): return simulate_eeg(700, 0., seed=0)

@pytest.fixture
def simulated(epochs):
    "Epochs, those that are held out, and `DataLoaders`; all that is random begins anew."
    held = np.arange(700)>=550
    set_seed(0)
    return epochs,held,epochs.dls(held)

def better_than_baselines(pred, e, held, ks=('nss','cc','auc')):
    y,base = e.y[held],[centre_bias((16,16)).expand(int(held.sum()), 16, 16),mean_map(e.y[~held]).expand(int(held.sum()), 16, 16)]
    return all(paired_p(measures[k](pred, y), measures[k](b, y), 999)<.01 for k in ks for b in base) and permutation_p(pred, y, 'nss', 199)<.01

@pytest.mark.parametrize('kind', nets)
def test_electrodes_are_found_and_taken_out(kind, simulated):
    e,held,dls = simulated
    torch.manual_seed(0)
    learn = Learner(dls, nets[kind](32, 100), loss_func=SaliencyLoss(), metrics=saliency_metrics(), cbs=KLCallback() if kind=='vae' else None)
    cb = InputPruneCallback(.5, names=e.names)
    quiet_fit(learn, 12, cbs=cb)
    masked,y = preds_of(learn)
    small = learn.condense()
    pred,_ = preds_of(small)
    assert set(e.informative)<=set(cb.kept_names) and len(cb.kept)==16
    assert small.dls.one_batch()[0].shape[1]==small.model.encoder.spatial.in_channels==16
    assert (pred-masked).abs().max()<1e-5 and better_than_baselines(pred, e, held)
    ax = cb.show_scalp('biosemi32')
    assert '16 of 32' in ax.get_title()
    with small.no_bar(): before = small.validate()
    quiet_fit(small, 3, 3e-3)
    with small.no_bar(): assert small.validate()[0]<before[0]+.05 # goes on training

def test_evaluation_of_the_vae_is_deterministic_and_training_is_not(simulated):
    e,held,dls = simulated
    net,x = EEG2SaliencyVAE(32, 100, drop=0.),dls.one_batch()[0]
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))

def test_kl_is_in_the_gradient_and_not_in_what_is_validated(simulated):
    e,held,dls = simulated
    x,kl = dls.valid.one_batch()[0],{}
    for beta in (0,1e3):
        torch.manual_seed(0)
        learn = quiet_fit(Learner(dls, EEG2SaliencyVAE(32, 100, drop=0.), loss_func=SaliencyLoss(), cbs=KLCallback(beta)), 3, 3e-3, one_cycle=False)
        with torch.no_grad(): kl[beta] = gaussian_kl(*learn.model.eval().encoder(x).chunk(2, 1)).mean()
    assert kl[1e3]<.02*kl[0] # such a beta leaves nothing but the prior
    with learn.no_bar(): loss = learn.validate()[0]
    want = SaliencyLoss()(preds_of(learn)[0], e.y[held])
    assert abs(loss-float(want))<1e-3
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=LRFinder(num_it=5))
    assert not learn.model.latent._forward_pre_hooks

def test_adversarial_learner(simulated):
    pytest.importorskip('torchvision')
    e,held,dls = simulated
    torch.manual_seed(0)
    learn = adversarial_learner(dls, EEG2Saliency(32, 100), metrics=saliency_metrics('nss'))
    before = mean_measure(preds_of(learn)[0], e.y[held], 'nss')
    critic = [p.clone() for p in learn.model.critic.parameters()]
    quiet_fit(learn, 16, 5e-3, one_cycle=False)
    pred = preds_of(learn)[0]
    assert torch.equal(preds_of(learn)[0], pred) # no dropout in what is predicted
    assert better_than_baselines(pred, e, held) and mean_measure(pred, e.y[held], 'nss')>before+1
    assert all(not torch.equal(a, b) for a,b in zip(critic, learn.model.critic.parameters()))
    assert learn.recorder.metric_names[-3:-1]==['gen_loss','crit_loss']
    net = learn.model.generator.eval()
    x = dls.valid.one_batch()[0]
    with torch.no_grad():
        net.encoder.spatial.weight[:,20:] = 0
        c = Condenser(net, x).condense()
        assert c.model.encoder.spatial.in_channels==20 and (c.model.eval()(c.inputs(x))-net(x)).abs().max()<1e-6

def test_learner_can_be_exported(simulated, tmp_path):
    e,held,dls = simulated
    learn = Learner(dls, EEG2Saliency(32, 100), loss_func=SaliencyLoss(cc=1.), metrics=saliency_metrics(), path=tmp_path)
    quiet_fit(learn, 1)
    learn.export('l.pkl')
    x = e.x[:4]
    with torch.no_grad(): assert torch.equal(load_learner(tmp_path/'l.pkl').model.eval()(x), learn.model.eval()(x))

def test_metrics_of_the_learner_are_those_of_the_functions(simulated):
    e,held,dls = simulated
    learn = Learner(dls, EEG2Saliency(32, 100), loss_func=SaliencyLoss(), metrics=saliency_metrics())
    with learn.no_bar(): values = learn.validate()[1:]
    pred,y = preds_of(learn)
    assert torch.equal(y, e.y[held])
    assert np.allclose(list(values), [mean_measure(pred, y, k) for k in measures], rtol=1e-5)

# the study

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
