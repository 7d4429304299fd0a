"""Runs nnU-Net's method: fingerprint, plan, preprocessing, training of the folds, cross-validation and test."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax

from bcss_jax import models
from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_score
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.processes import is_main_process, print_main
from bcss_jax.common.startup import compilation_cache, start_clock
from bcss_jax.data.discovery import DataSettings
from bcss_jax.data.sampling.folds import by_case, by_patient
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.labels import find_scheme
from bcss_jax.models import MODELS
from bcss_jax.nnunet import cases as case_sets
from bcss_jax.nnunet import folds, given_files, plan_file, postprocess, store
from bcss_jax.nnunet.config import ALL, fold_names, is_file_of_folds
from bcss_jax.nnunet.cross_validation import decide_postprocessing, summarize
from bcss_jax.nnunet.network import class_and_arguments
from bcss_jax.nnunet.plan import make_plan
from bcss_jax.nnunet.predict import make_predictor
from bcss_jax.nnunet.steps import Length, Steps, make_steps
from bcss_jax.nnunet.train import train_fold
from bcss_jax.nnunet.validate import is_validated, validate
from bcss_jax.training.checkpoint import load_model
from bcss_jax.training.device_advice import advice_on_dtype
from bcss_jax.training.epoch import LoopSettings
from bcss_jax.training.summary import device, versions


def run(config: Any, workdir: Path, interruption: Interruption) -> None:
    """Plans, trains and validates the folds that the config asks for. The same call resumes a run that was stopped.

    Args:
      config: a ConfigDict, checked by `nnunet.config.validate`.
      workdir: of the run, claimed. Gets plans.json, dataset.json, dataset_fingerprint.json, splits_final.json and a
        folder per fold; once all folds are there, cross_validation.json and the ensemble's scores on the test split.
      interruption: tells when to save and stop.

    Raises:
      UserError: of the kinds in `errors`; the message says what to do.
    """
    compilation_cache.enable()
    clock = start_clock.current()
    clock.lap("imports")
    planned = _plan_run(config, workdir)
    clock.lap("data")
    steps, metadata = _make_steps(config, planned)
    clock.lap("network")
    for name in fold_names(config):
        _train_and_validate(config, workdir, planned, steps, metadata, name, interruption)
    if is_main_process():
        _conclude(config, workdir, planned)


@dataclasses.dataclass(frozen=True)
class _Planned:
    """What is fixed before the first fold is trained.

    Attributes:
      cases: of the data set.
      fingerprint: of its training cases.
      plan: contents of plans.json.
      splits: the names of the training and validation cases of each fold; empty if one network trains on all cases.
      preprocessed: each training case and its preprocessed files, by name.
    """

    cases: case_sets.Cases
    fingerprint: dict
    plan: dict
    splits: list[dict]
    preprocessed: dict[str, tuple[case_sets.Case, store.StoredCase]]


def _plan_run(config: Any, workdir: Path) -> _Planned:
    """Reads the data set, plans for it, writes the plan to `workdir`, and preprocesses the training cases."""
    data = config.data
    cases = case_sets.find(
        DataSettings(
            data.layout,
            data.dir or None,
            data.split,
            data.mpp,
            patch_size=None,
            allow_missing=data.allow_missing,
            max_bad=data.max_bad,
        ),
        prepared_dir=data.prepared_dir,
        scheme=find_scheme(config.labels),
    )
    if cases.line:
        print_main(cases.line)
    fingerprint = store.fingerprint_of(cases)
    plan = _plan(config, cases, fingerprint)
    print_main(plan_file.plan_table(plan, fingerprint, cases.dataset, rule_before_2_3_1=config.rule_before_2_3_1))
    splits = _splits(config, cases)
    places = [Path(data.prepared_dir).expanduser(), cases.folder, workdir]
    if data.layout == case_sets.RAW:
        places.append(Path(data.dir).expanduser())
        given_files.name_unused(places[-1])
    given_files.refuse_unnamed(config, places, plan, splits)
    documents = {"dataset": cases.dataset, "dataset_fingerprint": fingerprint, "plans": plan}
    # A network that is trained on all cases has no folds; those of other networks in the folder stay.
    documents |= {"splits_final": splits} if splits else {}
    missing = given_files.missing_documents(workdir, documents)
    if is_main_process():
        for name in missing:
            text = json.dumps(documents[name], indent=4 if name == "plans" else 1)
            write_text(workdir / f"{name}.json", text + "\n")
    stored = store.preprocessed(cases.train, cases.dataset, plan, cases.folder)
    by_name = {case.name: (case, files) for case, files in zip(cases.train, stored, strict=True)}
    return _Planned(cases, fingerprint, plan, splits, by_name)


def _make_steps(config: Any, planned: _Planned) -> tuple[Steps, dict]:
    """Builds the plan's network and compiled steps, and the metadata of every checkpoint."""
    cases, plan = planned.cases, planned.plan
    network, kwargs = class_and_arguments(plan)
    settings = {"name": next(name for name, model in MODELS.items() if model is network), **kwargs}
    configuration, num_classes = plan["configurations"]["2d"], cases.scheme.num_classes
    arguments = {**settings, "num_classes": num_classes, "dtype": config.dtype, "seed": config.seed}
    models.check_size(**arguments)
    if advice := advice_on_dtype(config.dtype, jax.local_devices()):
        print_main(advice)
    steps = make_steps(
        models.create(**arguments),
        configuration,
        num_classes=num_classes,
        length=Length(config.epochs, config.iterations, config.val_iterations),
        seed=config.seed,
        batch_size=configuration["batch_size"],
        micro_batches=config.micro_batches,
        remat=config.remat,
        dtype=config.dtype,
    )
    metadata = {
        "config": config.to_dict() | {"model": settings},
        "label_scheme": cases.scheme.to_json(),
        "project_scheme": cases.project_scheme.to_json() if cases.project_scheme else None,
        "plan": plan,
        "dataset": cases.dataset,
        "data": cases.description,
        "device": device(),
        "versions": versions(),
    }
    return steps, metadata


def _train_and_validate(
    config: Any,
    workdir: Path,
    planned: _Planned,
    steps: Steps,
    metadata: dict,
    fold: str,
    interruption: Interruption,
) -> None:
    """Trains a fold and scores its validation cases."""
    everything = sorted(planned.preprocessed)
    split = {"train": everything, "val": everything} if fold == ALL else planned.splits[int(fold)]
    folder, title = workdir / f"fold_{fold}", f"{config.name}, fold {fold}"
    train_cases, val_cases = ([planned.preprocessed[name] for name in split[which]] for which in ("train", "val"))
    train_fold(
        steps,
        [files for _, files in train_cases],
        [files for _, files in val_cases],
        class_names=planned.cases.scheme.class_names,
        folder=folder,
        metadata=metadata | {"fold": fold, "data_sha256": folds.fold_sha256(planned.fingerprint, split, planned.plan)},
        settings=LoopSettings(config.iterations, config.checkpoint_steps, config.log_seconds, config.max_bad_steps),
        interruption=interruption,
        title=title,
    )
    if not is_main_process() or fold == ALL or is_validated(folder / "validation", [case for case, _ in val_cases]):
        return
    scores = validate(
        _predictor([folder], planned.plan),
        [case for case, _ in val_cases],
        [files for _, files in val_cases],
        planned.cases.scheme,
        folder / "validation",
        title=title,
        data=_data(config, planned.cases),
        log_seconds=config.log_seconds,
    )
    print_main(f"{title}: Dice over the validation cases: {_line(scores['dice_global'])}")
    print_main(f"look at:   {folder / 'progress.png'}  {folder / 'validation' / 'samples.png'}")


def _plan(config: Any, cases: case_sets.Cases, fingerprint: dict) -> dict:
    """Returns the plan of the file that the config names, or makes one."""
    if not config.plan:
        name = f"Dataset001_{config.name}"
        return make_plan(
            fingerprint, cases.dataset, config.preset, rule_before_2_3_1=config.rule_before_2_3_1, dataset_name=name
        )
    plan = plan_file.read_plan(config.plan)
    try:
        plan_file.check_plan(plan, cases.dataset, fingerprint)
    except DataError as error:
        raise DataError(f"{printable(config.plan)}: {error}") from error
    return plan


def _splits(config: Any, cases: case_sets.Cases) -> list[dict]:
    """Returns the names of the cases that each fold trains on ("train") and validates on ("val")."""
    names = [case.name for case in cases.train]
    patient_of = {case.name: case.patient or case.name for case in cases.train}
    if config.fold == ALL:
        return []
    if config.folds == "patient":
        splits = by_patient(
            names,
            [patient_of[name] for name in names],
            remedy="add data, give folds of your own with --config.folds=FILE (or published, the split of a data set "
            "that has one), or train on everything with --config.fold=all",
        )
    elif config.folds == "case":
        splits = by_case(names)
    elif is_file_of_folds(config.folds):
        splits = folds.read_splits(config.folds)
        remarks = folds.check_splits(config.folds, splits, names)
        print_main("; ".join([f"folds: {len(splits)} of {config.folds}", *remarks]))
    else:
        published = {split: [case.name for case in cases.train if case.split == split] for split in ("train", "val")}
        if not all(published.values()):
            raise ConfigError(
                "config.folds=published: the data set has no published train and val split; use patient or case"
            )
        splits = [published]
    leaking = {patient for split in splits for patient in folds.patients_on_both_sides(split, patient_of)}
    if leaking:
        print_main(
            f"folds: {len(leaking)} of {len(set(patient_of.values()))} patients have cases on both sides of a fold, so "
            f"the scores are too high (config.folds={config.folds}); --config.folds=patient keeps patients apart"
        )
    unstated = sum(case.patient is None for case in cases.train)
    if unstated:
        print_main(
            f"folds: the names of {unstated} of {len(names)} cases do not say their patient, so "
            + (
                "the folds are not by patient, and each of these cases counts as a patient of its own; if patients "
                "have several cases, give the folds with --config.folds=FILE, or the scores are too high"
                if config.folds == "patient"
                else "whether patients have cases on both sides of a fold is not known; if they have, the scores are "
                "too high"
            )
        )
    return splits


def _predictor(fold_folders, plan):
    """Returns the predictor with the last weights of the folds, as in nnU-Net."""
    trained = [load_model(folder / "checkpoints", "latest")[0] for folder in fold_folders]
    return make_predictor(trained, plan["configurations"]["2d"]["patch_size"])


def _conclude(config: Any, workdir: Path, planned: _Planned) -> None:
    """Once all folds are trained: writes their table, decides on post-processing, and scores the test split."""
    cases, splits = planned.cases, planned.splits
    together = summarize(workdir, splits, cases.scheme, _data(config, cases)) if splits else None
    if splits and not together:
        print_main("cross-validation: the table is written when all folds are trained")
        return
    postprocess_labels = None
    if together:
        print_main(together[1])
        if config.postprocessing:
            by_name = {name: case for name, (case, _) in planned.preprocessed.items()}
            decision = decide_postprocessing(workdir, by_name, splits, cases.scheme)
            postprocess_labels = functools.partial(postprocess.apply_postprocessing, decision=decision)
            print_main(f"post-processing: keep only the largest component of {decision['keep_largest'] or 'nothing'}")
        print_main(f"scores:    {workdir / 'cross_validation.json'}")
    if cases.test and not is_validated(workdir / "test", cases.test):
        names = [ALL] if not splits else [str(number) for number in range(len(splits))]
        scores = validate(
            _predictor([workdir / f"fold_{name}" for name in names], planned.plan),
            cases.test,
            store.preprocessed(cases.test, cases.dataset, planned.plan, cases.folder),
            cases.scheme,
            workdir / "test",
            title=f"{config.name}, test, {len(names)} fold(s)",
            data=_data(config, cases),
            log_seconds=config.log_seconds,
            postprocess=postprocess_labels,
        )
        dice = _line(scores["dice_global"])
        print_main(f"{config.name}: Dice over the test split, ensemble of {len(names)} fold(s): {dice}")
        print_main(f"look at:   {workdir / 'test' / 'samples.png'}")


def _data(config: Any, cases: case_sets.Cases) -> dict:
    """Returns what the scores were computed on, as JSON: the cases, what was left out, and how they are in folds."""
    return {"layout": config.data.layout, "folds": config.folds, **(cases.counts or cases.description or {})}


def _line(scores: dict) -> str:
    """Returns scores as one line of text."""
    return ", ".join(f"{name} {format_score(value)}" for name, value in scores.items())
