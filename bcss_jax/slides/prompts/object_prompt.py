"""The prompts of one object on a slide, and the same in the pixels of a view."""

from typing import Any, NamedTuple

import numpy as np
from shapely.geometry.base import BaseGeometry

from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.sam.sam2 import Sam2
from bcss_jax.prompting.mask_prompt import mask_prompt
from bcss_jax.slides.prompts.outlines import mask_of
from bcss_jax.slides.prompts.view import Box, View

INSIDE, OUTSIDE = 1, 0  # labels of points
_EDGE = 1e-6  # pixels of a view by which a point at its edge may lie outside, from rounding


class ObjectPrompt(NamedTuple):
    """What stands for one object, in pixels of level 0; at least one of the three.

    Attributes:
      points: float64 [n, 2], x and y; None: there are none.
      labels: int [n], `INSIDE` or `OUTSIDE` of the object.
      box: its corners.
      area: an outline of the object that is to be corrected, a valid polygon or several.
    """

    points: np.ndarray | None = None
    labels: np.ndarray | None = None
    box: Box | None = None
    area: BaseGeometry | None = None


def arguments_in_view(prompt: ObjectPrompt, view: View, model: Sam | Sam2) -> dict[str, Any]:
    """Returns a prompt as arguments of `prompting.Predictor.predict` for the image of a view.

    The networks count from the center of the first pixel, and the corners of a box are the centers of pixels in it.
    What reaches out of the view is cut off at its edge; points outside of it are left out.
    """
    found: dict[str, Any] = {}
    last = np.array([view.width - 1, view.height - 1], np.float64)
    if prompt.points is not None and prompt.labels is not None:
        points = view.from_level0(prompt.points)
        seen = ((points >= -_EDGE) & (points <= last + 1 + _EDGE)).all(1)
        if seen.any():
            found |= {"points": (points[seen] - 0.5).clip(0, last), "labels": np.asarray(prompt.labels)[seen]}
    if prompt.box is not None:
        first, end = view.from_level0(np.reshape(prompt.box, (2, 2)))
        first, end = first.clip(0, last), (end - 1).clip(0, last)
        found["box"] = np.concatenate([np.minimum(first, end), np.maximum(first, end)])
    if prompt.area is not None:
        found["mask"] = mask_prompt(model, mask_of([prompt.area], view))
    return found
