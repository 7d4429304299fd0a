"""Where the tiles of a data set come from: read from its folder, or drawn, for commands that look at all of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bcss_jax.data import synthetic
from bcss_jax.data.checks import Finding, content_of, cut, examine, read_files
from bcss_jax.data.discovery import DataSettings, Tile, find_tiles
from bcss_jax.errors import DataError


def title_of(settings: DataSettings) -> str:
    """Returns the name of a data set for headings."""
    folder = settings.folder
    if folder is None:
        return "built-in sample"
    return f"{folder.resolve().name} ({settings.layout}, split {settings.effective_split_by})"


class Source:
    """The tiles of a data set, images without masks included, and their pixels.

    Attributes:
      settings: as given.
      tiles: sorted by key. Those of the sample have no files: `image` and `mask` are names only.
      refused: a line per file that is left out because of its name, a link, or its size.
    """

    def __init__(self, settings: DataSettings, *, collect: bool = False):
        """Lists the tiles.

        Args:
          settings: which data set.
          collect: put what is wrong with single files into `refused` instead of raising it.

        Raises:
          ConfigError: a setting that cannot be.
          DataError: as `layouts.find_tiles`.
        """
        self.settings, self.refused, self._drawn = settings, [], {}
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
            )
        except DataError as error:
            if not self.refused:
                raise
            self.refused.append(str(error))  # nothing is left once those files are out
            self.tiles = []

    def examine(
        self, *, measure: Callable[[np.ndarray], Any] | None = None, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[list[Tile], Finding]]:
        """As `data_checks.examine`, of all tiles."""
        if not self._drawn:
            yield from examine(self.tiles, measure=measure, progress=progress)
            return
        for done, tile in enumerate(self.tiles, 1):
            image, mask = self.pixels(tile)
            measures = (measure(image),) if measure else ()
            yield [tile], Finding(contents=(content_of(image, mask),), measures=measures)
            if progress:
                progress(done)

    def pixels(self, tile: Tile) -> tuple[np.ndarray, np.ndarray | None]:
        """Image, uint8 [H, W, 3], and mask, uint8 [H, W] or None, of one tile; errors as `tiles.read_pair`."""
        if tile.key in self._drawn:
            return self._drawn[tile.key].image, self._drawn[tile.key].mask
        return cut(*read_files(tile, lambda line: None), tile)  # whoever reads a single tile has examined all before


def _tile_of(patch: synthetic.Patch) -> Tile:
    return Tile(**patch.origin(), image=Path(patch.key), mask=Path(patch.key), split=patch.split, window=None)
