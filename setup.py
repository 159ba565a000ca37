"Packaging: everything comes from settings.ini, except what must stand in pyproject.toml (name, python, build system)."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

licenses = dict(apache2='Apache-2.0', mit='MIT', bsd3='BSD-3-Clause')
statuses = ['', '1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive']
classifiers = [f'Development Status :: {statuses[int(cfg["status"])]}', 'Intended Audience :: Developers',
    'Intended Audience :: Science/Research', 'Programming Language :: Python :: 3', 'Programming Language :: Python :: 3 :: Only',
    'Topic :: Scientific/Engineering :: Artificial Intelligence']
extras = {k.removesuffix('_requirements'): v.split() for k,v in cfg.items() if k.endswith('_requirements')}
lib = cfg['lib_name']

urls = dict(Documentation=cfg['doc_url'], Source=cfg['git_url'], Issues=cfg['git_url']+'/issues')
entry_points = dict(console_scripts=cfg['console_scripts'].split(), nbdev=[f'{lib}={lib}._modidx:d'])
readme = (here/'README.md').read_text(encoding='utf-8')

setup(name=lib, version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(), classifiers=classifiers,
    long_description=readme, long_description_content_type='text/markdown', url=cfg['git_url'], project_urls=urls,
    author=cfg['author'], author_email=cfg['author_email'], license=licenses[cfg['license']], license_files=['LICENSE'],
    python_requires=f'>={cfg["min_python"]}', install_requires=cfg['requirements'].split(), extras_require=extras,
    packages=find_packages(include=[lib, f'{lib}.*']), package_data={lib:['py.typed']}, include_package_data=False, zip_safe=False, entry_points=entry_points)
