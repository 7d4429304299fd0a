"""U-Net of width 32 for a few hundred tiles and a CPU: batch 8, learning rate 1e-3, flips and quarter turns.

    python -m bcss_jax.main --config=configs/unet_w32.py:kaggle224 --config.data.dir=FOLDER

On 90 training tiles of one region an epoch takes about a minute on two CPU cores.
"""

from bcss_jax.config import default


def get_config(layout: str = "kaggle224"):
    """The same settings on any layout."""
    config = default()
    config.name = f"unet_w32_{layout}"
    config.data.layout = layout
    config.model.width = 32
    config.batch_size = 8
    config.eval_batch_size = 10
    config.optimizer.learning_rate = 1e-3
    config.plateau.factor, config.plateau.patience = (
        0.3,
        1,
    )  # few steps an epoch: the validation loss is noisy until the rate falls
    config.early_stopping = 0
    for change in ("rotate", "elastic", "color_jitter", "blur"):
        config.augment[change] = 0.0
    return config
