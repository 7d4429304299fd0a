"""The folder of a run: it belongs to one config."""

import fnmatch
import json
import os
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from bcss_jax.common.files import storage_errors, write_text
from bcss_jax.common.json_files import read_json
from bcss_jax.common.outputs import written_files
from bcss_jax.errors import ConfigError, DataError

# Everything that a run writes into its folder, and that `--fresh` deletes.
OUTPUTS = (
    "checkpoints", "tensorboard", "config.json", "history.csv", "summary.json", "curves.png", "samples.png",
    "plans.json", "dataset.json", "dataset_fingerprint.json", "splits_final.json", "cross_validation.json",
    "postprocessing.json", "test", "fold_*", "encoder.safetensors", "attention.png", "components.png",
    "slide_components.png", "sam.safetensors",
)  # fmt: skip
DOCUMENTS = ("plans.json", "dataset.json", "dataset_fingerprint.json", "splits_final.json")  # of nnU-Net
# Paths of Orbax's and TensorBoard's files in their folders.
CHECKPOINT_FILES = r"(\d+|damaged-\d+-\d+)(\.[^/]*tmp[^/]*)?/.*"
TENSORBOARD_FILES = r"(.*/)?events\.out\.tfevents\..*"


def written_parts(workdir: Path) -> list[Path]:
    """Returns what a run writes or deletes in its folder, whether it is there or not."""
    found = [path for name in OUTPUTS for path in workdir.glob(name)]
    return found + [workdir / name for name in OUTPUTS if "*" not in name]


class _Model(TypedDict):
    name: NotRequired[str]


class _Config(TypedDict):
    """What comparing two configs needs to know of their types; nnU-Net's method has no model."""

    data: dict[str, Any]
    labels: NotRequired[str]
    label_scheme: NotRequired[dict[str, Any]]
    model: NotRequired[_Model]


def claim(workdir: Path, config: dict, fresh: bool) -> None:
    """Claims the folder for a config, which is written to config.json.

    The settings may be corrected as long as the run has saved nothing.

    Args:
      workdir: the folder of the run.
      config: JSON.
      fresh: delete first what an earlier run left in the folder.

    Raises:
      ConfigError: the folder holds a run of another config; the message says what differs. With `fresh`: the files in
        the folder were not written by a run.
      StorageError: the folder cannot be written.
    """
    path = workdir / "config.json"
    with storage_errors(workdir):
        # The user may put the documents of nnU-Net there: the run uses or refuses them, and replaces none.
        # `glob` would not list links that lead nowhere, which writing follows.
        patterns = [name for name in OUTPUTS if name not in DOCUMENTS]
        names = os.listdir(workdir) if workdir.is_dir() else []
        found = sorted(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
        if found and not written_files.has_record(workdir):
            if not _is_config_of_run(path):
                raise ConfigError(
                    f"{workdir} holds {', '.join(found[:5])}, which no run wrote; choose another --workdir"
                    + ("; --fresh does not delete that" if fresh else "")
                )
            written_files.adopt(workdir)  # of a run before there were records
        _check(workdir, found)
        if fresh:
            _delete(workdir, [*found, *DOCUMENTS])
    from bcss_jax.config import differences  # here, because it imports JAX, which the viewer does not need

    saved = any(any(workdir.glob(folder)) for folder in ("checkpoints/*[0-9]", "fold_*/checkpoints/*[0-9]"))
    begun = saved or (workdir / "history.csv").exists()
    if path.exists() and begun:
        old = read_json(path, "the config of a run", "start over with --fresh", kind=_Config, error_type=ConfigError)
        changed = differences(old, config)
        if changed:
            raise ConfigError(
                f"{workdir} holds a run of another config ({'; '.join(changed)}); "
                "use another --workdir, the same settings, or --fresh to delete that run"
            )
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _is_config_of_run(path: Path) -> bool:
    if path.is_symlink():
        return False
    try:
        config = read_json(path, "the config of a run", "choose another --workdir", kind=dict)
    except DataError:
        return False
    return {"name", "data", "labels", "epochs"} <= set(config)


def _check(workdir: Path, found: list[str]) -> None:
    """Raises ConfigError if one of the outputs is a link, or was not written by this program."""
    written_files.check(workdir / name for name in found)
    folders = [path for path in (workdir / name for name in found) if path.is_dir()]
    written_files.check_folders(*folders)
    for folder in folders:
        inner = ("checkpoints", "validation", "history.csv", "progress.png")
        written_files.check(folder / name for name in inner if name in OUTPUTS or (folder / name).is_symlink())


def _delete(workdir: Path, found: list[str]) -> None:
    """Deletes what an earlier run left in the folder."""
    trees = [workdir / "checkpoints", *workdir.glob("fold_*/checkpoints")]
    for tree in trees:
        written_files.check_tree(tree, CHECKPOINT_FILES)
    written_files.delete_tree(workdir / "tensorboard", TENSORBOARD_FILES)
    for tree in trees:
        written_files.delete_tree(tree, CHECKPOINT_FILES)
    written_files.delete(workdir, found)


def cross_validated_folds(folder: Path) -> list[Path]:
    """Returns the folders of the trained folds of a cross-validation, by number; empty for other folders.

    Each fold is a run with a config of its own, which the folds of nnU-Net's method are not.
    """
    if (folder / "checkpoints").exists():
        return []
    found = [path.parent for path in folder.glob("fold_*/config.json") if (path.parent / "checkpoints").exists()]
    numbered = {int(number): path for path in found if (number := path.name.removeprefix("fold_")).isdecimal()}
    return [numbered[number] for number in sorted(numbered)]
