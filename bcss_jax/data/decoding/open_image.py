"""Opens an image file by its content and returns what it says about itself, or raises an error of one line."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.data.decoding import jpeg_file, png_file
from bcss_jax.data.decoding.stored_image import StoredImage, unusable
from bcss_jax.errors import UserError

EXPECTED, REMEDY = "a readable PNG, JPEG or TIFF file", "fetch or export the file again"
SEARCHED_PIXELS = 1 << 26
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_image(path: Path) -> StoredImage:
    """Returns the description of an image file; its pixels are not decoded yet.

    Raises:
      DataError: the file is not a PNG, JPEG or TIFF, is damaged, holds several pictures, or contradicts itself.
    """
    check_regular_file(path, "a PNG, JPEG or TIFF file", "restore it, or correct the path")
    with one_line(path), open(path, "rb") as file:
        magic = file.read(8)
        if magic == png_file.SIGNATURE:
            return png_file.read_png(path, file)
        if magic.startswith(jpeg_file.SIGNATURE):
            return jpeg_file.read_jpeg(path, file)
        if magic.startswith(TIFF_SIGNATURES):
            from bcss_jax.data.decoding import tiff_file  # imported here: other formats do not need tifffile

            return tiff_file.read_tiff(path)
        raise ValueError("another format" if magic else "an empty file")


def decoded(stored: StoredImage) -> np.ndarray:
    """Returns the stored samples of an image, [H, W] or [H, W, C].

    Raises:
      DataError: the file is truncated or damaged.
    """
    with one_line(stored.path):
        samples = stored.samples()
        if samples.shape[:2] != (stored.height, stored.width):
            raise ValueError(f"{samples.shape[1]}x{samples.shape[0]} instead of {stored.width}x{stored.height} pixels")
        return samples


def describe_floats(stored: StoredImage) -> str:
    """Returns what is found in an image of floats, for messages; small images are searched for NaN and infinity."""
    small = stored.width * stored.height <= SEARCHED_PIXELS
    finite = not small or np.isfinite(decoded(stored)).all()
    return f"{stored.bits}-bit floats{'' if finite else ' with NaN or infinity'}"


@contextlib.contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turns every error of a decoder into a DataError of one line."""
    try:
        yield
    except (UserError, MemoryError):  # also a request to stop
        raise
    except Exception as error:  # a damaged file raises OSError, ValueError, SyntaxError, struct.error, ...
        found = " ".join(str(error).split()).replace(os.fspath(path), "the file") or type(error).__name__
        raise unusable(path, EXPECTED, found, REMEDY) from error
