"""Evaluates one target, a run or an ensemble of runs on one split of a data set, and writes its files."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from bcss_jax import metrics
from bcss_jax.common.interruption import Interruption, safe_point
from bcss_jax.errors import NumericalError
from bcss_jax.evaluation import per_image_csv
from bcss_jax.evaluation.accumulate import (
    COUNTED,
    TOLERANCE_UM,
    Arrays,
    EvaluationSeconds,
    EvaluationSplit,
    accumulate,
    concatenate,
    predict_images,
    sample_logits,
)
from bcss_jax.evaluation.image_counts import ImageCounter
from bcss_jax.evaluation.nnunet_run import NnunetRun
from bcss_jax.evaluation.reporting import gallery
from bcss_jax.evaluation.results_folder import ResultsFolder
from bcss_jax.evaluation.scores import ImageResults, scores
from bcss_jax.evaluation.statistics import bootstrap
from bcss_jax.evaluation.statistics.calibration import ConfidenceCounts, temperature_summary
from bcss_jax.inference.predict import View
from bcss_jax.inference.trained_run import TrainedRun, joint_sha256
from bcss_jax.labels import LabelScheme
from bcss_jax.training.summary import device, versions

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EvaluationTarget:
    """A model and the images to evaluate it on.

    Attributes:
      name: name of the model in tables.
      folder: name of its folder in the results.
      runs: one run, or the runs of an ensemble. All have the same label scheme.
      split: the images.
      fit_split: the images that the temperature is fitted on. It is `split` itself if there are no others.
      held_out: for a cross-validation, the images that each of the runs has not seen, which together are `split`.
    """

    name: str
    folder: str
    runs: tuple[TrainedRun | NnunetRun, ...]
    split: EvaluationSplit
    fit_split: EvaluationSplit
    held_out: tuple[EvaluationSplit, ...] = ()

    @property
    def parts(self) -> list["TargetPart"]:
        """What is predicted by the same runs: the whole split, or the images of each fold."""
        if not self.held_out:
            return [TargetPart(self.runs, self.split, 0)]
        ends = np.cumsum([0, *(len(split.table) for split in self.held_out)]).tolist()
        return [
            TargetPart((run,), split, first)
            for run, split, first in zip(self.runs, self.held_out, ends[:-1], strict=True)
        ]

    @property
    def scheme(self) -> LabelScheme:
        """Label scheme of the runs."""
        return self.runs[0].scheme

    def views(self, height: int, width: int, tta: bool) -> list[View]:
        """Returns the flips and turns of an image that any of the runs averages over."""
        each = [view for run in self.runs for view in run.views(height, width, tta)]
        return list(dict.fromkeys(each))

    def identity(self) -> dict:
        """Returns everything that decides the results, except for the settings, as JSON."""
        data = {name: self.split.data[name] for name in ("content_sha256", "mpp")}
        together = {"cross_validation": True} if self.held_out else {}
        return {"members": [run.identity() for run in self.runs], "data": data, **together}

    def describe(self) -> dict:
        """Returns the entry of evaluation.json without the results."""
        first = self.runs[0]
        description = {
            "name": self.name,
            "folder": self.folder,
            "model": first.config["model"]["name"],
            "label_scheme": self.scheme.to_json(),
            "trained_on": first.trained_on,
            "data": self.split.data,
            "part": self.split.name,
            "config": first.config,
            "versions": first.metadata.get("versions"),
            "pretrained": first.metadata.get("pretrained"),
            "params_sha256": first.sha256["params"],
            "checkpoint": first.describe_checkpoint(),
            "history": first.history(),
        }
        if len(self.runs) == 1:
            return description
        members = {"members": [{"name": run.name, **run.describe_checkpoint()} for run in self.runs]}
        joint = {"params_sha256": joint_sha256([run.sha256["params"] for run in self.runs]), "history": []}
        if self.held_out:
            trained_on = self.split.data  # the folds together
            return description | joint | {"trained_on": trained_on, "checkpoint": {"cross_validation": True} | members}
        same_data = all(run.trained_on == first.trained_on for run in self.runs)
        return description | {
            "model": "ensemble",
            "trained_on": first.trained_on if same_data else None,
            **joint,
            "checkpoint": members,
            **{name: None for name in ("config", "versions", "pretrained")},
        }


class TargetPart(NamedTuple):
    """Images that the same runs predict.

    Attributes:
      runs: one run, or the runs of an ensemble.
      split: the images.
      first: position of the first of them in the split of the target.
    """

    runs: tuple[TrainedRun | NnunetRun, ...]
    split: EvaluationSplit
    first: int

    def counter(self, target: EvaluationTarget, mesh: Mesh, tta: bool) -> ImageCounter:
        """Loads the runs and returns what counts the pixels of their predictions."""
        return ImageCounter([run.member(mesh, tta) for run in self.runs], target.scheme, mesh)


def evaluate(
    target: EvaluationTarget,
    results: ResultsFolder,
    *,
    batch_size: int,
    tta: bool,
    mesh: Mesh,
    interruption: Interruption,
) -> dict:
    """Evaluates a target, or resumes its evaluation, and writes the files of its folder.

    Returns:
      The entry of evaluation.json.

    Raises:
      UserError: One line for the user.
    """

    @functools.cache
    def counter_of(part: int) -> ImageCounter:
        return target.parts[part].counter(target, mesh, tta)

    seconds, counts = _run_model(target, results, counter_of, interruption)
    image_results = ImageResults(
        images=[target.split.table[index] for index in counts["index"]],
        confusion=counts["confusion"],
        hd95_um=counts["hd95_um"],
        nsd=counts["nsd"],
        confidence=ConfidenceCounts(*(counts[name] for name in ConfidenceCounts._fields)),
        scheme=target.scheme,
    )
    try:
        with seconds.counted("metrics"):
            found = scores(image_results, batch_size=batch_size, tolerance_um=TOLERANCE_UM)
        in_sample = target.fit_split is target.split
        sampled = counts if in_sample else sample_logits(counter_of(0), target.fit_split, seconds)
        with seconds.counted("metrics"):
            temperature = temperature_summary(
                sampled["logits"],
                sampled["labels"],
                target.scheme,
                fitted_on=target.fit_split.name,
                in_sample=in_sample,
            )
    except NumericalError as error:
        raise NumericalError(f"{target.name}: {error}") from error
    safe_point(COUNTED)
    gallery_entries, (height, width) = _write_gallery(target, results, counter_of, counts)
    per_image_csv.write_per_image(results.folder / target.folder / "per_image.csv", image_results.per_image())
    evaluation = target.describe() | {
        "augmentation": [view._asdict() for view in target.views(height, width, tta)],
        "scores": found,
        "temperature": temperature,
        "gallery": gallery_entries,
        "seconds": {name: round(value, 3) for name, value in dataclasses.asdict(seconds).items()},
        "evaluated_with": {"versions": versions(), "device": device()},
    }
    results.finish(target.folder, target.identity(), evaluation)
    return evaluation


def paired_differences(targets: Sequence[EvaluationTarget], results: ResultsFolder) -> list[dict]:
    """Returns the Dice of each model minus the Dice of each later one, with intervals.

    Only models with the same images and the same label scheme are compared.

    Returns:
      JSON, for each pair: `{"a", "b": names, "images", "over", "n", "dice_global": {class: {"difference", "low",
      "high"}}}`.
    """
    found = []
    for number, a in enumerate(targets):
        for b in targets[number + 1 :]:
            safe_point()
            if a.scheme == b.scheme and a.identity()["data"] == b.identity()["data"]:
                difference = _difference(results.per_image(a.folder), results.per_image(b.folder))
                found.append({"a": a.name, "b": b.name, **difference})
    return found


def _run_model(
    target: EvaluationTarget,
    results: ResultsFolder,
    counter_of: Callable[[int], ImageCounter],
    interruption: Interruption,
) -> tuple[EvaluationSeconds, Arrays]:
    """Runs the model over the split, resuming from saved progress. Returns stopwatch and results per image."""
    identity = target.identity()
    saved = results.load_progress(target.folder, identity)
    if saved:
        log.info("%s: resuming after %d of %d images", target.name, len(saved["index"]), len(target.split.table))
    else:
        results.start(target.folder)
    seconds = EvaluationSeconds(*saved.pop("seconds").tolist()) if saved else EvaluationSeconds()
    done = []  # results of the parts that are complete

    def save(arrays):
        spent = np.array(dataclasses.astuple(seconds))
        results.save_progress(target.folder, identity, concatenate([*done, arrays]) | {"seconds": spent})

    for number, part in enumerate(target.parts):
        known = {name: each[part.first : part.first + len(part.split.table)] for name, each in saved.items()}
        known = known if known and len(known["index"]) else {}
        if known and len(known["index"]) == len(part.split.table):
            done.append(known)
            continue
        label = target.name if len(target.parts) == 1 else f"{target.name}, {part.runs[0].name}"
        try:
            done.append(
                _at(
                    part.first,
                    accumulate(
                        counter_of(number),
                        part.split,
                        seconds,
                        saved=_at(-part.first, known),
                        save=lambda arrays, part=part: save(_at(part.first, arrays)),
                        interruption=interruption,
                        label=label,
                    ),
                )
            )
        except NumericalError as error:
            raise NumericalError(f"{label}: {error}") from error
    return seconds, concatenate(done)


def _at(first: int, arrays: Arrays) -> Arrays:
    """Returns the results with their index moved to another place."""
    return arrays | {"index": arrays["index"] + first} if arrays and first else arrays


def _difference(a, b):
    positions = {key: number for number, key in enumerate(b.key)}
    order = [positions[key] for key in a.key]
    # Sums of these three counts give the same Dice as sums of the confusion counts.
    sums = [np.stack([each.tp, each.fp, each.fn], axis=1) for each in (a, b)]
    interval = bootstrap.paired_difference(sums[0], sums[1][order], a.patient, _dice_of_sums)
    columns = (np.asarray(values).tolist() for values in (interval.value, interval.low, interval.high))
    names = [*a.class_names, "macro"]
    return {
        "images": len(a.key),
        "over": interval.over,
        "n": interval.n,
        "dice_global": {
            name: {
                key: None if np.isnan(end) else end
                for key, end in zip(("difference", "low", "high"), ends, strict=True)
            }
            for name, ends in zip(names, zip(*columns, strict=True), strict=True)
        },
    }


def _dice_of_sums(totals):
    """Dice as a statistic for `bootstrap`: totals [R, 3, K] of TP, FP and FN -> Dice per class and macro [R, K + 1]."""
    tp, fp, fn = (totals[:, i] for i in range(3))
    size = 2 * tp + fp + fn
    dice = np.divide(2 * tp, size, out=np.full(size.shape, np.nan), where=size > 0)
    return np.concatenate([dice, metrics.mean_of_known(dice, axis=-1)[:, None]], axis=1)


def _write_gallery(target, results, counter_of, counts):
    """Writes the gallery. Returns its entries for evaluation.json, and height and width of the images."""
    dice = metrics.mean_of_known(metrics.dice(counts["confusion"], target.scheme.evaluated), axis=-1)
    chosen = gallery.choose(dice)
    indices = counts["index"].tolist()
    wanted, found = sorted(indices[each.position] for each in chosen), {}
    for number, part in enumerate(target.parts):
        own = [index - part.first for index in wanted if 0 <= index - part.first < len(part.split.table)]
        if own:
            pictures = predict_images(counter_of(number), part.split, own)
            found |= {index + part.first: each for index, each in pictures.items()}
    gallery.write(
        results.folder / target.folder, chosen, {each.position: found[indices[each.position]] for each in chosen}
    )
    entries = [
        {
            "rank": each.rank,
            "place": each.place,
            "key": target.split.table[indices[each.position]]["key"],
            "dice": float(dice[each.position]),
            "files": each.files,
        }
        for each in chosen
    ]
    return entries, next(iter(found.values()))[1].shape
