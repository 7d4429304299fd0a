"""Runs a model over one split of a data set and accumulates the results of each image.

The devices count pixels. Meanwhile threads on the host measure the distances between outlines (HD95 and NSD).
"""

import collections
import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from bcss_jax.common.interruption import Interruption, safe_point
from bcss_jax.common.progress import ProgressLine
from bcss_jax.common.timing import Stopwatch
from bcss_jax.errors import NumericalError, Preempted
from bcss_jax.evaluation.image_counts import ImageCounter
from bcss_jax.evaluation.statistics.surface_distance import surface_scores
from bcss_jax.inference.predict import NOT_FINITE_REMEDY

TOLERANCE_UM = 2.0  # of NSD: a fraction of a cell, and about the precision of a drawn tissue outline
SAVE_EVERY = 60.0  # seconds between saves of the progress
COUNTED = "stopped after the images were counted; run the same command again to resume"
MAX_PENDING_BATCHES = 2  # batches that wait for their outlines; more would fill the memory
SAMPLED_PIXELS = 200_000  # pixels that the temperature is fitted on, over all images
SAMPLED_PER_IMAGE = (16, 1024)  # fewest and most sampled pixels of one image
FIT_IMAGES = 256  # images of another split that the temperature is fitted on

Arrays = dict[str, np.ndarray]  # one entry per image, along the first axis


@dataclasses.dataclass(frozen=True)
class EvaluationSplit:
    """The images of one split of a data set, in a fixed order.

    Attributes:
      name: "train", "val" or "test".
      data: description of the data set (`tfrecords.PreparedData.describe`).
      table: properties of each image, by its index.
      batches_from: returns the batches from the n-th image on, as `input_pipeline.eval_batches` does.
      batches_of: returns batches of the images with the given indices, in the same order.
    """

    name: str
    data: dict
    table: Sequence[dict]
    batches_from: Callable[[int], Iterator[dict]]
    batches_of: Callable[[Sequence[int]], Iterator[dict]]


@dataclasses.dataclass
class EvaluationSeconds(Stopwatch):
    """Where the time of an evaluation went. Outlines that were measured during other work take no time here.

    Attributes:
      input: waiting for images.
      compute: waiting for the devices, including compilation.
      metrics: waiting for outlines, and computing scores.
    """

    input: float = 0.0
    compute: float = 0.0
    metrics: float = 0.0


def accumulate(
    counter: ImageCounter,
    split: EvaluationSplit,
    seconds: EvaluationSeconds,
    *,
    saved: Arrays,
    save: Callable[[Arrays], None],
    interruption: Interruption,
    label: str,
) -> Arrays:
    """Runs the model over all images of a split.

    Args:
      counter: the model.
      split: the images.
      seconds: stopwatch, which is updated.
      saved: what `save` received earlier, to resume from; empty to start at the first image.
      save: stores the results so far. It is called every `SAVE_EVERY` seconds and on a request to stop.
      interruption: active; says when to stop.
      label: text of the progress line.

    Returns:
      Results of each image, in the order of the split: `index` int64 [N]; `confusion`, `pixels`, `correct`,
      `confidence`, `logits`, `labels` as in `image_counts.count_pixels`; `hd95_um` and `nsd` float64 [N, K].

    Raises:
      NumericalError: The output for an image is not finite.
      Preempted: Stopped on request, after `save` was called with the results so far.
      UserError: The batches raised it.
    """
    ready = [saved] if saved else []
    done, last_save = len(saved["index"]) if saved else 0, time.perf_counter()
    pending = collections.deque()  # (counts, futures of the outlines) of each batch
    outlines = functools.partial(_outlines, counter.scheme, split.table)

    def finish_pending(keep: int) -> None:
        while len(pending) > keep:
            arrays, futures = pending.popleft()
            with seconds.counted("metrics"):
                hd95_um, nsd = zip(*(future.result() for future in futures), strict=True)
            ready.append(arrays | {"hd95_um": np.stack(hd95_um), "nsd": np.stack(nsd)})

    def save_progress() -> None:
        finish_pending(keep=0)
        if ready:
            save(concatenate(ready))

    with (
        _saved_if_stopped(save_progress),
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        contextlib.closing(ProgressLine(label, len(split.table), done)) as line,
    ):
        for batch, arrays in _count_batches(counter, split.batches_from(done), split.table, seconds):
            predictions = arrays.pop("predictions")
            images = zip(arrays["index"], batch["label"][batch["valid"]], predictions, strict=True)
            pending.append((arrays, [pool.submit(outlines, *image) for image in images]))
            done += len(predictions)
            finish_pending(keep=MAX_PENDING_BATCHES)
            line.update(done)
            if time.perf_counter() - last_save > SAVE_EVERY:
                save_progress()
                last_save = time.perf_counter()
            if interruption.requested:
                raise Preempted(
                    f"{label}: stopped after {done} of {len(split.table)} images; run the same command again to resume"
                )
        finish_pending(keep=0)
    return concatenate(ready)


@contextlib.contextmanager
def _saved_if_stopped(save_progress: Callable[[], None]) -> Iterator[None]:
    """Saves if the block is stopped, here or in the middle of a batch."""
    try:
        yield
    except Preempted:
        save_progress()
        raise


def predict_images(
    counter: ImageCounter, split: EvaluationSplit, indices: Sequence[int]
) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns image, ground truth and prediction of a few images, by their index."""
    found = {}
    for batch, arrays in _count_batches(counter, split.batches_of(indices), split.table, EvaluationSeconds()):
        safe_point(COUNTED)
        images, labels = batch["image"][batch["valid"]], batch["label"][batch["valid"]]
        for index, *pictures in zip(arrays["index"].tolist(), images, labels, arrays["predictions"], strict=True):
            found[index] = tuple(pictures)
    return found


def sample_logits(counter: ImageCounter, split: EvaluationSplit, seconds: EvaluationSeconds) -> Arrays:
    """Returns `logits` and `labels`, as in `accumulate`, of the first `FIT_IMAGES` images.

    Rounds the number of images up to whole batches.
    """
    sampled = []
    images = min(len(split.table), FIT_IMAGES)
    for _, arrays in _count_batches(counter, split.batches_from(0), split.table, seconds, images):
        safe_point(COUNTED)
        sampled.append({name: arrays[name] for name in ("logits", "labels")})
        if sum(len(each["labels"]) for each in sampled) >= FIT_IMAGES:
            break
    return concatenate(sampled)


def _count_batches(counter, batches, table, seconds, images=None):
    """Yields each batch and the counts of its real images, while the devices work on the next batch.

    `images` is the number of images that pixels are sampled from; None: all of the table.
    """
    previous, images = None, len(table) if images is None else images
    batches = iter(batches)
    while True:
        with seconds.counted("input"):
            batch = next(batches, None)
        started = None
        if batch is not None:
            height, width = batch["label"].shape[1:]
            positions = _sample_positions(batch["index"], height * width, images)
            with seconds.counted("compute"):
                started = counter(batch["image"], batch["label"], positions)
        if previous is not None:
            with seconds.counted("compute"):
                arrays = jax.device_get(previous[1])
            valid = previous[0]["valid"]
            index = previous[0]["index"][valid]
            finite = arrays.pop("finite")[valid]
            if not finite.all():
                key = table[int(index[np.flatnonzero(~finite)[0]])]["key"]
                raise NumericalError(f"{key}: the output of the network is not finite; {NOT_FINITE_REMEDY}")
            yield previous[0], {"index": index} | {name: each[valid] for name, each in arrays.items()}
        if batch is None:
            return
        previous = batch, started


def _sample_positions(indices, size, images):
    """Returns random pixel positions in the flattened images, int32 [N, P].

    They depend only on the index of the image, so they are the same in every evaluation.
    """
    number = int(np.clip(SAMPLED_PIXELS // max(images, 1), *SAMPLED_PER_IMAGE))
    draws = [np.random.Generator(np.random.PCG64(max(int(index), 0))).integers(0, size, number) for index in indices]
    return np.stack(draws).astype(np.int32)


def _outlines(scheme, table, index, truth, prediction):
    """Returns HD95 and NSD of one image, each [K]."""
    mpp = table[int(index)]["mpp"]
    return surface_scores(truth, prediction, scheme.evaluated, scheme.ignore_index, mpp=mpp, tolerance_um=TOLERANCE_UM)


def concatenate(parts: Sequence[Arrays]) -> Arrays:
    """Returns the results of several groups of images as one."""
    return {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}
