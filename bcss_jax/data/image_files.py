"""Reads the file of an image or a mask into an array, or raises an error of one line if it cannot be used.

Files are decoded by their content, never by their name, and only as PNG, JPEG or TIFF. Nothing is repaired or
converted: a mask with three channels, an image with 16 bits, or a transparent pixel means that an earlier step did not
do what the user expects.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from bcss_jax import labels
from bcss_jax.errors import DataError, printable

log = logging.getLogger(__name__)


class TooManyPixelsError(DataError):
    """Raised for an image whose header claims more than `MAX_PIXELS`."""


FORMATS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "TIFF": (".tif", ".tiff")}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MAX_PIXELS = 178_956_970  # the limit of Pillow; the largest ROI of the data set has 126 million
INTERPOLATED_VALUES = 8  # with more different values outside the code book, the mask was probably resampled
LOW_BIT_SCALE = {"L;2": 85, "L;4": 17}  # Pillow scales 2- and 4-bit gray to 0..255, which must be undone for codes


def image_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) in pixels from the header of the file.

    Raises:
      DataError: the file is not a readable PNG, JPEG or TIFF, or has more than `MAX_PIXELS`.
    """
    with _as_data_error(path), Image.open(path, formats=list(FORMATS)) as image:
        _refuse_huge(path, image)
        return image.size


def read_image(path: Path, warn: Callable[[str], None] = log.warning) -> np.ndarray:
    """Reads an H&E image.

    Args:
      path: a PNG, JPEG or TIFF file with 8-bit RGB, or with RGBA that is opaque everywhere.
      warn: called with one line about something unusual but usable: a content that does not match the name.

    Returns:
      uint8 [H, W, 3].

    Raises:
      DataError: the file is unreadable, truncated or too large, or the image is not RGB, not 8-bit, or not opaque.
    """
    image = load_8_bit(path, warn)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        if image.getchannel("A").getextrema() != (255, 255):
            raise _unusable(path, "an opaque image", "transparent pixels", "flatten it onto a background first")
        image = image.convert("RGB")
    if image.mode != "RGB":
        raise _unusable(path, "RGB", f"the color mode {image.mode}", "save the stained image as 8-bit RGB")
    return np.asarray(image)


def load_8_bit(path: Path, warn: Callable[[str], None] = log.warning) -> Image.Image:
    """Decodes an image of any color mode with at most 8 bits per channel.

    Args:
      path: a PNG, JPEG or TIFF file.
      warn: as in `read_image`.

    Raises:
      DataError: the file is unreadable, truncated or too large, or has more than 8 bits.
    """
    image, raw_mode = _load(path, warn)
    if image.mode == "F":
        finite = np.isfinite(np.asarray(image)).all()
        raise _unusable(
            path, "8-bit RGB", f"32-bit floats{'' if finite else ' with NaN or infinity'}", "save as 8-bit RGB"
        )
    if ";16" in raw_mode or image.mode.startswith("I"):
        raise _unusable(path, "8 bits per channel", "16 bits or more", "save as 8-bit RGB")
    return image


def read_mask(path: Path, codes: str | int, warn: Callable[[str], None] = log.warning) -> np.ndarray:
    """Reads a mask.

    A palette is ignored: the index of a pixel counts, not its color. 16 bits are allowed if the values are codes.

    Args:
      path: a PNG or TIFF file with one channel.
      codes: the code book, a key of `labels.CODE_BOOKS`, or the number of codes, which then start at 0.
      warn: called with one line about something unusual but usable.

    Returns:
      uint8 [H, W], every value a code of the book.

    Raises:
      DataError: the file is unreadable, truncated, too large or compressed with loss, has several channels or floats,
        or contains a value that is not a code (the message gives the histogram).
    """
    image, raw_mode = _load(path, warn)
    if image.mode == "F":
        finite = np.isfinite(np.asarray(image)).all()
        raise _unusable(
            path, "integer codes", f"32-bit floats{'' if finite else ' with NaN or infinity'}", "save as 8-bit"
        )
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        raise _unusable(
            path,
            "one channel of codes",
            f"the color mode {image.mode}",
            "save the codes themselves, not their colors",
        )
    if image.format == "JPEG":
        raise _unusable(path, "a mask stored without loss", "JPEG, which changes codes", "export it again as PNG")
    mask = np.asarray(image)
    if raw_mode in LOW_BIT_SCALE:
        mask = mask // LOW_BIT_SCALE[raw_mode]
    return checked_codes(path, mask, codes)


def checked_codes(path: Path, mask: np.ndarray, codes: str | int) -> np.ndarray:
    """Returns the pixels of a mask, or of a window of it, as uint8.

    Args:
      path: of the mask.
      mask: integers [H, W].
      codes: as in `read_mask`.

    Raises:
      DataError: a value is not a code (the message gives the histogram).
    """
    book_size = codes if isinstance(codes, int) else len(labels.CODE_BOOKS[codes])
    if mask.min() < 0 or mask.max() >= book_size:
        raise _outside_code_book(path, mask, codes, book_size)
    return mask.astype(np.uint8, copy=False)


def read_pair(
    image_path: Path, mask_path: Path, codes: str | int, warn: Callable[[str], None] = log.warning
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image and its mask, which must have the same height and width.

    Returns:
      uint8 [H, W, 3] and uint8 [H, W].

    Raises:
      DataError: as `read_image` and `read_mask`, or the sizes differ.
    """
    image, mask = read_image(image_path, warn), read_mask(mask_path, codes, warn)
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        raise _unusable(
            mask_path,
            f"{width}x{height} pixels as in {printable(image_path)}",
            f"{mask_width}x{mask_height}",
            "cut both from the same window",
        )
    return image, mask


def _load(path: Path, warn: Callable[[str], None]) -> tuple[Image.Image, str]:
    """Decodes a file.

    Returns:
      The image, and the raw mode of Pillow: only the raw mode distinguishes 16-bit and 2-bit PNGs from 8-bit ones.
    """
    with _as_data_error(path), Image.open(path, formats=list(FORMATS)) as image:
        _refuse_huge(path, image)
        arguments = image.tile[0].args if image.tile else ""
        raw_mode = arguments if isinstance(arguments, str) else str(arguments and arguments[0])
        image.load()
    warn_of_name(path, image.format, warn)
    return image, raw_mode


def warn_of_name(path: Path, format: str | None, warn: Callable[[str], None]) -> None:
    """Warns if the name has the suffix of another format than the content, `format`, a key of `FORMATS`."""
    if Path(path).suffix.lower() not in FORMATS.get(format or "", ()):
        warn(f"{printable(path)}: the content is {format}, but the name has another suffix; decoded by content")


def _refuse_huge(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width}x{image.height}")


@contextlib.contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    """Turns every error of the decoder into a DataError of one line."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{printable(path)}: expected an image file, found none; restore it") from None
    except Image.DecompressionBombError:
        raise _too_large(path, "far more") from None
    except Exception as error:  # a damaged file raises OSError, ValueError, SyntaxError, struct.error, ...
        size = os.path.getsize(path) if os.path.isfile(path) else None
        found = "an empty file" if size == 0 else " ".join(str(error).split()).replace(str(path), "the file")
        raise _unusable(path, "a readable PNG, JPEG or TIFF file", found, "fetch or export the file again") from error


def _too_large(path: Path, found: str) -> TooManyPixelsError:
    return TooManyPixelsError(
        f"{printable(path)}: expected at most {MAX_PIXELS} pixels, found {found} by its header; cut it into smaller "
        "images"
    )


def _unusable(path: Path, expected: str, found: str, remedy: str) -> DataError:
    return DataError(f"{printable(path)}: expected {expected}, found {found}; {remedy}")


def _outside_code_book(path: Path, mask: np.ndarray, codes: str | int, book_size: int) -> DataError:
    """Returns the error for values that are not codes, with a histogram and a guess at the cause."""
    values, counts = np.unique(mask, return_counts=True)
    highest = book_size - 1
    outside = (values < 0) | (values > highest)
    by_count = np.argsort(-counts, kind="stable")[:8]
    histogram = ", ".join(f"{values[i]}: {counts[i]}" for i in sorted(by_count))
    if len(values) > len(by_count):
        histogram += f" and {len(values) - len(by_count)} more values"
    if outside.sum() > INTERPOLATED_VALUES:
        remedy = "resampled with interpolation? scale masks by nearest neighbor"
    elif set(values.tolist()) <= {0, 255}:
        remedy = "this is a black and white image of a mask: save codes instead"
    elif codes == "kaggle3" and values.max() < len(labels.BCSS22_NAMES):
        remedy = "these look like the 22 original codes: use the layout kaggle512 or roi"
    else:
        remedy = "correct the mask, or remove it together with its image"
    return _unusable(
        path,
        f"the codes 0 to {highest}" + ("" if isinstance(codes, int) else f" (code book {codes})"),
        f"{counts[outside].sum()} of {mask.size} pixels with other values (value: pixels = {histogram})",
        remedy,
    )
