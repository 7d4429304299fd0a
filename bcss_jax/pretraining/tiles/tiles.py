"""The interface of all sources of tiles, and tiles that are held in memory."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Tiles(Protocol):
    """Square RGB tiles without labels."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the tiles, for messages and pictures."""
        ...

    @property
    def size(self) -> int:
        """Pixels of a tile on each side."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the tiles were found and what was left out, a line each."""
        ...

    def __len__(self) -> int:
        """Returns the number of tiles."""
        ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns the tiles of these numbers, uint8 [len(indices), size, size, 3].

        Raises:
          DataError: a tile cannot be read.
        """
        ...


@dataclasses.dataclass(frozen=True)
class HeldTiles:
    """Tiles in memory; see `Tiles`.

    Attributes:
      images: uint8 [N, size, size, 3].
      names: see `Tiles`.
      notes: see `Tiles`.
    """

    images: np.ndarray
    names: Sequence[str]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Pixels of a tile on each side."""
        return self.images.shape[1]

    def __len__(self) -> int:
        """Returns the number of tiles."""
        return len(self.images)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns the tiles of these numbers, uint8 [len(indices), size, size, 3]."""
        return self.images[indices]
