"""The number of pixels of each code in each example, for balance and for the reports of folds.

They are counted when a data set is written. Data sets that were written before the file `FILE` existed are counted from
their stored masks.
"""

import array
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bcss_jax.common.interruption import safe_point
from bcss_jax.common.npz_files import read_npz
from bcss_jax.data.host_tensorflow import tf
from bcss_jax.errors import StorageError, printable

FILE = "code_counts.npz"
CODES = 256


class CodeCounter:
    """Counts the codes of masks one after the other, in twelve bytes for each code of each mask."""

    def __init__(self):
        """Nothing is counted yet."""
        self._found = array.array("I")

    def add(self, index: int, mask: np.ndarray) -> None:
        """Counts the pixels of a mask, uint8 [H, W], as those of the example with this index."""
        counts = np.bincount(mask.ravel(), minlength=CODES)
        for code in np.flatnonzero(counts).tolist():
            self._found.extend((index, code, int(counts[code])))

    def table(self) -> np.ndarray:
        """Returns what was counted: uint32 [n, 3] with index, code and number of pixels."""
        return np.frombuffer(self._found, np.dtype("I")).astype(np.uint32).reshape(-1, 3)


def write_counts(path: Path, counters: Mapping[str, CodeCounter]) -> None:
    """Writes the counts of each split to an npz file."""
    tables: dict[str, Any] = {split: counter.table() for split, counter in counters.items()}
    np.savez_compressed(path, **tables)


def read_counts(path: Path, split: str, num_examples: int, remedy: str) -> np.ndarray:
    """Returns the number of pixels of each code in each example: int32 [num_examples, 256].

    Args:
      path: what `write_counts` wrote.
      split: one of its splits.
      num_examples: of the split.
      remedy: what to do about a damaged file, for messages.

    Raises:
      StorageError: the file cannot be read, or does not hold the counts of these examples.
    """
    expected = f"the counts of {num_examples} examples of {split}"
    table = read_npz(path, expected, remedy, error_type=StorageError).get(split)
    counts = np.zeros((num_examples, CODES), np.int32)
    if (
        table is None
        or table.shape[1:] != (3,)
        or table.dtype != np.uint32
        or (table[:, :2] >= (num_examples, CODES)).any()
        or len(np.unique(table[:, 0])) != num_examples
    ):
        raise StorageError(f"{printable(path)}: expected {expected}, found others; {remedy}")
    counts[table[:, 0], table[:, 1]] = table[:, 2]
    return counts


def count_stored_masks(encoded: tf.data.Dataset, num_examples: int) -> np.ndarray:
    """Returns the same as `read_counts`, from the stored masks.

    Only the masks are decoded, one batch at a time.

    Args:
      encoded: as `tfrecords.PreparedData.load` returns them.
      num_examples: their number.
    """

    def counted(example):
        mask = tf.cast(tf.io.decode_png(example["mask"], channels=1), tf.int32)
        return example["index"], tf.math.bincount(tf.reshape(mask, [-1]), minlength=CODES, maxlength=CODES)

    counts = np.zeros((num_examples, CODES), np.int32)
    for index, each in encoded.map(counted, num_parallel_calls=os.cpu_count()).batch(64).as_numpy_iterator():
        safe_point()
        counts[index] = each
    return counts
