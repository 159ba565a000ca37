"What stands between the notebooks and the README and site: prose kept, Quarto's dialect gone, hidden cells hidden, links right."
import runpy, sys
import pytest
from pathlib import Path
from fastcore.nbio import mk_cell, new_nb, write_nb

docs = Path(__file__).resolve().parents[1]/'docs'
sys.path.insert(0, str(docs))
readme,build,convert = (runpy.run_path(str(docs/o)) for o in ('readme.py', 'build.py', 'convert.py'))

def make(tmp_path, *cells):
    "The README of a notebook with `cells`."
    write_nb(new_nb(cells), tmp_path/'index.ipynb')
    return readme['readme'](tmp_path/'index.ipynb').split('-->\n\n', 1)[1]

def output(kind, **data): return dict(output_type=kind, metadata={}, **data)

def test_hidden_cells_and_directives(tmp_path):
    cells = [mk_cell(f'#| {d}\nsecret = 1') for d in ('hide', 'export', 'exporti', 'default_exp core', 'include: false', 'echo: false')]
    assert make(tmp_path, *cells, mk_cell('#| eval: false\nfit()'))=='```python\nfit()\n```\n'

def test_outputs(tmp_path):
    out = [output('stream', name='stdout', text=['a\n', '\x1b[31mb\x1b[0m\n']),
        output('execute_result', data={'text/plain': ['| t |'], 'text/markdown': ['| t |\n', '|---|']}),
        output('display_data', data={'text/plain': ['<Figure>'], 'image/png': 'x'})]
    assert make(tmp_path, mk_cell('f()', outputs=out))=='```python\nf()\n```\n\n```text\na\nb\n```\n\n| t |\n|---|\n'
    assert make(tmp_path, mk_cell('#| output: false\nf()', outputs=out))=='```python\nf()\n```\n'

def test_dialect(tmp_path):
    md = '## Title {#sec-x .unnumbered}\n\n[a](04_sparsify.ipynb){.btn} [b](../LICENSE) [c](https://x.org) `{.kept}` $x^{.5}$'
    want = '## Title\n\n[a](nbs/04_sparsify.ipynb) [b](LICENSE) [c](https://x.org) `{.kept}` $x^{.5}$\n'
    assert make(tmp_path, mk_cell(md, 'markdown'))==want
    note = '::: {.callout-note}\n## Mind\n\nOne\n\nTwo\n:::\n\nafter'
    assert make(tmp_path, mk_cell(note, 'markdown'))=='> **Mind**\n>\n> One\n>\n> Two\n\nafter\n'

def test_code_is_left_alone(tmp_path):
    code = '```python\nx = d["a"]{.b}\n::: {.callout-note}\n```'
    assert make(tmp_path, mk_cell(code, 'markdown'))==code+'\n'

def test_links_of_the_site():
    link,shown,here,blob = (convert[o] for o in ('link', 'shown', 'here', 'blob'))
    page,tutorial = Path('04_sparsify.ipynb'),Path('tutorials/01_first.ipynb')
    shown[Path('schedules')] = {'schedule', 'schedule.plot'}
    assert link(here+'schedules.html#schedule.plot', page)=='schedules.ipynb#scheduleplot'
    assert link(here+'schedules.html#schedule.hidden', tutorial)=='../schedules.ipynb#schedule'
    assert link(here+'schedules.html#other', page)=='schedules.ipynb'
    assert link('00_schedules.ipynb#by-name', page)=='schedules.ipynb#by-name'
    assert link('../05_condense.ipynb', tutorial)=='../condense.ipynb'
    assert link('../CHANGELOG.md', page)==blob+'CHANGELOG.md'
    for o in ('https://x.org/a#b', '#here', 'images/a.png'): assert link(o, page)==o

def test_show_doc_for_the_site():
    md = '---\n\n[source](x.py#L3){target="_blank" style="float:right"}\n\n### Schedule.plot\n\n```python\ndef plot(\n    m:torch.nn.modules.module.Module\n)->__main__.Schedule:\n```\n\n*Doc*'
    want = '#### `Schedule.plot`\n\n[source](x.py#L3){.source}\n\n```python\ndef plot(\n    m:Module\n)->Schedule:\n```\n\n*Doc*'
    assert convert['show_doc_md'](md, 4)==want

def test_pages_for_colab_install_this_version_first():
    from fastcore.nbio import read_nb
    colab = runpy.run_path(str(docs/'colab.py'))
    def _sources(nb): return [c.source for c in nb.cells]
    for path in colab['runnable'](): assert _sources(read_nb(path))==_sources(colab['with_install'](read_nb(path))), f'{path}: run `python docs/colab.py`'
    home = (docs.parent/'nbs'/'index.ipynb').read_text(encoding='utf-8')
    assert f'blob/v{convert["cfg"]["version"]}/nbs/getting_started.ipynb' in home

def test_a_page_in_no_group_is_named(monkeypatch):
    import build
    monkeypatch.setattr(build, 'groups', build.groups[1:])
    with pytest.raises(SystemExit, match='in no group: getting_started'): build.notebooks()

def test_tables_in_the_readme():
    "Those of pandas, with two rows in the head, and with an index in which names span rows."
    import pandas as pd
    df = pd.DataFrame(dict(n=[1,2,3]), pd.MultiIndex.from_tuples([('a','x'),('a','y'),('b','x')], names=['k','l']))
    assert readme['table'](df.to_html())=='| k | l | n |\n| --- | --- | --- |\n| a | x | 1 |\n|  | y | 2 |\n| b | x | 3 |'
    assert readme['table'](df.loc['b'].to_html())=='| l | n |\n| --- | --- |\n| x | 3 |'
