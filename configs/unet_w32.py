"""U-Net of width 32 for a few hundred tiles and a CPU: batch 8, learning rate 1e-3, flips and quarter turns.

    python -m bcss_jax.main --config=configs/unet_w32.py:kaggle224 --config.data.dir=FOLDER

With 90 training tiles of one region, an epoch takes about a minute on two CPU cores.
"""

from bcss_jax.config import apply_data_preset, default


def get_config(layout: str = "kaggle224"):
    """Returns the recipe for a layout. The settings are the same for every layout."""
    config = default("unet", width=32, depth=4, bilinear=False)
    apply_data_preset(config, "unet_w32", f"{layout},few", few_rate=1e-3)
    config.name = "_".join(["unet_w32", *layout.split(",")])
    return config
