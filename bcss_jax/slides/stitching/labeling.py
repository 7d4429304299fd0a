"""Labels a slide: windows are read, predicted, blended and written concurrently, and dropped when they are finished.

The queues between the stages are bounded: the reader processes are a few blocks ahead, the devices are a batch or two
ahead, and one thread writes tiles. Rows of tiles that have been written are not computed again: a run that was killed
resumes at the first missing row and writes the same bytes.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from bcss_jax.common.interruption import Interruption
from bcss_jax.common.progress import ProgressLine
from bcss_jax.common.timing import Stopwatch
from bcss_jax.errors import DataError, NumericalError, Preempted
from bcss_jax.inference.slide_model import WindowPredictor
from bcss_jax.slides.classes import BACKGROUND, UNREADABLE
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.stitching.blend import Blender, FinishedPixels
from bcss_jax.slides.stitching.block_cache import AHEAD, BlockCache
from bcss_jax.slides.stitching.seams import SeamCounter
from bcss_jax.slides.stitching.tile_writer import TileWriter, is_written, read_seams
from bcss_jax.slides.store.disagreement_map import CellSums
from bcss_jax.slides.store.tile_store import TileStore
from bcss_jax.slides.tissue.tissue_mask import Tissue
from bcss_jax.slides.windows import Windows, cut_window

if TYPE_CHECKING:  # storing probabilities and finding glass need packages that storing labels does not
    from bcss_jax.slides.stitching.slide_glass import SlideGlass
    from bcss_jax.slides.store.probability_store import ProbabilityStore

Event = tuple[int, int | None]  # the (row, column) of a window, or (row, None) where the row of windows ends
Prediction = Callable[[], Iterator[np.ndarray]]  # waits for the result of a `WindowPredictor`
T = TypeVar("T")

BATCHES_AHEAD = 2  # batches on the devices while the host blends
MAX_UNREADABLE = 0.01  # fraction of the tissue; with more unreadable tissue the slide fails


@dataclasses.dataclass
class LabelingSeconds(Stopwatch):
    """Seconds that the main thread spent on each stage, and those of the writing thread.

    Attributes:
      reading: waiting for pixels and cutting windows.
      computing: waiting for the devices, including compilation.
      blending: blending, and labeling finished pixels.
      waiting_for_writer: waiting because the writing thread was behind.
      writing: time of the writing thread, concurrent with the others.
    """

    reading: float = 0.0
    computing: float = 0.0
    blending: float = 0.0
    waiting_for_writer: float = 0.0
    writing: float = 0.0


# Long: every argument is described.
def label_slide(
    pool: ReaderPool,
    tissue: Tissue,
    windows: Windows,
    predictor: WindowPredictor,
    weights: np.ndarray,
    store: TileStore,
    probabilities: "ProbabilityStore | None",
    *,
    classes: int,
    readers: int,
    interruption: Interruption,
    label: str,
    glass: "SlideGlass | None" = None,
    with_disagreement: bool = False,
) -> LabelingSeconds:
    """Computes all labels that are not in the store.

    Args:
      pool: reads the slide.
      tissue: the tissue on the slide's grid; it determines which windows are computed.
      windows: the windows of that grid.
      predictor: the model.
      weights: weights of a window's pixels, which the predictor applies.
      store: receives the labels (values of `classes`), with the counts of `SeamCounter` next to each row of tiles.
      probabilities: receives the probabilities, or None if they are not requested.
      classes: K.
      readers: number of processes of the pool.
      interruption: active; it says when to stop.
      label: of the progress line and of messages.
      glass: the glass inside the tissue, which gets no label; None: all tissue is labeled.
      with_disagreement: the predictor gives the disagreement of the flips too, which is written next to each row.

    Returns:
      The time spent on each stage.

    Raises:
      NumericalError: the output of the model is not finite.
      DataError: the slide cannot be read, or more than `MAX_UNREADABLE` of its tissue is unreadable.
      StorageError: a file cannot be written.
      Preempted: the run was asked to stop; the same call resumes there.
    """
    seconds = LabelingSeconds()
    first_missing = _first_missing_row(store, probabilities, with_disagreement)
    if first_missing is None:
        return seconds
    # All pixel rows that one row of windows finishes are computed, and the one above, for the seams at their border.
    first_row_to_write = windows.row_that_finishes(first_missing * store.tile_size)
    first_row = windows.first_row_that_changes(max(windows.finished_rows(first_row_to_write)[0] - 1, 0))
    chosen = tissue.windows(windows)
    blocks = BlockCache(pool, tissue.grid, windows, chosen, first_row, AHEAD * readers)
    blender = Blender(windows, weights, classes + with_disagreement, first_row)
    cells = CellSums(store.tile_size, store.width) if with_disagreement else None
    tiles = TileWriter(store, probabilities, first_missing, classes, seconds, cells)
    labeler = _PixelLabeler(
        label, tissue, glass, blocks, windows, tiles, seconds, classes, first_row_to_write, probabilities is not None
    )
    done = int(chosen[:first_row].sum())
    with contextlib.closing(tiles), contextlib.closing(ProgressLine(label, int(chosen.sum()), done)) as line:
        for events, predicted in _delayed(_batches(blocks, windows, chosen, first_row, predictor, seconds)):
            predictions = predicted() if predicted else iter(())
            for row, column in events:
                if column is None:
                    with seconds.counted("blending"):
                        finished = blender.finish(row)
                else:
                    with seconds.counted("computing"):
                        prediction = _next(predictions, label, windows.corner(row, column))
                    with seconds.counted("blending"):
                        finished = blender.add(row, column, prediction)
                    done += 1
                for piece in finished:
                    labeler.add(row, piece)
                if column is None:
                    labeler.end(row)
            line.update(done)
            if interruption.requested:
                tiles.wait()
                raise Preempted(
                    f"{label}: stopped after {done} of {chosen.sum()} windows; the same command goes on from there"
                )
        tiles.wait()
    return seconds


def _next(predictions: Iterator[np.ndarray], label: str, corner: tuple[int, int]) -> np.ndarray:
    """Returns the next prediction; an error names the slide and the window."""
    try:
        return next(predictions)
    except NumericalError as error:
        raise NumericalError(f"{label}: window at x={corner[1]}, y={corner[0]}: {error}") from error


def too_unreadable(name: str) -> DataError:
    """Returns the error for a slide with more than `MAX_UNREADABLE` of its tissue unreadable."""
    return DataError(f"{name}: over {MAX_UNREADABLE:.0%} of the tissue cannot be decoded; fetch the slide again")


def seam_counts(store: TileStore) -> np.ndarray:
    """Returns the sum of the seam counts of all rows of tiles, int64 [2, 2, 2]."""
    counts = [read_seams(store, row) for row in range(store.rows)]
    return np.asarray(np.sum(counts, axis=0, dtype=np.int64))


def _first_missing_row(
    store: TileStore, probabilities: "ProbabilityStore | None", with_disagreement: bool
) -> int | None:
    """Returns the first row of tiles that was not written completely, or None."""
    rows = range(store.rows)
    return next((row for row in rows if not is_written(store, probabilities, row, with_disagreement)), None)


def _batches(
    blocks: BlockCache,
    windows: Windows,
    chosen: np.ndarray,
    first_row: int,
    predictor: WindowPredictor,
    seconds: LabelingSeconds,
) -> Iterator[tuple[list[Event], Prediction | None]]:
    """Starts the prediction of batches of windows; yields their events and their prediction, None without windows."""
    events: list[Event] = []
    images: list[np.ndarray] = []
    for row in range(first_row, windows.rows):
        for column in np.flatnonzero(chosen[row]).tolist():
            with seconds.counted("reading"):
                pixels, origin = blocks.window(row, column)
                corner, shape = windows.corner(row, column), (windows.height, windows.width)
                images.append(cut_window(pixels, corner, windows.size, origin, shape))
            events.append((row, column))
            blocks.forget(above=windows.corner(row + 1, 0)[0], left_of=corner[1])
            if len(images) == predictor.batch_size:
                yield events, _start(predictor, images, seconds)
                events, images = [], []
        events.append((row, None))
        blocks.forget(above=windows.corner(row + 1, 0)[0], left_of=windows.width)
    yield events, _start(predictor, images, seconds) if images else None


def _start(predictor: WindowPredictor, images: list[np.ndarray], seconds: LabelingSeconds) -> Prediction:
    with seconds.counted("computing"):  # the first call includes compilation
        return predictor(np.stack(images))


def _delayed(items: Iterable[T]) -> Iterator[T]:
    """Yields the same items, but each one after the next `BATCHES_AHEAD` items have been produced."""
    waiting = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > BATCHES_AHEAD:
            yield waiting.popleft()
    yield from waiting


class _PixelLabeler:
    """Labels finished pixels, measures seams in them, and passes them to the tile writer."""

    def __init__(
        self,
        name: str,
        tissue: Tissue,
        glass: "SlideGlass | None",
        blocks: BlockCache,
        windows: Windows,
        tiles: TileWriter,
        seconds: LabelingSeconds,
        classes: int,
        first_row_to_write: int,
        wants_steps: bool,
    ):
        self._name, self._tissue, self._glass, self._blocks, self._windows = name, tissue, glass, blocks, windows
        self._tiles, self._seconds = tiles, seconds
        self._classes, self._seams = classes, SeamCounter(windows, classes)
        self._first_row_to_write, self._wants_steps = first_row_to_write, wants_steps
        self._unreadable = 0
        self._max_unreadable = MAX_UNREADABLE * tissue.share * windows.width * windows.height

    def add(self, row: int, piece: FinishedPixels) -> None:
        """Adds some columns of the pixel rows that a row of windows finishes.

        Pixels from above the first row to write serve only to measure seams. Only their last pixel row is correct.
        """
        top, bottom = self._windows.finished_rows(row)
        if row < self._first_row_to_write - 1:
            return
        with self._seconds.counted("blending"):
            unreadable = self._blocks.unreadable_in(top, bottom, piece.left, piece.right)
            # Pixels without tissue have no label, and seams between them are not visible.
            is_tissue = self._tissue.pixels(top, bottom, piece.left, piece.right)
            is_missing = bool((is_tissue & (piece.weights == 0)).any())
            if self._glass is not None and is_tissue.any():
                is_glass = self._glass.pixels(top, bottom, piece.left, piece.right)
                is_tissue &= ~is_glass if unreadable is None else ~is_glass | unreadable
            disagreement = piece.sums[self._classes :]  # one plane, or none
            weights = np.where(is_tissue, piece.weights, 0)
            piece = piece._replace(weights=weights, sums=piece.sums[: self._classes])
            self._seams.add(top, piece)
            if row < self._first_row_to_write:
                return
            if is_missing:  # every pixel of tissue lies in the cell of a window
                raise RuntimeError(f"{self._name}: pixels of tissue from row {top} on were not computed")
            labels = self._labels_of(piece, unreadable)
            steps = _steps_of(piece, labels) if self._wants_steps else None
            disputed = _steps_of(piece._replace(sums=disagreement), labels)[0] if len(disagreement) else None
        self._tiles.add(top, piece.left, labels, steps, disputed)
        if self._unreadable > self._max_unreadable:
            raise too_unreadable(self._name)

    def end(self, row: int) -> None:
        """Ends a row of windows; all pixels that it finishes have been added."""
        top, bottom = self._windows.finished_rows(row)
        self._seams.end_row()
        self._blocks.forget_unreadable_above(bottom)
        if self._glass is not None:
            self._glass.forget_above(bottom)
        if row < self._first_row_to_write:
            self._seams.take()
        elif bottom > top:
            self._tiles.end(bottom, self._seams.take())

    def _labels_of(self, piece: FinishedPixels, unreadable: np.ndarray | None) -> np.ndarray:
        """Returns the value of the most probable class of each pixel, uint8 [h, w]; `unreadable` is bool [h, w]."""
        labels, best = np.ones(piece.weights.shape, np.uint8), piece.sums[0].copy()
        for value in range(1, len(piece.sums)):
            above = piece.sums[value] > best
            labels[above] = value + 1
            if value + 1 < len(piece.sums):
                np.copyto(best, piece.sums[value], where=above)
        computed = piece.weights > 0
        labels[~computed] = BACKGROUND
        if unreadable is not None:
            unreadable = unreadable & computed
            labels[unreadable] = UNREADABLE
            self._unreadable += int(unreadable.sum())
        return labels


def _steps_of(piece: FinishedPixels, labels: np.ndarray) -> np.ndarray:
    """Returns the planes of a piece in steps of 1/255, uint8 [K, h, w], or 0 where there is no label."""
    labeled = (labels != BACKGROUND) & (labels != UNREADABLE)
    steps = np.empty(piece.sums.shape, np.uint8)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.float32(255) / piece.weights
        for number, sums in enumerate(
            piece.sums
        ):  # class by class, because temporary floats take four times the memory
            steps[number] = np.where(labeled, np.rint(sums * scale), 0)
    return steps
