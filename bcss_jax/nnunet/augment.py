"""nnU-Net's augmentations on the device, for a batch of images and labels with one random key per example.

The changes to an example depend only on its key, not on the batch or on its position in it. Examples are augmented
independently of each other, so a batch that is sharded over devices is augmented where it is.

`draw_changes` draws the changes of an example (`Changes`) with nnU-Net's probabilities and ranges. The functions of
`augment_spatial` and `augment_intensity` apply them.

Source: nnUNetTrainer.get_training_transforms of nnU-Net 2.8.1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bcss_jax.nnunet import augment_intensity as intensity
from bcss_jax.nnunet import augment_spatial as spatial
from bcss_jax.nnunet.patches import rotation_range

Pair = tuple[int, int]


class Changes(NamedTuple):
    """The changes to one example, in the order of their application. C is the number of channels.

    Attributes:
      angle: of a rotation, in radians; 0: no change.
      scale: of the window; above 1 objects become smaller; 1: no change.
      noise: standard deviation of the added noise; 0: no change.
      blur: [2, C], standard deviations along rows and columns, in pixels; 0: no change.
      brightness: [C], factors; 1: no change.
      contrast: [C], factors; 1: no change.
      resolution: [C], factors of height and width; 1: no change.
      inverted_gamma: [C], exponents for the inverted image; 1: no change.
      gamma: [C], exponents; 1: no change.
      mirror: bool [2], whether to flip vertically and horizontally.
    """

    angle: jax.Array
    scale: jax.Array
    noise: jax.Array
    blur: jax.Array
    brightness: jax.Array
    contrast: jax.Array
    resolution: jax.Array
    inverted_gamma: jax.Array
    gamma: jax.Array
    mirror: jax.Array


def draw_changes(key: jax.Array, channels: int, rotation: tuple[float, float]) -> Changes:
    """Draws the changes to one example.

    Args:
      key: random key of the example.
      channels: number of channels of the image.
      rotation: lowest and highest angle, in radians.

    Returns:
      The changes; most of them have the value "no change".
    """
    # All numbers are drawn in one call, because compiling dozens of small ones would take seconds.
    u = Changes(*jax.random.uniform(key, (len(Changes._fields), 4, max(channels, 1))))
    return Changes(
        angle=_sometimes(0.2, _between(*rotation), 0.0, u.angle)[0, 0],
        scale=_sometimes(0.2, _between(0.7, 1.4), 1.0, u.scale)[0, 0],
        # nnU-Net calls this number the variance but uses it as the standard deviation.
        noise=_sometimes(0.1, _between(0.0, 0.1), 0.0, u.noise)[0, 0],
        blur=_sometimes(0.2, _between(0.5, 1.0), 0.0, u.blur, per_channel=0.5),
        brightness=_sometimes(0.15, _around_one(0.75, 1.25), 1.0, u.brightness)[0],
        contrast=_sometimes(0.15, _around_one(0.75, 1.25), 1.0, u.contrast)[0],
        resolution=_sometimes(0.25, _between(0.5, 1.0), 1.0, u.resolution, per_channel=0.5)[0],
        inverted_gamma=_sometimes(0.1, _around_one(0.7, 1.5), 1.0, u.inverted_gamma)[0],
        gamma=_sometimes(0.3, _around_one(0.7, 1.5), 1.0, u.gamma)[0],
        mirror=u.mirror[:2, 0] < 0.5,
    )


def _sometimes(probability, values, none, u, per_channel=1.0):
    # u [4, C]: one number decides about the example, one about each channel, and two per channel give the values.
    happens = (u[0, 0] < probability) & (u[1] < per_channel)
    return jnp.where(happens, values(u[2:]), none)


def _between(low, high):
    return lambda u: low + (high - low) * u


def _around_one(low, high):
    # Values below and above 1 are equally likely, for ranges of any width.
    return lambda u: jnp.where(u < 0.5, low + (1 - low) * 2 * u, 1 + (high - 1) * (2 * u - 1))


@functools.partial(jax.jit, static_argnames=("patch_size", "masked_channels", "rotation"))
def augment(
    images: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    *,
    patch_size: Pair,
    masked_channels: tuple[int, ...] = (),
    rotation: tuple[float, float] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Applies one random draw of nnU-Net's augmentations to each example.

    Args:
      images: float32 [N, H0, W0, C], preprocessed, with the size `patches.initial_patch_size`.
      labels: signed integers [N, H0, W0]; -1: outside the image.
      keys: [N], for example `jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), example)`.
      patch_size: (H, W) of the result.
      masked_channels: channels that were normalized inside the image only (`use_mask_for_norm`) and are 0 outside it.
      rotation: lowest and highest angle, in radians; None: `patches.rotation_range`.

    Returns:
      float32 [N, H, W, C] and labels [N, H, W] of the input's type, with 0 in place of -1.
    """
    rotation = rotation_range(patch_size) if rotation is None else rotation

    def one(image, label, key):
        changes_key, noise_key = jax.random.split(key)
        changes = draw_changes(changes_key, image.shape[-1], rotation)
        image, label = spatial.rotate_and_scale(image, label, changes.angle, changes.scale, patch_size)
        image = intensity.gaussian_noise(image, noise_key, changes.noise)
        image = intensity.blur(image, changes.blur)
        image = intensity.brightness(image, changes.brightness)
        image = intensity.contrast(image, changes.contrast)
        image = intensity.low_resolution(image, changes.resolution)
        image = intensity.gamma(image, changes.inverted_gamma, inverted=True)
        image = intensity.gamma(image, changes.gamma)
        image, label = spatial.mirror(image, label, changes.mirror)
        return zero_outside(image, label, masked_channels), outside_to_background(label)

    return jax.vmap(one)(images, labels, keys)


def zero_outside(image: jax.Array, label: jax.Array, channels: tuple[int, ...]) -> jax.Array:
    """Sets some channels to 0 outside the image (where the label is below 0)."""
    chosen = jnp.isin(jnp.arange(image.shape[-1]), jnp.asarray(channels, int)) if channels else False
    return jnp.where((label < 0)[..., None] & chosen, 0.0, image)


def outside_to_background(label: jax.Array) -> jax.Array:
    """Replaces the label outside the image (-1) by background (0)."""
    return jnp.where(label == spatial.OUTSIDE, 0, label)


@functools.partial(jax.jit, static_argnames=("patch_size",))
def center_crop(images: jax.Array, labels: jax.Array, patch_size: Pair) -> tuple[jax.Array, jax.Array]:
    """Cuts the center of each example, for validation.

    Args:
      images: [N, H0, W0, C].
      labels: signed integers [N, H0, W0]; -1: outside the image.
      patch_size: (H, W).

    Returns:
      [N, H, W, C] and labels [N, H, W] with 0 in place of -1.
    """
    y, x = spatial.center_corner((labels.shape[1], labels.shape[2]), patch_size)
    rows, columns = slice(y, y + patch_size[0]), slice(x, x + patch_size[1])
    return images[:, rows, columns], outside_to_background(labels[:, rows, columns])
