"""Loads trained folds, of a run of ours or of a result folder of nnU-Net, with their plan and data set."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from flax import nnx

from bcss_jax.errors import DataError
from bcss_jax.labels import LabelScheme, scheme_from_json
from bcss_jax.nnunet import plan_file, result_folder
from bcss_jax.nnunet.folds import folds_of_ensemble, trained_fold_names
from bcss_jax.nnunet.run_files import read_postprocessing
from bcss_jax.training.checkpoint import load_model


@dataclasses.dataclass(frozen=True)
class TrainedFolds:
    """Trained networks of one plan.

    Attributes:
      plan: contents of plans.json.
      dataset: contents of dataset.json.
      models: name of a fold -> network in evaluation mode.
      mirror_axes: axes that were mirrored in training: 0 height, 1 width.
      project_scheme: the label scheme that the labels were made from; None: not known.
      postprocessing: the decision of `postprocess.determine_postprocessing`; None: there is none.
    """

    plan: dict
    dataset: dict
    models: dict[str, nnx.Module]
    mirror_axes: tuple[int, ...]
    postprocessing: dict | None
    project_scheme: LabelScheme | None = None

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of the windows."""
        height, width = self.plan["configurations"]["2d"]["patch_size"]
        return height, width


def load_trained_folds(folder: Path, folds: Sequence[str] | None = None) -> TrainedFolds:
    """Loads the latest weights of folds.

    Args:
      folder: the workdir of a run of configs/nnunet.py, or a result folder of nnU-Net v2.
      folds: names, such as "0"; None: all folds, but "all" only if there are no others.

    Raises:
      DataError: the folder is neither of them, or a fold is missing or damaged.
      ConfigError: a result folder of nnU-Net needs torch >= 2.10, which is not installed.
    """
    folder = Path(folder).expanduser()
    ours = trained_fold_names(folder)
    if not ours:
        numbers = None if folds is None else [int(fold) if fold.isdecimal() else fold for fold in folds]
        found = result_folder.read_result_folder(folder, numbers)
        models = {str(fold): found.model(fold) for fold in found.folds}
        return TrainedFolds(found.plan, found.dataset, models, found.mirror_axes, None)
    chosen = list(folds) if folds is not None else folds_of_ensemble(folder)
    absent = [name for name in chosen if name not in ours]
    if absent:
        raise DataError(
            f"{folder}: expected fold {', '.join(absent)}, found {', '.join(ours)}; train it, or leave it out"
        )
    models, plans, project_scheme = {}, [], None
    for name in chosen:
        models[name], metadata = load_model(folder / f"fold_{name}" / "checkpoints", "latest")
        if "plan" not in metadata:
            raise DataError(
                f"{folder}: expected a run of configs/nnunet.py, found one without a plan; name another folder"
            )
        if metadata.get("fold", name) != name:
            raise DataError(
                f"{folder / f'fold_{name}'}: expected the checkpoint of fold {name}, found that of fold "
                f"{metadata['fold']}; restore or remove this folder"
            )
        plans.append((metadata["plan"], metadata["dataset"]))
        try:
            stored = metadata.get("project_scheme")
            project_scheme = None if stored is None else scheme_from_json(stored)
        except ValueError as error:
            raise DataError(f"{folder}: {error}; the checkpoint was changed or is not of this program") from error
    if any(each != plans[0] for each in plans):
        raise DataError(f"{folder}: expected folds of one plan, found several; name the folds that belong together")
    decision = folder / "postprocessing.json"
    postprocessing = None
    if decision.exists():
        postprocessing = read_postprocessing(decision, "delete it or determine it again")
    plan, dataset = plans[0]
    plan_file.check_plan(plan, dataset)
    return TrainedFolds(plan, dataset, models, (0, 1), postprocessing, project_scheme)
