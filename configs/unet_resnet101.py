"""U-Net with a ResNet-101 encoder.

    python -m bcss_jax.main --config=configs/unet_resnet101.py                the built-in sample; minutes on two cores
    python -m bcss_jax.main --config=configs/unet_resnet101.py:kaggle224 --config.data.dir=FOLDER

The argument after the colon is a layout (sample, kaggle224, kaggle512, roi). Append `,few` for a few hundred tiles,
and `,kaggle_t4` to compute in float16 on two T4s.
Pretrained weights of the encoder are optional: --config.pretrained=resnet101.pth. For a smaller encoder, use
--config.model.name=unet_resnet50 or unet_resnet34 with a separate --workdir.
"""

from bcss_jax.config import apply_data_preset, default


def get_config(argument: str = "sample"):
    """Returns the recipe for a layout.

    The sample uses a smaller batch and fewer epochs so that a laptop's CPU is enough.
    """
    config = default("unet_resnet101")
    config.optimizer.learning_rate = 1e-3
    if apply_data_preset(config, "unet_resnet101", argument) == "sample":
        config.epochs = 5
    return config
