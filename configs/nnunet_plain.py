"""nnU-Net's PlainConvUNet, the 224x224 plan, with its loss, optimizer and schedule, in this project's recipe.

    python -m bcss_jax.main --config=configs/nnunet_plain.py                the built-in sample, minutes on two cores
    python -m bcss_jax.main --config=configs/nnunet_plain.py:kaggle224 --config.data.dir=FOLDER

After the colon: a layout (sample, kaggle224, kaggle512, roi), and `,few` for a few hundred tiles. Deep supervision,
SGD with Nesterov momentum, learning rate falling as (1 - epoch / epochs)^0.9; augmentation and epochs are the recipe's.
The whole method of nnU-Net, which plans the network from the data, is configs/nnunet.py.
"""

from bcss_jax.config import apply_data_preset, default, train_as_nnunet


def get_config(argument: str = "sample"):
    """The recipe on a layout; the sample gets a smaller network and batch so that a laptop's CPU is enough."""
    config = default(
        "nnunet",
        n_stages=6,
        features_per_stage=(32, 64, 128, 256, 512, 512),
        strides=((1, 1), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2)),
        n_conv_per_stage=(2, 2, 2, 2, 2, 2),
        n_conv_per_stage_decoder=(2, 2, 2, 2, 2),
    )
    train_as_nnunet(config)
    if apply_data_preset(config, "nnunet_plain", argument) == "sample":
        config.model.features_per_stage = (16, 32, 64, 128, 128, 128)
        config.epochs = 12
    return config
