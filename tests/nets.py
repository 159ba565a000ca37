"Random networks with random zeros, and how far two networks are apart."
from copy import deepcopy
import torch
from torch import nn
from fasterprune.graph import as_tuple, evaluating

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

class Maker:
    "Draws networks from `rnd`, a `random.Random` or hypothesis' own."
    def __init__(self, rnd, dim, sums=True): self.rnd,self.dim,self.sums = rnd,dim,sums
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

    def body(self, n):
        "Some blocks that read `n` channels, and how many they give."
        blocks = []
        for _ in range(self.rnd.randint(1, 3 if self.dim else 4)):
            o = self.rnd.randint(1, 6)
            if self.sums and self.flip(.3):
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
            if self.flip(.7): net.append(pools[self.rnd.choice(('AdaptiveAvg','AdaptiveMax'))][self.dim](self.rnd.choice((1,2))))
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

def random_net(rnd, dim, sums=True):
    "A network in float64 and a batch for it."
    torch.manual_seed(rnd.randrange(2**31))
    size = [rnd.randint(*((5,12) if dim<3 else (4,7))) for _ in range(dim)]
    x = torch.randn(2, rnd.randint(1, 5), *size, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        maker = Maker(rnd, dim, sums)
        return maker.zeros(maker.net(x)),x
    finally: torch.set_default_dtype(torch.float32)
