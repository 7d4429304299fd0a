"""Scores trained runs on one part of a data set, side by side.

    python -m bcss_jax.evaluate --checkpoints=runs/unet,runs/transunet --output=results
        [--split=val] [--data.dir=FOLDER --data.layout=kaggle224] [--tta] [--ensemble]

Network, label scheme, image statistics and data come from each checkpoint. The same command goes on where it was
stopped. Exit codes: 0 done, 2 settings, 3 data, 4 numbers, 5 storage, 75 stopped on request.
"""

import argparse
import dataclasses
import os
from pathlib import Path

from bcss_jax.common import files

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import jax

from bcss_jax import labels
from bcss_jax.common import command
from bcss_jax.common.device_memory import out_of_memory_errors
from bcss_jax.common.interruption import Interruption
from bcss_jax.data import discovery
from bcss_jax.data.discovery import DataSettings
from bcss_jax.errors import ConfigError, DataError, Preempted
from bcss_jax.evaluation import nnunet_run
from bcss_jax.evaluation.accumulate import SAMPLED_PIXELS, TOLERANCE_UM, Part
from bcss_jax.evaluation.reporting import tables
from bcss_jax.evaluation.results_folder import OF_ALL, ResultsFolder
from bcss_jax.evaluation.target import EvaluationTarget, differences, evaluate
from bcss_jax.inference import trained_run
from bcss_jax.training.sharding import check_batch_size, make_mesh

# Flags of training, as errors name them -> those of this command.
FLAGS = {f"--config.data.{name}": f"--data.{name}" for name in ("dir", "layout", "split", "mpp")}
FLAGS["--config.data.prepared_dir"] = "--prepared_dir"


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and evaluates. Returns the exit code."""
    args = _parser().parse_args(argv)
    command.log_progress()
    return command.run_interruptible(lambda interruption: _run(args, interruption), debug=args.debug, flags=FLAGS)


def _parser():
    parser = command.parser("python -m bcss_jax.evaluate", __doc__)
    add = parser.add_argument
    add("--checkpoints", required=True, help="folders of runs, or of their checkpoints, separated by commas")
    add("--output", required=True, type=Path, help="folder of the results")
    add("--which", choices=("best", "latest"), default="best", help="checkpoint of each run")
    add("--split", choices=discovery.SPLITS, default="val", help="part of the data to score")
    add("--data.layout", dest="layout", choices=discovery.LAYOUTS, help="the checkpoint's if not given")
    add("--data.dir", dest="data_dir", help="folder of the data set; the checkpoint's if not given")
    add(
        "--data.split", dest="data_split", choices=("published", "institute"), help="how the parts come about; likewise"
    )
    add("--data.mpp", dest="mpp", type=float, help="um per pixel; likewise")
    add("--prepared_dir", default="~/.cache/bcss_jax", help="where prepared data are kept")
    add("--batch_size", type=int, help="images at a time, over all devices; the smallest of the runs' if not given")
    add("--tta", action="store_true", help="mean over flips and quarter turns; flips only if images are not square")
    add("--ensemble", action="store_true", help="besides, the mean of all checkpoints of one label scheme")
    add("--overwrite", action="store_true", help="replace results of other settings or models")
    command.add_debug(parser)
    return parser


def _run(args: argparse.Namespace, interruption: Interruption) -> None:
    paths = [Path(path) for path in args.checkpoints.split(",") if path]
    if not paths:
        raise ConfigError("--checkpoints names no folder; name one or more runs, such as runs/unet")
    mesh = make_mesh(jax.local_devices())
    runs = [
        nnunet_run.read_nnunet_run(path, mesh)
        if nnunet_run.is_nnunet_run(path)
        else trained_run.read_trained_run(path, mesh, args.which)
        for path in paths
    ]
    runs = trained_run.with_unique_names(runs, OF_ALL)
    batch_size = args.batch_size if args.batch_size is not None else min(run.batch_size for run in runs)
    check_batch_size("--batch_size", batch_size, 1, mesh)
    settings = {
        "part": args.split,
        "which": args.which,
        "tta": args.tta,
        "batch_size": batch_size,
        "tolerance_um": TOLERANCE_UM,
        "temperature_pixels": SAMPLED_PIXELS,
    }
    with files.locked(args.output):
        results = ResultsFolder(args.output, settings, args.overwrite)
        subjects = _subjects(args, runs, batch_size)
        for subject in subjects:
            results.check(subject.folder, subject.identity())
        interruption.begin()
        results.claim()
        evaluations = []
        for subject in subjects:
            evaluation = results.finished(subject.folder, subject.identity())
            if evaluation:
                print(f"{subject.name}: evaluated before", flush=True)
            elif interruption.requested:
                raise Preempted(f"stopped before {subject.name}; the same command goes on from there")
            else:
                evaluation = _evaluate(subject, results, batch_size, args.tta, mesh, interruption)
            evaluations.append(evaluation)
        results.write(evaluations, differences(subjects, results))
    _conclude(args.output, evaluations)


def _subjects(args, runs, batch_size) -> list[EvaluationTarget]:
    """The runs, and after them the ensembles that were asked for: of one scheme, on the same images."""
    found, prepared = [], {}
    for run in runs:
        settings = _data_settings(args, run)
        key = settings, run.scheme
        if key not in prepared:
            prepared[key] = _parts(settings, args, run.scheme, batch_size)
        part, fit_on = prepared[key]
        if isinstance(run, nnunet_run.NnunetRun):
            part, fit_on = _unseen(run, part, fit_on)
        found.append(EvaluationTarget(run.name, run.name, (run,), part, fit_on))
    if not args.ensemble:
        return found
    groups = {}
    for subject in found:
        groups.setdefault((subject.scheme, subject.part.data["content_sha256"]), []).append(subject)
    groups = [group for group in groups.values() if len(group) > 1]
    if not groups:
        raise ConfigError("--ensemble needs two or more checkpoints of one label scheme and one data set")
    names = [subject.name for subject in found]
    for number, group in enumerate(groups, 1):
        name = f"ensemble of {len(group)}" + (f", {number}" if len(groups) > 1 else "")
        folder = name.replace(", ", "_").replace(" ", "_")
        if folder in names:
            raise ConfigError(f"a run is called {folder}, as the ensemble would be; rename its folder")
        runs_of_group = tuple(subject.runs[0] for subject in group)
        by_fit = sorted(group, key=lambda subject: subject.fit_on is not subject.part)  # first what is its own part's
        found.append(EvaluationTarget(name, folder, runs_of_group, by_fit[0].part, by_fit[0].fit_on))
    return found


def _unseen(run, part, fit_on) -> tuple[Part, Part]:
    """The parts again, if no fold was trained on the first; the temperature is fitted on it if one was on the other."""
    keys = {each.name: [row["key"] for row in each.table] for each in (part, fit_on)}
    run.check_unseen(part.name, keys[part.name], part.data["layout"])
    return part, part if run.seen(fit_on.name, keys[fit_on.name], fit_on.data["layout"]) else fit_on


def _data_settings(args, run) -> DataSettings:
    """Returns the data settings of the checkpoint, with those of the command line in their place."""
    saved = run.config["data"]
    names = ("mpp", "patch_size", "stride", "allow_missing", "max_bad")  # nnU-Net's method has no patches: the defaults
    settings = DataSettings(
        saved["layout"], saved["dir"] or None, saved["split"], **{name: saved[name] for name in names if name in saved}
    )
    if args.layout and args.layout != settings.layout:
        settings = dataclasses.replace(settings, layout=args.layout, split_by="published", dir=None)
    given = {"dir": args.data_dir, "split_by": args.data_split, "mpp": args.mpp}
    settings = dataclasses.replace(settings, **{name: value for name, value in given.items() if value is not None})
    if settings.layout == "sample" and args.data_dir:
        raise ConfigError(
            f"--data.dir={args.data_dir}: {run.name} was trained on the built-in sample, which has no folder; "
            "say how that folder is laid out, as in --data.layout=kaggle224"
        )
    return settings


def _parts(settings, args, scheme, batch_size) -> tuple[Part, Part]:
    """The part to score, and the one that the temperature is fitted on: val if there is another one than that."""
    from bcss_jax.data import tfrecords  # here, because TensorFlow takes seconds that a typo should not cost

    data = tfrecords.prepare(settings, prepared_dir=args.prepared_dir, scheme=scheme)
    if not data.splits.get(args.split):
        there = ", ".join(f"{part} {count}" for part, count in data.splits.items())
        raise DataError(
            f"{settings.dir or 'the built-in sample'}: expected images with masks in the part {args.split}, found "
            f"none ({there}); choose another --split"
        )
    part = _part(data, args.split, scheme, batch_size)
    return part, _part(data, "val", scheme, batch_size) if args.split == "test" and data.splits.get("val") else part


def _part(data, name, scheme, batch_size) -> Part:
    from bcss_jax.data.host_tensorflow import tf
    from bcss_jax.data.input_pipeline import eval_batches

    table = data.table(name)
    pipeline = {
        "table": labels.lookup_table(scheme, data.codes),
        "ignore_index": scheme.ignore_index,
        "batch_size": batch_size,
    }

    def batches(first):
        left = len(table) - first
        return eval_batches(data.load(name).skip(first), left, **pipeline) if left else iter(())

    def only(indices):
        chosen = data.load(name).filter(
            lambda example: tf.reduce_any(example["index"] == tf.constant(indices, tf.int64))
        )
        return eval_batches(chosen, len(indices), **pipeline)

    return Part(name, data.describe(), table, batches, only)


def _evaluate(subject, results, batch_size, tta, mesh, interruption) -> dict:
    with out_of_memory_errors(f"{subject.name}: a batch of {batch_size} images", "a smaller --batch_size"):
        return evaluate(subject, results, batch_size=batch_size, tta=tta, mesh=mesh, interruption=interruption)


def _conclude(output, evaluations) -> None:
    for group in tables.by_scheme(evaluations):
        print(f"\n{tables.text(group)}")
    print(f"\nlook at:   {output / 'report.html'}  {output / 'figures'}")
    print(f"figures:   {output / 'evaluation.json'}  {output / evaluations[0]['folder'] / 'per_image.csv'}")


if __name__ == "__main__":
    command.start(main)
