"Networks in which something is dead, condensed and compared."
import torch
from torch import nn
from torch.nn import functional as F
from fasterprune.all import *
from support.fuzz_nets import Model, zero
from support.nets import gap

def randn(*shape): return torch.randn(*shape, dtype=torch.float64)

def dead(layer, rows): # outputs that are 0
    zero(layer, rows)
    if layer.bias is not None: layer.bias.data[list(rows)] = 0
    return layer

def condensed(net, *xs, batches=(1,3), tol=1e-10):
    "Condense, and compare at other batch sizes."
    c = Condenser(net, xs if len(xs)>1 else xs[0]).condense()
    assert gap(net, c, *xs) <= tol and c.report.max_error <= tol
    def _other(x, n): return torch.randn(n, *x.shape[1:], dtype=x.dtype) if x.is_floating_point() else x[torch.arange(n)%len(x)]
    for n in batches: assert gap(net, c, *[_other(x, n) for x in xs]) <= tol
    return c

class Root(nn.Module):
    "As `how` has it; the scale is `offset` + weight."
    def __init__(self, n, how='llama', offset=0., bias=False, eps=.05):
        super().__init__()
        self.weight,self.how,self.offset,self.eps = nn.Parameter(torch.rand(n)+.5-offset),how,int(offset),eps
        self.bias = nn.Parameter(torch.randn(n)) if bias else None
        if how=='width': self.n = n
    def forward(self, x):
        w = self.weight + self.offset if self.offset else self.weight
        out = getattr(self, self.how)(x, w)
        return out if self.bias is None else out+self.bias
    def llama(self, x, w): return w*(x*torch.rsqrt(x.pow(2).mean(-1, keepdim=True)+self.eps))
    def root(self, x, w): return x/torch.sqrt((x*x).mean(-1, keepdim=True)+self.eps)*w
    def power(self, x, w): return x*(self.eps+x.square().mean(dim=-1, keepdim=True)).pow(-.5)*w
    def reciprocal(self, x, w): return (1/torch.sqrt(x.pow(2).mean(-1)+self.eps))[...,None]*x*w
    def norm(self, x, w): return x/(x.norm(dim=-1, keepdim=True).square()/x.shape[-1]+self.eps).sqrt()*w
    def width(self, x, w): return x/((x**2).sum(-1, keepdim=True)/self.n+self.eps).sqrt()*w
    def torchs(self, x, w): return F.rms_norm(x, (x.shape[-1],), w, self.eps)
    def shaped(self, x, w): return F.rms_norm(x, self.weight.shape, w, self.eps)
    def cast(self, x, w):
        y = x.float()
        return w*(y*torch.rsqrt(y.pow(2).mean(-1, keepdim=True)+self.eps)).to(x.dtype)
    def literal(self, x, w): return w*x*torch.rsqrt(x.pow(2).mean(-1, keepdim=True)+1e-3)

def stream(norm, n=12, gone=(1,4,6,9), vocab=None):
    "A residual stream of which some units are zero everywhere."
    def _run(m, x):
        h = m.start(x)
        for i in (1,2): h = h + m.get_submodule(f'down{i}')(F.silu(m.get_submodule(f'up{i}')(m.get_submodule(f'norm{i}')(h))))
        return m.head(m.last(h))
    parts = {f'{k}{i}':v for i in (1,2) for k,v in (('norm',norm(n)), ('up',nn.Linear(n, 10)), ('down',dead(nn.Linear(10, n), gone)))}
    start,head = nn.Embedding(vocab, n) if vocab else dead(nn.Linear(5, n), gone),nn.Linear(n, vocab or 3, bias=not vocab)
    net = Model(_run, start=start, last=norm(n), head=head, **parts)
    if vocab:
        net.head.weight = net.start.weight
        with torch.no_grad(): net.start.weight[:,list(gone)] = 0
    return net.double().eval()

class Standard(nn.Conv2d):
    "Weight standardization, as `how` has it."
    how,eps = 'standard',1e-3
    def __init__(self, *args, how='standard', **kwargs):
        super().__init__(*args, **kwargs)
        self.how,self.gain = how,nn.Parameter(torch.rand(self.out_channels, 1, 1, 1)+.5)
        self.register_buffer('mask', (torch.rand_like(self.weight)>.3).float())
        self.register_buffer('u', F.normalize(torch.randn(self.out_channels), dim=0))
    def computed(self, w):
        if self.how=='standard': return self.gain*(w-w.mean((1,2,3), keepdim=True))/(w.var((1,2,3), keepdim=True)+self.eps).sqrt()
        if self.how=='batch_norm': # as timm does
            flat = w.reshape(1, self.out_channels, -1)
            return F.batch_norm(flat, None, None, self.gain.view(-1), training=True, momentum=0., eps=self.eps).reshape_as(w)
        if self.how=='masked': return w*self.mask
        if self.how=='scaled': return w*self.gain
        if self.how=='spectral':
            v = F.normalize(w.flatten(1).T@self.u, dim=0)
            return w/(self.u@(w.flatten(1)@v))
        if self.how=='quantized': return torch.fake_quantize_per_tensor_affine(w, .05, 0, -128, 127)
        if self.how=='by_channel':
            return torch.fake_quantize_per_channel_affine(w, self.gain.flatten().float()/20, torch.zeros_like(self.u).int(), 0, -128, 127)
        if self.how=='normed': return F.normalize(w.flatten(1), dim=1).view_as(w)
        if self.how=='centered': return w - w.mean()
    def forward(self, x): return F.conv2d(x, self.computed(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups)
