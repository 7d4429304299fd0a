"""Trained networks for whole slides: from windows of pixels to weighted probabilities of the evaluated classes."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bcss_jax.data.stain.measured_stain import MeasuredStain
from bcss_jax.data.stain.stain_change import changed
from bcss_jax.data.synthetic import SIZE as SAMPLE_SIZE
from bcss_jax.errors import ConfigError, NumericalError, first_line
from bcss_jax.inference.flip_disagreement import log_probabilities_and_disagreement
from bcss_jax.inference.predict import NOT_FINITE_REMEDY, log_probabilities
from bcss_jax.labels import LabelScheme
from bcss_jax.models.apply import ModelFunction
from bcss_jax.slides.windows import BLEND, OVERLAP
from bcss_jax.training import sharding

if TYPE_CHECKING:  # reading runs needs packages that computing does not
    from bcss_jax.inference.trained_run import TrainedRun

LAYOUT_WINDOWS = {"sample": SAMPLE_SIZE, "kaggle224": 224, "kaggle512": 512}  # pixels of the training images


@dataclasses.dataclass(frozen=True)
class SlideModel:
    """A network with its weights.

    Attributes:
      name: of the run.
      scheme: label scheme of the training.
      mpp: um per pixel of the training images.
      window: side of the training images, pixels.
      identity: JSON, everything that determines the predictions.
      metadata: JSON, the description of the model in the summary of a slide.
      arrays: the weights, on all devices of a mesh.
      probabilities: (arrays, images uint8 [N, window, window, 3]) -> float32 [N, window, window, K]; traceable.
      any_window: the model accepts windows of other sizes too.
      overlap: of neighboring windows, as a share of their side, if the user names none.
      blend: how windows are blended, if the user does not say.
      stain: of the training images; None if it is unknown.
      flip_disagreement: arguments as of `probabilities` -> these, and the share of the pairs of flips that disagree,
        float32 [N, window, window]; traceable. None if no flips are averaged, or it is not known how they differ.
    """

    name: str
    scheme: LabelScheme
    mpp: float
    window: int
    identity: dict
    metadata: dict
    arrays: Any
    probabilities: Callable[[Any, jax.Array], jax.Array]
    any_window: bool = True
    overlap: float = OVERLAP
    blend: str = BLEND
    stain: MeasuredStain | None = None
    flip_disagreement: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]] | None = None

    def planes(self, arrays: Any, images: jax.Array) -> jax.Array:
        """Returns probabilities and, if it is known, the disagreement of the flips: [N, window, window, K or K + 1]."""
        if self.flip_disagreement is None:
            return self.probabilities(arrays, images)
        probabilities, disagreement = self.flip_disagreement(arrays, images)
        return jnp.concatenate([probabilities, disagreement[..., None]], -1)


def model_of_run(run: "TrainedRun", mesh: Mesh, tta: bool) -> SlideModel:
    """Returns the model of a checkpoint.

    Args:
      run: the checkpoint.
      mesh: devices to place the weights on.
      tta: average the predictions over flips and quarter turns of each window.

    Raises:
      DataError: the checkpoint cannot be read.
    """
    params, model_state = run.weights(mesh)
    data = run.config["data"]
    metadata = {
        "name": run.name,
        "network": run.config["model"]["name"],
        "label_scheme": run.scheme.to_json(),
        "params_sha256": run.sha256["params"],
        "checkpoint": run.describe_checkpoint(),
        "tta": tta,
    }
    return SlideModel(
        run.name,
        run.scheme,
        float(data["mpp"]),
        LAYOUT_WINDOWS[data["layout"]] if data["layout"] in LAYOUT_WINDOWS else data["patch_size"],
        {**run.identity(), "tta": tta},
        metadata,
        (params, model_state),
        probabilities_of(run.function, run.scheme, tta),
        overlap=run.imported.get("overlap", OVERLAP),
        blend=run.imported.get("blend", BLEND),
        stain=run.stain,
        flip_disagreement=_flip_disagreement_of(run.function, run.scheme) if tta else None,
    )


def with_changed_stain(model: SlideModel) -> SlideModel:
    """Returns a model that changes the stain of its windows first; its arrays are (`StainChange`, former arrays)."""

    def changing(predict):
        return lambda arrays, images: predict(arrays[1], changed(images, arrays[0]))

    disagreement = model.flip_disagreement and changing(model.flip_disagreement)
    return dataclasses.replace(model, probabilities=changing(model.probabilities), flip_disagreement=disagreement)


def probabilities_of(function: ModelFunction, scheme: LabelScheme, tta: bool) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns `SlideModel.probabilities` of a network, whose arrays are (params, model_state)."""
    evaluated = np.asarray(scheme.evaluated)

    def probabilities(arrays, images):
        return jnp.exp(log_probabilities(function, scheme, tta, *arrays, images))[..., evaluated]

    return probabilities


def _flip_disagreement_of(function: ModelFunction, scheme: LabelScheme) -> Callable:
    """Returns `SlideModel.flip_disagreement` of a network, whose arrays are (params, model_state)."""
    evaluated = np.asarray(scheme.evaluated)

    def flip_disagreement(arrays, images):
        logarithms, disagreement = log_probabilities_and_disagreement(function, scheme, *arrays, images)
        return jnp.exp(logarithms)[..., evaluated], disagreement

    return flip_disagreement


def make_window_step(probabilities: Callable[[Any, jax.Array], jax.Array], mesh: Mesh):
    """Builds the compiled step of a slide.

    Args:
      probabilities: see `SlideModel`; also its `planes`, which are weighted alike.
      mesh: devices; the windows are split over its `data` axis.

    Returns:
      `step(arrays, weights, images)` with float32 weights [window, window] and uint8 images [N, window, window, 3]
      returns probabilities times weights, float32 [N, K, window, window], and whether each window's are finite, [N].
    """

    def weighted(arrays, weights, images):
        result = jnp.moveaxis(probabilities(arrays, images), -1, 1) * weights
        return result, jnp.isfinite(result).all((1, 2, 3))

    return jax.jit(weighted, out_shardings=sharding.split_over_data(mesh))


def check_window(model: SlideModel, window: int) -> None:
    """Traces a network with windows of another size than its training images, without computing anything.

    Args:
      model: with `any_window`.
      window: side of the windows, pixels.

    Raises:
      ConfigError: the network cannot be applied to such windows.
    """
    try:
        jax.eval_shape(model.probabilities, model.arrays, jax.ShapeDtypeStruct((1, window, window, 3), np.uint8))
    except (ConfigError, TypeError, ValueError) as error:
        reason = first_line(error).partition(";")[0]  # the rest is advice for training
        raise ConfigError(
            f"--window={window}: {model.name} cannot be applied to such windows ({reason}); leave it out for the size "
            f"of its training images, {model.window} pixels"
        ) from error


class WindowPredictor:
    """Applies a model to batches of windows on all devices of a mesh; compiled once.

    On CPUs each device computes one window at a time, because XLA rounds differently for different batch sizes. The
    results are therefore the same to the bit for every batch size and number of devices. On other devices the batch is
    split evenly.
    """

    def __init__(self, model: SlideModel, weights: np.ndarray, batch_size: int, mesh: Mesh):
        """Compiles nothing yet.

        Args:
          model: the model.
          weights: of the pixels of a window, float32 [window, window].
          batch_size: windows of a batch, at most.
          mesh: devices to compute on.
        """
        self.batch_size = batch_size
        self._model, self._mesh, self._arrays = model, mesh, model.arrays
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self._at_once = mesh.size if on_cpu else -(-batch_size // mesh.size) * mesh.size
        self._weights = jax.device_put(weights, sharding.replicated(mesh))
        self._run = make_window_step(model.planes, mesh)

    def with_arrays(self, arrays: Any) -> "WindowPredictor":
        """Returns the same compiled predictor with other arrays of the same structure, on all devices of the mesh."""
        other = copy.copy(self)
        other._arrays = arrays
        return other

    def __call__(self, images: np.ndarray) -> Callable[[], Iterator[np.ndarray]]:
        """Starts the computation and returns immediately.

        Args:
          images: uint8 [N, window, window, 3].

        Returns:
          A function that waits for the result and returns `SlideModel.planes` times weights, float32 [K or K + 1,
          window, window] for each window. It raises NumericalError at a window whose probabilities are not finite.
        """
        started = []
        for first in range(0, len(images), self._at_once):
            part = images[first : first + self._at_once]
            missing = self._at_once - len(part)
            padded = np.pad(part, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else part
            placed = jax.device_put(padded, sharding.split_over_data(self._mesh))
            started.append((*self._run(self._arrays, self._weights, placed), len(part)))
        return lambda: self._windows(started)

    def _windows(self, started: list[tuple[jax.Array, jax.Array, int]]) -> Iterator[np.ndarray]:
        for result, finite, count in started:
            for window, is_finite in zip(np.asarray(result)[:count], np.asarray(finite), strict=False):
                if not is_finite:
                    raise NumericalError(f"the output of {self._model.name} is not finite; {NOT_FINITE_REMEDY}")
                yield window
