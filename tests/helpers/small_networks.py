"""All architectures at a small size."""

import functools
import unittest.mock

from bcss_jax import models
from bcss_jax.models import sam_segmenter
from bcss_jax.models.encoder_unet import EncoderUNet
from bcss_jax.models.encoders.densenet import DenseNet
from bcss_jax.models.encoders.resnet import ResNet
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS, Preset
from bcss_jax.models.image_normalization import IMAGENET
from bcss_jax.models.sam import presets as sam_presets
from bcss_jax.models.sam.architecture import DecoderForm, HieraForm, ViTForm
from bcss_jax.models.tiatoolbox_unet import TIAToolboxUNet

TRANSUNET_RESNET = dict(width_factor=0.5, resnet_layers=(1, 1, 1), skip_channels=(256, 128, 32, 0))
PLAN = {"n_stages": 3, "features_per_stage": (4, 8, 8), "strides": ((1, 1), (2, 2), (2, 2)), "kernel_sizes": 3}


# Form of a vision transformer that is as small as can be.
TINY_FORM = Architecture(16, 2, 2, 8, 24, gated=True, layer_scale=True, registers=1, table=4)


def small_vit(num_classes, **arguments):
    with unittest.mock.patch.dict(PRESETS, {"tiny": Preset(TINY_FORM, IMAGENET, "")}):
        return models.create("vit", num_classes=num_classes, encoder="tiny", **arguments)


SAM_FORM = ViTForm(16, 2, 2, (1,), patch=8, window=2, hidden=24, table=4)
SAM2_FORM = HieraForm(8, 1, (1, 1, 1, 1), (2,), windows=(4, 2, 2, 1), table=3)
SAM_DECODER = DecoderForm(channels=16, mask_channels=4, depth=1, heads=2, hidden=24, score_hidden=8)
SAM_FORMS = {"tiny": SAM_FORM, "tiny2": SAM2_FORM}


def small_sam(num_classes, encoder="tiny", **arguments):
    with (
        unittest.mock.patch.dict(sam_presets.PRESETS, SAM_FORMS),
        unittest.mock.patch.object(sam_segmenter, "DECODER", SAM_DECODER),
    ):
        return models.create("sam", num_classes=num_classes, encoder=encoder, **arguments)


# Name -> function that builds the network.
SMALL = {
    "unet": functools.partial(models.create, "unet", width=4, depth=2),
    "dense_unet": functools.partial(
        models.create, "dense_unet", growth=4, layers=(2, 2), bottleneck_layers=2, init_width=8
    ),
    "dense_unet_121": functools.partial(EncoderUNet, encoder=functools.partial(DenseNet, 4, (1, 2, 1, 1), 8)),
    "unet_resnet34": functools.partial(EncoderUNet, encoder=functools.partial(ResNet, (1, 1, 1, 1), False)),
    "unet_resnet101": functools.partial(EncoderUNet, encoder=functools.partial(ResNet, (1, 1, 1, 1), True)),
    "tiatoolbox_unet": functools.partial(
        TIAToolboxUNet, encoder=functools.partial(ResNet, (1, 1, 1, 1), False), decoder_kernels=(3,)
    ),
    "transunet": functools.partial(
        models.create, "transunet", **TRANSUNET_RESNET, image_size=32, hidden_size=16, mlp_size=16, num_heads=2,
        num_layers=1, decoder_channels=(8, 8, 8, 8),
    ),
    "vit": functools.partial(small_vit, decoder="convolutional"),
    "sam": small_sam,
    "nnunet": functools.partial(models.create, "nnunet", **PLAN, n_conv_per_stage=1, n_conv_per_stage_decoder=1),
    "nnunet_resenc": functools.partial(
        models.create, "nnunet_resenc", **PLAN, n_blocks_per_stage=1, n_conv_per_stage_decoder=1
    ),
    "report_unet": functools.partial(models.create, "report_unet", width=4),
    "report_transunet": functools.partial(
        models.create, "report_transunet", image_size=32, patch_size=4, hidden_size=8, num_heads=2, num_layers=1
    ),
    "report_dense_unet": functools.partial(
        models.create, "report_dense_unet", growth=4, layers=(1, 1, 1), init_width=8
    ),
}  # fmt: skip
# These compile longer than the others, so some tests of them are slow.
LONG_TO_COMPILE = (
    "unet_resnet34", "unet_resnet101", "dense_unet", "dense_unet_121", "nnunet_resenc", "tiatoolbox_unet", "transunet",
    "report_unet", "report_transunet", "report_dense_unet", "vit",
    "sam",
)  # fmt: skip
