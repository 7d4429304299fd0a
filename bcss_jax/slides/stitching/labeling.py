"""Labels of a slide: windows are read, computed, blended and written at the same time, and forgotten when finished.

Each stage works on bounded queues: reader processes are a few blocks ahead, the devices a batch or two, and one thread
writes rows of tiles. What has been written is not computed again: a run that was killed goes on at the first row of tiles
that is missing, and gives the same bytes.
"""

import collections
import contextlib
import dataclasses
import json

import numpy as np

from bcss_jax.common.interruption import Interruption
from bcss_jax.common.progress import ProgressLine
from bcss_jax.common.timing import Stopwatch
from bcss_jax.errors import DataError, Preempted
from bcss_jax.inference.slide_model import WindowPredictor
from bcss_jax.slides.classes import BACKGROUND, UNREADABLE
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.stitching.blend import Blender, FinishedPixels
from bcss_jax.slides.stitching.block_cache import AHEAD, BlockCache
from bcss_jax.slides.stitching.seams import SeamCounter
from bcss_jax.slides.stitching.tile_writer import TileWriter, seams_file
from bcss_jax.slides.store.probability_store import ProbabilityStore
from bcss_jax.slides.store.tile_store import TileStore
from bcss_jax.slides.tissue.tissue_mask import Tissue
from bcss_jax.slides.windows import Windows, cut_window

BATCHES_AHEAD = 2  # on the devices while the host blends
MAX_UNREADABLE = 0.01  # share of the tissue; with more the slide fails


@dataclasses.dataclass
class LabelingSeconds(Stopwatch):
    """What the main thread's time went into, and the writer's beside it.

    Attributes:
      reading: waiting for pixels, and cutting windows.
      computing: waiting for the devices, compilation included.
      blending: adding up, and labels of finished pixels.
      waiting_for_writer: the writer was behind.
      writing: of the writing thread, at the same time as the others.
    """

    reading: float = 0.0
    computing: float = 0.0
    blending: float = 0.0
    waiting_for_writer: float = 0.0
    writing: float = 0.0


def label_slide(
    pool: ReaderPool,
    tissue: Tissue,
    windows: Windows,
    predictor: WindowPredictor,
    weights: np.ndarray,
    store: TileStore,
    probabilities: ProbabilityStore | None,
    *,
    classes: int,
    readers: int,
    interruption: Interruption,
    label: str,
) -> LabelingSeconds:
    """Computes all labels that are not in the store yet.

    Args:
      pool: reads the slide.
      tissue: what to compute, on the slide's grid.
      windows: the windows of that grid.
      predictor: the model.
      weights: of a window's pixels, those that the predictor applies.
      store: gets the labels (values of `classes`), and the counts of `SeamCounter` beside each row of tiles.
      probabilities: gets the probabilities, if they are wanted.
      classes: K.
      readers: processes of the pool.
      interruption: active; tells when to stop.
      label: of the progress line.

    Raises:
      DataError: the slide cannot be read, or more than `MAX_UNREADABLE` of its tissue.
      StorageError: something cannot be written.
      Preempted: asked to stop; the same call goes on from there.
    """
    seconds = LabelingSeconds()
    missing = [row for row in range(store.rows) if not (store.has_row(row) and seams_file(store, row).exists())]
    if not missing:
        return seconds
    # All pixel rows that are finished together with the first one that is missing, and the row above them.
    again = windows.row_that_finishes(missing[0] * store.tile_size)
    start = windows.first_row_that_changes(max(windows.finished_rows(again)[0] - 1, 0))
    chosen = tissue.windows(windows)
    blocks = BlockCache(pool, tissue.grid, windows, chosen, start, AHEAD * readers)
    blender = Blender(windows, weights, classes, start)
    tiles = TileWriter(store, probabilities, missing[0], classes, seconds)
    seams, wants_steps = SeamCounter(windows, classes), probabilities is not None
    rows = _Rows(label, tissue, blocks, seams, windows, again, tiles, wants_steps, seconds)
    with (
        contextlib.closing(tiles),
        contextlib.closing(ProgressLine(label, int(chosen.sum()), int(chosen[:start].sum()))) as line,
    ):
        done = int(chosen[:start].sum())
        for events, predicted in _ahead(_batches(blocks, windows, chosen, start, predictor, seconds)):
            weighted = predicted() if predicted else None
            for row, column in events:
                with seconds.counted("computing"):
                    window = None if column is None else next(weighted)
                with seconds.counted("blending"):
                    finished = blender.finish(row) if column is None else blender.add(row, column, window)
                for piece in finished:
                    rows.add(row, piece)
                if column is None:
                    rows.end(row)
                else:
                    done += 1
            line.update(done)
            if interruption.requested:
                tiles.wait()
                raise Preempted(f"{label}: stopped after {done} of {chosen.sum()} windows; the same command goes on")
        tiles.wait()
    return seconds


def too_unreadable(name: str) -> DataError:
    """The error of a slide of whose tissue more than `MAX_UNREADABLE` cannot be decoded."""
    return DataError(f"{name}: over {MAX_UNREADABLE:.0%} of the tissue cannot be decoded; fetch the slide again")


def seam_counts(store: TileStore) -> np.ndarray:
    """The counts of `SeamCounter` of all rows of tiles, int64 [2, 2, 2]."""
    return np.sum([json.loads(seams_file(store, row).read_text()) for row in range(store.rows)], axis=0, dtype=np.int64)


def _batches(blocks, windows, chosen, start, predictor, seconds):
    """(events, prediction) of each batch; an event is the (row, column) of a window, or (row, None): the row ends."""
    events, images = [], []
    for row in range(start, windows.rows):
        for column in np.flatnonzero(chosen[row]).tolist():
            with seconds.counted("reading"):
                pixels, origin = blocks.window(row, column)
                corner, shape = windows.corner(row, column), (windows.height, windows.width)
                images.append(cut_window(pixels, corner, windows.size, origin, shape))
            events.append((row, column))
            blocks.forget(above=windows.corner(row + 1, 0)[0], left_of=corner[1])
            if len(images) == predictor.batch_size:
                yield events, _started(predictor, images, seconds)
                events, images = [], []
        events.append((row, None))
        blocks.forget(above=windows.corner(row + 1, 0)[0], left_of=windows.width)
    yield events, _started(predictor, images, seconds) if images else None


def _started(predictor, images, seconds):
    with seconds.counted("computing"):  # the first time it is compiled
        return predictor(np.stack(images))


def _ahead(items):
    """The same items, each given when `BATCHES_AHEAD` more have been started."""
    behind = collections.deque()
    for item in items:
        behind.append(item)
        if len(behind) > BATCHES_AHEAD:
            yield behind.popleft()
    yield from behind


class _Rows:
    """Turns finished pixels into labels."""

    def __init__(self, name, tissue, blocks, seams, windows, again, tiles, wants_steps, seconds):
        self._name, self._tissue, self._blocks, self._seams, self._seconds = name, tissue, blocks, seams, seconds
        self._windows, self._again, self._tiles, self._wants_steps = windows, again, tiles, wants_steps
        self._unreadable = 0
        self._bearable = MAX_UNREADABLE * tissue.share * windows.width * windows.height

    def add(self, row: int, piece: FinishedPixels) -> None:
        """Takes some columns of what a row of windows finishes. Of the row above the first one only its end is right."""
        top, bottom = self._windows.finished_rows(row)
        if row < self._again - 1:
            return
        with self._seconds.counted("blending"):
            # What is not wanted has no label, and nobody sees seams there.
            wanted = self._tissue.pixels(top, bottom, piece.left, piece.right)
            piece = piece._replace(weights=np.where(wanted, piece.weights, 0))
            self._seams.add(top, piece)
            if row < self._again:
                return
            labels = self._labels_of(piece, top, bottom)
            steps = _steps_of(piece, labels) if self._wants_steps else None
        self._tiles.add(top, piece.left, labels, steps)
        if self._unreadable > self._bearable:
            raise too_unreadable(self._name)

    def end(self, row: int) -> None:
        """All that a row of windows finishes is there."""
        top, bottom = self._windows.finished_rows(row)
        self._seams.end_row()
        self._blocks.forget_unreadable_above(bottom)
        if row < self._again:
            self._seams.take()
        elif bottom > top:
            self._tiles.end(bottom, self._seams.take())

    def _labels_of(self, piece, top, end):
        labels, best = np.ones(piece.weights.shape, np.uint8), piece.sums[0].copy()
        for value in range(1, len(piece.sums)):
            above = piece.sums[value] > best
            labels[above] = value + 1
            if value + 1 < len(piece.sums):
                np.copyto(best, piece.sums[value], where=above)
        wanted = piece.weights > 0
        labels[~wanted] = BACKGROUND
        unreadable = self._blocks.unreadable_in(top, end, piece.left, piece.right)
        if unreadable is not None:
            unreadable &= wanted
            labels[unreadable] = UNREADABLE
            self._unreadable += int(unreadable.sum())
        return labels


def _steps_of(piece, labels):
    """Probabilities in steps of 1/255, uint8 [K, h, w], 0 where no label is."""
    labeled = (labels != BACKGROUND) & (labels != UNREADABLE)
    steps = np.empty(piece.sums.shape, np.uint8)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.float32(255) / piece.weights
        for sums, step in zip(
            piece.sums, steps, strict=True
        ):  # one by one: what lies between takes four times the memory
            step[...] = np.where(labeled, np.rint(sums * scale), 0)
    return steps
