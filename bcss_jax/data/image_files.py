"""Reads the file of an image or a mask into an array, or raises an error of one line if it cannot be used.

Every command reads the plain image files of its user here. Files are decoded by their content, never by their name, and
only as PNG, JPEG or TIFF (`decoding`). Images and masks are turned as their orientation tag says, because masks are
drawn on the picture as shown. A file must hold one picture; other images of a TIFF may only be reduced copies of the
first. What the samples of a mask mean is decided in `mask_codes`. Nothing else is repaired or converted: a mask with
three channels, an image with 16 bits, or a transparent pixel means that an earlier step did not do what the user
expects. Color profiles and gamma are not applied.
"""

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bcss_jax import labels
from bcss_jax.data import mask_codes
from bcss_jax.data.decoding.open_image import decoded, describe_floats, open_image
from bcss_jax.data.decoding.orientation import turned
from bcss_jax.data.decoding.stored_image import StoredImage, unusable
from bcss_jax.data.mask_codes import PaletteColors
from bcss_jax.errors import DataError, printable

log = logging.getLogger(__name__)


class TooManyPixelsError(DataError):
    """Raised for an image whose header claims more than `MAX_PIXELS`."""


FORMATS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "TIFF": (".tif", ".tiff")}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MAX_PIXELS = 178_956_970  # the limit of Pillow; the largest ROI of the data set has 126 million
INTERPOLATED_VALUES = 8  # with more different values outside the code book, the mask was probably resampled


def image_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) in pixels, as the picture is shown, from the headers of the file.

    Raises:
      DataError: as `open_image`, or the image has more than `MAX_PIXELS`.
    """
    return _opened(path).shown_size


def read_image(path: Path, warn: Callable[[str], None] = log.warning) -> np.ndarray:
    """Reads an H&E image.

    Args:
      path: a PNG, JPEG or TIFF file with 8-bit RGB, or with RGBA that is opaque everywhere.
      warn: called with one line about something unusual but usable: a content that does not match the name, an
        orientation, a color profile.

    Returns:
      uint8 [H, W, 3].

    Raises:
      DataError: the file is unreadable, truncated or too large, holds several pictures, or the image is not RGB, not
        8-bit, or not opaque.
    """
    stored = _opened(path)
    check_8_bit(stored)
    if stored.color != "RGB":
        raise unusable(path, "RGB", f"the color mode {stored.color_mode}", "save the stained image as 8-bit RGB")
    pixels = decoded(stored)
    seen = pixels[..., 3] if stored.alpha else None
    if stored.transparent is not None:
        seen = (pixels != np.array(stored.transparent)).any(axis=-1)
    if seen is not None and seen.min() < (255 if stored.alpha else 1):
        raise unusable(path, "an opaque image", "transparent pixels", "flatten it onto a background first")
    warn_of_image(stored, warn)
    return _as_shown(pixels[..., :3], stored)


def check_8_bit(stored: StoredImage) -> None:
    """Checks that an image has at most 8 bits per channel.

    Raises:
      DataError: it has more, or floats.
    """
    expected, remedy = "8 bits per channel", "save as 8-bit RGB"
    if stored.kind == "f":
        raise unusable(stored.path, "8-bit RGB", describe_floats(stored), remedy)
    if stored.bits > 8:
        raise unusable(stored.path, expected, "16 bits or more", remedy)
    if stored.kind != "u":
        raise unusable(stored.path, expected, "signed samples or channels of different depth", remedy)
    if stored.bits < 8 and (stored.alpha or stored.color == "RGB"):
        raise unusable(stored.path, expected, f"{stored.bits} bits", remedy)


def read_mask(
    path: Path,
    codes: str | int,
    warn: Callable[[str], None] = log.warning,
    colors: PaletteColors | None = None,
) -> np.ndarray:
    """Reads a mask; `mask_codes` says what palettes and other samples mean.

    Args:
      path: a PNG or TIFF file with one channel. 16 bits are allowed if the values are codes.
      codes: the code book, a key of `labels.CODE_BOOKS`, or the number of codes, which then start at 0.
      warn: called with one line about something unusual but usable.
      colors: what colors stand for in other masks of the same data set.

    Returns:
      uint8 [H, W], every value a code of the book.

    Raises:
      DataError: the file is unreadable, truncated, too large or compressed with loss, holds several pictures, has
        several channels or floats, can be read in two ways, or contains a value that is not a code (the message gives
        the histogram).
    """
    stored = _opened(path)
    mask_codes.check_one_channel(stored)
    samples = decoded(stored)
    if mask_codes.needs_table(stored):
        samples = mask_codes.code_table(stored, np.unique(samples), number_of_codes(codes), warn, colors)[samples]
    warn_of_file(stored, warn)
    return _as_shown(checked_codes(path, samples, codes), stored)


def read_tissue_mask(
    path: Path, warn: Callable[[str], None] = log.warning, colors: PaletteColors | None = None
) -> np.ndarray:
    """Reads a mask of tissue: bool [H, W], true where the mask is not shown black.

    Args:
      path: as in `read_mask`.
      warn: as in `read_mask`.
      colors: which colors are tissue (code 1) in the masks of other slides.

    Raises:
      DataError: as `read_mask`, except that there are no codes.
    """
    stored = _opened(path)
    mask_codes.check_one_channel(stored)
    samples = decoded(stored)
    if mask_codes.needs_table(stored):
        samples = mask_codes.tissue_table(stored, np.unique(samples), warn, colors)[samples]
    elif samples.min() < 0:
        raise unusable(path, "a tissue mask without negative values", f"{samples.min()}", "save it as 8-bit gray")
    warn_of_file(stored, warn)
    return _as_shown(samples > 0, stored)


def read_shown(path: Path, warn: Callable[[str], None] = log.warning) -> tuple[StoredImage, np.ndarray]:
    """Reads an image of any color mode with at most 8 bits per channel as a viewer shows it.

    Gray becomes three equal channels, a palette becomes its colors, and transparent pixels are over white. A last
    channel of a TIFF that is not called transparency is left out.

    Args:
      path: a PNG, JPEG or TIFF file.
      warn: as in `read_image`.

    Returns:
      The description of the file, and uint8 [H, W, 3].

    Raises:
      DataError: the file is unreadable, truncated or too large, holds several pictures, has more than 8 bits, or its
        colors are not gray, a palette or RGB.
    """
    stored = _opened(path)
    check_8_bit(stored)
    if stored.color not in ("gray", "palette", "RGB"):
        raise unusable(path, "8-bit RGB or gray", f"the color mode {stored.color_mode}", "save it as 8-bit RGB")
    samples = decoded(stored)
    if stored.alpha == "unknown":
        if samples[..., -1].min() < 255:
            warn(f"{printable(path)}: the last channel has no meaning by its tag and is left out")
        stored, samples = dataclasses.replace(stored, alpha=None), samples[..., :-1]
    warn_of_image(stored, warn)
    return stored, _as_shown(_on_white(stored, samples), stored)


def _on_white(stored: StoredImage, samples: np.ndarray) -> np.ndarray:
    """Returns stored samples as RGB over white, uint8 [H, W, 3]."""
    opacity = None
    if stored.alpha:
        samples, opacity = samples[..., :-1], samples[..., -1]
    elif stored.transparent is not None:
        different = samples != np.array(stored.transparent, np.int64)
        opacity = np.where(different.any(axis=-1) if different.ndim == 3 else different, np.uint8(255), np.uint8(0))
    if stored.palette is not None:
        if samples.max() >= len(stored.palette):
            raise unusable(
                stored.path, "a color for every pixel", "indices above the palette's", "save it as 8-bit RGB"
            )
        opacity = None if stored.palette_alpha is None else stored.palette_alpha[samples]
        colors = stored.palette[samples]
    elif stored.color == "gray":
        white = (1 << stored.bits) - 1
        levels = np.arange(white + 1) * 255 // white
        levels = (levels[::-1] if stored.inverted else levels).astype(np.uint8)
        samples = samples[..., 0] if samples.ndim == 3 else samples
        colors = np.repeat(levels[samples.astype(np.uint8)][..., None], 3, axis=-1)
    else:
        colors = samples
    if opacity is None or opacity.min() == 255:
        return colors
    return _blended(colors, opacity, premultiplied=stored.alpha == "premultiplied")


def _blended(colors: np.ndarray, opacity: np.ndarray, *, premultiplied: bool) -> np.ndarray:
    rows = [slice(start, start + 256) for start in range(0, len(colors), 256)]  # a band at a time saves memory
    result = np.empty_like(colors)
    for band in rows:
        weight = opacity[band, :, None].astype(np.uint32)
        light = colors[band] * (np.uint32(255) if premultiplied else weight) + 255 * (255 - weight)
        result[band] = np.minimum((light + 127) // 255, 255)
    return result


def _as_shown(pixels: np.ndarray, stored: StoredImage) -> np.ndarray:
    return np.ascontiguousarray(turned(pixels, stored.orientation))


def number_of_codes(codes: str | int) -> int:
    """Returns the number of codes of a code book, given as in `read_mask`."""
    return codes if isinstance(codes, int) else len(labels.CODE_BOOKS[codes])


def checked_codes(path: Path, mask: np.ndarray, codes: str | int) -> np.ndarray:
    """Returns the pixels of a mask, or of a window of it, as uint8.

    Args:
      path: of the mask.
      mask: integers [H, W].
      codes: as in `read_mask`.

    Raises:
      DataError: a value is not a code (the message gives the histogram).
    """
    book_size = number_of_codes(codes)
    if mask.min() < 0 or mask.max() >= book_size:
        raise _outside_code_book(path, mask, codes, book_size)
    return mask.astype(np.uint8, copy=False)


def read_pair(
    image_path: Path,
    mask_path: Path,
    codes: str | int,
    warn: Callable[[str], None] = log.warning,
    colors: PaletteColors | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image and its mask, which must have the same height and width as they are shown.

    The arguments are those of `read_image` and `read_mask`.

    Returns:
      uint8 [H, W, 3] and uint8 [H, W].

    Raises:
      DataError: as `read_image` and `read_mask`, or the sizes differ.
    """
    image, mask = read_image(image_path, warn), read_mask(mask_path, codes, warn, colors)
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        raise unusable(
            mask_path,
            f"{width}x{height} pixels as in {printable(image_path)}",
            f"{mask_width}x{mask_height}",
            "cut both from the same window",
        )
    return image, mask


def warn_of_image(stored: StoredImage, warn: Callable[[str], None]) -> None:
    """Warns of what is unusual but usable in an image."""
    warn_of_file(stored, warn)
    if stored.color_note:
        warn(f"{printable(stored.path)}: {stored.color_note}")


def warn_of_file(stored: StoredImage, warn: Callable[[str], None]) -> None:
    """Warns of what is unusual but usable in a file: a suffix of another format than the content, an orientation."""
    if os.path.splitext(stored.path)[1].lower() not in FORMATS[stored.format]:
        name = printable(stored.path)
        warn(f"{name}: the content is {stored.format}, but the name has another suffix; decoded by content")
    for note in stored.notes:
        warn(f"{printable(stored.path)}: {note}")


def _opened(path: Path) -> StoredImage:
    stored = open_image(path)
    if stored.width * stored.height > MAX_PIXELS:
        raise TooManyPixelsError(
            f"{printable(path)}: expected at most {MAX_PIXELS} pixels, found {stored.width}x{stored.height} by its "
            "header; cut it into smaller images"
        )
    return stored


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
    return unusable(
        path,
        f"the codes 0 to {highest}" + ("" if isinstance(codes, int) else f" (code book {codes})"),
        f"{counts[outside].sum()} of {mask.size} pixels with other values (value: pixels = {histogram})",
        remedy,
    )
