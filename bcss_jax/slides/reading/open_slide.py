"""Opens a slide with whatever reads it, and gives blocks of it at the resolution of a grid.

Runs in the reader processes (`reader_process`): a damaged file may crash the C libraries behind it.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bcss_jax.errors import DataError, first_line, printable
from bcss_jax.slides.reading.backend import Slide

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")
IN_MEMORY_PIXELS = 64_000_000  # untiled TIFFs up to this are decoded once and held; larger ones are read strip by strip


def open_slide(path: str | os.PathLike) -> Slide:
    """Opens a slide: with OpenSlide, else a TIFF with tiffslide, else a PNG, JPEG or untiled TIFF as an image.

    Raises:
      DataError: no slide, damaged, or larger than can be read in parts.
    """
    path = Path(path)
    magic = _magic(path)
    reasons = []
    for opens in _backends(magic, reasons):
        try:
            return opens(path)
        except DataError:
            raise
        except Exception as error:  # tifffile and the codecs raise whatever they meet
            reasons.append(_reason(error, path))
    found = reasons[-1] if reasons and magic.startswith(TIFF_MAGIC) else reasons[0] if reasons else "another format"
    raise _unusable(path, found)


def _magic(path: Path) -> bytes:
    """The first bytes of what must be a file that can be read."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise _unusable(path, "a folder" if stat.S_ISDIR(mode) else "no regular file")
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


def _backends(magic: bytes, reasons: list[str]) -> Iterator:
    """What may open a file that begins like this, in the order of preference."""
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
    """Whether a TIFF holds nothing but an untiled picture that fits into memory, with colors of any kind."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            (page,) = tiff.pages
            small = 0 < page.imagewidth * page.imagelength <= IN_MEMORY_PIXELS
            tiled = page.is_tiled or "TileWidth" in page.tags
            return small and not tiled and page.bitspersample <= 8 and page.samplesperpixel in (1, 3, 4)
    except Exception:  # whatever is odd about it, tiffslide says
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
