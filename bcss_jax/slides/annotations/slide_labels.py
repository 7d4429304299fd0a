"""The ground truth of a slide as labels of a scheme, block by block: from annotations or from a mask."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import shapely

from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.labels import LabelScheme, codes_of_slide_masks, lookup_table, readable_codes
from bcss_jax.slides.annotations import asap_xml, geojson
from bcss_jax.slides.annotations.annotation import Annotation
from bcss_jax.slides.annotations.class_names import Labeled, label_annotations
from bcss_jax.slides.annotations.coverage import Coverage
from bcss_jax.slides.annotations.placement import check_placement
from bcss_jax.slides.reading.mask_file import Mask, labels_of_codes, open_mask

log = logging.getLogger(__name__)

_EXPECTED = "annotations as GeoJSON or ASAP's XML, or a mask as PNG or TIFF"
_IMAGES = (b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\xff\xd8")  # JPEG is refused as a mask
# First bytes of other files, what they are, and the remedy.
_OTHERS = (
    (b"\xff\xfe", ("text in UTF-16", "save it as UTF-8")),
    (b"\xfe\xff", ("text in UTF-16", "save it as UTF-8")),
    (b"\x1f\x8b", ("a gzip file", "unpack it")),
    (b"PK", ("a zip file", "unpack it")),
)
_SIDE = 2048  # longest side of the drawing from which areas and overlaps are counted


class SlideLabels(Protocol):
    """The ground truth of a slide.

    Attributes:
      boxes: float64 [n, 4], x0, y0, x1, y1 in pixels of level 0: there is no truth outside of these boxes.
      overlap: share of the annotated area that has annotations of different labels; 0 for masks.
    """

    boxes: np.ndarray
    overlap: float

    def labels(
        self, x: float, y: float, width: int, height: int, downsample: float | tuple[float, float]
    ) -> np.ndarray:
        """Returns the labels of a block, one for the center of each pixel.

        Args:
          x: left edge of the block in pixels of level 0.
          y: top edge of the block in pixels of level 0.
          width: in pixels of the block.
          height: in pixels of the block.
          downsample: pixels of level 0 that a pixel of the block spans, along both axes or along x and y. For a grid of
            `slides.grid`, pixel (column, row) starts at (column * scale[0], row * scale[1]), and this is its `scale`.

        Returns:
          uint8 [height, width]: labels of the scheme, its `ignore_index` where there is no truth.

        Raises:
          DataError: the mask is damaged there, or holds a value that is not a code.
        """
        ...


def read_annotations(
    path: Path,
    origin: tuple[float, float] = (0, 0),
    warn: Callable[[str], None] = log.warning,
    *,
    line_width: float | None = None,
) -> list[Annotation]:
    """Returns the annotations of a GeoJSON or ASAP XML file; its content tells which it is.

    Args:
      path: the file.
      origin: level-0 pixel x and y of QuPath's point (0, 0): the corner of the scanned area (`Slide.bounds`), unless
        the slide was added to QuPath with `--no-crop`. ASAP always counts from the corner of level 0.
      warn: called with one line about everything that is left out.
      line_width: as in `geojson.read_annotations`; ASAP has no lines.

    Raises:
      DataError: as `geojson.read_annotations` and `asap_xml.read_annotations`.
    """
    if _begins(path)[:1] == b"<":
        return asap_xml.read_annotations(path, warn)
    return geojson.read_annotations(path, origin, warn, line_width=line_width)


@contextlib.contextmanager
def open_slide_labels(
    path: Path,
    scheme: LabelScheme,
    size: tuple[int, int],
    *,
    mpp: tuple[float, float] | None = None,
    origin: tuple[float, float] = (0, 0),
    region: str | None = None,
    codes: str | None = None,
    tissue: np.ndarray | None = None,
    warn: Callable[[str], None] = log.warning,
) -> Iterator[SlideLabels]:
    """Opens the ground truth of a slide: annotations or a mask, told by content.

    Args:
      path: GeoJSON, ASAP XML, PNG or TIFF.
      scheme: the labels.
      size: width and height of the slide's level 0.
      mpp: um per pixel of level 0 along x and y, to recognize annotations in other units.
      origin: level-0 pixel of QuPath's point (0, 0), see `read_annotations`.
      region: class of the annotations that bound what is annotated exhaustively: outside of them there is no truth.
        Masks have no such annotations, which is said.
      codes: of a mask, as in `labels.lookup_table`; None: `labels.codes_of_slide_masks`.
      tissue: bool [h, w] over the whole slide, see `check_placement`.
      warn: called with one line about everything that is odd but usable.

    Raises:
      DataError: the file cannot be read, or does not belong to this slide.
      ConfigError: the codes cannot express the scheme.
    """
    check_regular_file(path, _EXPECTED, "correct the path")
    start = _begins(path)
    if start.startswith(_IMAGES):
        codes = codes or codes_of_slide_masks(scheme)
        if region is not None:
            warn(
                f"{printable(path)}: the region {ascii(region)[:70]} bounds annotations; "
                "a mask counts wherever it has codes"
            )
        with open_mask(path, readable_codes(scheme, codes), warn=warn) as mask:
            yield MaskLabels(path, mask, scheme, codes, size)
    elif start[:1] in (b"<", b"{", b"["):
        annotations = read_annotations(path, origin, warn)
        check_placement(path, annotations, size, mpp, tissue, warn)
        labeled = label_annotations(path, annotations, scheme, region, warn)
        yield AnnotatedLabels(path, labeled, scheme, size, region is not None, warn)
    else:
        known = next((found for magic, found in _OTHERS if start.startswith(magic)), None)
        found, remedy = known or (f"a file that starts with {start[:8]!r}", "export it again")
        if not start:
            found = "an empty file"
        raise DataError(f"{printable(path)}: expected {_EXPECTED}, found {found}; {remedy}")


def _begins(path: Path) -> bytes:
    """Returns the first bytes of a file without the mark of UTF-8 and white space."""
    check_regular_file(path, _EXPECTED, "correct the path")
    try:
        with open(path, "rb") as file:
            return file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise DataError(
            f"{printable(path)}: expected {_EXPECTED}, found: {error.strerror}; correct the path"
        ) from error


class AnnotatedLabels:
    """Annotations, drawn block by block; memory holds the polygons and the block. See `SlideLabels`.

    Attributes:
      boxes: as in `SlideLabels`.
      overlap: as in `SlideLabels`, counted on a drawing of the whole slide of at most 2048 pixels.
    """

    def __init__(
        self,
        path: Path,
        labeled: Labeled,
        scheme: LabelScheme,
        size: tuple[int, int],
        bounded: bool,
        warn: Callable[[str], None],
    ):
        """Called by `open_slide_labels`; `bounded` if there is no truth outside of the regions."""
        self._ignored = scheme.ignore_index
        self._background = self._ignored if scheme.unannotated is None else scheme.unannotated
        self._coverages = {label: Coverage(areas) for label, areas in labeled.by_label.items()}
        self._region = Coverage(labeled.regions) if bounded else None
        self.boxes = np.array([[0, 0, *size]], np.float64)
        if bounded or scheme.unannotated is None:
            areas = labeled.regions or [area for group in labeled.by_label.values() for area in group]
            self.boxes = shapely.bounds(np.array(areas, object))
        covered, overlapping = self._count(size)
        self.overlap = overlapping / covered if covered else 0.0
        if self.overlap:
            names = dict(enumerate(scheme.class_names)) | {self._ignored: "ignored"}
            order = ", ".join(names[label] for label in self._coverages)
            warn(
                f"{printable(path)}: {100 * self.overlap:.2g} % of the annotated area has annotations of different "
                f"classes; the first of these counts: {order}"
            )

    def labels(self, x, y, width, height, downsample):  # noqa: D102
        block = (x, y, width, height, _along_both(downsample))
        labels = np.full((height, width), self._background, np.uint8)
        for label, coverage in reversed(self._coverages.items()):
            labels[coverage.block(*block)] = label
        if self._region is not None:
            labels[~self._region.block(*block)] = self._ignored
        return labels

    def _count(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the number of pixels that some and that several labels cover, on a drawing of the whole slide."""
        scale = max(1.0, max(size) / _SIDE)
        width, height = (max(1, int(side / scale)) for side in size)
        count = np.zeros((height, width), np.uint8)
        for coverage in self._coverages.values():
            count += coverage.block(0, 0, width, height, (scale, scale))
        return int(np.count_nonzero(count)), int(np.count_nonzero(count > 1))


class MaskLabels:
    """A mask of codes of any scale, read block by block; a pixel has the code under its center. See `SlideLabels`."""

    overlap = 0.0

    def __init__(self, path: Path, mask: Mask, scheme: LabelScheme, codes: str, size: tuple[int, int]):
        """Called by `open_slide_labels`."""
        try:
            self._table = lookup_table(scheme, codes)
        except ValueError as error:
            raise ConfigError(f"{printable(path)}: {error}") from error
        height, width = mask.shape
        scale = max(size) / max(width, height)
        if any(abs(length - side / scale) > 1 for length, side in zip((width, height), size, strict=True)):
            raise DataError(
                f"{printable(path)}: expected a mask with the proportions of the slide ({size[0]}x{size[1]} pixels), "
                f"found {width}x{height}; give the mask of this slide"
            )
        self._path, self._mask, self._size, self._ignored = path, mask, size, scheme.ignore_index
        self.boxes = np.array([[0, 0, *size]], np.float64)

    def labels(self, x, y, width, height, downsample):  # noqa: D102
        across, down = _along_both(downsample)
        columns = self._under(x + (np.arange(width) + 0.5) * across, 0)
        rows = self._under(y + (np.arange(height) + 0.5) * down, 1)
        labels = np.full((height, width), self._ignored, np.uint8)
        on_rows, on_columns = rows >= 0, columns >= 0
        if on_rows.any() and on_columns.any():
            rows, columns = rows[on_rows], columns[on_columns]
            codes = self._mask.block(rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
            codes = codes[np.ix_(rows - rows[0], columns - columns[0])]
            labels[np.ix_(on_rows, on_columns)] = labels_of_codes(self._path, codes, self._table)
        return labels

    def _under(self, position: np.ndarray, axis: int) -> np.ndarray:
        """Returns the index of the mask's pixel under each position, -1 where there is none: int64 [n]."""
        count, size = self._mask.shape[1 - axis], self._size[axis]
        index = np.floor(position * (count / size)).astype(np.int64)
        return np.where((position >= 0) & (position < size), np.minimum(index, count - 1), -1)


def _along_both(downsample: float | tuple[float, float]) -> tuple[float, float]:
    return downsample if isinstance(downsample, tuple) else (downsample, downsample)
