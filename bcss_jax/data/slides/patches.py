"""Cuts the annotated parts of a slide into patches at the model's resolution, read by the slide's reader processes."""

import collections
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bcss_jax.common.interruption import result_of, safe_point
from bcss_jax.data.resolution.check import differ, resolved_mpp
from bcss_jax.data.slides.annotated_slides import AnnotatedSlide
from bcss_jax.errors import DataError, UserError, printable
from bcss_jax.labels import LabelScheme
from bcss_jax.slides.annotations.slide_labels import open_slide_labels
from bcss_jax.slides.grid import Grid, grid_of
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.tissue.tissue_by_color import tissue_by_color

log = logging.getLogger(__name__)

LABELED_AT_ONCE = 8  # patches along each side of the blocks in which annotations are drawn
THUMBNAIL = 1024  # longest side in pixels
LARGEST_FOR_THUMBNAIL = 8192  # longest side of the coarsest level from which a thumbnail is made
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
        with contextlib.ExitStack() as stack:
            pool = self._pool = stack.enter_context(ReaderPool(slide.slide, readers))
            found = self._resolution(mpp)
            self.grid: Grid = grid_of(pool.info.width, pool.info.height, found, mpp)
            self._labels = stack.enter_context(
                open_slide_labels(
                    slide.annotations,
                    scheme,
                    (pool.info.width, pool.info.height),
                    mpp=found,
                    origin=pool.info.bounds[:2] if pool.info.bounds else (0, 0),
                    region=region or None,
                    tissue=self._tissue(found),
                )
            )
            self._stack = stack.pop_all()

    def _resolution(self, mpp: float) -> tuple[float, float]:
        """Returns the um per pixel of level 0, and warns of what is odd in the slide."""
        slide, info, name = self._slide, self._pool.info, printable(self._slide.slide.name)
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
        return found

    def _tissue(self, mpp: tuple[float, float]) -> np.ndarray | None:
        """Returns where the slide shows tissue: bool [h, w]; None if a thumbnail would take long to read."""
        info = self._pool.info
        if max(info.levels[-1][:2]) > LARGEST_FOR_THUMBNAIL:
            return None
        thumbnail = self._pool.thumbnail(THUMBNAIL)
        height, width = thumbnail.pixels.shape[:2]
        return tissue_by_color(
            thumbnail.pixels, (mpp[0] * info.width / width, mpp[1] * info.height / height), thumbnail.unreadable
        )

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
        """Ends the reader processes and closes the annotations."""
        self._stack.close()

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
                width, height = xs[-1] - xs[0] + size, ys[-1] - ys[0] + size
                if not self._may_have_truth(xs[0], ys[0], width, height):
                    self.without_truth += len(xs) * len(ys)
                    continue
                across, down = self.grid.scale
                labels = self._labels.labels(xs[0] * across, ys[0] * down, width, height, (across, down))
                has_truth = evaluated[labels]
                for y in ys:
                    for x in xs:
                        window = np.s_[y - ys[0] : y - ys[0] + size, x - xs[0] : x - xs[0] + size]
                        if has_truth[window].any():
                            yield Position(x, y, labels[window].copy())
                        else:
                            self.without_truth += 1

    def _may_have_truth(self, x: int, y: int, width: int, height: int) -> bool:
        """Returns whether a block of the grid meets one of the boxes that have truth."""
        (across, down), boxes = self.grid.scale, self._labels.boxes
        left, top, right, bottom = x * across, y * down, (x + width) * across, (y + height) * down
        meets = (boxes[:, 0] < right) & (boxes[:, 2] > left) & (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
        return bool(meets.any())

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
