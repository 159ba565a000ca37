"Features and images of EEG against their formulas."
import numpy as np, pytest
from fasterprune.eeg.features import band_power, eeg_images, electrode_places, hjorth, project

mne = pytest.importorskip('mne')

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
