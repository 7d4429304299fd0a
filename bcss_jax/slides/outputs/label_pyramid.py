"""Writes and reads labels.ome.tif: the labels of a slide as a tiled pyramid for slide viewers and Python.

The file is an OME-TIFF (BigTIFF where 4 GiB may not be enough) of one channel with deflate compression. Reduced levels
are in SubIFDs, down to one tile. The resolution is in the OME-XML and in the TIFF resolution tags. OME has no code
book, so two OME MapAnnotations hold the names (value -> name) and colors (value -> color) of the classes; the colors
are also the palette of the TIFF.

How readers open it: tifffile (and with it napari and scikit-image), tiffslide and GDAL return the values at all levels;
OpenSlide shows level 0 in the colors of the classes and knows the um per pixel; Pillow opens a palette image (the tests
open it with these). According to their sources, not run here: Bio-Formats returns the values with the palette as
look-up table, which Fiji shows; QuPath reads through Bio-Formats and shows a single channel in gray, so colors in
QuPath come from regions.geojson.

The bytes depend on the labels and the arguments only: no date, no UUID.
"""

import contextlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile

from bcss_jax.common.files import storage_errors, whole_file
from bcss_jax.common.interruption import safe_point
from bcss_jax.common.outputs import written_files
from bcss_jax.errors import DataError, first_line, printable
from bcss_jax.slides.classes import BACKGROUND, UNREADABLE, SlideClass
from bcss_jax.slides.grid import nearest_indices
from bcss_jax.slides.store.tile_store import TileStore

BACKGROUND_COLOR, UNREADABLE_COLOR = (255, 255, 255), (150, 150, 150)
NAMES, COLORS = (
    "bcss_jax/class_names",
    "bcss_jax/class_colours",
)  # namespaces of the annotations in the file
_LEVEL_FILES = r"\d+/(row-\d+|\.[^/]+\.tmp)"  # of the reduced levels, while the file is written
_SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(path: Path, store: TileStore, *, mpp: float, classes: Sequence[SlideClass], name: str) -> None:
    """Writes the pyramid whole or not at all. Level 0 takes the compressed tiles of the store as they are.

    Memory does not depend on the size of the slide: the reduced levels are kept in a hidden folder next to the file.

    Args:
      path: the file, `*.ome.tif`; replaced if it exists.
      store: complete.
      mpp: um per pixel of level 0.
      classes: what the values mean.
      name: of the image.

    Raises:
      DataError: the store was damaged while it was read.
      StorageError: the file cannot be written.
    """
    folder = path.with_name(f".{path.name}.levels")
    with storage_errors(folder):
        written_files.delete_tree(folder, _LEVEL_FILES)
    try:
        with whole_file(path) as unfinished:
            levels = [store]
            while max(levels[-1].width, levels[-1].height) > store.tile_size:
                levels.append(reduced(levels[-1], folder / str(len(levels))))
            _write_levels(unfinished, levels, mpp, classes, name)
    finally:
        with contextlib.suppress(OSError):
            written_files.delete_tree(folder, _LEVEL_FILES)


def read_resized(path: Path, height: int, width: int) -> np.ndarray:
    """Returns the labels of a pyramid at the size of a thumbnail of the whole slide: uint8 [height, width].

    They are the labels at the centers of the pixels, from the smallest level that has at least that size.

    Raises:
      DataError: the file is damaged.
    """
    try:
        with tifffile.TiffFile(path) as file:
            levels = file.series[0].levels
            enough = [level for level in levels if level.shape[0] >= height and level.shape[1] >= width]
            chosen = enough[-1] if enough else levels[0]
            if not all(chosen.keyframe.databytecounts):  # tifffile reads missing tiles as zeros
                raise ValueError("a tile is missing")
            labels = chosen.asarray()
    except Exception as error:  # tifffile and the decoders raise many kinds of errors for a damaged file
        raise DataError(
            f"{printable(path)}: expected the labels of a slide as a tiled pyramid, found: {first_line(error)}; "
            "segment the slide again"
        ) from error
    rows, columns = (nearest_indices(new, old) for new, old in zip((height, width), labels.shape, strict=True))
    return labels[rows[:, None], columns]


def reduced(store: TileStore, folder: Path) -> TileStore:
    """Returns the labels at half the size: [ceil(H / 2), ceil(W / 2)], each the majority of 2 x 2 pixels.

    If values are equally frequent, the first one in reading order (upper left, upper right, lower left) wins. At an odd
    right or lower edge the last pixels count twice.

    Args:
      store: complete; the size of its tiles is even.
      folder: of the new store.

    Raises:
      DataError: the store was damaged while it was read.
      StorageError: the new store cannot be written.
    """
    half = TileStore(folder, -(-store.width // 2), -(-store.height // 2), store.tile_size)
    for row in range(half.rows):
        safe_point()
        half.write_tiles(row, [_reduced_tile(store, row, column, half) for column in range(half.columns)])
    return half


def majority(labels: np.ndarray) -> np.ndarray:
    """Does the same as `reduced` for an array: uint8 [H, W] -> [ceil(H / 2), ceil(W / 2)]."""
    height, width = labels.shape
    if height % 2 or width % 2:
        labels = np.pad(labels, ((0, height % 2), (0, width % 2)), mode="edge")
    a, b, c, d = labels[::2, ::2], labels[::2, 1::2], labels[1::2, ::2], labels[1::2, 1::2]
    # A value that occurs twice wins, unless an earlier value occurs twice too. Of four different values the first wins.
    return np.where((a == b) | (a == c) | (a == d), a, np.where((b == c) | (b == d), b, np.where(c == d, c, a)))


def _reduced_tile(store: TileStore, row: int, column: int, half: TileStore) -> np.ndarray | int:
    places = [(i, j) for i in (0, 1) for j in (0, 1) if 2 * row + i < store.rows and 2 * column + j < store.columns]
    values = {store.constant(2 * row + i, 2 * column + j) for i, j in places}
    value = values.pop() if len(values) == 1 else None
    if value is not None and (value == BACKGROUND or len(places) == 4):
        return value
    side = store.tile_size // 2
    tile = np.zeros((half.row_height(row), half.column_width(column)), np.uint8)
    for i, j in places:
        child = (2 * row + i, 2 * column + j)
        value = store.constant(*child)
        target = tile[i * side : (i + 1) * side, j * side : (j + 1) * side]
        target[...] = majority(store.pixels(*child)) if value is None else value
    return tile


def _write_levels(
    path: Path, levels: Sequence[TileStore], mpp: float, classes: Sequence[SlideClass], name: str
) -> None:
    """Writes the TIFF file."""
    size = levels[0].tile_size
    centimeters = 1e4 / mpp
    palette = _palette(classes)
    with tifffile.TiffWriter(path, bigtiff=_may_pass_4_gib(levels), byteorder="<", ome=False) as tiff:
        for number, level in enumerate(levels):
            tiff.write(
                _tiles(level),
                shape=(level.height, level.width),
                subifds=len(levels) - 1 if number == 0 else None,
                subfiletype=1 if number else 0,
                description=_ome_xml(level, mpp, classes, name) if number == 0 else None,
                resolution=(centimeters / 2**number, centimeters / 2**number),
                dtype=np.uint8,
                tile=(size, size),
                photometric="palette",
                colormap=palette,
                compression="zlib",
                resolutionunit="CENTIMETER",
                software="bcss_jax",
                metadata=None,
            )


def _tiles(level: TileStore) -> Iterator[tuple[bytes, int]]:
    """Yields the streams of the tiles with their lengths. Successive tiles of the same single value share one stream.

    tifffile points a tile to the place where the next stream will be written, so a tile without a stream shares the
    stream of the next tile. Readers see ordinary tiles; TIFF's "sparse" tiles, which have no bytes, are an error for
    some readers.
    """
    run_value, run_stream, run_length = None, b"", 0  # of the tiles that share a stream
    for row in range(level.rows):
        safe_point()
        for column in range(level.columns):
            value = level.constant(row, column)
            if run_length and value != run_value:
                yield from _run(run_stream, run_length)
                run_length = 0
            stream = level.encoded(row, column)
            if value is None:
                yield stream, len(stream)
            else:
                run_value, run_stream, run_length = value, stream, run_length + 1
    if run_length:
        yield from _run(run_stream, run_length)


def _run(stream: bytes, tiles: int) -> Iterator[tuple[bytes, int]]:
    """Yields nothing but the length of the stream for all tiles but the last one, which has the stream."""
    yield from [(b"", len(stream))] * (tiles - 1)
    yield stream, len(stream)


def _may_pass_4_gib(levels: Sequence[TileStore]) -> bool:
    size = sum(
        level.encoded_size(row, column) + 400  # for the stream of a constant tile, and its entries in the tables
        for level in levels
        for row in range(level.rows)
        for column in range(level.columns)
    )
    return size > 2**32 - 2**24


def _palette(classes: Sequence[SlideClass]) -> np.ndarray:
    """Returns the ColorMap of the TIFF: uint16 [3, 256]; unused values are black."""
    palette = np.zeros((256, 3), np.uint16)
    palette[BACKGROUND], palette[UNREADABLE] = BACKGROUND_COLOR, UNREADABLE_COLOR
    for entry in classes:
        palette[entry.value] = entry.color
    return palette.T * 257


def _ome_xml(store: TileStore, mpp: float, classes: Sequence[SlideClass], name: str) -> bytes:
    """Returns the ImageDescription: OME-XML in ASCII."""
    entries = [
        SlideClass(BACKGROUND, "background", BACKGROUND_COLOR),
        *classes,
        SlideClass(UNREADABLE, "unreadable", UNREADABLE_COLOR),
    ]
    tables = {
        NAMES: {entry.value: _NOT_XML.sub("\ufffd", entry.name) for entry in entries},
        COLORS: {entry.value: "#{:02X}{:02X}{:02X}".format(*entry.color) for entry in entries},
    }
    root = ElementTree.Element("OME", {"xmlns": _SCHEMA, "Creator": "bcss_jax"})
    image = ElementTree.SubElement(root, "Image", {"ID": "Image:0", "Name": _NOT_XML.sub("\ufffd", name)})
    pixels = ElementTree.SubElement(
        image,
        "Pixels",
        {
            "ID": "Pixels:0",
            "DimensionOrder": "XYCZT",
            "Type": "uint8",
            "SignificantBits": "8",
            "BigEndian": "false",
            "SizeX": str(store.width),
            "SizeY": str(store.height),
            "SizeC": "1",
            "SizeZ": "1",
            "SizeT": "1",
            "PhysicalSizeX": repr(float(mpp)),
            "PhysicalSizeXUnit": "\u00b5m",
            "PhysicalSizeY": repr(float(mpp)),
            "PhysicalSizeYUnit": "\u00b5m",
        },
    )
    ElementTree.SubElement(pixels, "Channel", {"ID": "Channel:0:0", "Name": "labels", "SamplesPerPixel": "1"})
    ElementTree.SubElement(pixels, "TiffData", {"IFD": "0", "PlaneCount": "1"})
    annotations = ElementTree.SubElement(root, "StructuredAnnotations")
    for number, (namespace, table) in enumerate(tables.items()):
        identity = f"Annotation:{number}"
        ElementTree.SubElement(image, "AnnotationRef", {"ID": identity})
        annotation = ElementTree.SubElement(annotations, "MapAnnotation", {"ID": identity, "Namespace": namespace})
        value = ElementTree.SubElement(annotation, "Value")
        for key, text in table.items():
            ElementTree.SubElement(value, "M", {"K": str(key)}).text = text
    return b'<?xml version="1.0" encoding="UTF-8"?>' + ElementTree.tostring(root, encoding="us-ascii").split(b"?>")[-1]
