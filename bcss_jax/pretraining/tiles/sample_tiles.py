"""Tiles of the built-in data set, of patients that are in no labeled data."""

import threading

import numpy as np

from bcss_jax.data import synthetic
from bcss_jax.pretraining.tiles.in_order import in_order

COUNT = 2000


class SampleTiles:
    """Tiles that are drawn when they are first read, and held from then on; see `tiles.Tiles`.

    A tile takes about 0.1 s of a core.

    Attributes:
      names: see `Tiles`.
      size: see `Tiles`.
      notes: see `Tiles`.
    """

    def __init__(self, count: int = COUNT, seed: int = 0):
        """Draws nothing yet.

        Args:
          count: of tiles; a patient has eight.
          seed: which data set, 0 or above; its patients are others than those of the labeled data set of the same seed.
        """
        self.size = synthetic.SIZE
        self.names = [synthetic.unlabeled_key(number) for number in range(count)]
        patients = -(-count // len(synthetic.PLANS))
        self.notes = (f"{count} synthetic tiles of {patients} patients that have no labels",)
        self._images = np.empty((count, self.size, self.size, 3), np.uint8)
        self._drawn = np.zeros(count, bool)
        self._seed, self._lock = seed, threading.Lock()

    def __len__(self) -> int:
        """Returns the number of tiles."""
        return len(self.names)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns the tiles of these numbers, uint8 [len(indices), size, size, 3]."""
        with self._lock:
            missing = np.unique(indices[~self._drawn[indices]]).tolist()
            found = in_order(lambda number: synthetic.draw_unlabeled(number, self._seed), missing)
            for number, image in zip(missing, found, strict=True):
                self._images[number] = image
                self._drawn[number] = True
        return self._images[indices]
