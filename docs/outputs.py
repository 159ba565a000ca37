"""Run the notebooks and save their outputs as a reader wants them: no progress bars, no warnings, nothing from hidden cells.

Cells up to the first one that differs from the last commit keep the outputs that they have there, so that a change is no larger than what
it is about; `--all` takes all outputs anew, for instance when the library prints something else."""
import json, os, re, subprocess, sys, sysconfig
from pathlib import Path

root = Path(__file__).resolve().parent.parent
bar = re.compile(r'\|[█▉▊▋▌▍▎▏-]*\||\d+\.\d+% \[|^Epoch \d+/\d+ :\s*$')

def final(text):
    "What a terminal shows of `text` in the end: a carriage return begins the line anew, and progress bars are gone."
    lines = []
    for line in text.split('\n'):
        parts = [p for p in line.split('\r') if p.strip(' █') and not bar.search(p)]
        if parts or '\r' not in line: lines.append(parts[-1].rstrip() if parts else line)
    return '\n'.join(lines).strip('\n')

def tidy(cell):
    "Outputs of a cell, tidied."
    if cell['source'] and '#| hide' in ''.join(cell['source']).split('\n')[0]: return []
    kept = []
    for o in cell['outputs']:
        if o['output_type']=='stream':
            text = final(''.join(o['text']))
            if o['name']=='stderr' or not text.strip(): continue
            o['text'] = (text+'\n').splitlines(True)
        kept.append(o)
    return kept

def code_cells(nb): return [c for c in nb['cells'] if c['cell_type']=='code']

def committed(path):
    "Code cells of a notebook as it is in the last commit."
    found = subprocess.run(['git','show',f'HEAD:./{path.relative_to(root).as_posix()}'], cwd=root, capture_output=True, text=True, encoding='utf-8')
    return code_cells(json.loads(found.stdout)) if found.returncode==0 else []

def keep_outputs(cells, before):
    "Give cells the outputs of `before`, up to the first one whose source is another."
    for new,old in zip(cells, before):
        if ''.join(new['source'])!=''.join(old['source']): return
        new['outputs'] = old['outputs']

def main(names):
    "Run the notebooks called `names`, or all of them."
    everything,names = '--all' in names,[n for n in names if n!='--all']
    bin_dir = Path(sysconfig.get_path('scripts'))
    paths = [root/'nbs'/f'{n}.ipynb' for n in names] or sorted((root/'nbs').glob('**/*.ipynb'))
    for p in paths:
        subprocess.run([bin_dir/'nbdev-test', str(p), '--save'], cwd=root, check=True, env={**os.environ, 'PYTHONWARNINGS':'ignore'})
        nb = json.loads(p.read_text(encoding='utf-8'))
        for cell in code_cells(nb): cell['outputs'] = tidy(cell)
        if not everything: keep_outputs(code_cells(nb), committed(p))
        p.write_text(json.dumps(nb, ensure_ascii=False, indent=1)+'\n', encoding='utf-8')
    subprocess.run([bin_dir/'nbdev-clean'], cwd=root, check=True)

if __name__=='__main__': main(sys.argv[1:])
