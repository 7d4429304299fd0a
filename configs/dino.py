"""Pretraining of a vision transformer on images without labels (DINO, DINOv2).

    python -m bcss_jax.pretrain --config=configs/dino.py                       the built-in sample
    python -m bcss_jax.pretrain --config=configs/dino.py:tiles --config.data.dir=FOLDER
    python -m bcss_jax.pretrain --config=configs/dino.py:slides --config.data.dir=SLIDES

The argument after the colon is a layout: sample, tiles (a folder of images of any size), slides. Append `,few` for some
thousand tiles and a computer without a large GPU, `,dinov2` for DINOv2's objective. The run writes encoder.safetensors,
which configs/vit.py trains on with few labels.
"""

from bcss_jax.pretraining.config import recipe


def get_config(argument: str = "sample"):
    """Returns the recipe for a layout."""
    return recipe(argument)
