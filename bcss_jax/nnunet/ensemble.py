"""nnU-Net's ensembles: folds of one configuration are averaged as logits, configurations as probabilities.

Folds are trainings of one network on parts of one data set, so their logits have the same scale and can be averaged.
Those of different configurations may not, so they are converted to probabilities first. Both functions take predictions
one at a time, for example from a generator, and keep only the sum and one prediction in memory.

Source: nnU-Net 2.8.1, `nnUNetPredictor` (folds) and `nnUNetv2_ensemble` (configurations).
"""

from collections.abc import Iterable

import numpy as np

from bcss_jax.errors import DataError


class Mean:
    """A running mean of arrays of one shape, in float32."""

    def __init__(self):
        """Starts without any array."""
        self._sum, self._count = None, 0

    def add(self, array: np.ndarray) -> None:
        """Adds an array.

        Raises:
          DataError: it has another shape than the arrays before.
        """
        if self._sum is None:
            self._sum = np.array(array, np.float32)
        elif self._sum.shape != np.shape(array):
            raise DataError(
                f"predictions of shapes {self._sum.shape} and {np.shape(array)} (height, width, classes) cannot be "
                "averaged; they must be of the same image and the same labels"
            )
        else:
            self._sum += array
        self._count += 1

    def result(self) -> np.ndarray:
        """Returns the mean, float32.

        Raises:
          ValueError: nothing was added.
        """
        if self._sum is None:
            raise ValueError("no predictions were added, so there is no mean")
        return self._sum / np.float32(self._count)


def mean_of_folds(logits: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the mean of logits.

    Args:
      logits: [H, W, K] of each fold, for one image.

    Returns:
      float32 [H, W, K].

    Raises:
      DataError: the shapes differ.
      ValueError: there are none.
    """
    return _mean(logits)


def mean_of_configurations(logits: Iterable[np.ndarray]) -> np.ndarray:
    """Returns mean probabilities from the logits of each configuration; see `mean_of_folds` for shapes and errors."""
    return _mean(map(softmax, logits))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities over the last axis, float32."""
    logits = np.asarray(logits, np.float32)
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    exps /= exps.sum(axis=-1, keepdims=True)
    return exps


def _mean(arrays: Iterable[np.ndarray]) -> np.ndarray:
    mean = Mean()
    for array in arrays:
        mean.add(array)
    return mean.result()
