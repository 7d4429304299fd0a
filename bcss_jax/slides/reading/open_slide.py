"""Opens a slide with the first backend that reads it.

This runs in the reader processes (`reader_main`), because a damaged file may crash the C libraries of a backend.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.data.resolution.check import with_axes_exchanged
from bcss_jax.errors import DataError, first_line, printable
from bcss_jax.slides.reading.backend import Slide
from bcss_jax.slides.reading.dicom.series import INSTALL, MAGIC, MAGIC_AT, slide_file
from bcss_jax.slides.reading.file_kind import FIRST_BYTES, is_unsupported, kind_of_file

if TYPE_CHECKING:  # tifffile is imported for TIFFs alone
    from bcss_jax.slides.reading.tiff.contents import Contents

TIFF_VENDORS = ("aperio", "generic-tiff")  # OpenSlide's names of formats that are plain TIFFs
HAMAMATSU = "hamamatsu"  # its name of NDPI
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")
TURNED_AXES = (5, 6, 7, 8)  # values of the tag Orientation that exchange width and height
OTHER_FORMAT = "another format"  # what OpenSlide's backend says of a file that it does not know
IN_MEMORY_PIXELS = 64_000_000  # untiled TIFFs of up to this size are decoded once and held; larger ones read by strips


def open_slide(path: str | os.PathLike) -> Slide:
    """Opens a slide with OpenSlide, or else a TIFF with tifffile, DICOM with wsidicom, or a PNG or JPEG as an image.

    Of a TIFF that is not a scanner's own format, it is first decided which of its pictures is the slide and how that is
    stored (`tiff.main_picture`, `tiff.storage`); then a reader is taken that reads this picture right.

    Args:
      path: the slide's file, or a folder that holds the instances of one DICOM slide.

    Raises:
      DataError: the file is not a slide, is damaged, does not tell which picture is the slide, or is large and cannot
        be read in parts.
    """
    path = slide_file(path)
    magic = _magic(path)
    reasons: list[str] = []
    slide = _tried(_open_with_openslide, path, reasons)
    if slide is None or slide.format in TIFF_VENDORS:
        backend = _other_backend(magic, slide)
        slide = slide if backend is None else _tried(backend, path, reasons)
    if slide is None:
        is_tiff_or_dicom = magic.startswith(TIFF_MAGIC) or _is_dicom(magic)
        found = reasons[-1] if reasons and is_tiff_or_dicom else reasons[0] if reasons else OTHER_FORMAT
        kind = kind_of_file(magic) if found == OTHER_FORMAT else None
        raise _unusable(path, f"{found} ({kind})" if kind else found)
    return slide


def _is_dicom(magic: bytes) -> bool:
    return magic[MAGIC_AT:].startswith(MAGIC)


def _other_backend(magic: bytes, with_openslide: Slide | None) -> Callable[[Path], Slide] | None:
    """Returns what opens a file with these first bytes that OpenSlide does not open, or not for certain; or None."""
    if magic.startswith(TIFF_MAGIC):
        return lambda path: _open_tiff(path, with_openslide)
    if _is_dicom(magic):
        return _open_dicom
    if magic.startswith(IMAGE_MAGIC):
        return _open_image
    return None


def _tried(open_with_backend: Callable[[Path], Slide], path: Path, reasons: list[str]) -> Slide | None:
    """Returns the slide, or None if it cannot be opened so; then `reasons` is extended."""
    try:
        return open_with_backend(path)
    except DataError:
        raise
    except ImportError as error:
        reasons.append(f"no OpenSlide ({error})")
    except Exception as error:  # tifffile and the codecs can raise anything
        reasons.append(_reason(error, path))
    return None


def _magic(path: Path) -> bytes:
    """Returns the first bytes of a file, or raises a DataError if it cannot be read."""
    check_regular_file(path, "a slide", "check the path")
    try:
        with open(path, "rb") as file:
            magic = file.read(FIRST_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{printable(path)}: expected a slide, cannot read it ({reason}); check permissions") from error
    if not magic:
        raise _unusable(path, "an empty file")
    return magic


def _open_with_openslide(path: Path) -> Slide:
    from bcss_jax.slides.reading.openslide_backend import OpenSlideSlide

    slide = OpenSlideSlide(path)
    if slide.format == HAMAMATSU:
        from bcss_jax.slides.reading.tiff.focal_planes import note_of_focal_planes

        slide.notes += note_of_focal_planes(path)
    return slide


def _open_dicom(path: Path) -> Slide:
    try:
        from bcss_jax.slides.reading.dicom.wsidicom_backend import WsiDicomSlide
    except ImportError as error:
        raise DataError(
            f"{printable(path)}: expected a slide, found DICOM that OpenSlide does not read; install its reader: "
            f"{INSTALL}"
        ) from error
    return WsiDicomSlide(path)


def _open_tiff(path: Path, with_openslide: Slide | None) -> Slide:
    """Opens a TIFF that is not a scanner's own format, with the reader that reads its slide right.

    Args:
      path: of the file.
      with_openslide: the slide as OpenSlide has opened it, or None; it is closed if another reader is taken.
    """
    from bcss_jax.slides.reading.tiff.contents import contents_of
    from bcss_jax.slides.reading.tiff.true_levels import true_levels
    from bcss_jax.slides.reading.tiff.turned_slide import TurnedSlide

    try:
        contents = contents_of(path)
        slide = _open_with_tiffslide(path) if contents is None else _open_contents(path, contents, with_openslide)
    except BaseException:
        if with_openslide is not None:
            with_openslide.close()
        raise
    if with_openslide is not None and slide is not with_openslide:
        with_openslide.close()
    if contents is None:
        return slide
    slide.levels, notes = true_levels(slide, contents.incomplete)
    if contents.orientation != 1 and not slide.in_memory:
        slide = TurnedSlide(slide, contents.orientation)
    elif contents.orientation in TURNED_AXES:
        slide.stated_mpp = with_axes_exchanged(slide.stated_mpp)  # Pillow turns the pixels alone
    slide.notes = contents.notes + notes
    return slide


def _open_contents(path: Path, contents: "Contents", with_openslide: Slide | None) -> Slide:
    """Returns the slide in a TIFF with these contents, as it is stored, with the first reader that reads it right."""
    from bcss_jax.slides.reading.tiff.pages_slide import TiffPagesSlide
    from bcss_jax.slides.reading.tiff.storage import OPENSLIDE, PILLOW, TIFFFILE, TIFFSLIDE

    if with_openslide is not None and OPENSLIDE in contents.right and with_openslide.levels[0][:2] == contents.size:
        return with_openslide
    if PILLOW in contents.right and contents.pixels <= IN_MEMORY_PIXELS:
        return _open_image(path)
    slide = _open_with_tiffslide_if(path, contents.size) if TIFFSLIDE in contents.right else None
    if slide is not None:
        return slide
    if TIFFFILE not in contents.right:
        raise ValueError("JPEG 2000 in YCbCr (compression 33003) in a file that OpenSlide does not read")
    return TiffPagesSlide(path)


def _open_with_tiffslide(path: Path) -> Slide:
    from bcss_jax.slides.reading.tiffslide_backend import TiffSlideSlide

    return TiffSlideSlide(path)


def _open_with_tiffslide_if(path: Path, size: tuple[int, int]) -> Slide | None:
    """Returns a TIFF as tiffslide opens it, or None if it does not, or opens a picture of another size."""
    try:
        slide = _open_with_tiffslide(path)
    except Exception:  # it raises anything; the next reader says what is wrong with the file
        return None
    if slide.levels[0][:2] == size:
        return slide
    slide.close()
    return None


def _open_image(path: Path) -> Slide:
    from bcss_jax.slides.reading.image_backend import ImageSlide

    return ImageSlide(path)


def _reason(error: Exception, path: Path) -> str:
    text = first_line(error).replace(os.fspath(path), "the file").strip()
    if isinstance(error, ValueError) and text:
        return text
    if is_unsupported(text):
        return f"a file that its reader does not support ({text})"
    return f"a damaged file ({text or type(error).__name__})"


def _unusable(path: Path, found: str) -> DataError:
    found = found if found.isprintable() else ascii(found)
    return DataError(
        f"{printable(path)}: expected a slide (SVS, NDPI, MRXS, SCN, DICOM, tiled TIFF, or a PNG, JPEG or TIFF image), "
        f"found {found}; fetch it again, or convert it to a tiled TIFF"
    )
