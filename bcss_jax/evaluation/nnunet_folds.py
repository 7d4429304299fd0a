"""The folds of a run of nnU-Net's method, found by its folder, and checked before anything is computed.

As of other runs (`trained_run`), nothing in the folder is executed or unpickled.
"""

import dataclasses
import json
from pathlib import Path

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
from bcss_jax.training import checkpoint
from bcss_jax.training.summary import params_sha256

WHICH = "latest"


@dataclasses.dataclass(frozen=True)
class Fold:
    """One of its networks; the arrays stay on the disk.

    Attributes:
      name: "0" to "4", or "all".
      folder: of its checkpoints.
      step: of the last one.
      metadata: config, label scheme and versions, as the checkpoint stores them.
      sha256: of its parameters.
    """

    name: str
    folder: Path
    step: int
    metadata: dict
    sha256: str


@dataclasses.dataclass(frozen=True)
class Folds:
    """All folds of a run that there are, of one plan.

    Attributes:
      folds: in the order of their names; "all" only where it is alone.
      scheme: of the project, whose labels theirs are.
      network: with shapes in place of weights; that of all folds.
      names: of the images that a fold was trained on; None: of all training and validation images.
    """

    folds: tuple[Fold, ...]
    scheme: LabelScheme
    network: nnx.Module
    names: frozenset[str] | None


def read_folds(home: Path, mesh: Mesh) -> Folds:
    """Finds the folds' last checkpoints and checks them.

    Args:
      home: the folder of a run of configs/nnunet.py.
      mesh: devices to read onto.

    Raises:
      DataError: a checkpoint is damaged, of another format, or contradicts itself or the others; splits_final.json is
        not theirs.
      ConfigError: its labels are those of none of the project's schemes, or it changes its labels afterwards.
    """
    names = folds.trained_fold_names(home)
    found = {name: checkpoint.load_trained(home / f"fold_{name}" / "checkpoints", mesh, WHICH)
             for name in [name for name in names if name != ALL] or names}  # fmt: skip
    schemes, networks = [], []
    for trained in found.values():
        where = trained.folder / str(trained.step)
        try:
            schemes.append(_scheme(home, trained.about))
            networks.append(checkpoint.network_of(trained))
            plan, dataset = trained.about["plan"], trained.about["dataset"]
            plan_file.check_plan(plan, dataset)
            preprocess(np.ones((2, 2, 3), np.uint8), None, plan, dataset)  # all that it needs is in the plan
            [int(side) for side in plan["configurations"]["2d"]["patch_size"]]
            data = trained.about.get("data")
            if data is not None and not {"layout", "split", "tiles", "content_sha256"} <= data.keys():
                raise KeyError("data")
            json.dumps(trained.about, allow_nan=False)  # it is written down again
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{where}: {first_line(error)}; the checkpoint was changed or is not of this program"
            ) from error
    abouts = [trained.about for trained in found.values()]
    for name in ("plan", "dataset"):
        if any(about[name] != abouts[0][name] for about in abouts):
            raise DataError(f"{home}: expected folds of one {name}, found several; keep folds that belong together")
    if any(scheme != schemes[0] for scheme in schemes):
        raise DataError(f"{home}: expected folds of one label scheme, found several; keep folds that belong together")
    _refuse_postprocessing(home)
    return Folds(
        tuple(
            Fold(name, each.folder, each.step, each.about, params_sha256(each.params)) for name, each in found.items()
        ),
        schemes[0],
        networks[0],
        _trained_names(home, {name: trained.about for name, trained in found.items()}),
    )


def _scheme(home, about):
    """The project's scheme that its labels are those of."""
    settings = ConfigDict(about["config"])
    if settings.data.layout == cases.RAW:
        raise ConfigError(
            f"{printable(home)}: trained on a raw data folder of nnU-Net, whose labels belong to no label scheme; its folds "
            "are scored in the run's cross_validation.json"
        )
    stored = about.get("project_scheme")  # checkpoints of older versions lack it; theirs are schemes of the package
    try:
        scheme = find_scheme(settings.labels) if stored is None else scheme_from_json(stored)
        validate(settings, scheme)
    except UserError as error:
        raise ValueError(first_line(error)) from error
    dataset = labels.dataset_of(scheme, about["dataset"]["numTraining"])
    expected = as_json([dataset, cases.scheme_of(dataset, scheme).to_json()])
    found = {name: value for name, value in expected[1].items() if name in about["label_scheme"]}
    if [about["dataset"], about["label_scheme"]] != [expected[0], found] or name_of(settings.labels) != scheme.name:
        raise ValueError(f"its config says labels={scheme.name}, its data set or label scheme says something else")
    return scheme


def _refuse_postprocessing(home):
    file = home / "postprocessing.json"
    if not file.exists():
        return
    decision = read_json(file, "the postprocessing of a run", "determine it again", kind=dict)
    if "keep_largest" not in decision:
        raise DataError(
            f"{printable(file)}: expected the field keep_largest, found none; determine the postprocessing again"
        )
    if decision["keep_largest"]:
        raise ConfigError(
            f"{printable(file)}: the run changes its labels afterwards (largest components only); the evaluation scores "
            "probabilities, so move that file away to score them without, or see the run's test folder"
        )


def _trained_names(home, abouts):
    """Names of what the folds were trained on, None for everything."""
    if ALL in abouts:
        return None
    fingerprint, splits = (
        read_json(home / name, "what the run wrote about its data set", "put the run's files back")
        for name in ("dataset_fingerprint.json", "splits_final.json")
    )
    try:
        seen = set()
        for name, about in abouts.items():
            split = splits[int(name)]
            if folds.fold_sha256(fingerprint, split, about["plan"]) != about["data_sha256"]:
                raise ValueError(f"fold {name} was trained with another split, plan or data set")
            seen.update(split["train"])
        return frozenset(seen)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{printable(home / 'splits_final.json')}: expected the split that the folds were trained with, and the data "
            f"set's fingerprint beside it, found: {first_line(error)}; put the run's files back"
        ) from error
