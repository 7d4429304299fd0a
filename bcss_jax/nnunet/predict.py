"""Logits of a whole image from overlapping windows, as nnU-Net's predictor makes them.

Every window is looked at in up to four mirrorings, whose logits are averaged, and where windows overlap their logits
are averaged with a Gaussian as the weight. nnU-Net adds up in half precision; here it is float32, so that the two agree
to its rounding. All windows of an image go through one compiled function in batches of one size.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bcss_jax.errors import DataError
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.nnunet import ensemble, windows
from bcss_jax.training import sharding

Run = Callable[[dict, dict, jax.Array], jax.Array]  # (params, model_state, images [N, H, W, C]) -> logits [N, H, W, K]
Weights = tuple[dict, dict]


@dataclasses.dataclass(frozen=True)
class _Run:
    """Equal for models of one structure."""

    function: ModelFunction

    def __call__(self, params, model_state, images):
        return self.function(params, model_state, images, train=False)[0]


def inference_function(model: nnx.Module) -> Run:
    """A model of `bcss_jax.models` as a pure function of its weights and of preprocessed float images.

    Weights are `model_function.split_model(model)[1:]`, or those of another model of the same structure, whose `inference_function`
    is equal and shares what was compiled.
    """
    return _Run(ModelFunction(model, statistics=None))


def make_predictor(
    models: Sequence[nnx.Module],
    patch_size: Sequence[int],
    *,
    mirror: bool | Sequence[int] = True,
    batch: int = 4,
    step: float = 0.5,
    mesh: Mesh | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a preprocessed image [H, W, C] to logits [H, W, K], the mean over the models.

    Args:
      models: one, or those of several folds, all of one structure: they share the compiled function.
      patch_size: as of `predict_logits`, as all that follow.
      mirror: as there.
      batch: as there.
      step: as there.
      mesh: as there.
    """
    if not models:
        raise ValueError("at least one model is needed")
    mesh = mesh or sharding.make_mesh(jax.local_devices())
    run = inference_function(models[0])
    weights = [jax.device_put(split_model(model)[1:], sharding.replicated(mesh)) for model in models]
    settings = dict(mirror=mirror, batch=batch, step=step, mesh=mesh)

    def predict(image):
        return ensemble.mean_of_folds(predict_logits(run, each, image, patch_size, **settings) for each in weights)

    return predict


def predict_logits(
    run: Run,
    weights: Weights,
    image: np.ndarray,
    patch_size: Sequence[int],
    *,
    mirror: bool | Sequence[int] = True,
    batch: int = 4,
    step: float = 0.5,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Logits of one image.

    Args:
      run: pure function (params, model_state, images) -> logits, such as `inference_function` gives; pass the same one for all images, so
        that it is compiled once.
      weights: the (params, model_state) it gets, on the host or on devices of this process.
      image: preprocessed, [H, W, C]; smaller ones than the patch are padded with zeros.
      patch_size: height and width of the windows.
      mirror: True: both axes; False: none; or the axes (0: height, 1: width), as a checkpoint of nnU-Net's has them.
      batch: windows at a time at most, rounded up to a multiple of the devices; with both axes mirrored each counts as four.
      step: the largest distance of two windows, as a share of the patch.
      mesh: devices to share the windows; None: all of this process.

    Returns:
      float32 [H, W, K].

    Raises:
      DataError: the image is not [H, W, C], or holds values that are not finite.
    """
    image = np.asarray(image, np.float32)
    if image.ndim != 3 or 0 in image.shape:
        raise DataError(f"an image to predict must be [height, width, channels], found {image.shape}")
    if not np.isfinite(image).all():
        raise DataError("an image to predict holds values that are not finite; check its preprocessing")
    mesh = mesh or sharding.make_mesh(jax.local_devices())
    params, model_state = jax.device_put(weights, sharding.replicated(mesh))
    split, axes = sharding.split_over_data(mesh), _mirror_axes(mirror)
    image, area = windows.pad_to_window(image, patch_size)
    places = windows.window_corners(image.shape[:2], patch_size, step)
    # An image of few windows gets a smaller batch, of a power of two, so that few sizes are compiled.
    size = -(-min(batch, 1 << (len(places) - 1).bit_length()) // mesh.size) * mesh.size

    def dispatched():
        for first in range(0, len(places), size):
            here = places[first : first + size]
            cut = np.zeros((size, *patch_size, image.shape[2]), np.float32)  # the last batch may leave some zero
            for window, place in zip(cut, here, strict=False):
                window[...] = image[_at(place, patch_size)]
            yield here, _mirrored(run, axes, params, model_state, jax.device_put(cut, split))

    weight = windows.window_weights(patch_size)[..., None]
    total, count = None, np.zeros((*image.shape[:2], 1), np.float32)
    for here, logits in _one_ahead(dispatched()):
        logits = np.asarray(logits)
        if total is None:
            total = np.zeros((*image.shape[:2], logits.shape[-1]), np.float32)
        for window, place in zip(logits, here, strict=False):
            at = _at(place, patch_size)
            total[at] += weight * window
            count[at] += weight
    total /= count
    return total[area]


def predicted_labels(scores: np.ndarray, properties: dict | None = None) -> np.ndarray:
    """The most likely label of every pixel of the image before it was cropped.

    Args:
      scores: logits or probabilities [H, W, K], of the cropped image.
      properties: of the preprocessed case (`preprocess.PreprocessedCase`), for its `shape_before_cropping` and
        `bbox_used_for_cropping`; None: nothing was cropped.

    Returns:
      uint8 [height, width] (uint16 from 256 labels on); 0, the background, outside the box.
    """
    labels = np.argmax(scores, axis=-1).astype(np.uint8 if scores.shape[-1] <= 256 else np.uint16)
    if properties is None:
        return labels
    (y0, y1), (x0, x1) = properties["bbox_used_for_cropping"]
    whole = np.zeros(properties["shape_before_cropping"], labels.dtype)
    whole[y0:y1, x0:x1] = labels
    return whole


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mirrored(run: Run, axes: tuple[int, ...], params: dict, model_state: dict, images: jax.Array) -> jax.Array:
    """Mean of the logits over all combinations of mirrored axes, each mirrored back."""
    flips = [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]
    # One batch with the mirrorings of a window side by side: the network is compiled once, no window leaves its device.
    views = jnp.stack([jnp.flip(images, [axis + 1 for axis in flip]) for flip in flips], axis=1)
    logits = run(params, model_state, views.reshape(-1, *images.shape[1:]))
    logits = logits.astype(jnp.float32).reshape(*views.shape[:2], *logits.shape[1:])
    return sum(jnp.flip(logits[:, i], [axis + 1 for axis in flip]) for i, flip in enumerate(flips)) / len(flips)


def _one_ahead(items: Iterator) -> Iterator:
    """The same items, each given when the next one is begun: the devices work while the host adds up."""
    previous = None
    for item in items:
        if previous is not None:
            yield previous
        previous = item
    if previous is not None:
        yield previous


def _at(place: tuple[int, int], patch_size: Sequence[int]) -> windows.Area:
    return tuple(slice(start, start + size) for start, size in zip(place, patch_size, strict=True))


def _mirror_axes(mirror: bool | Sequence[int]) -> tuple[int, ...]:
    axes = ((0, 1) if mirror else ()) if isinstance(mirror, bool) else tuple(mirror)
    if not set(axes) <= {0, 1} or len(set(axes)) != len(axes):
        raise ValueError(f"mirror must be True, False or axes out of 0 and 1, not {mirror!r}")
    return axes
