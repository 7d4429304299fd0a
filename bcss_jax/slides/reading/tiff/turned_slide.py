"""Shows a slide turned or mirrored, as the Orientation tag of its TIFF says."""

import numpy as np

from bcss_jax.data.resolution.check import with_axes_exchanged
from bcss_jax.slides.reading.backend import Level, Slide

# By value of the tag: whether the stored picture is mirrored along y and x, and whether its axes are then exchanged.
TURNS = {
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}


class TurnedSlide(Slide):
    """A slide that is stored in another orientation than it is to be shown in."""

    def __init__(self, stored: Slide, orientation: int):
        """Wraps a slide, which is closed with this one.

        Args:
          stored: the slide as it is stored.
          orientation: 2 to 8, value of the tag.
        """
        self._stored = stored
        self._mirrored_y, self._mirrored_x, self._exchanged = TURNS[orientation]
        self.path, self.format, self.notes, self.in_memory = stored.path, stored.format, stored.notes, stored.in_memory
        first = stored.levels[0]
        # Mirrored, a level that does not end where level 0 ends would be shifted against it.
        self.levels = tuple(
            Level(level.height, level.width, level.downsample) if self._exchanged else level
            for level in stored.levels
            if (level.width * level.downsample, level.height * level.downsample) == (first.width, first.height)
        )
        self._numbers = [
            number
            for number, level in enumerate(stored.levels)
            if (level.width * level.downsample, level.height * level.downsample) == (first.width, first.height)
        ]
        self.stated_mpp = with_axes_exchanged(stored.stated_mpp) if self._exchanged else stored.stated_mpp

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:  # noqa: D102
        number = self._numbers[level]
        size = self._stored.levels[number]
        if self._exchanged:
            x, y, width, height = y, x, height, width
        x = size.width - x - width if self._mirrored_x else x
        y = size.height - y - height if self._mirrored_y else y
        pixels = self._stored.read(number, x, y, width, height)
        pixels = pixels[:: -1 if self._mirrored_y else 1, :: -1 if self._mirrored_x else 1]
        return np.ascontiguousarray(pixels.swapaxes(0, 1) if self._exchanged else pixels)

    def tile_size(self, level: int) -> tuple[int, int]:  # noqa: D102
        width, height = self._stored.tile_size(self._numbers[level])
        return (height, width) if self._exchanged else (width, height)

    def reopen(self) -> None:  # noqa: D102
        self._stored.reopen()

    def close(self) -> None:  # noqa: D102
        self._stored.close()
