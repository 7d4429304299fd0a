"""Cuts the annotated parts of a slide into patches at the model's resolution, read by the slide's reader processes."""

import collections
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bcss_jax.common.interruption import result_of, safe_point
from bcss_jax.data.resolution.check import differ, resolved_mpp
from bcss_jax.data.slides.annotated_slides import AnnotatedSlide
from bcss_jax.errors import DataError, UserError, printable
from bcss_jax.labels import LabelScheme
from bcss_jax.slides.annotations.label_source import LabelSource, open_labels
from bcss_jax.slides.grid import Grid, grid_of
from bcss_jax.slides.reading.reader_pool import ReaderPool

log = logging.getLogger(__name__)

LABELED_AT_ONCE = 8  # patches along each side of the blocks in which annotations are drawn
REQUESTED = 4  # patches that are requested ahead, for each reader process


class Position(NamedTuple):
    """Where a patch with truth lies.

    Attributes:
      x: left edge in pixels of the slide's grid.
      y: top edge in pixels of the slide's grid.
      label: uint8 [size, size], labels of the scheme.
    """

    x: int
    y: int
    label: np.ndarray


class Patch(NamedTuple):
    """A patch of a slide.

    Attributes:
      x: left edge in pixels of level 0.
      y: top edge in pixels of level 0.
      image: uint8 [size, size, 3]; None if the slide cannot be decoded there.
      label: uint8 [size, size], labels of the scheme.
    """

    x: int
    y: int
    image: np.ndarray | None
    label: np.ndarray


class SlidePatches:
    """A slide that is open, and its patches with truth. As a context manager, it ends the processes on exit.

    Attributes:
      without_truth: number of patches that were left out so far because no pixel has a class that is evaluated.
    """

    def __init__(self, slide: AnnotatedSlide, *, mpp: float, scheme: LabelScheme, region: str = "", readers: int = 1):
        """Opens the slide and reads its annotations.

        Args:
          slide: the files.
          mpp: um per pixel of the patches.
          scheme: the labels.
          region: name of the annotations that bound what is annotated exhaustively; "": none.
          readers: number of processes that read at once.

        Raises:
          DataError: the slide or the annotations cannot be read, or do not fit each other.
        """
        self._slide, self._scheme, self._readers = slide, scheme, readers
        self.without_truth = 0
        name = printable(slide.slide.name)
        self._pool = ReaderPool(slide.slide, readers)
        try:
            info = self._pool.info
            for note in info.notes:
                log.warning("%s: %s", name, note)
            found = _with_remedies_of_lists(lambda warn: resolved_mpp(slide.slide, info.stated_mpp, slide.mpp, warn))
            if found[0] > mpp and differ(found[0], mpp):
                log.warning(
                    "%s: scanned at %.4g um per pixel, patches of %g um per pixel are enlarged from it and blurred",
                    name,
                    found[0],
                    mpp,
                )
            self.grid: Grid = grid_of(info.width, info.height, found, mpp)
            self._labels: LabelSource = open_labels(slide.annotations, info, found, scheme, region=region)
        except BaseException:
            self._pool.close()
            raise

    def patches(self, size: int, stride: int) -> Iterator[Patch]:
        """Yields the patches with truth, by blocks of rows and columns.

        Args:
          size: side of the patches in pixels.
          stride: distance between patches in pixels. The last patch of a row or column ends at the slide's edge.

        Raises:
          DataError: the slide is smaller than a patch.
        """
        grid = self.grid
        if min(grid.width, grid.height) < size:
            raise DataError(
                f"{printable(self._slide.slide)}: expected at least {size}x{size} pixels at {grid.mpp:g} um per pixel, "
                f"found {grid.width}x{grid.height}; lower --config.data.patch_size or leave the slide out"
            )
        pending = collections.deque()
        try:
            for position in self._positions(size, stride):
                safe_point()
                pending.append((position, self._pool.submit(grid, position.x, position.y, size, size)))
                if len(pending) > REQUESTED * self._readers:
                    yield self._read(*pending.popleft())
            while pending:
                yield self._read(*pending.popleft())
        finally:
            for _, future in pending:
                future.cancel()

    def close(self) -> None:
        """Ends the reader processes."""
        self._pool.close()

    def __enter__(self) -> "SlidePatches":
        """Returns itself."""
        return self

    def __exit__(self, *_) -> None:
        """Closes the slide."""
        self.close()

    def _positions(self, size: int, stride: int) -> Iterator[Position]:
        """Yields the patches with truth. Annotations are drawn for several neighboring patches at once."""
        evaluated = np.zeros(256, bool)
        evaluated[list(self._scheme.evaluated)] = True
        columns, rows = (_starts(side, size, stride) for side in (self.grid.width, self.grid.height))
        for ys in _groups(rows):
            for xs in _groups(columns):
                box = xs[0], ys[0], xs[-1] - xs[0] + size, ys[-1] - ys[0] + size
                labels = self._labels.labels(self.grid, *box)
                has_truth = evaluated[labels]
                for y in ys:
                    for x in xs:
                        window = np.s_[y - ys[0] : y - ys[0] + size, x - xs[0] : x - xs[0] + size]
                        if has_truth[window].any():
                            yield Position(x, y, labels[window].copy())
                        else:
                            self.without_truth += 1

    def _read(self, position: Position, future) -> Patch:
        try:
            block = result_of(future)
        except DataError as error:
            log.warning("%s", error)
            image = None
        else:
            image = None if block.unreadable is not None else block.pixels
        x, y = (round(start * along) for start, along in zip(position[:2], self.grid.scale, strict=True))
        return Patch(x, y, image, position.label)


def _starts(length: int, size: int, stride: int) -> list[int]:
    """Returns where patches start along an axis; the last one ends at the edge."""
    starts = list(range(0, length - size + 1, stride))
    return starts if starts[-1] == length - size else [*starts, length - size]


def _groups(starts: Sequence[int]) -> list[Sequence[int]]:
    return [starts[first : first + LABELED_AT_ONCE] for first in range(0, len(starts), LABELED_AT_ONCE)]


def _with_remedies_of_lists(resolve: Callable) -> tuple[float, float]:
    """Calls `resolve` with a function for warnings; errors and warnings name the column of a list, not a flag."""

    def in_list(line: str) -> str:
        column = "the column mpp of --config.data.list"
        return line.replace("(--mpp, or the list)", f"({column})").replace("--mpp", column)

    try:
        return resolve(lambda line: log.warning("%s", in_list(line)))
    except UserError as error:
        raise DataError(in_list(str(error))) from error
