"""Labels of a slide: windows are read, computed, blended and written at the same time, and forgotten when finished.

Each stage works on bounded queues: reader processes are a few blocks ahead, the devices a batch or two, and one thread
writes rows of tiles. What has been written is not computed again: a run that was killed goes on at the first row of tiles
that is missing, and gives the same bytes.
"""

import collections
import contextlib
import dataclasses
import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bcss_jax.errors import DataError, Preempted
from bcss_jax.interruption import Interruption
from bcss_jax.progress import ProgressLine
from bcss_jax.slides.blend import Blender, Finished
from bcss_jax.slides.blocks import AHEAD, Blocks
from bcss_jax.slides.classes import BACKGROUND, UNREADABLE
from bcss_jax.slides.probability_store import ProbabilityStore
from bcss_jax.slides.reader_pool import ReaderPool
from bcss_jax.slides.seams import Seams
from bcss_jax.slides.slide_model import WindowPredictor
from bcss_jax.slides.tile_store import TileStore
from bcss_jax.slides.tissue import Tissue
from bcss_jax.slides.windows import Windows, cut
from bcss_jax.stopwatch import Stopwatch
from bcss_jax.workdir import write_text

BATCHES_AHEAD = 2  # on the devices while the host blends
ROWS_BEHIND = 2  # of tiles, waiting to be written; one with probabilities, which are large
MAX_UNREADABLE = 0.01  # share of the tissue; with more the slide fails


@dataclasses.dataclass
class Seconds(Stopwatch):
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
) -> Seconds:
    """Computes all labels that are not in the store yet.

    Args:
      pool: reads the slide.
      tissue: what to compute, on the slide's grid.
      windows: the windows of that grid.
      predictor: the model.
      weights: of a window's pixels, those that the predictor applies.
      store: gets the labels (values of `classes`), and the counts of `Seams` beside each row of tiles.
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
    seconds = Seconds()
    missing = [row for row in range(store.rows) if not (store.has_row(row) and _seams_file(store, row).exists())]
    if not missing:
        return seconds
    # All pixel rows that are finished together with the first one that is missing, and the row above them.
    again = windows.row_that_finishes(missing[0] * store.tile_size)
    start = windows.first_row_that_changes(max(windows.finished_rows(again)[0] - 1, 0))
    chosen = tissue.windows(windows)
    blocks = Blocks(pool, tissue.grid, windows, chosen, start, AHEAD * readers)
    blender = Blender(windows, weights, classes, start)
    with (
        _Rows(
            label,
            store,
            probabilities,
            tissue,
            blocks,
            Seams(windows, classes),
            windows,
            classes,
            again,
            missing[0],
            seconds,
        ) as rows,
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
                rows.wait()
                raise Preempted(f"{label}: stopped after {done} of {chosen.sum()} windows; the same command goes on")
    return seconds


def too_unreadable(name: str) -> DataError:
    """The error of a slide of whose tissue more than `MAX_UNREADABLE` cannot be decoded."""
    return DataError(f"{name}: over {MAX_UNREADABLE:.0%} of the tissue cannot be decoded; fetch the slide again")


def seam_counts(store: TileStore) -> np.ndarray:
    """The counts of `Seams` of all rows of tiles, int64 [2, 2]."""
    return np.sum(
        [json.loads(_seams_file(store, row).read_text()) for row in range(store.rows)], axis=0, dtype=np.int64
    )


def _batches(blocks, windows, chosen, start, predictor, seconds):
    """(events, prediction) of each batch; an event is the (row, column) of a window, or (row, None): the row ends."""
    events, images = [], []
    for row in range(start, windows.rows):
        for column in np.flatnonzero(chosen[row]).tolist():
            with seconds.counted("reading"):
                pixels, origin = blocks.window(row, column)
                corner, shape = windows.corner(row, column), (windows.height, windows.width)
                images.append(cut(pixels, corner, windows.size, origin, shape))
            events.append((row, column))
            if len(images) == predictor.batch_size:
                yield events, _started(predictor, images, seconds)
                events, images = [], []
        events.append((row, None))
        if row + 1 < windows.rows:
            blocks.forget_above(windows.corner(row + 1, 0)[0])
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
    """Turns finished pixels into rows of tiles, and has them written by a thread."""

    def __init__(
        self, name, store, probabilities, tissue, blocks, seams, windows, classes, again, first_tiles, seconds
    ):
        self._name, self._store, self._probabilities = name, store, probabilities
        self._tissue, self._blocks, self._seams, self._windows = tissue, blocks, seams, windows
        self._classes, self._again, self._seconds = classes, again, seconds
        self._unreadable = 0
        self._bearable = MAX_UNREADABLE * tissue.share * store.width * store.height
        self._writer = ThreadPoolExecutor(1)
        self._writing: collections.deque[Future] = collections.deque()
        self._first_tiles = first_tiles  # the first row of tiles to write
        self._counts: dict[int, np.ndarray] = {}  # of seams, by row of tiles
        # By row of tiles: labels, probabilities in steps of 1/255 if they are wanted, and the columns of tiles with labels.
        self._tiles: dict[int, tuple] = {}

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.wait()
        self._writer.shutdown(cancel_futures=True)

    def wait(self) -> None:
        """Returns when what is complete is written."""
        self._settle(0)

    def add(self, row: int, piece: Finished) -> None:
        """Takes some columns of what a row of windows finishes. Of the row above the first one only its end is right."""
        top, bottom = self._windows.finished_rows(row)
        if row < self._again - 1:
            return
        self._seams.add(top, piece)
        if row < self._again:
            return
        labels, columns = self._labels_of(piece, top, bottom), slice(piece.left, piece.right)
        steps = None
        if self._probabilities is not None:
            with np.errstate(invalid="ignore", divide="ignore"):
                steps = np.rint(piece.sums * (np.float32(255) / piece.weights))
            steps = np.where((labels != BACKGROUND) & (labels != UNREADABLE), steps, 0).astype(np.uint8)
        size = self._store.tile_size
        for number, here, there in self._parts(top, bottom):
            whole, whole_steps, touched = self._buffers(number)
            touched.update(range(piece.left // size, (piece.right - 1) // size + 1))
            whole[there, columns] = labels[here]
            if steps is not None:
                whole_steps[:, there, columns] = steps[:, here]
        if self._unreadable > self._bearable:
            raise too_unreadable(self._name)

    def end(self, row: int) -> None:
        """All that a row of windows finishes is there: rows of tiles that are complete are written."""
        top, bottom = self._windows.finished_rows(row)
        self._seams.end_row()
        self._blocks.forget_unreadable_above(bottom)
        if row < self._again:
            self._seams.take()
            return
        if bottom == top:
            return
        # The row of tiles that these pixel rows end in is given the counts of all of them.
        last = (bottom - 1) // self._store.tile_size
        self._counts[last] = self._counts.get(last, 0) + np.asarray(self._seams.take())
        for number, _, _ in self._parts(top, bottom):
            buffers = self._buffers(number)
            if (number + 1) * self._store.tile_size <= bottom or bottom == self._store.height:
                del self._tiles[number]
                if number >= self._first_tiles:
                    self._write_soon(number, *buffers, self._counts.pop(number, np.zeros((2, 2), np.int64)).tolist())

    def _parts(self, top, bottom):
        """(row of tiles, pixel rows of those from `top` on, pixel rows of the row of tiles) of each that they lie in."""
        size = self._store.tile_size
        for number in range(top // size, (bottom - 1) // size + 1):
            first, end = max(top, number * size), min(bottom, (number + 1) * size)
            yield number, slice(first - top, end - top), slice(first - number * size, end - number * size)

    def _labels_of(self, piece, top, end):
        labels, best = np.ones(piece.weights.shape, np.uint8), piece.sums[0].copy()
        for value in range(1, self._classes):
            above = piece.sums[value] > best
            labels[above] = value + 1
            if value + 1 < self._classes:
                np.copyto(best, piece.sums[value], where=above)
        wanted = (piece.weights > 0) & self._tissue.pixels(top, end, piece.left, piece.right)
        labels[~wanted] = BACKGROUND
        unreadable = self._blocks.unreadable_in(top, end, piece.left, piece.right)
        if unreadable is not None:
            unreadable &= wanted
            labels[unreadable] = UNREADABLE
            self._unreadable += int(unreadable.sum())
        return labels

    def _buffers(self, number):
        """Labels, probabilities and columns with labels of a row of tiles in the making; what stays zero costs no memory."""
        if number not in self._tiles:
            shape = self._store.row_height(number), self._store.width
            steps = None if self._probabilities is None else np.zeros((self._classes, *shape), np.uint8)
            self._tiles[number] = np.zeros(shape, np.uint8), steps, set()
        return self._tiles[number]

    def _write_soon(self, number, labels, steps, touched, seams):
        with self._seconds.counted("waiting_for_writer"):
            self._settle(ROWS_BEHIND - 1 if steps is None else 0)
        self._writing.append(self._writer.submit(self._write, number, labels, steps, touched, seams))

    def _write(self, row, labels, steps, touched, seams):
        size = self._store.tile_size
        tiles = [labels[:, c * size : (c + 1) * size] if c in touched else 0 for c in range(self._store.columns)]
        with self._seconds.counted("writing"):
            write_text(_seams_file(self._store, row), json.dumps(seams))
            if steps is not None:
                self._probabilities.write_rows(row, steps)
            self._store.write_tiles(row, tiles)  # last: it says that the row is done

    def _settle(self, most):
        while len(self._writing) > most:
            self._writing.popleft().result()


def _seams_file(store: TileStore, row: int) -> Path:
    return store.folder / f"seams-{row:06d}.json"
