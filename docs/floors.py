"""Draw the floors of the library from its own imports: `python docs/floors.py` writes docs/static/floors.svg.

The order of the floors stands in pyproject.toml, where import-linter reads it; modules and what they import are read from the code."""
import ast, tomllib
from html import escape
from pathlib import Path

root = Path(__file__).resolve().parent.parent
lib = root/'fasterprune'
width,line,gap,pad = 1000,19,14,12

def floors():
    "Packages by floor, the upper ones first."
    contract = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['tool']['importlinter']['contracts'][0]
    return [[p.strip().removeprefix('fasterprune.') for p in layer.split('|')] for layer in contract['layers']]

def modules(package):
    "Modules of a package, in the order of their notebooks."
    if (lib/f'{package}.py').exists(): return []
    order = sorted((root/'nbs'/package).rglob('[0-9]*.ipynb'), key=lambda p: [part.lstrip('0123456789_') and part for part in p.relative_to(root/'nbs'/package).parts])
    names = ['.'.join(part.partition('_')[2] if part[0].isdigit() else part for part in p.relative_to(root/'nbs'/package).with_suffix('').parts) for p in order]
    return [n for n in names if (lib/package/(n.replace('.', '/')+'.py')).exists()]

def promise(package):
    "The first line of a package or module."
    path = lib/f'{package}.py' if (lib/f'{package}.py').exists() else lib/package/'__init__.py'
    return (ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '').replace('`', '')

def imported(package):
    "Packages below that a package imports."
    paths = [lib/f'{package}.py'] if (lib/f'{package}.py').exists() else sorted((lib/package).rglob('*.py'))
    found = set()
    for p in paths:
        inside = p.relative_to(lib).parts[:-1]
        for n in ast.walk(ast.parse(p.read_text(encoding='utf-8'))):
            if not isinstance(n, ast.ImportFrom): continue
            base = [*inside[:len(inside)-n.level+1], *(n.module or '').split('.')] if n.level else (n.module or '').split('.')[1:] if (n.module or '').startswith('fasterprune.') else []
            if base and base[0]: found.add(base[0])
    return found-{package,'_moved'}

def rows(names, room):
    "Names in lines that fit `room` pixels."
    lines = ['']
    for n in names:
        longer = f'{lines[-1]}, {n}'.lstrip(', ')
        if len(longer)*6.6 > room: lines.append(n)
        else: lines[-1] = longer
    return lines

def text(x, y, s, **style):
    attrs = ''.join(f' {k.replace("_", "-")}="{v}"' for k,v in style.items())
    return f'<text x="{x}" y="{y}"{attrs}>{escape(s)}</text>'

def svg():
    "The picture: a row for each floor, a box for each package."
    parts,y = [],pad
    for floor in floors():
        room = (width-2*pad-gap*(len(floor)-1))/len(floor)
        boxes = [(p, rows(modules(p), room-2*pad), sorted(imported(p))) for p in floor]
        height = max(2.2*line + line*len(l)*bool(l[0]) + line*bool(i) for _,l,i in boxes)+pad
        for k,(package,names,below) in enumerate(boxes):
            x = pad+k*(room+gap)
            parts.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{room:.0f}" height="{height:.0f}" rx="6" fill="#eff5fb" stroke="#2171b5"/>')
            parts.append(text(f'{x+pad:.0f}', f'{y+line:.0f}', package, font_weight='bold', font_size=15, fill='#08306b'))
            parts.append(text(f'{x+pad:.0f}', f'{y+2*line:.0f}', promise(package), fill='#444'))
            at = y+3*line
            for l in filter(None, names):
                parts.append(text(f'{x+pad:.0f}', f'{at:.0f}', l, font_family='monospace', font_size=11, fill='#08519c'))
                at += line
            if below: parts.append(text(f'{x+pad:.0f}', f'{at:.0f}', 'stands on '+', '.join(below), fill='#777', font_size=11))
        y += height+gap
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y:.0f}" font-family="system-ui, sans-serif" font-size="12" role="img">'
    title = '<title>The floors of fasterprune: each package imports only from those below it</title>'
    return '\n'.join([head, title, f'<rect width="{width}" height="{y:.0f}" fill="white"/>', *parts, '</svg>', ''])

if __name__=='__main__':
    (root/'docs'/'static'/'floors.svg').write_text(svg(), encoding='utf-8')
    print('docs/static/floors.svg written')
