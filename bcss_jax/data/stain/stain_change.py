"""Changes the stain of an image into another, traceable by JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bcss_jax.data.stain.measured_stain import WHITE, MeasuredStain, with_remainder


class StainChange(NamedTuple):
    """A change of stain, as arrays.

    Attributes:
      white: color that densities are relative to, float32 [3].
      matrix: applied to the densities of red, green and blue from the right, float32 [3, 3].
      new_white: color that has no density afterwards, float32 [3].
    """

    white: np.ndarray
    matrix: np.ndarray
    new_white: np.ndarray


def reference_white(target: MeasuredStain, glass: np.ndarray | None) -> np.ndarray | None:
    """Returns the color that a slide is to be measured against, float [3], or None if it is unknown.

    It is the slide's own glass if that of the training set is known too; otherwise the same color for both.

    Args:
      target: the stain of the training set.
      glass: color of the slide's glass, or None if it is unknown.
    """
    if target.white is None:
        return None
    return np.asarray(target.white) if glass is None else glass


def factors_of(stain: MeasuredStain, target: MeasuredStain) -> tuple[float, float]:
    """Returns the factors on the strengths of hematoxylin and eosin that a stain is changed by."""
    hematoxylin, eosin = np.divide(target.strengths, stain.strengths).tolist()
    return hematoxylin, eosin


def change_of(stain: MeasuredStain, target: MeasuredStain) -> StainChange:
    """Returns the change of a slide's stain into that of a training set.

    The amounts of both stains are multiplied by `factors_of` and shown in the colors of the training set. What neither
    explains keeps its amount.
    """
    separation = np.linalg.inv(with_remainder(np.array(stain.vectors)))
    scaled = np.diag([*factors_of(stain, target), 1.0]) @ with_remainder(np.array(target.vectors))
    whites = (np.asarray(each.white or [WHITE] * 3, np.float32) for each in (stain, target))
    white, new_white = whites
    return StainChange(white, (separation @ scaled).astype(np.float32), new_white)


def changed(images: jax.Array | np.ndarray, change: StainChange) -> jax.Array:
    """Returns images with another stain, uint8 [..., 3], rounded.

    Args:
      images: uint8 RGB [..., 3].
      change: the change.
    """
    levels = jnp.log2((images.astype(jnp.float32) + 1) / (change.white + 1))
    # Sums of products instead of a matrix product, which some devices round to fewer digits.
    new = sum(levels[..., i : i + 1] * change.matrix[i] for i in range(3))
    return jnp.clip(jnp.rint((change.new_white + 1) * jnp.exp2(new) - 1), 0, 255).astype(jnp.uint8)
