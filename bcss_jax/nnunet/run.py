"""nnU-Net's method from data set to ensemble: fingerprint, plan, preprocessing, folds, cross-validation, test."""

import functools
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from bcss_jax import models
from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_score
from bcss_jax.common.interruption import Interruption
from bcss_jax.data.discovery import DataSettings
from bcss_jax.errors import ConfigError
from bcss_jax.labels import find_scheme
from bcss_jax.models import MODELS
from bcss_jax.nnunet import cases as case_sets
from bcss_jax.nnunet import folds, plan_file, postprocess, store
from bcss_jax.nnunet.config import ALL, fold_names
from bcss_jax.nnunet.cross_validation import decide_postprocessing, summarize
from bcss_jax.nnunet.network import class_and_arguments
from bcss_jax.nnunet.plan import make_plan
from bcss_jax.nnunet.predict import make_predictor
from bcss_jax.nnunet.steps import Length, make_steps
from bcss_jax.nnunet.train import train_fold
from bcss_jax.nnunet.validate import validate
from bcss_jax.training.checkpoint import load_model
from bcss_jax.training.summary import device, versions


def run(config: ConfigDict, workdir: Path, interruption: Interruption) -> None:
    """Plans, trains and validates the folds that the config asks for; the same call goes on where it was stopped.

    Args:
      config: checked by `nnunet.config.validate`.
      workdir: of the run, claimed. Gets plans.json, dataset.json, dataset_fingerprint.json, splits_final.json and a
        folder per fold; once all folds are there, cross_validation.json and the ensemble's scores on the test part.
      interruption: asked after every iteration.

    Raises:
      UserError: of one of its kinds, with one line for the user.
    """
    speaks = jax.process_index() == 0
    say = functools.partial(print, flush=True) if speaks else lambda line: None

    # --- Data, fingerprint, plan ---
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
    fingerprint = store.fingerprint_of(cases)
    plan = _plan(config, cases, fingerprint)
    say(plan_file.plan_table(plan, fingerprint, cases.dataset, rule_before_2_3_1=config.rule_before_2_3_1))
    splits = _splits(config, cases, say)
    if speaks:
        documents = {"dataset": cases.dataset, "dataset_fingerprint": fingerprint, "splits_final": splits}
        for name, content in documents.items():
            write_text(workdir / f"{name}.json", json.dumps(content, indent=1) + "\n")
        plan_file.write_plan(workdir / "plans.json", plan)
    stored = store.preprocessed(cases.train, cases.dataset, plan, cases.folder)
    by_name = {case.name: (case, prepared) for case, prepared in zip(cases.train, stored, strict=True)}

    # --- Folds ---
    network, kwargs = class_and_arguments(plan)
    settings = {"name": next(name for name, model in MODELS.items() if model is network), **kwargs}
    about = {
        "config": config.to_dict() | {"model": settings},
        "label_scheme": cases.scheme.to_json(),
        "project_scheme": cases.project_scheme.to_json() if cases.project_scheme else None,
        "plan": plan,
        "dataset": cases.dataset,
        "data": cases.description,
        "device": device(),
        "versions": versions(),
    }
    configuration = plan["configurations"]["2d"]
    num_classes = cases.scheme.num_classes
    steps = make_steps(
        models.create(**settings, num_classes=num_classes, dtype=config.dtype, seed=config.seed),
        configuration,
        num_classes=num_classes,
        length=Length(config.epochs, config.iterations, config.val_iterations),
        seed=config.seed,
        batch_size=configuration["batch_size"],
        micro_batches=config.micro_batches,
    )
    for name in fold_names(config):
        everything = sorted(by_name)
        split = {"train": everything, "val": everything} if name == ALL else splits[int(name)]
        folder, title = workdir / f"fold_{name}", f"{config.name}, fold {name}"
        train_fold(
            steps,
            [by_name[case][1] for case in split["train"]],
            [by_name[case][1] for case in split["val"]],
            class_names=cases.scheme.class_names,
            folder=folder,
            about=about | {"fold": name, "data_sha256": folds.fold_sha256(fingerprint, split, plan)},
            checkpoint_steps=config.checkpoint_steps,
            log_seconds=config.log_seconds,
            max_bad_steps=config.max_bad_steps,
            interruption=interruption,
            title=title,
        )
        if not speaks or name == ALL or (folder / "validation" / "summary.json").exists():
            continue
        scores = validate(
            _predictor([folder], plan),
            [by_name[case][0] for case in split["val"]],
            [by_name[case][1] for case in split["val"]],
            cases.scheme,
            folder / "validation",
            title=title,
            log_seconds=config.log_seconds,
        )
        say(f"{title}: Dice over the held-back cases: {_line(scores['dice_global'])}")
        say(f"look at:   {folder / 'progress.png'}  {folder / 'validation' / 'samples.png'}")

    # --- All folds together ---
    if speaks:
        _conclude(config, workdir, cases, plan, splits, by_name, say)


def _plan(config, cases, fingerprint):
    if not config.plan:
        name = f"Dataset001_{config.name}"
        return make_plan(
            fingerprint, cases.dataset, config.preset, rule_before_2_3_1=config.rule_before_2_3_1, dataset_name=name
        )
    plan = plan_file.read_plan(config.plan)
    plan_file.check_plan(plan, cases.dataset, fingerprint)
    return plan


def _splits(config, cases, say):
    names, patients = [case.name for case in cases.train], [case.patient for case in cases.train]
    if config.fold == ALL:
        return []
    if config.folds == "patient":
        splits = folds.by_patient(names, patients)
    elif config.folds == "case":
        splits = folds.by_case(names)
    else:
        parts = {part: [case.name for case in cases.train if case.part == part] for part in ("train", "val")}
        if not all(parts.values()):
            raise ConfigError(
                "config.folds=published: the data set has no train and val part of its own; use patient or case"
            )
        splits = [parts]
    patient_of = dict(zip(names, patients, strict=True))
    leaking = {patient for split in splits for patient in folds.patients_on_both_sides(split, patient_of)}
    if leaking:
        say(
            f"folds: {len(leaking)} of {len(set(patients))} patients are on both sides of a fold, so its figures flatter "
            f"(config.folds={config.folds}); --config.folds=patient keeps them apart"
        )
    return splits


def _predictor(fold_folders, plan):
    """Predicts with the last weights of folds, as nnU-Net does."""
    trained = [load_model(folder / "checkpoints", "latest")[0] for folder in fold_folders]
    return make_predictor(trained, plan["configurations"]["2d"]["patch_size"])


def _conclude(config, workdir, cases, plan, splits, by_name, say):
    """Table of the folds, post-processing, and the test part, when all folds are there."""
    together = summarize(workdir, len(splits), cases.scheme) if splits else None
    if splits and not together:
        say("cross-validation: the table comes when all folds are trained")
        return
    change = lambda labels: labels  # noqa: E731
    if together:
        say(together[1])
        if config.postprocessing:
            decision = decide_postprocessing(workdir, {n: c for n, (c, _) in by_name.items()}, splits, cases.scheme)
            change = functools.partial(postprocess.apply_postprocessing, decision=decision)
            say(f"post-processing: keep only the largest component of {decision['keep_largest'] or 'nothing'}")
        say(f"figures:   {workdir / 'cross_validation.json'}")
    if cases.test and not (workdir / "test" / "summary.json").exists():
        names = [ALL] if not splits else [str(number) for number in range(len(splits))]
        scores = validate(
            _predictor([workdir / f"fold_{name}" for name in names], plan),
            cases.test,
            store.preprocessed(cases.test, cases.dataset, plan, cases.folder),
            cases.scheme,
            workdir / "test",
            title=f"{config.name}, test, {len(names)} fold(s)",
            change=change,
            log_seconds=config.log_seconds,
        )
        say(f"{config.name}: Dice over the test part, ensemble of {len(names)} fold(s): {_line(scores['dice_global'])}")
        say(f"look at:   {workdir / 'test' / 'samples.png'}")


def _line(scores):
    return ", ".join(f"{name} {format_score(value)}" for name, value in scores.items())
