"""Reads every tile of a data set once and keeps what the inspection needs."""

import dataclasses
from collections.abc import Callable

import numpy as np

from bcss_jax.data.checks import summarize_defects
from bcss_jax.data.discovery import DataSettings, Tile
from bcss_jax.data.inspection import similar, stain
from bcss_jax.data.inspection.source import Source
from bcss_jax.data.tile_reader import TileStats
from bcss_jax.errors import DataError

BINS = 64  # of a histogram: four values of a pixel each


@dataclasses.dataclass(frozen=True)
class Survey:
    """Statistics of a data set. Entry i of every list and array belongs to tile i.

    Attributes:
      settings: which data set.
      tiles: the N tiles, sorted by key.
      stats: size, pixels of each code and digest of each tile.
      histograms: int32 [N, 3, BINS], number of pixels for each channel (red, green, blue) and bin of values.
      tissue: float [N], share of the pixels that show tissue.
      densities: float [N, 3], mean optical density of these pixels.
      hashes: uint64 [N, 4], from `similar.hash_of`.
      contrasts: float [N], from `similar.hash_of`.
      warnings: what is unusual but usable.
    """

    settings: DataSettings
    tiles: list[Tile]
    stats: list[TileStats]
    histograms: np.ndarray
    tissue: np.ndarray
    densities: np.ndarray
    hashes: np.ndarray
    contrasts: np.ndarray
    warnings: list[str]

    @property
    def codes(self) -> str:
        """The code book of the masks."""
        return self.tiles[0].codes

    @property
    def code_counts(self) -> np.ndarray:
        """Number of pixels of each tile and code, int64 [N, 22]; zeros for an image without a mask."""
        return np.stack([stats.code_counts for stats in self.stats])


def take_survey(source: Source, progress: Callable[[int], None] | None = None) -> Survey:
    """Reads all tiles and returns their statistics.

    Args:
      source: the data set.
      progress: called with the number of tiles done.

    Raises:
      DataError: a file is missing or unusable.
    """
    defects, warnings, tiles, stats, measures, num_pairs = [], [], [], [], [], 0
    for pair, result in source.read_pairs(measure=_measure, progress=progress):
        num_pairs += 1
        defects += result.missing + result.bad
        warnings += result.warnings
        if result.stats:
            tiles += pair
            stats += result.stats
            measures += result.measures
    if defects:
        raise DataError(
            f"{summarize_defects(defects, num_pairs)}; repair or remove them (python -m bcss_jax.data verify lists "
            "more)"
        )
    histograms, densities, hashes = zip(*measures, strict=True)
    return Survey(
        settings=source.settings,
        tiles=tiles,
        stats=stats,
        histograms=np.stack(histograms),
        tissue=np.array([density.tissue for density in densities]),
        densities=np.stack([density.mean for density in densities]),
        hashes=np.stack([each.words for each in hashes]),
        contrasts=np.array([each.contrast for each in hashes]),
        warnings=warnings,
    )


def _measure(image: np.ndarray) -> tuple[np.ndarray, stain.Density, similar.Hash]:
    image = np.ascontiguousarray(image)
    bins = image.reshape(-1, 3) // (256 // BINS)
    histogram = np.stack([np.bincount(bins[:, channel], minlength=BINS) for channel in range(3)]).astype(np.int32)
    return histogram, stain.density_of(image), similar.hash_of(image)


def most_different(histograms: np.ndarray) -> tuple[int, int]:
    """Returns the indices of two tiles with very different colors, by the earth mover's distance of their histograms.

    Not all pairs are compared. The search starts at the tile nearest to the mean of all tiles, moves to the tile that
    is farthest from it, and repeats this while the distance grows.

    Args:
      histograms: [N, 3, BINS].
    """
    totals = histograms.sum(axis=(1, 2), keepdims=True)
    below = (histograms.cumsum(axis=2) / totals).reshape(len(histograms), -1).astype(np.float32)
    first = int(np.abs(below - below.mean(axis=0)).sum(axis=1).argmin())
    distance, second = -1.0, first
    while True:
        away = np.abs(below - below[first]).sum(axis=1)
        farthest = int(away.argmax())
        if away[farthest] <= distance:
            return (first, second) if first < second else (second, first)
        distance, first, second = float(away[farthest]), farthest, first
