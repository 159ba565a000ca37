"Bad input changes nothing; who takes part, how wide layers stay, and targets by name."
import math
import numpy as np, pytest, torch
from fastai.basics import set_seed
from fastai.optimizer import Adam
from torch import nn
from fasterprune.all import *
from fasterprune.sparsify import criterion
from support.nets import gap
from support.sparsity import cnn, dead, fit, layers, learner, mlp, zeros
from support.sparsity_cases import Vectors, Watch, flat, resnet, same, snapshot

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

@pytest.mark.parametrize('s', [80, 1, 1., -.1, 'x', None, float('nan'), True, [.5], {}, {'0':80}, {'zz':.5}, {'0':'x'}], ids=repr)
def test_bad_sparsity_is_a_value_error(s):
    net = mlp()
    before = {k:v.clone() for k,v in net.state_dict().items()}
    with pytest.raises(ValueError): Sparsifier(net).sparsify(s)
    with pytest.raises(ValueError): fit(learner(net), 1, SparsifyCallback(s))
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())

@pytest.mark.parametrize('kwargs', [dict(granularity='atom'), dict(criterion='beauty'), dict(context='here'), dict(schedule='soon'), dict(layers='nope'), dict(exclude='nope'),
    dict(granularity=['filter']), dict(schedule=['linear']), dict(criterion=['random']), dict(every=0), dict(every=.5)], ids=str)
def test_bad_argument_is_a_value_error_before_training(kwargs):
    net = mlp()
    before = {k:v.clone() for k,v in net.state_dict().items()}
    with pytest.raises(ValueError): fit(learner(net), 1, SparsifyCallback(.5, **kwargs))
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())

@torch.no_grad()
def spoil(value):
    net = mlp()
    net[3].weight[2,5] = value
    return net

def lucky(weight, context): return weight.abs()
lucky.needs = ('luck',)

bad = dict(nan=(lambda: spoil(math.nan), dict(), "layer '3': 1 of 192 weights are not finite"), round_to_weights=(mlp, dict(round_to=8), 'round_to=8'),
    infinite=(lambda: spoil(-math.inf), dict(), "layer '3': 1 of 192 weights are not finite"), min_units=(mlp, dict(min_units=0), 'min_units=0'),
    empty=(mlp, dict(granularity='neuron', sparsity=.97, context='local'), 'removes 16 of 16 units in 0, .*at most 15; ask for 0.93'),
    empty_by_name=(mlp, dict(granularity='neuron', sparsity={'3':.99}), 'removes 12 of 12 units in 3, .*at most 11; ask for 0.91'),
    empty_global=(mlp, dict(granularity='neuron', sparsity=.95), 'removes 27 of 28 units.*at most 26'), beyond=(mlp, dict(end_epoch=7), '0 to 7'),
    empty_erk=(mlp, dict(granularity='neuron', sparsity=.95, context='erk'), 'removes 27 of 28 units.*at most 26'),
    two_of_four=(mlp, dict(granularity='2:4', sparsity=.6), 'removes .*2:4 keeps 2 of each 4'), negative=(mlp, dict(start_epoch=-1), '-1'),
    two_of_four_erk=(mlp, dict(granularity='2:4', sparsity=.6, context='erk'), 'removes .*2:4 keeps 2 of each 4'),
    no_such_unit=(mlp, dict(granularity='filter', layers='0'), "layer '0': a Linear has no unit 'filter'"), percent=(mlp, dict(end_epoch=90.), '90'),
    no_such_unit_at_all=(mlp, dict(granularity='kernel'), "'0': a Linear has no unit 'kernel'"), never=(mlp, dict(start_epoch=.5, end_epoch=.5), '0.5'),
    no_multiple=(mlp, dict(granularity='block(4,4)', layers=['3','5']), "layer '5': its 2 outputs are not a multiple of 4"),
    no_head=(mlp, dict(granularity='head'), "no unit 'head'|no layer to sparsify"), round_to=(mlp, dict(granularity='neuron', round_to=0), 'round_to=0'),
    round_to_half=(mlp, dict(granularity='neuron', round_to=1.5), 'round_to=1.5'), min_units_name=(mlp, dict(min_units='all'), "min_units='all'"),
    min_units_many=(mlp, dict(granularity='neuron', min_units=12, context='local'), 'removes 8 of 16 units in 0, .*keep 12: at most 4; ask for 0.25'),
    backwards=(mlp, dict(start_epoch=2, end_epoch=1), '2 to 1'), no_epoch=(mlp, dict(start_epoch=None), 'start_epoch'),
    word=(mlp, dict(end_epoch='last'), 'end_epoch'), no_norm=(mlp, dict(criterion='bn_scale'), "layer '0': .*norm"),
    no_norm_late=(mlp, dict(criterion='bn_scale', schedule='one_shot'), "layer '0': .*norm"), no_layer=(mlp, dict(layers='9'), "'9' matches no layer"),
    needs=(mlp, dict(criterion=lucky), 'luck'), no_type=(mlp, dict(layers=nn.Conv2d), 'Conv2d.* matches no layer'),
    no_glob=(mlp, dict(exclude='head*'), "exclude 'head.' matches no layer"), no_pattern=(mlp, dict(layers=3), 'layers 3'),
    all_excluded=(mlp, dict(exclude=nn.Linear), 'excluded'), no_target=(mlp, dict(sparsity={'0':.5,'x*':.2}), "'x.' matches no layer"),
    left_target=(mlp, dict(sparsity={'5':.5}, exclude='5'), "'5' matches no layer"))

@pytest.mark.parametrize('case', bad)
def test_bad_input_is_a_value_error_and_changes_nothing(case):
    build,kwargs,message = bad[case]
    learn = fit(learner(mlp(), opt_func=Adam), 2)
    learn.model.load_state_dict(build().state_dict())
    before = snapshot(learn)
    kwargs = {**dict(sparsity=.5), **kwargs}
    with pytest.raises(ValueError, match=message): fit(learn, 4, SparsifyCallback(**kwargs))
    after = snapshot(learn)
    for b,a in zip(before[0].values(), after[0].values()): assert torch.equal(b.nan_to_num(7.), a.nan_to_num(7.)) # NaN is not equal to itself
    assert any(before[1]) and same(before[1:], after[1:])

scores = [(lambda w,c: w/0*0, "layer '0': 128 of 128 scores are not finite"), (lambda w,c: torch.where(w>.1, torch.inf, w), "layer '0': [0-9]+ of 128 scores"),
    (lambda w,c: w.flatten(1).sum(1), r"layer '0': .*of shape \(16,\) for weights of \(16, 8\)"), (lambda w,c: torch.tensor(1.), r"layer '0': .*shape \(\)")]

@pytest.mark.parametrize('score,message', scores)
@pytest.mark.parametrize('context', ['local','trunk','global','erk'])
def test_bad_scores_are_a_value_error_and_change_nothing(score, message, context):
    net = mlp()
    sp = Sparsifier(net, context=context, criterion=score)
    before = flat(net.state_dict())
    with pytest.raises(ValueError, match=message): sp.sparsify(.5)
    assert same(before, flat(net.state_dict())) and sp.reached==0 and all(m.all() for m in sp.masks.values())

@pytest.mark.parametrize('granularity', ['weight','neuron'])
def test_what_a_criterion_calls_its_arguments(granularity):
    "They are given by their places; a function of each weight by itself is the same in the fast pass."
    @criterion(pointwise=True)
    def _size(w, _): return w*w
    nets = [mlp() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net,c in zip(nets, (_size,'squared_final')): Sparsifier(net, granularity, criterion=c, sample=torch.randn(2, 8)).sparsify(.5)
    assert zeros(nets[0][0])>0 and all(map(torch.equal, *(n.state_dict().values() for n in nets)))

def test_a_bad_score_in_a_later_layer_changes_no_layer():
    net = mlp()
    sp = Sparsifier(net, context='local', criterion=lambda w,c: w.abs() if c.name!='5' else w*math.nan)
    before = flat(net.state_dict())
    with pytest.raises(ValueError, match="layer '5'"): sp.sparsify(.5)
    sp.apply()
    assert same(before, flat(net.state_dict())) and sp.reached==0

@pytest.mark.parametrize('criterion,remedy', [('taylor','backward'), ('fisher','backward'), ('wanda','observe'), ('bn_scale','coupled')])
def test_what_a_criterion_misses_is_said(criterion, remedy):
    net = mlp()
    before = flat(net.state_dict())
    with pytest.raises(ValueError, match=f"layer '0'.*{remedy}"): Sparsifier(net, criterion=criterion).sparsify(.5)
    assert same(before, flat(net.state_dict()))

def test_gradients_of_frozen_layers():
    "A frozen layer gets no gradient: the message says so, or the layer is left alone; it is no news of the training loop's."
    net = mlp()
    net[0].requires_grad_(False)
    before = flat(net.state_dict())
    with pytest.raises(ValueError, match="layer '0'.*(frozen|requires_grad)"): fit(learner(net), 1, SparsifyCallback(.5, criterion='taylor'))
    assert same(before, flat(net.state_dict()))

def shared_mlp():
    a,b = nn.Linear(8, 8),nn.Linear(8, 8)
    b.weight = a.weight
    return nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), nn.Linear(8, 2))

def encoder(): return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 2))

rivals = dict(all=(mlp, dict(), dict(granularity='neuron')), named=(mlp, dict(layers='0'), dict(layers=['3','0'])),
    dicts=(mlp, dict(sparsity={'0':.5}), dict(sparsity={'?':.6})), shared=(shared_mlp, dict(layers='0'), dict(layers='2')),
    heads=(encoder, dict(granularity='head'), dict()))

@pytest.mark.parametrize('case', rivals)
def test_two_callbacks_with_the_same_layer(case):
    build,a,b = rivals[case]
    learn = learner(build(), shape=(5,8) if build is encoder else (8,))
    before = flat(dict(learn.model.state_dict()))
    cbs = [SparsifyCallback(**{**dict(sparsity=.5), **kwargs}) for kwargs in (a, b)]
    with pytest.raises(ValueError, match='claimed by two'): fit(learn, 1, *cbs)
    assert same(before, flat(dict(learn.model.state_dict())))

@pytest.mark.parametrize('n', [2,3])
def test_callbacks_with_layers_of_their_own(n):
    learn = learner()
    cbs = [SparsifyCallback(.25*(i+1), layers=l) for i,l in enumerate('035'[:n])]
    fit(learn, 2, *cbs)
    assert [zeros(learn.model[int(l)]) for l in '035'[:n]]==[round(.25*(i+1)*learn.model[int(l)].weight.numel()) for i,l in enumerate('035'[:n])]
    columns = learn.recorder.metric_names
    assert len(set(columns))==len(columns) and sum('sparsity' in c for c in columns)==n
    for cb,s in zip(cbs, (.25,.5,.75)): assert learn.recorder.values[-1][columns.index(cb.column)-1]==pytest.approx(s, abs=1e-9)

def test_two_kinds_of_units_in_one_fit():
    net = cnn()
    learn = fit(learner(net, shape=(3,8,8)), 2, SparsifyCallback(.5, 'filter', layers=['0','3']), SparsifyCallback(.75, layers='8'))
    assert dead(net[0])+dead(net[3])==12 and zeros(net[8])==24 and [c for c in learn.recorder.metric_names if 'sparsity' in c]==['sparsity','sparsity_weight']

def alive_counts(net): return [len(m.weight)-dead(m) for m in layers(net)][:-1]

@pytest.mark.parametrize('context', ['local','trunk','global','erk','macs'])
@pytest.mark.parametrize('round_to,min_units', [(4,1), (8,1), (4,6), (1,5), (3,4), (16,1)])
def test_round_to_and_min_units(context, round_to, min_units):
    "What stays is a multiple of `round_to`, or all; not less than `min_units`; near what was asked; and what was dead stays dead."
    widths = 24,16,40,10
    dims = list(zip((8, *widths), (*widths, 4)))
    net = nn.Sequential(*[m for i,o in dims for m in (nn.Linear(i, o), nn.ReLU())][:-1])
    sp = Sparsifier(net, 'neuron', context, 'random', sample=torch.randn(2, 8), round_to=round_to, min_units=min_units)
    was = [torch.zeros(n, dtype=torch.bool) for n in widths]
    for f in np.linspace(.04, 1, 25):
        sp.sparsify(.6 if min_units<5 else .4, float(f))
        now = [(m.weight==0).all(1) for m in layers(net)[:-1]]
        left = [int((~d).sum()) for d in now]
        assert all(l==n or l%round_to==0 and l>=min_units for l,n in zip(left, widths)), (f, left)
        assert all((d|~w).all() for d,w in zip(now, was)), (f, left)
        was = now
    if context=='local': assert all(abs(l-(n-round(sp_target(min_units)*n)))<round_to or l==n or l-round_to<min_units for l,n in zip(left, widths)), left
    elif context=='global': assert abs(sum(widths)-sum(left)-round(sp_target(min_units)*sum(widths))) <= round_to+sum(n for n in widths if n<=round_to), left

def sp_target(min_units): return .6 if min_units<5 else .4

def test_fault_round_to_crashes():
    for s in (.1, .3, .5, .7, .8):
        net = cnn()
        sp = Sparsifier(net, 'filter', 'local', sample=torch.randn(2, 3, 8, 8), round_to=4)
        sp.sparsify(s)
        assert alive_counts(net)==[max(4, 4*round((8-round(s*8))/4)), max(4, 4*round((16-round(s*16))/4))], s
    learn = fit(learner(cnn(), shape=(3,8,8)), 3, SparsifyCallback(.5, 'filter', round_to=4), Watch())
    assert all(n%4==0 for n in alive_counts(learn.model)) and sum(alive_counts(learn.model))==12

def test_who_takes_part():
    net,linear = cnn(),lambda m: isinstance(m, nn.Linear)
    def taken(**kwargs): return [g.name for g in Sparsifier(net, **kwargs).groups]
    assert taken()==['0','3','8'] and taken(layers='3')==['3'] and taken(layers='[03]')==['0','3'] and taken(layers=nn.Conv2d)==['0','3']
    assert taken(layers=linear)==['8'] and taken(layers=lambda name,m: name=='3')==['3']
    assert taken(layers=['8',nn.Conv2d])==['0','3','8'] and taken(layers=('0',linear))==['0','8']
    assert taken(exclude='3')==['0','8'] and taken(exclude=nn.Conv2d)==['8'] and taken(exclude=[linear,'0'])==['3']
    assert taken(exclude=lambda name,m: name<'8')==['8']
    assert taken(layers=nn.Conv2d, exclude='0')==['3'] and taken(layers={'0','3'})==['0','3']
    sp = Sparsifier(net, layers=nn.Conv2d, exclude='0')
    assert sp.left_dense=={'0':'excluded', '8':'not among `layers`'}

def test_targets_by_name():
    net = cnn()
    sp = Sparsifier(net)
    sp.sparsify({'*':.25, '3':.5})
    assert [zeros(m) for m in layers(net)]==[54,576,8]
    net = cnn()
    Sparsifier(net, context='global').sparsify({'[03]':.5})
    assert [zeros(m) for m in layers(net)]==[108,576,0]
    net = cnn()
    learn = fit(learner(net, shape=(3,8,8)), 2, SparsifyCallback({'0':.25,'3':.75}, 'filter'))
    assert (dead(net[0]),dead(net[3]))==(2,12) and learn.recorder.values[-1][-1]==pytest.approx(14/24)

def test_targets_by_name_and_the_graph():
    "A target for one layer is one for all that are tied to it."
    net = resnet()
    sp = Sparsifier(net, 'filter', sample=torch.randn(1, 3, 8, 8))
    sp.sparsify({'3.conv2':.5, '4.*1':.25})
    gone = [(m.weight==0).flatten(1).all(1) for m in (net[0], net[3].conv2)]
    assert torch.equal(*gone) and int(gone[0].sum())==4 and dead(net[4].conv1)==3 and dead(net[3].conv1)==dead(net[4].conv2)==0

def test_tied_weights_are_one_tensor():
    for granularity,count in (('weight',64), ('neuron',8), ('row',8), ('2:4',64)):
        net = shared_mlp()
        sp = Sparsifier(net, granularity, layers=['0','2'], coupled=False)
        assert len(sp.groups)==1 and sp.groups[0].name=='0+2' and sp.n==count
        sp.sparsify(.5)
        assert zeros(net[0])==32 and net[2].weight is net[0].weight and (granularity in ('neuron','row'))==(dead(net[0])==4)
    net = shared_mlp()
    fit(learner(net), 2, SparsifyCallback({'2':.75}))
    assert zeros(net[0])==48 and net[2].weight is net[0].weight and zeros(net[4])==0

def test_tied_weights_and_the_graph():
    net,x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), *shared_mlp()),torch.randn(4, 8)
    sp = Sparsifier(net, 'neuron', sample=x)
    sp.sparsify(.5)
    gone = (net[2].weight==0).all(1)
    assert int(gone.sum())==4 and (net[2].bias[gone]==0).all() and (net[4].bias[gone]==0).all()
    assert '2' not in sp.left_dense and '4' not in sp.left_dense # they share a weight: what is zero in one is zero in the other
    fit(learner(net), 2, KeepZeros(), Watch())
    assert (net[2].bias[gone]==0).all() and gap(net, Condenser(net, x).condense(), x) <= 1e-5

def test_groups_print_readably():
    net = resnet()
    sp = Sparsifier(net, 'filter', sample=torch.randn(1, 3, 8, 8))
    sp.sparsify(.5)
    text = repr(sp.groups)
    assert [l for l in text.splitlines() if not l.startswith(' ')]==[f'{g.name}: {g.n} units'+f', {g.dead} of them zero'*bool(g.dead) for g in sp.groups]
    assert {g.name for g in sp.groups}=={'0+3.conv2','3.conv1','4.conv1','4.conv2+4.down.0'}
    assert 'with 1.weight, 1.bias, 3.bn2.weight, 3.bn2.bias' in text and len(text) < 2000 and 'tensor' not in text
    assert f'filter: {round(.5*40)} of 40 units zero' in repr(sp) and "left dense: 7 (a Linear has no unit 'filter')" in repr(sp)

def test_left_dense_says_why():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.e,self.a,self.b,self.unused,self.head = nn.Embedding(9, 8),nn.Linear(8, 8),nn.Linear(8, 8),nn.Linear(8, 8),nn.Linear(8, 2)
            nn.utils.parametrizations.weight_norm(self.b)
        def forward(self, x): return self.head(self.a(self.b(self.e(x).mean(1)).relu()).relu())
    net,x = Many(),torch.randint(0, 9, (2, 3))
    assert Sparsifier(net).left_dense=={'e':'an Embedding, not named in `layers`', 'b':'its weight is computed from others'}
    left = Sparsifier(net, 'neuron', sample=x).left_dense
    assert left.keys()=={'e','b','unused','head'} and 'output' in left['head'] and 'not' in left['unused'] or 'nothing' in left['unused']
    assert 'last layer' in Sparsifier(net, 'neuron', coupled=False).left_dense['head']
    assert "no unit 'filter'" in Sparsifier(cnn(), 'filter', coupled=False).left_dense['8']
    sp = Sparsifier(cnn(), '2:4')
    assert '3 inputs are not a multiple of 4' in sp.left_dense['0'] and '0' in sp.report().index

def test_embeddings_only_when_asked():
    net = Vectors()
    with pytest.raises(ValueError, match='nothing to sparsify|no layer'): Sparsifier(net)
    Sparsifier(net, layers=nn.Embedding).sparsify(.5)
    assert zeros(net.a)+zeros(net.b)==round(.5*40*12)
    net = Vectors()
    Sparsifier(net, 'row', layers='a', context='local').sparsify(.25)
    assert dead(net.a)==6 and zeros(net.a)==72 and zeros(net.b)==0
