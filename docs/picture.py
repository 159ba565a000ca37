"Draw the picture of the home page: a network after training, half of whose filters are zero, and the same network without them."
from pathlib import Path

target = Path(__file__).resolve().parent.parent/'nbs'/'images'/'dense_and_condensed.svg'
# filters of three layers, from the top; 1: alive
layers = ([0,1,1,0,1,0,0,1], [1,0,0,1,1,0,1,0,0,1,0,1], [1,0,1,0,0,1])
colors = '#4c78a8', '#f58518', '#54a24b'
side,gap,apart = 15,4,86

def _height(n): return n*(side+gap)-gap

def network(x, middle, alive_only):
    "The filters of each layer as squares, one above the other, and a line for each pair of filters that are connected."
    columns = []
    for i,states in enumerate(layers):
        states = [s for s in states if s or not alive_only]
        top = middle-_height(len(states))/2
        columns.append([(x+i*apart, top+k*(side+gap), s) for k,s in enumerate(states)])
    def _line(a, b):
        live = a[2] and b[2]
        return f'<path d="M{a[0]+side} {a[1]+side/2:g}L{b[0]} {b[1]+side/2:g}" stroke="{"#8a94a6" if live else "#d9dde4"}" stroke-width="{.9 if live else .5}"/>'
    lines = [_line(a, b) for left,right in zip(columns, columns[1:]) for a in left for b in right]
    def _square(color, x, y, s):
        look = f'fill="{color}"' if s else 'fill="#fff" stroke="#b6bdc9" stroke-dasharray="2.5 2"'
        return f'<rect x="{x}" y="{y:g}" width="{side}" height="{side}" rx="3" {look}/>'
    return lines + [_square(colors[i], *o) for i,column in enumerate(columns) for o in column]

def svg():
    width,height,middle = 640,330,168
    def _text(x, y, s, size=15, weight=400, color='#2b3340', anchor='middle'):
        return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{color}" text-anchor="{anchor}">{s}</text>'
    parts = [f'<rect width="{width}" height="{height}" rx="10" fill="#fff"/>', *network(40, middle, False), *network(415, middle, True),
        _text(133, 28, 'trained with a callback', weight=600), _text(133, 318, 'half of the filters are zero', 14, color='#5b6574'),
        _text(508, 28, 'condensed', weight=600), _text(508, 318, 'gone, with the same outputs', 14, color='#5b6574'),
        f'<path d="M268 {middle}H378m-9 -7 9 7 -9 7" fill="none" stroke="#2b3340" stroke-width="2"/>',
        f'<g font-family="ui-monospace,Menlo,monospace">{_text(321, middle-14, "condense()", 14)}</g>']
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui,-apple-system,Segoe UI,Helvetica,Arial,sans-serif" role="img">' \
        f'<title>A trained network with zero filters, and the condensed one</title>{"".join(parts)}</svg>\n'

if __name__=='__main__':
    target.parent.mkdir(exist_ok=True)
    target.write_text(svg(), encoding='utf-8')
