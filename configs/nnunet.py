"""The complete method of nnU-Net: fingerprint, plan, preprocessing, training in folds, prediction, ensemble.

    python -m bcss_jax.main --config=configs/nnunet.py              the built-in sample, one fold; minutes on two cores
    python -m bcss_jax.main --config=configs/nnunet.py:kaggle224 --config.data.dir=FOLDER [--config.fold=2]
    python -m bcss_jax.main --config=configs/nnunet.py:nnunet,recipe --config.data.dir=RAW_DATA_FOLDER_OF_NNUNET

The argument after the colon is a layout (sample, kaggle224, kaggle512, roi, nnunet). Append `,recipe` for 15 epochs
instead of 1000, and `,kaggle_t4` for float16, which T4s and V100s need to be fast.
"""

from bcss_jax.errors import ConfigError
from bcss_jax.nnunet.config import default, refuse_slides


def get_config(argument: str = "sample"):
    """Returns the settings of nnU-Net's method for a layout.

    The sample trains one fold for a few iterations so that a laptop's CPU is enough.
    """
    layout, *recipes = argument.split(",")
    if sorted(set(recipes) & {"recipe", "kaggle_t4"}) != sorted(recipes):
        raise ConfigError(
            f"{argument}: after the layout there may be ',recipe' (15 epochs) and ',kaggle_t4' (float16), not "
            f"',{','.join(recipes)}'"
        )
    refuse_slides(layout)
    config = default()
    config.data.layout = layout
    short = layout == "sample" and "kaggle_t4" not in recipes
    config.name = "nnunet" if short else "_".join(["nnunet", layout, *recipes])
    if "recipe" in recipes:
        config.epochs = 15
    if "kaggle_t4" in recipes:
        config.dtype = "float16"
    if layout == "sample":
        config.fold, config.epochs, config.iterations, config.val_iterations = "0", 4, 10, 3
    return config
