"""Estimates how much a score would vary with other patients: 95 % percentile intervals by bootstrap.

Images of the same patient resemble each other, so whole patients are drawn with replacement, as many as there are.
Scores are functions of sums over images (of confusion counts, or of values and their number for means). A draw is
therefore a sum weighted by how often each patient was drawn, and one matrix product computes all draws.

With fewer than `MIN_PATIENTS` patients an interval over patients would be meaningless. Images are drawn instead, and
the result says so. This interval is too narrow, because images of the same patient are not independent.

Source: Efron and Tibshirani 1993 (percentile interval); Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x
(bootstrap of clusters).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bcss_jax.errors import DataError

LEVEL = 0.95
RESAMPLES = 2000
MIN_PATIENTS = 8
WEIGHTS_AT_ONCE = 2_000_000  # bounds the memory where many images are drawn


class Interval(NamedTuple):
    """A statistic and its 95 % interval.

    Attributes:
      value: statistic of all images; a float, or an array if the statistic has several values.
      low: lower end, with the same shape. NaN where there is no interval: a single unit, or no draw with a score.
      high: upper end, with the same shape.
      over: what was drawn, "patients" or "images".
      n: number of patients or images.
    """

    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    over: str
    n: int


def interval(
    sums: np.ndarray, patients: Sequence[str], statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0
) -> Interval:
    """Returns a statistic of sums over images, with its interval.

    Args:
      sums: [N, ...] the numbers of each image that are summed for `statistic`: confusion counts (integers are added
        exactly, up to 2^53), or the result of `mean_sums`.
      patients: [N] patient of each image.
      statistic: takes totals [R, ...] and returns [R] or [R, S] floats, NaN where there is no score. Draws without a
        score are left out of the interval.
      seed: seed of the draws (PCG64). Calls with the same seed and patients draw the same patients.

    Raises:
      DataError: There are no images.
      ValueError: The lengths differ.
    """
    sums = np.asarray(sums)
    if sums.dtype.kind in "iub":
        sums = sums.astype(np.int64)  # int32 counts of the devices would overflow in a total
    if len(sums) != len(patients):
        raise ValueError(f"expected as many patients as images, found {len(patients)} and {len(sums)}")
    if len(sums) == 0:
        raise DataError("bootstrap: expected images, found none; evaluate a split that has some")
    names, number = np.unique(np.asarray(patients, str), return_inverse=True)
    over = "patients"
    if len(names) < MIN_PATIENTS:
        over, number = "images", np.arange(len(sums))
    n = int(number.max()) + 1
    units = np.zeros((n, *sums.shape[1:]), sums.dtype)
    np.add.at(units, number, sums)

    value = np.asarray(statistic(sums.sum(0, keepdims=True)), np.float64)[0]
    draws = np.asarray(statistic(_draw(units, seed)), np.float64)
    low, high = _percentiles(draws) if n > 1 else (np.full(value.shape, np.nan),) * 2
    if value.ndim == 0:
        value, low, high = float(value), float(low), float(high)
    return Interval(value, low, high, over, n)


def paired_difference(
    sums_a: np.ndarray,
    sums_b: np.ndarray,
    patients: Sequence[str],
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
) -> Interval:
    """Returns statistic(a) - statistic(b) of two models on the same images, with its interval.

    Each draw uses the same patients for both models.

    Args:
      sums_a: `sums` of one model, as in `interval`.
      sums_b: `sums` of the other model, with the images in the same order.
      patients: as in `interval`.
      statistic: as in `interval`.
      seed: as in `interval`.

    Raises:
      DataError: There are no images.
      ValueError: The shapes differ.
    """
    sums_a, sums_b = np.asarray(sums_a), np.asarray(sums_b)
    if sums_a.shape != sums_b.shape:
        raise ValueError(f"both models need the same images and classes; found {sums_a.shape} and {sums_b.shape}")
    both = np.stack([sums_a, sums_b], axis=1)
    return interval(both, patients, lambda totals: statistic(totals[:, 0]) - statistic(totals[:, 1]), seed)


def mean_sums(values: np.ndarray) -> np.ndarray:
    """Returns the numbers to sum for a mean over images: values [N, ...], NaN for no score -> [N, 2, ...] floats."""
    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    return np.stack([np.where(known, values, 0.0), known], axis=1)


def mean_of_sums(totals: np.ndarray) -> np.ndarray:
    """Returns the mean, given sums of `mean_sums`: [R, 2, ...] -> [R, ...], NaN where no image has a score."""
    total, number = totals[:, 0], totals[:, 1]
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _draw(units, seed):
    """Returns totals [RESAMPLES, ...] of draws with replacement, each of as many units as there are."""
    n = len(units)
    rng = np.random.Generator(np.random.PCG64(seed))
    flat = units.reshape(n, -1).astype(np.float64)
    at_once = max(1, WEIGHTS_AT_ONCE // n)
    totals = [
        rng.multinomial(n, np.full(n, 1 / n), size=min(at_once, RESAMPLES - start)).astype(np.float64) @ flat
        for start in range(0, RESAMPLES, at_once)
    ]
    return np.concatenate(totals).astype(units.dtype).reshape(RESAMPLES, *units.shape[1:])


def _percentiles(draws):
    """Returns the ends of the interval per column. Draws without a score (NaN) are left out; NaN if none is left."""
    tail = 50 * (1 - LEVEL)
    columns = [column[~np.isnan(column)] for column in draws.reshape(RESAMPLES, -1).T]
    ends = [np.percentile(column, [tail, 100 - tail]) if len(column) else (np.nan, np.nan) for column in columns]
    return np.asarray(ends, np.float64).T.reshape(2, *draws.shape[1:])
