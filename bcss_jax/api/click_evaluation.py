"""`bcss_jax.evaluate_clicks`: scores SAMs that take prompts by the clicks that they need, side by side."""

import csv
import io
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import TypedDict

from bcss_jax import labels
from bcss_jax.api.arguments import PathLike, as_paths, user_errors
from bcss_jax.api.evaluation import check_data_choices, data_settings, prepare, refuse_results_among_inputs
from bcss_jax.common import figures, files
from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_score
from bcss_jax.common.interruption import safe_point
from bcss_jax.common.json_files import read_json
from bcss_jax.common.outputs import written_files
from bcss_jax.common.startup import compilation_cache
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.evaluation.clicks.sessions import MAX_CLICKS, box_sessions, click_sessions
from bcss_jax.evaluation.clicks.summary import (
    CLICKS_WITHOUT,
    ClickedObject,
    dice_figure,
    rows_of,
    summary_of,
)
from bcss_jax.labels import LabelScheme
from bcss_jax.models.sam.weights.description import SAM_FILE, description_of
from bcss_jax.models.sam.weights.loading import LoadedSam, load
from bcss_jax.prompting.predictor import Predictor
from bcss_jax.prompting.simulation.click_protocol import regions_of
from bcss_jax.training.workdir import cross_validated_folds

log = logging.getLogger("bcss_jax")
OUTPUTS = ("clicks.json", "clicks.png", "objects.csv")
DECODED_AT_ONCE = 16  # objects of an image, whose number is not bounded
UNKNOWN_MPP = 0.25  # um/px that a file which says none is taken to be for, as BCSS has


class _SamRun(NamedTuple):
    """A SAM to score.

    Attributes:
      name: unique among those that are scored.
      sam: the network.
      config: settings of its training; only its data if it is a file.
      scheme: label scheme whose classes have objects.
      fold: what it held out, if it is a fold of a cross-validation.
    """

    name: str
    sam: LoadedSam
    config: dict[str, Any]
    scheme: LabelScheme
    fold: "_Fold | None" = None


class _Config(TypedDict):
    """What is read of the config of a run."""

    data: dict[str, Any]
    label_scheme: dict[str, Any]


class _Fold(TypedDict):
    """Which part of which data set a fold of a cross-validation held out."""

    count: int
    held_out: int
    content_sha256: str


class _FoldedData(TypedDict):
    folds: _Fold


class _SummaryOfFold(TypedDict):
    """What is read of the summary of a fold."""

    data: _FoldedData


def evaluate_clicks(
    checkpoints: PathLike | Sequence[PathLike],
    *,
    output: PathLike,
    split: str = "val",
    layout: str | None = None,
    data_dir: PathLike | None = None,
    data_list: PathLike | None = None,
    data_split: str | None = None,
    mpp: float | None = None,
    prepared_dir: PathLike = "~/.cache/bcss_jax",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Scores SAMs by the clicks that they need for the objects of one split of a data set.

    Args:
      checkpoints: run of `configs/sam.py:LAYOUT,prompts`, or file of a SAM, or several.
      output: folder for clicks.json, objects.csv and clicks.png.
      split: split of the data set to score, "train", "val" or "test".
      layout: of the data set; this and the next four are by default those of the run.
      data_dir: folder of the data set.
      data_list: list of slides with their annotations.
      data_split: how the data set is divided into splits, "published" or "institute".
      mpp: resolution of the images in um per pixel.
      prepared_dir: folder of the prepared data.
      overwrite: replace the results of an earlier call.

    Returns:
      The content of clicks.json.

    Raises:
      ConfigError: the arguments cannot work together, or the folder holds other files.
      DataError: the data set, or a model, cannot be used.
      StorageError: the results cannot be written.
      Preempted: the process was asked to stop.
    """
    check_data_choices(split, layout, data_split)
    args = SimpleNamespace(**locals())
    args.checkpoints, args.output = as_paths(checkpoints), Path(output)
    args.prepared_dir = str(prepared_dir)
    args.data_dir, args.data_list = (None if path is None else str(path) for path in (data_dir, data_list))
    with user_errors():
        return _run(args)


def _run(args: SimpleNamespace) -> dict[str, Any]:
    compilation_cache.enable()
    if not args.checkpoints:
        raise ConfigError("--checkpoints names nothing; name one or more runs or files, such as runs/sam_prompts")
    runs = _with_unique_names([_read(path) for path in _with_folds(args.checkpoints)])
    _check_output(args, runs)
    results, objects = {}, {}
    with files.locked(args.output):
        for run in runs:
            data, settings = _data(args, run)
            objects[run.name] = _score(run, data, args.split, lambda: safe_point("stopped; nothing was written"))
            results[run.name] = {
                "file": run.sam.file,
                "sha256": run.sam.sha256,
                "network": run.sam.name,
                "image_size": run.sam.model.image_size,
                "label_scheme": run.scheme.to_json(),
                "data": data.describe(),
                **summary_of(objects[run.name]),
            }
            _print(run.name, results[run.name])
        document = {"kind": "clicks", "format": 1, "split": args.split, "most_clicks": MAX_CLICKS, "models": results}
        _write(args.output, document, objects)
    print(f"scores:    {args.output / 'clicks.json'}  {args.output / 'objects.csv'}")
    print(f"look at:   {args.output / 'clicks.png'}")
    return document


def _check_output(args: SimpleNamespace, runs: Sequence[_SamRun]) -> None:
    """Raises ConfigError if results would replace something else, or without --overwrite those of before."""
    refuse_results_among_inputs(args, runs, OUTPUTS)
    parts = [args.output / name for name in OUTPUTS]
    written_files.check(parts)
    if parts[0].exists() and not args.overwrite:
        raise ConfigError(
            f"{printable(args.output)}: holds results of an earlier evaluation; add --overwrite, or choose another "
            "--output"
        )


def _with_folds(paths: Sequence[Path]) -> list[Path]:
    """Returns the paths, with the folds of a cross-validation in place of its folder."""
    paths = [path.expanduser() for path in paths]
    return [run for path in paths for run in cross_validated_folds(path) or [path]]


def _read(path: Path) -> _SamRun:
    """Reads a run, also by the folder of its checkpoints, or a file of a SAM."""
    if path.name == "checkpoints" and (path.parent / SAM_FILE).is_file():
        path = path.parent
    if not path.is_dir():
        sam = load(path)
        mpp = (description_of(path) or {}).get("mpp") or UNKNOWN_MPP
        config = {"data": {"layout": "", "dir": "", "split": "published", "mpp": mpp}}
        return _SamRun(path.stem, sam, config, labels.find_scheme("tumor_stroma"))
    file = path / SAM_FILE
    if not file.is_file():
        raise DataError(
            f"{printable(path)}: expected {SAM_FILE} of a finished run of configs/sam.py:LAYOUT,prompts, found none; "
            "train it to its end, or leave --clicks out for other runs"
        )
    config = read_json(path / "config.json", "the config of a run", "name another run", kind=_Config)
    try:
        scheme = labels.scheme_from_json(config["label_scheme"])
    except ValueError as error:
        raise DataError(f"{printable(path / 'config.json')}: {error}; copy the run again") from error
    fold = None
    if config["data"].get("folds"):
        remedy = "train the fold to its end"
        summary = read_json(path / "summary.json", "the summary of a finished fold", remedy, kind=_SummaryOfFold)
        fold = summary["data"]["folds"]
    return _SamRun(path.resolve().name, load(file), dict(config), scheme, fold)


def _with_unique_names(runs: list[_SamRun]) -> list[_SamRun]:
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else run._replace(name=f"{run.name}_{names[: i + 1].count(run.name)}")
        for i, run in enumerate(runs)
    ]


def _data(args: SimpleNamespace, run: _SamRun):
    """Returns the prepared data set of a run, divided as for its training, and its settings."""
    from bcss_jax.data.sampling.folded_data import hold_out

    settings = data_settings(args, run)
    data = prepare(settings, args, run.scheme)
    if run.fold and run.fold["content_sha256"] == data.report.content_sha256:
        data = hold_out(data, run.fold["count"], run.fold["held_out"], run.scheme)
    elif run.fold:
        log.info("%s: held out a fold of another data set; all images of the split are scored", run.name)
    if not data.splits.get(args.split):
        available = ", ".join(f"{name} {count}" for name, count in data.splits.items())
        raise DataError(
            f"{settings.dir or settings.slide_list or 'the built-in sample'}: expected images with masks in the split "
            f"{args.split}, found none ({available}); choose another --split"
        )
    return data, settings


def _score(run: _SamRun, data: Any, split: str, between_images: Callable[[], None]) -> list[ClickedObject]:
    """Returns all objects of a split after clicks and boxes. Raises DataError if there is none."""
    from bcss_jax.data.input_pipeline import eval_batches

    scheme, table, found = run.scheme, data.table(split), []
    predictor = Predictor(run.sam.model)
    pipeline: dict[str, Any] = dict(
        table=labels.lookup_table(scheme, data.codes), ignore_index=scheme.ignore_index, batch_size=1
    )
    for batch in eval_batches(data.load(split), len(table), **pipeline):
        row, truth = table[int(batch["index"][0])], batch["label"][0]
        known = np.ones(truth.shape, bool) if scheme.ignore_index is None else truth != scheme.ignore_index
        regions = regions_of(truth, scheme.evaluated)
        if regions:
            predictor.set_image(batch["image"][0])
        for start in range(0, len(regions), DECODED_AT_ONCE):
            part = regions[start : start + DECODED_AT_ONCE]
            masks = [region.mask for region in part]
            clicked = click_sessions(predictor, masks, known, feed_back=True)
            without = click_sessions(predictor, masks, known, feed_back=False, clicks=CLICKS_WITHOUT)
            boxes = box_sessions(predictor, masks, known)
            found += [
                ClickedObject(
                    row["key"],
                    row["patient"],
                    scheme.class_names[region.label],
                    int(region.mask.sum()),
                    clicked.dice[i],
                    clicked.iou[i],
                    float(boxes.dice[i]),
                    float(boxes.iou[i]),
                    without.dice[i],
                )
                for i, region in enumerate(part)
            ]
        between_images()
    if not found:
        raise DataError(f"the split {split} has no region of the classes {', '.join(scheme.evaluated_names)} to click")
    return found


def _print(name: str, found: dict[str, Any]) -> None:
    dice = ", ".join(f"{n}: {format_score(each['value'])}" for n, each in found["dice_after"].items())
    print(f"{name}: {found['objects']} objects of {found['patients']} patients", flush=True)
    print(f"  Dice after clicks {dice}; with a box {format_score(found['dice_with_box']['value'])}")
    for target, each in found["clicks_to_iou"].items():
        never = each["share_never"]["value"]
        print(f"  clicks to an IoU of {target}: {each['mean']['value']:.2f} (never within {MAX_CLICKS}: {never:.1%})")


def _write(folder: Path, document: dict[str, Any], objects: dict[str, list[ClickedObject]]) -> None:
    rows = [{"model": name, **row} for name, each in objects.items() for row in rows_of(each)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    figure = dice_figure(document["models"], f"clicks on the objects of the split {document['split']}")
    figures.write(figure, folder / "clicks.png")
    write_text(folder / "objects.csv", text.getvalue())
    write_text(folder / "clicks.json", json.dumps(document, indent=2, allow_nan=False, default=str) + "\n")
