"The architectures that are tested: torchvision's classifiers and segmentation models, and families of timm, all with `n_out` outputs."
import warnings
from functools import partial
import timm
from torch import nn
from torchvision import models as tv
from torchvision.models import segmentation
from support.zeros import images, n_out

classifiers,segmenters = tv.list_models(module=tv),tv.list_models(module=segmentation)

# families of timm, by a small member and what makes it smaller still
families = {n:{} for n in '''
    convmixer_768_32 convnext_atto convnextv2_atto crossvit_9_240 cs3darknet_s davit_tiny dla46_c dpn48b ecaresnet26t edgenext_xx_small
    efficientformer_l1 efficientnet_b0 efficientnetv2_rw_t efficientvit_b0 ese_vovnet19b_slim_dw fastvit_t8 focalnet_tiny_srf ghostnet_050
    hrnet_w18_small inception_next_atto inception_v4 lambda_resnet26t mambaout_femto mobilenetv3_small_050 mobilenetv4_conv_small_035
    mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs mobilevitv2_050 nf_regnet_b0 nfnet_l0 poolformer_s12 pvt_v2_b0 regnety_002 regnetz_b16
    repvgg_a0 repvit_m0_9 res2net50_14w_8s resnest14d resnet10t resnetv2_50 rexnet_100 sequencer2d_s seresnet18 skresnet18 starnet_s1 swiftformer_xs
    tiny_vit_5m_224 twins_pcpvt_small twins_svt_small xception41 xcit_nano_12_p16_224'''.split()}
families |= {n:dict(img_size=32) for n in '''
    coat_lite_tiny coatnet_pico_rw_224 convit_tiny deit_tiny_distilled_patch16_224 efficientformerv2_s0 gcvit_xxtiny gmlp_ti16_224 hiera_tiny_224
    levit_128s mixer_s32_224 pit_ti_224 resmlp_12_224 tnt_s_legacy_patch16_224 visformer_tiny vit_tiny_patch16_224 volo_d1_224'''.split()}
families |= {n:dict(img_size=32, depth=2) for n in ('beit_base_patch16_224','cait_xxs24_224','eva02_tiny_patch14_224')}
families |= {n:dict(img_size=64) for n in ('maxvit_pico_rw_256','nest_tiny')}
families |= {n:dict(img_size=64, window_size=4) for n in ('swin_tiny_patch4_window7_224','swinv2_tiny_window8_256')}
families |= dict(densenet121=dict(block_config=(3,4,3,2)))

# smallest side of an image where it isn't 32; a network is tested at 32 more as well, if it takes that
sides = dict(alexnet=64, inception_v3=96, inception_v4=96, maxvit_t=64, vit_h_14=28, vit_b_32=64, vit_l_32=64, efficientformer_l1=224)
sides |= dict.fromkeys(segmenters, 64) | {n:k['img_size'] for n,k in families.items() if 'img_size' in k}
chains = [n for n in classifiers if n.startswith(('vgg','alexnet'))] # layers one after the other: none of them can be dead as a whole

# by their class, narrower and not as deep: always those with over 150M parameters, the others in short form
def vit(patch): return tv.VisionTransformer(2*patch, patch, num_layers=2, num_heads=16, hidden_dim=128, mlp_dim=512, num_classes=n_out)
def regnet_y_128gf():
    params = tv.regnet.BlockParams.from_init_params(depth=14, w_0=56, w_a=38.84, w_m=2.4, group_width=28, se_ratio=.25)
    return tv.RegNet(params, n_out, norm_layer=partial(nn.BatchNorm2d, eps=1e-5, momentum=.1))
def convnext_large(): return tv.ConvNeXt([tv.convnext.CNBlockConfig(*o) for o in ((48,96,3), (96,192,3), (192,384,6), (384,None,3))], num_classes=n_out)
def maxvit_t(): return tv.MaxVit((64,64), 32, 2, [32,64,128], [2,3,2], 16, .2, num_classes=n_out)
def densenet(growth, *blocks): return tv.DenseNet(growth, blocks, 2*growth, num_classes=n_out)
giants = dict(vit_l_16=partial(vit, 16), vit_l_32=partial(vit, 32), vit_h_14=partial(vit, 14), regnet_y_128gf=regnet_y_128gf, convnext_large=convnext_large)
narrower = dict(maxvit_t=maxvit_t, densenet161=partial(densenet, 48, 3, 3, 3, 2), densenet169=partial(densenet, 32, 3, 4, 3, 3),
    densenet201=partial(densenet, 32, 3, 3, 5, 3))

def shorten(model):
    "At most three blocks in a row, two of them equal; 64 hidden units in the classifiers of AlexNet and VGG, that have 4096."
    for seq in [m for m in model.modules() if isinstance(m, nn.Sequential)]:
        kinds = [(type(m),[p.shape for p in m.parameters()]) if [*m.children()] else i for i,m in enumerate(seq)]
        for i in reversed(range(2, len(seq))):
            if kinds[i]==kinds[i-1] and not isinstance(model, timm.models.VovNet): del seq[i] # which concatenates what the parts of a Sequential make
    if isinstance(model, (tv.VGG,tv.AlexNet)):
        n = next(m.in_features for m in model.classifier if isinstance(m, nn.Linear))
        model.classifier = nn.Sequential(nn.Linear(n, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, n_out))
    return model

def network(name, short=True):
    "The network and an input for it; with fewer blocks if `short`."
    side = sides.get(name, 32) if short or name!='maxvit_t' else 224
    of_class = giants | (narrower if short else {})
    with warnings.catch_warnings(action='ignore'):
        if name in of_class: model = of_class[name]()
        elif name in families: model = timm.create_model(name, num_classes=n_out, **families[name])
        else: model = tv.get_model(name, weights=None, num_classes=n_out, **(dict(image_size=side) if name.startswith('vit') else {}),
            **(dict(weights_backbone=None) if name in segmenters else {}), **(dict(init_weights=False) if name in ('googlenet','inception_v3') else {}))
    return (shorten(model) if short else model).eval(),images(2, side)
