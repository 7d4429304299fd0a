"""How nnU-Net joins predictions: folds of one configuration as logits, different configurations as probabilities.

Folds are trainings of one network on parts of one data set, so their logits share a scale and are averaged as they
are. Different configurations need not, so each is turned into probabilities first. Both take predictions one at a time,
from a generator for example, and hold no more than the sum and one of them.

Source: nnU-Net 2.8.1, `nnUNetPredictor` (folds) and `nnUNetv2_ensemble` (configurations).
"""

from collections.abc import Iterable

import numpy as np

from bcss_jax.errors import DataError


class Mean:
    """A running mean of arrays of one shape, in float32."""

    def __init__(self):
        """Of nothing yet."""
        self._sum, self._count = None, 0

    def add(self, array: np.ndarray) -> None:
        """Takes in one more.

        Raises:
          DataError: its shape is not that of those before.
        """
        if self._sum is None:
            self._sum = np.array(array, np.float32)
        elif self._sum.shape != np.shape(array):
            raise DataError(
                f"predictions of {self._sum.shape} and {np.shape(array)} (height, width, classes) cannot be averaged; "
                "they must be of the same image and the same labels"
            )
        else:
            self._sum += array
        self._count += 1

    def result(self) -> np.ndarray:
        """The mean, float32.

        Raises:
          ValueError: nothing was added.
        """
        if not self._count:
            raise ValueError("the mean of no predictions is asked for")
        return self._sum / np.float32(self._count)


def mean_of_folds(logits: Iterable[np.ndarray]) -> np.ndarray:
    """Mean logits.

    Args:
      logits: [H, W, K] of each fold, of one image.

    Returns:
      float32 [H, W, K].

    Raises:
      DataError: the shapes differ.
      ValueError: there are none.
    """
    return _mean(logits)


def mean_of_configurations(logits: Iterable[np.ndarray]) -> np.ndarray:
    """Mean probabilities, from the logits of each configuration; arguments and errors as of `mean_of_folds`."""
    return _mean(map(softmax, logits))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float32."""
    logits = np.asarray(logits, np.float32)
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    exps /= exps.sum(axis=-1, keepdims=True)
    return exps


def _mean(arrays: Iterable[np.ndarray]) -> np.ndarray:
    mean = Mean()
    for array in arrays:
        mean.add(array)
    return mean.result()
