"""Opens a slide with the first backend that reads it.

This runs in the reader processes (`reader_main`), because a damaged file may crash the C libraries of a backend.
"""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from bcss_jax.errors import DataError, first_line, printable
from bcss_jax.slides.reading.backend import Slide

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")
IN_MEMORY_PIXELS = 64_000_000  # untiled TIFFs of up to this size are decoded once and held; larger ones read by strips


def open_slide(path: str | os.PathLike) -> Slide:
    """Opens a slide with OpenSlide, or else a TIFF with tiffslide, or else a PNG, JPEG or untiled TIFF as an image.

    Raises:
      DataError: the file is not a slide, is damaged, or is large and cannot be read in parts.
    """
    path = Path(path)
    magic = _magic(path)
    reasons = []
    for open_with_backend in _backends(magic, reasons):
        try:
            return open_with_backend(path)
        except DataError:
            raise
        except Exception as error:  # tifffile and the codecs can raise anything
            reasons.append(_reason(error, path))
    found = reasons[-1] if reasons and magic.startswith(TIFF_MAGIC) else reasons[0] if reasons else "another format"
    raise _unusable(path, found)


def _magic(path: Path) -> bytes:
    """Returns the first bytes of a file, or raises a DataError if it cannot be read."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise _unusable(path, "a folder" if stat.S_ISDIR(mode) else "a special file")
        with open(path, "rb") as file:
            magic = file.read(16)
    except FileNotFoundError:
        raise DataError(f"{printable(path)}: expected a slide, found no such file; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{printable(path)}: expected a slide, cannot read it ({reason}); check permissions") from error
    if not magic:
        raise _unusable(path, "an empty file")
    return magic


def _backends(magic: bytes, reasons: list[str]) -> Iterator[Callable[[Path], Slide]]:
    """Yields the functions that may open a file with these first bytes, in order of preference.

    `reasons` is extended if a backend is not installed.
    """
    try:
        from bcss_jax.slides.reading.openslide_backend import OpenSlideSlide

        yield OpenSlideSlide
    except ImportError as error:
        reasons.append(f"no OpenSlide ({error})")
    if magic.startswith(TIFF_MAGIC):
        yield _open_tiff
    elif magic.startswith(IMAGE_MAGIC):
        yield _open_image


def _open_tiff(path: Path) -> Slide:
    from bcss_jax.slides.reading.tiffslide_backend import TiffSlideSlide

    if _is_small_picture(path):
        return _open_image(path)
    slide = TiffSlideSlide(path)
    level = slide.levels[0]
    if slide.tiled or level.width * level.height > IN_MEMORY_PIXELS:
        return slide
    slide.close()
    return _open_image(path)


def _is_small_picture(path: Path) -> bool:
    """Returns whether a TIFF holds only one untiled picture, of at most 8 bits per channel, that fits into memory."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            (page,) = (cast(tifffile.TiffPage, page) for page in tiff.pages)
            small = 0 < page.imagewidth * page.imagelength <= IN_MEMORY_PIXELS
            tiled = page.is_tiled or "TileWidth" in page.tags
            return small and not tiled and page.bitspersample <= 8 and page.samplesperpixel in (1, 3, 4)
    except Exception:  # opening the file with tiffslide raises the error that is reported
        return False


def _open_image(path: Path) -> Slide:
    from bcss_jax.slides.reading.image_backend import ImageSlide

    return ImageSlide(path)


def _reason(error: Exception, path: Path) -> str:
    text = first_line(error).replace(os.fspath(path), "the file").strip()
    return text if isinstance(error, ValueError) and text else f"a damaged file ({text or type(error).__name__})"


def _unusable(path: Path, found: str) -> DataError:
    found = found if found.isprintable() else ascii(found)
    return DataError(
        f"{printable(path)}: expected a slide (SVS, NDPI, MRXS, SCN, DICOM, tiled TIFF, or a PNG, JPEG or TIFF image), "
        f"found {found}; fetch it again, or convert it to a tiled TIFF"
    )
