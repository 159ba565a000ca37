"Small networks of other packages with random weights, in which half of the heads, neurons and filters are dead, and how many parameters the others have."
import os
os.environ['HF_HUB_OFFLINE'] = '1'
from collections import Counter
from math import prod
import torch

class Pruned:
    "A network of which units die, one layer after the other, with the batch it takes. Each size of a parameter is reduced by what goes along with dead units."
    def __init__(self, model, **batch): self.model,self.batch,self.gone = model.eval(),batch,Counter()

    @property
    def right(self): return sum(prod(n-self.gone[id(p),d] for d,n in enumerate(p.shape)) for p in self.model.parameters())

    def goes(self, n, *params):
        "`n` units of each of `params`, pairs of a parameter and its dimension"
        for p,d in params:
            if p is not None: self.gone[id(p),d] += n

    @torch.no_grad()
    def dead(self, units, makes, reads=(), bias=True):
        "`units` of the layers and norms in `makes` are zero, with their biases if `bias`; those in `reads` have them as inputs."
        for m in makes:
            m.weight.transpose(0, d := out_dim(m))[units] = 0
            self.goes(len(units), (m.weight, d), (m.bias, 0))
            if bias and m.bias is not None: m.bias[units] = 0
        for m in reads: self.goes(len(units), (m.weight, 1-out_dim(m)))

def out_dim(m): return int(type(m).__name__=='Conv1D' or getattr(m, 'transposed', False))

@torch.no_grad()
def enliven(model):
    "Weights of a size that lets through what comes in, scales that are not 1, biases that are not 0."
    for n,p in model.named_parameters():
        if p.ndim>1: p.normal_(0, p[0].numel()**-.5)
        elif n.endswith('bias'): p.uniform_(-.2, .2)
        else: p.uniform_(.5, 1.5)
    return model

def lively(model, **batch): return Pruned(enliven(model), **batch)

def half(n): return torch.arange(0, n, 2)

def of_heads(heads, size):
    "The units of `heads`, each of which has `size`."
    return torch.cat([torch.arange(i*size, (i+1)*size) for i in heads])

# ---- transformers: four heads of size 8, two of them dead

sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
two = of_heads((0,2), 8)

def tokens(n, length): return torch.randint(5, 50, (n,length))
def lengths(n, length): return (torch.arange(length)[None] < torch.randint(3, length+1, (n,1))).long()

def bert(attn, masked):
    from transformers import BertConfig, BertModel
    net = lively(BertModel(BertConfig(**sizes, max_position_embeddings=16, attn_implementation=attn)), input_ids=(tokens, 9), **masks(masked))
    for l in net.model.encoder.layer:
        a = l.attention.self
        net.dead(two, (a.query,a.key,a.value), [l.attention.output.dense])
        net.dead(half(24), [l.intermediate.dense], [l.output.dense], bias=False)
    return net

def masks(masked, name='attention_mask'): return {name:(lengths, 9)} if masked else {}

def llama(attn, masked, cls='LlamaModel'):
    import transformers as tf
    config = tf.LlamaConfig(**sizes, num_key_value_heads=2, attn_implementation=attn, use_cache=cls!='LlamaModel', bos_token_id=1, eos_token_id=2)
    net = lively(getattr(tf, cls)(config), input_ids=(tokens, 9), **masks(masked))
    for l in getattr(net.model, 'model', net.model).layers:
        a = l.self_attn
        net.dead(of_heads((2,3), 8), [a.q_proj], [a.o_proj])
        net.dead(of_heads([1], 8), (a.k_proj,a.v_proj)) # which is that of both
        net.dead(half(24), (l.mlp.gate_proj,l.mlp.up_proj), [l.mlp.down_proj])
    return net

def llama_stream(tied):
    "Half of the residual stream is dead, from the embedding, which is the output layer if `tied`, through norms without a mean"
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(**sizes, num_key_value_heads=2, tie_word_embeddings=tied, use_cache=False, bos_token_id=1, eos_token_id=2)
    net = lively(LlamaForCausalLM(config), input_ids=(tokens, 9))
    core,units = net.model.model,half(32)
    with torch.no_grad(): core.embed_tokens.weight[:,units] = 0
    for l in core.layers:
        a,mlp = l.self_attn,l.mlp
        net.dead(units, (a.o_proj,mlp.down_proj), (a.q_proj,a.k_proj,a.v_proj,mlp.gate_proj,mlp.up_proj))
    norms = [n for l in core.layers for n in (l.input_layernorm,l.post_attention_layernorm)] + [core.norm]
    net.goes(16, *[(n.weight, 0) for n in norms], (core.embed_tokens.weight, 1))
    if not tied: net.goes(16, (net.model.lm_head.weight, 1))
    return net

def gpt2(attn, masked, cls='GPT2Model'):
    import transformers as tf
    config = tf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_inner=24, n_positions=16, attn_implementation=attn,
        use_cache=cls!='GPT2Model', bos_token_id=1, eos_token_id=2)
    net = lively(getattr(tf, cls)(config), input_ids=(tokens, 9), **masks(masked))
    for l in getattr(net.model, 'transformer', net.model).h:
        net.dead(torch.cat((two,two+32,two+64)), [l.attn.c_attn])
        net.dead(two, [], [l.attn.c_proj])
        net.dead(half(24), [l.mlp.c_fc], [l.mlp.c_proj], bias=False)
    return net

def t5(attn, masked):
    from transformers import T5Config, T5Model
    config = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=4, use_cache=False, attn_implementation=attn)
    net = lively(T5Model(config), input_ids=(tokens, 9), **masks(masked), decoder_input_ids=(tokens, 7))
    for l in [l for stack in (net.model.encoder,net.model.decoder) for b in stack.block for l in b.layer]:
        if hasattr(l, 'DenseReluDense'): net.dead(half(24), [l.DenseReluDense.wi], [l.DenseReluDense.wo])
        else:
            a = l.SelfAttention if hasattr(l, 'SelfAttention') else l.EncDecAttention
            net.dead(two, (a.q,a.k,a.v), [a.o])
            if a.has_relative_attention_bias: net.goes(2, (a.relative_attention_bias.weight, 1)) # one number for each head, the same in all layers
    return net

def vit(attn, masked=False):
    from transformers import ViTConfig, ViTModel
    config = ViTConfig(**{k:v for k,v in sizes.items() if k!='vocab_size'}, image_size=16, patch_size=8, attn_implementation=attn)
    net = lively(ViTModel(config), pixel_values=(torch.randn, 3, 16, 16))
    for l in net.model.layers:
        a = l.attention
        net.dead(two, (a.q_proj,a.k_proj,a.v_proj), [a.o_proj])
        net.dead(half(24), [l.mlp.fc1], [l.mlp.fc2], bias=False)
    return net

def whisper(attn, masked=False):
    from transformers import WhisperConfig, WhisperModel
    config = WhisperConfig(vocab_size=50, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=10, max_target_positions=16, use_cache=False, attn_implementation=attn,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    net = lively(WhisperModel(config), input_features=(torch.randn, 8, 20), decoder_input_ids=(tokens, 7))
    for l in (*net.model.encoder.layers,*net.model.decoder.layers):
        for a in (l.self_attn,getattr(l, 'encoder_attn', None)):
            if a is not None: net.dead(two, (a.q_proj,a.k_proj,a.v_proj), [a.out_proj])
        net.dead(half(24), [l.fc1], [l.fc2], bias=False)
    return net

transformers = dict(bert=bert, llama=llama, gpt2=gpt2, t5=t5, vit=vit, whisper=whisper)

# ---- timm

def timm_swin():
    import timm
    form = dict(img_size=32, window_size=4, embed_dim=16, depths=(2,2), num_heads=(2,4), num_classes=7)
    net = lively(timm.create_model('swin_tiny_patch4_window7_224', **form), x=(torch.randn, 3, 32, 32))
    for b in [b for l in net.model.layers for b in l.blocks]:
        _joint_heads(net, b.attn)
        net.goes(b.attn.num_heads//2, (b.attn.relative_position_bias_table, 1))
        net.dead(half(b.mlp.fc1.out_features), [b.mlp.fc1], [b.mlp.fc2], bias=False)
    return net

def _joint_heads(net, a):
    "Half of the heads of an attention with one layer for query, key and value"
    n = a.qkv.in_features
    units = of_heads(range(0, a.num_heads, 2), n//a.num_heads)
    net.dead(torch.cat([units+i*n for i in range(3)]), [a.qkv])
    net.dead(units, [], [a.proj])

def timm_vit():
    import timm
    net = lively(timm.create_model('vit_tiny_patch16_224', img_size=32, embed_dim=32, depth=2, num_heads=4, num_classes=7), x=(torch.randn, 3, 32, 32))
    for b in net.model.blocks:
        _joint_heads(net, b.attn)
        net.dead(half(b.mlp.fc1.out_features), [b.mlp.fc1], [b.mlp.fc2], bias=False)
    return net

def timm_swinv2():
    import timm
    form = dict(img_size=32, window_size=4, embed_dim=16, depths=(2,2), num_heads=(2,4), num_classes=7)
    net = lively(timm.create_model('swinv2_tiny_window8_256', **form), x=(torch.randn, 3, 32, 32))
    for b in [b for l in net.model.layers for b in l.blocks]:
        a = b.attn
        units = of_heads(range(0, a.num_heads, 2), a.qkv.in_features//a.num_heads)
        with torch.no_grad():
            for p in (a.q_bias,a.v_bias): p[units] = 0
        net.goes(len(units), (a.q_bias, 0), (a.v_bias, 0))
        _joint_heads(net, a)
        net.goes(a.num_heads//2, (a.logit_scale, 0), (a.cpb_mlp[-1].weight, 0))
        net.dead(half(b.mlp.fc1.out_features), [b.mlp.fc1], [b.mlp.fc2], bias=False)
    return net

def timm_beit(**kwargs):
    import timm
    net = lively(timm.create_model('beit_base_patch16_224', img_size=32, embed_dim=32, depth=2, num_heads=4, num_classes=7, **kwargs), x=(torch.randn, 3, 32, 32))
    for b in net.model.blocks:
        a = b.attn
        with torch.no_grad():
            for p in (a.q_bias,a.v_bias): p[two] = 0
        net.goes(16, (a.q_bias, 0), (a.v_bias, 0))
        net.dead(torch.cat([two+32*i for i in range(3)]), [a.qkv])
        net.dead(two, [], [a.proj])
        if a.relative_position_bias_table is not None: net.goes(2, (a.relative_position_bias_table, 1))
        net.dead(half(b.mlp.fc1.out_features), [b.mlp.fc1], [b.mlp.fc2], bias=False)
    if net.model.rel_pos_bias is not None: net.goes(2, (net.model.rel_pos_bias.relative_position_bias_table, 1)) # one for all blocks
    return net

# ---- segmentation_models_pytorch, with a ResNet-18

def smp(arch):
    import segmentation_models_pytorch
    model = getattr(segmentation_models_pytorch, arch)('resnet18', encoder_weights=None, classes=7)
    net = lively(model, x=(torch.randn, 3, 64, 64))
    for b in [b for n in range(1, 5) for b in getattr(model.encoder, f'layer{n}')]: _inner(net, (b.conv1,b.bn1), b.conv2)
    _decoders[arch](net, model.decoder, model.segmentation_head[0])
    return net

def _inner(net, makes, *reads):
    makes = [m for m in makes if getattr(m, 'weight', None) is not None] # without its activation
    net.dead(half(makes[0].weight.shape[out_dim(makes[0])]), makes, reads)

def _unet(net, decoder, head):
    for b in getattr(decoder.blocks, 'values', lambda: decoder.blocks)(): _inner(net, b.conv1, b.conv2[0])

def _manet(net, decoder, head):
    _unet(net, decoder, head)
    for b in decoder.blocks:
        if hasattr(b, 'hl_conv'):
            _inner(net, b.hl_conv[0], b.hl_conv[1][0])
            for gate in (b.SE_ll,b.SE_hl): _inner(net, [gate[1]], gate[3])

def _linknet(net, decoder, head):
    for b in decoder.blocks:
        _inner(net, b.block[0], b.block[1][0])
        _inner(net, b.block[1], b.block[2][0])

def _fpn(net, decoder, head): # what is merged is a sum over what was stacked
    parts = [[[*c.block] for c in b.block] for b in decoder.seg_blocks]
    for convs in parts:
        for a,b in zip(convs, convs[1:]): _inner(net, a, b[0])
    _inner(net, [m for convs in parts for m in convs[-1]], head)

def _deeplab(net, decoder, head): # a part of what is concatenated, through a depthwise convolution
    (conv,norm,_),(depthwise,pointwise) = decoder.block1,decoder.block2[0]
    units = half(len(norm.weight))
    net.dead(units, (conv,norm))
    net.dead(units+256, [depthwise], [pointwise])

def _upernet(net, decoder, head):
    for m in decoder.fpn_conv_blocks: _inner(net, m) # concatenated for the next
    net.goes(3*128, (decoder.fusion_block[0].weight, 1))
    _inner(net, decoder.fusion_block, head)

_decoders = dict(Unet=_unet, UnetPlusPlus=_unet, MAnet=_manet, Linknet=_linknet, FPN=_fpn, DeepLabV3Plus=_deeplab, UPerNet=_upernet)

# ---- monai

def monai_unet():
    from monai.networks.nets import UNet
    net = lively(UNet(3, 1, 7, (8,16,32), (2,2), num_res_units=2), x=(torch.randn, 1, 16, 16, 16))
    for m in net.model.modules():
        if type(m).__name__=='ResidualUnit' and hasattr(m.conv, 'unit1'): _inner(net, [m.conv.unit0.conv], m.conv.unit1.conv)
    return net

def monai_basic_unet():
    from monai.networks.nets import BasicUNet
    net = lively(BasicUNet(2, 1, 7, features=(8,8,16,16,32,8)), x=(torch.randn, 1, 32, 32))
    for m in net.model.modules():
        if type(m).__name__=='TwoConv': _inner(net, (m.conv_0.conv,m.conv_0.adn.N), m.conv_1.conv)
    return net

def monai_segresnet():
    from monai.networks.nets import SegResNet
    net = lively(SegResNet(3, 16, 1, 7, blocks_down=(1,1), blocks_up=[1]), x=(torch.randn, 1, 16, 16, 16))
    for m in net.model.modules():
        if type(m).__name__=='ResBlock': _inner(net, (m.conv1.conv,m.norm2), m.conv2.conv)
    return net

def monai_densenet():
    from monai.networks.nets import DenseNet
    net = lively(DenseNet(2, 1, 7, init_features=8, growth_rate=4, block_config=(2,2)), x=(torch.randn, 1, 32, 32))
    for m in net.model.modules():
        if type(m).__name__=='_DenseLayer': _inner(net, (m.layers.conv1,m.layers.norm2), m.layers.conv2)
    return net

monai = dict(unet=monai_unet, basic_unet=monai_basic_unet, segresnet=monai_segresnet, densenet=monai_densenet)
