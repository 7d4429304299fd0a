"""Checks how a TIFF picture's pixels are stored: refuses what has two readings, and finds what common readers misread.

OpenSlide and Pillow read TIFFs with libtiff. In OpenSlide it mirrors each tile by itself if the picture is turned, and
takes a fourth channel without a meaning for transparency; in both it believes the tag of the color space where a JPEG
stream says otherwise. Such pictures are read by another reader, in the end by `pages_slide.TiffPagesSlide`. ICC
profiles are not applied, whoever reads the file.
"""

from pathlib import Path
from typing import NamedTuple

import tifffile

from bcss_jax.data.decoding.orientation import agreed_orientation, orientation_in_xmp
from bcss_jax.errors import DataError, printable
from bcss_jax.slides.reading.backend import PALETTE_NOTE, unsupported_pixels

READERS = OPENSLIDE, PILLOW, TIFFSLIDE, TIFFFILE = "openslide", "pillow", "tiffslide", "tifffile"
RGB, PALETTE, YCBCR = 2, 3, 6  # values of the tag PhotometricInterpretation
CHANNELS = {0: (1,), 1: (1,), RGB: (3, 4), PALETTE: (1,), YCBCR: (3,)}
UNSIGNED = (1, 4)  # values of the tag SampleFormat: unsigned, undefined
JPEG, APERIO_YCBCR = 7, 33003  # values of the tag Compression; the second is JPEG 2000 in YCbCr
PREDICTED = (5, 8, 32946, 34925, 50000, 34926)  # codecs that the tag Predictor belongs to: LZW, deflate, LZMA, ZSTD
# Codecs whose decoders return RGB where the tag says YCbCr: JPEG, JPEG 2000, JPEG XR, WebP, JPEG XL.
YCBCR_CODECS = (6, JPEG, APERIO_YCBCR, 34712, 34934, 22610, 34927, 50001, 50002, 52546)
BLACK_WHITE = ((0.0, 255.0), (0.0, 255.0), (0.0, 255.0)), ((0.0, 255.0), (128.0, 255.0), (128.0, 255.0))
RGB_IDS = b"RGB"  # component numbers of JPEG streams that hold red, green and blue


class Storage(NamedTuple):
    """What matters of the storage of a picture.

    Attributes:
      orientation: 1 to 8, value of the tag Orientation; 1 is upright.
      right: the readers that return the right pixels, of `READERS`; "tifffile" stands for `TiffPagesSlide`.
      notes: what a user should know.
    """

    orientation: int
    right: frozenset[str]
    notes: tuple[str, ...]


def storage_of(path: Path, page: tifffile.TiffPage) -> Storage:
    """Returns how a picture is stored.

    Args:
      path: of the file, for messages.
      page: the picture.

    Raises:
      DataError: its pixels are not 8-bit RGB or gray, or have two readings, or its orientations contradict each other.
      ValueError: its size is impossible.
      Exception: tifffile can raise anything for a damaged file.
    """
    width, height = page.tags["ImageWidth"].value, page.tags["ImageLength"].value
    if (width, height) != (page.imagewidth, page.imagelength):  # tifffile replaces sizes that are impossible
        raise ValueError(f"a size of {width}x{height} pixels")
    found = _unsupported(page)
    if found:
        raise unsupported_pixels(path, found)
    if not _has_decoder(page):
        name = getattr(page.compression, "name", None) or str(page.compression)
        raise DataError(
            f"{printable(path)}: expected a slide with a compression that can be decoded, found {name}, which is not "
            "supported; convert it to a tiled TIFF with JPEG or deflate"
        )
    right, notes = set(READERS), []
    tagged, xmp = _numbers(page, "Orientation", 1)[0], page.tags.valueof("XMP", b"")
    if not 1 <= tagged <= 8:
        notes.append(f"its Orientation tag has the invalid value {tagged}; read as stored")
    xmp = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp if isinstance(xmp, bytes) else b""
    orientation, _ = agreed_orientation(path, [tagged], [orientation_in_xmp(xmp)])
    if orientation != 1:
        notes.append(f"turned or mirrored, as its Orientation tag says ({orientation})")
        right -= {OPENSLIDE}  # it scrambles the tiles; Pillow turns the picture, and the others leave it as it is
    if page.photometric == RGB and page.samplesperpixel == 4 and meaning_of_alpha(page) is None:
        notes.append("its fourth channel has no stated meaning and is left out")
        right &= {TIFFFILE}
    if page.compression == APERIO_YCBCR:
        right &= {OPENSLIDE}  # the others do not convert the colors
    if page.samplesperpixel == 4 and page.planarconfig != 1:
        right -= {PILLOW}  # it does not read such files
    if page.is_tiled and (page.tilewidth % 16 or page.tilelength % 16):
        right -= {OPENSLIDE}
    if page.compression == JPEG and page.samplesperpixel == 3 and page.planarconfig == 1:
        color, tagged = _jpeg_color(page), "RGB" if page.photometric == RGB else "YCbCr"
        if color == "subsampled" and tagged == "RGB":
            raise unsupported_pixels(path, "JPEG with the colors RGB but fewer pixels for two of its channels")
        if color in ("RGB", "YCbCr") and color != tagged:
            right -= {OPENSLIDE, PILLOW}
    if page.photometric == PALETTE:
        notes.append(PALETTE_NOTE)
    empty = sum(not count for count in page.databytecounts)
    if empty:
        notes.append(f"{empty} of its {len(page.databytecounts)} tiles are not in the file and are taken for glass")
    return Storage(orientation, frozenset(right), tuple(notes))


def _has_decoder(page: tifffile.TiffPage) -> bool:
    try:
        return page.compression == 1 or bool(tifffile.TIFF.DECOMPRESSORS[page.compression])
    except KeyError:  # with the reason: an unknown number, or a codec without a decoder
        return False


def meaning_of_alpha(page: tifffile.TiffPage) -> str | None:
    """Returns "associated" or "unassociated" if the fourth channel is transparency, or None if it is not."""
    meanings = tuple(int(meaning) for meaning in page.extrasamples)
    return {1: "associated", 2: "unassociated"}.get(meanings[0]) if len(meanings) == 1 else None


def _unsupported(page: tifffile.TiffPage) -> str | None:
    """Returns what is found instead of 8-bit RGB or gray, or None."""
    bits = _numbers(page, "BitsPerSample", 1)
    samples, photometric = page.samplesperpixel, int(page.photometric)
    name = getattr(page.photometric, "name", str(photometric))
    if max(bits) > 8:
        return f"{max(bits)} bits per channel"
    if len(set(bits)) > 1 or min(bits) < 8 and (samples > 1 or min(bits) not in (1, 2, 4)):
        return f"channels of {', '.join(str(each) for each in bits)} bits"
    if any(each not in UNSIGNED for each in _numbers(page, "SampleFormat", 1)):
        return f"pixels of {page.dtype or 'an unknown type'}"
    if samples not in (1, 3, 4):
        return f"{samples} channels"
    if photometric not in CHANNELS:
        return f"the colors {name}"
    if samples not in CHANNELS[photometric]:
        return f"{samples} channels with the colors {name}"
    if photometric == YCBCR and page.compression not in YCBCR_CODECS:
        return f"YCbCr with the compression {getattr(page.compression, 'name', page.compression)}"
    if photometric == YCBCR and page.planarconfig != 1:
        return "YCbCr in separate planes"
    if page.imagedepth > 1 or page.tiledepth > 1:
        return f"a volume of {page.imagedepth} planes"
    if page.fillorder != 1:
        return "bytes with their bits reversed (FillOrder 2)"
    if page.predictor != 1 and page.compression not in PREDICTED:
        return f"a predictor with the compression {getattr(page.compression, 'name', page.compression)}"
    if photometric == PALETTE and (page.colormap is None or page.colormap.max() < 256):
        return "a palette of 8 instead of 16 bits"
    return _black_and_white(page, photometric)


def _black_and_white(page: tifffile.TiffPage, photometric: int) -> str | None:
    numbers = page.tags.valueof("ReferenceBlackWhite")
    if numbers is None or photometric not in (RGB, YCBCR):
        return None
    try:
        values = [numerator / denominator for numerator, denominator in zip(numbers[::2], numbers[1::2], strict=True)]
        ranges = tuple(zip(values[::2], values[1::2], strict=True))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return None if ranges in BLACK_WHITE else "other values of black and white than 0 and 255 (ReferenceBlackWhite)"


def _jpeg_color(page: tifffile.TiffPage) -> str | None:
    """Returns what the first JPEG stream of a picture says of its colors.

    Returns:
      "RGB" or "YCbCr" if markers or component numbers say so; "subsampled" if only the sampling shows that it cannot be
      RGB; None if it says nothing.
    """
    stored = next(((at, size) for at, size in zip(page.dataoffsets, page.databytecounts, strict=False) if size), None)
    if stored is None:
        return None
    file = page.parent.filehandle
    file.seek(stored[0])
    stream = file.read(min(stored[1], 65536))
    colors = [_color_of_stream(part) for part in (page.jpegtables, stream) if part]
    return next((color for color in reversed(colors) if color in ("RGB", "YCbCr")), colors[-1] if colors else None)


def _color_of_stream(stream: bytes) -> str | None:
    jfif, components, at = False, b"", 2
    subsampled = False
    while at + 4 <= len(stream) and stream[at] == 0xFF and stream[at + 1] not in (0xDA, 0xD9):
        marker, size = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4])
        content = stream[at + 4 : at + 2 + size]
        if marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12:
            return "YCbCr" if content[11] == 1 else "RGB"
        jfif |= marker == 0xE0 and content.startswith(b"JFIF")
        if marker in (0xC0, 0xC1, 0xC2) and len(content) >= 15:
            components, sampling = content[6:15:3], content[7:15:3]
            subsampled = len(set(sampling)) > 1
        at += 2 + size
    if components == RGB_IDS:
        return "RGB"
    return "YCbCr" if jfif else "subsampled" if subsampled else None


def _numbers(page: tifffile.TiffPage, tag: str, default: int) -> tuple[int, ...]:
    value = page.tags.valueof(tag, default)
    values = value if isinstance(value, tuple) else (value,)
    return tuple(int(each) for each in values) or (default,)
