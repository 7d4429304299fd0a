"""Random crops, resized as Pillow does: two small products of matrices for each view, bicubic with antialiasing."""

import math

import jax
import jax.numpy as jnp
import numpy as np

RATIO = (3 / 4, 4 / 3)  # width over height of a crop; torchvision's RandomResizedCrop
TRIES = 10
_EXACT = jax.lax.Precision.HIGHEST


def draw_box(key: jax.Array, height: int, width: int, scale: tuple[float, float]) -> jax.Array:
    """Draws a box as torchvision's RandomResizedCrop does.

    Ten pairs of area and ratio are drawn, and the first box that fits is taken; if none fits, the largest box in the
    middle whose ratio is allowed.

    Args:
      key: random key.
      height: of the image.
      width: of the image.
      scale: smallest and largest share of the area.

    Returns:
      float32 [4], whole numbers: top, left, height, width.
    """
    areas, ratios, place = jnp.split(jax.random.uniform(key, (2 * TRIES + 2,)), (TRIES, 2 * TRIES))
    area = height * width * (scale[0] + (scale[1] - scale[0]) * areas)
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = jnp.exp(low + (high - low) * ratios)
    rows, columns = jnp.rint(jnp.sqrt(area / ratio)), jnp.rint(jnp.sqrt(area * ratio))
    fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
    first = jnp.argmax(fits)
    rows, columns = rows[first], columns[first]
    top, left = jnp.floor(place * (jnp.stack([height - rows, width - columns]) + 1))
    # Below 1, the product is rounded up to the number itself.
    top, left = jnp.minimum(top, height - rows), jnp.minimum(left, width - columns)
    return jnp.where(fits.any(), jnp.stack([top, left, rows, columns]), jnp.asarray(_middle(height, width)))


def draw_window(key: jax.Array, height: int, width: int, size: int) -> jax.Array:
    """Draws a window of `size` pixels on each side, no larger than the image; the result is as of `draw_box`.

    So cells keep their size, as in Virchow2 (Zimmermann et al. 2024, arXiv:2408.00738).
    """
    room = jnp.asarray((height - size, width - size), jnp.float32)
    corner = jnp.minimum(jnp.floor(jax.random.uniform(key, (2,)) * (room + 1)), room)
    return jnp.concatenate([corner, jnp.full(2, float(size))])


def _middle(height: int, width: int) -> np.ndarray:
    """Returns the box that is taken if no drawn box fits."""
    rows, columns = height, width
    if width / height < RATIO[0]:
        rows = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        columns = round(height * RATIO[1])
    return np.array([(height - rows) // 2, (width - columns) // 2, rows, columns], np.float32)


def resized_crop(image: jax.Array, box: jax.Array, flips: jax.Array, size: int) -> jax.Array:
    """Cuts a box out of an image, resizes it as Pillow does, and flips it.

    Args:
      image: float32 [3, H, W].
      box: of `draw_box`.
      flips: bool [2], upside down and left to right.
      size: of the result on both sides.

    Returns:
      float32 [size, size, 3], whole numbers from 0 to 255.
    """
    rows = _weights(box[0], box[2], flips[0], image.shape[1], size)
    columns = _weights(box[1], box[3], flips[1], image.shape[2], size)
    # Pillow resizes the rows first and rounds in between.
    image = _rounded(jnp.einsum("chw,xw->chx", image, columns, precision=_EXACT))
    return _rounded(jnp.einsum("yh,chx->yxc", rows, image, precision=_EXACT))


def _rounded(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)


def _weights(start: jax.Array, length: jax.Array, flip: jax.Array, size: int, to: int) -> jax.Array:
    """Returns the weights [to, size] of the pixels of an axis; pixels beyond the crop have none."""
    step = length / to
    wide = jnp.maximum(step, 1.0)
    number = jnp.arange(to)
    center = (jnp.where(flip, to - 1 - number, number) + 0.5) * step + start
    pixels = jnp.arange(size)
    weights = _cubic((pixels + 0.5 - center[:, None]) / wide)
    weights = jnp.where((pixels >= start) & (pixels < start + length), weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


def _cubic(x: jax.Array) -> jax.Array:
    """Returns Keys' kernel (1981) with a = -0.5."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))
