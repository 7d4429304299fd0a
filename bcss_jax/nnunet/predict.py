"""Predicts the logits of a whole image from overlapping windows, as nnU-Net's predictor does.

Each window is predicted in up to four mirrored versions, whose logits are averaged. Where windows overlap, their logits
are averaged with Gaussian weights. nnU-Net sums in half precision and this code in float32, so the two agree up to
rounding in half precision. All windows of an image go through one compiled function in batches of one size.
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

from bcss_jax.common.interruption import safe_point
from bcss_jax.errors import DataError, NumericalError
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.nnunet import ensemble, windows
from bcss_jax.training import sharding

# (params, model_state, images [N, H, W, C]) -> logits [N, H, W, K]
InferenceFunction = Callable[[dict, dict, jax.Array], jax.Array]
Weights = tuple[dict, dict]


@dataclasses.dataclass(frozen=True)
class _Inference:
    """A model in evaluation mode; equal for all models of one structure."""

    function: ModelFunction

    def __call__(self, params, model_state, images):
        return self.function(params, model_state, images, train=False)[0]


def inference_function(model: nnx.Module) -> InferenceFunction:
    """Returns a model of `bcss_jax.models` as a pure function of its weights and of preprocessed float images.

    The weights are `split_model(model)[1:]`, or those of another model of the same structure. The inference functions
    of two such models are equal and share the compiled code.
    """
    return _Inference(ModelFunction(model, statistics=None))


def make_predictor(
    models: Sequence[nnx.Module],
    patch_size: Sequence[int],
    *,
    mirror: bool | Sequence[int] = True,
    batch: int = 4,
    step: float = 0.5,
    mesh: Mesh | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from a preprocessed image [H, W, C] to logits [H, W, K], the mean over the models.

    Args:
      models: one model, or the models of several folds, all of the same structure; they share the compiled code.
      patch_size: see `predict_logits`.
      mirror: see `predict_logits`.
      batch: see `predict_logits`.
      step: see `predict_logits`.
      mesh: see `predict_logits`.
    """
    if not models:
        raise ValueError("at least one model is needed")
    mesh = mesh or sharding.make_mesh(jax.local_devices())
    run = inference_function(models[0])
    weights = [jax.device_put(split_model(model)[1:], sharding.replicated(mesh)) for model in models]

    def predict(image):
        return ensemble.mean_of_folds(
            predict_logits(run, each, image, patch_size, mirror=mirror, batch=batch, step=step, mesh=mesh)
            for each in weights
        )

    return predict


def predict_logits(
    run: InferenceFunction,
    weights: Weights,
    image: np.ndarray,
    patch_size: Sequence[int],
    *,
    mirror: bool | Sequence[int] = True,
    batch: int = 4,
    step: float = 0.5,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Returns the logits of one image.

    Args:
      run: pure function (params, model_state, images) -> logits, for example from `inference_function`. Pass the same
        one for all images, so that it is compiled once.
      weights: (params, model_state) for `run`, on the host or on devices of this process.
      image: preprocessed, [H, W, C]; images smaller than the patch are padded with zeros.
      patch_size: height and width of the windows.
      mirror: True: both axes; False: none; or the axes (0: height, 1: width), as in a checkpoint of nnU-Net.
      batch: largest number of windows per batch, rounded up to a multiple of the number of devices. With both axes
        mirrored each window counts as four.
      step: largest distance of two windows, as a share of the patch.
      mesh: devices that share the windows; None: all devices of this process.

    Returns:
      float32 [H, W, K].

    Raises:
      DataError: the image is not [H, W, C], or holds values that are not finite.
      NumericalError: the output of the network is not finite.
    """
    image = np.asarray(image, np.float32)
    if image.ndim != 3 or 0 in image.shape:
        raise DataError(f"an image to predict must have the shape [height, width, channels], found {image.shape}")
    if not np.isfinite(image).all():
        raise DataError("an image to predict holds values that are not finite; check its preprocessing")
    mesh = mesh or sharding.make_mesh(jax.local_devices())
    params, model_state = jax.device_put(weights, sharding.replicated(mesh))
    split, axes = sharding.split_over_data(mesh), _mirror_axes(mirror)
    image, area = windows.pad_to_window(image, patch_size)
    corners = windows.window_corners(image.shape[:2], patch_size, step)
    # Images with few windows get a smaller batch. Its size is a power of two, so that few sizes are compiled.
    size = -(-min(batch, 1 << (len(corners) - 1).bit_length()) // mesh.size) * mesh.size

    def dispatched():
        for first in range(0, len(corners), size):
            in_batch = corners[first : first + size]
            cut = np.zeros((size, *patch_size, image.shape[2]), np.float32)  # the last batch may not be full
            for window, corner in zip(cut, in_batch, strict=False):
                window[...] = image[_area(corner, patch_size)]
            yield in_batch, *_mirrored(run, axes, params, model_state, jax.device_put(cut, split))

    weight = windows.window_weights(patch_size)[..., None]
    total, count = None, np.zeros((*image.shape[:2], 1), np.float32)
    for in_batch, logits, finite in _one_ahead(dispatched()):
        safe_point()
        logits = np.asarray(logits)
        for (y, x), is_finite in zip(in_batch, np.asarray(finite), strict=False):
            if not is_finite:
                raise NumericalError(
                    f"window at x={x}, y={y}: the output of the network is not finite; its weights are damaged or its "
                    "training diverged; use other folds, or train again"
                )
        if total is None:
            total = np.zeros((*image.shape[:2], logits.shape[-1]), np.float32)
        for window, corner in zip(logits, in_batch, strict=False):
            covered = _area(corner, patch_size)
            total[covered] += weight * window
            count[covered] += weight
    assert total is not None
    total /= count
    return total[area]


def predicted_labels(scores: np.ndarray, properties: dict | None = None) -> np.ndarray:
    """Returns the most likely label of each pixel of the original image.

    Args:
      scores: logits or probabilities [H, W, K] of the cropped image.
      properties: properties of the `preprocess.PreprocessedCase`. The function uses `shape_before_cropping` and
        `bbox_used_for_cropping`. None means that the image was not cropped.

    Returns:
      uint8 [height, width] (uint16 for more than 256 labels). Pixels outside the box are 0, the background.
    """
    labels = np.argmax(scores, axis=-1).astype(np.uint8 if scores.shape[-1] <= 256 else np.uint16)
    if properties is None:
        return labels
    (y0, y1), (x0, x1) = properties["bbox_used_for_cropping"]
    whole = np.zeros(properties["shape_before_cropping"], labels.dtype)
    whole[y0:y1, x0:x1] = labels
    return whole


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mirrored(
    run: InferenceFunction, axes: tuple[int, ...], params: dict, model_state: dict, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean of the logits over all combinations of mirrored axes, each mirrored back.

    Also returns for each window whether all of its logits are finite.
    """
    flips = [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]
    # All mirrored versions of a window are in one batch, so the network is compiled once and no window leaves its
    # device.
    views = jnp.stack([jnp.flip(images, [axis + 1 for axis in flip]) for flip in flips], axis=1)
    logits = run(params, model_state, views.reshape(-1, *images.shape[1:]))
    logits = logits.astype(jnp.float32).reshape(*views.shape[:2], *logits.shape[1:])
    mirrored_back = [jnp.flip(logits[:, i], [axis + 1 for axis in flip]) for i, flip in enumerate(flips)]
    mean = sum(mirrored_back, start=jnp.zeros((), jnp.float32)) / len(flips)
    return mean, jnp.isfinite(mean).all((1, 2, 3))


def _one_ahead(items: Iterator) -> Iterator:
    """Yields each item after the next one was started, so that the devices compute while the host sums."""
    previous = None
    for item in items:
        if previous is not None:
            yield previous
        previous = item
    if previous is not None:
        yield previous


def _area(corner: tuple[int, int], patch_size: Sequence[int]) -> windows.Area:
    rows, columns = (slice(start, start + size) for start, size in zip(corner, patch_size, strict=True))
    return rows, columns


def _mirror_axes(mirror: bool | Sequence[int]) -> tuple[int, ...]:
    axes = ((0, 1) if mirror else ()) if isinstance(mirror, bool) else tuple(mirror)
    if not set(axes) <= {0, 1} or len(set(axes)) != len(axes):
        raise ValueError(f"mirror must be True, False, or axes among 0 and 1, not {mirror!r}")
    return axes
