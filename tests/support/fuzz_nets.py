"Random networks as short programs: hypothesis draws their lines, and a failure prints them."
import re
from dataclasses import dataclass, field, replace
from random import Random
from zlib import crc32
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

def P(*size): return nn.Parameter(torch.randn(*size))
space = dict(torch=torch, nn=nn, F=F, P=P)
pointwise = ('relu', 'sigmoid', 'tanh', 'softplus', 'gelu', 'silu', 'elu', 'selu', 'celu', 'hardswish', 'hardsigmoid', 'hardtanh', 'leaky_relu', 'mish',
    'relu6', 'softsign', 'logsigmoid', 'softshrink', 'hardshrink', 'tanhshrink')
smooth = 'sigmoid', 'tanh', 'softplus', 'gelu', 'silu', 'elu', 'mish', 'softsign', 'logsigmoid', 'leaky_relu'
formulas = ('{}.cos()', '{}.sin()', '{}.clamp(max=2).exp()', '1-{}', '2*{}+1', '{}/4-.5', '{}**2', '{}.abs().sqrt()', '{}*0', '{}.clamp(-1, .5)', '-{}',
    '{}.erf()', '({}.square()+1).rsqrt()', '{}.abs().log1p()', '{0}*{0}.sigmoid()', '{0}-{0}.tanh()', '{}.detach()+.5', 'torch.where({0}>0, {0}, .1*{0}-.2)',
    '{}.float().double()', '{}.abs().add(1).reciprocal()', '{}.maximum({}.cos())', '{}.atan()', 'F.threshold({}, .1, .3)', 'torch.full_like({}, .5)*{}')

def reseed(number, name):
    "What is drawn for one layer does not depend on what others there are."
    torch.manual_seed(crc32(f'{number} {name}'.encode()))

class Model(nn.Module):
    "Computes `run(self, *inputs)` and has `parts`."
    def __init__(self, run, **parts):
        super().__init__()
        for name,part in parts.items(): setattr(self, name, part)
        self.run = run
    def forward(self, *xs): return self.run(self, *xs)

@torch.no_grad()
def zero(layer, rows=(), cols=()):
    "Outputs `rows` of a layer become constants, its bias; inputs `cols` are not read."
    w = layer.weight.transpose(0, 1) if getattr(layer, 'transposed', False) else layer.weight
    w[list(rows)] = 0
    w[:,list(cols)] = 0
    return layer

def compiled(lines, out):
    "The function that computes `out` by `lines` of code."
    names = {}
    exec('def run(self, x0):\n' + '\n'.join(f'    {o}' for o in [*lines, f'return {out}']), space, names)
    return names['run']

@dataclass
class Case:
    "A network, the shape of an item for it, and how its zeros are made."
    shape: tuple                                # of an item; of one with whole numbers if `tokens`
    layers: dict = field(default_factory=dict)  # name -> expression
    ties: list = field(default_factory=list)    # statements
    lines: list = field(default_factory=list)   # of the forward code
    out: str = 'x0'                             # what is returned
    literal: bool = False                       # does the code hold sizes as numbers?
    tokens: bool = False                        # are the inputs whole numbers, below 7?
    number: int = 0                             # what it was made from
    zeros: dict = field(default_factory=dict)   # share of rows, columns, single weights and whole layers; are the rows the same everywhere?

    def net(self):
        "The network in float64 evaluation mode, with its zeros."
        net = Model(compiled(self.lines, self.out))
        for name,expr in self.layers.items():
            reseed(self.number, name)
            setattr(net, name, eval(expr, space))
        for t in self.ties: exec(t, space, {'self':net})
        return make_zeros(net.double(), self.number, **self.zeros).eval()

    def batch(self, n, more=0):
        "`n` items; images and sequences larger by `more`."
        shape = n,*self.shape[:not self.tokens],*[s+more for s in self.shape[not self.tokens:]]
        return torch.randint(7, shape) if self.tokens else torch.randn(shape, dtype=torch.float64)

    def __repr__(self):
        made = [f'self.{k} = {v}' for k,v in self.layers.items()] + self.ties
        return '\n'.join(['', f'number {self.number}, inputs {self.shape}, zeros {self.zeros}', *made, *self.lines, f'return {self.out}'])

@torch.no_grad()
def make_zeros(net, number, rows=0., cols=0., single=0., layers=0., shifts=0., aligned=False, cancel=False):
    "Zero shares of all that has a weight; with `aligned` the first rows everywhere, with `cancel` the sum of the others is zero."
    def hit(n, p): return torch.arange(n) < round(n*p) if aligned else torch.rand(n) < p
    *_,last = '',*dict(net.named_children())
    for layer,m in net.named_modules():
        if layer==last: continue # more than nothing comes out
        for name,p in m.named_parameters(recurse=False):
            norm = p.ndim==1 and name=='weight'
            reseed(number, f'{layer}.{name}')
            if norm: p.uniform_(.3, 1.5)
            elif p.ndim==1: p.uniform_(-.5, .5)
            out = 1 if getattr(m, 'transposed', False) and p.ndim>1 else 0
            if p.ndim>1 and cancel: p -= p.mean([d for d in range(p.ndim) if d!=out], keepdim=True)
            t = p.movedim(out, 0)
            t[hit(len(t), shifts if p.ndim==1 else rows)] = 0
            if p.ndim>1:
                t[:,hit(t.shape[1], cols)] = 0
                p[torch.rand(p.shape) < single] = 0
            if torch.rand(1) < layers: p.zero_()
        if getattr(m, 'running_mean', None) is not None:
            m.running_mean.uniform_(-.5, .5)[hit(len(m.running_mean), shifts)] = 0
            m.running_var.uniform_(.3, 2)
    return net

class Maker:
    "Draws the lines of a `case`, performing them as it goes; what does not fit is left out."
    def __init__(self, rnd, case, simple=False):
        self.simple = simple # no block ties units to each other
        self.rnd,self.case,self.net,self.env,self.layout = rnd,case,nn.Module().double().eval(),{},{}
        self.env['x0'],self.now = case.batch(2),'x0'
        self.layout['x0'] = 'map'

    # ---- drawing
    def pick(self, *options): return self.rnd.choice(options)
    def int(self, a, b): return self.rnd.randint(a, b)
    def flip(self, p=.5): return self.rnd.random() < p
    def divisor(self, n, least=2): return self.pick(*[d for d in range(least, n+1) if n%d==0] or [1])

    # ---- the program
    def t(self, x=None): return self.env[x or self.now]
    def layer(self, expr):
        "The name of a new layer or parameter."
        name = f'l{len(self.case.layers)}'
        if hasattr(self.net, name): delattr(self.net, name) # of a block that did not fit
        setattr(self.net, name, eval(expr, space))
        self.net.double().eval()
        self.case.layers[name] = expr
        return f'self.{name}'

    def line(self, expr, layout=None):
        "Append the line that computes `expr`, and make it what is looked at now."
        out = eval(expr, space, {'self':self.net, **self.env})
        if not 0<out.numel()<3000 or not out.is_floating_point() or not out.isfinite().all() or out.abs().max()>1e4: raise ValueError('out of bounds')
        name = f'x{len(self.env)}'
        self.case.lines.append(f'{name} = {expr}')
        self.env[name],self.layout[name],self.now = out,layout or self.layout[self.now],name
        return name

    def block(self, f):
        "Append what `f` draws, or nothing if it does not fit."
        case,n,sizes,ties = self.case,len(self.case.lines),dict(self.case.layers),list(self.case.ties)
        env,now,literal = dict(self.env),self.now,case.literal
        try: f()
        except (RuntimeError, ValueError, IndexError, AttributeError, AssertionError):
            del case.lines[n:]
            case.layers,case.ties,self.env,self.now,case.literal = sizes,ties,env,now,literal

    def like(self, same):
        "An earlier result whose shape agrees with the present one where `same` says so."
        return self.pick(*[k for k,v in self.env.items() if self.layout[k]==self.layout[self.now] and v.is_floating_point() and same(v.shape)] or [self.now])

    # ---- layers
    def conv(self, o=None, same=False, name=None):
        "A convolution, or a Linear layer for vectors and tokens."
        x,n = self.t(),self.width
        o = o or self.int(2, 8)
        bias = '' if self.flip(.7) else ', bias=False'
        if self.channels_last or x.ndim==2: return self.line(f'{self.layer(f"nn.Linear({n}, {o}{bias})")}({self.now})')
        d,k = x.ndim-2,self.pick(1, 3, 3, 2)
        stride,dilation,padding = self.pick(1, 1, 2),self.pick(1, 1, 1, 2),self.pick(0, 1, 1, 2)
        if same: k,stride,padding = self.pick(1, 3),1,"'same'"
        if self.simple: stride = dilation = 1 # all positions are read
        groups = 1 if self.simple else self.pick(1, 1, 1, 0)
        if groups==0:
            groups = self.divisor(n)
            o = o if o%groups==0 else groups*self.pick(1, 1, 2)
        mode = self.pick(*['zeros']*4, 'reflect', 'replicate', 'circular')
        extra = (f', stride={stride}' if stride>1 else '') + (f', padding={padding}' if padding else '') + (f', dilation={dilation}' if dilation>1 else '') \
            + (f', groups={groups}' if groups>1 else '') + (f', padding_mode={mode!r}' if mode!='zeros' else '') + bias
        self.line(f'{self.layer(f"nn.Conv{d}d({n}, {o}, {k}{extra})")}({self.now})')

    @property
    def channels_last(self): return self.layout[self.now]=='tokens'
    @property
    def width(self): return self.t().shape[-1 if self.channels_last else 1]
    @property
    def space(self): return '1' if self.channels_last else str(tuple(range(2, self.t().ndim)))
    @property
    def scale(self): return f'P({self.width})' if self.channels_last or self.t().ndim==2 else f'P({self.width}, *{[1]*(self.t().ndim-2)})'

    def transposed_conv(self):
        d,n,groups = self.t().ndim-2,self.width,1
        if self.channels_last: raise ValueError('no image')
        if self.flip(.3): groups = self.divisor(n)
        stride,padding,out = self.pick(1, 2),self.pick(0, 1),self.pick(0, 0, 1)
        sizes = f'{n}, {groups*self.int(1, 4)}, {self.int(2, 3)}, {stride}, {padding}, {out}'
        self.line(f'{self.layer(f"nn.ConvTranspose{d}d({sizes}, groups={groups}, bias={self.flip()})")}({self.now})')

    def norm(self):
        n,d = self.width,self.t().ndim-2
        if self.channels_last: return self.line(f'{self.layer(f"nn.LayerNorm({n}, elementwise_affine={self.flip(.8)})")}({self.now})')
        kind = self.pick('batch', 'batch', 'batch', 'group', 'instance', 'layer')
        if kind=='batch': return self.batch_norm()
        if kind=='group': m = f'nn.GroupNorm({self.divisor(n, 1)}, {n}, affine={self.flip(.8)})'
        if kind=='instance': m = f'nn.InstanceNorm{d}d({n}, affine={self.flip()}, track_running_stats={self.flip()})'
        if kind=='layer':
            m = self.layer(f'nn.LayerNorm({n})')
            return self.line(f'{m}({self.now})' if d==0 else f'{m}({self.now}.movedim(1, -1)).movedim(-1, 1)')
        self.line(f'{self.layer(m)}({self.now})')

    def batch_norm(self): self.line(f'{self.layer(f"nn.BatchNorm{max(self.t().ndim-2, 1)}d({self.width}, affine={self.flip(.8)})")}({self.now})')

    def act(self):
        if self.flip(.1) and not self.simple: return self.line(f'{self.layer(f"nn.PReLU({self.pick(1, self.t().shape[1])})")}({self.now})')
        if self.flip(.3) and not self.simple: return self.line(self.pick(*formulas).format(self.now, self.now))
        self.line(f'F.{self.pick(*(smooth if self.simple else pointwise))}({self.now})')

    def dropout(self): self.line(f'{self.layer(self.pick("nn.Dropout()", "nn.Dropout1d()", "nn.AlphaDropout()", "nn.Identity()"))}({self.now})')

    def pool(self):
        d,kind = self.t().ndim-2,self.pick('max', 'adaptive_avg', 'adaptive_max', *['avg', 'lp']*(not self.simple))
        if self.channels_last or d==0: raise ValueError('no image')
        if kind.startswith('adaptive'): return self.line(f'F.{kind}_pool{d}d({self.now}, {self.int(1, 3)})')
        if kind=='lp': return self.line(f'F.lp_pool{d}d({self.now}.abs()+.1, 2, 2)')
        extra = '' if kind=='max' else f', count_include_pad={self.flip()}'
        self.line(f'F.{kind}_pool{d}d({self.now}, {self.int(2, 3)}, {self.int(1, 2)}, {self.int(0, 1)}, ceil_mode={self.flip()}{extra})')

    def channel_linear(self):
        if self.channels_last or self.t().ndim==2: raise ValueError('no image')
        self.line(f'{self.layer(f"nn.Linear({self.width}, {self.int(2, 8)})")}({self.now}.movedim(1, -1)).movedim(-1, 1)')

    # ---- branches
    def add(self):
        other = self.like(lambda s: s==self.t().shape)
        self.line(self.pick('{}+{}', '{}+{}', '{}+{}', '{}-{}', '{}*{}', '{}/({}.abs()+.5)', 'torch.add({}, {}, alpha=2)',
            'torch.maximum({}, {})').format(self.now, other))

    def residual(self):
        start,n = self.now,self.width
        for _ in range(self.int(1, 2)):
            self.conv(self.int(2, 8), same=True)
            if self.flip(): self.norm()
            self.act()
        self.conv(n, same=True)
        if self.flip(): self.norm()
        if self.flip(.3): self.line(f'{self.layer(self.scale)}*{self.now}')
        self.line(f'{start}+{self.now}')

    def cat(self):
        d = -1 if self.channels_last else 1
        other = self.like(lambda s: len(s)==self.t().ndim and all(a==b for i,(a,b) in enumerate(zip(s, self.t().shape)) if i!=d%len(s)))
        self.line(self.pick(f'torch.cat([{self.now}, {other}], {d})', f'torch.cat([{other}, {self.now}], {d})',
            f'torch.cat([{self.now}, {other}, {self.now}], {d})', f'torch.stack([{self.now}, {other}], 2).flatten(1, 2)'))

    def branches(self):
        start,ends = self.now,[]
        for _ in range(2):
            self.now = start
            self.conv(same=True)
            self.act()
            ends.append(self.now)
        self.line(f'torch.cat([{", ".join(ends)}], {-1 if self.channels_last else 1})')

    def gate(self):
        "Squeeze-and-excite and its like."
        start,n,d = self.now,self.width,self.t().ndim-2
        if self.channels_last or d==0: raise ValueError('no image')
        self.line(f'{self.now}.{self.pick("mean", "amax", "sum")}({self.space}, keepdim=True)')
        for o in (self.int(1, 4), n):
            self.line(f'{self.layer(f"nn.Conv{d}d({self.width}, {o}, 1)")}({self.now})')
            self.line(f'F.{self.pick(*pointwise)}({self.now})')
        self.line(self.pick('{}*{}', '{}*{}', '{}+{}', '{}/({}.abs()+.5)').format(start, self.now))

    def vector_gate(self):
        start,n,d = self.now,self.width,self.t().ndim-2
        if self.channels_last or d==0: raise ValueError('no image')
        self.line(f'{self.now}.mean({self.space})')
        self.line(f'{self.layer(f"nn.Linear({n}, {n})")}({self.now}).sigmoid()')
        self.line(f'{start}*{self.now}[(...,)+(None,)*{d}]')

    def spatial_gate(self):
        start = self.now
        self.conv(1, same=True)
        self.line(f'{start}*{self.now}.sigmoid()')

    # ---- movement
    def part(self):
        d,n = (-1 if self.channels_last else 1),self.width
        g = self.divisor(n)
        if g==1 or n<2: raise ValueError('one channel')
        x,i = self.now,self.int(0, g-1)
        kind = self.pick('chunk', 'split', 'slice', 'unflatten', 'unbind', 'glu', 'swap', 'literal', 'list')
        if kind=='glu': return self.line(f'F.glu({x}, {d})')
        if kind=='chunk': return self.line(f'{x}.chunk({g}, {d})[{i}]')
        if kind=='split': return self.line(f'{x}.split({x}.shape[{d}]//{g}, {d})[{i}]')
        if kind=='slice': return self.line(f'{x}.narrow({d}, {x}.shape[{d}]//{g}*{i}, {x}.shape[{d}]//{g})')
        if kind=='unflatten': return self.line(f'{x}.unflatten({d}, ({g}, -1)).select({d-(d<0)}, {i})')
        if kind=='unbind': return self.line(f'torch.stack({x}.chunk({g}, {d})).sum(0)')
        if kind=='swap': return self.line(f'torch.cat([{x}.chunk({g}, {d})[{i}]*2, *{x}.chunk({g}, {d})[1:]], {d})')
        self.case.literal = True
        if kind=='list': return self.line(f'torch.cat({x}.split([{i+1}, {n-i-1}], {d})[::-1], {d})' if i+1<n else f'{x}.narrow({d}, {i}, 1)')
        index = self.pick(f':{max(1, n//2)}', f'{i}:', '::2', f'{i}:{i+1}', f'[{i},0]')
        self.line(f'{x}[..., {index}]' if d==-1 else f'{x}[:, {index}]')

    def move(self):
        x,d,nd = self.now,(-1 if self.channels_last else 1),self.t().ndim
        g = self.divisor(self.width)
        options = [f'{x}.unflatten({d}, ({g}, -1)).transpose({d-(d<0)}, {d+(d>0)}).flatten({d-(d<0)}, {d+(d>0)})',
            f'{x}.unflatten({d}, (-1, {g})).transpose({d-(d<0)}, {d+(d>0)}).flatten({d-(d<0)}, {d+(d>0)})', f'{x}.flip({d})',
            f'{x}.repeat_interleave({self.int(2, 3)}, {d})', f'torch.cat([{x}]*2, {d})', f'{x}.contiguous()', f'{x}.clone()',
            f'{x}.unsqueeze(1).expand(-1, 2, *{[-1]*(nd-1)}).{self.pick("sum", "mean", "amax")}(1)']
        if not self.channels_last:
            options.append(f'{x}.repeat(1, 2, *{[1]*(nd-2)})')
            options.append(f'{x}.view({x}.shape[0], {g}, {x}.shape[1]//{g}, *{x}.shape[2:]).transpose(1, 2).reshape({x}.shape)')
        if nd>2: options += [f'{x}.roll(1, {2 if d==1 else 1})', f'{x}.flip({2 if d==1 else 1})',
            f'F.pad({x}, (0, 0, 1, 0))' if d==-1 else f'F.pad({x}, (1, 0), value={self.pick(0., .5)})']
        if nd>2 and d==1:
            border = f'{(1,1)*(nd-2)}, mode={self.pick("reflect", "replicate", "circular")!r}'
            options += [f'F.interpolate({x}, scale_factor=2)', f'F.pad({x}, {border})', f'{x}.transpose(2, -1)', f'{x}[..., 1:]', f'{x}[..., ::2]',
                f'{x}[..., 0]' if nd==4 else f'{x}[..., :2]']
        if nd==4 and d==1: options += [f'F.pixel_unshuffle({x}[..., :{x}.shape[2]//2*2, :{x}.shape[3]//2*2], 2)', f'F.pixel_shuffle({x}, 2)',
            f'F.interpolate({x}, scale_factor=2, mode="bilinear")', f'F.channel_shuffle({x}, {g})', f'F.unfold({x}, 2)']
        if self.flip(.1):
            self.case.literal = True
            options = [f'{x}.roll(1, {d})', f'F.pad({x}, {(0,0)*(0 if d==-1 else nd-2)+(1,0)})',
                f'{x}.reshape({x}.shape[0], {self.width}, -1)' if d==1 else f'{x}.reshape(-1, {self.t().shape[1]}, {self.width})']
        self.line(self.pick(*options))

    def reduce(self):
        "Over channels; keeps the shape."
        d = -1 if self.channels_last else 1
        self.line(self.pick(*[f'{self.now}.{o}' for o in (f'softmax({d})', f'log_softmax({d})')],
            *[f'{self.now}-{self.now}.{o}({d}, keepdim=True)' for o in ('mean', 'sum', 'amax', 'amin')],
            f'F.normalize({self.now}, dim={d})', f'{self.now}*({self.now}**2).mean({d}, keepdim=True).add(.1).rsqrt()', f'{self.now}.cumsum({d})'))

    def over_space(self):
        if self.t().ndim==2: raise ValueError('a vector')
        d = self.pick(*([1] if self.channels_last else range(2, self.t().ndim)))
        self.line(self.pick(*[f'{self.now}.{o}' for o in (f'softmax({d})', f'cumsum({d})')], *[f'{self.now}-{self.now}.{o}({d}, keepdim=True)' for o in ('mean',
            'sum', 'amax')], f'{self.now}.std({self.space}, keepdim=True)*{self.now}'))

    def parameter(self):
        x,n,nd = self.now,self.width,self.t().ndim
        whole = 'P' + str(tuple(self.t().shape[1:])).replace(',)', ')')
        if self.channels_last or nd==2: options = [(f'P({n})', '{}*{}'), (f'P({n})', '{}+{}'), (f'P({n}, {self.int(2, 8)})', '{}@{}'), (whole, '{}+{}')]
        else: options = [(f'P({n}, *{[1]*(nd-2)})', '{}*{}'), (f'P(1, {n}, *{[1]*(nd-2)})', '{}+{}'), (f'P({n})', '{}*{}.view(1, -1' + ', 1'*(nd-2) + ')'),
            (whole, '{}+{}'), (f'P({self.int(2, 8)}, {n})', 'torch.einsum("bc...,oc->bo...", {}, {})')]
        made,f = self.pick(*options)
        self.line(f.format(x, self.layer(made)))

    def sizes(self):
        "Numbers that come from sizes."
        self.case.literal = True
        x,d = self.now,(-1 if self.channels_last else 1)
        self.line(self.pick(f'{x}/{x}.shape[{d}]', f'{x}*{x}.shape[-1]**-.5', f'{x}+len({x})', f'{x}.sum({d}, keepdim=True)/{x}.shape[{d}]*{x}',
            f'{x}/{x}.shape[1]'))

    # ---- the same again
    def shared(self):
        "An earlier layer called once more."
        names = [k for k,v in self.case.layers.items() if v.startswith(('nn.Linear', 'nn.Conv', 'nn.BatchNorm', 'nn.GroupNorm', 'nn.LayerNorm', 'nn.PReLU'))]
        if names: self.line(f'self.{self.pick(*names)}({self.now})')

    def tied(self):
        "A layer with the weight of an earlier one, or with its transpose in a Linear layer."
        names = [k for k,v in self.case.layers.items() if v.startswith(('nn.Linear', 'nn.Conv1', 'nn.Conv2')) and getattr(self.net,
            k).weight.shape[1]==self.width]
        if not names: return
        name = self.pick(*names)
        new = self.layer(self.case.layers[name])
        self.case.ties.append(f'{new}.weight = self.{name}.weight')
        getattr(self.net, new[5:]).weight = getattr(self.net, name).weight
        self.line(f'{new}({self.now})')

    # ---- tokens
    def to_tokens(self):
        if self.channels_last or self.t().ndim<3: raise ValueError('no image')
        self.line(f'{self.now}.flatten(2).transpose(1, 2)', 'tokens')
    def to_map(self):
        if self.channels_last: self.line(f'{self.now}.transpose(1, 2)', 'map')

    def attention(self):
        if not self.channels_last: self.to_tokens()
        start,n = self.now,self.width
        kind,h = self.pick('separate', 'packed', 'packed', 'module', 'sdpa'),self.int(1, 3)
        if self.flip(): self.norm()
        x = self.now
        if kind=='module':
            m = self.layer(f'nn.MultiheadAttention({n}, {self.divisor(n, 1)}, batch_first=True)')
            self.line(f'{m}({x}, {x}, {x}, need_weights={self.flip()})[0]')
        elif kind=='packed':
            m = self.layer(f'nn.Linear({n}, {3*h*2}, bias={self.flip()})')
            made = self.pick(f'{m}({x}).unflatten(-1, (3, {h}, -1)).permute(2, 0, 3, 1, 4)',
                f'torch.stack([o.unflatten(-1, ({h}, -1)).transpose(1, 2) for o in {m}({x}).chunk(3, -1)])')
            self.line(made)
            q = self.now
            self.line(self.pick(f'({q}[0]@{q}[1].transpose(-2, -1)*.7).softmax(-1)@{q}[2]', f'F.scaled_dot_product_attention({q}[0], {q}[1], {q}[2])'))
        else:
            q,k,v = [f'{self.layer(f"nn.Linear({n}, {h*d}, bias={self.flip()})")}({x}).unflatten(-1, ({h}, -1)).transpose(1, 2)' for d in (2, 2,
                self.int(1, 3))]
            if kind=='sdpa': self.line(f'F.scaled_dot_product_attention({q}, {k}, {v}{self.pick("", ", scale=.5", ", is_causal=True")})')
            else: self.line(f'({q}@({k}).transpose(-2, -1)*.7).softmax(-1)@({v})')
        if kind!='module':
            self.line(f'{self.now}.transpose(1, 2).flatten(2)')
            self.line(f'{self.layer(f"nn.Linear({self.width}, {n}, bias={self.flip()})")}({self.now})')
        self.line(f'{start}+{self.now}')

    def token_ops(self):
        if not self.channels_last: self.to_tokens()
        n,t,x = self.width,self.t().shape[1],self.now
        kind = self.pick('class', 'position', 'mixer', 'rnn')
        if kind=='class': self.line(f'torch.cat([{self.layer(f"P(1, 1, {n})")}.expand({x}.shape[0], -1, -1), {x}], 1)')
        if kind=='position': self.line(f'{x}+{self.layer(f"P(1, {t}, {n})")}')
        if kind=='mixer': self.line(f'{x}+{self.layer(f"nn.Linear({t}, {t})")}({x}.transpose(1, 2)).transpose(1, 2)')
        if kind=='rnn': 
            made = f'nn.{self.pick("LSTM", "GRU")}({n}, {self.int(2, 5)}, batch_first=True, bidirectional={self.flip(.2)})'
            self.line(f'{self.layer(made)}({x})[0]')

    # ---- all of it
    def front(self):
        "What turns whole numbers into tokens or a vector."
        n = self.int(2, 8)
        if self.flip(.8): self.line(f'{self.layer(f"nn.Embedding(7, {n})")}({self.now})', 'tokens')
        else: 
            made = f'nn.EmbeddingBag(7, {n}, mode={self.pick("mean", "sum")!r})'
            self.line(f'{self.layer(made)}({self.now})', 'map')

    def head(self):
        "Ends the program: a few numbers, or all there is."
        nd = self.t().ndim
        if nd>2 and (self.simple or self.flip(.8)):
            flat = self.pick('flatten(1)', f'mean({self.space})', f'mean({self.space})', f'amax({self.space})', *[f'sum({self.space})']*(not self.simple))
            if not self.channels_last and nd==4 and self.flip(.3): self.block(lambda: self.line(f'F.adaptive_avg_pool2d({self.now}, {self.int(1, 2)})'))
            if self.channels_last and self.flip(.3): flat = 'select(1, 0)'
            self.block(lambda: self.line(f'{self.now}.{flat}', 'map'))
            if self.flip(.3): self.block(self.act)
        if self.t().ndim==2 or self.channels_last: self.block(lambda: self.conv(self.int(1, 3)))
        extra = self.pick(*self.env)
        self.case.out = f'{self.now}, {extra}' if self.flip(.1) and extra!='x0' and not self.simple else self.now

    def program(self, n):
        if self.case.tokens: self.front()
        else: self.block(self.conv)
        kinds = [self.conv]*4 + [self.batch_norm]*2 + [self.act]*3 + [self.pool, self.branches] if self.simple else self.kinds()
        for _ in range(n):
            if self.flip(.1) and not self.simple: self.now = self.like(lambda s: True)
            self.block(self.pick(*kinds))
        self.head()

    def kinds(self):
        "What blocks there are, the usual ones more often."
        often = {self.conv:6, self.act:5, self.norm:4, self.move:4, self.residual:3, self.part:3, self.add:3, self.pool:2, self.cat:2, self.branches:2,
            self.gate:2, self.reduce:2, self.parameter:2, self.shared:2, self.attention:2}
        others = (self.vector_gate, self.spatial_gate, self.over_space, self.tied, self.transposed_conv, self.channel_linear, self.dropout, self.to_tokens,
            self.to_map, self.token_ops, self.sizes)
        return [k for k,m in often.items() for _ in range(m)] + [*others]

def random_case(number, simple=False):
    "The random network with that number, with random zeros."
    rnd = Random(number)
    dim = rnd.choice((2, 2, 2, 2, 1, 1, 0, 3, *['tokens']*(not simple)))
    shape = (rnd.randint(3, 6),) if dim=='tokens' else (rnd.randint(2, 5), *[rnd.randint(*((4, 5) if dim==3 else (5, 9))) for _ in range(dim)])
    case = Case(shape, number=number, tokens=dim=='tokens')
    torch.manual_seed(number)
    with torch.no_grad(): Maker(rnd, case, simple).program(rnd.randint(1, 8))
    case.zeros = dict(rows=rnd.choice((.5, 0, .3, .3, .7)), cols=rnd.choice((0, 0, .2, .4)), single=rnd.choice((0, 0, .4)), layers=rnd.choice((0, 0, 0, .1)),
        shifts=rnd.choice((0, .5, 1)), aligned=rnd.random()<.5, cancel=rnd.random()<.1)
    return case

def used(line): return re.findall(r'\bx\d+\b', line)

def without(case, i, other=None):
    "The program without line `i`, whose result is replaced by `other`; without the lines that nobody reads, if it is read by none."
    name = used(case.lines[i])[0]
    def _other(line): return re.sub(rf'\b{name}\b', other or name, line)
    lines,out = [*case.lines[:i], *map(_other, case.lines[i+1:])],_other(case.out)
    needed = set(used(out))
    for l in reversed(lines if other else []): needed.update(used(l) if used(l)[0] in needed else [])
    lines = [l for l in lines if used(l)[0] in needed or not other]
    def _in(text, layer): return re.search(rf'\bself\.{layer}\b', text)
    ties = [t for t in case.ties if _in(' '.join(lines), t[5:t.index('.', 5)])]
    return replace(case, lines=lines, out=out, ties=ties, layers={k:v for k,v in case.layers.items() if _in(' '.join([*lines, *ties]), k)})

def shorter(case):
    "Programs with fewer lines."
    for i in range(len(case.lines))[::-1]:
        name,*others = dict.fromkeys(used(case.lines[i]))
        if name not in used(' '.join([*case.lines[i+1:], case.out])): yield without(case, i)
        yield from (without(case, i, o) for o in others)

def shortest(case, fails):
    "The shortest program that can be reached step by step so that each still `fails`."
    return next((shortest(c, fails) for c in shorter(case) if fails(c)), case)

cases,simple_cases = [st.integers(0, 2**48).map(lambda n, simple=simple: random_case(n, simple)) for simple in (False,True)]
