"""How a picture is turned before it is shown, by the Exif data or XMP of its file, and the turning itself.

Exif counts (in TIFFs the tag 274, which is the same). XMP may repeat it; where the two differ, the file is refused,
because programs differ in which one they follow.
"""

import re
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bcss_jax.data.decoding.stored_image import unusable

TAG = 274
INTEGERS = {1: "B", 3: "H", 4: "I"}  # types of TIFF fields and their codes in `struct`
IN_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*(\d+)")


def orientation_in_exif(data: bytes) -> int | None:
    """Returns the value of the orientation field in a block of Exif data; None without it, or if it is damaged."""
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, field_type, values = struct.unpack_from(order + "HHI", data, place)
            if tag == TAG:
                if values != 1 or field_type not in INTEGERS:
                    return 0
                return struct.unpack_from(order + INTEGERS[field_type], data, place + 8)[0]
    except struct.error:
        pass
    return None


def orientation_in_xmp(data: bytes) -> int | None:
    """Returns the value of tiff:Orientation in an XMP packet, or None without it."""
    found = IN_XMP.search(data)
    return int(found[1][:9]) if found else None


def agreed_orientation(
    path: Path, exif: Iterable[int | None], xmp: Iterable[int | None]
) -> tuple[int, tuple[str, ...]]:
    """Returns the orientation that all entries of a file agree on, from 1 to 8, and lines about it.

    Args:
      path: the file.
      exif: value of each block of Exif data, or of the TIFF's tag.
      xmp: value of each XMP packet.

    Raises:
      DataError: the entries contradict one another.
    """
    exif, xmp = ({value for value in values if value is not None} for values in (exif, xmp))
    invalid = sorted(value for value in exif | xmp if not 1 <= value <= 8)
    exif, xmp = ({value for value in values if 1 <= value <= 8} for values in (exif, xmp))
    found = exif or {1}
    if len(found | xmp) > 1:
        text = f"{_words(exif) if exif else 'none'} in its Exif data and {_words(xmp) if xmp else 'none'} in its XMP"
        remedy = "keep the orientation in which the picture is right, and remove the other entry"
        raise unusable(path, "one orientation", text, remedy)
    (orientation,) = found
    notes = [f"its orientation tag has the invalid value {value}; read as stored" for value in invalid[:1]]
    if orientation != 1:
        notes.append(f"turned as its orientation tag says ({orientation})")
    return orientation, tuple(notes)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns an image [H, W, ...] as it is shown, given its orientation from 1 to 8."""
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]


def _words(values: set[int]) -> str:
    return " and ".join(str(value) for value in sorted(values))
