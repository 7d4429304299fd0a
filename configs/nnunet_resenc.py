"""nnU-Net's ResidualEncoderUNet, the 224x224 plan, with its loss, optimizer and schedule.

    python -m bcss_jax.main --config=configs/nnunet_resenc.py                the built-in sample, minutes on two cores
    python -m bcss_jax.main --config=configs/nnunet_resenc.py:kaggle224 --config.data.dir=FOLDER

After the colon: a layout (sample, kaggle224, kaggle512, roi), and `,few` for a few hundred tiles. Deep supervision,
SGD with Nesterov momentum, learning rate falling as (1 - epoch / epochs)^0.9; augmentation and epochs are the recipe's.
"""

from bcss_jax.config import apply_data_preset, default, train_as_nnunet


def get_config(argument: str = "sample"):
    """The recipe on a layout; the sample gets a smaller network and batch so that a laptop's CPU is enough."""
    config = default(
        "nnunet_resenc",
        n_stages=6,
        features_per_stage=(32, 64, 128, 256, 512, 512),
        strides=((1, 1), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2)),
        n_blocks_per_stage=(1, 3, 4, 6, 6, 6),
        n_conv_per_stage_decoder=(1, 1, 1, 1, 1),
    )
    train_as_nnunet(config)
    if apply_data_preset(config, "nnunet_resenc", argument) == "sample":
        config.model.features_per_stage = (16, 32, 64, 128, 128, 128)
        config.epochs = 8
    return config
