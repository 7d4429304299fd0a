"""Reads what a PNG says about its samples, from all of its chunks, also those after the pixels."""

import dataclasses
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from bcss_jax.data.decoding.orientation import agreed_orientation, orientation_in_exif, orientation_in_xmp
from bcss_jax.data.decoding.stored_image import StoredImage, note_of_profile, several_pictures

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 1 << 20  # bytes of a text or profile when unpacked; more is refused, as Pillow does
COLORS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray", 6: "RGB"}  # by the header's color type
ONCE = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"acTL", b"gAMA", b"iCCP", b"sRGB")
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
EXIF_TEXTS = (b"Raw profile type exif", b"Raw profile type APP1")  # Exif in hexadecimal digits, as ImageMagick writes
XMP_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type xmp")
SCALE = {2: 85, 4: 17}  # Pillow scales gray samples of 2 and 4 bits to 0..255
SRGB_GAMMA = (44_000, 47_000)  # 1/2.2 in the units of gAMA, with rounding


def read_png(path: Path, file: BinaryIO) -> StoredImage:
    """Returns the description of an open PNG.

    Raises:
      DataError: it holds an animation, or its orientations contradict one another.
      ValueError: it is damaged; the message says how.
    """
    chunks: dict[bytes, bytes] = {}
    exif, xmp, animated, before_pixels = [], [], False, True
    for kind, data in _chunks(file):
        if kind in ONCE:
            if kind in chunks:
                raise ValueError(f"two {kind.decode()} chunks")
            chunks[kind] = data
        if kind == b"eXIf":
            exif.append(orientation_in_exif(data))
        elif kind in TEXTS:
            keyword, text = _text(kind, data)
            if keyword in EXIF_TEXTS:
                exif.append(orientation_in_exif(_from_digits(text)))
            elif keyword in XMP_TEXTS:
                xmp.append(orientation_in_xmp(text if keyword == XMP_TEXTS[0] else _from_digits(text)))
        elif kind == b"IDAT":
            before_pixels = False
        elif kind == b"fcTL":
            animated |= not before_pixels  # a frame after the picture
    if animated:
        raise several_pictures(path, "an animation (APNG)")
    width, height, bits, color_type = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    if color_type not in COLORS:
        raise ValueError(f"the color type {color_type}")
    orientation, notes = agreed_orientation(path, exif, xmp)
    stored = StoredImage(
        path, "PNG", width, height, COLORS[color_type], bits, lambda: _samples(path, bits),
        orientation=orientation,
        alpha="straight" if color_type in (4, 6) else None,
        notes=notes,
        color_note=_color_note(chunks),
    )  # fmt: skip
    return _with_transparency(stored, chunks)


def _with_transparency(stored: StoredImage, chunks: dict[bytes, bytes]) -> StoredImage:
    """Returns the description with the palette and what is transparent."""
    transparency = chunks.get(b"tRNS")
    if stored.color == "palette":
        if b"PLTE" not in chunks or len(chunks[b"PLTE"]) % 3:
            raise ValueError("a palette image without a palette")
        palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
        opacity = None
        if transparency:
            opacity = np.full(len(palette), 255, np.uint8)
            given = np.frombuffer(transparency, np.uint8)[: len(palette)]
            opacity[: len(given)] = given
        return dataclasses.replace(stored, palette=palette, palette_alpha=opacity)
    if transparency and stored.alpha is None:
        numbers = struct.unpack_from(">H" if stored.color == "gray" else ">HHH", transparency)
        return dataclasses.replace(stored, transparent=numbers)
    return stored


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yields the type and content of each chunk; the content is empty for pixels and for types of no interest."""
    file.seek(len(SIGNATURE))
    first = True
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if first and (kind != b"IHDR" or length != 13):
            raise ValueError("a PNG that does not begin with its header")
        first = False
        if kind in ONCE or kind in TEXTS:
            if length > MAX_TEXT:
                raise ValueError(f"a {kind.decode()} chunk of {length} bytes")
            data = file.read(length)
            if len(data) != length:
                raise ValueError("a file that ends early")
            yield kind, data
            file.seek(4, 1)
        else:
            yield kind, b""
            if kind == b"IEND":
                return
            file.seek(length + 4, 1)
    if first:
        raise ValueError("a file that ends early")


def _text(kind: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Returns the keyword of a text chunk, and its text if the keyword is one of those that can hold an orientation."""
    keyword, _, rest = data.partition(b"\0")
    if keyword not in EXIF_TEXTS + XMP_TEXTS:
        return keyword, b""
    packed = kind == b"zTXt"
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:]
        rest = rest.split(b"\0", 2)[-1]  # after the language and the translated keyword
    return keyword, _unpacked(rest) if packed else rest


def _unpacked(data: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(data, MAX_TEXT)
    except zlib.error as error:
        raise ValueError(f"a damaged text ({error})") from error
    if unpacking.unconsumed_tail:
        raise ValueError(f"a text of more than {MAX_TEXT} bytes when unpacked")
    return text


def _from_digits(text: bytes) -> bytes:
    """Returns the bytes of a raw profile: its name and length in two lines, then hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except ValueError:
        return b""


def _color_note(chunks: dict[bytes, bytes]) -> str:
    if b"sRGB" in chunks:
        return ""
    if b"iCCP" in chunks:
        name, _, packed = chunks[b"iCCP"].partition(b"\0")
        return note_of_profile(name + _unpacked(packed[1:]))
    if b"gAMA" in chunks:
        (gamma,) = struct.unpack_from(">I", chunks[b"gAMA"])
        if not SRGB_GAMMA[0] <= gamma <= SRGB_GAMMA[1]:
            return f"its gamma ({gamma / 100_000:g}) is not applied; the stored colors are used"
    return ""


def _samples(path: Path, bits: int) -> np.ndarray:
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        samples = np.asarray(image)
        scaled = image.mode == "L" and bits in SCALE
    if samples.dtype == bool:
        return samples.astype(np.uint8)
    return samples // SCALE[bits] if scaled else samples
