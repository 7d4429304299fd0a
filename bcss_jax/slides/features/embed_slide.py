"""Computes the features of a slide's tiles with one encoder, from the slide's file to the file of features."""

import dataclasses
import functools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bcss_jax.common.device_memory import out_of_memory_errors
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.json_files import as_json, describe_differences, differences
from bcss_jax.common.progress import ProgressLine
from bcss_jax.errors import ConfigError, DataError, NumericalError, Preempted, printable
from bcss_jax.inference.frozen_encoder import FrozenEncoder, feature_width
from bcss_jax.slides.batch.slide_folder import fingerprints
from bcss_jax.slides.batch.slide_list import Entry
from bcss_jax.slides.batch.slide_overview import find_tissue, place_grid, read_thumbnail
from bcss_jax.slides.features.feature_file import FeatureWriter, TileLayout, read_features, writer
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.dicom.series import slide_file
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.stitching.block_cache import AHEAD, BlockCache
from bcss_jax.slides.stitching.labeling import MAX_UNREADABLE, too_unreadable
from bcss_jax.slides.windows import Windows, windows_of
from bcss_jax.training import sharding

FORMAT = 1  # of the files' identity
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EmbedSettings:
    """How slides are embedded; the same for all slides of a batch.

    Attributes:
      tile: side of the tiles, pixels.
      mpp: um per pixel of the tiles.
      feature: one of `frozen_encoder.FEATURES`.
      tissue: "colour" (found by color) or "all" (the whole slide); a file given for a slide takes precedence.
    """

    tile: int
    mpp: float
    feature: str
    tissue: str


class EmbeddedSlide(NamedTuple):
    """A slide with its features.

    Attributes:
      tiles: how many have features.
      unreadable: tiles that were left out because parts of them could not be decoded.
      seconds: that it took; None if it was done before.
    """

    tiles: int
    unreadable: int
    seconds: float | None


class SlideEmbedder:
    """An encoder with its settings, compiled once for all slides."""

    def __init__(self, encoder: FrozenEncoder, settings: EmbedSettings, batch_size: int, readers: int, mesh: Mesh):
        """Compiles nothing yet.

        Args:
          encoder: the encoder.
          settings: for all slides.
          batch_size: tiles at a time, over all devices; rounded up to a multiple of their number.
          readers: processes that read a slide.
          mesh: devices to compute on.
        """
        self._encoder, self._settings, self._readers, self._mesh = encoder, settings, readers, mesh
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._run = jax.jit(
            lambda arrays, images: encoder.describe(arrays, images, settings.feature),
            out_shardings=sharding.split_over_data(mesh),
        )

    def identity_of(self, entry: Entry) -> dict:
        """Returns everything that the features of a slide depend on, as JSON.

        Raises:
          DataError: the slide, or a file that belongs to it, is missing.
        """
        slide = slide_file(entry.slide)
        return as_json(
            {
                "format": FORMAT,
                "slide": slide.name,
                "files": fingerprints(slide, tissue=entry.tissue),
                "mpp": entry.mpp,
                "encoder": self._encoder.identity,
                "settings": dataclasses.asdict(self._settings),
            }
        )

    def check(self, entry: Entry, path: Path, *, replace: bool) -> int | None:
        """Returns the number of tiles if a slide was done before, and None otherwise; changes nothing.

        Args:
          entry: the slide.
          path: of the file of features.
          replace: features of other settings may be there.

        Raises:
          ConfigError: a file of something else stands there, or one with features of other settings.
          DataError: the slide, or a file that belongs to it, is missing.
        """
        found = read_features(path)
        if found is None:
            return None
        identity = self.identity_of(entry)
        if found.identity == identity:
            return found.tiles
        if not replace:
            raise ConfigError(
                f"{printable(path)} holds features of other settings "
                f"({describe_differences(differences(found.identity, identity))}); name another --output, use the same "
                "settings, or replace the features with --overwrite"
            )
        return None

    def embed(
        self, entry: Entry, path: Path, interruption: Interruption, *, replace: bool, recompute: bool
    ) -> EmbeddedSlide:
        """Writes the features of a slide, unless they are there.

        Args:
          entry: the slide.
          path: of the file of features.
          interruption: active; tells when to stop.
          replace: features of other settings are replaced.
          recompute: features of these settings are computed again.

        Raises:
          UserError: one line for the user.
          Preempted: asked to stop; nothing is written.
        """
        done = self.check(entry, path, replace=replace)
        if done is not None and not recompute:
            return EmbeddedSlide(done, 0, None)
        identity, started = self.identity_of(entry), time.perf_counter()
        entry = entry._replace(slide=slide_file(entry.slide))
        name = printable(entry.slide.name)
        warn = functools.partial(log.warning, "%s")
        with ReaderPool(entry.slide, self._readers) as pool:
            mpp, grid = place_grid(entry, pool.info, self._settings.mpp, warn)
            thumbnail, _ = read_thumbnail(entry, pool, grid, warn)
            everywhere = self._settings.tissue == "all"
            tissue = find_tissue(entry, thumbnail, grid, pool.info.bounds, warn, everywhere=everywhere)
            windows = windows_of(grid.height, grid.width, self._settings.tile, 0)
            chosen = tissue.windows(windows) & _whole(windows)
            if not chosen.any():
                raise DataError(
                    f"{name}: expected tissue, found no tile of {self._settings.tile} pixels with tissue at "
                    f"{grid.mpp:g} um per pixel ({grid.width}x{grid.height} pixels in all); mark the tissue with "
                    "--tissue=FILE, or take the whole slide with --tissue=all"
                )
            layout = TileLayout(
                name=path.stem,
                size=(pool.info.width, pool.info.height),
                tile=windows.size,
                tile_level0=round(windows.size * grid.scale[0]),
                mpp=grid.mpp,
                mpp_level0=mpp[0],
            )
            about = {
                "encoder": self._encoder.name,
                "feature": self._settings.feature,
                "mpp": grid.mpp,
                "license": self._encoder.license,
            }
            width = feature_width(self._encoder, self._settings.feature)
            with (
                out_of_memory_errors(f"{name}: a batch of tiles", lambda: "a smaller --batch_size"),
                writer(path, layout, width, identity=identity, about=about) as file,
            ):
                blocks = BlockCache(pool, grid, windows, chosen, 0, AHEAD * self._readers)
                self._write(name, file, _Tiles(blocks, grid, windows, chosen), interruption)
                tiles, unreadable = len(file), int(chosen.sum()) - len(file)
                if unreadable > MAX_UNREADABLE * chosen.sum():
                    raise too_unreadable(name)
        if unreadable:
            log.warning("%s: %d of %d tiles cannot be decoded; they are left out", name, unreadable, chosen.sum())
        return EmbeddedSlide(tiles, unreadable, time.perf_counter() - started)

    def _write(self, name: str, file: FeatureWriter, tiles: "_Tiles", interruption: Interruption) -> None:
        """Appends the features of all tiles; while a batch is computed, the one before is written."""
        line, waiting, done = ProgressLine(name, tiles.count), None, 0
        try:
            for images, coords, read in tiles.batches(self._batch_size):
                if interruption.requested:
                    raise Preempted(
                        f"{name}: stopped after {done} of {tiles.count} tiles; the same command begins it again"
                    )
                missing = self._batch_size - len(images)
                padded = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else images
                started = self._run(self._encoder.arrays, jax.device_put(padded, sharding.split_over_data(self._mesh)))
                if waiting is not None:
                    self._append(name, file, *waiting)
                waiting = started, coords
                done += read
                line.update(done)
            if waiting is not None:
                self._append(name, file, *waiting)
        finally:
            line.close()

    def _append(self, name: str, file: FeatureWriter, computed: jax.Array, coords: np.ndarray) -> None:
        features = np.asarray(computed)[: len(coords)]
        if not np.isfinite(features).all():
            x, y = coords[int(np.argmin(np.isfinite(features).all(1)))]
            raise NumericalError(f"{name}: tile at x={x}, y={y}: the output of {self._encoder.name} is not finite")
        file.append(features, coords)


class _Tiles:
    """Reads the chosen tiles of a slide, row by row."""

    def __init__(self, blocks: BlockCache, grid: Grid, windows: Windows, chosen: np.ndarray):
        self._blocks, self._grid, self._windows, self._chosen = blocks, grid, windows, chosen
        self.count = int(chosen.sum())

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Yields tiles uint8 [n, side, side, 3], their corners int64 [n, 2] on level 0, and how many were read for it.

        Tiles that cannot be decoded everywhere are left out.
        """
        images, coords, read, side = [], [], 0, self._windows.size
        row_before = 0
        for row, column in np.argwhere(self._chosen).tolist():
            if row > row_before:
                self._blocks.forget(above=row * side, left_of=self._windows.width)
                self._blocks.forget_unreadable_above(row * side)
                row_before = row
            pixels, (top, left) = self._blocks.window(row, column)
            read += 1
            unreadable = self._blocks.unreadable_in(top, top + side, left, left + side)
            if unreadable is None or not unreadable.any():
                images.append(pixels)
                coords.append([round(left * self._grid.scale[0]), round(top * self._grid.scale[1])])
            self._blocks.forget(above=(row + 1) * side, left_of=left)
            if len(images) == size:
                yield np.stack(images), np.array(coords, np.int64), read
                images, coords, read = [], [], 0
        if images:
            yield np.stack(images), np.array(coords, np.int64), read


def _whole(windows: Windows) -> np.ndarray:
    """Returns which windows lie on the slide with all of their pixels, bool [rows, columns]."""
    rows = (np.arange(windows.rows) + 1) * windows.stride <= windows.height
    columns = (np.arange(windows.columns) + 1) * windows.stride <= windows.width
    return rows[:, None] & columns
