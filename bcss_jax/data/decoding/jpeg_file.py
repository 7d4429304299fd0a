"""Reads what a JPEG says about its samples, from the segments in front of the pixels."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from bcss_jax.data.decoding.orientation import agreed_orientation, orientation_in_exif, orientation_in_xmp
from bcss_jax.data.decoding.stored_image import StoredImage, note_of_profile, several_pictures

SIGNATURE = b"\xff\xd8\xff"
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of the segments that hold the size
SCAN, END = 0xDA, 0xD9
WITHOUT_CONTENT = {0x00, 0x01, *range(0xD0, 0xD9)}  # markers
MAX_SKIPPED = 1 << 16  # bytes
COLORS = {1: "gray", 3: "RGB", 4: "CMYK"}  # by the number of components; libjpeg converts YCbCr to RGB
EXIF, XMP, ICC, MPF = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"MPF\0"
GAIN_MAP = b"hdrgm:Version"  # in the XMP of a picture whose second image brightens it on some screens
THUMBNAILS = (0x010001, 0x010002)  # types of images in a multi-picture file that are small copies of the first


def read_jpeg(path: Path, file: BinaryIO) -> StoredImage:
    """Returns the description of an open JPEG.

    Raises:
      DataError: it holds several pictures, or its orientations contradict one another.
      ValueError: it is damaged; the message says how.
    """
    exif, xmp, profile, pictures, has_gain_map, frame = [], [], b"", [], False, None
    for marker, data in _segments(file):
        if marker == 0xE1 and data.startswith(EXIF):
            exif.append(orientation_in_exif(data))
        elif marker == 0xE1 and data.startswith(XMP):
            xmp.append(orientation_in_xmp(data))
            has_gain_map |= GAIN_MAP in data
        elif marker == 0xE2 and data.startswith(ICC):
            profile += data[len(ICC) + 2 :]
        elif marker == 0xE2 and data.startswith(MPF):
            pictures = _picture_types(data.removeprefix(MPF))
        elif marker in FRAMES and frame is None:
            frame = struct.unpack_from(">BHHB", data)
    if frame is None:
        raise ValueError("a JPEG without a size")
    bits, height, width, components = frame
    if any(each not in THUMBNAILS for each in pictures[1:]) and not has_gain_map:
        raise several_pictures(path, f"{len(pictures)} (MPO)")
    orientation, notes = agreed_orientation(path, exif, xmp)
    return StoredImage(
        path, "JPEG", width, height, COLORS.get(components, f"{components} channels"), bits, lambda: _samples(path),
        orientation=orientation,
        lossy="JPEG",
        notes=notes,
        color_note=note_of_profile(profile) if profile else "",
    )  # fmt: skip


def _segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields the marker and content of each segment up to the first scan."""
    file.seek(2)
    skipped = 0
    while True:
        marker = file.read(1)
        if marker != b"\xff":  # bytes between segments, which decoders skip
            skipped += 1
            if not marker or skipped > MAX_SKIPPED:
                raise ValueError("a file that ends early" if not marker else "bytes that are no JPEG")
            continue
        while marker == b"\xff":
            marker = file.read(1)
        if not marker:
            raise ValueError("a file that ends early")
        code = marker[0]
        if code in (SCAN, END):
            return
        if code in WITHOUT_CONTENT:
            continue
        (length,) = struct.unpack(">H", file.read(2).ljust(2, b"\0"))
        data = file.read(max(0, length - 2))
        if length < 2 or len(data) != length - 2:
            raise ValueError("a file that ends early")
        yield code, data


def _picture_types(data: bytes) -> list[int]:
    """Returns the type of each image that a multi-picture file lists; an unreadable list counts as two unknown ones."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    try:
        if order is None:
            raise ValueError
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, size, offset = struct.unpack_from(order + "HHII", data, place)
            if tag == 0xB002:
                return [
                    struct.unpack_from(order + "I", data, offset + 16 * number)[0] & 0xFFFFFF
                    for number in range(size // 16)
                ]
    except (struct.error, ValueError):
        return [0, 0]
    return []


def _samples(path: Path) -> np.ndarray:
    with Image.open(path, formats=["JPEG"]) as image:
        image.load()
        return np.asarray(image)
