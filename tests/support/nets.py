"Random networks with random zeros, and how far two networks are apart."
from copy import deepcopy
import torch
from torch import nn
from fasterprune.core.batches import as_tuple
from fasterprune.core.models import evaluating

def gap(dense, c, *xs):
    "Largest difference of the outputs of `dense` and of the condensed `c`, over the largest output."
    small = deepcopy(c.model)
    with evaluating(dense), evaluating(small): a,b = as_tuple(dense(*xs)),as_tuple(small(*as_tuple(c.inputs(*xs))))
    assert [o.shape for o in a]==[o.shape for o in b]
    return max(float((p-q).abs().max()/p.abs().max().clamp(min=1e-300)) for p,q in zip(a, b))

@torch.no_grad()
def perturb(model):
    "BatchNorms as after training: no statistic is 0 or 1, nor is any scale or shift."
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for t,values in ((m.running_mean,(-.5,.5)), (m.running_var,(.3,2.)), (m.weight,(.3,1.5)), (m.bias,(-.5,.5))):
                if t is not None: t.uniform_(*values)
    return model

@torch.no_grad()
def halve(model, kinds=nn.modules.conv._ConvNd):
    "Zero a random half of the filters of each convolution, and nothing else."
    for m in model.modules():
        if isinstance(m, kinds): m.weight[torch.randperm(len(m.weight))[:len(m.weight)//2]] = 0
    return model

def mlp(n_in=6, n=8, n_out=3):
    "Three linear layers."
    return nn.Sequential(nn.Linear(n_in, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n_out))

def cnn(n=8, act=nn.ReLU):
    "Two convolutions with norms as after training, and a linear layer."
    return perturb(nn.Sequential(nn.Conv2d(3, n, 3, padding=1), nn.BatchNorm2d(n), act(), nn.Conv2d(n, n, 3, padding=1), nn.BatchNorm2d(n), act(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 4)))

activations = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.GELU, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.SiLU, nn.Identity)
convs,norms = (None,nn.Conv1d,nn.Conv2d,nn.Conv3d),(nn.BatchNorm1d,nn.BatchNorm1d,nn.BatchNorm2d,nn.BatchNorm3d)
pools = {kind:tuple(getattr(nn, f'{kind}Pool{d}d') for d in (1,1,2,3)) for kind in ('Max','Avg','AdaptiveAvg','AdaptiveMax')}

class Sum(nn.Module):
    "The sum of branches, over what came in if `skip`."
    def __init__(self, branches, skip):
        super().__init__()
        self.branches,self.skip = nn.ModuleList(branches),skip
    def forward(self, x):
        out = x if self.skip else 0*x
        outs = [b(x) for b in self.branches]
        if not self.skip: out,*outs = outs
        for o in outs: out = out + o
        return out

class Cat(nn.Module):
    "Branches side by side, and what came in beside them if `skip`."
    def __init__(self, branches, skip):
        super().__init__()
        self.branches,self.skip = nn.ModuleList(branches),skip
    def forward(self, x): return torch.cat([b(x) for b in self.branches] + [x]*self.skip, 1)

class Gate(nn.Module):
    "What came in, together by `op` with what `net` makes of `squeeze`: one number for each channel."
    def __init__(self, op, squeeze, net):
        super().__init__()
        self.op,self.squeeze,self.net = op,squeeze,net
    def forward(self, x): return self.op(x, self.net(self.squeeze(x)))

class Do(nn.Module):
    "The function `f` as a layer."
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, x): return self.f(x)

gates = (torch.mul, lambda x, g: g*x, torch.add, torch.sub, lambda x, g: g-x, lambda x, g: x/(g.abs()+.5), lambda x, g: x.sub(g, alpha=2))
numbers = (lambda x: 1-x, lambda x: 2*x+1, lambda x: x/4-.5, lambda x: x**2, lambda x: x*0)
def reductions(dim, keepdim=False):
    "Functions that leave one number for each channel."
    dims = tuple(range(2, dim+2))
    return [lambda x, f=f: f(x, dims, keepdim=keepdim) for f in (torch.mean, torch.mean, torch.sum, torch.amax, torch.amin)]

class Maker:
    "Draws networks from `rnd`, a `random.Random` or hypothesis' own."
    def __init__(self, rnd, dim, sums=True, more=False): self.rnd,self.dim,self.sums,self.more = rnd,dim,sums,more
    def flip(self, p=.5): return self.rnd.random() < p
    def act(self): return self.rnd.choice(activations)()
    def norm(self, n): return [norms[self.dim](n, affine=self.flip(.8))] if self.flip() else []

    def layer(self, i, o, same=False):
        "A convolution or Linear layer with norm and activation; with `same` it keeps the size."
        if not self.dim: return [nn.Linear(i, o, bias=self.flip(.7)), *self.norm(o), self.act()]
        k,stride,dilation = self.rnd.choice((1,2,3,3)),self.rnd.choice((1,1,2)),self.rnd.choice((1,1,2))
        padding = self.rnd.choice((0,1,1,2,'same'))
        if same or padding=='same': stride,padding = 1,'same'
        return [convs[self.dim](i, o, k, stride, padding, dilation, bias=self.flip(.7)), *self.norm(o), self.act()]

    def pool(self):
        kind = self.rnd.choice(('Max','Avg'))
        kwargs = dict(padding=self.rnd.choice((0,1)), ceil_mode=self.flip()) | (dict(count_include_pad=self.flip()) if kind=='Avg' else {})
        return [pools[kind][self.dim](self.rnd.choice((2,3)), self.rnd.choice((1,2)), **kwargs)]

    def cat(self, n):
        "Branches beside each other, as in DenseNet or Inception."
        outs,skip = [self.rnd.randint(1, 4) for _ in range(self.rnd.randint(1, 3))],self.flip()
        return [Cat([nn.Sequential(*self.layer(n, o, same=True)) for o in outs], skip)],sum(outs) + n*skip

    def grouped(self, n):
        "A depthwise or grouped convolution."
        groups = self.rnd.choice([g for g in range(1, n+1) if n%g==0 and g!=1] or [1])
        o,k = groups*self.rnd.choice((1,1,2,3)),self.rnd.choice((1,2,3))
        c = convs[self.dim](n, o, k, self.rnd.choice((1,1,2)), self.rnd.choice((0,1)), groups=groups, bias=self.flip(.7))
        return [c, *self.norm(o), self.act()],o

    def gate(self, n):
        "Squeeze-and-excite and its like."
        h,f = self.rnd.randint(1, 4),(convs[self.dim] if self.dim else nn.Linear)
        def one(i, o): return f(i, o, *[1]*(self.dim>0), bias=self.flip(.8))
        squeeze = self.rnd.choice(reductions(self.dim, True)) if self.dim else torch.tanh
        return [Gate(self.rnd.choice(gates), squeeze, nn.Sequential(one(n, h), self.act(), one(h, n), self.act()))],n

    def shuffle(self, n):
        "The channels in another order."
        g = self.rnd.choice([g for g in range(2, n) if n%g==0] or [0])
        sizes = self.rnd.choice((lambda n: (g,-1), lambda n: (-1,g), lambda n: (g,n//g)))
        return [Do(lambda x: x.unflatten(1, sizes(x.shape[1])).transpose(1, 2).flatten(1, 2))]*(g>0),n

    def arithmetic(self, n): return [Do(self.rnd.choice(numbers))],n

    def body(self, n):
        "Some blocks that read `n` channels, and how many they give."
        blocks = []
        for _ in range(self.rnd.randint(1, 4)):
            o = self.rnd.randint(1, 6)
            if self.more and self.flip():
                kinds = [self.cat, self.cat, self.gate, self.gate, self.shuffle, self.arithmetic] + [self.grouped]*4*(self.dim>0)
                more,o = self.rnd.choice(kinds)(n)
                blocks += more
            elif self.sums and self.flip(.3):
                skip = self.flip()
                if skip: o = n
                blocks.append(Sum([nn.Sequential(*self.layer(n, o, same=True)) for _ in range(self.rnd.randint(1 if skip else 2, 3))], skip))
            else: blocks += self.layer(n, o)
            n = o
            if self.dim and self.flip(.25): blocks += self.pool()
        return blocks,n

    def net(self, x):
        "A network that takes `x`; blocks that do not fit its size are left out."
        net,shape = nn.Sequential(),x
        blocks,n = self.body(x.shape[1])
        for b in blocks:
            try: shape = nn.Sequential(b).eval()(shape)
            except RuntimeError: b = None # too small for the window
            if b is not None: net.append(b)
        if self.dim:
            if self.more and self.flip(.3): net.append(Do(self.rnd.choice(reductions(self.dim))))
            elif self.flip(.7): net.append(pools[self.rnd.choice(('AdaptiveAvg','AdaptiveMax'))][self.dim](self.rnd.choice((1,2))))
            elif self.flip(.3): return net
            net.append(nn.Flatten())
        for _ in range(self.rnd.randint(0, 2)):
            o = self.rnd.randint(1, 6)
            net.extend([nn.Linear(net.eval()(x).shape[1], o, bias=self.flip(.7)), *([nn.BatchNorm1d(o)] if self.flip(.3) else []), self.act()])
        return net.append(nn.Linear(net.eval()(x).shape[1], self.rnd.randint(1, 3), bias=self.flip(.7)))

    @torch.no_grad()
    def zeros(self, net):
        "Rows, columns, single weights, whole layers; constants, some of them 0."
        p = self.rnd.choice((0,.2,.5,.8))
        for m in net.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                perturb(m)
                for t in (m.weight, m.bias, m.running_mean):
                    if t is not None: t[torch.rand(len(t)) < self.rnd.choice((0,0,.4))] = 0
            elif hasattr(m, 'weight'):
                m.weight[torch.rand(len(m.weight)) < p] = 0
                m.weight[:,torch.rand(m.weight.shape[1]) < self.rnd.choice((0,0,p))] = 0
                if self.flip(.3): m.weight[torch.rand(m.weight.shape) < .5] = 0
                if self.flip(.04): m.weight.zero_()
                if m.bias is not None: m.bias[torch.rand(len(m.bias)) < self.rnd.choice((0,.5))] = 0
        return net

def random_net(rnd, dim, sums=True, more=False):
    "A network in float64 and a batch for it."
    torch.manual_seed(rnd.randrange(2**31))
    size = [rnd.randint(*((5,12) if dim<3 else (4,7))) for _ in range(dim)]
    x = torch.randn(2, rnd.randint(1, 5), *size, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        maker = Maker(rnd, dim, sums, more)
        return maker.zeros(maker.net(x)),x
    finally: torch.set_default_dtype(torch.float32)
