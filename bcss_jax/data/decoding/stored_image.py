"""The description of an image file: how its stored samples are to be understood.

The readers of the three formats fill it in from the headers; no library decides what the samples mean.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bcss_jax.errors import DataError, printable


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """The one picture of an image file.

    Attributes:
      path: the file.
      format: "PNG", "JPEG" or "TIFF".
      width: in pixels, as stored.
      height: in pixels, as stored.
      color: "gray", "palette" or "RGB"; any other word names colors that are not understood here.
      bits: per sample.
      kind: of the samples: "u" unsigned integers, "i" signed integers, "f" floats.
      orientation: value of the Exif orientation, 1 to 8; 1 means that the picture is shown as stored.
      inverted: the smallest sample is white (TIFF's MinIsWhite).
      palette: shown colors of the indices, uint8 [N, 3]; None without a palette.
      palette_alpha: opacity of the indices, uint8 [N]; None if all are opaque.
      transparent: the gray level or the color (RGB) that is transparent; None without one.
      alpha: what the last channel is: "straight", "premultiplied" (the colors are multiplied by it) or "unknown"; None
        if all channels are colors.
      lossy: name of a compression that may change samples; None without one.
      notes: one line for each thing that is unusual but usable.
      color_note: a line about a color profile or gamma, which is not applied; empty without one.
      samples: decodes the file; returns the stored samples, [H, W] or [H, W, C].
    """

    path: Path
    format: str
    width: int
    height: int
    color: str
    bits: int
    samples: Callable[[], np.ndarray]
    kind: str = "u"
    orientation: int = 1
    inverted: bool = False
    palette: np.ndarray | None = None
    palette_alpha: np.ndarray | None = None
    transparent: tuple[int, ...] | None = None
    alpha: str | None = None
    lossy: str | None = None
    notes: tuple[str, ...] = ()
    color_note: str = ""

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height of the picture as it is shown."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    @property
    def color_mode(self) -> str:
        """The colors in words for messages, such as "RGB with transparency"."""
        return self.color + (" with transparency" if self.alpha else "")


def note_of_profile(profile: bytes) -> str:
    """Returns the line about a color profile (ICC) that is not applied; empty for sRGB, which changes nothing."""
    if any(name in profile for name in (b"sRGB", b"s\0R\0G\0B", b"IEC61966")):
        return ""
    return "its color profile is not sRGB and is not applied; the stored colors are used"


def unusable(path: Path, expected: str, found: str, remedy: str) -> DataError:
    """Returns the error for a file that cannot be used."""
    return DataError(f"{printable(path)}: expected {expected}, found {found}; {remedy}")


def several_pictures(path: Path, found: str) -> DataError:
    """Returns the error for a file that holds more than one picture."""
    return unusable(path, "one picture", found, "save the one that counts as a file of its own")
