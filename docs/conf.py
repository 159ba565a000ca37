"Sphinx settings. The pages are written to docs/_proc by docs/build.py; all facts about the project come from settings.ini."
from configparser import ConfigParser
from pathlib import Path

_ini = ConfigParser(delimiters=['='])
_ini.read(Path(__file__).resolve().parent.parent/'settings.ini', encoding='utf-8')
_cfg = _ini['DEFAULT']

project,author,release = _cfg['lib_name'],_cfg['author'],_cfg['version']
copyright = author
extensions = ['myst_nb']
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
html_css_files = ['site.css']
html_show_sphinx = False
html_copy_source = False
pygments_style = 'default'
html_theme_options = dict(repository_url=_cfg['git_url'], repository_branch=_cfg['branch'], use_repository_button=True,
    use_issues_button=True, use_download_button=False, use_fullscreen_button=False, home_page_in_toc=True,
    show_toc_level=2, pygments_light_style='friendly', pygments_dark_style='monokai')
