"""One model over one part of a data set: counts per image, outlines on the host meanwhile, and the scores of them all."""

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

from bcss_jax.common.interruption import Interruption
from bcss_jax.common.progress import ProgressLine
from bcss_jax.common.timing import Stopwatch
from bcss_jax.errors import Preempted
from bcss_jax.evaluation.image_counts import Predictor
from bcss_jax.evaluation.statistics import calibration
from bcss_jax.evaluation.statistics.surface_distance import surface_scores
from bcss_jax.labels import LabelScheme

TOLERANCE_UM = 2.0  # of NSD: a fraction of a cell, and as closely as a tissue's outline can be drawn
KEEP_EVERY = 60.0  # seconds between writing down what there is
BATCHES_BEHIND = 2  # that outlines may lag behind the devices; more would pile up in memory
SAMPLED_PIXELS = 200_000  # for the temperature, in all ...
SAMPLED_PER_IMAGE = (16, 1024)  # ... at least and at most of an image
FIT_IMAGES = 256  # of another part that the temperature is fitted on

Arrays = dict[str, np.ndarray]  # one entry per image, along the first axis


@dataclasses.dataclass(frozen=True)
class Part:
    """The images of one part of a data set, in a fixed order.

    Attributes:
      name: "train", "val" or "test".
      data: `dataset.PreparedData.describe`.
      table: what is known of each image, by its index.
      batches: from the n-th image on, as `input_pipeline.eval_batches` gives them.
      only: those with these indices, in the same order.
    """

    name: str
    data: dict
    table: Sequence[dict]
    batches: Callable[[int], Iterator[dict]]
    only: Callable[[Sequence[int]], Iterator[dict]]


@dataclasses.dataclass
class Seconds(Stopwatch):
    """What the time went into; outlines that were computed meanwhile cost none.

    Attributes:
      input: waiting for images.
      compute: waiting for the devices, compilation included.
      metrics: waiting for outlines, and scores.
    """

    input: float = 0.0
    compute: float = 0.0
    metrics: float = 0.0


def count(
    predictor: Predictor,
    part: Part,
    seconds: Seconds,
    *,
    begun: Arrays,
    keep: Callable[[Arrays], None],
    interruption: Interruption,
    label: str,
) -> Arrays:
    """Goes through a part.

    Args:
      predictor: the model.
      part: the images.
      seconds: to be added to.
      begun: what `keep` was given before, to go on from there; empty: from the start.
      keep: writes down what there is, now and then and when asked to stop.
      interruption: active; tells when to stop.
      label: of the progress line.

    Returns:
      Of each image, in the order of the part: `index` int64 [N]; `confusion`, `pixels`, `correct`, `confidence`,
      `logits`, `labels` as of `image_counts.counts`; `hd95_um` and `nsd` float64 [N, K].

    Raises:
      Preempted: asked to stop; `keep` has what there is.
      UserError: as the batches.
    """
    ready = [begun] if begun else []
    done, kept = len(begun["index"]) if begun else 0, time.perf_counter()
    behind = collections.deque()  # (counts, futures of the outlines) of batches
    outlines = functools.partial(_outlines, predictor.scheme, part.table)

    def settle(most: int) -> None:
        while len(behind) > most:
            arrays, futures = behind.popleft()
            with seconds.counted("metrics"):
                hd95_um, nsd = zip(*(future.result() for future in futures), strict=True)
            ready.append(arrays | {"hd95_um": np.stack(hd95_um), "nsd": np.stack(nsd)})

    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        contextlib.closing(ProgressLine(label, len(part.table), done)) as line,
    ):
        for batch, arrays in _counted(predictor, part.batches(done), len(part.table), seconds):
            predictions = arrays.pop("predictions")
            each = zip(arrays["index"], batch["label"][batch["valid"]], predictions, strict=True)
            behind.append((arrays, [pool.submit(outlines, *image) for image in each]))
            done += len(predictions)
            settle(BATCHES_BEHIND)
            line.update(done)
            if interruption.requested or time.perf_counter() - kept > KEEP_EVERY:
                settle(0)
                keep(_joined(ready))
                kept = time.perf_counter()
            if interruption.requested:
                raise Preempted(
                    f"{label}: stopped after {done} of {len(part.table)} images; the same command goes on from there"
                )
        settle(0)
    return _joined(ready)


def pictures(predictor: Predictor, part: Part, indices: Sequence[int]) -> dict[int, tuple[np.ndarray, ...]]:
    """Image, truth and prediction of a few images, by their index."""
    found = {}
    for batch, arrays in _counted(predictor, part.only(indices), len(part.table), Seconds()):
        images, labels = batch["image"][batch["valid"]], batch["label"][batch["valid"]]
        found |= dict(
            zip(arrays["index"].tolist(), zip(images, labels, arrays["predictions"], strict=True), strict=True)
        )
    return found


def sampled_logits(predictor: Predictor, part: Part, seconds: Seconds) -> Arrays:
    """`logits` and `labels`, as of `count`, of the first `FIT_IMAGES` images of a part (or a few more, whole batches)."""
    found = []
    for _, arrays in _counted(predictor, part.batches(0), min(len(part.table), FIT_IMAGES), seconds):
        found.append({name: arrays[name] for name in ("logits", "labels")})
        if sum(len(each["labels"]) for each in found) >= FIT_IMAGES:
            break
    return _joined(found)


def temperature(sampled: Arrays, scheme: LabelScheme, fitted_on: str, in_sample: bool) -> dict | None:
    """The temperature that fits a sample of pixels, as JSON.

    Args:
      sampled: what `count` or `sampled_logits` gave.
      scheme: the label scheme.
      fitted_on: name of the part whose pixels they are.
      in_sample: they are of the images that are scored, so that the error after scaling flatters.

    Returns:
      `{"value", "fitted_on", "in_sample", "pixels", "ece_before", "ece_after", "curve_after"}`, errors and curve
      (`calibration.reliability`) on these same pixels; None if none of them has truth.

    Raises:
      NumericalError: a logit is not finite.
    """
    logits, labels = sampled["logits"].reshape(-1, scheme.num_classes), sampled["labels"].reshape(-1)
    known = np.isin(labels, scheme.evaluated)
    if not known.any():
        return None
    logits, labels = logits[known], labels[known]
    value = calibration.fit_temperature(logits, labels, scheme.evaluated)
    before_and_after = []
    for scale in (1.0, value):
        probabilities = jax.nn.softmax(logits / np.float32(scale))[None, None]
        found = calibration.confidence_counts(probabilities, labels[None, None], scheme.evaluated, scheme.ignore_index)
        before_and_after.append(calibration.reliability(found))
    before, after = before_and_after
    return {
        "value": value,
        "fitted_on": fitted_on,
        "in_sample": in_sample,
        "pixels": len(labels),
        "ece_before": before["ece"],
        "ece_after": after["ece"],
        "curve_after": after["curve"],
    }


def _counted(predictor, batches, images, seconds):
    """(batch, counts of its real images) of each batch, given when the next one is at work on the devices."""
    ahead = None
    batches = iter(batches)
    while True:
        with seconds.counted("input"):
            batch = next(batches, None)
        if batch is not None:
            height, width = batch["label"].shape[1:]
            positions = _sampled_positions(batch["index"], height * width, images)
            with seconds.counted("compute"):
                started = predictor(batch["image"], batch["label"], positions)
        if ahead is not None:
            with seconds.counted("compute"):
                arrays = jax.device_get(ahead[1])
            valid = ahead[0]["valid"]
            yield ahead[0], {"index": ahead[0]["index"][valid]} | {name: each[valid] for name, each in arrays.items()}
        if batch is None:
            return
        ahead = batch, started


def _sampled_positions(indices, size, images):
    """Places of pixels in the flattened images [N, P], drawn by the index alone: the same in every evaluation."""
    number = int(np.clip(SAMPLED_PIXELS // max(images, 1), *SAMPLED_PER_IMAGE))
    draws = [np.random.Generator(np.random.PCG64(max(int(index), 0))).integers(0, size, number) for index in indices]
    return np.stack(draws).astype(np.int32)


def _outlines(scheme, table, index, truth, prediction):
    """(HD95, NSD) of one image, each [K]."""
    mpp = table[int(index)]["mpp"]
    return surface_scores(truth, prediction, scheme.evaluated, scheme.ignore_index, mpp=mpp, tolerance_um=TOLERANCE_UM)


def _joined(parts):
    return {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}
