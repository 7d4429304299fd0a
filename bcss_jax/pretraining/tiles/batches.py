"""Batches of tiles in an order that depends on the seed and the step alone, read ahead in a thread."""

import collections
import concurrent.futures
from collections.abc import Generator
from typing import NamedTuple

import numpy as np

from bcss_jax.common.interruption import result_of
from bcss_jax.errors import DataError
from bcss_jax.pretraining.tiles.tiles import Tiles

AHEAD = 2  # batches


class TileBatch(NamedTuple):
    """A batch, or the rows of it that this process reads.

    Attributes:
      images: uint8 [N, S, S, 3].
      indices: int32 [N], numbers of the tiles.
    """

    images: np.ndarray
    indices: np.ndarray


def steps_per_epoch(tiles: Tiles, batch_size: int) -> int:
    """Returns the number of full batches in an epoch; up to `batch_size` - 1 tiles are left out, others every time.

    Raises:
      DataError: there are fewer tiles than a batch holds.
    """
    if len(tiles) < batch_size:
        raise DataError(
            f"tiles: expected at least {batch_size}, which is one batch, found {len(tiles)}; add tiles, or lower "
            "--config.batch_size"
        )
    return len(tiles) // batch_size


def indices_of_step(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Returns the numbers of the tiles of a batch, int32 [batch_size]; every epoch is shuffled anew.

    Args:
      count: of tiles, at least `batch_size`.
      batch_size: tiles of a step.
      seed: of the run.
      step: 0 or above.
    """
    epoch, position = divmod(step, count // batch_size)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[position * batch_size : (position + 1) * batch_size].astype(np.int32)


def batches(
    tiles: Tiles, batch_size: int, seed: int, start_step: int = 0, *, process: int = 0, processes: int = 1
) -> Generator[TileBatch, None, None]:
    """Yields the batches from a step on, without end. They are the same however often a run was resumed.

    Args:
      tiles: where they are read.
      batch_size: of all processes together.
      seed: of the run, 0 or above.
      start_step: of the first batch.
      process: number of this process. It reads its rows of every batch, in the order of the processes.
      processes: of the run; must divide `batch_size`.

    Raises:
      DataError: there are fewer tiles than a batch, or a tile cannot be read.
    """
    steps_per_epoch(tiles, batch_size)
    if batch_size % processes:
        raise ValueError(f"batches of {batch_size} tiles cannot be divided over {processes} processes")
    rows = batch_size // processes

    def read(step: int) -> TileBatch:
        indices = indices_of_step(len(tiles), batch_size, seed, step)[process * rows : (process + 1) * rows]
        return TileBatch(tiles.read(indices), indices)

    pool = concurrent.futures.ThreadPoolExecutor(1, "tiles")
    requested = collections.deque(pool.submit(read, start_step + i) for i in range(AHEAD))
    try:
        step = start_step + AHEAD
        while True:
            yield result_of(requested.popleft())
            requested.append(pool.submit(read, step))
            step += 1
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
