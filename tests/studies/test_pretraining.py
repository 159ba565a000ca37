"What the study of pre-training makes of its rows."
import pandas as pd, pytest
from fasterprune.studies.pretraining import claim, losses, losses_by_seed, with_counterpart

def runs(accuracies):
    "Rows of one network, from accuracies by start and sparsity of its weights, the same for three seeds but for a little."
    return pd.DataFrame([dict(network='net', data='images', source='halves', start=start, granularity='weight' if s else '', sparsity=s, seed=seed, accuracy=a+.001*seed)
        for start,curve in accuracies.items() for s,a in curve.items() for seed in range(3)])

def test_the_first_lost_point_is_read_from_the_curve():
    df = runs({'scratch':{0.:.8, .5:.8, .9:.7}, 'fine-tuned':{0.:.9, .5:.9, .9:.88}})
    assert losses_by_seed(df[df.start=='scratch'], 'weight').tolist()==pytest.approx([.54]*3)
    assert losses_by_seed(df[df.start=='fine-tuned'], 'weight').tolist()==pytest.approx([.7]*3)
    verdict,found = claim(df, 'weight', 'halves')
    assert verdict=='held' and found['net','images'][0]==pytest.approx(.16)

def test_a_run_counts_once_its_counterpart_is_there():
    "A study that has been stopped has cells of one start only: with them the curves would have other points."
    df = runs({'scratch':{0.:.8, .5:.8, .9:.7}, 'fine-tuned':{0.:.9, .9:.88}})
    part = with_counterpart(df)
    assert set(part.sparsity)=={0.,.9} and len(part)==12
    ahead = claim(df, 'weight', 'halves')[1]['net','images'][0]
    assert ahead==pytest.approx(.45-.09) and ahead==claim(part, 'weight', 'halves')[1]['net','images'][0]
    assert list(losses(df)['a point lost at'])==list(losses(part)['a point lost at'])
