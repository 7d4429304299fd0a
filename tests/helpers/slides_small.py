"""Small slides, models and readers for the tests of whole slides."""

import concurrent.futures
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bcss_jax import config, models
from bcss_jax.inference.slide_model import SlideModel
from bcss_jax.labels import SCHEMES
from bcss_jax.models.apply import ModelFunction, split_model
from helpers import evaluation_small
from helpers.trained_small import save_checkpoint

SCHEME = SCHEMES["tumor_stroma"]


class Block(NamedTuple):
    """Has the fields of `reader_workers.Block`."""

    pixels: np.ndarray
    unreadable: np.ndarray | None


class ArrayPool:
    """Replaces `ReaderPool` with a slide that is an array on the grid itself.

    Records the requested blocks, and fails after `fails_at` blocks if it is given.
    """

    def __init__(self, pixels, unreadable=None, fails_at=None, error=None):
        self.pixels, self.unreadable, self.asked = pixels, unreadable, []
        self._fails_at, self._error = fails_at, error

    def submit(self, grid, x, y, width, height):
        assert 0 <= x < x + width <= grid.width and 0 <= y < y + height <= grid.height
        self.asked.append((x, y, width, height))
        future = concurrent.futures.Future()
        if self._fails_at is not None and len(self.asked) > self._fails_at:
            future.set_exception(self._error)
            return future
        here = np.s_[y : y + height, x : x + width]
        mask = None if self.unreadable is None else self.unreadable[here]
        future.set_result(Block(self.pixels[here], mask if mask is not None and mask.any() else None))
        return future


def color_model(window=16):
    """Returns a model that labels red pixels tumor and blue pixels stroma; stronger colors are more certain."""

    def probabilities(arrays, images):
        red, blue = (images[..., channel].astype(jnp.float32) for channel in (0, 2))
        tumor = (red + arrays["bias"]) / (red + blue + 2 * arrays["bias"])
        return jnp.stack([tumor, 1 - tumor], axis=-1)

    arrays = {"bias": jnp.ones(())}
    return SlideModel("colour", SCHEME, 0.25, window, {"network": "color"}, {"name": "color"}, arrays, probabilities)


def tissue_picture(height, width, seed=0):
    """Returns red and blue patches on white glass, uint8 [H, W, 3], and the labels that `color_model` gives."""
    rng = np.random.default_rng(seed)
    patches = rng.random((-(-height // 16), -(-width // 16)))
    patches = np.kron(patches, np.ones((16, 16)))[:height, :width]
    pixels = np.full((height, width, 3), 250, np.uint8)
    noise = rng.integers(0, 60, (height, width, 1))
    pixels = np.where((patches < 0.6)[..., None], np.concatenate([190 + noise, 60 + noise, 80 + noise], axis=2), pixels)
    pixels = np.where((patches < 0.3)[..., None], np.concatenate([80 + noise, 60 + noise, 190 + noise], axis=2), pixels)
    return pixels.astype(np.uint8), np.select([patches < 0.3, patches < 0.6], [2, 1], 0).astype(np.uint8)


def write_run(folder, seed=0, scheme="tumor_stroma", window=32, **metadata):
    """Writes the folder of a run, as training saves it: a small U-Net with random weights for 0.25 um per pixel.

    The metadata of the checkpoint get what is given in addition, such as `stain`.
    """
    settings = config.default("unet", width=4, depth=1)
    settings.update(name=folder.name, labels=scheme)
    settings.data.update(layout="roi", dir="nowhere", patch_size=window)
    scheme = SCHEMES[scheme]
    model = models.create(**settings.model, num_classes=scheme.num_classes, seed=seed)
    _, params, model_state = split_model(model)
    # Random weights prefer one class nearly everywhere; the bias is set so that both classes occur on a slide.
    images, _ = tissue_picture(window, 4 * window)
    logits, _ = ModelFunction(model)(params, model_state, images[None], train=False)
    tumor, stroma = scheme.class_names.index("tumor"), scheme.class_names.index("stroma")
    bias = params["outc"]["bias"]
    params["outc"]["bias"] = bias.at[stroma].add(jnp.median(logits[..., tumor] - logits[..., stroma]))
    described = {"config": settings.to_dict(), "label_scheme": scheme.to_json(), "data": evaluation_small.data()}
    save_checkpoint(folder / "checkpoints", params, model_state, described | {"pretrained": None} | metadata)
    return folder
