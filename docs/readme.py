"Make README.md from nbs/index.ipynb: prose as it stands, code in fences, text outputs below it."
import re, sys
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from fastcore.nbio import read_nb

root = Path(__file__).resolve().parent.parent
note = '<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->\n'
hidden = {'hide', 'default_exp', 'exporti', 'export'}

def settings(path=root/'settings.ini'):
    "The project's metadata, as a mapping."
    ini = ConfigParser(delimiters=['='])
    ini.read(path, encoding='utf-8')
    return ini['DEFAULT']

def callouts(md, fmt):
    "`md` with each Quarto callout replaced by what `fmt(kind, title, body)` makes of it."
    def _f(m):
        title, body = re.match(r'(?:#+ +(.+)\n)?\s*([\s\S]*)', m['body'].strip()).groups()
        return fmt(m['kind'], title or m['kind'].capitalize(), body.strip())
    return re.sub(r'^::: *\{\.callout-(?P<kind>\w+)[^}]*\}\n(?P<body>[\s\S]*?)\n:::[ \t]*$', _f, md, flags=re.MULTILINE)

def outside_code(md, f):
    "`f` applied to those parts of `md` that stand outside fenced code and backticks."
    parts = re.split(r'(^```[\s\S]*?^```[ \t]*$|`[^`\n]+`)', md, flags=re.MULTILINE)
    return ''.join(f(p) if i%2==0 else p for i,p in enumerate(parts))

def drop_attrs(md):
    "`md` without the attribute lists (`{.class key=value}`) behind links, images and headings, which only Quarto reads."
    return outside_code(md, lambda s: re.sub(r'(?<=[)\]])\{[^}\n]*\}|(?<=^#)(#* .*?) *\{[.#][^}\n]*\}$', r'\1', s, flags=re.MULTILINE))

def _quote(kind, title, body): return '\n'.join(f'> {o}'.rstrip() for o in f'**{title}**\n\n{body}'.splitlines())

def _link(m):
    "A link that works from the root of the repository."
    text,target = m.groups()
    if re.match(r'[a-z]+:|#|/', target): return m[0]
    return f'[{text}]({target.removeprefix("../") if target.startswith("../") else "nbs/"+target})'

def _markdown(src):
    src = outside_code(callouts(src, _quote), lambda s: re.sub(r'\[([^\]]*)\]\(([^)\s]+)\)', _link, s))
    return drop_attrs(src).strip()

def _text(x): return ''.join(x) if isinstance(x, list) else x

class _Table(HTMLParser):
    "The cells of a table that pandas wrote; what spans several rows stands in the first."
    def __init__(self, html):
        super().__init__()
        self.rows,self.below,self.inside = [],{},False
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        if tag=='tr': self.rows.append([])
        if tag not in ('td','th'): return
        self.inside,row,a = True,self.rows[-1],dict(attrs)
        while self.below.get(len(row), 0): self._empty()
        self.below[len(row)] = int(a.get('rowspan', 1))-1
        row.append('')
    def _empty(self):
        self.below[len(self.rows[-1])] -= 1
        self.rows[-1].append('')
    def handle_endtag(self, tag): self.inside = self.inside and tag not in ('td','th')
    def handle_data(self, text):
        if self.inside: self.rows[-1][-1] += text.strip()

def table(html):
    "A table of pandas as markdown, the names of its index in the head."
    rows = _Table(html[html.index('<table'):html.index('</table')]).rows
    n_head = html.partition('</thead>')[0].count('<tr')
    head = [' '.join(filter(None, o)) for o in zip(*rows[:n_head])]
    lines = [head, ['---']*len(head), *rows[n_head:]]
    return '\n'.join(f'| {" | ".join(o)} |' for o in lines)

def _output(o):
    "The text of one saved output: markdown as it is, tables as markdown, plain text in a fence, pictures not at all."
    data = o.get('data', {})
    if 'text/markdown' in data: return _markdown(_text(data['text/markdown']))
    if '<table' in _text(data.get('text/html', '')): return table(_text(data['text/html']))
    if any(k.startswith('image/') for k in data): return ''
    txt = _text(o.get('text') if o.output_type=='stream' else data.get('text/plain', '')) or ''
    txt = re.sub(r'\x1b\[[0-9;]*m', '', txt).rstrip()
    return f'```text\n{txt}\n```' if txt.strip() else ''

def _cell(cell):
    "The markdown of one notebook cell, as a list of blocks."
    d = cell.directives
    if cell.cell_type=='raw' or hidden & d.keys() or d.get('include')=='false': return []
    cell.remove_directives()
    if cell.cell_type=='markdown': return [_markdown(cell.source)]
    code = [] if d.get('echo')=='false' or not cell.source.strip() else [f'```python\n{cell.source.strip()}\n```']
    return code + ([] if d.get('output')=='false' else [_output(o) for o in cell.get('outputs', [])])

def readme(nb_path=root/'nbs'/'index.ipynb'):
    "The text of README.md."
    blocks = [b for c in read_nb(nb_path).cells for b in _cell(c) if b]
    return note + '\n' + '\n\n'.join(blocks) + '\n'

if __name__=='__main__':
    if not (root/'nbs'/'index.ipynb').exists(): sys.exit('nbs/index.ipynb is not there: nothing to make README.md from')
    (root/'README.md').write_text(readme(), encoding='utf-8')
    print('README.md written')
