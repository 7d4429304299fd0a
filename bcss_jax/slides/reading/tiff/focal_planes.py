"""Finds the focal planes of a scan in Hamamatsu's format, of which OpenSlide reads the one at offset 0."""

from pathlib import Path
from typing import cast

import tifffile

LENS, Z_OFFSET = 65421, 65424  # tags of Hamamatsu: power of the objective (none for macro images), nanometers


def note_of_focal_planes(path: Path) -> tuple[str, ...]:
    """Returns a line if an NDPI file holds several focal planes; () if it holds one or cannot be read."""
    offsets: set[int] = set()
    for long_offsets in (True, False):  # Hamamatsu's files have offsets of 64 bits, those of other programs 32
        try:
            with tifffile.TiffFile(path, is_ndpi=long_offsets) as tiff:
                pages = [cast(tifffile.TiffPage, page) for page in tiff.pages]
                scans = [page for page in pages if float(page.tags.valueof(LENS, 1)) > 0]
                offsets = {int(page.tags.valueof(Z_OFFSET, 0)) for page in scans}
        except Exception:  # tifffile can raise anything, but OpenSlide has opened the file
            continue
        if offsets:
            break
    if len(offsets) < 2:
        return ()
    listed = ", ".join(map(str, sorted(offsets)[:9])) + (", .." if len(offsets) > 9 else "")
    return (f"it holds {len(offsets)} focal planes (offsets {listed}); the one at 0 is segmented",)
