"""Reads what a TIFF says about its samples, and whether its other images are only reduced copies of the first."""

import itertools
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import tifffile
from tifffile import PHOTOMETRIC

from bcss_jax.data.decoding.orientation import TAG, agreed_orientation, orientation_in_xmp
from bcss_jax.data.decoding.stored_image import StoredImage, note_of_profile, several_pictures
from bcss_jax.data.decoding.tiff_rows import LOSSLESS, TiffRows

XMP, ICC = 700, 34675  # tags
REDUCED = 1  # bit of NewSubfileType: the image is a reduced copy of another one
COLORS = {
    PHOTOMETRIC.MINISWHITE: "gray", PHOTOMETRIC.MINISBLACK: "gray", PHOTOMETRIC.PALETTE: "palette",
    PHOTOMETRIC.RGB: "RGB", PHOTOMETRIC.SEPARATED: "CMYK", PHOTOMETRIC.YCBCR: "YCbCr",
}  # fmt: skip
CHANNELS = {"gray": 1, "palette": 1, "RGB": 3}  # without alpha
ALPHA = {1: "premultiplied", 2: "straight"}  # by the tag ExtraSamples; other values have no meaning
KINDS = {1: "u", 2: "i", 3: "f"}  # by the tag SampleFormat
ROUNDING = 2  # pixels by which the side of a reduced copy may differ from the exact one


def read_tiff(path: Path) -> StoredImage:
    """Returns the description of the first image of a TIFF.

    Raises:
      DataError: another image is not a reduced copy of it, or its orientations contradict one another.
      UnreadableTiff: the file is damaged or cannot be decoded.
    """
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # problems of a file are reported in one line
    with TiffRows(path, headers_only=True) as tiff:
        return _described(path, tiff)


def _described(path: Path, tiff: TiffRows) -> StoredImage:
    page = tiff.page
    other = _other_picture(page)
    if other:
        raise several_pictures(path, other)
    orientation, notes = agreed_orientation(path, [_tag(page, TAG)], [orientation_in_xmp(_bytes(page, XMP))])
    color = COLORS.get(cast(Any, page.photometric), getattr(page.photometric, "name", str(page.photometric)))
    lossy = None if page.compression in LOSSLESS else getattr(page.compression, "name", str(page.compression))
    if color == "YCbCr" and lossy:
        color = "RGB"  # the decoder of JPEG and WebP converts it
    extra = tiff.channels - CHANNELS.get(color, tiff.channels)
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    if extra not in (0, 1):
        color, extra = f"{tiff.channels} channels", 0
    kind = KINDS.get(page.sampleformat, "other")
    if not isinstance(page.bitspersample, int):
        kind = "other"  # channels of different depth, or a few of the tag's errors
    return StoredImage(
        path, "TIFF", tiff.width, tiff.height, color, bits, lambda: _samples(path),
        kind=kind,
        orientation=orientation,
        inverted=page.photometric == PHOTOMETRIC.MINISWHITE,
        palette=_palette(page) if color == "palette" else None,
        alpha=ALPHA.get(int(next(iter(page.extrasamples), 0)), "unknown") if extra else None,
        lossy=lossy,
        notes=notes,
        color_note=note_of_profile(profile) if (profile := _bytes(page, ICC)) else "",
    )  # fmt: skip


def _other_picture(page: tifffile.TiffPage) -> str | None:
    """Returns what else the file shows than this image and reduced copies of it, or None."""
    tiff = page.parent
    planes = _declared_planes(tiff)
    if planes > 1:
        return f"{planes} planes"
    for number, other in enumerate(itertools.islice(tiff.pages, 1, None), 2):
        other = cast(tifffile.TiffPage, other)
        if not (other.subfiletype & REDUCED and _is_smaller(page, other)):
            return f"another one of {other.imagewidth}x{other.imagelength} pixels as image {number} of the TIFF"
    for other in cast(Iterable[tifffile.TiffPage], page.pages or ()):
        if not _is_smaller(page, other):
            return f"another one of {other.imagewidth}x{other.imagelength} pixels in a SubIFD"
    return None


def _is_smaller(page: tifffile.TiffPage, other: tifffile.TiffPage) -> bool:
    """Returns whether an image has the size of a reduced copy of the first."""
    size, reduced = (page.imagewidth, page.imagelength), (other.imagewidth, other.imagelength)
    if min(reduced) < 1:
        return False
    ratio = max(size) / max(reduced)
    return ratio > 1 and all(abs(new - old / ratio) <= ROUNDING for old, new in zip(size, reduced, strict=True))


def _declared_planes(tiff: Any) -> int:
    """Returns how many planes the file declares that follow the first without an entry of their own."""
    if tiff.is_imagej:
        return int((tiff.imagej_metadata or {}).get("images", 1))
    if tiff.is_shaped:  # tifffile's own metadata
        page = tiff.pages[0]
        shape = next(iter(tiff.shaped_metadata or ()), {}).get("shape", ())
        return math.prod(shape) // (page.imagewidth * page.imagelength * page.samplesperpixel) if shape else 1
    return 1


def _tag(page: tifffile.TiffPage, code: int) -> int | None:
    tag = page.tags.get(code)
    if tag is None:
        return None
    return int(tag.value) if isinstance(tag.value, int) else 0


def _bytes(page: tifffile.TiffPage, code: int) -> bytes:
    tag = page.tags.get(code)
    value = b"" if tag is None else tag.value
    return value.encode(errors="replace") if isinstance(value, str) else value if isinstance(value, bytes) else b""


def _palette(page: tifffile.TiffPage) -> np.ndarray:
    """Returns the shown colors of the indices, uint8 [N, 3]; some programs store 8 bits where 16 belong."""
    colors = page.colormap
    if colors is None:
        raise ValueError("a palette image without a palette")
    return (colors >> 8 if colors.max(initial=0) > 255 else colors).T.astype(np.uint8)


def _samples(path: Path) -> np.ndarray:
    with TiffRows(path) as tiff:
        return tiff.rows(0, tiff.height)
