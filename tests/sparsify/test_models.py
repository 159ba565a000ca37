"Models that are not layers in a row: computed, shared and recurrent weights, buffers, memory; what stays is told."
import warnings
import pytest, torch
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner, TensorCategory, TensorImage, set_seed
from fastai.callback.all import ActivationStats, MixUp
from torch import nn
import torch.nn.functional as F
from fasterprune.all import *
from support.nets import gap, perturb
from support.sparsity import cnn, dead, fit, layers, learner, mlp, total, zeros

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

@pytest.mark.parametrize('wrap', [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_computed_weights_are_left_dense_and_told(wrap):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), wrap(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))
    sp = Sparsifier(net)
    sp.sparsify(.5)
    assert zeros(net[0])+zeros(net[4])==40 and '2' in sp.left_dense

def test_weights_pruned_by_torch_are_left_or_masked():
    from torch.nn.utils import prune
    net = nn.Sequential(prune.l1_unstructured(nn.Linear(8, 8), 'weight', .5), nn.ReLU(), nn.Linear(8, 2))
    Sparsifier(net).sparsify(.75)
    assert zeros(net[2])<16

def test_shared_weights_count_once():
    a,b = nn.Linear(8, 8),nn.Linear(8, 8)
    b.weight = a.weight
    net = nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), nn.Linear(8, 2))
    sp = Sparsifier(net)
    sp.sparsify(.5)
    assert zeros(a)+zeros(net[4])==40 and sp.report().loc['total','units']==80

def test_residual_units_die_together():
    class Res(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.c,self.n,self.h = nn.Conv2d(3, 8, 1),nn.Conv2d(8, 6, 1),nn.Conv2d(6, 8, 1),nn.BatchNorm2d(8),nn.Linear(8, 2)
        def forward(self, x): return self.h(F.adaptive_avg_pool2d((y:=self.a(x)) + self.n(self.c(self.b(y).relu())), 1).flatten(1))
    net,x = perturb(Res()),torch.randn(2, 3, 4, 4)
    sp = Sparsifier(net, 'filter', 'local', sample=x)
    sp.sparsify(.5)
    gone = (net.a.weight==0).flatten(1).all(1)
    assert int(gone.sum())==4 and torch.equal(gone, (net.c.weight==0).flatten(1).all(1)) and (net.n.bias[gone]==0).all() and dead(net.b)==3
    assert {g.name for g in sp.groups}=={'a+c','b'} and gap(net, Condenser(net, x).condense(), x) <= 1e-5

def test_vision_batches_with_mixup_and_hooks():
    "Tensor subclasses, mixed batches, and hooks that look at activations, as in a usual vision fit."
    x = [(TensorImage(torch.rand(3, 8, 8)),TensorCategory(i%2)) for i in range(32)]
    dls = DataLoaders.from_dsets(x, x, bs=8, num_workers=0, device='cpu')
    learn = Learner(dls, cnn(), loss_func=CrossEntropyLossFlat(), cbs=[MixUp(), ActivationStats(with_hist=True)])
    fit(learn, 2, SparsifyCallback(.5, 'filter', 'local'))
    assert (dead(learn.model[0]),dead(learn.model[3]))==(4,8)
    assert learn.condense().condensed.report.removed.keys()=={'0','3'}

def signed(model): return [n for n,p in model.named_parameters() if bool((p[p==0].signbit()).any())]

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('granularity', ['weight', 'row', 'kernel', 'filter', 'channel', 'block(2,2)', '2:4', Granularity('shared_kernel', 'filter height width'), 'layer'], ids=str)
def test_zeros_are_positive(granularity, dtype):
    "A weight times a mask would be -0.0 half of the time: two equal networks would differ bit for bit."
    for fmt in (torch.contiguous_format, torch.channels_last):
        net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3))
        net = net.to(dtype).to(memory_format=fmt)
        sp = Sparsifier(net, granularity, sample=torch.randn(2, 4, 8, 8, dtype=dtype))
        for s in (.3, .5):
            sp.sparsify(s)
            assert not signed(net) and sum(int((p==0).sum()) for p in net.parameters())
            with torch.no_grad():
                for p in net.parameters(): p.copy_(torch.where(p==0, -1., -p.abs()))
                sp.apply()
            assert not signed(net)
        for p in net.parameters(): p.grad = -torch.ones_like(p)
        sp.apply_grad()
        assert not any(p.grad[p.grad==0].signbit().any() for p in net.parameters())

def test_zeros_of_training_are_positive():
    "With momentum and weight decay, kept zeros, pressed filters, pruned inputs, and a moving average that was zeroed along."
    from functools import partial
    from fastai.basics import SGD
    for cbs in ([SparsifyCallback(.5)], [SparsifyCallback(.5, 'neuron')], [SparsifyCallback(.5, 'neuron'), InputPruneCallback(.5)], [RegularizeCallback(2., 'neuron', layers=['0','3'])]):
        learn = fit(learner(opt_func=partial(SGD, mom=.9, wd=.1)), 2, *cbs)
        assert total(learn.model) and not signed(learn.model), cbs
        fit(learn, 1, KeepZeros())
        assert total(learn.model) and not signed(learn.model), cbs

class UnitBuffer(nn.Module):
    "A buffer with a number for each unit."
    def __init__(self, conv=False):
        super().__init__()
        self.a,self.n,self.b = (nn.Conv2d(3, 8, 1),nn.BatchNorm2d(8),nn.Conv2d(8, 3, 1)) if conv else (nn.Linear(6, 8),nn.BatchNorm1d(8),nn.Linear(8, 3))
        self.register_buffer('scale', torch.rand(8, 1, 1) if conv else torch.rand(8))
        self.register_buffer('mean', torch.rand_like(self.scale))
    def forward(self, x):
        x = self.b((self.n(self.a(x)*self.scale)-self.mean).relu())
        return x.mean((2,3)) if x.ndim>2 else x

@pytest.mark.parametrize('conv', [False, True])
def test_buffers_go_with_their_units(conv):
    net,x = UnitBuffer(conv),torch.randn(4, *((3,5,5) if conv else (6,)))
    sp = Sparsifier(net, 'filter' if conv else 'neuron', 'local', sample=x)
    assert [g.n for g in sp.groups]==[8] and {s.param for s in sp.groups[0].others}=={'a.bias','n.weight','n.bias'}
    before = {k:v.clone() for k,v in net.named_buffers()}
    sp.sparsify(.5)
    assert dead(net.a)==4 and all(torch.equal(v, before[k]) for k,v in net.named_buffers())
    masks = find_zeros(net, x)
    assert {n:int((~m).sum()) for n,m in masks.items()}=={'a.weight':4*net.a.weight[0].numel(), 'a.bias':4, 'n.weight':4, 'n.bias':4}
    c = Condenser(net, x).condense()
    assert len(c.model.scale)==len(c.model.n.weight)==4 and gap(net, c, x)<=1e-5

def test_training_with_buffers():
    "In a fit, with what presses, keeps, measures, and takes out."
    learn = fit(learner(UnitBuffer(), shape=(6,)), 2, SparsifyCallback(.5, 'neuron'), RegularizeCallback(1e-3, 'neuron'), CondenseCallback(min_gain=0.))
    assert len(learn.model.scale)==4==learn.model.a.out_features
    learn = fit(learner(UnitBuffer(), shape=(6,)), 1, SparsifyCallback(.5, 'neuron'))
    gone = (learn.model.a.weight==0).all(1)
    fit(learn, 1, KeepZeros())
    assert gone.sum()==4 and all((p[gone]==0).all() for p in (learn.model.a.weight, learn.model.a.bias, learn.model.n.weight, learn.model.n.bias))
    s = sensitivity(learn, (.25,), 'neuron')
    assert s.units=={'a':8}

def test_a_buffer_that_is_a_weight_keeps_its_units():
    class Fixed(UnitBuffer):
        def __init__(self):
            super().__init__()
            self.register_buffer('w', torch.randn(8, 6))
            self.c = nn.Linear(8, 8)
        def forward(self, x): return self.b(self.c((self.a(x)+F.linear(x, self.w)).relu()).relu())
    sp = Sparsifier(Fixed(), 'neuron', sample=torch.randn(2, 6))
    assert [g.layers for g in sp.groups]==[['c']] and sp.left_dense['a']=="tied to 'w', a buffer"

def _shared():
    a,b = nn.Linear(8, 8),nn.Linear(8, 8)
    b.weight.data = a.weight.data
    return nn.Sequential(a, nn.ReLU(), b)

def _views(first, second):
    a,b,all_ = nn.Linear(8, 8),nn.Linear(8, 8),torch.randn(16, 16)
    a.weight.data,b.weight.data = all_[first],all_[second]
    return nn.Sequential(a, nn.ReLU(), b)

def _stored(t):
    l = nn.Linear(8, 8)
    l.weight = nn.Parameter(t)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), l)

low,high,mid = slice(8),slice(8, 16),slice(4, 12)

one_memory = dict(shared=_shared, partly=lambda: _views((low,low), (mid,low)), corner=lambda: _views((low,low), (slice(7, 15),slice(7, 15))),
    expanded=lambda: _stored(torch.randn(1, 8).expand(8, 8)), overlapping=lambda: _stored(torch.as_strided(torch.randn(16), (8,8), (1,1))))

own_memory = dict(rows=lambda: _views((low,low), (high,low)), columns=lambda: _views((low,low), (low,high)),
    strided=lambda: _views((slice(0, 16, 2),low), (slice(1, 16, 2),low)), transposed=lambda: _stored(torch.randn(8, 8).t()))

@pytest.mark.parametrize('case', one_memory)
@pytest.mark.parametrize('granularity', ['weight', 'neuron'])
def test_shared_memory_is_an_error_before_anything_changes(case, granularity):
    net = one_memory[case]()
    before = [p.clone() for p in net.parameters()]
    for kwargs in ({},)*(granularity=='weight') + (dict(coupled=False, layers='2'),): # the neurons of the last layer stay
        with pytest.raises(ValueError, match='share memory|is expanded') as e: Sparsifier(net, granularity, sample=torch.randn(2, 8), **kwargs)
        assert "'2.weight'" in str(e.value) and 'p.data.clone()' in str(e.value)
    assert all(torch.equal(p, b) for p,b in zip(net.parameters(), before))
    for p in net.parameters(): p.data = p.data.clone() # what the error says
    Sparsifier(net).sparsify(.5)
    assert total(net)==64

@pytest.mark.parametrize('case', own_memory)
def test_views_beside_each_other_are_counted_exactly(case):
    net = own_memory[case]()
    Sparsifier(net, context='local').sparsify(.25)
    assert [zeros(m) for m in layers(net)]==[16,16]

class Sequence(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.e,self.rnn,self.head = nn.Embedding(20, 6),rnn,nn.LazyLinear(2)
        self(torch.zeros(2, 3, dtype=torch.long))
    def forward(self, x):
        x = self.e(x)
        if isinstance(self.rnn, nn.RNNBase): return self.head(self.rnn(x)[0][:,-1])
        h = None
        for t in x.unbind(1): h = self.rnn(t, h)
        return self.head(h[0] if isinstance(h, tuple) else h)

rnns = dict(lstm=lambda: nn.LSTM(6, 8, batch_first=True), gru=lambda: nn.GRU(6, 8, 2, batch_first=True, bidirectional=True),
    rnn=lambda: nn.RNN(6, 8, batch_first=True), projected=lambda: nn.LSTM(6, 8, batch_first=True, proj_size=4),
    lstm_cell=lambda: nn.LSTMCell(6, 8), gru_cell=lambda: nn.GRUCell(6, 8), rnn_cell=lambda: nn.RNNCell(6, 8))

def matrices(net): return [p for n,p in net.named_parameters() if p.ndim>1 and n!='e.weight']

@pytest.mark.parametrize('context', ['global', 'local', 'erk'])
@pytest.mark.parametrize('kind', rnns)
def test_recurrent_weights_are_sparsified(kind, context):
    "Matrices like any other: exact counts over all of them, and the network that is condensed is the same."
    for criterion in ('large_final', 'lamp', 'random'):
        net,x = Sequence(rnns[kind]()),torch.randint(0, 20, (4, 5))
        sp = Sparsifier(net, 'weight', context, criterion)
        ws,n = matrices(net),sum(p.numel() for p in matrices(net))
        assert sp.n==n and len(sp.groups)==len(ws)
        sp.sparsify(.6)
        count = sum(int((p==0).sum()) for p in ws)
        assert count==(sum(round(.6*p.numel()) for p in ws) if context=='local' else round(.6*n)) and all((p!=0).any() for p in ws)
        report = sparsity_report(net)
        assert report.loc['total','zero']==count==sp.report().loc['total','zero'] and (net.e.weight!=0).all()
        assert gap(net, Condenser(net, x).condense(), x)<=1e-5

@pytest.mark.parametrize('kind', rnns)
def test_training_a_recurrent_network(kind):
    "The schedule holds at each step, a second fit keeps the zeros, and criteria that remember have what they need."
    for criterion in ('large_final', 'movement', 'taylor', 'wanda'):
        x = torch.randint(0, 20, (24, 5))
        ds = list(zip(x, (x.sum(1)>50).long()))
        learn = Learner(DataLoaders.from_dsets(ds, ds[:8], bs=8, num_workers=0, device='cpu'), Sequence(rnns[kind]()), loss_func=CrossEntropyLossFlat())
        cb = SparsifyCallback(.5, criterion=criterion)
        fit(learn, 2, cb)
        ws = [learn.model.head.weight] if criterion=='wanda' else matrices(learn.model)
        n = sum(p.numel() for p in ws)
        assert sum(int((p==0).sum()) for p in ws)==round(.5*n) and learn.recorder.values[-1][-1]==pytest.approx(round(.5*n)/n)
        if criterion=='wanda': assert sum('cannot be measured' in why for why in cb.sparsifier.left_dense.values())==len(matrices(learn.model))-1
        gone = [p==0 for p in ws]
        fit(learn, 1, KeepZeros())
        assert all((p[z]==0).all() for p,z in zip(ws, gone)) and not signed(learn.model)

def test_recurrent_layers_by_name():
    net = Sequence(nn.LSTM(6, 8, 2, batch_first=True))
    for layers,n in (('rnn',4), (nn.LSTM,4), ('rnn.weight_hh*',2), (['rnn.weight_ih_l1','head'],2), (lambda name, m: name.endswith('l0'),2), ('*',6)):
        assert len(Sparsifier(net, layers=layers).groups)==n, layers
    assert len(Sparsifier(net, exclude='rnn').groups)==1 and len(Sparsifier(net, exclude=nn.LSTM).groups)==1
    sp = Sparsifier(net)
    sp.sparsify({'rnn':.5, 'rnn.weight_hh_l1':.25})
    assert [g.dead/g.n for g in sp.groups]==[.5,.5,.5,.25] + [0]
    sp = Sparsifier(net, 'neuron', coupled=False)
    assert 'only single weights' in sp.left_dense['rnn'] and sp.report().loc['rnn','units']==sum(p.numel() for n,p in net.rnn.named_parameters() if p.ndim>1)
    with pytest.raises(ValueError, match="no 'neuron'"): Sparsifier(net, 'neuron', layers='rnn', sample=torch.zeros(2, 3, dtype=torch.long))
    nn.utils.parametrizations.weight_norm(net.rnn, 'weight_hh_l0')
    sp = Sparsifier(net)
    assert sp.left_dense['rnn.weight_hh_l0']=='its weight is computed from others' and len(sp.groups)==4
    net = Sequence(nn.LSTM(6, 8, batch_first=True))
    with pytest.raises(ValueError, match='claimed by two'): fit(learner(net), 1, SparsifyCallback(.5, layers='rnn'), SparsifyCallback(.5, layers='rnn.weight_hh_l0'))

def test_awd_lstm():
    "fastai drops out weights, and keeps what they are computed from beside the LSTM: zeros there are zeros of the LSTM."
    from fastai.text.models.awdlstm import AWD_LSTM
    net = AWD_LSTM(30, 12, 16, 2)
    sp = Sparsifier(net)
    n = sum(p.numel() for n,p in net.named_parameters() if p.ndim>1 and 'encoder' not in n)
    assert sp.n==n==4*16*(12+16) + 4*12*(16+12)
    sp.sparsify(.5)
    assert sum(int((p==0).sum()) for n,p in net.named_parameters() if p.ndim>1 and 'encoder' not in n)==round(.5*n)
    net.eval()(torch.randint(0, 30, (2, 6)))
    lstms = [m for m in net.modules() if isinstance(m, nn.LSTM)]
    assert sum(int((getattr(m, k)==0).sum()) for m in lstms for k in ('weight_ih_l0','weight_hh_l0'))==round(.5*n)==sparsity_report(net).loc['total','zero']
    net.train()(torch.randint(0, 30, (2, 6)))
    assert all((getattr(m, k)==0).sum()>=.3*getattr(m, k).numel() for m in lstms for k in ('weight_ih_l0','weight_hh_l0'))

def told(learn, *cbs):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        fit(learn, 2, *cbs)
    return [str(w.message) for w in seen if 'sparsified' in str(w.message) or 'takes part' in str(w.message)]

def test_what_stays_is_told_once():
    class Sums(nn.Module):
        "What is read by a running sum over the neurons is one unit."
        def __init__(self, wide):
            super().__init__()
            self.wide,self.a,self.b,self.c = wide,nn.Linear(8, 40 if wide else 6),nn.Linear(40 if wide else 6, 20),nn.Linear(20, 2)
        def forward(self, x): return self.c(self.b(self.a(x).cumsum(1)).relu())
    for wide in (True, False):
        said = told(learner(Sums(wide)), SparsifyCallback(.5, 'neuron'))
        assert len(said)==1 and "'a' cannot be sparsified" in said[0] and 'cumsum' in said[0], said
    assert not told(learner(Sums(True)), SparsifyCallback(.5, 'neuron', exclude='a')) # left out by choice
    assert not told(learner(Sums(True)), SparsifyCallback(.5))

def test_units_that_are_one_are_told():
    class Decoder(nn.Module):
        "A vector becomes channels, by a literal."
        def __init__(self):
            super().__init__()
            self.a,self.b,self.c,self.d = nn.Linear(8, 16),nn.Linear(16, 64),nn.ConvTranspose2d(4, 2, 2, 2),nn.Linear(128, 2)
        def forward(self, x): return self.d(self.c(self.b(self.a(x).relu()).view(-1, 4, 4, 4)).flatten(1))
    class Rolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.c = nn.Linear(8, 4),nn.Linear(4, 90),nn.Linear(90, 2)
        def forward(self, x):
            x = self.a(x)
            return self.c(self.b(x + x.roll(1, 1)).relu())
    for net,layer,why in ((Decoder(),'b','tied into one unit'), (Rolled(),'a','roll')):
        for context in ('local','global'):
            said = told(learner(net), SparsifyCallback(.5, 'neuron', context))
            assert len(said)==1 and f'{layer!r} cannot be sparsified' in said[0] and why in said[0], said

def test_what_takes_part_is_told_where_it_is_little():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4*36, 40), nn.ReLU(), nn.Linear(40, 2))
    said = told(learner(net, shape=(3,8,8)), SparsifyCallback(.5, 'filter'))
    assert len(said)==1 and f'{108/(108+4*36*40+80):.2%} of the weights' in said[0] and "'3', '5' cannot be sparsified: a Linear has no unit 'filter'" in said[0]
    assert not told(learner(net, shape=(3,8,8)), SparsifyCallback({'0':.5}, 'filter')) # what is asked for
    for net,shape,unit in ((cnn(), (3,8,8), 'filter'), (mlp(), (8,), 'neuron'), (mlp(), (8,), 'weight')): assert not told(learner(net, shape=shape), SparsifyCallback(.5, unit))
