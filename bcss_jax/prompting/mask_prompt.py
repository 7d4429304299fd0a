"""A mask of an image as the mask prompt of a network."""

import numpy as np

from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.sam.sam2 import Sam2

SURE = 1e-3  # the share of a pixel of the prompt in the mask is kept so far from 0 and 1: logits of about -7 to 7


def mask_prompt(model: Sam | Sam2, mask: np.ndarray) -> np.ndarray:
    """Returns the logits that `Predictor.predict` takes as `mask`, float32 (h, w), for a mask bool (H, W) of the image.

    A pixel of the prompt has the logit of the share of its area that lies in the mask.
    """
    side = 4 * model.embedding_size
    share = model.frame(*mask.shape).to_low_res(np.asarray(mask, np.float32), side).clip(SURE, 1 - SURE)
    return np.log(share / (1 - share))
