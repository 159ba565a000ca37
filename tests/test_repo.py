"The repository agrees with itself: notebooks and modules, README and its notebook, one version, a package that installs."
import builtins, difflib, json, os, re, runpy, shutil, subprocess, symtable, sys, sysconfig, tarfile, zipfile
from importlib import import_module, metadata
from pathlib import Path
from types import FunctionType
import pytest

root = Path(__file__).resolve().parent.parent
bin_dir = Path(sysconfig.get_path('scripts'))
readme = runpy.run_path(str(root/'docs'/'readme.py'))
cfg = readme['settings']()
lib = cfg['lib_name']
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(root/'nbs').parts))

def modules(folder): return [p.relative_to(folder/lib).as_posix() for p in sorted((folder/lib).rglob('*.py'))]

def run(*cmd, cwd, **env):
    "Run `cmd` in `cwd`, which must succeed; its output is shown if it does not."
    env = {k:v for k,v in os.environ.items() if k not in ('IN_TEST', 'PYTHONPATH')} | env
    r = subprocess.run([str(o) for o in cmd], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert r.returncode==0, f'{" ".join(map(str, cmd))} failed:\n{r.stdout}'
    return r.stdout

def same(old, new, msg, n=20):
    "Fail with `msg` and the first lines that differ, unless the texts `old` and `new` are the same."
    diff = list(difflib.unified_diff(old.splitlines(), new.splitlines(), 'as it is', 'as generated', lineterm='', n=1))
    if old!=new: pytest.fail('\n'.join([msg]+diff[:n]), pytrace=False)

@pytest.fixture
def copy(tmp_path):
    "A copy of what nbdev and the build read, so that no check touches the files someone is working on."
    for o in ('settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'CHANGELOG.md', 'CONTRIBUTING.md'):
        shutil.copy(root/o, tmp_path/o)
    junk = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for o in ('nbs', lib): shutil.copytree(root/o, tmp_path/o, ignore=junk)
    return tmp_path

def test_notebooks_are_clean(copy):
    run(bin_dir/'nbdev-clean', cwd=copy)
    dirty = [p.relative_to(root) for p in notebooks if p.read_bytes()!=(copy/p.relative_to(root)).read_bytes()]
    assert not dirty, f'not clean, run `make clean-nbs`: {", ".join(map(str, dirty))}'

def test_export_in_sync(copy):
    for p in (copy/lib).rglob('*.py'):
        if p!=copy/lib/'__init__.py': p.unlink()
    run(bin_dir/'nbdev-export', cwd=copy)
    for name in sorted(set(modules(root)) | set(modules(copy))):
        old,new = root/lib/name,copy/lib/name
        assert new.exists(), f'{lib}/{name} comes from no notebook: remove it, or write the notebook'
        assert old.exists(), f'{lib}/{name} is missing: run `make export`'
        same(old.read_text(encoding='utf-8'), new.read_text(encoding='utf-8'), f'{lib}/{name} is not what its notebook exports: run `make export`')
    assert (copy/'pyproject.toml').read_text()==(root/'pyproject.toml').read_text(), 'nbdev-export rewrites pyproject.toml'

def test_checks_see_sub_packages(copy):
    "A notebook in a folder that exports to a sub-package: its module is exported, compared and shipped."
    nb = dict(cells=[dict(cell_type='code', execution_count=None, id='a', metadata={}, outputs=[], source='#| default_exp room.deeper.thing'),
        dict(cell_type='code', execution_count=None, id='b', metadata={}, outputs=[], source='#| export\nfrom fasterprune.schedules import Schedule\nx = 1')],
        metadata={}, nbformat=4, nbformat_minor=5)
    (copy/'nbs'/'room').mkdir()
    (copy/'nbs'/'room'/'01_thing.ipynb').write_text(json.dumps(nb), encoding='utf-8')
    run(bin_dir/'nbdev-export', cwd=copy)
    new = set(modules(copy))-set(modules(root))
    assert new=={'room/__init__.py', 'room/deeper/__init__.py', 'room/deeper/thing.py'}
    assert 'from ...schedules import' in (copy/lib/'room/deeper/thing.py').read_text(encoding='utf-8')
    run(sys.executable, '-m', 'build', '--wheel', '--no-isolation', cwd=copy)
    assert {f'{lib}/{o}' for o in new} <= set(zipfile.ZipFile(next((copy/'dist').glob('*.whl'))).namelist())

def test_architecture_is_drawn_from_the_code():
    floors = runpy.run_path(str(root/'docs'/'floors.py'))
    same((root/'docs'/'static'/'floors.svg').read_text(encoding='utf-8'), floors['svg'](), 'docs/static/floors.svg is not what the imports say: run `python docs/floors.py`')

def test_architecture_names_what_is_there():
    "Modules in backticks exist."
    text = (root/'ARCHITECTURE.md').read_text(encoding='utf-8')
    packages = '|'.join(p.parent.name for p in (root/lib).glob('*/__init__.py'))
    gone = [m for m in set(re.findall(rf'`((?:{packages})\.[\w.]+)`', text)) if not (root/lib/(m.replace('.', '/')+'.py')).exists() and not (root/lib/m.replace('.', '/')).is_dir()]
    assert not gone, f'ARCHITECTURE.md names modules that are not there: {gone}'

pages = sorted([*root.glob('*.md'), root/'Makefile', *(root/'docs').rglob('*.md')])
generated = 'docs/_build', 'docs/_proc'

@pytest.mark.parametrize('page', pages, ids=lambda p: p.name)
def test_pages_name_files_that_are_there(page):
    "Paths of files and folders, in links, tables and commands; notebooks also as `NB=condense/15_condenser`."
    text = page.read_text(encoding='utf-8')
    if page.name=='CHANGELOG.md': text = text.split('\n## ')[1] # what was is history
    named = set(re.findall(r'(?<![\w./-])(?:nbs|tests|docs|benchmarks|results|fasterprune)/[\w./*-]*\w', text))
    named |= {f'nbs/{n}.ipynb' for n in re.findall(r'NB=([\w/]+)', text)}
    gone = sorted(o for o in named if not o.startswith(generated) and not list(root.glob(o)))
    assert not gone, f'{page.name} names what is not there: {gone}'

@pytest.mark.parametrize('target', ['export','clean-nbs','readme','docs','lint','test','bench','check NB=inputs/05_callback'])
def test_make_leaves_an_environment_of_others_as_it_is(target):
    "Neither pip nor a new environment: what is there is used, for the package of this folder."
    out = run('make', '-n', *target.split(), f'VENV={sys.prefix}', cwd=root)
    assert 'pip install' not in out and ' -m venv' not in out and f'{sys.prefix}/bin/' in out

def test_outputs_of_cells_that_have_not_changed_stay():
    keep = runpy.run_path(str(root/'docs'/'outputs.py'))['keep_outputs']
    def _cells(sources, outputs): return [dict(source=[s], outputs=[o]) for s,o in zip(sources, outputs)]
    new = _cells('abXd', 'ABCD')
    keep(new, _cells('abcd', '1234'))
    assert [c['outputs'] for c in new]==[['1'],['2'],['C'],['D']]

def test_readme_in_sync():
    same((root/'README.md').read_text(encoding='utf-8'), readme['readme'](), 'README.md is not what nbs/index.ipynb says: run `make readme`')

def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\((?!https?:|#|mailto:)([^)#\s]+)', (root/'README.md').read_text(encoding='utf-8'))
    missing = [o for o in links if not (root/o).exists()]
    assert not missing, f'links in README.md that lead nowhere: {missing}'

@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.stem)
def test_notebook_is_fit_to_be_read(path):
    "A title and a promise first; no error and no path of someone's machine in the saved outputs."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    first = ''.join(cells[0]['source'])
    assert cells[0]['cell_type']=='markdown' and re.match(r'# \S.*\n+> \S', first), 'the first cell must be `# Title` and `> one-line promise`'
    outputs = [o for c in cells for o in c.get('outputs', [])]
    assert not [o for o in outputs if o['output_type']=='error'], 'a saved output is a traceback'
    m = re.search(r'/(?:home|root|Users)/[\w.-]+|[A-Z]:\\\\Users|[\w./-]+/site-packages/[\w./-]+', json.dumps(outputs))
    assert not m, f'a saved output holds the path of a machine: {m[0]}'

def test_only_what_belongs_here_is_tracked():
    "No package, archive, log, picture of a screen or large file: what strays into a folder is not committed with the rest."
    r = subprocess.run(['git','ls-files'], cwd=root, capture_output=True, text=True)
    if r.returncode: pytest.skip('needs git and the repository')
    kinds = {'.py','.ipynb','.csv','.md','.safetensors','.pickle','.yml','.yaml','.txt','.svg','.json','.typed','.toml','.ini','.in','.js','.css','.cff',''}
    tracked = [root/o for o in r.stdout.splitlines()]
    assert tracked and {p.name for p in tracked if p.suffix not in kinds}==set() and {p.name for p in tracked if p.exists() and p.stat().st_size>1e6}==set()

def test_no_path_of_a_machine():
    "In no tracked file that is text, tables of results included."
    r = subprocess.run(['git','ls-files'], cwd=root, capture_output=True, text=True)
    if r.returncode: pytest.skip('needs git and the repository')
    absolute,found = re.compile(r'(?<![\w.~}/-])/(?:home|root|Users|work|check|mnt|data|opt|srv|scratch)/[\w.-]+'),{}
    there,elsewhere = ['/'.join(['',top,'me','x.csv']) for top in ('work','home')],['sparsify{}','~{}','https://a.b{}']
    assert all(absolute.search(o.format(p)) for p in there for o in ('--out {}','"{}"','{}')) and not any(absolute.search(o.format(there[0])) for o in elsewhere)
    for p in [root/o for o in r.stdout.splitlines()]:
        if p.suffix in {'.pickle','.safetensors'} or not p.exists(): continue
        if m := absolute.search(p.read_text(encoding='utf-8')): found[p.relative_to(root).as_posix()] = m[0]
    assert not found

def test_one_version():
    "The same in settings.ini, the package, the changelog and what is installed."
    v = cfg['version']
    assert import_module(lib).__version__==v
    assert re.search(r'^## (\S+)', (root/'CHANGELOG.md').read_text(encoding='utf-8'), re.MULTILINE)[1]==v
    assert metadata.version(lib)==v, 'the installed package is of another version: run `make install`'

def test_pyproject_repeats_settings():
    "What pyproject.toml must say itself is what settings.ini says."
    toml = (root/'pyproject.toml').read_text(encoding='utf-8')
    assert f'\nname = "{lib}"\n' in toml and f'\nrequires-python = ">={cfg["min_python"]}"\n' in toml
    assert cfg['git_url'] not in toml, 'the address of the repository belongs in settings.ini alone'

def test_all_is_what_a_user_needs():
    "Named by hand, not many, each with a sentence that says what it is; a star brings these and no others."
    everything = import_module(f'{lib}.all')
    names = everything.__all__
    assert len(set(names))==len(names) <= 55
    space = {}
    exec(f'from {lib}.all import *', space)
    assert space.keys()-{'__builtins__'}==set(names)
    assert not (bare := [n for n in names if isinstance(o := getattr(everything, n), (type, FunctionType)) and not o.__doc__]), f'without documentation: {bare}'

@pytest.mark.parametrize('package', sorted(p.parent.name for p in (root/lib).glob('*/__init__.py')))
def test_public_names_of_packages_are_documented(package):
    module = import_module(f'{lib}.{package}')
    bare = [n for n in getattr(module, '__all__', []) if isinstance(o := getattr(module, n), (type, FunctionType)) and not o.__doc__]
    assert not bare, f'public names of {lib}.{package} without documentation: {bare}'

no_torchvision = '''
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0]=='torchvision': raise ImportError(f'{name} is not to be imported')
sys.meta_path.insert(0, Block())
'''

def _unknown_names(table, module):
    "Global names that the code of a module asks for, and that are nowhere."
    found = {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    found = {n for n in found if not hasattr(module, n) and not hasattr(builtins, n)}
    return found.union(*[_unknown_names(t, module) for t in table.get_children()])

@pytest.mark.parametrize('name', modules(root))
def test_names_that_are_used_exist(name):
    "With star imports a linter cannot tell, and code that is seldom run would fail only there."
    module,path = import_module('.'.join([lib, *name.removesuffix('.py').removesuffix('__init__').split('/')]).rstrip('.')),root/lib/name
    assert not (unknown := _unknown_names(symtable.symtable(path.read_text(encoding='utf-8'), str(path), 'exec'), module)), f'{name} uses {unknown}'

def test_package_builds_and_installs(copy):
    "The wheel comes out of the sdist, holds the package and nothing else, and imports without torchvision."
    run(sys.executable, '-m', 'build', '--no-isolation', cwd=copy)
    sdist,wheel = next((copy/'dist').glob('*.tar.gz')),next((copy/'dist').glob('*.whl'))
    inside = {n.split('/', 1)[1] for n in tarfile.open(sdist).getnames() if '/' in n}
    assert {'settings.ini', 'README.md', 'LICENSE', 'pyproject.toml', 'setup.py'} <= inside
    files = zipfile.ZipFile(wheel).namelist()
    info = f'{lib}-{cfg["version"]}.dist-info'
    assert {n.split('/')[0] for n in files}=={lib, info}
    assert {n for n in files if n.startswith(lib+'/')}=={f'{lib}/{name}' for name in [*modules(root), 'py.typed']}

    target = copy/'installed'
    run(sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--target', target, wheel, cwd=copy)
    script = no_torchvision + f'import {lib}.all; print({lib}.__file__, {lib}.__version__)'
    out = run(sys.executable, '-c', script, cwd=target).split()
    assert Path(out[-2]).is_relative_to(target.resolve()) and out[-1]==cfg['version']

    meta = metadata.PathDistribution(target/info)
    scripts = {e.name:e.value for e in meta.entry_points if e.group=='console_scripts'}
    assert scripts==dict(o.split('=') for o in cfg['console_scripts'].split())
    assert [e.value for e in meta.entry_points if e.group=='nbdev']==[f'{lib}._modidx:d']
    assert meta.metadata['License-Expression' if 'License-Expression' in meta.metadata else 'License']=='Apache-2.0'
