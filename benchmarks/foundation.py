"The main job, measured: digits and MNIST over several seeds, and half of the filters of a VGG16-BN. Writes results/foundation.csv."
import sys, tempfile, time
from pathlib import Path

import pandas as pd, torch, torchvision
from torch import nn

from fasterprune.all import *
from fasterprune.demo import recipes, run_demo
from fasterprune.core.files import data_file
from fasterprune.studies.circumstances import circumstances

root = Path(__file__).resolve().parent.parent
quick = '--quick' in sys.argv

def demo_rows(name, seeds):
    "Dense, masked, condensed and retrained, for each seed."
    data = get_images(name)
    for seed in seeds:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder: demo = run_demo(data, recipes[name], Path(folder)/'small.safetensors', seed)
        seconds = time.perf_counter()-start
        constant = (data.train[0].flatten(1).std(0)==0)[demo.inputs.kept].sum()
        for network,row in demo.table.iterrows():
            yield dict(study=name, seed=seed, network=network, **row.drop('latency_us'), constant_inputs_kept=int(constant), seconds=seconds)

def vgg_rows(seed=0):
    "VGG16-BN with live norms and half of each convolution's filters zero, condensed, compared in float32 at two sizes."
    torch.manual_seed(seed)
    model = torchvision.models.vgg16_bn(weights=None).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t,(a,b) in ((m.running_mean,(-.5,.5)), (m.running_var,(.5,2)), (m.weight.data,(.5,1.5)), (m.bias.data,(-.5,.5))): t.uniform_(a, b)
        if isinstance(m, nn.Conv2d): m.weight.data[torch.randperm(m.out_channels)[:m.out_channels//2]] = 0
    start = time.perf_counter()
    c = Condenser(model, torch.randn(2, 3, 32, 32)).condense()
    seconds = time.perf_counter()-start
    for size in (32, 64):
        x = torch.randn(4, 3, size, size)
        with torch.no_grad(): a,b = model(x),c.model(x)
        yield dict(study='vgg16_bn', seed=seed, network=f'condensed, {size} px', parameters=c.report.params_after, parameters_left=c.report.params_after/c.report.params_before,
            difference=float((a-b).abs().max()/a.abs().max()), seconds=seconds)

def main():
    rows = [*vgg_rows(), *demo_rows('digits', range(1 if quick else 5)), *([] if quick or not data_file('mnist.npz') else demo_rows('mnist', range(3)))]
    df = pd.DataFrame(rows).assign(**circumstances('fastai', threads=torch.get_num_threads(), folder=root))
    print(df[['study','seed','network','accuracy','inputs','parameters','difference','seconds']].to_string(index=False))
    print(df.groupby(['study','network'], sort=False).accuracy.agg(['mean','std']).dropna(how='all').to_string(float_format='{:.4f}'.format))
    if not quick:
        (root/'results').mkdir(exist_ok=True)
        df.to_csv(root/'results'/'foundation.csv', index=False, float_format='%.10g')

if __name__=='__main__': main()
