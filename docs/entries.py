"""The Sphinx directive of the reference: what a public name takes and gives, from the code and the comments beside its parameters.

    ```{entry} Condensed
    :methods: save, to_onnx
    :fields:
    What it raises, and what to read next.
    ```

`:methods:` names the methods and properties that a user calls, `:fields:` says that the parameters are the fields of a result. Names in
backticks that have an entry become links."""
import importlib, inspect, re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from fastcore.docments import docments
from fastcore.nbio import read_nb
from sphinx.util.docutils import SphinxDirective

packages = 'sparsify', 'condense', 'inputs', 'learner', 'graph', 'core', 'studies.datasets'
_fence = re.compile(r'^```\{entry\} (\S+)', flags=re.MULTILINE)

def entries_in(folder):
    "The page of each name that has an entry, among the notebooks of a folder."
    found = {}
    for p in sorted(Path(folder).rglob('*.ipynb')):
        if p.parent.name.startswith(('.','_')): continue
        for c in read_nb(p).cells:
            if c.cell_type=='markdown': found |= {n:p for n in _fence.findall(c.source)}
    return found

def find(name):
    "The object that a public name stands for: of `fasterprune.all`, of a package, or a method of fastai's `Learner`."
    first,*rest = name.split('.')
    for module in ('fasterprune.all', *[f'fasterprune.{o}' for o in packages], 'fastai.learner'):
        o = getattr(importlib.import_module(module), first, None)
        if o is None: continue
        for r in rest: o = inspect.getattr_static(o, r) if isinstance(inspect.getattr_static(o, r, None), property) else getattr(o, r)
        return o
    raise AttributeError(f'{name} is no public name')

def _short(o):
    "A type or a default as a reader writes it."
    if o is inspect.Parameter.empty or o is None or o is type(None): return ''
    if isinstance(o, str): return o
    if isinstance(o, type) and not hasattr(o, '__args__'): return o.__name__
    return re.sub(r'\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])', '', getattr(o, '__name__', None) or str(o)).replace(' | ', '|').replace('NoneType', 'None')

def _default(o):
    "A default as the signature shows it, `None` if there is none."
    if o is inspect.Parameter.empty: return None
    if type(o).__name__=='_HAS_DEFAULT_FACTORY_CLASS': return '...'
    if callable(o) and hasattr(o, '__name__'): return '...' if o.__name__.startswith('_') else o.__name__
    text = repr(o) if o==() else repr(o).removesuffix('()')
    return text if len(text)<30 and not text.startswith('<') else '...'

def is_called(o):
    "Is it a class, a function or a method? Everything else is a value."
    return isinstance(o, type) and not hasattr(o, '__args__') or inspect.isroutine(o)

def parameters(o, bound=False):
    "The signature, without the first parameter if `bound`; name, type, default and meaning of each; type and meaning of what comes back."
    sig,docs = inspect.signature(o),docments(o, full=True)
    own = not isinstance(o, type) or any('__init__' in vars(c) for c in o.__mro__ if c.__module__.startswith('fasterprune'))
    if bound or not own or 'self' in sig.parameters: sig = sig.replace(parameters=[*sig.parameters.values()][1:] if own else [])
    starred = dict(re.findall(r'^ *\*\*?(\w+),? *# *(.*)$', inspect.getsource(o), flags=re.MULTILINE)) if inspect.isfunction(o) else {}
    def _row(n, p):
        d = docs.get(n) or {}
        return n,_short(d.get('anno')),_default(p.default),d.get('docment') or starred.get(n, '')
    back = docs.get('return') or {}
    meaning = back.get('docment') or ''
    return sig,[_row(*o) for o in sig.parameters.items()],(_short(back.get('anno')),'' if meaning in starred.values() else meaning) # docments takes that for it

def _documented(o):
    "The first sentence about an object."
    return ' '.join((inspect.getdoc(o) or '').split('\n\n')[0].split())

class Entry(SphinxDirective):
    "What a name takes and gives, then the text below it."
    required_arguments,has_content = 1,True
    option_spec = dict(methods=directives.unchanged, fields=directives.flag)

    def linked(self, text):
        known = self.env.app.entry_pages
        return re.sub(r'`([A-Za-z_][\w.]*)`', lambda m: f'{{py:obj}}`{m[1]}`' if m[1] in known else m[0], text)

    def table(self, rows, what):
        "Rows of name, type, default and meaning as a table."
        lines = [':::{list-table}', ':header-rows: 1', ':class: parameters', f'* - {what}', '  - Default', '  - Meaning']
        for name,kind,default,meaning in rows:
            lines += [f'* - `{name}`' + (f' [{kind}]{{.kind}}' if kind else ''), f'  - {f"`{default}`" if default is not None else ""}', f'  - {self.linked(meaning)}']
        return lines + [':::', '']

    def back(self, kind, meaning):
        "What comes back: its type and meaning, if one of them is known."
        return [f'**Returns** {f"[{kind}]{{.kind}} " if kind else ""}{self.linked(meaning)}', ''] if kind or meaning else []

    def described(self, name, o, what='Parameter'):
        "Signature, promise, parameters and what comes back of an object, as MyST."
        if isinstance(o, property): return 'property',name,[self.linked(_documented(o)), '', *self.back(*parameters(o.fget, True)[2])]
        if not is_called(o): return 'data',name,[''] # a value has no words of its own: the text below it says what it is
        kind = 'class' if isinstance(o, type) else 'method' if '.' in name else 'function'
        sig,rows,(back,meaning) = parameters(o, kind=='method')
        def _arg(n, d, p): return {p.VAR_POSITIONAL:'*', p.VAR_KEYWORD:'**'}.get(p.kind, '')+n + (f'={d}' if d is not None else '')
        args = ', '.join(_arg(n, d, p) for (n,_,d,_),p in zip(rows, sig.parameters.values()))
        lines = [self.linked(_documented(o)), '']
        if any(r[3] for r in rows): lines += self.table(rows, what)
        if kind!='class': lines += self.back(back, meaning)
        return kind,f'{name}({args})',lines

    def run(self):
        name = self.arguments[0]
        o = find(name)
        kind,signature,lines = self.described(name, o, 'Field' if 'fields' in self.options else 'Parameter')
        out = [f':::::::{{py:{kind}}} {signature}', '', *lines, *map(self.linked, self.content), '']
        for m in [s.strip() for s in self.options.get('methods', '').split(',') if s.strip()]:
            part = inspect.getattr_static(o, m, None)
            kind,signature,lines = self.described(f'{name}.{m}', part if isinstance(part, property) else getattr(o, m))
            out += [f'::::::{{py:{kind}}} {signature}', '', *lines, '::::::', '']
        out += [':::::::']
        node = nodes.container(classes=['entry'])
        self.state.nested_parse(StringList(out, self.get_source_info()[0]), self.content_offset, node)
        return node.children

def _collect(app): app.entry_pages = entries_in(app.srcdir)

def setup(app):
    app.add_directive('entry', Entry)
    app.connect('builder-inited', _collect)
    return dict(parallel_read_safe=True)
