"""nnU-Net's PlainConvUNet of the 224x224 plan with nnU-Net's loss, optimizer and schedule, in this project's recipe.

    python -m bcss_jax.main --config=configs/nnunet_plain.py                the built-in sample; minutes on two cores
    python -m bcss_jax.main --config=configs/nnunet_plain.py:kaggle224 --config.data.dir=FOLDER

The argument after the colon is a layout (sample, kaggle224, kaggle512, roi). Append `,few` for a few hundred tiles,
and `,kaggle_t4` to compute in float16 on two T4s.
Training uses deep supervision, SGD with Nesterov momentum, and a learning rate that decreases as
(1 - epoch / epochs)^0.9. The augmentation and the number of epochs are those of this project's recipe.
For the complete method of nnU-Net, which plans the network from the data, use configs/nnunet.py.
"""

from bcss_jax.config import apply_data_preset, default, train_as_nnunet


def get_config(argument: str = "sample"):
    """Returns the recipe for a layout.

    The sample uses a smaller network and batch so that a laptop's CPU is enough.
    """
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
