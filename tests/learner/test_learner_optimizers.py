"The optimizer of a condensed Learner takes the steps that the masked network takes."
from copy import deepcopy
import numpy as np, pytest, torch
from fastai.callback.all import *
from fastai.tabular.all import *
from fastai.text.all import *
from fastai.vision.all import *
from torch import nn
from fasterprune.all import *
from fasterprune.core.optimizer_state import slice_state
from support.nets import halve
from support.learners import bare, error, named_groups, same, split, tensors, trained

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

@pytest.fixture(autouse=True)
def seed(): set_seed(0)

class Losses(Callback):
    "The loss of each step."
    def before_fit(self): self.losses = []
    def after_loss(self): self.losses.append(self.learn.loss.item())

@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)

def step_losses(learn, *cbs):
    cb = Losses()
    set_seed(1)
    learn.fit(3, slice(1e-4, 1e-3), wd=1e-2, cbs=[cb, *cbs])
    return np.array(cb.losses)

def torchs(opt, **kwargs): return partial(OptimWrapper, opt=opt, **kwargs)
optimizers = dict(adam=Adam, sgd=SGD, momentum=partial(SGD, mom=.9), rmsprop=partial(RMSProp, mom=.9), radam=RAdam, qhadam=QHAdam, ranger=ranger,
    torch_sgd=torchs(torch.optim.SGD, momentum=.9), torch_adamw=torchs(torch.optim.AdamW), torch_amsgrad=torchs(torch.optim.Adam, amsgrad=True),
    torch_nadam=torchs(torch.optim.NAdam), torch_adagrad=torchs(torch.optim.Adagrad), torch_asgd=torchs(torch.optim.ASGD))

@pytest.mark.parametrize('name', optimizers)
def test_kept_optimizer_takes_the_steps_of_the_masked_network(name, double):
    learn = trained(optimizers[name])
    small,fresh = learn.condense(keep_opt=True),learn.condense()
    assert small.condensed.report.params_after < .4*small.condensed.report.params_before and fresh.opt is None
    assert small.opt.hypers==learn.opt.hypers and named_groups(small)==named_groups(learn) and type(small.opt) is type(learn.opt)
    masked,cut,anew = step_losses(learn, KeepZeros()),step_losses(small),step_losses(fresh)
    assert abs(masked-cut).max() <= 1e-9
    if name not in ('sgd', 'torch_asgd'): assert abs(masked-anew).max() >= 1e-5, 'the state does not matter, so that nothing was tested'
    assert error(learn, small) <= 1e-9

def test_kept_optimizer_is_a_copy():
    learn = trained(ranger)
    learn.freeze_to(1)
    learn.fit(1, 1e-3, cbs=KeepZeros())
    before,slow = deepcopy(learn.opt.opt.state_dict()),deepcopy(learn.opt.slow_weights)
    small = learn.condense(keep_opt=True)
    assert small.opt.frozen_idx==1 and [p.requires_grad for p in small.model.parameters()]==[p.requires_grad for p in learn.model.parameters()]
    for group,kept in zip(small.opt.param_lists, small.opt.slow_weights): assert [p.shape for p in group]==[p.shape for p in kept]
    small.fit(2, 1e-2)
    assert str(before)==str(learn.opt.opt.state_dict()) and str(slow)==str(learn.opt.slow_weights)

@pytest.mark.parametrize('make', [partial(torch.optim.AdamW, lr=1e-3), partial(torch.optim.SGD, lr=1e-2, momentum=.9), partial(Adam, lr=1e-3)])
def test_in_place_the_optimizer_goes_on(make, double):
    learn = bare()
    learn.fit(1, 1e-3, cbs=SparsifyCallback(.5, 'filter', 'local'))
    x,y = learn.dls.one_batch()
    model = learn.model.train()
    opt = make(list(model.parameters()))
    mask = find_zeros(model, x)
    def steps(model, opt, mask=None):
        found = []
        for i in range(5):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            for n,p in model.named_parameters():
                if mask and n in mask: p.grad.mul_(mask[n])
            opt.step()
            opt.zero_grad()
            found.append(loss.item())
        return np.array(found)
    steps(model, opt, mask)
    masked = deepcopy(model)
    other = make(list(masked.parameters()))
    other.load_state_dict(deepcopy(opt.state_dict()))
    c = Condenser(model, x).condense(inplace=True)
    c.slice_optimizer(opt)
    assert c.model is model and c.report.params_after < .4*c.report.params_before
    assert all(o.shape==p.shape for p in model.parameters() for o in opt.state[p].values() if isinstance(o, torch.Tensor) and o.ndim)
    assert abs(steps(model, opt)-steps(masked, other, find_zeros(masked, x))).max() <= 1e-9

class Branch(nn.Module):
    "A branch without a weight that is not zero, over what came in."
    def __init__(self, n=8):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n))
        self.branch[0].weight.data.zero_()
        self.branch[1].bias.data.uniform_(.5, 1)
    def forward(self, x): return x + self.branch(x)

@pytest.mark.parametrize('name', ['adam', 'ranger', 'torch_adamw'])
def test_constant_takes_the_place_of_a_dead_branch_in_the_groups(name):
    learn = bare(optimizers[name], lambda m: [params(m[:2]), params(m[2:])])
    learn.model = nn.Sequential(nn.Conv2d(3, 8, 3), Branch(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    learn.unfreeze()
    learn.fit(1, 1e-3, cbs=KeepZeros())
    with torch.no_grad(): learn.model[1].branch[0].weight.zero_()
    small = learn.condense(keep_opt=True)
    names = [n for n,_ in small.model.named_parameters()]
    made = [n for n in names if n not in dict(learn.model.named_parameters())]
    assert len(made)==1 and made[0].startswith('1.branch') and error(learn, small) <= 1e-5
    assert named_groups(small)==[[n for n in names if n[0] in '01'], [n for n in names if n[0]=='5']]
    before = tensors(small)
    small.fit(1, 1e-3)
    assert not torch.equal(tensors(small)[made[0]], before[made[0]])
    learn.train_bn,learn.opt = False,None
    learn.freeze()
    frozen = learn.condense()
    assert [p.requires_grad for p in frozen.model.parameters()]==[n[0]=='5' for n in names]

def test_in_place_an_optimizer_without_the_constant_of_a_dead_branch_is_an_error():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Branch(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    opt = torch.optim.SGD(model.parameters(), lr=1e-2)
    c = Condenser(model, torch.randn(2, 3, 8, 8)).condense(inplace=True)
    with pytest.raises(ValueError, match='has taken the place of a dead branch'): c.slice_optimizer(opt)
    opt.add_param_group(dict(params=[p for n,p in model.named_parameters() if n not in c.dense]))
    c.slice_optimizer(opt)

def test_nothing_to_cut_keeps_any_state():
    learn = bare(torchs(torch.optim.Adafactor))
    learn.fit(1, 1e-3)
    assert learn.condense(keep_opt=True).opt.opt.state_dict()['state'].keys()==learn.opt.opt.state_dict()['state'].keys()

def test_state_of_unknown_shape_is_an_error_that_names_it():
    learn = trained(torchs(torch.optim.Adafactor))
    before = tensors(learn)
    with pytest.raises(ValueError, match=r"keeps 'row_var' for '0.weight', which has shape \(8, 3, 3, 1\) where the parameter has \(8, 3, 3, 3\)"): learn.condense(keep_opt=True)
    assert same(tensors(learn), before)
    step_losses(learn.condense())
    learn = trained()
    learn.opt.state[learn.model[3].weight]['blocks'] = [torch.zeros(2)]
    with pytest.raises(ValueError, match="keeps 'blocks' for '3.weight', which is of type list"): learn.condense(keep_opt=True)

def test_slices_are_cut_all_or_none():
    p,q = nn.Parameter(torch.randn(4, 3)),nn.Parameter(torch.randn(5))
    opt = torch.optim.Adam([p, q])
    (p.sum()+q.sum()).backward()
    opt.step()
    state = deepcopy(opt.state_dict())
    opt.state[q]['odd'] = torch.zeros(7)
    slices = {p:('p', p.shape, {0:tensor(1,3), 1:tensor(0,)}), q:('q', q.shape, {})}
    with pytest.raises(ValueError, match="'odd' for 'q'"): slice_state(opt, slices)
    assert opt.state[p]['exp_avg'].shape==(4,3)
    del opt.state[q]['odd']
    slice_state(opt, slices)
    for k in ('exp_avg', 'exp_avg_sq'): assert torch.equal(opt.state[p][k], state['state'][0][k][[1,3]][:,:1]) and torch.equal(opt.state[q][k], state['state'][1][k])
    assert opt.state[p]['step']==1

def test_optimizer_that_was_built_before_goes_over_to_the_small_network():
    learn = bare()
    learn.opt_func = OptimWrapper(opt=torch.optim.SGD(learn.model.parameters(), lr=1e-2, momentum=.9))
    learn.fit(1, 1e-2, cbs=SparsifyCallback(.5, 'filter', 'local'))
    for keep_opt in (False, True):
        small,before = learn.condense(keep_opt=keep_opt),tensors(learn)
        weights = tensors(small)
        small.fit(1, 1e-2)
        assert same(tensors(learn), before) and not torch.equal(small.model[0].weight, weights['0.weight'])

def test_splitter_that_does_not_look_at_its_model_is_an_error():
    learn = bare()
    learn.splitter = lambda m: split(learn.model)
    halve(learn.model)
    with pytest.raises(ValueError, match='the splitter gives parameters of the dense network'): learn.condense()
