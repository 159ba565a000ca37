"Columns of a table that the network does not read are dropped: from the network, from the DataLoaders, and from what new rows have to hold."
import pickle
from functools import partial

import pytest
from fastai.tabular.all import *
from fasterprune.all import *

for name in [n for n in globals() if n.startswith('test')]: del globals()[name] # fastai's own helpers are no tests

cats,conts = ['city','kind','shape','day','paid'],['age','size','price','dist','temp']

def rows(n=96, seed=0):
    "5 categorical columns of 2 to 7 levels, 5 continuous ones, of which every fifth `size` and every seventh `price` is missing, and two targets."
    rnd = np.random.RandomState(seed)
    df = pd.DataFrame({k:rnd.choice(list('abcdefg')[:levels], n) for k,levels in zip(cats, (6,4,3,7,2))})
    for i,k in enumerate(conts): df[k] = rnd.randn(n)*(i+1) + i
    df['yes'],df['y'] = np.where((df.kind>'b')^(df.age>0), 'yes', 'no'),df.dist + (df.city>'c')
    df.loc[::5,'size'],df.loc[::7,'price'] = np.nan,np.nan
    return df

procs = [Categorify, FillMissing, Normalize]

def table(y='yes', procs=procs, cat_names=cats, cont_names=conts, opt_func=partial(SGD, mom=.9), **kwargs):
    torch.manual_seed(0)
    block = CategoryBlock() if y=='yes' else RegressionBlock()
    dls = TabularDataLoaders.from_df(rows(), procs=procs, cat_names=list(cat_names), cont_names=list(cont_names), y_names=y, y_block=block,
        valid_idx=list(range(32)), bs=16, num_workers=0, device='cpu')
    learn = tabular_learner(dls, layers=[20,10], metrics=accuracy if y=='yes' else rmse, opt_func=opt_func, **kwargs)
    quiet(learn)
    return learn

def quiet(learn):
    learn.remove_cbs(learn.cbs.filter(lambda cb: isinstance(cb, ProgressCallback)))
    learn.logger = noop

def columns_of(learn):
    "Which columns of the first layer read each column of the table."
    at,found = 0,{}
    sizes = [e.embedding_dim for e in learn.model.embeds] + [1]*learn.model.n_cont
    for n,s in zip(learn.dls.x_names, sizes): found[n],at = slice(at, at+s),at+s
    return found

@torch.no_grad()
def kill(learn, *names):
    "Zero what the first layer has for these columns."
    where = columns_of(learn)
    for n in names: learn.model.layers[0][0].weight[:,where[n]] = 0
    return learn

def preds(learn, df=None): return learn.get_preds(dl=None if df is None else learn.dls.test_dl(df))[0]

def close(a, b):
    a,b = a.detach(),b.detach()
    assert a.shape==b.shape and float((a-b).abs().max())<=1e-5, float((a-b).abs().max())

flags = ['size_na','price_na']
dead_sets = dict(some=['kind','day','age','temp'], a_cat=['city'], a_cont=['dist'], flags=flags, a_flag=['price_na'], flag_alone=['size'], column_and_flag=['size','size_na'],
    mixed=['size','price_na','paid','dist'], all_cats=cats+flags, cats_but_flags=cats, all_conts=conts, conts_and_flags=conts+flags,
    all_but_one=cats+flags+conts[:4], all_but_a_cat=cats[1:]+flags+conts)

# the network

def net(kept=None, **kwargs):
    torch.manual_seed(1)
    return TabularModel([(5,3),(4,2),(3,4),(6,1)], 3, 2, [12,8], **kwargs).eval()

def inputs(n=9):
    torch.manual_seed(2)
    return torch.randint(0, 3, (n,4)),torch.randn(n, 3)

first = [slice(0,3),slice(3,5),slice(5,9),slice(9,10),slice(10,11),slice(11,12),slice(12,13)]

def dead_net(dead, **kwargs):
    "A network that does not read some of its 4 categorical and 3 continuous columns."
    m = net(**kwargs)
    lin = next(l for l in m.layers[0] if isinstance(l, nn.Linear))
    with torch.no_grad():
        for i in dead: lin.weight[:,first[i]] = 0
    return m

styles = dict(plain={}, no_bn=dict(use_bn=False), no_bn_cont=dict(bn_cont=False), bn_first=dict(lin_first=False), neither=dict(use_bn=False, bn_cont=False),
    y_range=dict(y_range=(0,1)))
kinds = dict(cat=[1], cats=[0,2], cont=[5], both=[1,3,4], all_cats=[0,1,2,3], all_conts=[4,5,6], all_cats_and_one=[0,1,2,3,6],
    all_conts_and_one=[0,4,5,6], one_left=[0,1,2,3,4,6])

def left_of(dead): return [i for i in range(4) if i not in dead],[i-4 for i in range(4, 7) if i not in dead]

def is_cut(c, dead):
    "Is `c` without the columns `dead`, and does it know?"
    embeds,ns = left_of(dead)
    widths = [(5,3),(4,2),(3,4),(6,1)]
    m,xs = c.model,c.inputs(*inputs())
    assert [(e.num_embeddings,e.embedding_dim) for e in m.embeds]==[widths[i] for i in embeds] and [*m._modules['embeds']._modules]==list(map(str, range(len(embeds))))
    assert (m.n_emb,m.n_cont)==(sum(widths[i][1] for i in embeds),len(ns)) and (m.bn_cont is None or m.bn_cont.num_features==m.n_cont>0)
    assert [x.shape for x in xs]==[(9,len(embeds)),(9,len(ns))] and torch.equal(xs[0], inputs()[0][:,embeds]) and torch.equal(xs[1], inputs()[1][:,ns])
    lin = next(l for l in m.layers[0] if isinstance(l, nn.Linear))
    assert lin.in_features==lin.weight.shape[1]==m.n_emb+m.n_cont
    assert (c.report.inputs_before,c.report.inputs_after)==(7,len(embeds)+len(ns)) and c.report.max_error<1e-6
    gone = {l['layer'] for l in c.report.layers if l['outputs_after']==0}
    assert gone=={f'embeds.{i}' for i in range(4) if i not in embeds}

@pytest.mark.parametrize('dead', kinds)
@pytest.mark.parametrize('style', styles)
def test_network(style, dead):
    m,xs = dead_net(kinds[dead], **styles[style]),inputs()
    before = {k:v.clone() for k,v in m.state_dict().items()}
    c = Condenser(m, xs).condense()
    is_cut(c, kinds[dead])
    for n in (9,1,2): close(c.model(*c.inputs(*[x[:n] for x in xs])), m(*[x[:n] for x in xs]))
    assert type(c.model) is TabularModel and all(torch.equal(v, before[k]) for k,v in m.state_dict().items()) and len(m.embeds)==4
    assert n_params(c.model)==c.report.params_after<c.report.params_before==n_params(m)
    c.model.train()(*c.inputs(*xs)).sum().backward()
    assert all(p.grad is not None and p.grad.shape==p.shape for p in c.model.parameters())

@pytest.mark.parametrize('dead', kinds)
def test_network_in_place(dead):
    m,xs = dead_net(kinds[dead]),inputs()
    want,table = m(*xs).detach(),m.layers[0][0].weight
    c = Condenser(m, xs).condense(inplace=True)
    assert c.model is m and m.layers[0][0].weight is table
    is_cut(c, kinds[dead])
    close(m(*c.inputs(*xs)), want)

@pytest.mark.parametrize('dead', kinds)
def test_saved_network(dead, tmp_path):
    m,xs = dead_net(kinds[dead]),inputs()
    c = Condenser(m, xs).condense()
    path = c.save(tmp_path/'a.safetensors')
    torch.manual_seed(9)
    l = load_condensed(path, TabularModel([(5,3),(4,2),(3,4),(6,1)], 3, 2, [12,8]).eval())
    is_cut(l, kinds[dead])
    assert torch.equal(l.model(*l.inputs(*xs)), c.model(*c.inputs(*xs))) and str(l.report)==str(c.report)
    assert list(l.model.state_dict())==list(c.model.state_dict()) and l.save(tmp_path/'b.safetensors').read_bytes()==path.read_bytes()

@pytest.mark.parametrize('style', styles)
def test_all_columns_dead(style):
    m,xs = dead_net(range(7), **styles[style]),inputs()
    c = Condenser(m, xs).condense()
    assert c.report.inputs_after==1 and len(set(map(tuple, m(*xs).tolist())))==1
    close(c.model(*c.inputs(*xs)), m(*xs))

@pytest.mark.parametrize('style', styles)
def test_all_columns_dead_of_one_kind(style):
    torch.manual_seed(1)
    x_cat,x_cont = inputs()
    only_conts = TabularModel([], 3, 2, [8], **styles[style]),(x_cat[:,:0],x_cont)
    only_cats = TabularModel([(5,3),(4,2)], 0, 2, [8], **styles[style]),(x_cat[:,:2],x_cont[:,:0])
    for m,xs in (only_conts,only_cats):
        next(l for l in m.eval().layers[0] if isinstance(l, nn.Linear)).weight.data.zero_()
        c = Condenser(m, xs).condense()
        assert c.report.inputs_after==1
        close(c.model(*c.inputs(*xs)), m(*xs))

def test_columns_that_feed_dead_neurons():
    "Two columns are read by neurons that nobody hears, the other columns by the rest."
    m,xs = net(use_bn=False),inputs()
    with torch.no_grad():
        for i in (2,5): m.layers[0][0].weight[6:,first[i]] = 0
        m.layers[1][0].weight[:,:6] = 0
    c = Condenser(m, xs).condense()
    is_cut(c, [2,5])
    assert c.model.layers[0][0].out_features==6
    close(c.model(*c.inputs(*xs)), m(*xs))

def test_columns_stay_when_asked_for():
    m,xs = dead_net([0,5]),inputs()
    c = Condenser(m, xs, inputs=False).condense()
    assert c.inputs.dims==[None,None] and len(c.model.embeds)==4 and c.report.inputs_after==7 and c.blueprint['table'] is None
    close(c.model(*xs), m(*xs))

def test_constant_embedding_goes_into_a_bias():
    m,xs = net(use_bn=False),inputs()
    with torch.no_grad(): m.embeds[1].weight[:] = m.embeds[1].weight[:1].clone()
    c = Condenser(m, xs).condense()
    is_cut(c, [1])
    close(c.model(*c.inputs(*xs)), m(*xs))

class Reversed(TabularModel):
    "Reads its categorical columns from the last to the first."
    def forward(self, x_cat, x_cont=None): return super().forward(x_cat.flip(1), x_cont)

def test_own_forward_keeps_its_categories():
    torch.manual_seed(1)
    m,xs = Reversed([(5,3),(4,2),(3,4),(6,1)], 3, 2, [12,8]).eval(),inputs()
    with torch.no_grad(): m.layers[0][0].weight[:,[3,4,11]] = 0
    c = Condenser(m, xs).condense(verify=False)
    assert c.inputs.dims==[None,1] and [e.embedding_dim for e in c.model.embeds]==[3,1,4,1]
    close(c.model(*c.inputs(*xs)), m(*xs))

def test_hooked_embedding_keeps_its_category():
    m,xs,seen = dead_net([0,1]),inputs(),[]
    m.embeds[0].register_forward_hook(lambda m, i, o: seen.append(o.shape[1]))
    c = Condenser(m, xs).condense()
    assert c.inputs.index0.tolist()==[0,2,3] and [e.embedding_dim for e in c.model.embeds]==[1,4,1]
    close(c.model(*c.inputs(*xs)), m(*xs))

def test_condensed_again():
    m,xs = dead_net([0,5]),inputs()
    a = Condenser(m, xs).condense()
    with torch.no_grad(): a.model.layers[0][0].weight[:,:2] = 0 # what was the embedding 1
    b = Condenser(a.model, a.inputs(*xs)).condense()
    assert b.blueprint['table']==dict(embeds=[1,2], n_emb=5, n_cont=2) and b.inputs.index0.tolist()==[1,2] and b.inputs.dims[1] is None
    close(b.model(*b.inputs(*a.inputs(*xs))), a.model(*a.inputs(*xs)))

@pytest.mark.parametrize('dead', ('all_cats','all_conts'))
def test_condensed_again_without_a_kind(dead):
    m,xs = dead_net(kinds[dead]),inputs()
    a = Condenser(m, xs).condense()
    with torch.no_grad(): a.model.layers[0][0].weight[:,0:3 if dead=='all_conts' else 1] = 0
    b = Condenser(a.model, a.inputs(*xs)).condense()
    assert b.report.inputs_after==b.report.inputs_before-1
    close(b.model(*b.inputs(*a.inputs(*xs))), a.model(*a.inputs(*xs)))

@pytest.mark.parametrize('make', (partial(torch.optim.Adam, lr=.01), lambda ps: SGD(list(ps), lr=.01, mom=.9)), ids=('torch','fastai'))
def test_optimizer_after_a_change_in_place(make):
    "It forgets what is gone, and takes the steps that it would have taken."
    xs,nets,opts = inputs(),[],[]
    for i in range(2):
        m = dead_net([1,4,5,6]).train()
        opt = make(m.parameters())
        def step(*xs):
            m(*xs).square().sum().backward()
            opt.step()
            opt.zero_grad()
            with torch.no_grad(): m.layers[0][0].weight[:,[3,4,10,11,12]] *= len(m.embeds)==3 # the zeros of the masked network
        step(*xs)
        m.eval()
        c = Condenser(m, xs).condense(inplace=bool(i))
        if i: c.slice_optimizer(opt)
        m.train()
        if i:
            m(*c.inputs(*xs)).square().sum().backward()
            opt.step()
        else: step(*xs)
        nets.append((m.eval(), c.inputs if i else None))
        opts.append(opt)
    close(nets[1][0](*nets[1][1](*xs)), nets[0][0](*xs))
    held = {id(p) for g in opts[1].param_groups for p in g['params']}
    assert held=={id(p) for p in nets[1][0].parameters()} and len(nets[1][0].embeds)==3 and nets[1][0].bn_cont is None

# the learner

def is_kept(small, dead, learn):
    "Do the DataLoaders of `small` know of the columns that are left, and of no others?"
    kc,kn = [n for n in learn.dls.cat_names if n not in dead],[n for n in learn.dls.cont_names if n not in dead]
    assert (list(small.dls.cat_names),list(small.dls.cont_names))==(kc,kn) and list(small.dls.valid.cat_names)==kc
    assert [type(f).__name__ for dl in small.dls.loaders for f in dl.after_batch.fs]==['ReadTabBatch']*2
    for dl,old in zip(small.dls.loaders, learn.dls.loaders):
        assert set(dl.items.columns)==set(old.items.columns)-set(dead) and (dl.bs,dl.shuffle,dl.drop_last,len(dl))==(old.bs,old.shuffle,old.drop_last,len(old))
        pd.testing.assert_frame_equal(dl.items, old.items[[*dl.items.columns]])
    names = {type(p).__name__:p for p in small.dls.procs.fs}
    assert set(names['Categorify'].classes)==set(kc) and (not kn or set(names['Normalize'].means)==set(names['Normalize'].stds)==set(kn)) and ('Normalize' in names)==bool(kn)

def needs(dead):
    "The raw columns that are needed: of what makes two, if one of them is."
    return [n for n in cats+conts if n not in dead or f'{n}_na' in flags and f'{n}_na' not in dead]

@pytest.mark.parametrize('dead', dead_sets)
def test_learner(dead, tmp_path):
    dead = dead_sets[dead]
    learn = kill(table(), *dead)
    names = list(learn.dls.cat_names),list(learn.dls.cont_names)
    state,items = {k:v.clone() for k,v in learn.model.state_dict().items()},learn.dls.train_ds.items.copy()
    small = learn.condense()
    is_kept(small, dead, learn)
    close(preds(small), preds(learn))
    df = rows(40, seed=1)
    cut = df[needs(dead)]
    close(preds(small, df), preds(learn, df))
    assert torch.equal(preds(small, cut), preds(small, df))
    for i in (0,1,5,7):
        close(small.predict(df.iloc[i])[2], learn.predict(df.iloc[i])[2])
        a,b = small.predict(cut.iloc[i]),small.predict(df.iloc[i])
        assert torch.equal(a[2], b[2]) and a[0].items.columns.tolist()==[*small.dls.x_names,'yes']
    learn.path = small.path = tmp_path
    small.export('small.pkl')
    again = load_learner(tmp_path/'small.pkl')
    quiet(again)
    assert torch.equal(again.predict(cut.iloc[5])[2], small.predict(cut.iloc[5])[2]) and torch.equal(preds(again, cut), preds(small, cut))
    assert (list(learn.dls.cat_names),list(learn.dls.cont_names))==names and all(torch.equal(v, state[k]) for k,v in learn.model.state_dict().items())
    pd.testing.assert_frame_equal(learn.dls.train_ds.items, items)
    assert set(learn.dls.procs.categorify.classes)==set(names[0]) and set(learn.dls.procs.fill_missing.na_dict)=={'size','price'}

@pytest.mark.parametrize('dead', ('some','mixed','all_cats','all_conts','flag_alone'))
def test_missing_column(dead):
    dead = dead_sets[dead]
    small,df = kill(table(), *dead).condense(),rows(20, seed=1)
    needed,spare = needs(dead),[n for n in cats+conts if n not in needs(dead)]
    for n in needed:
        with pytest.raises(ValueError) as e: small.dls.test_dl(df.drop(columns=n))
        said = str(e.value)
        assert f'of the {len(needed)} columns that the network needs, 1 is not in the table: {n!r}.' in said
        assert f'Needed: {", ".join(map(repr, needed))};' in said and f'not needed any more: {", ".join(map(repr, spare)) or "none"}.' in said
        with pytest.raises(ValueError, match=repr(n)): small.predict(df.drop(columns=n).iloc[0])
    if len(needed)>1:
        with pytest.raises(ValueError, match=f'2 are not in the table: {needed[0]!r}, {needed[1]!r}'): small.dls.test_dl(df.drop(columns=needed[:2]))

def test_what_fills_columns():
    "A column and its flag, the column alone, the flag alone."
    def state(*dead):
        small = kill(table(), *dead).condense()
        kept,fill = small.dls.procs.kept_columns,small.dls.procs.fill_missing
        return set(fill.na_dict),bool(fill.add_col),set(kept.fills),kept.flags,'size' in kept.needed
    assert state('age')==({'size','price'},True,set(),[],True)
    assert state('size','size_na')==({'price'},True,set(),[],False)
    assert state('size_na')==({'price'},True,{'size'},[],True)
    assert state('size')==({'price'},True,set(),['size'],True)
    assert state('size_na','price_na')==({'size','price'},False,set(),[],True)
    assert state('size','price')==(set(),True,set(),['size','price'],True)

tables = dict(no_fill=dict(procs=[Categorify, Normalize], cont_names=['age','dist','temp']), no_flags=dict(procs=[Categorify, FillMissing(add_col=False), Normalize]),
    not_normalized=dict(procs=[Categorify, FillMissing]), number=dict(y='y'), range=dict(y='y', y_range=(-5,9)), dropout=dict(config=dict(embed_p=.1, ps=.2)))

@pytest.mark.parametrize('kind', tables)
def test_kinds_of_tables(kind):
    learn = table(**tables[kind])
    dead = ['city','day','dist']
    small,df = kill(learn, *dead).condense(),rows(30, seed=1)
    kept = [n for n in learn.dls.x_names if n not in dead]
    assert list(small.dls.x_names)==kept
    close(preds(small), preds(learn))
    close(preds(small, df), preds(learn, df))
    assert torch.equal(preds(small, df.drop(columns=dead)), preds(small, df))
    assert [round(float(v), 6) for v in small.validate()]==pytest.approx([round(float(v), 6) for v in learn.validate()], abs=1e-5)

@pytest.mark.parametrize('names', (dict(cont_names=[], procs=[Categorify]), dict(cat_names=[], procs=[Normalize], cont_names=['age','dist','temp'])), ids=('cats','conts'))
def test_tables_of_one_kind(names):
    learn = table(**names)
    gone = learn.dls.x_names[1]
    small,df = kill(learn, gone).condense(),rows(30, seed=1)
    assert list(small.dls.x_names)==[n for n in learn.dls.x_names if n!=gone]
    close(preds(small), preds(learn))
    close(preds(small, df.drop(columns=gone)), preds(learn, df))

@pytest.mark.parametrize('opt', (partial(SGD, mom=.9), Adam, partial(OptimWrapper, opt=torch.optim.AdamW)), ids=('sgd','adam','torch'))
@pytest.mark.parametrize('dead', ('some','mixed','all_cats','all_conts'))
def test_training_goes_on(dead, opt):
    "The small network takes the steps that the masked one takes."
    dead = dead_sets[dead]
    learn = table(opt_func=opt)
    learn.fit(1, 1e-2)
    kill(learn, *dead)
    small = learn.condense(keep_opt=True)
    assert [id(p) for g in small.opt.param_groups for p in g['params']]==[id(p) for p in small.model.parameters()] and small.opt is not learn.opt
    for l in (small,learn):
        set_seed(0)
        l.fit(2, 1e-2, cbs=KeepZeros() if l is learn else None)
    close(preds(small), preds(learn))
    kept = [i for i,n in enumerate(learn.dls.cat_names) if n not in dead]
    for e,i in zip(small.model.embeds, kept): close(e.weight.detach(), learn.model.embeds[i].weight.detach())

def test_new_optimizer_and_freezing():
    learn = kill(table(), *dead_sets['some'])
    learn.freeze()
    small = learn.condense()
    assert list(small.dls.cat_names)==['city','shape','paid','size_na','price_na']
    small.unfreeze()
    small.fit_one_cycle(2, 1e-2)
    small.freeze()
    assert {id(p) for g in small.opt.param_groups for p in g['params']}=={id(p) for p in small.model.parameters()}
    learn.model.embeds[0].weight.requires_grad_(False)
    assert [p.requires_grad for p in learn.condense().model.embeds.parameters()]==[False,True,True,True,True]

def test_sparsified():
    "Neurons are pruned in the training, columns by hand: what is dead behind and before is gone."
    learn = table()
    kill(learn, 'day','size','size_na')
    learn.fit_one_cycle(3, 1e-2, cbs=[SparsifyCallback(.5, 'neuron', 'local'), KeepZeros()])
    small,df = learn.condense(),rows(30, seed=1)
    is_kept(small, ['day','size','size_na'], learn)
    assert [l.out_features for l in small.model.modules() if isinstance(l, nn.Linear)]==[10,5,2]
    close(preds(small, df.drop(columns=['day','size'])), preds(learn, df))
    before = preds(small)
    small.fit_one_cycle(1, 1e-2)
    assert not torch.equal(preds(small), before) and len(small.recorder.values)==1

def test_condensed_twice():
    learn = kill(table(), 'size', 'city')
    small = kill(learn.condense(), 'day', 'age', 'price_na')
    least,df = small.condense(),rows(30, seed=1)
    assert list(least.dls.x_names)==['kind','shape','paid','size_na','price','dist','temp']
    close(preds(least), preds(small))
    cut = df[['kind','shape','paid','size','price','dist','temp']]
    assert torch.equal(preds(least, cut), preds(least, df))
    close(preds(least, cut), preds(small, df))
    with pytest.raises(ValueError, match="'size'.*not needed any more: 'day', 'age', 'city'"): least.dls.test_dl(cut.drop(columns='size'))

class Log(TabularProc):
    "A column of one's own, made of another."
    order = -2
    def encodes(self, to): to['age'] = np.log1p(to['temp'].abs())

class Doubled(Transform):
    "Numbers twice as large."
    def encodes(self, x): return x

def test_batches_are_cut_where_a_proc_may_read_what_is_gone():
    learn = kill(table(procs=[Log, *procs]), 'temp', 'city')
    small,df = learn.condense(),rows(30, seed=1)
    assert [type(f).__name__ for f in small.dls.after_batch.fs]==['ReadTabBatch','InputSelector'] and 'temp' in small.dls.cont_names
    close(preds(small, df), preds(learn, df))
    close(preds(small), preds(learn))

def test_batches_are_cut_where_there_is_another_transform():
    learn = kill(table(), 'temp', 'city')
    for dl in learn.dls.loaders: dl.after_batch = Pipeline([*dl.after_batch.fs, Doubled()])
    small = learn.condense()
    assert 'InputSelector' in [type(f).__name__ for f in small.dls.after_batch.fs] and 'temp' in small.dls.cont_names
    close(preds(small), preds(learn))

def test_columns_stay_in_the_learner_when_asked_for():
    learn = kill(table(), 'temp', 'city')
    small = learn.condense(inputs=False)
    assert list(small.dls.x_names)==list(learn.dls.x_names)
    close(preds(small), preds(learn))

def test_order_and_weights_of_the_rows():
    "They are those of the old loaders."
    learn = kill(table(), 'temp', 'city')
    learn.dls.train.wgts = np.arange(64.)/np.arange(64.).sum()
    small,order = learn.condense(),[]
    for l in (learn,small):
        set_seed(0)
        order.append(torch.cat([x[1][:,0] for x in l.dls.train]))
    assert torch.equal(*order) and (small.dls.train.wgts==learn.dls.train.wgts).all() and len(order[0])==64
    train = small.dls.train
    assert train.dataset is small.dls.train_ds and train.fake_l.d is train and small.dls.train_ds.procs is small.dls.valid_ds.procs

def test_proc_in_a_file():
    kept = kill(table(), 'size', 'price_na').condense().dls.procs.kept_columns
    again = pickle.loads(pickle.dumps(kept))
    assert (again.needed,again.spare,again.fills,again.flags)==(cats+conts, [], dict(price=kept.fills['price']), ['size'])
