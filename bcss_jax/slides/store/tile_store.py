"""Labels of a slide, in progress and when finished: a folder with one file for each row of tiles.

A row is written whole or not at all, so that a run that was killed goes on with the rows that are there. Tiles with one
value are that value alone; the others are zlib streams, which a TIFF with deflate takes as they are.
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
COMPRESSION = 4  # of zlib: half as many bytes as 1 on labels, twice as fast as 6

_MAGIC = b"bcsstile"
_HEADER = struct.Struct("<8s4I")  # magic, row, width, height, tile size
_ENTRY = np.dtype([("length", "<u4"), ("value", "u1")])  # of a tile; length 0: one value
_DIGEST = 16  # bytes of checksum at the end


class TileStore:
    """Labels uint8 [height, width] as tiles; those at the right and lower edge are filled up with 0.

    Attributes:
      folder: where the rows are; made if need be.
      width: pixels.
      height: likewise.
      tile_size: pixels along a side of a tile.
      columns: tiles in a row.
      rows: rows of tiles.
    """

    def __init__(self, folder: Path, width: int, height: int, tile_size: int = TILE):
        """Opens the folder, with whatever rows are in it; rows of a slide of another size count as absent.

        Raises:
          StorageError: the folder cannot be made.
        """
        if min(width, height, tile_size) < 1:
            raise ValueError(f"no tiles of {tile_size} in {width} x {height} pixels")
        self.folder, self.width, self.height, self.tile_size = Path(folder), width, height, tile_size
        self.columns, self.rows = -(-width // tile_size), -(-height // tile_size)
        self._tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of the rows whose checksum is right
        self._constants: dict[int, bytes] = {}
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, row: int) -> Path:
        """The file of a row."""
        return self.folder / f"row-{row:06d}"

    def row_height(self, row: int) -> int:
        """Pixels of the slide in a row of tiles: `tile_size`, in the last one perhaps less."""
        return min(self.tile_size, self.height - row * self.tile_size)

    def column_width(self, column: int) -> int:
        """Likewise of a column of tiles."""
        return min(self.tile_size, self.width - column * self.tile_size)

    def write_row(self, row: int, labels: np.ndarray) -> None:
        """Writes a row of tiles; what is there is replaced.

        Args:
          row: of tiles, from 0.
          labels: uint8 [row_height(row), width].

        Raises:
          StorageError: it cannot be written; what was there stays.
        """
        if labels.dtype != np.uint8 or labels.shape != (self.row_height(row), self.width):
            raise ValueError(f"row {row}: {labels.dtype} {labels.shape}, not uint8 {self.row_height(row), self.width}")
        size = self.tile_size
        self.write_tiles(row, [labels[:, start : start + size] for start in range(0, self.width, size)])

    def write_tiles(self, row: int, tiles: Sequence[np.ndarray | int | bytes]) -> None:
        """Writes a row given as its tiles, for callers who know that most of them have one value.

        Args:
          row: of tiles, from 0.
          tiles: for each column uint8 [<= tile_size, <= tile_size], or what `encode` gave for it.

        Raises:
          StorageError: it cannot be written; what was there stays.
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
        write_bytes(self.path(row), content + _digest(content))
        self._tables[row] = table, _offsets(table)

    def encode(self, tile: np.ndarray) -> int | bytes:
        """A tile as it is written: the one value of all its pixels, its filling too, or a zlib stream."""
        tile = self._filled(tile)
        first = tile[0, 0]
        if (tile[0] != first).any() or (tile != first).any():
            return zlib.compress(tile, COMPRESSION)
        return int(first)

    def has_row(self, row: int) -> bool:
        """Whether the row is there, whole and undamaged."""
        return self._table(row) is not None

    def complete(self) -> bool:
        """Whether all rows are there."""
        return all(self.has_row(row) for row in range(self.rows))

    def constant(self, row: int, column: int) -> int | None:
        """The tile's only value, its filling included; None if it has several."""
        entry = self._written(row)[0][column]
        return None if entry["length"] else int(entry["value"])

    def encoded_size(self, row: int, column: int) -> int:
        """Bytes of the zlib stream of a tile with several values, else 0."""
        return int(self._written(row)[0][column]["length"])

    def encoded(self, row: int, column: int) -> bytes:
        """The zlib stream of the tile's tile_size x tile_size bytes.

        Raises:
          DataError: the file has gone or become shorter since it was checked.
        """
        table, offsets = self._written(row)
        length = int(table[column]["length"])
        if not length:
            value = int(table[column]["value"])
            if value not in self._constants:
                self._constants[value] = zlib.compress(bytes([value]) * self.tile_size**2, COMPRESSION)
            return self._constants[value]
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
        """The labels of a tile, filled up with 0 at the edges of the slide: uint8 [tile_size, tile_size], not writable.

        Raises:
          DataError: as `encoded`, or the bytes have changed since they were checked.
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
        """The labels of a tile without filling: uint8 [row_height(row), column_width(column)]; errors as `tile`."""
        return self.tile(row, column)[: self.row_height(row), : self.column_width(column)]

    def counts(self) -> np.ndarray:
        """How many pixels of the slide have each value: int64 [256]."""
        counts = np.zeros(256, np.int64)
        for row in range(self.rows):
            for column in range(self.columns):
                value = self.constant(row, column)
                if value is None:
                    counts += np.bincount(self.pixels(row, column).ravel(), minlength=256)
                else:
                    counts[value] += self.row_height(row) * self.column_width(column)
        return counts

    def _filled(self, tile: np.ndarray) -> np.ndarray:
        size = self.tile_size
        if tile.dtype != np.uint8 or tile.ndim != 2 or max(tile.shape) > size:
            raise ValueError(f"a tile is {tile.dtype} {tile.shape}, not uint8 of at most {size} x {size}")
        if tile.shape == (size, size):
            return np.ascontiguousarray(tile)
        filled = np.zeros((size, size), np.uint8)
        filled[: tile.shape[0], : tile.shape[1]] = tile
        return filled

    def _table(self, row: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Entries of the row's tiles and where their streams begin; None if the row is absent or damaged."""
        if row not in self._tables:
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

    def _written(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        table = self._table(row)
        if table is None:
            raise ValueError(f"{self.folder}: row {row} has not been written")
        return table


def _offsets(table: np.ndarray) -> np.ndarray:
    lengths = table["length"].astype(np.int64)
    return _HEADER.size + table.nbytes + np.cumsum(lengths) - lengths


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
