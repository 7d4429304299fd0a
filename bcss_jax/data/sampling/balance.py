"""How often each example is drawn in an epoch, so that rare classes and heavy slides are seen more often.

An epoch has as many draws as there are examples. Example i is drawn w_i times on average, where the weights w add up to
the number of examples. Draws are systematic: the examples are put in a random order, their weights are laid end to end,
and one is drawn at each whole number after a random start. So each example is drawn either floor(w_i) or ceil(w_i)
times in every epoch, and which of the two depends on seed and epoch alone.
"""

from collections.abc import Sequence

import numpy as np

MOST_DRAWS = 10.0  # an example is drawn at most this many times as often as an average one


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Returns weights with which the classes are seen about equally often.

    The weight of an example is the mean over its pixels with truth of 1 / (share of the pixel's class in the data set),
    at most `MOST_DRAWS` times the mean. Examples without truth weigh as much as an average one.

    Args:
      counts: int [N, K], pixels of each evaluated class in each example.

    Returns:
      float64 [N] with mean 1.
    """
    counts = np.asarray(counts, np.float64)
    pixels = counts.sum(1, keepdims=True)
    shares = np.divide(counts, pixels, out=np.zeros_like(counts), where=pixels > 0)
    of_class = shares.sum(0)
    rarity = np.divide(1.0, of_class, out=np.zeros_like(of_class), where=of_class > 0)
    weights = shares @ rarity
    with_truth = pixels[:, 0] > 0
    if with_truth.any():
        weights[with_truth] = _limited(weights[with_truth])
    weights[~with_truth] = 1.0
    return weights


def with_slide_weights(weights: np.ndarray, of_slides: Sequence[float]) -> np.ndarray:
    """Returns the weights times those of the slides, with mean 1; both have one entry per example."""
    return _limited(weights * np.asarray(of_slides, np.float64))


def draws(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns how often each example is drawn in an epoch: int64 [N], with sum N.

    Args:
      weights: float64 [N] with mean 1.
      seed: of the run.
      epoch: from 0.
    """
    count = len(weights)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, count))))
    order, start = rng.permutation(count), rng.random()
    ends = np.cumsum(weights[order])
    ends *= count / ends[-1]
    ends[-1] = count
    whole = np.floor(ends + start).astype(np.int64)
    drawn = np.empty(count, np.int64)
    drawn[order] = np.diff(whole, prepend=0)
    return drawn


def _limited(weights: np.ndarray) -> np.ndarray:
    """Returns the weights with mean 1 and none above `MOST_DRAWS`; the others keep their proportions."""
    weights = weights / weights.mean()
    limited = np.zeros(len(weights), bool)
    while (weights[~limited] > MOST_DRAWS).any():
        limited |= weights > MOST_DRAWS
        weights[limited] = MOST_DRAWS
        weights[~limited] *= (len(weights) - MOST_DRAWS * limited.sum()) / weights[~limited].sum()
    return weights
