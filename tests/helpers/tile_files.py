"""Writes small tiles in the layouts of the data set, for tests."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def name(patient="TCGA-A2-A0D2", x=0, y=0, size=512):
    return f"{patient}-DX1_xmin100_ymin200_MPP-0_{x}_{y}_size{size}"


def image(seed=0, size=16):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def mask(seed=0, size=16, codes=(1, 2)):
    return np.random.default_rng(seed).choice(np.array(codes, np.uint8), (size, size))


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def kaggle512(root, train=("TCGA-A2-A0D2", "TCGA-BH-A0B1"), val=("TCGA-OL-A5D6",), tiles_each=2):
    """Writes a data set without defects, in which all tiles differ."""
    seed = 0
    for split, patients in (("train", train), ("val", val)):
        for patient in patients:
            for number in range(tiles_each):
                seed += 1
                stem = name(patient, x=512 * number)
                save(root / f"{split}_512" / f"{stem}.png", image(seed))
                save(root / f"{split}_mask_512" / f"{stem}.png", mask(seed, codes=(0, 1, 2, 3, 4, 9)))
    return root


def png(width, height, bit_depth, color_type, rows=b"", before_pixels=b""):
    """Returns the bytes of a PNG with any header, any rows, and chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + before_pixels + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bytes(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
