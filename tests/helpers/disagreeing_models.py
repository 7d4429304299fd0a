"""Results of several models for one slide, with labels that differ where a test says so."""

import numpy as np
from PIL import Image

from helpers.viewer_small import write_result

TUMOR, STROMA = 1, 2


def write_models(folder, slide, labels, mpp=0.25):
    """Writes the results of models into a slide's folder, as `bcss_jax.segment --checkpoint=a,b` does.

    Args:
      folder: of the slide's results.
      slide: an image that exists.
      labels: uint8 [h, w] by the name of the model; sizes may differ.
      mpp: of the labels.
    """
    width, height = Image.open(slide).size
    for name, each in labels.items():
        write_result(folder / name, slide, width, height, each, model=name, mpp=mpp)
    (folder / "comparison.png").write_bytes(b"")
    return folder


def boxes(shape, *boxes):
    """Returns labels of stroma with boxes (x, y, width, height, value)."""
    labels = np.full(shape, STROMA, np.uint8)
    for x, y, width, height, value in boxes:
        labels[y : y + height, x : x + width] = value
    return labels
