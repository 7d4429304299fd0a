"""The HDF5 file with the features of a slide's tiles, in the layout of TRIDENT (github.com/mahmoodlab/TRIDENT).

    features  float32 [N, D]   attributes: name, savetodir; of ours: encoder, feature, mpp, license
    coords    int64 [N, 2]     x and y of the upper left corner in pixels of level 0; attributes: patch_size,
                               patch_size_level0, level0_magnification, target_magnification, overlap, name, savetodir,
                               level0_width, level0_height

Tiles are appended in batches, so memory does not grow with their number.
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bcss_jax.common.files import whole_file
from bcss_jax.common.json_files import as_json, parse_json
from bcss_jax.errors import ConfigError, printable

IDENTITY = "bcss_jax"  # attribute of the file: JSON, all that the features depend on
UM_TIMES_MAGNIFICATION = 10  # um per pixel times nominal magnification


@dataclasses.dataclass(frozen=True)
class TileLayout:
    """Where tiles lie on a slide.

    Attributes:
      name: of the slide, without its ending.
      size: width and height of level 0, pixels.
      tile: side of a tile, pixels of the encoder's resolution.
      tile_level0: the same in pixels of level 0.
      mpp: um per pixel of the tiles.
      mpp_level0: um per pixel of level 0.
    """

    name: str
    size: tuple[int, int]
    tile: int
    tile_level0: int
    mpp: float
    mpp_level0: float


class _Disk:
    """A file that keeps its first error to itself, because HDF5 crashes the process after an error of the disk."""

    def __init__(self, file: io.FileIO):
        self._file, self._error = file, None
        self.seek, self.tell, self.flush = file.seek, file.tell, file.flush
        self.read, self.readinto = file.read, file.readinto

    def write(self, content: memoryview) -> int:
        content = memoryview(content).cast("B")
        self._try(lambda: self._write(content))
        return len(content)

    def truncate(self, size: int) -> int:
        self._try(lambda: self._file.truncate(size))
        return size

    def check(self) -> None:
        """Raises the error."""
        if self._error is not None:
            raise self._error

    def _write(self, content: memoryview) -> None:
        while content:
            content = content[self._file.write(content) :]

    def _try(self, change: Callable[[], Any]) -> None:
        try:
            if self._error is None:
                change()
        except OSError as error:
            self._error = error


class FeatureWriter:
    """Appends tiles to an open file."""

    def __init__(self, file: h5py.File, disk: _Disk, width: int, chunk: int):
        """Makes the datasets; `width` is the number of features, and `chunk` that of tiles stored together."""
        self._file, self._disk = file, disk
        self._features = file.create_dataset(
            "features", (0, width), "f4", maxshape=(None, width), chunks=(chunk, width)
        )
        self._coords = file.create_dataset("coords", (0, 2), "i8", maxshape=(None, 2), chunks=(chunk, 2))

    def append(self, features: np.ndarray, coords: np.ndarray) -> None:
        """Appends tiles: float32 [n, D], and int64 [n, 2] in pixels of level 0. Raises an OSError of the disk."""
        for dataset, values in ((self._features, features), (self._coords, coords)):
            dataset.resize(len(dataset) + len(values), axis=0)
            dataset[len(dataset) - len(values) :] = values
        self._file.flush()
        self._disk.check()

    def __len__(self) -> int:
        """Returns the number of tiles."""
        return len(self._coords)


@contextlib.contextmanager
def writer(
    path: Path, layout: TileLayout, width: int, *, identity: dict, about: dict[str, Any], chunk: int = 64
) -> Iterator[FeatureWriter]:
    """Opens a file of features to write; it appears under its name when it is complete.

    Args:
      path: of the file.
      layout: of the tiles.
      width: number of features.
      identity: JSON, all that the features depend on.
      about: further attributes of the features, by name; those that are None are left out.
      chunk: tiles that are stored together.

    Raises:
      ConfigError: a file of something else stands there.
      StorageError: it cannot be written.
    """
    with whole_file(path) as unfinished, open(unfinished, "r+b", buffering=0) as raw:
        disk = _Disk(raw)
        with h5py.File(disk, "w") as file:
            file.attrs[IDENTITY] = json.dumps(as_json(identity))
            opened = FeatureWriter(file, disk, width, chunk)
            both = {"name": layout.name, "savetodir": str(path.parent)}
            level0, target = (max(1, round(UM_TIMES_MAGNIFICATION / mpp)) for mpp in (layout.mpp_level0, layout.mpp))
            file["features"].attrs.update(both | {name: value for name, value in about.items() if value is not None})
            file["coords"].attrs.update(
                both
                | {
                    "patch_size": layout.tile,
                    "patch_size_level0": layout.tile_level0,
                    "level0_magnification": level0,
                    "target_magnification": target,
                    "overlap": 0,
                    "level0_width": layout.size[0],
                    "level0_height": layout.size[1],
                }
            )
            yield opened
        disk.check()


@dataclasses.dataclass(frozen=True)
class FoundFeatures:
    """A file of features that is there.

    Attributes:
      identity: what its features depend on.
      tiles: how many it has.
    """

    identity: dict
    tiles: int


def read_features(path: Path) -> FoundFeatures | None:
    """Returns what a complete file says of itself; None if there is no file.

    Raises:
      ConfigError: the file is not one that this program wrote.
    """
    if not path.exists():
        return None
    try:
        with h5py.File(path, "r") as file:
            identity = parse_json(str(file.attrs[IDENTITY]), kind=dict)
            coords: Any = file["coords"]
            return FoundFeatures(identity, len(coords))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{printable(path)}: expected features that this program wrote, found another file or a damaged one; move "
            "it away, or name another --output"
        ) from error
