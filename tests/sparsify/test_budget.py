"Budgets: what condensing leaves is within them, one unit less would not be, and what is impossible is said."
import itertools, warnings
from copy import deepcopy
import pytest, torch
from fastai.basics import Callback, set_seed
from fastai.callback.training import GradientAccumulation
from torch import nn
from fasterprune.all import *
from fasterprune.condense.budget import Budget
from fasterprune.sparsify import by_macs, criteria, criterion
from fasterprune.core.warnings import FasterpruneWarning
from fasterprune.sparsify.budget_search import BudgetSearch
from fasterprune.sparsify.choosing import weigh
from fasterprune.studies.networks import resnet
from support.lanes import always
from support.sparsity import cnn, fit, learner

x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

class Residual(nn.Module):
    "Units that are tied by a sum, depthwise ones, and a gate."
    def __init__(self):
        super().__init__()
        def _conv(i, o, k=3, **kwargs): return nn.Sequential(nn.Conv2d(i, o, k, padding=k//2, bias=False, **kwargs), nn.BatchNorm2d(o), nn.ReLU())
        self.stem,self.a,self.b = _conv(3, 16),_conv(16, 24, 1),_conv(24, 24, groups=24)
        self.gate,self.c,self.head = nn.Linear(24, 24),nn.Conv2d(24, 16, 1),nn.Linear(16, 5)
    def forward(self, x):
        y = self.stem(x)
        z = self.b(self.a(y))
        z = z*self.gate(z.mean((2, 3))).sigmoid()[...,None,None]
        return self.head((y+self.c(z)).mean((2, 3)))

def net(make=Residual, seed=0):
    torch.manual_seed(seed)
    return make().eval()

def counted(model, x=x):
    r = Condenser(model, x).condense().report
    return dict(macs=r.macs_after, params=r.params_after),dict(macs=r.macs_before, params=r.params_before)

def within(left, limits): return all(left[k]<=most for k,most in limits.items())

budgets = [Budget(macs=.75), Budget(macs=.5), Budget(macs=.25), Budget(params=.75), Budget(params=.25), Budget(macs=.6, params=.4), Budget(max_macs=30_000)]

@pytest.mark.parametrize('budget,context,make', always(5, itertools.product(budgets, ['global','local','macs'], [cnn, Residual])))
def test_within_and_one_unit_less_is_not(make, context, budget):
    model = net(make)
    _,whole = counted(model)
    sp = Sparsifier(model, 'filter', context, sample=x)
    try: sp.sparsify(budget)
    except ValueError as e: # then the last place is over the budget
        assert 'but the least' in str(e)
        other = Sparsifier(net(make), 'filter', context, sample=x)
        other.sparsify(sp.search.last)
        return _impossible(counted(other.model)[0], budget, whole)
    left,limits = counted(model)[0],budget.limits(**whole)
    assert within(left, limits) and left==sp.search.left(sp.search.now)
    fresh = Sparsifier(net(make), 'filter', context, sample=x)
    assert not within(BudgetSearch(fresh, budget).left(one_less(sp.search.now, fresh)), limits)

@pytest.mark.parametrize('budget,context,make', always(3, itertools.product(budgets, ['global','local','macs',None], [cnn, Residual])))
def test_one_more_unit_of_any_group_would_be_over(make, context, budget):
    sp = Sparsifier(net(make), 'filter', context, sample=x)
    search = BudgetSearch(sp, budget)
    try: dead = search.find()
    except ValueError: return # impossible, which another test looks at
    assert within(search.left(dead), search.limits)
    for i,d in enumerate(dead):
        for u in d.nonzero()[:,0]:
            more = [o.clone() for o in dead]
            more[i][u] = False
            assert not within(search.left(more), search.limits), (sp.groups[i].name, int(u))

@pytest.mark.parametrize('round_to', [2,4])
def test_as_many_more_as_are_asked_for_would_be_over(round_to):
    sp = Sparsifier(net(), 'filter', sample=x, round_to=round_to)
    search = BudgetSearch(sp, Budget(macs=.4))
    dead = search.find()
    assert all(int((~d).sum())%round_to==0 for d in dead)
    for i,d in enumerate(dead):
        if not d.any(): continue
        more = [o.clone() for o in dead]
        more[i][d.nonzero()[:round_to,0]] = False
        assert within(search.left(dead), search.limits) and not within(search.left(more), search.limits)

@pytest.mark.parametrize('mislead', [lambda w,whole: whole, lambda w,whole: 2*whole-w, lambda w,whole: w/50, lambda w,whole: w**2/whole])
@pytest.mark.parametrize('budget', [Budget(macs=.5), Budget(macs=.6, params=.7)], ids=str)
def test_weights_that_mislead_cost_questions_only(budget, mislead):
    "What is found is the same, whatever weights say about what is left."
    plain,other = [BudgetSearch(Sparsifier(net(), 'filter', sample=x), budget) for _ in range(2)]
    by_weights = other.by_weights
    other.by_weights = lambda dead: {k:mislead(w, other.whole[k]) for k,w in by_weights(dead).items()}
    assert all(map(torch.equal, plain.find(), other.find())) and plain.asked<=other.asked<=45

@pytest.mark.parametrize('context', ['global','local'])
def test_few_places_are_asked_for(context):
    "A network as deep as a ResNet-20: those that decide, and those that fill it up."
    sp = Sparsifier(resnet((3,16,16), 10, widths=(8,16,32), blocks=3).eval(), 'filter', context, sample=torch.randn(2, 3, 16, 16))
    for budget in (Budget(macs=.5), Budget(macs=.25), Budget(params=.3)):
        search = BudgetSearch(sp, budget)
        search.find()
        assert search.asked <= 16, (budget, search.asked)
    search.look_around() # the first time at the end of the way; then not at all
    before = search.asked
    search.look_around(.5)
    assert search.asked==before

class Uneven(nn.Module):
    "With few filters goes nearly all that is computed, with many hardly anything."
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Conv2d(3, 8, 5, padding=2),nn.Conv2d(8, 8, 5, padding=2)
        self.c,self.d,self.head = nn.Conv2d(8, 48, 1, stride=8),nn.Conv2d(48, 48, 1),nn.Linear(48, 5)
    def forward(self, x):
        for layer in (self.a, self.b, self.c, self.d): x = layer(x).relu()
        return self.head(x.mean((2, 3)))

@pytest.mark.parametrize('context', ['local','global'])
@pytest.mark.parametrize('budget', [Budget(macs=.5), Budget(macs=.3, params=.5)], ids=str)
def test_many_units_that_fit_into_the_room_of_one_are_few_questions(budget, context):
    "They live again together, as many as fit by their weights; then no other one would."
    search = BudgetSearch(Sparsifier(net(Uneven), 'filter', context, sample=torch.randn(1, 3, 24, 24)), budget)
    dead = search.find()
    assert search.asked <= 12 and within(search.left(dead, True), search.limits)
    for i,d in enumerate(dead):
        if not d.any(): continue
        more = [o.clone() for o in dead]
        more[i][search._best(i, d)[0]] = False
        assert not within(search.left(more), search.limits), i

def test_what_is_usual_for_a_budget():
    "All that goes with a unit counts where no criterion is given, in each layer by itself; for a sparsity it is its own weights, as ever."
    def _dead(*asked, **kwargs):
        sp = Sparsifier(net(), 'filter', sample=x, **kwargs)
        for a in asked: sp.sparsify(a)
        return [~g.alive for g in sp.groups]
    def _same(a, b): return all(map(torch.equal, a, b))
    budget = Budget(macs=.5)
    assert _same(_dead(budget), _dead(budget, context='local', criterion='group_magnitude'))
    assert _same(_dead(.5), _dead(.5, context='global', criterion='large_final'))
    assert not _same(_dead(budget), _dead(budget, criterion='large_final'))
    assert _same(_dead(budget, .8), _dead(budget, .8)) and not _same(_dead(budget, .8), _dead(budget, .8, criterion='group_magnitude'))
    for sparsity,name in ((budget, 'group_magnitude'), (.5, 'large_final')):
        assert SparsifyCallback(sparsity, 'filter').criterion is criteria[name]
        assert SparsifyCallback(sparsity, 'filter', criterion='taylor').criterion is criteria['taylor']

class ReadsItself(nn.Module):
    "Units of which some weights are read by themselves."
    def __init__(self):
        super().__init__()
        self.stem,self.block,self.head = nn.Linear(6, 10),nn.Linear(10, 10),nn.Linear(10, 5)
    def forward(self, x):
        y = self.stem(x)
        return self.head(y+self.block(y).relu())

class Encoder(nn.Module):
    "Attention, whose projections read the same features as other layers."
    def __init__(self):
        super().__init__()
        self.stem,self.head = nn.Linear(6, 8),nn.Linear(8, 5)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0., batch_first=True)
    def forward(self, x): return self.head(self.block(self.stem(x)).mean(1))

@pytest.mark.parametrize('make,granularity', [(Residual, 'filter'), (Residual, 'feature'), (cnn, 'filter'), (cnn, 'channel'), (ReadsItself, 'neuron'),
    (ReadsItself, 'feature'), (Encoder, 'neuron'), (Encoder, 'feature')])
def test_all_that_goes_with_a_unit_counts(make, granularity):
    "What loses least is what is zeroed: the norm of all weights that a dead unit takes along, from both sides, each once, and of scales."
    model = net(make)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, (nn.BatchNorm2d,nn.LayerNorm)): m.weight.uniform_()
    sp = Sparsifier(model, granularity, criterion='group_magnitude', sample=x if make in (Residual,cnn) else x[:,0,:,:6])
    whole = sum(float((p.detach()**2).sum()) for n,p in model.named_parameters() if n.endswith('weight'))
    for g in sp.groups:
        score = sp.scorer.score(g)
        for u in range(0, g.n, 5):
            other = deepcopy(model)
            with torch.no_grad(): zero_unit(other, g, u)
            left = sum(float((p.detach()**2).sum()) for n,p in other.named_parameters() if n.endswith('weight'))
            assert abs(float(score[u])**2-(whole-left)) < 1e-3, (g.name, u)

def test_a_mean_is_over_all_that_goes_with_a_unit():
    "Of weights that read it, too, but for those whose own unit is dead: a network that shrinks has them no more."
    @criterion(pointwise=True, coupled=True)
    def _mean(weight, context): return weight.abs()
    model = net(cnn)
    sp = Sparsifier(model, 'filter', 'local', _mean, sample=x)
    with torch.no_grad(): model[3].weight[:4] = 0
    w,scale,reader = model[0].weight.detach(),model[1].weight.detach(),model[3].weight.detach()[4:]
    parts = [w.flatten(1), scale[:,None], reader.transpose(0, 1).flatten(1)]
    assert torch.allclose(sp.scorer.score(sp.groups[0]), torch.cat(parts, 1).abs().mean(1))

def test_what_is_dead_counts_nowhere():
    "Momentum moves what is dead before it is zeroed again: a network that has shrunk knows nothing of it, and what follows is the same."
    moved,plain = [Sparsifier(net(), 'filter', 'global', sample=x) for _ in range(2)]
    for sp in (moved, plain): sp.sparsify(Budget(macs=.3), .7)
    with torch.no_grad():
        for n,mask in moved.masks.items(): moved.params[n].add_(10*~mask)
    for sp in (moved, plain): sp.sparsify(Budget(macs=.3))
    assert all(torch.equal(s, plain.search.scores[k]) for k,s in moved.search.scores.items())
    assert all(map(torch.equal, moved.search.now, plain.search.now))

def zero_unit(model, g, unit):
    "Zero all that condensing would take out with it."
    params = dict(model.named_parameters())
    for s in g.weights+g.others+g.beyond:
        at = torch.full((g.n,), 1.)
        at[unit] = 0
        params[s.param].mul_(s.spread(at, params[s.param], 1.))

def test_a_weight_elsewhere_that_is_no_number_is_told():
    model = net(cnn)
    sp = Sparsifier(model, 'filter', layers='0', criterion='group_magnitude', sample=x)
    reader = next(m for n,m in model.named_modules() if n!='0' and isinstance(m, (nn.Conv2d,nn.Linear)))
    with torch.no_grad(): reader.weight[0,0] = torch.nan
    with pytest.raises(ValueError, match='are not finite'): sp.sparsify(.5)

def test_outputs_are_compared_in_the_end():
    "As if more stayed than is dead once a certain unit lives, one that still fits by what is dead."
    def _search(): return BudgetSearch(Sparsifier(net(cnn), 'filter', sample=x), Budget(macs=.5))
    search = _search()
    dead = search.find()
    i,unit = next((i, int((a&~b).nonzero()[0])) for i,(a,b) in enumerate(zip(search._first(False), dead)) if (a&~b).any())
    other = _search()
    plain = other.left
    def _left(dead, verify=False): return {k:v*(1.2 if verify and not dead[i][unit] else 1) for k,v in plain(dead).items()}
    other.left = _left
    assert _left(dead, True)['macs'] > other.limits['macs'] >= _left(other.find(), True)['macs']

def _impossible(left, budget, whole): assert not within(left, budget.limits(**whole))

def one_less(dead, fresh):
    "What was dead before the last unit died: in all layers by score, or in each by its share; of layers that are as wide the later one dies last."
    scores = [fresh.scorer.score(g) for g in fresh.groups]
    def _of_all(i):
        score = (scores[i]-scores[i].mean())/scores[i].std(correction=0)
        if fresh.context=='macs': weigh(score, fresh.unit_macs.now()[fresh.groups[i].key], by_macs.per_mac)
        return score[dead[i]].max()
    def _of_own(i): return (int(dead[i].sum())-.5)/len(dead[i]),i
    i = max((i for i,d in enumerate(dead) if d.any()), key=_of_own if fresh.context=='local' else _of_all)
    last = torch.where(dead[i], scores[i], -torch.inf).argmax()
    return [d & ~((torch.arange(len(d))==last)&(j==i)) for j,d in enumerate(dead)]

def test_the_states_of_a_fit_are_within_at_the_end():
    "With inputs that are pruned, too, with a network that shrinks, and with accumulated gradients; masks stay once the budget is reached."
    def _fit(*cbs, epochs=3, **kwargs):
        set_seed(0)
        learn = learner(cnn(), n=48, shape=(3,8,8))
        cb = SparsifyCallback(Budget(macs=.5), 'filter', **kwargs)
        fit(learn, epochs, cb, *cbs)
        small = learn if any(isinstance(c, CondenseCallback) for c in cbs) else learn.condense()
        return small.condensed.report,cb
    for cbs in ([], [InputPruneCallback(.3, granularity='channel')], [GradientAccumulation(24)]):
        r,cb = _fit(*cbs)
        assert .4*r.macs_before < r.macs_after <= .5*r.macs_before and cb.sparsifier.search.left(cb.sparsifier.search.now)['macs']==r.macs_after
    r,cb = _fit(end_epoch=.5)
    assert r.macs_after <= .5*r.macs_before and len({s for p,s in cb.history if p>=.5})==1
    wide,narrow = _fit()[0],_fit(CondenseCallback())[0]
    assert (wide.macs_after,wide.params_after,wide.macs_before)==(narrow.macs_after,narrow.params_after,narrow.macs_before)

@pytest.mark.parametrize('schedule', ['one_cycle','agp'])
def test_nothing_dies_at_the_last_moment(schedule):
    "Training has to make up for what dies last: the budget is reached a little before the schedule ends, and not by a jump of the last batch."
    set_seed(0)
    cb = SparsifyCallback(Budget(macs=.3), 'filter', 'global', schedule=schedule)
    fit(learner(cnn(), n=480, shape=(3,8,8)), 3, cb)
    assert len({s for p,s in cb.history if p>=.9})==1 and len({s for _,s in cb.history})>5

class CannotFollow(Callback):
    def apply_slicing(self, cuts, inputs): raise ValueError('cannot follow')

def test_what_was_found_stays_where_the_network_cannot_shrink():
    set_seed(0)
    learn,cb = learner(cnn(), n=48, shape=(3,8,8)),SparsifyCallback(Budget(macs=.5), 'filter', schedule='linear')
    with pytest.warns(FasterpruneWarning, match='cannot follow'): fit(learn, 2, cb, CondenseCallback(min_gain=0.), CannotFollow())
    left,whole = counted(learn.model)
    assert left['macs'] <= .5*whole['macs'] and cb.sparsifier.whole==whole and cb.sparsifier.search.places[0.]==whole

def test_a_search_goes_on():
    "From what a file has of it, without asking again."
    sp,fresh = [Sparsifier(net(), 'filter', sample=x) for _ in range(2)]
    sp.sparsify(Budget(macs=.5), .3)
    fresh.load_state_dict(sp.state_dict())
    assert fresh.search.state_dict()==sp.search.state_dict() and fresh.search.asked==0
    saved = sp.state_dict()
    before = deepcopy(saved['search'])
    third = Sparsifier(net(), 'filter', sample=x)
    third.load_state_dict(saved)
    third.sparsify(Budget(macs=.5))
    assert third.search.asked and saved['search']==before # what was saved is left alone
    fresh.apply()
    for f in (.4,.6,1.):
        for s in (sp, fresh): s.sparsify(Budget(macs=.5), f)
        assert all(map(torch.equal, sp.search.now, fresh.search.now)) and sp.search.places==fresh.search.places

@pytest.mark.parametrize('round_to', [2,4])
def test_multiples(round_to):
    model = net()
    sp = Sparsifier(model, 'filter', sample=x, round_to=round_to)
    sp.sparsify(Budget(macs=.5))
    left,whole = counted(model)
    assert left['macs'] <= .5*whole['macs'] and all((g.n-g.dead)%round_to==0 or not g.dead for g in sp.groups)

def test_again_and_tighter():
    "A budget that is reached is not asked for again; a tighter one is a share of the dense network."
    model = net()
    sp = Sparsifier(model, 'filter', sample=x)
    sp.sparsify(Budget(macs=.6))
    before,asked = sp.search.now,sp.search.asked
    sp.sparsify(Budget(macs=.6))
    assert sp.search.asked==asked and all(map(torch.equal, before, sp.search.now))
    sp.sparsify(Budget(macs=.3))
    left,whole = counted(model)
    assert left['macs'] <= .3*counted(net())[1]['macs'] and all((b&~a).sum()==0 for a,b in zip(sp.search.now, before))

def test_a_narrow_network_knows_what_the_dense_one_cost():
    sp = Sparsifier(net(), 'filter', sample=x)
    sp.sparsify(Budget(macs=.6))
    other = Sparsifier(net(), 'filter', sample=x)
    other.load_state_dict(sp.state_dict())
    other.apply()
    other.sparsify(Budget(macs=.4))
    assert other.search.whole==sp.search.whole and counted(other.model)[0]['macs']<=.4*sp.search.whole['macs']

def test_to_ask_changes_nothing():
    model = net()
    sp = Sparsifier(model, 'filter', sample=x)
    sp.sparsify(.2)
    before,reached = {k:v.clone() for k,v in model.state_dict().items()},sp.reached
    with pytest.raises(ValueError, match=r'Budget\(macs=1e-06\) is 0 MACs, but the least that filter units leave'): sp.sparsify(Budget(macs=1e-6))
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items()) and sp.reached==reached

def test_an_error_is_one_again():
    sp = Sparsifier(net(), 'filter', sample=x)
    for _ in range(2):
        with pytest.raises(ValueError, match='but the least that'): sp.sparsify(Budget(macs=1e-6))

def test_the_remedies_are_those_that_would_help():
    "More for the budget; layers that were left out, but not the output; fewer units that have to stay."
    def _said(budget=Budget(macs=.01), **kwargs):
        with pytest.raises(ValueError, match='but the least that') as e: Sparsifier(net(cnn), 'filter', sample=x, **kwargs).sparsify(budget)
        return str(e.value)
    plain = _said()
    assert plain.endswith(': ask for more') and 'MACs (' in plain
    assert _said(Budget(params=.01)).count(' parameters')==2
    assert _said(exclude='0').endswith(": ask for more, or let more layers take part (left dense: '0')")
    assert _said(min_units=4).endswith(': ask for more, or lower min_units=4')

def test_a_criterion_that_draws_draws_once():
    "All places that are asked for are of one order, another one for each seed; what is left is within the budget."
    found = []
    for seed in range(4):
        model = net()
        torch.manual_seed(seed)
        sp = Sparsifier(model, 'filter', 'local', 'random', sample=x)
        sp.sparsify(Budget(macs=.5))
        left,whole = counted(model)
        assert left['macs'] <= .5*whole['macs']
        for i,(g,d) in enumerate(zip(sp.groups, sp.search.now)):
            score = sp.search.scores[g.key]
            assert score[d].amax() < score[~d].amin()
            more = [o.clone() for o in sp.search.now]
            more[i][torch.where(d, score, -1.).argmax()] = False
            fresh = BudgetSearch(Sparsifier(net(), 'filter', 'local', sample=x), Budget(macs=.5))
            assert not within(fresh.left(more), fresh.limits), (seed, g.name)
        found.append(torch.cat(sp.search.now))
    assert any(not torch.equal(found[0], f) for f in found)

def test_a_plot_knows_no_sparsity_that_a_budget_wants_of_a_layer():
    cb = SparsifyCallback(Budget(macs=.5), 'filter', 'local')
    learn = learner(cnn(), shape=(3,8,8))
    fit(learn, 1, cb)
    assert len(cb.plot_sparsity().lines)==len(cb.sparsifier.groups)+1 # a line for each layer, and that of all

def test_bad_input():
    for granularity in ('weight','kernel','2:4'):
        with pytest.raises(ValueError, match='condensing takes out whole units only'): Sparsifier(cnn(), granularity, layers='3', sample=x).sparsify(Budget(macs=.5))
    with pytest.raises(ValueError, match='give a batch as `sample`'): Sparsifier(cnn(), 'filter', coupled=False).sparsify(Budget(macs=.5))
    with pytest.raises(ValueError, match='fraction of zeros'): InputPruneCallback(Budget(macs=.5))
    set_seed(0)
    with pytest.raises(ValueError, match='but the least that'): fit(learner(cnn(), shape=(3,8,8)), 1, SparsifyCallback(Budget(params=1e-4), 'filter'))

@pytest.mark.parametrize('budget', [Budget(macs=.4), Budget(params=.5)], ids=str)
def test_a_budget_is_of_the_dense_network_in_all_fits_of_a_callback(budget):
    "`fine_tune` has two fits; the second one begins with a network that has shrunk, and has nothing left to do, as with masks."
    def _tuned(*cbs):
        set_seed(0)
        learn = learner(cnn(), n=48, shape=(3,8,8), splitter=lambda m: [list(m[:3].parameters()), list(m[3:].parameters())])
        with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
            warnings.filterwarnings('error', '.*a fit before has left') # what is said of a share of what is left
            learn.fine_tune(2, 1e-2, cbs=[SparsifyCallback(budget, 'filter', 'global'), *cbs])
        return counted(learn.model)
    (masked,whole),(narrow,_) = _tuned(),_tuned(CondenseCallback())
    assert within(masked, budget.limits(**whole)) and narrow==masked

@pytest.mark.parametrize('kwargs,message', [(dict(), 'but the least that'), (dict(start_epoch=1), 'but the least that'), (dict(granularity='weight'), 'condensing takes out whole units only')], ids=str)
def test_what_cannot_be_is_told_before_anything_is_trained(kwargs, message):
    set_seed(0)
    learn = learner(cnn(), shape=(3,8,8))
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match=message): fit(learn, 2, SparsifyCallback(Budget(params=1e-4), **{'granularity':'filter', **kwargs}))
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
