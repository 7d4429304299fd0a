"""Stores the labels of a slide, during segmentation and afterward, in a folder with one file for each row of tiles.

A row is written as a whole or not at all, so that a run that was killed resumes with the rows that exist. A tile in
which all pixels have one value is stored as that value. Other tiles are stored as zlib streams, which a TIFF with
deflate compression can contain unchanged.
"""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bcss_jax.common.files import storage_errors, write_bytes
from bcss_jax.errors import DataError

TILE = 512  # pixels along a side
COMPRESSION = 4  # zlib level; labels take half the bytes of level 1, and level 6 takes twice the time

_MAGIC = b"bcsstile"
_HEADER = struct.Struct("<8s4I")  # magic, row, width, height, tile size
_ENTRY = np.dtype([("length", "<u4"), ("value", "u1")])  # of one tile; length 0 means that it has one value
_DIGEST = 16  # bytes of the checksum at the end


class TileStore:
    """The labels of a slide, uint8 [height, width], as tiles; tiles at the right and lower edges are padded with 0.

    Attributes:
      folder: the folder of the rows, created if necessary.
      width: pixels.
      height: pixels.
      tile_size: side of a tile in pixels.
      columns: number of tiles in a row.
      rows: number of rows of tiles.
    """

    def __init__(self, folder: Path, width: int, height: int, tile_size: int = TILE):
        """Opens the folder with the rows that it contains; rows of a slide of another size count as absent.

        Raises:
          StorageError: the folder cannot be created.
        """
        if min(width, height, tile_size) < 1:
            raise ValueError(f"no tiles of {tile_size} in {width} x {height} pixels")
        self.folder, self.width, self.height, self.tile_size = Path(folder), width, height, tile_size
        self.columns, self.rows = -(-width // tile_size), -(-height // tile_size)
        # By row, for rows whose checksum is right: the entries of the tiles, and where their streams start.
        self._tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._constant_streams: dict[int, bytes] = {}  # zlib streams of tiles with one value, by value
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, row: int) -> Path:
        """Returns the file of a row."""
        return self.folder / f"row-{row:06d}"

    def row_height(self, row: int) -> int:
        """Returns how many pixel rows of the slide a row of tiles has: `tile_size`, or fewer in the last row."""
        return min(self.tile_size, self.height - row * self.tile_size)

    def column_width(self, column: int) -> int:
        """Returns how many pixel columns of the slide a column of tiles has: `tile_size`, or fewer in the last."""
        return min(self.tile_size, self.width - column * self.tile_size)

    def write_row(self, row: int, labels: np.ndarray) -> None:
        """Writes a row of tiles, replacing an existing one.

        Args:
          row: row of tiles, from 0.
          labels: uint8 [row_height(row), width].

        Raises:
          StorageError: the row cannot be written; an existing one is unchanged.
        """
        if labels.dtype != np.uint8 or labels.shape != (self.row_height(row), self.width):
            raise ValueError(f"row {row}: {labels.dtype} {labels.shape}, not uint8 {self.row_height(row), self.width}")
        size = self.tile_size
        self.write_tiles(row, [labels[:, start : start + size] for start in range(0, self.width, size)])

    def write_tiles(self, row: int, tiles: Sequence[np.ndarray | int | bytes]) -> None:
        """Writes a row of tiles that are given separately, which saves work if most tiles have one value.

        Args:
          row: row of tiles, from 0.
          tiles: for each column, the tile as uint8 [<= tile_size, <= tile_size] or as returned by `encode`.

        Raises:
          StorageError: the row cannot be written; an existing one is unchanged.
        """
        if not 0 <= row < self.rows or len(tiles) != self.columns:
            raise ValueError(f"row {row} with {len(tiles)} tiles, not one of {self.rows} with {self.columns}")
        table, streams = np.zeros(self.columns, _ENTRY), []
        for column, tile in enumerate(tiles):
            tile = self.encode(tile) if isinstance(tile, np.ndarray) else tile
            if isinstance(tile, bytes):
                streams.append(tile)
                table[column]["length"] = len(tile)
            else:
                table[column]["value"] = tile
        head = _HEADER.pack(_MAGIC, row, self.width, self.height, self.tile_size)
        content = b"".join((head, table.tobytes(), *streams))
        write_bytes(self.path(row), content + _digest(content), private=True)
        self._tables[row] = table, _offsets(table)

    def encode(self, tile: np.ndarray) -> int | bytes:
        """Encodes a tile as it is stored: one value if all pixels have it, padding included, or else a zlib stream."""
        tile = self._padded(tile)
        first = tile[0, 0]
        if (tile[0] != first).any() or (tile != first).any():
            return zlib.compress(tile.data, COMPRESSION)
        return int(first)

    def has_row(self, row: int) -> bool:
        """Returns whether the row exists and is undamaged."""
        return self._table(row) is not None

    def complete(self) -> bool:
        """Returns whether all rows exist."""
        return all(self.has_row(row) for row in range(self.rows))

    def constant(self, row: int, column: int) -> int | None:
        """Returns the tile's value if all pixels have the same one, padding included, or else None."""
        entry = self._existing_table(row)[0][column]
        return None if entry["length"] else int(entry["value"])

    def encoded_size(self, row: int, column: int) -> int:
        """Returns the bytes of the zlib stream of a tile with several values, or 0 for a tile with one value."""
        return int(self._existing_table(row)[0][column]["length"])

    def encoded(self, row: int, column: int) -> bytes:
        """Returns the zlib stream of the tile's tile_size x tile_size bytes.

        Raises:
          DataError: the file has been deleted or shortened since it was checked.
        """
        table, offsets = self._existing_table(row)
        length = int(table[column]["length"])
        if not length:
            value = int(table[column]["value"])
            if value not in self._constant_streams:
                self._constant_streams[value] = zlib.compress(bytes([value]) * self.tile_size**2, COMPRESSION)
            return self._constant_streams[value]
        try:
            with open(self.path(row), "rb") as file:
                file.seek(int(offsets[column]))
                stream = file.read(length)
        except OSError as error:
            raise DataError(f"{self.path(row)}: cannot be read ({error.strerror}); run the slide again") from error
        if len(stream) != length:
            raise DataError(f"{self.path(row)}: became shorter while it was in use; run the slide again")
        return stream

    def tile(self, row: int, column: int) -> np.ndarray:
        """Returns the labels of a tile, padded with 0 at the slide's edges: uint8 [tile_size, tile_size], read-only.

        Raises:
          DataError: the file has been deleted, shortened or changed since it was checked.
        """
        value = self.constant(row, column)
        shape = (self.tile_size, self.tile_size)
        if value is not None:
            return np.broadcast_to(np.uint8(value), shape)
        try:
            return np.frombuffer(zlib.decompress(self.encoded(row, column)), np.uint8).reshape(shape)
        except (zlib.error, ValueError) as error:
            raise DataError(f"{self.path(row)}: changed while it was in use ({error}); run the slide again") from error

    def pixels(self, row: int, column: int) -> np.ndarray:
        """Returns the labels of a tile without padding: uint8 [row_height(row), column_width(column)].

        Raises:
          DataError: the file has been deleted, shortened or changed since it was checked.
        """
        return self.tile(row, column)[: self.row_height(row), : self.column_width(column)]

    def counts(self) -> np.ndarray:
        """Returns how many pixels of the slide have each value: int64 [256]."""
        counts = np.zeros(256, np.int64)
        for row in range(self.rows):
            for column in range(self.columns):
                value = self.constant(row, column)
                if value is None:
                    counts += np.bincount(self.pixels(row, column).ravel(), minlength=256)
                else:
                    counts[value] += self.row_height(row) * self.column_width(column)
        return counts

    def _padded(self, tile: np.ndarray) -> np.ndarray:
        size = self.tile_size
        if tile.dtype != np.uint8 or tile.ndim != 2 or max(tile.shape) > size:
            raise ValueError(f"a tile is {tile.dtype} {tile.shape}, not uint8 of at most {size} x {size}")
        if tile.shape == (size, size):
            return np.ascontiguousarray(tile)
        padded = np.zeros((size, size), np.uint8)
        padded[: tile.shape[0], : tile.shape[1]] = tile
        return padded

    def _table(self, row: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the entries of the row's tiles and where their streams start; None if it is absent or damaged."""
        if row not in self._tables:
            if not self.path(row).is_file():
                return None
            try:
                content = self.path(row).read_bytes()
            except OSError:
                return None
            body, digest = content[:-_DIGEST], content[-_DIGEST:]
            head = _HEADER.pack(_MAGIC, row, self.width, self.height, self.tile_size)
            if not body.startswith(head) or _digest(body) != digest:
                return None
            table = np.frombuffer(body, _ENTRY, self.columns, len(head)).copy()
            self._tables[row] = table, _offsets(table)
        return self._tables[row]

    def _existing_table(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns `_table` of a row that must exist."""
        table = self._table(row)
        if table is None:
            raise ValueError(f"{self.folder}: row {row} has not been written")
        return table


def _offsets(table: np.ndarray) -> np.ndarray:
    lengths = table["length"].astype(np.int64)
    return _HEADER.size + table.nbytes + np.cumsum(lengths) - lengths


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
