"Zeros made in four ways, in networks whose dead units still emit constants: `zeroed` takes any network and the name of one of `ways`."
from copy import deepcopy
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import prune
from torch.utils._pytree import tree_leaves
from fasterprune.all import Granularity, Sparsifier

n_out = 7 # outputs of all networks: nothing else is as wide, so the last layer is known by it

def weights(model):
    "(module, name of its weight) of each convolution, Linear layer and joint projection of an attention, except the last layer."
    for m in model.modules():
        name = 'weight' if isinstance(m, (nn.Linear,_ConvNd)) else 'in_proj_weight'
        if isinstance(p := getattr(m, name, None), torch.Tensor) and (name=='weight' or isinstance(m, nn.MultiheadAttention)) and len(p)!=n_out: yield m,name

def images(n, side, dtype=torch.float32):
    "Noise of different brightness and contrast: what a network says of pure noise hardly varies."
    return (torch.randn(n, 3, 1, 1) + torch.rand(n, 1, 1, 1)*torch.randn(n, 3, side, side)).to(dtype)

def gap(a, b):
    "Largest difference of outputs, over the largest output: tensors, tuples, lists and dicts of them."
    a,b = tree_leaves(a),tree_leaves(b)
    assert [o.shape for o in a]==[o.shape for o in b]
    return max(float((p-q).abs().max()/p.abs().max()) for p,q in zip(a, b))

def cast(model, dtype):
    "`model` in another precision and in evaluation mode, with all that it has computed from its parameters."
    model.to(dtype).train().eval() # some networks cache tensors while they are evaluated
    for m in model.modules():
        for hook in m._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod): hook(m, None)
    return model

def pairs(model, c, xs):
    "Outputs of both for each of `xs` that `model` takes; the first it has to take."
    dtype = xs[0].dtype
    for m in (model, c.model): cast(m, dtype)
    for i,x in enumerate(xs):
        with torch.no_grad():
            try: out = model(x)
            except Exception:
                if i==0: raise
                continue
            yield out,c.model(c.inputs(x))

@torch.no_grad()
def enliven(model):
    "No scale is 1, no shift and no bias is 0, and no factor is so small that it hides what it scales."
    gain = 2 if any('Norm' in type(m).__name__ for m in model.modules()) else 4 # as half of what comes in is dead
    for m in model.modules():
        for name,p in m.named_parameters(recurse=False):
            constant = p.numel()==1 or bool((p==p.flatten()[0]).all())
            if name=='in_proj_weight' or name=='weight' and isinstance(m, (nn.Linear,_ConvNd)): p.normal_(0, (gain/p[0].numel())**.5)
            elif 'bias' in name or constant and (p==0).all(): p.uniform_(-.2, .2)
            elif name=='weight' and p.ndim==1 or constant: p.uniform_(.4, 1.2)
    return model

@torch.no_grad()
def flush_denormals(model, x):
    "Running statistics near those of the activations, but not equal to them"
    def _near(m, args):
        seen = args[0].transpose(0, 1).flatten(1)
        mean,var = seen.mean(1),seen.var(1)
        var = torch.where(var < .015, 1., var).maximum(mean**2/25) # in single precision a smaller one would make noise of it
        m.running_mean.copy_(mean + var.sqrt()*torch.empty_like(var).uniform_(-.3, .3))
        m.running_var.copy_(var*torch.empty_like(var).uniform_(.5, 1.5))
    hooks = [m.register_forward_pre_hook(_near) for m in model.eval().modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    model(x)
    for h in hooks: h.remove()
    return model

@torch.no_grad()
def reordered(model, x):
    "A copy of `model` whose layers sum up in reverse order: those that are called, and not depthwise or grouped."
    model,called = deepcopy(model).eval(),set()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) or isinstance(m, _ConvNd) and m.groups==1 and not m.transposed]
    hooks = [m.register_forward_pre_hook(lambda m, _: called.add(m)) for m in layers]
    model(x)
    for h in hooks: h.remove()
    for m in called:
        dim = -1 if isinstance(m, nn.Linear) else 1
        if isinstance(m.weight, nn.Parameter): m.weight.data = m.weight.flip(1)
        else: continue
        m.register_forward_pre_hook(lambda m, args, dim=dim: (args[0].flip(dim),))
    return model

def half(n): return torch.randperm(n)[:n//2]

@torch.no_grad()
def independent(model, x):
    "A random half of the rows of each weight, whatever they belong to; biases and norms stay."
    for m,name in weights(model): (p := getattr(m, name))[half(len(p))] = 0

def coupled(model, x):
    "Half of the filters and neurons of each group of layers that belong together, with what follows from it: biases, scales and shifts of norms."
    Sparsifier(model, Granularity('output', 'channel depth height width feature'), 'local', sample=x).sparsify(.5)

def by_torch(model, x):
    "By torch.nn.utils.prune and not made permanent; at random where a layer's weight is used without calling the layer, for the masks are not applied then."
    called = set()
    hooks = [m.register_forward_pre_hook(lambda m, _: called.add(m)) for m in model.modules()]
    with torch.no_grad(): model(x)
    for h in hooks: h.remove()
    for i,(m,name) in enumerate(weights(model)):
        p = getattr(m, name)
        mask = torch.ones_like(p)
        mask[half(len(p))] = 0
        if m not in called: p.data *= mask
        elif i%2 and name=='weight': prune.ln_structured(m, name, .5, n=2, dim=0)
        else:
            prune.custom_from_mask(m, name, mask)
            if i%4==0 and getattr(m, 'bias', None) is not None: prune.custom_from_mask(m, 'bias', mask.flatten(1)[:,0])

def _clear(module):
    "Zero all layers and norms in `module`; gives what undoes it."
    old = [(p,p.detach().clone()) for m in module.modules() for name,p in m.named_parameters(recurse=False) if name in ('weight','bias') or 'in_proj' in name]
    for p,_ in old: p.zero_()
    return old

def _undo(old):
    for p,v in old: p.copy_(v)

def _varies(out, least=1e-6): return any((o-o[:1]).abs().max() > least*o.abs().max() for o in tree_leaves(out) if isinstance(o, torch.Tensor))

def _residual(model, x):
    "The smallest modules that give on what comes in when all that is in them is zero, in order of execution."
    seen,found = {},[]
    def _note(m, args, kwargs, out):
        if isinstance(out, torch.Tensor) and args and isinstance(args[0], torch.Tensor) and args[0].shape==out.shape: seen[m] = args,kwargs
    hooks = [m.register_forward_hook(_note, with_kwargs=True) for m in model.modules() if [*m.children()] and any(weights(m))]
    model(x)
    for h in hooks: h.remove()
    for m,(args,kwargs) in seen.items(): # parts come before the whole
        if any(f in set(m.modules()) for f in found): continue
        old,out = _clear(m),m(*args, **kwargs)
        if _varies(out) and not torch.allclose(out, args[0]/2): found.append(m) # a gate of nothing but zeros is one half
        _undo(old)
    return found

@torch.no_grad()
def blocks(model, x):
    "All of every second residual branch; without residuals, every second layer that the input can do without."
    model.eval()
    found = _residual(model, x) or [m for m,_ in weights(model)]
    n = 0
    for m in found[1::2] or found:
        old = _clear(m)
        if _varies(model(x)): n += 1
        else: _undo(old)
    assert n, 'a chain of layers has no block that could be dead'

ways = dict(independent=independent, coupled=coupled, by_torch=by_torch, blocks=blocks)

def zeroed(model, x, way, seed=0):
    "`model` in evaluation mode with zeros made by `way`."
    torch.manual_seed(seed)
    ways[way](enliven(model).eval(), x)
    x,noise = images(6, x.shape[-1]),[]
    for _ in range(7): # without training deep networks may make noise of single precision, or nothing of their input
        varies,error = _try(model, x)
        if not varies: break
        noise.append(error)
        if error < 3e-6: return model
        _scale_norms(model, .88)
    assert noise, 'the output does not depend on the input'
    _scale_norms(model, .88**(noise.index(min(noise))-len(noise)))
    _try(model, x)
    return model

@torch.no_grad()
def _scale_norms(model, factor):
    for m in model.modules():
        if 'Norm' in type(m).__name__ and getattr(m, 'weight', None) is not None: m.weight *= factor

@torch.no_grad()
def _try(model, x):
    "Does the output depend on the input, and how large is the error of single precision?"
    torch.manual_seed(0)
    flush_denormals(model, x)
    exact,out = cast(model, torch.float64)(x.double()),cast(model, torch.float32)(x)
    assert all(o.isfinite().all() for o in tree_leaves(out))
    return _varies(out, 1e-2),gap(exact, out)
