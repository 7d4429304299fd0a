"""Writes probabilities.zarr, the optional class probabilities of a slide, tile by tile.

The file has Zarr format 3 with the metadata of OME-Zarr 0.5 (ngff.openmicroscopy.org/0.5): one level "0" with the axes
c, y and x, um per pixel as the scale, and the names and colors of the channels under "omero". A value is round(255 p).
Chunks of zeros, where nothing was computed, are not stored.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from bcss_jax.common.files import storage_errors
from bcss_jax.slides.classes import SlideClass

CHUNK = 512  # pixels along a side


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
            array = _open(self.folder, self.shape, attributes)
            self.kept = array is not None
            if array is None:
                shutil.rmtree(self.folder, ignore_errors=True)
                array = _create(self.folder, self.shape, attributes)
        self._array = array

    def write_tile(self, row: int, column: int, probabilities: np.ndarray) -> None:
        """Writes the chunks of a tile, one per class; chunks of zeros are not stored.

        Args:
          row: row of tiles, from 0.
          column: column of tiles, from 0.
          probabilities: round(255 p), uint8 [K, CHUNK, CHUNK], or smaller at the right and lower edges.

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
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent or partly written
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
