"""The built site as a reader meets it, in a real browser: `python docs/check_site.py` says what is wrong, where.

Links and anchors, descriptions and sizes are read in the files; errors of the console, missing pictures, what is wider than the screen, where the first example stands,
contrast in both themes, and what a search finds first are seen in Chromium, at the width of a desktop and of a phone."""
import re, sys, threading
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import browser

site = Path(__file__).resolve().parent/'_build'/'html'
widths = 1280, 390
readers = 'getting_started', 'tutorials/', 'howto/', 'coming_from/', 'explain/', 'papers/', 'benchmarks', 'reference/', 'index'
searches = {'quickstart':'getting_started', 'mixed precision':'howto/mixed_precision', 'multi gpu':'howto/several_gpus', 'load_learner':('getting_started','tutorials/','howto/'),
    'early stopping':'howto/fine_tune', 'fasterai':'coming_from/fasterai', 'YOLO':('howto/why_kept','tutorials/pytorch'), 'unet':'tutorials/segmentation', 'onnx':'tutorials/deploy',
    'vision_learner':('getting_started','tutorials/vision'), 'tabular_learner':'tutorials/tabular', 'text_classifier_learner':'tutorials/text', 'transformer':'tutorials/transformer',
    'lottery ticket':('tutorials/lottery_tickets','reference/criteria/tickets'), 'distillation':'howto/distillation', 'Torch-Pruning':'coming_from/torch_pruning', 'LassoNet':'coming_from/lassonet'}

class Page(HTMLParser):
    "Links, pictures, anchors and the description of a page."
    def __init__(self, path):
        super().__init__()
        self.path,self.links,self.images,self.ids,self.description,self.redirect = path,[],[],set(),'',False
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a: self.ids.add(a['id'])
        if tag=='a' and a.get('href'): self.links.append(a['href'])
        if tag=='img': self.images.append((a.get('src', ''),a.get('alt', '')))
        if tag=='meta' and a.get('name')=='description': self.description = a.get('content', '')
        if tag=='meta' and a.get('http-equiv')=='refresh': self.redirect = True

def pages():
    "All pages that are read, by name."
    found = {p.relative_to(site).with_suffix('').as_posix(): Page(p) for p in sorted(site.rglob('*.html')) if '_static' not in p.parts and p.parent.name!='_modules'}
    return {n:p for n,p in found.items() if not p.redirect and n not in ('404','search','genindex','py-modindex')}

def in_files(all_pages):
    "What is wrong with links, anchors, pictures, descriptions and sizes."
    parsed = {p.path.resolve():p for p in all_pages.values()}
    def _page(path):
        if path not in parsed: parsed[path] = Page(path)
        return parsed[path]
    for name,p in all_pages.items():
        for href in set(p.links):
            target,anchor = urldefrag(href)
            if re.match(r'[a-z]+:', target): continue
            path = (p.path.parent/unquote(target)).resolve() if target else p.path.resolve()
            if not path.exists(): yield name,f'a link leads nowhere: {href}'
            elif anchor and path.suffix=='.html' and unquote(anchor) not in _page(path).ids: yield name,f'a link leads to an anchor that is not there: {href}'
        for src,alt in p.images:
            if not src.startswith('data:') and not (p.path.parent/unquote(src)).exists(): yield name,f'a picture is missing: {src}'
            if len(alt)<10 or alt.startswith(('_images','../')): yield name,f'a picture has no alt text that says what is seen: {src[:60]} {alt!r}'
        if not p.description: yield name,'the page has no description: put a promise ("> ...") under the title'
        size = p.path.stat().st_size + sum((p.path.parent/unquote(s)).stat().st_size for s,_ in p.images if (p.path.parent/unquote(s)).is_file())
        if size>1.5e6: yield name,f'the page weighs {size/1e6:.1f} MB, of 1.5'

# What stands out at the right, unless one can scroll to it inside of its box; code and tables of outputs may scroll.
_overflow = '''() => {
  const wide = document.documentElement.scrollWidth - window.innerWidth, found = wide > 1 ? [`the page is ${wide} px wider than the screen`] : [];
  const scrolls = e => { for (let o = e; o && o.tagName != 'ARTICLE'; o = o.parentElement) if (['auto','scroll','hidden'].includes(getComputedStyle(o).overflowX) && !o.matches('.pst-scrollable-table-container:has(table.parameters)')) return true; return false; };
  for (const e of document.querySelectorAll('article :is(p, li, h1, h2, h3, h4, dt.sig, table.parameters, img, svg)')) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > window.innerWidth + 1 && !scrolls(e)) found.push(`${e.tagName.toLowerCase()} ends at ${Math.round(box.right)} px: ${e.textContent.trim().slice(0, 60)}`);
  }
  return found;
}'''
_first_example = '''() => { const e = document.querySelector('article .cell_input, article div[class*="highlight-"]'); return e && e.getBoundingClientRect().top + window.scrollY; }'''

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

def in_browser(all_pages, base):
    "What is seen to be wrong with each page."
    with browser.opened() as b:
        tab,said = b.new_page(),[]
        tab.on('console', lambda m: said.append(f'the console says: {m.text[:150]}') if m.type=='error' else None)
        tab.on('pageerror', lambda e: said.append(f'a script fails: {str(e)[:150]}'))
        tab.on('requestfailed', lambda r: said.append(f'not loaded: {r.url}'))
        for name in all_pages:
            said.clear()
            for width in widths:
                tab.set_viewport_size(dict(width=width, height=900))
                if width==widths[0]:
                    tab.goto(f'{base}/{name}.html')
                    y = tab.evaluate(_first_example)
                    if y and y>900: yield name,f'the first example is {y:.0f} px down, of 900'
                    broken = tab.evaluate("() => [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
                    yield from ((name,f'a picture is not shown: {o[:80]}') for o in broken)
                yield from ((name,f'{o} (at {width} px)') for o in tab.evaluate(_overflow))
            yield from ((name,o) for o in dict.fromkeys(said))

def contrast(all_pages, base):
    "What is hard to read in one of the themes, by the rules of WCAG AA, on the first page of each folder and all starting points."
    from axe_playwright_python.sync_playwright import Axe
    sample = {n.rpartition('/')[0] or n:n for n in reversed(all_pages)}.values() # one of each folder, and those at the top
    axe = Axe()
    with browser.opened() as b:
        tab = b.new_page(viewport=dict(width=widths[0], height=900))
        for name in sample:
            tab.goto(f'{base}/{name}.html')
            for theme in ('light','dark'):
                tab.evaluate(f"document.documentElement.dataset.theme = document.documentElement.dataset.mode = '{theme}'")
                tab.wait_for_timeout(400) # colors change slowly
                for v in axe.run(tab, options=dict(runOnly=['color-contrast','image-alt','link-name','duplicate-id'])).response['violations']:
                    for node in v['nodes'][:3]: yield name,f'{v["id"]} ({theme}): {node["html"][:90]}'

def found_first(base):
    "Searches that do not lead to the page that answers them."
    with browser.opened() as b:
        tab = b.new_page()
        for term,wanted in searches.items():
            tab.goto(f'{base}/search.html?q={term}')
            try: tab.wait_for_selector('#search-results ul.search li a', timeout=20_000)
            except Exception:
                yield 'search',f'nothing is found for {term!r}'
                continue
            tab.wait_for_timeout(700)
            hits = tab.eval_on_selector_all('#search-results ul.search li > a', 'es => es.map(e => e.getAttribute("href"))')
            if not hits[0].startswith(wanted): yield 'search',f'{term!r} finds {hits[:3]} first, not {wanted}'

def main():
    if not (site/'index.html').exists(): sys.exit('the site is not built: run `make docs`')
    all_pages = pages()
    faults = [*in_files(all_pages)]
    if browser.browser():
        server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f'http://127.0.0.1:{server.server_port}'
        for check in (partial(in_browser, all_pages), partial(contrast, all_pages), found_first): faults += check(base)
    else: print('no browser: the pages were read, not seen (`python docs/browser.py` gets one)')
    for name,what in faults: print(f'{name}: {what}')
    print(f'{len(all_pages)} pages, {len(faults)} faults', dict(Counter(n.partition("/")[0] for n,_ in faults)))
    return bool(faults)

if __name__=='__main__': sys.exit(main())
