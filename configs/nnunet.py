"""The complete method of nnU-Net: fingerprint, plan, preprocessing, training in folds, prediction, ensemble.

    python -m bcss_jax.main --config=configs/nnunet.py              the built-in sample, one fold; minutes on two cores
    python -m bcss_jax.main --config=configs/nnunet.py:kaggle224 --config.data.dir=FOLDER [--config.fold=2]
    python -m bcss_jax.main --config=configs/nnunet.py:nnunet,recipe --config.data.dir=RAW_DATA_FOLDER_OF_NNUNET

The argument after the colon is a layout (sample, kaggle224, kaggle512, roi, nnunet). Append `,recipe` for 15 epochs
instead of 1000.
"""

from bcss_jax.errors import ConfigError
from bcss_jax.nnunet.config import default


def get_config(argument: str = "sample"):
    """Returns the settings of nnU-Net's method for a layout.

    The sample trains one fold for a few iterations so that a laptop's CPU is enough.
    """
    layout, comma, length = argument.partition(",")
    if comma and length != "recipe":
        raise ConfigError(f"{argument}: after the layout there may be ',recipe' (15 epochs), not ',{length}'")
    config = default()
    config.data.layout = layout
    config.name = "nnunet" if layout == "sample" else "_".join(["nnunet", layout, *([length] if length else [])])
    if length:
        config.epochs = 15
    if layout == "sample":
        config.fold, config.epochs, config.iterations, config.val_iterations = "0", 4, 10, 3
    return config
