"""U-Net.

    python -m bcss_jax.main --config=configs/unet.py                  the built-in sample, minutes on two cores
    python -m bcss_jax.main --config=configs/unet.py:kaggle224 --config.data.dir=FOLDER       the published recipe

After the colon: a layout (sample, kaggle224, kaggle512, roi), and `,few` for a few hundred tiles. Any setting of
bcss_jax/config.py can be changed on the command line, `--config.batch_size=32`.
"""

from bcss_jax.config import apply_data_preset, default


def get_config(argument: str = "sample"):
    """The recipe on a layout; the sample gets a smaller network and batch so that a laptop's CPU is enough."""
    config = default("unet", width=64, depth=4, bilinear=False)
    if apply_data_preset(config, "unet", argument, few_rate=1e-3) == "sample":
        config.model.width = 16
        config.epochs = 12
        config.optimizer.learning_rate = 1e-3
    return config
