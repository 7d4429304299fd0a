"""Evaluates one target, a run or an ensemble of runs on one split of a data set, and writes its files."""

import dataclasses
import logging
from collections.abc import Sequence

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
    """

    name: str
    folder: str
    runs: tuple[TrainedRun | NnunetRun, ...]
    split: EvaluationSplit
    fit_split: EvaluationSplit

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
        return {"members": [run.identity() for run in self.runs], "data": data}

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
        same_data = all(run.trained_on == first.trained_on for run in self.runs)
        return description | {
            "model": "ensemble",
            "trained_on": first.trained_on if same_data else None,
            "params_sha256": joint_sha256([run.sha256["params"] for run in self.runs]),
            "checkpoint": {"members": [{"name": run.name, **run.describe_checkpoint()} for run in self.runs]},
            **{name: None for name in ("config", "versions", "pretrained")},
            "history": [],
        }


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
    seconds, counter, counts = _run_model(target, results, tta=tta, mesh=mesh, interruption=interruption)
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
        sampled = counts if in_sample else sample_logits(counter, target.fit_split, seconds)
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
    gallery_entries, (height, width) = _write_gallery(target, results, counter, counts)
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


def _run_model(target, results, *, tta, mesh, interruption) -> tuple[EvaluationSeconds, ImageCounter, Arrays]:
    """Runs the model over the split, resuming from saved progress. Returns stopwatch, model and results per image."""
    identity = target.identity()
    saved = results.load_progress(target.folder, identity)
    if saved:
        log.info("%s: resuming after %d of %d images", target.name, len(saved["index"]), len(target.split.table))
    else:
        results.start(target.folder)
    seconds = EvaluationSeconds(*saved.pop("seconds").tolist()) if saved else EvaluationSeconds()
    counter = ImageCounter([run.member(mesh, tta) for run in target.runs], target.scheme, mesh)

    def save(arrays):
        spent = np.array(dataclasses.astuple(seconds))
        results.save_progress(target.folder, identity, arrays | {"seconds": spent})

    try:
        counts = accumulate(
            counter, target.split, seconds, saved=saved, save=save, interruption=interruption, label=target.name
        )
    except NumericalError as error:
        raise NumericalError(f"{target.name}: {error}") from error
    return seconds, counter, counts


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


def _write_gallery(target, results, counter, counts):
    """Writes the gallery. Returns its entries for evaluation.json, and height and width of the images."""
    dice = metrics.mean_of_known(metrics.dice(counts["confusion"], target.scheme.evaluated), axis=-1)
    chosen = gallery.choose(dice)
    indices = counts["index"].tolist()
    found = predict_images(counter, target.split, sorted(indices[each.position] for each in chosen))
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
