"The simulated EEG against MNE, and what it is said to hold."
import numpy as np, pytest, torch
from fasterprune.eeg.features import electrode_places
from fasterprune.eeg.simulator import simulate_eeg, sphere_potential

mne = pytest.importorskip('mne')

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
