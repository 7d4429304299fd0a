"""A small training on drawn tiles in memory: the same batches in every process, by the number of the step."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bcss_jax import labels, losses, models
from bcss_jax.data import synthetic
from bcss_jax.training import sharding, step
from bcss_jax.training.loss_scale import loss_scale_for
from bcss_jax.training.optimizer import Plateau, adamw

SCHEME = labels.find_scheme("tumor_stroma")
PATCHES = 8


class Tiles:
    """Drawn tiles and crops of them.

    Attributes:
      side: of the crops, in pixels.
      batch: number of crops in a batch.
    """

    def __init__(self, side: int, batch: int):
        """Draws the tiles."""
        self.side, self.batch = side, batch
        patches = [synthetic.draw_patch(number % 4, number % 8) for number in range(PATCHES)]
        table = labels.lookup_table(SCHEME, "bcss22")
        self._images = np.stack([patch.image for patch in patches])
        self._labels = table[np.stack([patch.mask for patch in patches])].astype(np.uint8)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Returns the batch of a step: `image` uint8 [N, side, side, 3], `label` uint8 [N, side, side]."""
        draws = np.random.default_rng(step)
        crops: dict[str, list[np.ndarray]] = {"image": [], "label": []}
        for number in draws.integers(0, PATCHES, self.batch):
            y, x = draws.integers(0, self._images.shape[1] - self.side + 1, 2)
            for name, arrays in (("image", self._images), ("label", self._labels)):
                crops[name].append(arrays[number, y : y + self.side, x : x + self.side])
        return {name: np.stack(arrays) for name, arrays in crops.items()}


class Training:
    """The compiled training step of a small U-Net, and its state.

    Attributes:
      state: of the training.
    """

    def __init__(self, dtype: str, width: int, depth: int, device: Any):
        """Begins on a device; arguments as those of the U-Net."""
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            model = models.create("unet", num_classes=SCHEME.num_classes, width=width, depth=depth, dtype=dtype)
        self._mesh = sharding.make_mesh([device])
        tx = adamw(1e-3, 1e-4)
        objective = losses.Objective(SCHEME.num_classes, SCHEME.ignore_index, SCHEME.evaluated)
        self._step = step.make_train_step(model, tx, self._mesh, objective)
        start = step.TrainState.create(model, tx, Plateau(0.5, 5), loss_scale_for(dtype))
        self.state = sharding.place_replicated(start, self._mesh)

    def train(self, tiles: Callable[[int], dict[str, np.ndarray]], step: int) -> float:
        """Trains on the batch of a step. Returns the loss."""
        placed = sharding.place_batch(tiles(step), self._mesh)
        self.state, report = self._step(self.state, placed["image"], placed["label"])
        return float(report["loss"])
