"""Sums up a TIFF before its pixels are trusted: which picture is the slide, and which readers read it right."""

from pathlib import Path
from typing import NamedTuple, cast

import tifffile

from bcss_jax.slides.reading.tiff.inventory import MASK, REDUCED, Picture, open_tiff
from bcss_jax.slides.reading.tiff.main_picture import main_picture
from bcss_jax.slides.reading.tiff.storage import PILLOW, TIFFFILE, storage_of

VENDOR_FORMATS = ("ndpi", "scn", "bif", "philips")  # tifffile's flags of formats whose structure is their own
PILLOW_CODECS = (1, 5, 7, 8, 32773, 32946, 34925, 50000)  # values of the tag Compression that Pillow decodes


class Contents(NamedTuple):
    """What a reader must know of a TIFF.

    Attributes:
      size: width and height in pixels of the picture that is the slide.
      orientation: 1 to 8, value of its tag Orientation.
      right: the readers that read this picture right, of `storage.READERS`; OpenSlide and tiffslide may choose a
        picture of another size.
      notes: what a user should know, a line each.
      incomplete: width and height of the levels in which tiles are missing although the slide has all of its own.
    """

    size: tuple[int, int]
    orientation: int
    right: frozenset[str]
    notes: tuple[str, ...]
    incomplete: frozenset[tuple[int, int]]

    @property
    def pixels(self) -> int:
        """Number of pixels of the slide."""
        return self.size[0] * self.size[1]


def contents_of(path: Path) -> Contents | None:
    """Returns the contents of a TIFF, or None if it has a scanner's own format.

    Raises:
      DataError: it cannot be told which picture is the slide, or its pixels are not 8-bit RGB or gray.
      ValueError: the file has no picture.
      Exception: tifffile can raise anything for a damaged file.
    """
    with open_tiff(path) as tiff:
        if any(getattr(tiff, f"is_{vendor}") for vendor in VENDOR_FORMATS):
            return None
        chosen = main_picture(path, tiff)
        picture = chosen.picture
        storages = [storage_of(path, each.page) for each in (*chosen.planes, *chosen.levels)]
        right = frozenset.intersection(*(storage.right for storage in storages))
        if len(chosen.planes) > 1:
            right &= {TIFFFILE}  # the others read one of the planes
        if any(storage.orientation != storages[0].orientation for storage in storages):
            right &= {PILLOW, TIFFFILE}  # they leave those levels out
        if picture.number or picture.below is not None:
            right &= {TIFFFILE}  # the others may take the first picture, even for one of the same size
        if not _plain(picture) or _has_other_pictures(tiff):
            right -= {PILLOW}
        size = (picture.width, picture.height)
        whole = not _tiles_are_missing(picture)
        incomplete = frozenset(
            (each.width, each.height) for each in chosen.levels if whole and _tiles_are_missing(each)
        )
        return Contents(size, storages[0].orientation, right, chosen.notes + storages[0].notes, incomplete)


def _tiles_are_missing(picture: Picture) -> bool:
    return not all(picture.page.databytecounts)


def _has_other_pictures(tiff: tifffile.TiffFile) -> bool:
    """Returns whether there are pages besides the first one that are not called reduced copies."""
    pages = [cast(tifffile.TiffPage, page) for page in tiff.pages]
    return any(not int(page.subfiletype) & REDUCED or int(page.subfiletype) & MASK for page in pages[1:])


def _plain(picture: Picture) -> bool:
    """Returns whether a picture is the first one, not in tiles, and compressed in a way that Pillow knows."""
    first = picture.number == 0 and picture.below is None
    tiled = picture.page.is_tiled or "TileWidth" in picture.page.tags
    return first and not tiled and picture.page.compression in PILLOW_CODECS
