'Judge what newcomers left: `python docs/first_use/judge.py FOLDER`, with a folder for each task of tasks.md in it, by its name.'
import subprocess, sys, tempfile
from pathlib import Path

import numpy as np

def numbers(file):
    "All numbers in a text file."
    import re
    return [float(o) for o in re.findall(r'-?\d+(?:\.\d+)?(?:e-?\d+)?', file.read_text().replace(',', ''))]

def vision(d):
    from PIL import Image
    from fastai.learner import load_learner
    learn = load_learner(d/'learn.pkl')
    side = 32
    image = d/'judged.png'
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (side,side,3), dtype=np.uint8)).save(image)
    learn.predict(image)
    n = sum(p.numel() for p in learn.model.parameters())
    return n<6e6,f'{n:,} parameters, predicts an image'

def tabular(d):
    names = (d/'columns.txt').read_text().split()
    return 3<=len(names)<=6 and (d/'row.txt').stat().st_size>0,f'{len(names)} columns: {" ".join(names)}'

def text(d):
    before,after = numbers(d/'params.txt')[:2]
    return after<before and (d/'parts.txt').stat().st_size>20,f'{before:,.0f} -> {after:,.0f}'

def unet(d):
    from safetensors.numpy import load_file
    n,error = sum(t.size for t in load_file(d/'small.safetensors').values()),numbers(d/'check.txt')[-1]
    return n<2e7 and error<1e-3,f'{n:,} numbers, difference {error}'

def zeros(d):
    import onnxruntime
    session = onnxruntime.InferenceSession(d/'small.onnx')
    x,y = np.load(d/'input.npy'),np.load(d/'dense.npy')
    error = abs(session.run(None, {session.get_inputs()[0].name: x})[0]-y).max()
    return error<1e-4,f'difference {error:.1e}'

def callbacks(d):
    share = numbers(d/'zeros.txt')[-1]
    return abs(share/(100 if share>1 else 1)-.5)<.01,f'{share} of the filters are zero'

def fasterai(d):
    source = (d/'script.py').read_text()
    with tempfile.TemporaryDirectory() as t:
        run = subprocess.run([sys.executable, (d/'script.py').resolve()], cwd=t, capture_output=True, text=True)
    return run.returncode==0 and 'fasterprune' in source and 'condense' in source,(run.stdout+run.stderr)[-60:].strip()

def features(d):
    with tempfile.TemporaryDirectory() as t:
        run = subprocess.run([sys.executable, (d/'pipeline.py').resolve()], cwd=t, capture_output=True, text=True)
    score = max(o for o in numbers(d/'score.txt') if o<=1)
    return run.returncode==0 and score>.9,f'score {score}'

def transformer(d):
    before,after,error = numbers(d/'sizes.txt')[:3]
    return after<before and error<1e-4,f'{before:,.0f} -> {after:,.0f}, difference {error}'

def why(d):
    before,first,last = numbers(d/'params.txt')[:3]
    return last<.35*before and last<first and len((d/'why.txt').read_text())>80,f'{before:,.0f} -> {first:,.0f} -> {last:,.0f}'

tasks = [vision, tabular, text, unet, zeros, callbacks, fasterai, features, transformer, why]

def main(folder):
    passed = 0
    for task in tasks:
        try: ok,what = task(Path(folder)/task.__name__)
        except Exception as e: ok,what = False,f'{type(e).__name__}: {str(e)[:100]}'
        passed += ok
        print(f'{"passed" if ok else "FAILED":7} {task.__name__:12} {what}')
    print(f'{passed} of {len(tasks)}')
    return passed<9

if __name__=='__main__': sys.exit(main(sys.argv[1]))
