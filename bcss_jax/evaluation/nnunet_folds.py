"""Finds the folds of a run of nnU-Net's method and checks them before anything is computed.

As for other runs (`trained_run`), nothing in the folder is executed or unpickled.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bcss_jax.common.json_files import as_json, read_json
from bcss_jax.errors import ConfigError, DataError, UserError, first_line, printable
from bcss_jax.labels import LabelScheme, find_scheme, name_of, scheme_from_json
from bcss_jax.nnunet import cases, folds, labels, plan_file
from bcss_jax.nnunet.config import ALL, validate
from bcss_jax.nnunet.preprocess import preprocess
from bcss_jax.nnunet.run_files import read_postprocessing, read_splits
from bcss_jax.training import checkpoint
from bcss_jax.training.summary import params_sha256

WHICH = "latest"


@dataclasses.dataclass(frozen=True)
class TrainedFold:
    """The network of one fold. Its arrays stay on disk.

    Attributes:
      name: "0" to "4", or "all".
      folder: folder of its checkpoints.
      step: training step of the latest checkpoint.
      metadata: config, label scheme and versions, as the checkpoint stores them.
      sha256: hash of its parameters.
    """

    name: str
    folder: Path
    step: int
    metadata: dict
    sha256: str


@dataclasses.dataclass(frozen=True)
class TrainedFolds:
    """All trained folds of a run. They have the same plan, data set and label scheme.

    Attributes:
      folds: sorted by name. "all" is used only if it is the only fold.
      scheme: the project's label scheme with the same labels.
      network: network of all folds, with shapes in place of weights.
      trained_names: names of the images that a fold was trained on. None: all training and validation images.
    """

    folds: tuple[TrainedFold, ...]
    scheme: LabelScheme
    network: nnx.Module
    trained_names: frozenset[str] | None


def read_folds(run_folder: Path, mesh: Mesh) -> TrainedFolds:
    """Finds and checks the latest checkpoint of each fold.

    Args:
      run_folder: folder of a run of configs/nnunet.py.
      mesh: devices to read onto.

    Raises:
      DataError: A checkpoint is damaged, has another format, or contradicts itself or the others, or splits_final.json
        does not belong to them.
      ConfigError: No label scheme of the project has the labels of the run, or the run postprocesses its labels.
    """
    found = {name: checkpoint.load_trained(run_folder / f"fold_{name}" / "checkpoints", mesh, WHICH)
             for name in folds.folds_of_ensemble(run_folder)}  # fmt: skip
    schemes, networks = [], []
    for trained in found.values():
        where = trained.folder / str(trained.step)
        try:
            schemes.append(_scheme(run_folder, trained.metadata))
            networks.append(checkpoint.network_of(trained))
            plan, dataset = trained.metadata["plan"], trained.metadata["dataset"]
            plan_file.check_plan(plan, dataset)
            preprocess(np.ones((2, 2, 3), np.uint8), None, plan, dataset)  # fails if the plan lacks something
            [int(side) for side in plan["configurations"]["2d"]["patch_size"]]
            data = trained.metadata.get("data")
            if data is not None and not {"layout", "split", "tiles", "content_sha256"} <= data.keys():
                raise KeyError("data")
            json.dumps(trained.metadata, allow_nan=False)  # the evaluation writes it to JSON again
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{where}: {first_line(error)}; the checkpoint was changed or is not of this program"
            ) from error
    metadata = [trained.metadata for trained in found.values()]
    for name in ("plan", "dataset"):
        if any(each[name] != metadata[0][name] for each in metadata):
            raise DataError(
                f"{run_folder}: expected folds of one {name}, found several; keep only folds that belong together"
            )
    if any(scheme != schemes[0] for scheme in schemes):
        raise DataError(
            f"{run_folder}: expected folds of one label scheme, found several; keep only folds that belong together"
        )
    _refuse_postprocessing(run_folder)
    return TrainedFolds(
        tuple(
            TrainedFold(name, each.folder, each.step, each.metadata, params_sha256(each.params))
            for name, each in found.items()
        ),
        schemes[0],
        networks[0],
        _trained_names(run_folder, {name: trained.metadata for name, trained in found.items()}),
    )


def _scheme(run_folder, metadata):
    """Returns the label scheme of the project that has the labels of a checkpoint."""
    settings: Any = ConfigDict(metadata["config"])
    if settings.data.layout == cases.RAW:
        raise ConfigError(
            f"{printable(run_folder)}: trained on a raw data folder of nnU-Net, whose labels belong to no label "
            "scheme; its folds are scored in the run's cross_validation.json"
        )
    stored = metadata.get("project_scheme")  # older checkpoints lack it and have a scheme of the package
    try:
        scheme = find_scheme(settings.labels) if stored is None else scheme_from_json(stored)
        validate(settings, scheme)
    except UserError as error:
        raise ValueError(first_line(error)) from error
    dataset = labels.dataset_of(scheme, metadata["dataset"]["numTraining"])
    expected = as_json([dataset, cases.scheme_of(dataset, scheme).to_json()])
    found = {name: value for name, value in expected[1].items() if name in metadata["label_scheme"]}
    if [metadata["dataset"], metadata["label_scheme"]] != [expected[0], found] or name_of(
        settings.labels
    ) != scheme.name:
        raise ValueError(f"its config says labels={scheme.name}, its data set or label scheme says something else")
    return scheme


def _refuse_postprocessing(run_folder):
    file = run_folder / "postprocessing.json"
    if not file.exists():
        return
    decision = read_postprocessing(file, "determine the postprocessing again")
    if decision["keep_largest"]:
        raise ConfigError(
            f"{printable(file)}: the run postprocesses its labels (largest components only), but the evaluation scores "
            "probabilities; move this file away to score them without postprocessing, or see the run's test folder"
        )


def _trained_names(run_folder, metadata):
    """Returns the names of the images that a fold was trained on; None for all images."""
    if ALL in metadata:
        return None
    remedy = "put the run's files back"
    # The hash of a fold, which is compared below, covers the whole content.
    file = run_folder / "dataset_fingerprint.json"
    fingerprint = read_json(file, "the fingerprint of the data set", remedy, kind=dict)
    splits = read_splits(run_folder / "splits_final.json", remedy)
    try:
        names = set()
        for name, of_fold in metadata.items():
            split = splits[int(name)]
            if folds.fold_sha256(fingerprint, split, of_fold["plan"]) != of_fold["data_sha256"]:
                raise ValueError(f"fold {name} was trained with another split, plan or data set")
            names.update(split["train"])
        return frozenset(names)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{printable(run_folder / 'splits_final.json')}: expected the split that the folds were trained with, and "
            f"dataset_fingerprint.json of the same data set, found: {first_line(error)}; {remedy}"
        ) from error
