"""What is evaluated: a trained run, or several as an ensemble, on one part of a data set; from it to its files."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from bcss_jax import metrics
from bcss_jax.common.interruption import Interruption
from bcss_jax.errors import NumericalError
from bcss_jax.evaluation import per_image_csv
from bcss_jax.evaluation.accumulate import TOLERANCE_UM, Part, Seconds, count, pictures, sampled_logits, temperature
from bcss_jax.evaluation.image_counts import Predictor
from bcss_jax.evaluation.nnunet_run import NnunetRun
from bcss_jax.evaluation.reporting import gallery
from bcss_jax.evaluation.results_folder import ResultsFolder
from bcss_jax.evaluation.scores import scores
from bcss_jax.evaluation.statistics import bootstrap
from bcss_jax.evaluation.statistics.calibration import ConfidenceCounts
from bcss_jax.inference.predict import View
from bcss_jax.inference.trained_run import TrainedRun, joint_sha256
from bcss_jax.labels import LabelScheme
from bcss_jax.training.summary import device, versions

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EvaluationTarget:
    """A model and the images that it is evaluated on.

    Attributes:
      name: of the model in tables.
      folder: name of its folder.
      runs: one, or those of an ensemble, all of one label scheme.
      part: the images.
      fit_on: the images that the temperature is fitted on; `part` itself if there are no others.
    """

    name: str
    folder: str
    runs: tuple[TrainedRun | NnunetRun, ...]
    part: Part
    fit_on: Part

    @property
    def scheme(self) -> LabelScheme:
        """The label scheme."""
        return self.runs[0].scheme

    def views(self, height: int, width: int, tta: bool) -> list[View]:
        """The flips and turns of an image that any of the runs looks at."""
        each = [view for run in self.runs for view in run.views(height, width, tta)]
        return list(dict.fromkeys(each))

    def identity(self) -> dict:
        """What decides its results, the settings apart, as JSON."""
        data = {name: self.part.data[name] for name in ("content_sha256", "mpp")}
        return {"members": [run.identity() for run in self.runs], "data": data}

    def describe(self) -> dict:
        """What evaluation.json says of it besides figures."""
        first = self.runs[0]
        about = {
            "name": self.name,
            "folder": self.folder,
            "model": first.config["model"]["name"],
            "label_scheme": self.scheme.to_json(),
            "trained_on": first.trained_on,
            "data": self.part.data,
            "part": self.part.name,
            "config": first.config,
            "versions": first.metadata.get("versions"),
            "pretrained": first.metadata.get("pretrained"),
            "params_sha256": first.sha256["params"],
            "checkpoint": first.describe_checkpoint(),
            "history": first.history(),
        }
        if len(self.runs) == 1:
            return about
        alike = all(run.trained_on == first.trained_on for run in self.runs)
        return about | {
            "model": "ensemble",
            "trained_on": first.trained_on if alike else None,
            "params_sha256": joint_sha256([run.sha256["params"] for run in self.runs]),
            "checkpoint": {"members": [{"name": run.name, **run.describe_checkpoint()} for run in self.runs]},
            **{name: None for name in ("config", "versions", "pretrained")},
            "history": [],
        }


def evaluate(
    subject: EvaluationTarget,
    results: ResultsFolder,
    *,
    batch_size: int,
    tta: bool,
    mesh: Mesh,
    interruption: Interruption,
) -> dict:
    """Evaluates, going on where it was stopped, and writes the files of the subject's folder.

    Returns:
      What evaluation.json says of it.

    Raises:
      UserError: with one line for the user.
    """
    identity, scheme, part = subject.identity(), subject.scheme, subject.part
    begun = results.begun(subject.folder, identity)
    if begun:
        log.info("%s: going on after %d of %d images", subject.name, len(begun["index"]), len(part.table))
    else:
        results.begin(subject.folder)
    seconds = Seconds(*begun.pop("seconds").tolist()) if begun else Seconds()
    predictor = Predictor([run.member(mesh, tta) for run in subject.runs], scheme, mesh)

    def keep(arrays):
        results.keep(subject.folder, identity, arrays | {"seconds": np.array(dataclasses.astuple(seconds))})

    counted = count(predictor, part, seconds, begun=begun, keep=keep, interruption=interruption, label=subject.name)
    images = [part.table[index] for index in counted["index"]]
    try:
        with seconds.counted("metrics"):
            found = scores(
                images,
                counted["confusion"],
                counted["hd95_um"],
                counted["nsd"],
                ConfidenceCounts(*(counted[name] for name in ConfidenceCounts._fields)),
                scheme,
                batch_size=batch_size,
                tolerance_um=TOLERANCE_UM,
            )
        in_sample = subject.fit_on is part
        sampled = counted if in_sample else sampled_logits(predictor, subject.fit_on, seconds)
        with seconds.counted("metrics"):
            scale = temperature(sampled, scheme, subject.fit_on.name, in_sample)
    except NumericalError as error:
        raise NumericalError(f"{subject.name}: {error}") from error
    shown, size = _gallery(subject, results, predictor, counted)
    rows = per_image_csv.per_image(images, counted["confusion"], counted["hd95_um"], counted["nsd"], scheme)
    per_image_csv.write(results.folder / subject.folder / "per_image.csv", rows)
    evaluation = subject.describe() | {
        "augmentation": [view._asdict() for view in subject.views(*size, tta)],
        "scores": found,
        "temperature": scale,
        "gallery": shown,
        "seconds": {name: round(value, 3) for name, value in dataclasses.asdict(seconds).items()},
        "evaluated_with": {"versions": versions(), "device": device()},
    }
    results.finish(subject.folder, identity, evaluation)
    return evaluation


def differences(subjects: Sequence[EvaluationTarget], results: ResultsFolder) -> list[dict]:
    """Dice of each model minus that of each later one on the same images under the same scheme, with intervals.

    Returns:
      JSON: `{"a", "b": names, "images", "over", "n", "dice_global": {class: {"difference", "low", "high"}}}` each.
    """
    found = []
    for number, a in enumerate(subjects):
        for b in subjects[number + 1 :]:
            if a.scheme == b.scheme and a.identity()["data"] == b.identity()["data"]:
                found.append({"a": a.name, "b": b.name, **_difference(results.rows(a.folder), results.rows(b.folder))})
    return found


def _difference(a, b):
    place = {key: number for number, key in enumerate(b.key)}
    order = [place[key] for key in a.key]
    # Sums of these three give the same Dice as sums of the confusion counts.
    sums = [np.stack([each.tp, each.fp, each.fn], axis=1) for each in (a, b)]
    interval = bootstrap.paired_difference(sums[0], sums[1][order], a.patient, _dice_of_sums)
    ends = zip(interval.value.tolist(), interval.low.tolist(), interval.high.tolist(), strict=True)
    names = [*a.class_names, "macro"]
    return {
        "images": len(a.key),
        "over": interval.over,
        "n": interval.n,
        "dice_global": {
            name: {key: None if np.isnan(end) else end for key, end in zip(("difference", "low", "high"), each, strict=True)}
            for name, each in zip(names, ends, strict=True)
        },
    }  # fmt: skip


def _dice_of_sums(totals):
    tp, fp, fn = (totals[:, i] for i in range(3))
    size = 2 * tp + fp + fn
    dice = np.divide(2 * tp, size, out=np.full(size.shape, np.nan), where=size > 0)
    return np.concatenate([dice, metrics.mean_of_known(dice, axis=-1)[:, None]], axis=1)


def _gallery(subject, results, predictor, counted):
    """Writes the gallery; returns what evaluation.json says of it, and height and width of the images."""
    dice = metrics.mean_of_known(metrics.dice(counted["confusion"], subject.scheme.evaluated), axis=-1)
    chosen = gallery.choose(dice)
    indices = counted["index"].tolist()
    found = pictures(predictor, subject.part, sorted(indices[each.position] for each in chosen))
    gallery.write(
        results.folder / subject.folder, chosen, {each.position: found[indices[each.position]] for each in chosen}
    )
    shown = [
        {
            "rank": each.rank,
            "place": each.place,
            "key": subject.part.table[indices[each.position]]["key"],
            "dice": float(dice[each.position]),
            "files": each.files,
        }
        for each in chosen
    ]
    return shown, next(iter(found.values()))[1].shape
