"""nnU-Net's augmentations, on the device: images and labels of a batch in, one random key per example.

What happens to an example depends on its key alone, not on the batch it is in or on its place there, and examples need
nothing of each other: a batch split over devices is augmented where it lies.

`draw` decides by nnU-Net's probabilities and ranges what happens to an example (`Changes`); the functions of
`augment_spatial` and `augment_intensity` do it.

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
    """What happens to one example, in this order. C: channels.

    Attributes:
      angle: of a rotation in radians; 0: none.
      scale: of the window: above 1 objects become smaller; 1: none.
      noise: standard deviation of added noise; 0: none.
      blur: [2, C], standard deviations along rows and columns in pixels; 0: none.
      brightness: [C], factors; 1: none.
      contrast: [C], factors; 1: none.
      resolution: [C], factors of height and width; 1: none.
      inverted_gamma: [C], exponents for the negative; 1: none.
      gamma: [C], exponents; 1: none.
      mirror: bool [2], upside down and left to right.
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


def draw(key: jax.Array, channels: int, rotation: tuple[float, float]) -> Changes:
    """Draws what happens to one example.

    Args:
      key: the example's.
      channels: of the image.
      rotation: lowest and highest angle in radians.

    Returns:
      The changes; most of them "none".
    """
    # One call for all numbers: compiling dozens of small ones would take seconds.
    u = Changes(*jax.random.uniform(key, (len(Changes._fields), 4, max(channels, 1))))
    return Changes(
        angle=_sometimes(0.2, _between(*rotation), 0.0, u.angle)[0, 0],
        scale=_sometimes(0.2, _between(0.7, 1.4), 1.0, u.scale)[0, 0],
        # nnU-Net calls it the variance and uses it as the standard deviation.
        noise=_sometimes(0.1, _between(0.0, 0.1), 0.0, u.noise)[0, 0],
        blur=_sometimes(0.2, _between(0.5, 1.0), 0.0, u.blur, per_channel=0.5),
        brightness=_sometimes(0.15, _about_one(0.75, 1.25), 1.0, u.brightness)[0],
        contrast=_sometimes(0.15, _about_one(0.75, 1.25), 1.0, u.contrast)[0],
        resolution=_sometimes(0.25, _between(0.5, 1.0), 1.0, u.resolution, per_channel=0.5)[0],
        inverted_gamma=_sometimes(0.1, _about_one(0.7, 1.5), 1.0, u.inverted_gamma)[0],
        gamma=_sometimes(0.3, _about_one(0.7, 1.5), 1.0, u.gamma)[0],
        mirror=u.mirror[:2, 0] < 0.5,
    )


def _sometimes(probability, values, none, u, per_channel=1.0):
    # u [4, C]: whether it happens to the example, whether to its channels, and two values for each channel.
    happens = (u[0, 0] < probability) & (u[1] < per_channel)
    return jnp.where(happens, values(u[2:]), none)


def _between(low, high):
    return lambda u: low + (high - low) * u


def _about_one(low, high):
    # As often below 1 as above, however wide the two sides are.
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
      images: float32 [N, H0, W0, C], preprocessed, of `patches.initial_patch_size`.
      labels: signed integers [N, H0, W0]; -1: no picture there.
      keys: [N], e.g. `jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), example)`.
      patch_size: (H, W) that comes out.
      masked_channels: channels that were normalized within the picture (`use_mask_for_norm`) and are 0 outside of it.
      rotation: lowest and highest angle in radians; None: `patches.rotation_range`.

    Returns:
      float32 [N, H, W, C] and labels [N, H, W] of the type that came, with 0 in place of -1.
    """
    rotation = rotation_range(patch_size) if rotation is None else rotation

    def one(image, label, key):
        changes_key, noise_key = jax.random.split(key)
        changes = draw(changes_key, image.shape[-1], rotation)
        image, label = spatial.rotate_and_scale(image, label, changes.angle, changes.scale, patch_size)
        image = intensity.gaussian_noise(image, noise_key, changes.noise)
        image = intensity.blur(image, changes.blur)
        image = intensity.brightness(image, changes.brightness)
        image = intensity.contrast(image, changes.contrast)
        image = intensity.low_resolution(image, changes.resolution)
        image = intensity.gamma(image, changes.inverted_gamma, inverted=True)
        image = intensity.gamma(image, changes.gamma)
        image, label = spatial.mirror(image, label, changes.mirror)
        return masked(image, label, masked_channels), without_outside(label)

    return jax.vmap(one)(images, labels, keys)


def masked(image: jax.Array, label: jax.Array, channels: tuple[int, ...]) -> jax.Array:
    """Sets some channels to 0 where there is no picture (label below 0)."""
    chosen = jnp.isin(jnp.arange(image.shape[-1]), jnp.asarray(channels, int)) if channels else False
    return jnp.where((label < 0)[..., None] & chosen, 0.0, image)


def without_outside(label: jax.Array) -> jax.Array:
    """Makes background (0) of what is outside of the picture (-1)."""
    return jnp.where(label == spatial.OUTSIDE, 0, label)


@functools.partial(jax.jit, static_argnames=("patch_size",))
def center_crop(images: jax.Array, labels: jax.Array, patch_size: Pair) -> tuple[jax.Array, jax.Array]:
    """The middle of each example, unchanged, for validation.

    Args:
      images: [N, H0, W0, C].
      labels: signed integers [N, H0, W0]; -1: no picture there.
      patch_size: (H, W).

    Returns:
      [N, H, W, C] and labels [N, H, W] with 0 in place of -1.
    """
    y, x = spatial.center_corner(labels.shape[1:], patch_size)
    rows, columns = slice(y, y + patch_size[0]), slice(x, x + patch_size[1])
    return images[:, rows, columns], without_outside(labels[:, rows, columns])
