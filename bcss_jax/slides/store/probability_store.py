"""Writes probabilities.zarr, the optional class probabilities of a slide, tile by tile.

The file has Zarr format 3 with the metadata of OME-Zarr 0.5 (ngff.openmicroscopy.org/0.5): one level "0" with the axes
c, y and x, um per pixel as the scale, and the names and colors of the channels under "omero". A value is round(255 p).
Chunks of zeros, where nothing was computed, are not stored.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from bcss_jax.common.files import storage_errors, sync
from bcss_jax.common.outputs import written_files
from bcss_jax.common.outputs.written_files import Content
from bcss_jax.slides.classes import SlideClass

CHUNK = 512  # pixels along a side
_FILES = r"zarr\.json|0/zarr\.json|0/c/\d+/\d+/\d+|.*\.partial"  # paths in the folder; the last is a temporary file


class ProbabilityStore:
    """The probabilities of K classes, uint8 [K, height, width].

    Tiles may be written in any order, and again after the process was killed.

    Attributes:
      folder: the folder of the array.
      shape: (K, height, width).
      kept: whether the array existed before, with the tiles that had been written.
    """

    def __init__(self, folder: Path, width: int, height: int, *, mpp: float, classes: Sequence[SlideClass], name: str):
        """Opens the array or creates it; an array of another shape or with other metadata is deleted first.

        Args:
          folder: `*.zarr`.
          width: pixels.
          height: pixels.
          mpp: um per pixel.
          classes: one for each channel, in order.
          name: name of the image.

        Raises:
          StorageError: the array cannot be written.
        """
        self.folder, self.shape = Path(folder), (len(classes), height, width)
        attributes = _attributes(mpp, classes, name)
        with storage_errors(self.folder):
            check(self.folder)
            written_files.check_tree(self.folder, _FILES)
            array = _open(self.folder, self.shape, attributes)
            self.kept = array is not None
            if array is None:
                delete(self.folder)
                array = _create(self.folder, self.shape, attributes)
        self._array = array

    def write_tile(self, row: int, column: int, probabilities: np.ndarray) -> list[Content | None]:
        """Writes the chunks of a tile, one per class; chunks of zeros are not stored.

        Args:
          row: row of tiles, from 0.
          column: column of tiles, from 0.
          probabilities: round(255 p), uint8 [K, CHUNK, CHUNK], or smaller at the right and lower edges.

        Returns:
          What the chunk of each class is recognized by; None for a chunk of zeros.

        Raises:
          StorageError: the chunks cannot be written.
        """
        classes, height, width = self.shape
        y, x = row * CHUNK, column * CHUNK
        expected = (classes, min(CHUNK, height - y), min(CHUNK, width - x))
        if probabilities.dtype != np.uint8 or probabilities.shape != expected:
            raise ValueError(f"tile {row}, {column}: {probabilities.dtype} {probabilities.shape}, not uint8 {expected}")
        with storage_errors(self.folder):
            self._array[:, y : y + expected[1], x : x + expected[2]] = probabilities
            chunks = [path if values.any() else None
                      for path, values in zip(self._chunks(row, column), probabilities, strict=True)]  # fmt: skip
            for chunk in filter(None, chunks):
                sync(chunk)
                sync(chunk.parent)
            return [chunk and written_files.content_of(chunk) for chunk in chunks]

    def has_tile(self, row: int, column: int, contents: Sequence[Content | None]) -> bool:
        """Returns whether the chunks of a tile are those that `write_tile` wrote when it returned `contents`."""
        chunks = self._chunks(row, column)
        with contextlib.suppress(OSError):  # a chunk is missing
            found = [None if content is None else written_files.content_of(path)
                     for path, content in zip(chunks, contents, strict=False)]  # fmt: skip
            return len(contents) == len(chunks) and found == list(contents)
        return False

    def _chunks(self, row: int, column: int) -> list[Path]:
        return [self.folder / "0" / "c" / str(number) / str(row) / str(column) for number in range(self.shape[0])]


def check(folder: Path) -> None:
    """Checks that a folder is absent, or has an array of this program.

    Raises:
      ConfigError: it holds something else, or is a link.
    """
    written_files.check_no_links(folder)
    document = folder / "zarr.json"
    if not document.is_file():
        written_files.check_tree(folder, _FILES)
    elif "bcss_jax" not in _attributes_in(document):
        raise written_files.foreign(folder, "an array of something else")


def delete(folder: Path) -> None:
    """Deletes an array that `check` accepts.

    Raises:
      ConfigError: as `check`; or there are other files in the array.
      OSError: it cannot be deleted.
    """
    check(folder)
    written_files.delete_tree(folder, _FILES)


def _attributes_in(document: Path) -> dict:
    try:
        return json.loads(document.read_bytes())["attributes"]
    except (ValueError, KeyError, TypeError, RecursionError):  # cut short when the process was killed
        return {"bcss_jax": None}


def _create(folder: Path, shape: tuple[int, int, int], attributes: dict) -> zarr.Array:
    group = zarr.create_group(folder, zarr_format=3, attributes=attributes)
    return group.create_array(
        "0",
        shape=shape,
        chunks=(1, CHUNK, CHUNK),
        dtype=np.uint8,
        fill_value=0,
        compressors=ZstdCodec(level=3),
        dimension_names=("c", "y", "x"),
        config={"write_empty_chunks": False},
    )


def _open(folder: Path, shape: tuple[int, int, int], attributes: dict) -> zarr.Array | None:
    """Returns the existing array if it equals the one that `_create` would make, or else None."""
    try:
        group = zarr.open_group(folder, mode="r+")
        array = cast(zarr.Array, group["0"])
        same = (array.shape, array.chunks, array.dtype) == (shape, (1, CHUNK, CHUNK), np.dtype(np.uint8))
        same = same and dict(group.attrs) == attributes
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):  # absent or damaged
        return None
    return array.with_config({"write_empty_chunks": False}) if same else None


def _attributes(mpp: float, classes: Sequence[SlideClass], name: str) -> dict:
    space = {"type": "space", "unit": "micrometer"}
    multiscale = {
        "name": name,
        "axes": [{"name": "c", "type": "channel"}, {"name": "y"} | space, {"name": "x"} | space],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, mpp, mpp]}]}],
    }
    channels = [
        {
            "label": entry.name,
            "color": "{:02X}{:02X}{:02X}".format(*entry.color),
            "active": True,
            "window": {"min": 0, "max": 255, "start": 0, "end": 255},
        }
        for entry in classes
    ]
    return {
        "ome": {"version": "0.5", "multiscales": [multiscale], "omero": {"channels": channels}},
        "bcss_jax": {"probability_is_value_over": 255},
    }
