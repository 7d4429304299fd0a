"""`bcss_jax.evaluate`: scores trained runs on one split of a data set, side by side."""

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import jax
from jax.sharding import Mesh

from bcss_jax import labels
from bcss_jax.accelerators.remedies import remedy_for_evaluation
from bcss_jax.api.arguments import PathLike, as_paths, check_choice, check_numbers, user_errors
from bcss_jax.api.evaluation_report import EvaluationReport
from bcss_jax.common import files
from bcss_jax.common.device_memory import out_of_memory_errors
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.ranges import COUNT
from bcss_jax.common.startup import compilation_cache
from bcss_jax.data import discovery
from bcss_jax.data.discovery import DataSettings, read_folders
from bcss_jax.data.resolution.check import differ
from bcss_jax.data.synthetic import MPP as SAMPLE_MPP
from bcss_jax.errors import ConfigError, DataError, Preempted
from bcss_jax.evaluation.accumulate import SAMPLED_PIXELS, TOLERANCE_UM, EvaluationSplit
from bcss_jax.evaluation.nnunet_run import NnunetRun, is_nnunet_run, read_nnunet_run
from bcss_jax.evaluation.reporting import tables
from bcss_jax.evaluation.results_folder import SUMMARY_FILES, ResultsFolder
from bcss_jax.evaluation.target import EvaluationTarget, paired_differences
from bcss_jax.evaluation.target import evaluate as evaluate_target
from bcss_jax.inference.cross_validated_run import CrossValidatedRun, joint_description, read_cross_validated_run
from bcss_jax.inference.trained_run import TrainedRun, read_trained_run, with_unique_names
from bcss_jax.training.sharding import check_batch_size, make_mesh
from bcss_jax.training.workdir import cross_validated_folds

log = logging.getLogger("bcss_jax")
AnyRun = TrainedRun | NnunetRun | CrossValidatedRun
SPLIT_BY = ("published", "institute")
WHICH = ("best", "latest")


def evaluate(
    checkpoints: PathLike | Sequence[PathLike],
    *,
    output: PathLike,
    which: str = "best",
    split: str = "val",
    layout: str | None = None,
    data_dir: PathLike | None = None,
    data_list: PathLike | None = None,
    data_split: str | None = None,
    mpp: float | None = None,
    prepared_dir: PathLike = "~/.cache/bcss_jax",
    batch_size: int | None = None,
    tta: bool = False,
    ensemble: bool = False,
    overwrite: bool = False,
) -> EvaluationReport:
    """Scores trained runs on one split of a data set, side by side.

    What was scored before is not scored again: a call that was interrupted goes on where it was.

    Args:
      checkpoints: folder of a run, or several. The folds of a cross-validation are scored together.
      output: folder for the results.
      which: checkpoint to use of each run, "best" or "latest".
      split: split of the data set to score, "train", "val" or "test".
      layout: of the data set; this and the next four are by default as in the checkpoint.
      data_dir: folder of the data set.
      data_list: list of slides with their annotations.
      data_split: how the data set is divided into splits, "published" or "institute".
      mpp: resolution of the images in um per pixel.
      prepared_dir: folder of the prepared data.
      batch_size: images per batch over all devices; by default the smallest among the runs.
      tta: average over flips and quarter turns of each image, or over flips only if images are not square.
      ensemble: also score the mean of all checkpoints with the same label scheme.
      overwrite: replace results of other settings or models.

    Returns:
      The report that was written into `output`.

    Raises:
      ConfigError: the arguments cannot work together, or the folder holds results of other settings.
      DataError: the data set, or a checkpoint, cannot be used.
      NumericalError: the output of a network is not finite.
      StorageError: the results cannot be written, or there is not enough memory.
      Preempted: the process was asked to stop.
    """
    check_numbers({"batch_size": COUNT}, {"batch_size": batch_size})
    check_choice("which", which, WHICH)
    check_data_choices(split, layout, data_split)
    args = SimpleNamespace(**locals())
    args.checkpoints, args.output = as_paths(checkpoints), Path(output)
    args.prepared_dir = os.fspath(prepared_dir)
    args.data_dir, args.data_list = (None if path is None else os.fspath(path) for path in (data_dir, data_list))
    with user_errors():
        return _run(args, Interruption())


def check_data_choices(split: str, layout: str | None, data_split: str | None) -> None:
    """Raises ConfigError unless the arguments of the same names of `evaluate` are among what is possible."""
    check_choice("split", split, discovery.SPLITS)
    if layout is not None:
        check_choice("data.layout", layout, discovery.LAYOUTS)
    if data_split is not None:
        check_choice("data.split", data_split, SPLIT_BY)


def _run(args: SimpleNamespace, interruption: Interruption) -> EvaluationReport:
    compilation_cache.enable()
    mesh = make_mesh(jax.local_devices())
    runs = _read_runs(args, mesh)
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
    refuse_results_among_inputs(args, runs, SUMMARY_FILES)
    with files.locked(args.output):
        results = ResultsFolder(args.output, settings, args.overwrite)
        targets = _targets(args, runs, batch_size)
        for target in targets:
            results.check(target.folder, target.identity())
        interruption.begin()
        results.claim()
        evaluations = []
        for target in targets:
            evaluation = results.load_finished(target.folder, target.identity())
            if evaluation:
                print(f"{target.name}: already evaluated", flush=True)
            elif interruption.requested:
                raise Preempted(f"stopped before {target.name}; run the same command again to resume")
            else:
                with out_of_memory_errors(
                    f"{target.name}: a batch of {batch_size} images",
                    lambda target=target: remedy_for_evaluation(batch_size, target.runs[0].config, jax.local_devices()),
                ):
                    evaluation = evaluate_target(
                        target, results, batch_size=batch_size, tta=args.tta, mesh=mesh, interruption=interruption
                    )
            evaluations.append(evaluation)
        results.write_summary(evaluations, paired_differences(targets, results))
    _print_results(args.output, evaluations)
    return EvaluationReport(args.output)


def refuse_results_among_inputs(args, runs, names: Sequence[str]) -> None:
    """Raises ConfigError if the results, files of these names in the output folder, would be written among inputs."""
    inputs = [("--checkpoints", path) for path in args.checkpoints]
    data = {Path(folder) for run in runs if (folder := data_settings(args, run).dir)}
    folders = [each for folder in sorted(data) for each in read_folders("--data.dir", folder.expanduser())]
    inner = [each for each in folders if each[0] != "--data.dir"]
    inputs += [each for each in folders if each[0] == "--data.dir"]
    parts = [args.output / name for name in names]
    refuse_inputs("--output", args.output, inputs, parts=parts, data_folders=inner)
    prepared_dir = Path(args.prepared_dir).expanduser()
    refuse_inputs("--prepared_dir", prepared_dir, [each for each in inputs if each not in inner], data_folders=inner)


def _read_runs(args, mesh) -> list[AnyRun]:
    """Reads the runs that --checkpoints names, with unique names."""
    paths = args.checkpoints
    if not paths:
        raise ConfigError("--checkpoints names no folder; name one or more runs, such as runs/unet")
    return with_unique_names([_read_run(path, mesh, args.which) for path in paths], SUMMARY_FILES)


def _read_run(path: Path, mesh: Mesh, which: str) -> AnyRun:
    if cross_validated_folds(path.expanduser()):
        return read_cross_validated_run(path, mesh, which)
    return read_nnunet_run(path, mesh) if is_nnunet_run(path) else read_trained_run(path, mesh, which)


def _targets(args, runs, batch_size) -> list[EvaluationTarget]:
    """Returns a target for each run, followed by the ensembles if they were asked for."""
    targets, prepared = [], {}
    for run in runs:
        settings = data_settings(args, run)
        key = settings, run.scheme
        if key not in prepared:
            prepared[key] = prepare(settings, args, run.scheme)
        data = prepared[key]
        if isinstance(run, CrossValidatedRun):
            targets.append(_cross_validation(args, run, data, batch_size))
            continue
        if isinstance(run, TrainedRun):
            data = _with_its_fold(run, data)
        split, fit_split = _splits(data, settings, args, run.scheme, batch_size)
        if isinstance(run, NnunetRun):
            split, fit_split = _unseen_splits(run, split, fit_split)
        targets.append(EvaluationTarget(run.name, run.name, (run,), split, fit_split))
    return targets + _ensembles(targets) if args.ensemble else targets


def _with_its_fold(run: TrainedRun, data):
    """Returns the data set divided as for the training of a run that held out a fold of it; else as it is."""
    from bcss_jax.data.sampling.folded_data import hold_out

    fold = run.fold
    if not fold:
        return data
    if fold["content_sha256"] != data.report.content_sha256:
        log.info("%s: held out a fold of another data set; all images of the split are scored", run.name)
        return data
    return hold_out(data, fold["count"], fold["held_out"], run.scheme)


def _cross_validation(args, run: CrossValidatedRun, data, batch_size) -> EvaluationTarget:
    """Returns the folds of a run on the images that they held out; on test images, they predict as an ensemble."""
    from bcss_jax.data.sampling.folded_data import hold_out

    if args.split == "test":
        settings = data_settings(args, run)
        split, _ = _splits(data, settings, args, run.scheme, batch_size)
        return EvaluationTarget(run.name, run.name, run.folds, split, split)
    if args.split == "train":
        raise ConfigError("--split=train: the folds of a cross-validation were trained on it; use val or test")
    if run.content_sha256 != data.report.content_sha256:
        raise ConfigError(
            f"{run.run_folder}: its folds hold out images of another data set; give the data set that they were "
            "trained on, or name the folds one by one"
        )
    folded = [hold_out(data, run.count, number, run.scheme) for number in run.held_out]
    held_out = tuple(_split(each, "val", run.scheme, batch_size) for each in folded)
    together = EvaluationSplit("val", joint_description(folded), sum((list(s.table) for s in held_out), []), _no, _no)
    return EvaluationTarget(run.name, run.name, run.folds, together, together, held_out)


def _no(_) -> Iterator[dict]:
    raise AssertionError("the images of a cross-validation are read fold by fold")


def _ensembles(targets) -> list[EvaluationTarget]:
    """Returns an ensemble for each label scheme and data set that several of the targets share."""
    groups = {}
    for target in targets:
        if target.held_out:
            continue  # an image has the prediction of one fold alone
        groups.setdefault((target.scheme, target.split.data["content_sha256"]), []).append(target)
    groups = [group for group in groups.values() if len(group) > 1]
    if not groups:
        raise ConfigError("--ensemble needs two or more checkpoints with the same label scheme and data set")
    names, ensembles = [target.name for target in targets], []
    for number, group in enumerate(groups, 1):
        name = f"ensemble of {len(group)}" + (f", {number}" if len(groups) > 1 else "")
        folder = name.replace(", ", "_").replace(" ", "_")
        if folder in names:
            raise ConfigError(f"a run is called {folder}, which is the name of the ensemble; rename the run's folder")
        runs = tuple(target.runs[0] for target in group)
        # If a member has to fit the temperature on the evaluated images, so does the ensemble.
        first = min(group, key=lambda target: target.fit_split is not target.split)
        ensembles.append(EvaluationTarget(name, folder, runs, first.split, first.fit_split))
    return ensembles


def _unseen_splits(run, split, fit_split) -> tuple[EvaluationSplit, EvaluationSplit]:
    """Returns the splits for a run of nnU-Net's method, after a check that no fold was trained on the first one.

    The temperature is fitted on the first split if a fold was trained on the second one.
    """
    keys = {each.name: [row["key"] for row in each.table] for each in (split, fit_split)}
    run.check_unseen(split.name, keys[split.name], split.data["layout"])
    seen = run.count_seen(fit_split.name, keys[fit_split.name], fit_split.data["layout"])
    return split, split if seen else fit_split


def data_settings(args, run) -> DataSettings:
    """Returns the data settings of the checkpoint, unless the command line gives others."""
    saved = run.config["data"]
    if not (args.layout or saved["layout"]):
        raise ConfigError(
            f"{run.name}: its weights were imported, so it has no data set of its own; name the images to score with "
            "--data.layout and --data.dir"
        )
    # Runs of nnU-Net's method have no patches and use the defaults.
    names = ("mpp", "patch_size", "stride", "allow_missing", "max_bad", "region")
    settings = DataSettings(
        saved["layout"],
        saved["dir"] or None,
        saved["split"],
        slide_list=saved.get("list") or None,
        **{name: saved[name] for name in names if name in saved},
    )
    if args.layout and args.layout != settings.layout:
        settings = dataclasses.replace(
            settings, layout=args.layout, split_by="published", dir=None, slide_list=None, region=""
        )
    if args.data_list or args.data_dir:
        settings = dataclasses.replace(settings, dir=None, slide_list=None)
    given = {"slide_list": args.data_list, "dir": args.data_dir, "split_by": args.data_split, "mpp": args.mpp}
    settings = dataclasses.replace(settings, **{name: value for name, value in given.items() if value is not None})
    if settings.layout == "sample" and args.mpp is None:
        settings = dataclasses.replace(settings, mpp=SAMPLE_MPP)
    discovery.check_mpp_setting(settings.mpp, settings.layout)
    if differ(settings.mpp, saved["mpp"]):
        log.warning(
            "%s: was trained at %g um per pixel, the images to score have %g; the scores do not tell how good it is at "
            "its own resolution",
            run.name,
            saved["mpp"],
            settings.mpp,
        )
    if bool(args.data_list) and (settings.layout != discovery.SLIDES or args.data_dir):
        raise ConfigError(
            f"--data.list={args.data_list}: is for slides with annotations, in place of --data.dir; "
            "add --data.layout=slides, or leave it out"
        )
    if settings.layout == "sample" and args.data_dir:
        raise ConfigError(
            f"--data.dir={args.data_dir}: {run.name} was trained on the built-in sample, which has no folder; "
            "give the layout of the folder, for example --data.layout=kaggle224"
        )
    return settings


def prepare(settings, args, scheme):
    """Returns the prepared data set."""
    from bcss_jax.data import tfrecords  # imported here: TensorFlow takes seconds, and a typo should fail before that

    return tfrecords.prepare(settings, prepared_dir=args.prepared_dir, scheme=scheme)


def _splits(data, settings, args, scheme, batch_size) -> tuple[EvaluationSplit, EvaluationSplit]:
    """Returns the split to score and the split to fit the temperature on.

    The second one is val if test is scored and val has images. Otherwise it is the first one.
    """
    if not data.splits.get(args.split):
        available = ", ".join(f"{name} {count}" for name, count in data.splits.items())
        raise DataError(
            f"{settings.dir or settings.slide_list or 'the built-in sample'}: expected images with masks in the split "
            f"{args.split}, found none ({available}); choose another --split"
        )
    split = _split(data, args.split, scheme, batch_size)
    return split, _split(data, "val", scheme, batch_size) if args.split == "test" and data.splits.get("val") else split


def _split(data, name, scheme, batch_size) -> EvaluationSplit:
    from bcss_jax.data.host_tensorflow import tf
    from bcss_jax.data.input_pipeline import eval_batches

    table = data.table(name)
    pipeline = {
        "table": labels.lookup_table(scheme, data.codes),
        "ignore_index": scheme.ignore_index,
        "batch_size": batch_size,
    }

    def batches_from(first):
        left = len(table) - first
        return eval_batches(data.load(name).skip(first), left, **pipeline) if left else iter(())

    def batches_of(indices):
        chosen = data.load(name).filter(
            lambda example: tf.reduce_any(example["index"] == tf.constant(indices, tf.int64))
        )
        return eval_batches(chosen, len(indices), **pipeline)

    return EvaluationSplit(name, data.describe(), table, batches_from, batches_of)


def _print_results(output, evaluations) -> None:
    for group in tables.by_scheme(evaluations):
        print(f"\n{tables.text(group)}")
    print(f"\nlook at:   {output / 'report.html'}  {output / 'figures'}")
    print(f"scores:    {output / 'evaluation.json'}  {output / evaluations[0]['folder'] / 'per_image.csv'}")
