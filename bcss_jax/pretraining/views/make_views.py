"""Makes the views of a batch of tiles: random crops with other colors, as a function of one random key per tile."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bcss_jax.data.augmentation.colors import jitter, restain
from bcss_jax.pretraining.views import blurs, pillow_colors
from bcss_jax.pretraining.views.crops import draw_box, draw_window, resized_crop
from bcss_jax.pretraining.views.settings import Changes, ViewSettings

COLOR_CHANGES = (pillow_colors.brightness, pillow_colors.contrast, pillow_colors.saturation, pillow_colors.hue)


class Views(NamedTuple):
    """Views of a batch of tiles: RGB from 0 to 255, not normalized.

    Attributes:
      global_views: float32 [2, N, G, G, 3].
      local_views: float32 [L, N, l, l, 3]; L may be 0.
    """

    global_views: jax.Array
    local_views: jax.Array


@functools.partial(jax.jit, static_argnames="settings")
def make_views(images: jax.Array, keys: jax.Array, settings: ViewSettings) -> Views:
    """Makes the views of a batch. Those of a tile depend on its key alone, not on the batch or the place in it.

    Where a value lies between two gray levels, another size of the batch on a device may round it the other way.

    Args:
      images: uint8 [N, S, S, 3], RGB.
      keys: JAX keys [N].
      settings: sizes, number and style.

    Raises:
      ConfigError: global views are larger than the tiles.
    """
    settings.check_tiles(min(images.shape[1:3]))
    style, count = settings.changes, settings.local_views
    channels = jnp.moveaxis(images.astype(jnp.float32), -1, 1)

    def of_kind(first: int, number: int, changes: Changes, size: int) -> jax.Array:
        """Returns `number` views of every tile, [number, N, size, size, 3]; `first` numbers the first of them."""

        def one(tile, key, view):
            return make_view(tile, jax.random.fold_in(key, view), changes, size)

        # One view after the other: the products of matrices of all of them at once take longer, and much memory.
        every = jax.vmap(one, in_axes=(0, 0, None))
        return jax.lax.map(lambda view: every(channels, keys, view), first + jnp.arange(number))

    views = [of_kind(i, 1, changes, settings.global_size) for i, changes in enumerate((style.first, style.second))]
    if not count:
        nothing = jnp.zeros((0, len(images), settings.local_size, settings.local_size, 3))
        return Views(jnp.concatenate(views), nothing)
    return Views(jnp.concatenate(views), of_kind(2, count, style.local, settings.local_size))


def make_view(image: jax.Array, key: jax.Array, changes: Changes, size: int) -> jax.Array:
    """Makes one view of a tile.

    Args:
      image: float32 [3, H, W], RGB with whole numbers from 0 to 255.
      key: random key of the view.
      changes: what may be changed; what never is is not compiled.
      size: of the view on each side.

    Returns:
      float32 [size, size, 3] with whole numbers from 0 to 255.
    """
    c = changes
    box_key, key = jax.random.split(key)
    # All other numbers are drawn in one call, because compiling many small ones would take seconds.
    turn, happens, stains, factors, order, radius = jnp.split(
        jax.random.uniform(key, (3 + 5 + 3 + 4 + 4 + 1,)), (3, 8, 11, 15, 19)
    )
    turned = turn < 0.5 if c.turns else jnp.stack([jnp.asarray(False), turn[1] < c.flip, jnp.asarray(False)])
    height, width = image.shape[1:]
    box = draw_window(box_key, height, width, size) if c.scale is None else draw_box(box_key, height, width, c.scale)
    view = resized_crop(image, box, turned[:2], size)
    if c.turns:
        view = jnp.where(turned[2], view.swapaxes(0, 1), view)
    if c.stain:
        strengths = 1 + (2 * stains - 1) * c.stain_strength
        view = restain(view, jnp.where(happens[0] < c.stain, strengths, 1.0))
    if c.jitter:
        unchanged = jnp.asarray((1.0, 1.0, 1.0, 0.0))
        spread = (2 * factors - 1) * jnp.asarray((c.brightness, c.contrast, c.saturation, c.hue))
        view = jitter(
            view,
            jnp.where(happens[1] < c.jitter, unchanged + spread, unchanged),
            jnp.argsort(order),
            [
                change if strength else None
                for change, strength in zip(COLOR_CHANGES, (c.brightness, c.contrast, c.saturation, c.hue), strict=True)
            ],
        )
    if c.gray:
        view = jnp.where(happens[2] < c.gray, pillow_colors.gray(view), view)
    if c.blur:
        low, high = c.blur_radius
        sigma = jnp.where(happens[3] < c.blur, low + (high - low) * radius[0], 0.0)
        view = (blurs.pillow if c.blur_pillow else blurs.torchvision)(view, sigma)
    if c.solarize:
        view = jnp.where(happens[4] < c.solarize, pillow_colors.solarize(view), view)
    return view
