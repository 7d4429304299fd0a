"""U-Net.

    python -m bcss_jax.main --config=configs/unet.py                  the built-in sample, minutes on two cores
    python -m bcss_jax.main --config=configs/unet.py:kaggle224 --config.data.dir=FOLDER       the published recipe

Layouts after the colon: sample, kaggle224, kaggle512, roi. Any setting of bcss_jax/config.py can be changed on the
command line, `--config.batch_size=32`.
"""

from bcss_jax.config import default


def get_config(layout: str = "sample"):
    """The recipe on a layout; the sample gets a smaller network and batch so that a laptop's CPU is enough."""
    config = default()
    config.name = "unet" if layout == "sample" else f"unet_{layout}"
    config.data.layout = layout
    if layout == "sample":
        config.model.width = 16
        config.batch_size = 8
        config.eval_batch_size = 8
        config.epochs = 12
        config.early_stopping = 0
        config.optimizer.learning_rate = 1e-3
        config.plateau.factor, config.plateau.patience = 0.3, 1  # twelve steps an epoch: a noisy validation loss
    return config
