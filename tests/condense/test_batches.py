"A network is shown a batch in any form that it takes, and gives out its outputs in any form."
from collections import OrderedDict, UserDict
from copy import deepcopy
from dataclasses import dataclass
import pytest, torch
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from torch import nn
from fasterprune.all import *
from fasterprune.core.batches import all_tensors
from fasterprune.condense.verify import Reference
from fasterprune.graph.graph import trace_sample
from fasterprune.graph.trace import trace
from support.opaque_nets import dead, run

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

class Words(nn.Module):
    "Takes what a tokenizer gives."
    right = 9*8 + 4*9 + 4*3+3
    def __init__(self):
        super().__init__()
        self.e,self.a,self.b = nn.Embedding(9, 8),nn.Linear(8, 8),nn.Linear(8, 3)
        dead(self.a, 4)
    def forward(self, input_ids, attention_mask=None, extra=(), scale=True):
        h = self.e(input_ids)
        for t in extra: h = h*t if t is not None else h
        if attention_mask is not None: h = h*attention_mask[...,None]
        return self.b(self.a(h).relu()*2 if scale else self.a(h))

class OneDict(Words):
    def forward(self, batch): return super().forward(**batch)
class OnlyKeywords(Words):
    def forward(self, **batch): return super().forward(**batch)
class Encoding(UserDict): "What tokenizers give is a Mapping, and no dict."

def words(n=4): return dict(input_ids=torch.randint(0, 9, (n,5)), attention_mask=(torch.rand(n, 5)>.3).float())
batches = dict(plain=words,
    mapping=lambda: Encoding(words()),
    other_order=lambda: dict(reversed(words().items())),
    with_none=lambda: dict(words(), attention_mask=None),
    nested=lambda: dict(words(), extra=[torch.rand(4, 1, 1), None, torch.rand(4, 5, 1)]),
    flag=lambda: dict(words(), scale=False))

@pytest.mark.parametrize('kind', batches)
@pytest.mark.parametrize('cls', (Words, OnlyKeywords, OneDict))
def test_a_batch_by_keywords(cls, kind, tmp_path):
    net,batch = cls().eval(),batches[kind]()
    by_name = cls is not OneDict
    def _run(m, b): return run(m, **b) if by_name else run(m, b)
    before = deepcopy(net.state_dict())
    c = Condenser(net, batch).condense()
    assert c.report.params_after==cls.right and c.report.max_error < 1e-12
    assert type(c.inputs(batch)) is type(batch) and (not by_name or type(c.inputs(**batch)) is dict)
    for b in (batch, words(7)): torch.testing.assert_close(_run(c.model, c.inputs(b)), _run(net, b))
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    again = load_condensed(c.save(tmp_path/'c.safetensors'), cls().eval())
    assert torch.equal(_run(again.model, again.inputs(batch)), _run(c.model, batch)) and again.inputs.names==c.inputs.names==tuple(batch)
    s = Sparsifier(cls(), 'neuron', sample=batch)
    s.sparsify(.5)
    assert s.groups[0].n==8 and s.reached==.5
    s.observe(batch)
    assert n_macs(net, batch)==5*(64+24) and len(trace(net, batch).ops)==len(trace_sample(net, batch).ops)
    assert Reference(net, batch).error(c.model, c.inputs) < 1e-12
    assert set(find_zeros(net, batch))=={'a.weight','a.bias'}

class TwoInputs(nn.Module):
    "Reads two of six columns of the one and one of three channels of the other."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c = nn.Linear(6, 8),nn.Conv1d(3, 8, 1),nn.Linear(8, 2)
        with torch.no_grad(): self.a.weight[:,:4],self.b.weight[:,1:] = 0,0
    def forward(self, x, y, add=0.): return self.c((self.a(x)+self.b(y).mean(-1)+add).relu())

def two(n=4): return dict(x=torch.randn(n, 6), y=torch.randn(n, 3, 5))

def test_inputs_that_are_cut_keep_their_names(tmp_path):
    net,batch = TwoInputs().eval(),two()
    c = Condenser(net, dict(y=batch['y'], x=batch['x'])).condense() # in another order than those of the function
    assert (c.report.inputs_before, c.report.inputs_after)==(6+15, 2+5)
    for cc in (c, load_condensed(c.save(tmp_path/'c.safetensors'), TwoInputs().eval())):
        for b in (two(7), dict(two(3), add=1.), Encoding(two(2))):
            small = cc.inputs(b)
            assert {k:tuple(v.shape[1:]) for k,v in small.items() if k in 'xy'}==dict(x=(2,), y=(1,5)) and type(small) is type(b)
            assert small.get('add')==b.get('add') and b['x'].shape[1]==6 and [*small]==[*b]
            torch.testing.assert_close(run(cc.model, **small), run(net, **b))
            torch.testing.assert_close(run(cc.joined(), **b), run(net, **b))
    by_place = Condenser(net, tuple(batch.values())).condense()
    with pytest.raises(ValueError, match='x, y are given by keywords, but .* by position'): by_place.inputs(**batch)
    p = InputPruner(net, batch)
    p.observe(batch)
    assert (p.n, p.dead)==(6+3, 4+2)
    p.sparsify(.8)
    assert p.dead==7

def test_an_error_names_the_keywords():
    with pytest.raises(ValueError, match=r'does not run on the sample \(input_ids: \(2, 5\) int64 on cpu, mask: \(2, 5\) float32 on cpu'):
        Condenser(Words(), dict(input_ids=torch.zeros(2, 5, dtype=torch.long), mask=torch.ones(2, 5)))
    for empty in ({}, (), [], dict(input_ids=torch.zeros(0, 5, dtype=torch.long))):
        with pytest.raises(ValueError, match='the sample is empty'): Condenser(Words(), empty)

# ---- what comes out

class Out(OrderedDict):
    def __getattr__(self, k): return self[k]
@dataclass
class Answer:
    logits: torch.Tensor
    other: object = None
class Plain:
    def __init__(self, logits, other): self.logits,self.other = logits,other
class Memory(Plain):
    def update(self, x): self.other = x

class Two(nn.Module):
    "Two heads; that of the second is to stay, for it is given out, too."
    def __init__(self, make):
        super().__init__()
        self.a,self.b,self.c,self.make = nn.Linear(6, 8),nn.Linear(8, 3),nn.Linear(8, 2),make
        dead(self.a, 4)
    def forward(self, x):
        h = self.a(x).relu()
        return self.make(self.b(h), self.c(h))

makers = dict(dataclass=Answer, object=Plain,
    ordered=lambda a, b: Out(logits=a, other=[b]),
    mapping=lambda a, b: Encoding(a=a, b=b),
    inside=lambda a, b: (a, dict(p=[Plain(b, None)])))

@pytest.mark.parametrize('kind', makers)
def test_outputs_in_containers_and_objects(kind):
    net = Two(makers[kind]).eval()
    c = Condenser(net, torch.randn(4, 6)).condense()
    assert c.report.params_after==4*7 + 4*3+3 + 4*2+2 and c.report.max_error < 1e-12
    x = torch.randn(5, 6)
    for a,b in zip(all_tensors(c.model(x)), all_tensors(net(x)), strict=True): torch.testing.assert_close(a, b)

def test_a_cache_is_no_output():
    class Cached(Two):
        def forward(self, x):
            h = self.a(x).relu()
            return self.b(h),Memory(h, None)
    c = Condenser(Cached(None).eval(), torch.randn(4, 6)).condense()
    assert c.report.params_after==4*7 + 4*3+3 + 8*2+2 # c is not called

# ---- a Learner whose batches are dicts

class Dicts(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(6, 8),nn.Linear(8, 3)
    def out(self, u, v): return self.b(self.a(u+v).relu())
class TakesDict(Dicts):
    def forward(self, batch): return self.out(batch['u'], batch['v'])
class TakesKeywords(Dicts):
    def forward(self, u, v): return self.out(u, v)
class Unpack(Callback):
    order = -10
    def before_batch(self): self.learn.xb = tuple(self.xb[0].values())

def dict_learner(model, cbs=None):
    data = [(dict(u=torch.randn(6), v=torch.randn(6)),i%3) for i in range(32)]
    return Learner(DataLoaders.from_dsets(data, data, bs=8, num_workers=0, device='cpu'), model, loss_func=CrossEntropyLossFlat(), cbs=cbs)

@pytest.mark.parametrize('make', (lambda: dict_learner(TakesDict()), lambda: dict_learner(TakesKeywords(), Unpack())))
def test_a_learner_with_batches_of_dicts(make):
    learn = make()
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2, cbs=SparsifyCallback(.5, 'neuron'))
    assert sparsity_report(learn.model).zero_outputs['a']==4
    small = learn.condense()
    assert small.condensed.report.params_after==4*7 + 4*3+3
    with learn.no_bar(), small.no_bar(): a,b = learn.get_preds()[0],small.get_preds()[0]
    torch.testing.assert_close(a, b)
    with small.no_bar(), small.no_logging(): small.fit(1, cbs=KeepZeros())

def test_inputs_in_dicts():
    "Without tensors there are no features; where a callback unpacks them, there are."
    learn = dict_learner(TakesDict())
    why = pytest.raises(ValueError, match='the network gets dict: let the DataLoaders deliver the tensors')
    with why, learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=InputPruneCallback(.5))
    learn = dict_learner(TakesKeywords(), Unpack())
    cb = InputPruneCallback(.5)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2, cbs=cb)
    assert len(cb.kept)==3
    small = learn.condense()
    assert small.dls.one_batch()[0]['u'].shape==(8,3) and small.condensed.report.inputs_after==6
    with learn.no_bar(), small.no_bar(): torch.testing.assert_close(learn.get_preds()[0], small.get_preds()[0])
