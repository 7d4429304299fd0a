"""The geometry of deep zoom images (DZI): powers of two from one pixel to the full size, in tiles of 256 pixels."""

import dataclasses

TILE = 256  # pixels


@dataclasses.dataclass(frozen=True)
class Tile:
    """A tile: pixels [y, y + height) x [x, x + width) of a level whose pixels are `step` pixels of the full size."""

    x: int
    y: int
    width: int
    height: int
    step: int


@dataclasses.dataclass(frozen=True)
class DeepZoom:
    """A deep zoom image of `width` x `height` pixels, without overlap of its tiles.

    Level `max_level` has the full size, the one below half of it, rounded up, and so on; no level is below 0.
    """

    width: int
    height: int

    @property
    def max_level(self) -> int:
        """The level of the full size."""
        return (max(self.width, self.height) - 1).bit_length()

    def size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level from 0 to `max_level`, pixels."""
        step = 1 << (self.max_level - level)
        return -(-self.width // step), -(-self.height // step)

    def tile(self, level: int, column: int, row: int) -> Tile | None:
        """A tile, smaller at the right and lower edge; None if there is none of these numbers."""
        if not 0 <= level <= self.max_level:
            return None
        width, height = self.size(level)
        x, y = column * TILE, row * TILE
        if not (0 <= x < width and 0 <= y < height):
            return None
        return Tile(x, y, min(TILE, width - x), min(TILE, height - y), 1 << (self.max_level - level))
