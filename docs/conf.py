"Sphinx settings. The pages are written to docs/_proc by docs/build.py; all facts about the project come from settings.ini."
import sys
from configparser import ConfigParser
from html import escape
from pathlib import Path
from docutils.nodes import SkipNode, block_quote, paragraph
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).resolve().parent))
_ini = ConfigParser(delimiters=['='])
_ini.read(Path(__file__).resolve().parent.parent/'settings.ini', encoding='utf-8')
_cfg = _ini['DEFAULT']

project,author,release = _cfg['lib_name'],_cfg['author'],_cfg['version']
copyright = author
extensions = ['myst_nb', 'entries']
nitpicky = True

nb_execution_mode = 'off'  # the outputs saved in the notebooks are the page
nb_merge_streams = True
nb_render_markdown_format = 'myst'
myst_enable_extensions = ['amsmath', 'attrs_inline', 'colon_fence', 'deflist', 'dollarmath', 'tasklist']
myst_heading_anchors = 4

html_theme = 'sphinx_book_theme'
html_title = f'{project} {release}'
html_baseurl = _cfg['doc_url']
html_static_path = ['static']
html_favicon = 'static/icon.svg'
html_context = dict(default_mode='auto')
html_css_files = ['site.css']
html_show_sphinx = False
html_search_scorer = str(Path(__file__).resolve().parent/'scorer.js')
python_maximum_signature_line_length = 70
python_trailing_comma_in_multi_line_signatures = False
python_use_unqualified_type_names = True
add_module_names = False
html_copy_source = False
pygments_style = 'default'
html_math_renderer = 'mathml'  # in the page itself: formulas need neither a script nor a network
html_theme_options = dict(repository_url=_cfg['git_url'], repository_branch=_cfg['branch'], use_repository_button=True,
    use_issues_button=True, use_download_button=False, use_fullscreen_button=False, home_page_in_toc=True, navbar_persistent=[],
    show_toc_level=2, show_navbar_depth=1, footer_content_items=['copyright.html'], pygments_light_style='a11y-high-contrast-light', pygments_dark_style='a11y-high-contrast-dark')

def _inline_math(self, node):
    self.body.append(convert(node.astext()))
    raise SkipNode

def _block_math(self, node):
    self.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise SkipNode

def _describe(app, page, template, context, doctree):
    "The promise of a page, or how it begins, is what search engines and previews show."
    quote = doctree and next(doctree.findall(block_quote), next(doctree.findall(paragraph), None))
    if not quote: return
    text = escape(' '.join(quote.astext().split()), quote=True)
    context['metatags'] += f'<meta name="description" content="{text}"><meta property="og:description" content="{text}">'

def setup(app):
    app.add_html_math_renderer('mathml', (_inline_math, None), (_block_math, None))
    app.connect('html-page-context', _describe)
