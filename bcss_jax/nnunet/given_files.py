"""Finds plans and folds that a user put where a run reads or writes.

Such a file is used if the config names it. A run neither ignores nor replaces it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bcss_jax.common.json_files import as_json, read_json
from bcss_jax.common.processes import print_main
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.nnunet.config import is_file_of_folds

_SPLITS = ("splits_final.json", "splits.json", "splits_final.pkl")
_PLANS = ("plans.json", "nnUNet*Plans*.json", "nnUNet*Plans*.pkl")


def refuse_unnamed(config: Any, places: Sequence[Path], plan: dict, splits: list[dict]) -> None:
    """Refuses plans and folds of the user that the config does not name and that differ from those of the run.

    Args:
      config: of the run.
      places: folders to look into: of the raw data, of prepared data, of the run.
      plan: of the run.
      splits: the folds of the run; empty if one network is trained on all cases.

    Raises:
      ConfigError: there is such a file in one of the folders.
    """
    if not config.plan:
        for file in _found(places, _PLANS):
            _refuse_other(file, plan, "plan", "use it with --config.plan")
    if splits and not is_file_of_folds(config.folds):
        for file in (each for each in _found(places, _SPLITS) if not _is_empty_list(each)):
            _refuse_other(file, splits, "folds", "use them with --config.folds")


def name_unused(raw: Path) -> None:
    """Prints that nnU-Net's fingerprint in a raw data folder is not used."""
    file = raw / "dataset_fingerprint.json"
    if file.exists():
        print_main(f"{printable(file)}: not used; the fingerprint is taken from the images")


def missing_documents(workdir: Path, documents: dict[str, Any]) -> list[str]:
    """Returns the names of the documents that a run must write because they do not exist.

    Args:
      workdir: of the run.
      documents: name without `.json` -> content.

    Raises:
      ConfigError: a file of that name has another content.
    """
    remedies = {"plans": "use it with --config.plan", "splits_final": "use them with --config.folds"}
    missing = []
    for name, content in documents.items():
        file = workdir / f"{name}.json"
        if file.exists() and not _is_empty_list(file):
            _refuse_other(file, content, name, remedies.get(name, "name another --workdir"))
        else:
            missing.append(name)
    return missing


def _is_empty_list(file):
    """Returns whether a file holds no folds, as older versions wrote it for a network that is trained on all cases."""
    return file.is_file() and file.stat().st_size < 5 and file.read_bytes().split() in ([b"[]"], [b"[", b"]"])


def _found(places, patterns) -> list[Path]:
    return sorted({path for folder in places for pattern in patterns for path in folder.glob(pattern)})


def _refuse_other(file, content, what, remedy):
    try:
        found = read_json(file, "JSON", "move it away")
    except DataError:
        found = None
    if found != as_json(content):
        option = f"{remedy}={printable(file)}" if "--config" in remedy else remedy
        raise ConfigError(
            f"{printable(file)}: expected the {what} of this run or no such file, found another one, which would be "
            f"ignored or replaced; {option}, or move it away"
        )
