"""TIAToolbox's U-Net with a ResNet-50 encoder, to be trained further from its published weights.

    python -m bcss_jax.main --config=configs/tiatoolbox_unet.py:kaggle224 --config.data.dir=FOLDER \
        --config.pretrained=runs/tiatoolbox_bcss

`python -m bcss_jax.import_model` makes the run with the published weights. Without --config.pretrained the network
starts from random weights. The argument after the colon is a layout (sample, kaggle224, kaggle512, roi). Append `,few`
for a few hundred tiles, and `,kaggle_t4` to compute in float16 on two T4s. The sides of the images must be multiples of
32 pixels.
"""

from bcss_jax.config import apply_data_preset, default


def get_config(argument: str = "sample"):
    """Returns the recipe for a layout.

    The sample uses a smaller batch and fewer epochs so that a laptop's CPU is enough.
    """
    config = default("tiatoolbox_unet", decoder_kernels=(3, 3))
    config.optimizer.learning_rate = 1e-3
    if apply_data_preset(config, "tiatoolbox_unet", argument, few_rate=1e-4) == "sample":
        config.epochs = 5
    return config
