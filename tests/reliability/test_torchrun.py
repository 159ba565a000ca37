"""Two processes that torchrun starts, as accelerate's launcher does where there are GPUs: they train one network with fastai's `DistributedTrainer`, and end
with the same, smaller one. As a script it is what is launched: `torchrun --nproc_per_node 2 tests/reliability/test_torchrun.py FOLDER`."""
import os, subprocess, sys
from importlib.util import find_spec
from pathlib import Path
import pytest, torch
from torch import distributed
from fasterprune.all import *
from support.ranks import shared

root = Path(__file__).resolve().parents[2]
@pytest.mark.long
@pytest.mark.skipif(not distributed.is_available(), reason='needs torch.distributed')
def test_launched(tmp_path):
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONPATH':os.pathsep.join([str(root), str(root/'tests'), os.environ.get('PYTHONPATH', '')])}
    torchrun = [sys.executable,'-W','ignore','-m','torch.distributed.run','--standalone','--nproc_per_node','2']
    run = subprocess.run([*torchrun, str(Path(__file__)), str(tmp_path)], capture_output=True, text=True, env=env)
    assert run.returncode==0, run.stdout+run.stderr
    a,b = [torch.load(tmp_path/f'{rank}') for rank in range(2)]
    weights,shapes,batch,_ = a
    assert a==b and len(weights)==2*(44//8) and shapes[0]==(4,2,3,3) and batch==(4,2,6,6)

def main(folder):
    "In each process: train, and write what came of it."
    rank = int(os.environ['RANK'])
    torch.set_num_threads(1)
    if not find_spec('accelerate'): distributed.init_process_group('gloo')
    cbs = SparsifyCallback(.5, 'filter', 'local', 'wanda'),InputPruneCallback(.5, warmup=0.),CondenseCallback(min_gain=0)
    weights,shapes,batch,kind = shared(rank, *cbs)[1]
    torch.save((weights, shapes, tuple(batch), kind), Path(folder)/f'{rank}')
    distributed.destroy_process_group()

if __name__=='__main__': main(sys.argv[1])
