"""How the house is built (ARCHITECTURE.md): short lines, functions and modules, whole classes, imports by name.

What is over a limit stands here with its reason, and a reason that is not needed any more is a fault, too."""
import ast, re
from pathlib import Path


root = Path(__file__).resolve().parent.parent
lib = root/'fasterprune'
modules = {p.relative_to(lib).as_posix():ast.parse(p.read_text(encoding='utf-8')) for p in sorted(lib.rglob('*.py')) if p.name!='_modidx.py'}
our_classes = {n.name for tree in modules.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}

def lines(name): return (lib/name).read_text(encoding='utf-8').splitlines()
def written(name):
    "The lines of a module, less the list of names that nbdev makes."
    return re.sub(r"^__all__ = \[[^]]*\]", '', '\n'.join(lines(name)), flags=re.MULTILINE).splitlines()

def functions():
    for name,tree in modules.items():
        for n in ast.walk(tree):
            if isinstance(n, ast.FunctionDef): yield name,n

def patched(f):
    "The class that a function is patched onto, if it is."
    if not any(getattr(getattr(d, 'func', d), 'id', '')=='patch' for d in f.decorator_list): return None
    return getattr(f.args.args[0].annotation, 'id', None)

def check(found, allowed, what):
    "`found` is no more than `allowed`, and `allowed` no more than `found`."
    new = {k:v for k,v in found.items() if v > allowed.get(k, 0)}
    assert not new, f'{what}: {new}'
    spare = {k:v for k,v in allowed.items() if found.get(k, 0) < v}
    assert not spare, f'better than it says in tests/test_house.py, lower the numbers there: { {k:found.get(k, 0) for k in spare} }'

def branches(stmts):
    "The ways through some statements that they add, as ruff's PLR0912 counts them."
    n = 0
    for s in stmts:
        if isinstance(s, (ast.FunctionDef, ast.ClassDef)): continue
        n += isinstance(s, (ast.If, ast.For, ast.While))
        if isinstance(s, ast.If): n += bool(s.orelse) and not (len(s.orelse)==1 and isinstance(s.orelse[0], ast.If))
        elif getattr(s, 'orelse', None): n += 1
        if isinstance(s, ast.Try): n += bool(s.finalbody)
        for h in getattr(s, 'handlers', []): n += 1+branches(h.body)
        for part in ('body', 'orelse', 'finalbody'): n += branches(getattr(s, part, []))
    return n

long_lines = {}
long_modules = {}
large_functions = {}  # 'module.py:function': why

def test_lines_have_120_characters():
    found = {name:sum(len(l)>120 and not l.startswith('# %%') for l in written(name)) for name in modules}
    check({k:v for k,v in found.items() if v}, long_lines, 'lines over 120 characters')

def test_modules_have_300_lines():
    check({name:len(lines(name)) for name in modules if len(lines(name)) > 300}, long_modules, 'modules over 300 lines')

def test_functions_have_40_lines_and_12_branches():
    found = {f'{name}:{f.name}' for name,f in functions() if f.end_lineno-f.lineno >= 40 or branches(f.body) > 12}
    assert found==set(large_functions), f'too large: {found-set(large_functions)}; not too large any more: {set(large_functions)-found}'
    assert len(large_functions) <= 5

def test_classes_are_whole():
    found = [f'{name}: {f.name} of {patched(f)}' for name,f in functions() if patched(f) in our_classes]
    assert not found, f'patched onto classes of ours: {found}'

def test_imports_are_by_name():
    found = [name for name,tree in modules.items() for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.names[0].name=='*']
    assert not found, f'star imports: {found}'

def test_private_names_stay_at_home():
    "What another module needs has a name without an underscore."
    others = {f'{d}/{p.name}':ast.parse(p.read_text(encoding='utf-8')) for d in ('tests','benchmarks') for p in sorted((root/d).rglob('*.py'))}
    imports = [(name, n) for name,tree in {**modules, **others}.items() for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    found = [f'{name}: {a.name}' for name,n in imports if n.level or (n.module or '').startswith('fasterprune')
        for a in n.names if a.name[0]=='_' and a.name not in ('_moved', '_modidx')]
    assert not found, f'private names of other modules: {found}'

def test_each_module_says_what_it_is_for():
    bare = [name for name,tree in modules.items() if tree.body and name not in ('__init__.py', 'graph/ops/__init__.py') and not ast.get_docstring(tree)]
    assert not bare, f'without a first line that says why: {bare}'

tests = {p.relative_to(root/'tests').as_posix():p for p in sorted((root/'tests').rglob('*.py'))}

def test_test_files_have_500_lines_and_say_what_they_are_about():
    long = {name:n for name,p in tests.items() if (n := len(p.read_text(encoding='utf-8').splitlines())) > 500}
    assert not long, f'test files over 500 lines: {long}'
    bare = [name for name,p in tests.items() if not ast.get_docstring(ast.parse(p.read_text(encoding='utf-8')))]
    assert not bare, f'test files without a docstring: {bare}'

def test_no_test_asks_for_an_absolute_time():
    "On a busy machine it would fail: times are ratios, in benchmarks/."
    clock = re.compile(r'assert[^\n]*(perf_counter|time\.time|process_time)\(')
    assert not (found := [name for name,p in tests.items() if clock.search(p.read_text(encoding='utf-8')) and name!='test_house.py'])
