"""Reads every tile of a data set once and keeps what inspection needs to know of it."""

import dataclasses
from collections.abc import Callable

import numpy as np

from bcss_jax.data.checks import TileStats, listed
from bcss_jax.data.discovery import DataSettings, Tile
from bcss_jax.data.inspection import similar, stain
from bcss_jax.data.inspection.source import Source
from bcss_jax.errors import DataError

BINS = 64  # of a histogram: four values of a pixel each


@dataclasses.dataclass(frozen=True)
class Survey:
    """A data set without its pixels; entry i of everything belongs to tile i.

    Attributes:
      settings: which data set.
      tiles: N of them, sorted by key.
      contents: size, pixels per code and digest of each.
      histograms: int32 [N, 3, BINS], pixels per channel (red, green, blue) and value.
      tissue: float [N], share of the pixels that are no glass.
      densities: float [N, 3], mean optical density of these.
      hashes: uint64 [N, 4], of `similar.hash_of`.
      contrasts: float [N], likewise.
      warnings: what is odd but usable.
    """

    settings: DataSettings
    tiles: list[Tile]
    contents: list[TileStats]
    histograms: np.ndarray
    tissue: np.ndarray
    densities: np.ndarray
    hashes: np.ndarray
    contrasts: np.ndarray
    warnings: list[str]

    @property
    def codes(self) -> str:
        """Code book of the masks."""
        return self.tiles[0].codes

    @property
    def code_counts(self) -> np.ndarray:
        """Pixels per tile and code, int64 [N, 22]; zeros for an image without a mask."""
        return np.stack([content.code_counts for content in self.contents])


def take(source: Source, progress: Callable[[int], None] | None = None) -> Survey:
    """Reads all tiles.

    Raises:
      DataError: a file is missing or not usable.
    """
    wrong, warnings, tiles, contents, measures, pairs = [], [], [], [], [], 0
    for pair, finding in source.examine(measure=_measure, progress=progress):
        pairs += 1
        wrong += finding.missing + finding.bad
        warnings += finding.warnings
        if finding.contents:
            tiles += pair
            contents += finding.contents
            measures += finding.measures
    if wrong:
        raise DataError(f"{listed(wrong, pairs)}; mend or remove them (python -m bcss_jax.data verify lists more)")
    histograms, densities, hashes = zip(*measures, strict=True)
    return Survey(
        settings=source.settings,
        tiles=tiles,
        contents=contents,
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
    """Two tiles whose colors differ most: the earth mover's distance of their histograms, [N, 3, BINS].

    Not all pairs are compared. From the tile nearest to the mean of all the search goes to the farthest, from there to
    the farthest again, and so on as long as the distance grows.
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
