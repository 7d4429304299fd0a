"""Reads the files of tiles on several threads, and summarizes the pixels of every tile."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from bcss_jax import labels
from bcss_jax.common.interruption import safe_point
from bcss_jax.data.discovery import Tile
from bcss_jax.data.image_files import read_image, read_pair
from bcss_jax.data.mask_codes import PaletteColors
from bcss_jax.errors import DataError, printable


@dataclasses.dataclass(frozen=True)
class TileStats:
    """What the checks need to know about a tile after its pixels are freed.

    Attributes:
      size: (height, width).
      code_counts: int64 [22], number of pixels of each code.
      digest: of the image's pixels; empty if all have one color, because blank tiles resemble one another.
      pair_digest: of the pixels of image and mask.
    """

    size: tuple[int, int]
    code_counts: np.ndarray
    digest: bytes
    pair_digest: bytes


@dataclasses.dataclass(frozen=True)
class PairResult:
    """The result of reading one pair of files: what is wrong with it, or the statistics of each of its tiles.

    Attributes:
      missing: one line if one of the two files does not exist.
      bad: one line if the files cannot be used.
      warnings: what is unusual but usable.
      stats: of each tile, unless something is wrong.
      measures: for each tile, the result of the function `measure` of `read_pairs`.
    """

    missing: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    stats: tuple[TileStats, ...] = ()
    measures: tuple = ()


def tile_stats(image: np.ndarray, mask: np.ndarray | None) -> TileStats:
    """Returns the statistics of a tile.

    Args:
      image: uint8 [H, W, 3].
      mask: uint8 [H, W], or None, which counts as no pixel of any code.
    """
    height, width, _ = image.shape
    if mask is None:
        mask, counts = np.empty(0, np.uint8), np.zeros(len(labels.BCSS22_NAMES), np.int64)
    else:
        counts = np.bincount(mask.ravel(), minlength=len(labels.BCSS22_NAMES))
    of_image = hashlib.sha256(np.ascontiguousarray(image).data).digest()
    pair_digest = hashlib.sha256(of_image + hashlib.sha256(np.ascontiguousarray(mask).data).digest()).digest()
    # The first row decides for most images, which have more than one color.
    one_color = (image[0] == image[0, 0]).all() and (image == image[0, 0]).all()
    return TileStats((height, width), counts, b"" if one_color else of_image, pair_digest)


def read_pairs(
    tiles: Iterable[Tile],
    *,
    measure: Callable[[np.ndarray], Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[list[Tile], PairResult]]:
    """Reads every pair of files once, on several threads.

    Args:
      tiles: the tiles of one pair of files must follow one another.
      measure: called with the image of each tile, uint8 [H, W, 3]; its results are in `PairResult.measures`.
      progress: called after every pair of files with the number of tiles done.

    Yields:
      The tiles of a pair of files and the result of reading it, in the order of `tiles`.
    """
    pairs = [list(group) for _, group in itertools.groupby(tiles, key=lambda tile: (tile.image, tile.mask))]
    # Threads suffice: decoding, hashing and NumPy release the interpreter's lock. Regions need much memory, so only few
    # are read at the same time.
    pool = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    with contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)  # an interrupt does not wait for the remaining files
        done, colors = 0, PaletteColors()
        for pair, result in zip(pairs, pool.map(lambda pair: _read_pair(pair, measure, colors), pairs), strict=True):
            safe_point()
            yield pair, result
            done += len(pair)
            if progress:
                progress(done)


def _read_pair(pair: list[Tile], measure: Callable[[np.ndarray], Any] | None, colors: PaletteColors) -> PairResult:
    image_path, mask_path = pair[0].image, pair[0].mask
    if mask_path is not None:
        for present, absent, what in ((image_path, mask_path, "mask"), (mask_path, image_path, "image")):
            if not absent.exists():
                return PairResult(
                    missing=(f"{printable(present)}: expected its {what} {printable(absent)}, found none",)
                )
    warnings = []
    try:
        image, mask = read_files(pair[0], warnings.append, colors)
    except DataError as error:
        return PairResult(bad=(str(error),))
    crops = [crop(image, mask, tile) for tile in pair]
    return PairResult(
        warnings=tuple(warnings),
        stats=tuple(tile_stats(*each) for each in crops),
        measures=tuple(measure(tile_image) for tile_image, _ in crops) if measure else (),
    )


def read_files(
    tile: Tile, warn: Callable[[str], None], colors: PaletteColors | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads the whole image and mask (None without a mask) that a tile is a part of.

    The arguments are those of `image_files.read_pair`.

    Raises:
      DataError: as `image_files.read_pair`.
    """
    if tile.mask is None:
        return read_image(tile.image, warn), None
    return read_pair(tile.image, tile.mask, tile.codes, warn, colors)


def crop(image: np.ndarray, mask: np.ndarray | None, tile: Tile) -> tuple[np.ndarray, np.ndarray | None]:
    """Crops a tile's window from its image [H, W, 3] and mask [H, W].

    Without a window, both are returned as they are.
    """
    if tile.window is None:
        return image, mask
    x, y, size = tile.window
    window = np.s_[y : y + size, x : x + size]
    return image[window], None if mask is None else mask[window]
