"""A trained network as whole slides need it: windows of pixels in, weighted probabilities of the evaluated classes out."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bcss_jax.data.synthetic import SIZE as SAMPLE_SIZE
from bcss_jax.errors import ConfigError, first_line
from bcss_jax.inference.predict import log_probabilities
from bcss_jax.inference.trained_run import TrainedRun
from bcss_jax.labels import LabelScheme
from bcss_jax.training import sharding

LAYOUT_WINDOWS = {"sample": SAMPLE_SIZE, "kaggle224": 224, "kaggle512": 512}  # pixels of the training images


@dataclasses.dataclass(frozen=True)
class SlideModel:
    """A network with its weights.

    Attributes:
      name: of the run.
      scheme: its label scheme.
      mpp: um per pixel that it was trained at.
      window: side of its training images, pixels.
      identity: what decides its predictions, as JSON.
      metadata: what a summary says of it, as JSON.
      arrays: its weights, on all devices of a mesh.
      probabilities: (arrays, images uint8 [N, window, window, 3]) -> float32 [N, window, window, K]; traceable.
      any_window: takes windows of other sizes too.
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


def model_of_run(run: TrainedRun, mesh: Mesh, tta: bool) -> SlideModel:
    """The model of a checkpoint.

    Args:
      run: the checkpoint.
      mesh: devices to place its weights on.
      tta: mean over flips and quarter turns of each window.

    Raises:
      DataError: the checkpoint cannot be read.
    """
    params, model_state = run.weights(mesh)
    evaluated = np.asarray(run.scheme.evaluated)

    def probabilities(arrays, images):
        return jnp.exp(log_probabilities(run.function, run.scheme, tta, *arrays, images))[..., evaluated]

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
        probabilities,
    )


def check_window(model: SlideModel, window: int) -> None:
    """Traces a network at windows of another size than its own, without computing anything.

    Args:
      model: of any window.
      window: pixels of a window's side.

    Raises:
      ConfigError: it does not take such windows.
    """
    try:
        jax.eval_shape(model.probabilities, model.arrays, jax.ShapeDtypeStruct((1, window, window, 3), np.uint8))
    except (ConfigError, TypeError, ValueError) as error:
        reason = first_line(error).partition(";")[0]  # what follows is advice for training
        raise ConfigError(
            f"--window={window}: {model.name} does not take such windows ({reason}); leave it out for those of its "
            f"training, {model.window} pixels"
        ) from error


class WindowPredictor:
    """Runs a model over batches of windows on all devices of a mesh, compiled once.

    On a CPU a device takes one window at a time, because XLA rounds differently in batches of different sizes: so the
    result is the same bits whatever the batch size and the number of devices. Elsewhere the batch is split evenly.
    """

    def __init__(self, model: SlideModel, weights: np.ndarray, batch_size: int, mesh: Mesh):
        """Takes the weights of a window's pixels (float32 [window, window]) and the most windows of a batch."""
        self.batch_size = batch_size
        self._model, self._mesh = model, mesh
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self._at_once = mesh.size if on_cpu else -(-batch_size // mesh.size) * mesh.size
        self._weights = jax.device_put(weights, sharding.replicated(mesh))

        def weighted(arrays, weights, images):
            return jnp.moveaxis(model.probabilities(arrays, images), -1, 1) * weights

        self._run = jax.jit(weighted, out_shardings=sharding.split_over_data(mesh))

    def __call__(self, images: np.ndarray) -> Callable[[], Iterator[np.ndarray]]:
        """Starts to compute, and returns at once.

        Args:
          images: uint8 [N, window, window, 3].

        Returns:
          A function that waits for probabilities times weights, float32 [K, window, window] of each window.
        """
        started = []
        for first in range(0, len(images), self._at_once):
            part = images[first : first + self._at_once]
            missing = self._at_once - len(part)
            padded = np.pad(part, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else part
            placed = jax.device_put(padded, sharding.split_over_data(self._mesh))
            started.append((self._run(self._model.arrays, self._weights, placed), len(part)))
        return lambda: (window for result, count in started for window in np.asarray(result)[:count])
