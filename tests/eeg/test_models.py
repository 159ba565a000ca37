"Networks from EEG to saliency learn more than baselines, and lose electrodes."
import numpy as np, pytest, torch
from fastai.basics import Learner, load_learner, set_seed
from fastai.callback.all import LRFinder
from fasterprune.condense.condenser import Condenser
from fasterprune.eeg.models import EEG2Saliency, EEG2SaliencyVAE, KLCallback, adversarial_learner, gaussian_kl
from fasterprune.eeg.simulator import simulate_eeg
from fasterprune.inputs.callback import InputPruneCallback
from fasterprune.learner.condense import condense_learner
from fasterprune.eeg.saliency import SaliencyLoss, centre_bias, mean_map, mean_measure
from fasterprune.eeg.saliency import measures, paired_p, permutation_p, saliency_metrics
from support.eeg import nets

mne = pytest.importorskip('mne')

def quiet_fit(learn, epochs, lr=1e-2, cbs=None, one_cycle=True):
    with learn.no_bar(), learn.no_logging(): (learn.fit_one_cycle if one_cycle else learn.fit)(epochs, lr, cbs=cbs)
    return learn

def preds_of(learn):
    with learn.no_bar(): return learn.get_preds()

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
    small = condense_learner(learn)
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
