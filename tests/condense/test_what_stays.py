"What is alive stays, and so do parameters, modules, modes, hooks and precision."
from copy import deepcopy
import pytest, torch
from torch import nn
from fasterprune.all import *
from support.nets import cnn, gap, halve

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def test_weights_that_cancel_are_kept():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight[1] = 0
        net[0].weight[1,:,0,0],net[0].weight[1,:,1,1] = 1.,-1.
        net[2].weight[:,2,0,0],net[2].weight[:,2,0,1] = 3.,-net[2].weight[:,2].flatten(1).sum(1)+net[2].weight[:,2,0,0]+net[2].weight[:,2,0,1]-3.
        net[5].weight[:,0] = torch.tensor([.5,-.5])
    x = torch.randn(2, 3, 8, 8)
    c = Condenser(net, x).condense()
    assert c.report.removed=={} and gap(net, c, x)==0

@pytest.mark.parametrize('head', [nn.Linear(8, 5), nn.Linear(8, 5, bias=False)])
def test_output_layer_is_never_cut(head):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), head)
    with torch.no_grad(): head.weight[:3] = 0
    x = torch.randn(4, 6)
    c = Condenser(net, x).condense()
    assert c.model[2].out_features==5 and c.model(x).shape==(4,5) and gap(net, c, x)==0
    assert c.report.kept==[dict(layer='2', units=3, reason='an output of the network')]

def test_inplace_keeps_parameters_modules_and_modes():
    net = halve(cnn()).train()
    net[1].eval()
    dense,ps,ms,x = deepcopy(net),list(net.parameters()),list(net.modules()),torch.randn(2, 3, 8, 8)
    c = Condenser(net, x).condense(inplace=True)
    assert c.model is net and all(a is b for a,b in zip(ps, net.parameters())) and all(a is b for a,b in zip(ms, net.modules()))
    assert [m.training for m in net.modules()]==[m.training for m in dense.modules()]
    assert c.report.params_after==sum(p.numel() for p in ps) < c.report.params_before and gap(dense, c, x) <= 1e-5
    c.model(x).sum().backward()
    assert all(p.grad.shape==p.shape for p in ps)

def test_copy_leaves_the_model_untouched():
    net = halve(cnn()).train()
    net[1].eval()
    before,modes = deepcopy(net.state_dict()),[m.training for m in net.modules()]
    state,x = torch.get_rng_state(),torch.randn(2, 3, 8, 8)
    torch.set_rng_state(state)
    c = Condenser(net, x).condense()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    assert [m.training for m in net.modules()]==modes==[m.training for m in c.model.modules()]
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in c.model.parameters()}

def test_frozen_parameters_stay_frozen():
    net = halve(cnn())
    net[0].requires_grad_(False)
    c = Condenser(net, torch.randn(2, 3, 8, 8)).condense()
    assert [p.requires_grad for p in c.model.parameters()]==[p.requires_grad for p in net.parameters()]

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    net = halve(cnn(), (nn.Conv2d)).to(dtype)
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    c = Condenser(net, x).condense()
    assert {p.dtype for p in c.model.parameters()}=={dtype} and c.report.removed
    assert gap(net, c, x) <= 20*torch.finfo(dtype).eps

def test_hooks_survive():
    net,seen = halve(cnn()),[]
    for m in net: m.register_forward_hook(lambda m, i, o: seen.append(o))
    c = Condenser(net, torch.randn(2, 3, 8, 8)).condense()
    seen.clear()
    c.model(torch.randn(5, 3, 8, 8))
    assert len(seen)==len(net) and seen[0].shape[1]==c.model[0].out_channels < 8

def test_fastai_hooks():
    from fastai.callback.hook import hook_outputs
    net,x = halve(cnn()),torch.randn(2, 3, 8, 8)
    with hook_outputs(net) as hooks:
        c = Condenser(net, x).condense()
        assert gap(net, c, x) <= 1e-5
        net(torch.randn(7, 3, 8, 8))
        assert {(type(o),len(o)) for o in hooks.stored}=={(torch.Tensor,7)}

class Encoder(nn.Module):
    "Reads its padding with the batch; takes the mean over all positions, unless `end` does something else."
    def __init__(self, end=None, **kwargs):
        super().__init__()
        self.embed,self.head,self.end = nn.Linear(6, 16),nn.Linear(16, 3),end
        options = dict(enable_nested_tensor=kwargs.pop('enable_nested_tensor', True), norm=nn.LayerNorm(16) if kwargs.pop('norm', False) else None)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0., **kwargs)
        self.encoder = nn.TransformerEncoder(layer, 2, **options)
        for p in self.parameters():
            if p.ndim==1: nn.init.normal_(p, .3, .3)
    def forward(self, x, padding=None, mask=None):
        h = self.encoder(self.embed(x), mask=mask, src_key_padding_mask=padding)
        if self.end=='first': return self.head(h[:,0])
        return self.head(h.mean(1))

def zero(*tensors):
    for t in tensors: t.data.zero_()

def lose_heads(layer, *heads):
    "Nothing reads these heads of four."
    for h in heads: zero(layer.self_attn.out_proj.weight[:,4*h:4*h+4])

zeros = dict(heads_0=lambda a, b: lose_heads(a, 1, 2), heads_1=lambda a, b: lose_heads(b, 0),
    all_heads_0=lambda a, b: lose_heads(a, *range(4)), all_heads_1=lambda a, b: lose_heads(b, *range(4)),
    neurons=lambda a, b: zero(a.linear2.weight[:,:20]), all_neurons_0=lambda a, b: zero(a.linear2.weight), all_neurons_1=lambda a, b: zero(b.linear2.weight),
    first_norm=lambda a, b: zero(a.norm1.weight), second_norm=lambda a, b: zero(a.norm2.weight), last_norm=lambda a, b: zero(b.norm2.weight),
    nothing_left=lambda a, b: zero(a.norm2.weight, b.linear1.weight))
encoders = [dict(), dict(enable_nested_tensor=False), dict(norm_first=True), dict(activation='gelu', norm=True), dict(bias=False), dict(end='first')]

def shorter(x, *lengths): return torch.arange(x.shape[1])[None] >= torch.tensor(lengths)[:,None]

@pytest.mark.parametrize('options', encoders, ids=lambda o: '-'.join(o) or 'plain')
@pytest.mark.parametrize('what', zeros)
@pytest.mark.filterwarnings('ignore:enable_nested_tensor is True') # torch says which of them cannot
def test_torch_encoders_that_were_cut_run_as_before(what, options, tmp_path):
    "With padding and without, in all modes: the shortcuts of torch would read tensors past the layers; padded positions are 0 after them."
    net = Encoder(**options)
    zeros[what](*net.encoder.layers)
    x = torch.randn(4, 7, 6)
    end = shorter(x, 7, 5, 3, 6)
    between,causal = end.clone(),torch.triu(torch.ones(7, 7, dtype=torch.bool), 1)
    between[0,2] = True
    c = Condenser(net, (x, end)).condense()
    c.save(tmp_path/'small.safetensors')
    assert c.report.params_after < c.report.params_before
    for small in (c, load_condensed(tmp_path/'small.safetensors', Encoder(**options))):
        for more in ((end,), (None,), (between,), (None, causal)):
            for training,grad in ((False, False), (False, True), (True, True)):
                net.train(training), small.model.train(training)
                with torch.set_grad_enabled(grad): assert (net(x, *more)-small.model(*small.inputs(x, *more))).abs().max() < 1e-5
    small.model(*small.inputs(x, end)).sum().backward()

def test_layers_that_are_merely_narrower_keep_the_shortcut_of_torch():
    net,x = Encoder(),torch.randn(4, 7, 6)
    zeros['neurons'](*net.encoder.layers)
    small = Condenser(net, (x, shorter(x, 7, 5, 3, 6))).condense().model
    assert small.encoder.layers[0].linear1.out_features==12 and type(small.encoder) is nn.TransformerEncoder
    assert all(l.activation_relu_or_gelu for l in small.encoder.layers)
