"""Random augmentation of a batch on the device: the recipe of `on_host`, compiled, with one random key per example.

Probabilities, strengths, order, rounding and borders are those of the host. The random numbers are others, so an
example is changed differently, but from the same distribution.

The changes to an example depend on (seed, epoch, example), not on the batch, the position in it, or the number of
devices and processes. Examples are augmented independently of each other, so a batch that is split over devices is
augmented where it is.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bcss_jax.data.augmentation import colors, geometry
from bcss_jax.data.augmentation.settings import Augmentation
from bcss_jax.errors import ConfigError


class Changes(NamedTuple):
    """The changes to one example, in the order of their application.

    Attributes:
      quarter_turns: number of quarter turns, counterclockwise; 0: no change.
      flips: bool [2], left to right and upside down.
      angle: of the rotation, in radians; 0: no change.
      elastic: bool, whether the example is deformed.
      jitter: [4], factors of brightness, contrast and saturation, and shift of the hue; (1, 1, 1, 0): no change.
      order: int32 [4], the order of the changes of color.
      blur: standard deviation in pixels; 0: no change.
      stain: [3], factors of hematoxylin, eosin and the remainder, applied before the colors; 1: no change. None if the
        recipe never changes them.
    """

    quarter_turns: jax.Array
    flips: jax.Array
    angle: jax.Array
    elastic: jax.Array
    jitter: jax.Array
    order: jax.Array
    blur: jax.Array
    stain: jax.Array | None = None


def draw_changes(key: jax.Array, settings: Augmentation) -> Changes:
    """Draws the changes to one example with the probabilities and ranges of the recipe.

    Args:
      key: random key of the example.
      settings: the recipe.
    """
    s = settings
    # All numbers are drawn in one call, because compiling many small ones would take seconds.
    happens, values, factors, order = jnp.split(jax.random.uniform(key, (7 + 3 + 4 + 4,)), (7, 10, 14))
    strengths = jnp.asarray((s.brightness, s.contrast, s.saturation, s.hue))
    unchanged = jnp.asarray((1.0, 1.0, 1.0, 0.0))
    largest_angle = math.radians(s.rotate_degrees)
    return Changes(
        quarter_turns=jnp.where(happens[0] < s.rotate90, jnp.floor(4 * values[0]), 0).astype(jnp.int32),
        flips=happens[1:3] < jnp.asarray((s.horizontal_flip, s.vertical_flip)),
        angle=jnp.where(happens[3] < s.rotate, (2 * values[1] - 1) * largest_angle, 0.0),
        elastic=happens[4] < s.elastic,
        jitter=jnp.where(happens[5] < s.color_jitter, unchanged + (2 * factors - 1) * strengths, unchanged),
        order=jnp.argsort(order).astype(jnp.int32),
        blur=jnp.where(happens[6] < s.blur, 0.5 + (s.blur_sigma - 0.5) * values[2], 0.0),
        stain=_draw_stain(jax.random.fold_in(key, 1), s) if s.stain else None,
    )


def _draw_stain(key: jax.Array, settings: Augmentation) -> jax.Array:
    """Returns the factors of the stains; their key is their own, so that the other changes are those without them."""
    numbers = jax.random.uniform(key, (4,))
    factors = 1 + (2 * numbers[1:] - 1) * settings.stain_strength
    return jnp.where(numbers[0] < settings.stain, factors, 1.0)


def apply_changes(
    image: jax.Array,
    label: jax.Array,
    changes: Changes,
    noise_key: jax.Array,
    settings: Augmentation,
    ignore_index: int,
) -> tuple[jax.Array, jax.Array]:
    """Applies changes to one example.

    Args:
      image: uint8 [H, W, 3], RGB.
      label: uint8 [H, W]; resampled by nearest neighbor.
      changes: what is done.
      noise_key: random key of the elastic deformation.
      settings: the recipe; what it never does is not compiled.
      ignore_index: label of pixels from outside the image.

    Returns:
      uint8 [H, W, 3] and uint8 [H, W].
    """
    s = settings
    if s.rotate90 or s.horizontal_flip or s.vertical_flip or s.rotate:
        image, label = geometry.turn(image, label, changes.quarter_turns, changes.flips, changes.angle, ignore_index)
    if s.elastic:
        noise = jax.random.normal(noise_key, (2, *label.shape))
        factor = jnp.where(changes.elastic, s.displacement_factor(), 0.0)
        displacement = geometry.smooth_displacement(noise, s.elastic_smoothness, factor)
        image, label = geometry.displace(image, label, displacement, ignore_index)
    image = image.astype(jnp.float32)
    if changes.stain is not None:
        image = colors.restain(image, changes.stain)
    if s.color_jitter:
        image = colors.jitter(image, changes.jitter, changes.order)
    if s.blur:
        image = geometry.blur(image, changes.blur, s.blur_sigma)
    return image.astype(jnp.uint8), label


def make_augment(settings: Augmentation, ignore_index: int, mesh: Mesh, seed: int) -> Callable:
    """Builds the compiled augmentation of a batch.

    Args:
      settings: the recipe.
      ignore_index: label of pixels from outside the image.
      mesh: devices; the batch is split over its `data` axis.
      seed: of the run.

    Returns:
      `augment(images, labels, indices, epoch) -> (images, labels)`: `images` uint8 [N, H, W, 3], `labels` uint8
      [N, H, W] and `indices` int32 [N], the numbers of the examples, all split over the mesh; `epoch` is an integer.
      It raises ConfigError if rotations by 90 degrees are on and the images are not square.

    Raises:
      ConfigError: the colors are to be changed after the normalization.
    """
    if settings.color_jitter and settings.jitter_normalized:
        raise ConfigError("augmentation: jitter_normalized is done on the host only; set config.augment_on to host")
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, in_shardings=(split, split, split, everywhere), out_shardings=(split, split))
    def augment(images, labels, indices, epoch):
        settings.check_shape(images.shape[1:3])
        epoch_key = jax.random.fold_in(jax.random.key(seed), epoch)

        def one(image, label, index):
            changes_key, noise_key = jax.random.split(jax.random.fold_in(epoch_key, index))
            return apply_changes(image, label, draw_changes(changes_key, settings), noise_key, settings, ignore_index)

        return jax.vmap(one)(images, labels, indices)

    return augment
