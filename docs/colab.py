"""The first code cell of each page that is opened in Colab: it installs this version, and leaves Colab's torch and fastai as they are. (The pages
on papers need the files of results: they clone the repository themselves.)

`python docs/colab.py` writes it into the notebooks; pip installs nothing anew that is recent enough."""
import re

from fastcore.nbio import mk_cell, read_nb, write_nb
from build import behind_title, notebooks
from convert import cfg, nbs

extras = dict(onnx=r'to_onnx|onnxruntime', eeg=r'\bmne\b')
others = dict(timm=r"'tf_efficientnet|\btimm\b", transformers=r'\btransformers\b|sentence-transformers')

def install(cells):
    "The cell for a notebook with these cells."
    code = '\n'.join(c.source for c in cells if c.cell_type=='code' and '%pip' not in c.source)
    def _used(patterns): return [n for n,p in patterns.items() if re.search(p, code)]
    name = cfg['lib_name'] + f'[{",".join(_used(extras))}]'*bool(_used(extras))
    packages = [f'"{name} @ git+{cfg["git_url"]}.git@v{cfg["version"]}"', *_used(others)]
    return f'#| hide\n#| eval: false\n# in Colab: run this first\n%pip install -q {" ".join(packages)}'

def with_install(notebook):
    "Notebook, its second cell the one that installs."
    cells = [c for c in notebook.cells if '%pip install' not in c.source]
    notebook.cells = [cells[0], mk_cell(install(cells), 'code', id='colab000'), *cells[1:]]
    return notebook

def runnable(): return [nbs/nb for nb in notebooks() if behind_title(nb) and nb.parts[0]!='papers']

if __name__=='__main__':
    for path in runnable():
        before = read_nb(path)
        if [c.source for c in before.cells]!=[c.source for c in with_install(read_nb(path)).cells]: write_nb(with_install(before), path)
