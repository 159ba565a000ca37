"""Build the site: each notebook a page (convert.py), the pages in groups, Sphinx on the result.

    python docs/build.py                   # all of it; any warning is a fault
    python docs/build.py sparsify/criteria reference  # these pages or folders alone, for a quick look: links to others lead nowhere

`nbdev-docs` and `nbdev-proc-nbs` would want Quarto; the processors behind them do not, so they are called here."""
import os, re, shutil, subprocess, sys
from pathlib import Path

from fasterprune import _modidx
from convert import blob, cfg, colab, here, nbs, out, page_path, pages, process, root, title_of, write_page

# The groups of the site in the order of the sidebar: a page, or a folder with an index and its pages.
groups = 'getting_started', 'tutorials', 'howto', 'coming_from', 'explain', 'papers', 'benchmarks', 'reference', 'developers'
tasks = dict(zeros='Zeros', criteria='What matters', condensing='Taking out', inputs='Inputs', reports='Reports', files='Files', data='Data')
packages = 'sparsify', 'condense', 'inputs', 'learner', 'graph', 'core', 'studies', 'eeg'
programs = 'all', 'demo', 'moved' # single modules, with the developers' pages
project = dict(changelog='CHANGELOG.md', contributing='CONTRIBUTING.md')
in_colab = 'getting_started', 'tutorials', 'howto', 'coming_from', 'explain', 'papers' # what is opened there

only = tuple(sys.argv[1:]) if __name__=='__main__' else () # the pages that are wanted, by the beginnings of their names; all if empty

def _top(nb): return nb.parts[0] if len(nb.parts)>1 else name_of(nb)
def name_of(nb): return page_path(nb).with_suffix('').as_posix()

def notebooks():
    "All notebooks in reading order: by folder, by number, by name."
    found = [p.relative_to(nbs) for p in nbs.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(nbs).parts)]
    if only: found = [p for p in found if p.stem=='index' and len(p.parts)<3 or name_of(p).startswith(only)]
    order = ['index', *groups, *packages, *programs]
    unknown = sorted({_top(p) for p in found} - {*order})
    if unknown: sys.exit(f'docs/build.py: these pages of nbs/ are in no group: {", ".join(unknown)}')
    def _key(p):
        task = p.parts[1] if p.parts[0]=='reference' and len(p.parts)>2 else ''
        return order.index(_top(p)),p.stem!='index',[*tasks].index(task) if task in tasks else -1,str(p)
    return sorted(found, key=_key)

def children(nb):
    "The pages that stand below an index in the sidebar: pairs of a heading and notebooks."
    if nb==Path('developers/index.ipynb'):
        return [('Packages', [Path(p)/'index.ipynb' for p in packages]), ('Modules', [o for o in notebooks() if _top(o) in programs])]
    below = [o for o in notebooks() if nb.parent in o.parents and o!=nb]
    if nb.parent!=Path('reference'): return [('', below)]
    unknown = {o.parts[1] for o in below} - tasks.keys()
    if unknown: sys.exit(f'docs/build.py: give these folders of nbs/reference a title: {", ".join(sorted(unknown))}')
    return [(title, [o for o in below if o.parts[1]==task]) for task,title in tasks.items() if any(o.parts[1]==task for o in below)]

def _toctree(names): return '```{toctree}\n:hidden:\n:maxdepth: 1\n\n' + '\n'.join(names) + '\n```'

def contents(nb):
    "The pages below an index, each with its promise, and the table of contents for the sidebar."
    def _line(o):
        title,promise = title_of(o)
        return f'- [{title}]({os.path.relpath(o, nb.parent)}): {promise}'
    parts = [f'## {title}\n\n'*bool(title) + '\n'.join(map(_line, below)) for title,below in children(nb)]
    names = [os.path.relpath(name_of(o), page_path(nb).parent) for _,below in children(nb) for o in below]
    if nb.parts[0] in packages: parts[0] = '## Pages\n\n' + parts[0]
    return '\n\n'.join([*parts, _toctree(names)])

def home():
    "The table of contents of the whole site."
    first = {}
    for nb in notebooks(): first.setdefault(_top(nb), name_of(nb))
    return _toctree([first[g] for g in groups if g in first] + [*project])

def behind_title(nb):
    "A link to the notebook in Colab, where a page is made to be run."
    return f'[Open in Colab]({colab}nbs/{nb.as_posix()}){{.colab}}' if _top(nb) in in_colab and nb.stem!='index' else ''

def at_end(nb): return '' if nb.stem!='index' else contents(nb) if len(nb.parts)>1 else home()

def write_pages():
    "All pages, from nothing."
    _modidx.d['settings'].update(doc_host=here.rstrip('/'), doc_baseurl='/', git_url=cfg['git_url'], branch=cfg['branch'])
    for o in (pages, out): shutil.rmtree(o, ignore_errors=True)
    for nb,notebook in [(nb, process(nb)) for nb in notebooks()]: write_page(nb, notebook, behind_title(nb), at_end(nb))
    for p in nbs.rglob('*'):
        rel = p.relative_to(nbs)
        if p.suffix in ('.png', '.svg', '.jpg', '.gif') and rel.parts[0][0] not in '._':
            (pages/rel).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(p, pages/rel)
    for name,file in project.items():
        md = (root/file).read_text(encoding='utf-8')
        (pages/f'{name}.md').write_text(re.sub(r'(\]\()(?!https?:|#)', r'\1'+blob, md), encoding='utf-8')

def _page(title, body, head=''):
    return f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>{head}' \
        f'<style>body {{font: 1.1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 15vh auto; padding: 0 1rem}}</style></head><body>{body}</body></html>\n'

def redirect_moved():
    "Where a page stood in an earlier version, a page that leads to where it is: pairs in docs/moved.txt."
    for old,new in map(str.split, (root/'docs'/'moved.txt').read_text(encoding='utf-8').splitlines()):
        source,target = out/'html'/f'{old}.html',out/'html'/f'{new}.html'
        if not target.exists(): sys.exit(f'docs/moved.txt: {old} leads to {new}, which is no page')
        if source.exists(): sys.exit(f'docs/moved.txt: {old} is a page again: take out its line')
        source.parent.mkdir(parents=True, exist_ok=True)
        url = os.path.relpath(target, source.parent)
        head = f'<link rel="canonical" href="{url}"><meta http-equiv="refresh" content="0; url={url}"><script>location.replace("{url}"+location.hash)</script>'
        source.write_text(_page('This page has moved', f'<p>This page is now <a href="{url}">{new}</a>.</p>', head), encoding='utf-8')

def write_extras():
    "The page for what is not there, and the list of pages for readers that are programs."
    base = cfg['doc_url'].rstrip('/')
    links = ''.join(f'<li><a href="{base}/{u}">{t}</a></li>' for u,t in (('index.html','Home'), ('search.html','Search'), ('reference/index.html','Reference')))
    (out/'html'/'404.html').write_text(_page('Page not found', f'<h1>There is no such page</h1><p>It may have moved. Try one of these:</p><ul>{links}</ul>'), encoding='utf-8')
    lines = [f'# {cfg["lib_name"]}', f'> {title_of(Path("index.ipynb"))[1]}']
    for nb in notebooks():
        title,promise = title_of(nb)
        if nb.stem=='index' and len(nb.parts)>1: lines.append(f'## {title}')
        lines.append(f'- [{title}]({base}/{name_of(nb)}.html): {promise}')
    (out/'html'/'llms.txt').write_text('\n\n'.join(lines[:2]) + '\n\n' + '\n'.join(lines[2:]) + '\n', encoding='utf-8')

def main():
    os.environ['IN_TEST'] = '1'  # exported cells are run to read their signatures: they should do nothing else
    write_pages()
    del os.environ['IN_TEST']
    strict = [] if only else ['-W', '--keep-going']
    cmd = [sys.executable, '-m', 'sphinx', '-b', 'html', '-q', *strict, '-c', root/'docs', '-d', out/'doctrees', pages, out/'html']
    code = subprocess.run(list(map(str, cmd))).returncode
    if code==0 and not only:
        redirect_moved()
        write_extras()
    print('docs/_build/html/index.html written' if code==0 else 'The site has faults: see above.')
    sys.exit(code)

if __name__=='__main__': main()
