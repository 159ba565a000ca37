"""From EEG to visual attention: which electrodes matter, and is what is predicted better than a guess?

Writes results/eeg.csv row by row, and skips what is there: an interrupted run goes on, and a torn last line is cut off. On one core all of it takes about twenty minutes.
`--quick`: the simulator with one seed and little data, nothing written. Names of parts on the command line restrict the run to them.

- `half` and `taylor` lose half of the electrodes by InputPruneCallback while they train, and are condensed; what is measured is the condensed network. `half` scores electrodes by the default
  criterion, weights times scale, `taylor` by gradients times weights.
- simulator: 1,500 epochs of 32 electrodes, the last 300 held out. `network` and its variants `vae` and `gan` have all electrodes. `recall` is the share of the informative electrodes among the kept, `worst` the rank of the informative electrode that
  is ranked last, from 1 on. `p_*`: probability to be as good by chance (predictions dealt to epochs at random). `above_*`: probability to be as far above the better of the two baselines,
  centre bias and mean map, if neither were better (signs of the differences flipped at random).
- left_right: real EEG while a grating flashes left or right. The map has two places, and `side_auc` is the AUC of mass to the right less mass to the left, on the three held-out recordings; `side_p` is
  its probability by chance. Epochs, learning rate and the criterion `taylor` were chosen by cross-validation over the other twelve recordings.
- cueing: where attention is cued to, on people who are held out; the same numbers. Chance is what is expected.
- eye_state: eyes open or closed, the last 30 % of one recording held out; a network without a map, and a ridge regression on band power and Hjorth's parameters.
"""
import sys, tempfile, time, warnings
from pathlib import Path

warnings.simplefilter('ignore')
import numpy as np, pandas as pd, torch
from fastai.basics import *
from fastai.callback.all import *
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from fasterprune.core.data import tensor_dls
from fasterprune.eeg.data import eeg_cueing, eeg_eye_state, eeg_left_right, side_score
from fasterprune.eeg.features import band_power, hjorth
from fasterprune.eeg.models import EEG2Saliency, EEG2SaliencyVAE, KLCallback, adversarial_learner, eeg_encoder
from fasterprune.eeg.simulator import simulate_eeg
from fasterprune.inputs.callback import InputPruneCallback
from fasterprune.studies.circumstances import circumstances
from fasterprune.studies.study import Appender, Results
from fasterprune.eeg.saliency import SaliencyLoss, centre_bias, mean_map, mean_measure, measures, paired_p
from fasterprune.eeg.saliency import permutation_p

root = Path(__file__).resolve().parent.parent
quick = '--quick' in sys.argv
torch.set_num_threads(1)

# training

def fitted(learn, epochs, lr, cbs=None):
    with learn.no_bar(), learn.no_logging():
        if cbs is None: learn.fit_one_cycle(epochs, lr)
        else: learn.fit_one_cycle(epochs, lr, cbs=cbs)
    return learn

def predicted(learn):
    with learn.no_bar(): return learn.get_preds()[0]

criteria = dict(half='auto', taylor='taylor')

def halved(learn, names, method, epochs, lr):
    "Predictions of the condensed network with half of the electrodes, the callback, and how far they are from those of the masked network."
    cb = InputPruneCallback(.5, criterion=criteria[method], names=names)
    masked = predicted(fitted(learn, epochs, lr, cb))
    small = learn.condense()
    pred = predicted(small)
    assert next(small.model.parameters()).shape[1]==len(cb.kept)
    return pred,cb,float((pred-masked).abs().max())

# the simulator

def simulated(snr, method, seed):
    n,held_out,epochs = (400,100,4) if quick else (1500,300,15)
    e = simulate_eeg(n, snr, seed=seed)
    held = np.arange(n)>=n-held_out
    set_seed(seed)
    dls,y,train = e.dls(held),e.y[held],e.y[~held]
    base = [centre_bias(y.shape[-2:]).expand_as(y[:,0]),mean_map(train).expand_as(y[:,0])]
    row = dict(electrodes=len(e.names))
    if method in ('centre','mean'): pred = base[method=='mean']
    elif method=='gan':
        learn = adversarial_learner(dls, EEG2Saliency(len(e.names), e.x.shape[-1]))
        with learn.no_bar(), learn.no_logging(): learn.fit(2*epochs, 3e-3)
        pred = predicted(learn)
    else:
        net,cbs = (EEG2SaliencyVAE,KLCallback()) if method=='vae' else (EEG2Saliency,None)
        learn = Learner(dls, net(len(e.names), e.x.shape[-1]), loss_func=SaliencyLoss(), cbs=cbs)
        if method in criteria:
            pred,cb,diff = halved(learn, e.names, method, epochs, 1e-2)
            order = list(cb.to_frame().index)
            row = dict(electrodes=len(cb.kept), kept=' '.join(cb.kept_names), recall=len({*cb.kept_names} & {*e.informative})/len(e.informative),
                worst=1+max(order.index(i) for i in e.informative), max_diff=diff)
        else: pred = predicted(fitted(learn, epochs, 1e-2))
    for k in measures: row[k] = mean_measure(pred, y, k)
    for k in ('nss','cc','auc') if method not in ('centre','mean') else ():
        row[f'p_{k}'] = permutation_p(pred, y, k)
        row[f'above_{k}'] = max(paired_p(measures[k](pred, y), measures[k](b, y)) for b in base)
    return row

# sides

def judged(score, side, seed=0):
    "AUC of a score, and its probability by chance."
    auc,g = roc_auc_score(side, score),np.random.default_rng(seed)
    return dict(side_auc=auc, side_p=(1+sum(roc_auc_score(g.permutation(side), score)>=auc for _ in range(999)))/1000)

def ridge(x, y, test, alpha=1e4):
    "Ridge regression on features, standardized together, which keeps their proportions."
    x = x.reshape(len(x), -1)
    return Ridge(alpha=alpha).fit(x[~test], 2.*y[~test]-1).predict(x[test])

def averaged(x, k=7): return x[...,:x.shape[-1]//k*k].reshape(*x.shape[:2], -1, k).mean(-1)

def sided(e, side, method, seed, epochs, lr):
    held = e.metadata.is_test.to_numpy()
    row = dict(electrodes=len(e.names))
    if method=='ridge': return row | judged(ridge(averaged(e.x.numpy()), side, held), side[held])
    set_seed(seed)
    learn = Learner(e.dls(held), EEG2Saliency(len(e.names), e.x.shape[-1]), loss_func=SaliencyLoss(), wd=1e-2)
    if method in criteria:
        pred,cb,diff = halved(learn, e.names, method, epochs, lr)
        row = dict(electrodes=len(cb.kept), kept=' '.join(cb.kept_names), max_diff=diff)
    else: pred = predicted(fitted(learn, epochs, lr))
    return row | judged(side_score(pred).numpy(), side[held])

def left_right(_, method, seed):
    e = eeg_left_right()
    return sided(e, e.metadata.side.to_numpy(), method, seed, 15, 3e-3)

def cueing(_, method, seed):
    e = eeg_cueing()
    return sided(e, e.metadata.cue_side.to_numpy(), method, seed, 10, 1e-3)

def eye_state(_, method, seed):
    e = eeg_eye_state()
    y,held = e.metadata.closed.to_numpy(),e.metadata.is_test.to_numpy()
    row = dict(electrodes=len(e.names))
    if method=='ridge':
        x = torch.cat([band_power(e.x, e.fs, log=True),hjorth(e.x, e.fs).log1p()], -1).flatten(1).double()
        x = (x-x[~held].mean(0))/x[~held].std(0)
        return row | judged(ridge(x.numpy(), y, held, 10.), y[held])
    mean,std = (f(e.x[~held], (0,2), keepdim=True) for f in (torch.mean, torch.std))
    x,t = (e.x-mean)/std,tensor(y)
    set_seed(seed)
    learn = Learner(tensor_dls((x[~held],t[~held]), (x[held],t[held]), 16), eeg_encoder(len(e.names), x.shape[-1], 2), loss_func=CrossEntropyLossFlat())
    if method in criteria:
        pred,cb,diff = halved(learn, e.names, method, 20, 3e-3)
        row = dict(electrodes=len(cb.kept), kept=' '.join(cb.kept_names), max_diff=diff)
    else: pred = predicted(fitted(learn, 20, 3e-3))
    return row | judged((pred[:,1]-pred[:,0]).numpy(), y[held])

# all of it

parts = dict(simulator=simulated, left_right=left_right, cueing=cueing, eye_state=eye_state)

def jobs():
    "Part, setting, method and seed, what matters most first."
    names = [n for n in parts if n in sys.argv[1:]] or list(parts)
    if quick: return [('simulator', 0., m, 0) for m in ('half','mean','centre')]
    found = [('simulator', 0., m, s) for s in range(10) for m in ('half','network','mean','centre')]
    found += [(p, '', m, s) for p in ('left_right','eye_state','cueing') for s in range(3) for m in ('network','taylor','half','ridge')
        if (s==0 or m!='ridge') and (p=='left_right' or m!='half')]
    found += [('simulator', 0., m, s) for s in range(3) for m in ('vae','gan')] + [('simulator', snr, 'half', s) for snr in (-10.,-20.) for s in range(3)]
    found += [('simulator', snr, 'taylor', s) for snr in (-20.,0.) for s in range(3)]
    return [j for j in found if j[0] in names]

measured = ('electrodes kept recall worst nss cc auc sauc sim kld p_nss p_cc p_auc above_nss above_cc above_auc side_auc side_p max_diff seconds '
    'fasterprune torch fastai mne scikit_learn python machine cpu commit caveat').split()
results = Results(root/'results'/'eeg.csv', ['part','snr','method','seed'], measured)

def about_run(): return circumstances('fastai', 'mne', 'scikit-learn', threads=1, folder=root)

def show(df):
    "Means over the seeds, a row for each method."
    cols = [c for c in ('electrodes recall worst nss cc auc p_nss p_cc p_auc above_nss above_cc above_auc side_auc side_p max_diff seconds').split() if c in df]
    t = df.groupby(['part','snr','method'], sort=False, dropna=False)
    print(t[cols].mean(numeric_only=True).assign(seeds=t.size()).round(4).to_string())

def main():
    about,todo = about_run(),[dict(zip(results.settings, j)) for j in jobs()]
    done = set() if quick else set(map(results.key, results.rows()))
    rows = []
    with Appender(results, Path(tempfile.mkdtemp())/'eeg.csv' if quick else results.path) as append:
        for job in todo:
            if results.key(job) in done: continue
            start = time.perf_counter()
            row = parts[job['part']](job['snr'], job['method'], job['seed'])
            row = {**dict.fromkeys(measured, ''), **job, **row, 'seconds':round(time.perf_counter()-start, 2), **about}
            print({k:round(v, 4) if isinstance(v, float) else v for k,v in row.items() if k not in about and v!=''}, flush=True)
            append(row)
            rows.append(row)
    show(pd.DataFrame(rows).replace('', np.nan) if quick else results.to_frame())

if __name__=='__main__': main()
