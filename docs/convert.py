"A notebook as a page of the site: nbdev's own processing, its dialect turned into MyST, links made right."
import ast, os, re
from pathlib import Path

from fastcore.nbio import mk_cell, read_nb, write_nb
from fastcore.xtras import working_directory
from nbdev.frontmatter import FrontmatterProc
from nbdev.processors import FilterDefaults, exec_show_docs, insert_warning
from entries import entries_in
from readme import callouts, drop_attrs, root, settings

cfg = settings()
nbs,pages,out = root/'nbs',root/'docs'/'_proc',root/'docs'/'_build'
here = 'https://site.invalid/'  # stands for this site until the links are made relative
blob = f'{cfg["git_url"]}/blob/{cfg["branch"]}/'
colab = f'{cfg["git_url"]}/blob/v{cfg["version"]}/'.replace('https://github.com/', 'https://colab.research.google.com/github/')
shown = {}  # page: the symbols that have a heading there
entries = entries_in(nbs)  # the page of the reference of each public name

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

def title_of(nb):
    "Title and promise of notebook `nb`."
    return re.match(r'# (.*)\n+> (.*)', read_nb(nbs/nb).cells[0].source).groups()

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
    "`md` with each link outside of fenced code, but in entries, made one within the site; a public name leads to its entry."
    parts = re.split(r'(^```[\s\S]*?^```[ \t]*$)', md, flags=re.MULTILINE)
    def _link(m):
        name = m[1][2:-3] if re.fullmatch(r'\[`[\w.]+`\]\(', m[1]) else None
        return f'{{py:obj}}`{name}`' if name in entries and m[2].startswith(here) else m[1] + link(m[2], nb) + m[3]
    def _f(s): return re.sub(r'(\[[^\]\n]*\]\(|\]\()([^)\s]+)(\))', _link, s)
    return ''.join(p if i%2 and not p.startswith('```{entry}') else _f(p) for i,p in enumerate(parts))

def to_myst(md, nb):
    "What an author wrote in notebook `nb`, as MyST reads it."
    md = re.sub(r'\[\[(`[^`\]]+`)\]\([^)\s]*\)\]\(', r'[\1](', md) # a symbol in the text of a link does not become a link of its own
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

def seen(cells, i, head):
    "What is seen in the picture below cell `i`: its `fig-alt`, else the first sentence of the text behind it, else its section."
    following = cells[i+1] if i+1<len(cells) else None
    text = following.source if following is not None and following.cell_type=='markdown' else ''
    text = '' if text.startswith(('#','|','-','```')) else re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text.split('\n\n')[0]).replace('`', '').replace('*', '')
    sentence = re.split(r'(?<=[.:])\s', ' '.join(text.split()))[0].rstrip(':')
    return sentence if 20<len(sentence)<300 else f'Plot: {head}'

def convert(cells, nb):
    "The cells of a processed notebook, for myst-nb."
    level,head = 1,''
    cells = [c for c in cells if c.cell_type!='raw' and c.source.strip()]
    for i,c in enumerate(cells):
        if c.cell_type=='markdown':
            heads = re.findall(r'^(#+) (.*)$', re.sub(r'^```[\s\S]*?^```', '', c.source, flags=re.MULTILINE), flags=re.MULTILINE)
            if heads: level,head = len(heads[-1][0]),heads[-1][1].replace('`', '')
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
        if any(k.startswith('image/') for o in c.get('outputs', []) for k in o.get('data', {})):
            c.metadata['mystnb'] = dict(image=dict(alt=opts.get('fig-alt') or seen(cells, i, head or title_of(nb)[0])))
        yield c

def process(nb):
    "Notebook `nb` as nbdev wants it documented."
    notebook = read_nb(nbs/nb)
    with working_directory((nbs/nb).parent): Pages()(notebook)
    docs = [''.join(o.get('data', {}).get('text/markdown', '')) for c in notebook.cells for o in c.get('outputs', []) if 'show_doc(' in c.source]
    shown[page_path(nb).with_suffix('')] = {n.replace('\\', '').lower() for d in docs for n in re.findall(r'^#+ (.*)$', d, flags=re.MULTILINE)}
    return notebook

def write_page(nb, notebook, behind_title='', at_end=''):
    "The page of the processed notebook `nb`, with what stands behind its title and at its end."
    cells = list(convert(notebook.cells, nb))
    if behind_title: cells.insert(1, mk_cell(behind_title, 'markdown'))
    if at_end: cells.append(mk_cell(to_myst(at_end, nb), 'markdown'))
    notebook.cells = cells
    notebook.metadata = dict(kernelspec=dict(name='python3', display_name='python3', language='python'),
        language_info=dict(name='python', pygments_lexer='ipython3'))
    dest = pages/page_path(nb)
    dest.parent.mkdir(parents=True, exist_ok=True)
    write_nb(notebook, dest)
