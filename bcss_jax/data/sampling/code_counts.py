"""Counts the codes in the stored masks of a data set, for balance and for the reports of folds."""

import os

import numpy as np

from bcss_jax.common.interruption import safe_point
from bcss_jax.data.host_tensorflow import tf


def code_counts(encoded: tf.data.Dataset, num_examples: int) -> np.ndarray:
    """Returns the number of pixels of each code in each example: int32 [num_examples, 256].

    Only the masks are decoded, one batch at a time.

    Args:
      encoded: as `tfrecords.PreparedData.load` returns them.
      num_examples: their number.
    """

    def counted(example):
        mask = tf.cast(tf.io.decode_png(example["mask"], channels=1), tf.int32)
        return example["index"], tf.math.bincount(tf.reshape(mask, [-1]), minlength=256, maxlength=256)

    counts = np.zeros((num_examples, 256), np.int32)
    for index, each in encoded.map(counted, num_parallel_calls=os.cpu_count()).batch(64).as_numpy_iterator():
        safe_point()
        counts[index] = each
    return counts
