"""Geometry of deep zoom images (DZI): levels from one pixel to the full size, each twice the one below, in tiles."""

import dataclasses

TILE = 256  # pixels


@dataclasses.dataclass(frozen=True)
class Tile:
    """A tile: pixels [y, y + height) x [x, x + width) of a level whose pixels span `step` pixels of the full size."""

    x: int
    y: int
    width: int
    height: int
    step: int


@dataclasses.dataclass(frozen=True)
class DeepZoom:
    """A deep zoom image of `width` x `height` pixels; its tiles do not overlap.

    Level `max_level` has the full size, the level below half of it (rounded up), and so on down to level 0.
    """

    width: int
    height: int

    @property
    def max_level(self) -> int:
        """The level that has the full size."""
        return (max(self.width, self.height) - 1).bit_length()

    def size(self, level: int) -> tuple[int, int]:
        """Returns (width, height) in pixels of a level from 0 to `max_level`."""
        step = 1 << (self.max_level - level)
        return -(-self.width // step), -(-self.height // step)

    def tile(self, level: int, column: int, row: int) -> Tile | None:
        """Returns a tile, which is smaller at the right and lower edge; None if no tile has these numbers."""
        if not 0 <= level <= self.max_level:
            return None
        width, height = self.size(level)
        x, y = column * TILE, row * TILE
        if not (0 <= x < width and 0 <= y < height):
            return None
        return Tile(x, y, min(TILE, width - x), min(TILE, height - y), 1 << (self.max_level - level))
