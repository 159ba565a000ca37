"""Build the site: nbdev's own processing of the notebooks, its dialect turned into MyST, Sphinx on the result.

`nbdev-docs` and `nbdev-proc-nbs` would want Quarto; the processors behind them do not, so they are called here."""
import ast, os, re, shutil, subprocess, sys
from pathlib import Path

from fastcore.nbio import mk_cell, read_nb, write_nb
from fastcore.xtras import working_directory
from nbdev.frontmatter import FrontmatterProc
from nbdev.processors import FilterDefaults, exec_show_docs, insert_warning
from fasterprune import _modidx
from readme import callouts, drop_attrs, root, settings

cfg = settings()
nbs,pages,out = root/'nbs',root/'docs'/'_proc',root/'docs'/'_build'
here = 'https://site.invalid/'  # stands for this site until the links are made relative
blob = f'{cfg["git_url"]}/blob/{cfg["branch"]}/'
colab = blob.replace('https://github.com/', 'https://colab.research.google.com/github/')
runnable = 'tutorials','howto','explain','papers' # folders of pages that are opened in Colab
shown = {}  # page: the symbols that have a heading there
captions = {'': 'fasterprune', 'howto': 'How to', 'explain': 'Explained', 'papers': 'Papers', 'sparsify': 'Sparsify', 'condense': 'Condense', 'inputs': 'Inputs',
    'learner': 'Learner', 'graph': 'Graph', 'core': 'Core', 'studies': 'Studies', 'eeg': 'EEG'}

class RunExports(exec_show_docs):
    "Run only what `show_doc` needs, exported cells and cells of imports; the outputs that the author saved stay."
    def __call__(self, cell):
        if cell.cell_type!='code': return
        show,saved = 'show_doc(' in cell.source,cell.get('outputs', [])
        def _imports(): return all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in cell.parsed_() or [])
        if show or {'export', 'exports', 'exporti'} & cell.directives_.keys() or _imports(): super().__call__(cell)
        if not show: cell.outputs = saved

class Pages(FilterDefaults):
    "nbdev's processors, less those that write what only Quarto reads."
    def base_procs(self):
        procs = [p for p in super().base_procs() if p not in (FrontmatterProc, insert_warning)]
        return [RunExports if p is exec_show_docs else p for p in procs]

def page_path(path):
    "The page of a notebook, as nbdev names it in its index of symbols: lower case, without the number."
    return path.with_name(re.sub(r'^\d+[a-z0-9]*_', '', path.name.lower()))

def notebooks():
    "All notebooks in reading order: by folder as in `captions`, by number, by name."
    found = [p.relative_to(nbs) for p in nbs.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(nbs).parts)]
    order = list(captions)
    def _key(p): return order.index(p.parts[0] if len(p.parts)>1 else ''), p.stem!='index', str(p)
    unknown = {p.parts[0] for p in found if len(p.parts)>1} - captions.keys()
    if unknown: sys.exit(f'docs/build.py: give these folders of nbs/ a caption: {", ".join(sorted(unknown))}')
    return sorted(found, key=_key)

def link(target, nb):
    "Where a link in notebook `nb` leads in the site: another page, or the file in the repository."
    target,_,anchor = target.partition('#')
    anchor = f'#{anchor}' if anchor else ''
    if target.startswith(here):
        page = Path(target.removeprefix(here))
        while anchor and anchor[1:] not in shown.get(page.with_suffix(''), ()): anchor = anchor.rpartition('.')[0]
        anchor = anchor.replace('.', '')
    elif not target or re.match(r'[a-z]+:', target): return target+anchor
    else:
        page = Path(os.path.normpath(Path('nbs')/nb.parent/target))
        if page.parts[0]!='nbs': return blob + page.as_posix() + anchor
        if page.suffix not in ('.ipynb', '.html'): return target
        page = page_path(page.relative_to('nbs'))
    return os.path.relpath(page.with_suffix('.ipynb'), nb.parent) + anchor

def _admonition(kind, title, body): return f':::{{admonition}} {title}\n:class: {kind}\n{body}\n:::'

def links(md, nb):
    "`md` with each link outside of fenced code made one within the site."
    parts = re.split(r'(^```[\s\S]*?^```[ \t]*$)', md, flags=re.MULTILINE)
    def _f(s): return re.sub(r'(\]\()([^)\s]+)(\))', lambda m: m[1] + link(m[2], nb) + m[3], s)
    return ''.join(_f(p) if i%2==0 else p for i,p in enumerate(parts))

def to_myst(md, nb):
    "What an author wrote in notebook `nb`, as MyST reads it."
    return links(drop_attrs(callouts(md, _admonition)), nb)

def show_doc_md(md, level):
    "What `show_doc` printed: the heading first, one level below its section; then the link to the source; names without `__main__`."
    md = md.replace('__main__.', '').replace(')->None:', '):').removeprefix('---\n\n')
    src = re.match(r'\[source\]\(([^)]*?)(?:#LNone)?\)\{[^}]*\}\n\n', md)
    title,body = re.match(r'#+ (.*)\n\n([\s\S]*)', md[src.end() if src else 0:]).groups()
    title = title.replace('\\', '')
    body = re.sub(r'\b(?:[a-z_]\w*\.){2,}([A-Z]\w*)', r'\1', body)  # `torch.nn.modules.module.Module` is `Module` to a reader
    return f'{"#"*level} `{title}`\n\n' + (f'[source]({src[1]}){{.source}}\n\n' if src else '') + body

def options(cell):
    "The Quarto options of a code cell, which are taken out of it."
    found = dict(re.findall(r'^#\| *([\w-]+) *:? *(.*)$', cell.source, flags=re.MULTILINE))
    cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.MULTILINE).strip()
    return found

def convert(cells, nb):
    "The cells of a processed notebook, for myst-nb."
    level = 1
    for c in cells:
        if c.cell_type=='raw' or not c.source.strip(): continue
        if c.cell_type=='markdown':
            heads = re.findall(r'^(#+) ', re.sub(r'^```[\s\S]*?^```', '', c.source, flags=re.MULTILINE), flags=re.MULTILINE)
            if heads: level = len(heads[-1])
            yield mk_cell(to_myst(c.source, nb), 'markdown')
            continue
        opts = options(c)
        if c.source.startswith('show_doc'):
            for o in c.get('outputs', []):
                md = o.get('data', {}).get('text/markdown')
                if md: yield mk_cell(links(show_doc_md(''.join(md), min(level+1, 4)), nb), 'markdown')
            continue
        if opts.get('include')=='false': continue
        if opts.get('output')=='false': c.outputs = []
        for o in c.get('outputs', []):
            md = o.get('data', {}).get('text/markdown')
            if md: o['data']['text/markdown'] = to_myst(''.join(md), nb)
        if opts.get('echo')=='false' and not c.get('outputs'): continue
        c.metadata = dict(tags=['remove-input'] if opts.get('echo')=='false' else [])
        yield c

def process(nb):
    "Notebook `nb` as nbdev wants it documented."
    notebook = read_nb(nbs/nb)
    with working_directory((nbs/nb).parent): Pages()(notebook)
    docs = [''.join(o.get('data', {}).get('text/markdown', '')) for c in notebook.cells for o in c.get('outputs', []) if 'show_doc(' in c.source]
    shown[page_path(nb).with_suffix('')] = {n.replace('\\', '').lower() for d in docs for n in re.findall(r'^#+ (.*)$', d, flags=re.MULTILINE)}
    return notebook

def contents(folder):
    "A list of the pages of a package, each with its promise."
    lines = []
    for nb in notebooks():
        if folder not in nb.parents or nb==folder/'index.ipynb': continue
        title,promise = re.match(r'# (.*)\n+> (.*)', read_nb(nbs/nb).cells[0].source).groups()
        lines.append(f'- [{title}]({nb.relative_to(folder).as_posix()}): {promise}')
    return '## Pages\n\n' + '\n'.join(lines)

def write_page(nb, notebook):
    "The page of the processed notebook `nb`; gives its name for the table of contents."
    cells = list(convert(notebook.cells, nb))
    if nb.name=='index.ipynb' and len(nb.parts)>1: cells.append(mk_cell(to_myst(contents(nb.parent), nb), 'markdown'))
    if nb.parts[0] in runnable: cells.insert(1, mk_cell(f'[Open in Colab]({colab}nbs/{nb.as_posix()})', 'markdown'))
    notebook.cells = cells
    notebook.metadata = dict(kernelspec=dict(name='python3', display_name='python3', language='python'),
        language_info=dict(name='python', pygments_lexer='ipython3'))
    dest = pages/page_path(nb)
    dest.parent.mkdir(parents=True, exist_ok=True)
    write_nb(notebook, dest)
    return page_path(nb).with_suffix('').as_posix()

def toctrees(names):
    "The tables of contents, one a folder, and the pages about the project."
    groups = {c: [n for n in names if n!='index' and (n.split('/')[0] if '/' in n else '')==f] for f,c in captions.items()}
    groups['The project'] = ['changelog', 'contributing']
    return '\n\n'.join('```{toctree}\n:hidden:\n:caption: '+c+'\n\n'+'\n'.join(g)+'\n```' for c,g in groups.items() if g)

def write_pages():
    "All pages, from nothing."
    _modidx.d['settings'].update(doc_host=here.rstrip('/'), doc_baseurl='/', git_url=cfg['git_url'], branch=cfg['branch'])
    for o in (pages, out): shutil.rmtree(o, ignore_errors=True)
    names = [write_page(*o) for o in [(nb, process(nb)) for nb in notebooks()]]
    for p in nbs.rglob('*'):
        rel = p.relative_to(nbs)
        if p.suffix in ('.png', '.svg', '.jpg', '.gif') and rel.parts[0][0] not in '._': shutil.copy(p, pages/rel)
    for name in ('CHANGELOG.md', 'CONTRIBUTING.md'):
        md = (root/name).read_text(encoding='utf-8')
        (pages/name.lower()).write_text(re.sub(r'(\]\()(?!https?:|#)', r'\1'+blob, md), encoding='utf-8')
    index = read_nb(pages/'index.ipynb')
    index.cells.append(mk_cell(toctrees(names), 'markdown'))
    write_nb(index, pages/'index.ipynb')

_elsewhere = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>This page has moved</title><link rel="canonical" href="{0}">
<meta http-equiv="refresh" content="0; url={0}"><script>location.replace("{0}"+location.hash)</script></head>
<body><p>This page is now <a href="{0}">{0}</a>.</p></body></html>
"""

def redirect_moved():
    "Where a page stood in an earlier version, a page that leads to where it is: pairs in docs/moved.txt."
    for old,new in map(str.split, (root/'docs'/'moved.txt').read_text(encoding='utf-8').splitlines()):
        if not (out/'html'/f'{new}.html').exists(): sys.exit(f'docs/moved.txt: {old} leads to {new}, which is no page')
        if (out/'html'/f'{old}.html').exists(): sys.exit(f'docs/moved.txt: {old} is a page again: take out its line')
        (out/'html'/f'{old}.html').write_text(_elsewhere.format(f'{new}.html'), encoding='utf-8')

def main():
    os.environ['IN_TEST'] = '1'  # exported cells are run to read their signatures: they should do nothing else
    write_pages()
    del os.environ['IN_TEST']
    cmd = [sys.executable, '-m', 'sphinx', '-b', 'html', '-q', '-W', '--keep-going', '-c', root/'docs', '-d', out/'doctrees', pages, out/'html']
    code = subprocess.run(list(map(str, cmd))).returncode
    if code==0: redirect_moved()
    print('docs/_build/html/index.html written' if code==0 else 'The site has faults: see above.')
    sys.exit(code)

if __name__=='__main__': main()
