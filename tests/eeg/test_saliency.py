"Measures of saliency against brute force, and what chance gives."
import numpy as np, pytest, torch
from sklearn.metrics import roc_auc_score
from fasterprune.eeg.saliency import SaliencyLoss, auc_judd, auc_shuffled, cc, kld, mean_measure
from fasterprune.eeg.saliency import measures, nss, paired_p, permutation_p, sim

mne = pytest.importorskip('mne')

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
