"""The tiles of a data set, read from its folder or drawn, for the commands that look at all of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bcss_jax.common.regular_file import real_path
from bcss_jax.data import synthetic
from bcss_jax.data.discovery import DataSettings, Tile, find_tiles
from bcss_jax.data.image_folder import LeftOut
from bcss_jax.data.tile_reader import PairResult, crop, read_files, read_pairs, tile_stats
from bcss_jax.errors import DataError


def title_of(settings: DataSettings) -> str:
    """Returns the name of a data set for headings."""
    folder = settings.folder
    if folder is None:
        return "built-in sample"
    return f"{real_path(folder).name} ({settings.layout}, split {settings.effective_split_by})"


class Source:
    """The tiles of a data set, including images without masks, and their pixels.

    Attributes:
      settings: which data set.
      tiles: sorted by key. The tiles of the sample have no files: their `image` and `mask` are names only.
      refused: one line for each file that is left out because of its name, a link, or its size.
      left_out: what else the folders hold and is not read.
    """

    def __init__(self, settings: DataSettings, *, collect: bool = False):
        """Lists the tiles.

        Args:
          settings: which data set.
          collect: put what is wrong with single files into `refused` instead of raising an error.

        Raises:
          ConfigError: a setting is invalid.
          DataError: as `discovery.find_tiles`.
        """
        self.settings, self.refused, self.left_out, self._drawn = settings, [], LeftOut(), {}
        if settings.layout == "sample":
            self._drawn = {patch.key: patch for patch in sorted(synthetic.draw(), key=lambda patch: patch.key)}
            self.tiles = [_tile_of(patch) for patch in self._drawn.values()]
            return
        try:
            self.tiles = find_tiles(
                settings,
                required=(),
                with_unlabeled=True,
                refuse=(lambda error: self.refused.append(str(error))) if collect else None,
                left_out=self.left_out,
            )
        except DataError as error:
            if not self.refused:
                raise
            self.refused.append(str(error))  # no tile is left without the refused files
            self.tiles = []

    def read_pairs(
        self, *, measure: Callable[[np.ndarray], Any] | None = None, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[list[Tile], PairResult]]:
        """Reads all tiles, as `tile_reader.read_pairs`."""
        if not self._drawn:
            yield from read_pairs(self.tiles, measure=measure, progress=progress)
            return
        for done, tile in enumerate(self.tiles, 1):
            image, mask = self.pixels(tile)
            measures = (measure(image),) if measure else ()
            yield [tile], PairResult(stats=(tile_stats(image, mask),), measures=measures)
            if progress:
                progress(done)

    def pixels(self, tile: Tile) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the image, uint8 [H, W, 3], and the mask, uint8 [H, W] or None, of one tile.

        Raises:
          DataError: as `image_files.read_pair`.
        """
        if tile.key in self._drawn:
            return self._drawn[tile.key].image, self._drawn[tile.key].mask
        # Warnings are dropped: single tiles are read only after `read_pairs` has given the warnings.
        return crop(*read_files(tile, lambda line: None), tile)


def _tile_of(patch: synthetic.Patch) -> Tile:
    return Tile(**patch.origin(), image=Path(patch.key), mask=Path(patch.key), split=patch.split, window=None)
