"""Finds plans and folds that a user put where a run reads or writes.

Such a file is used if the config names it. A run neither ignores nor replaces it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bcss_jax.common.json_files import as_json, read_json
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.nnunet.cases import RAW
from bcss_jax.nnunet.config import is_file_of_folds

_SPLITS = ("splits_final.json", "splits.json", "splits_final.pkl")
_PLANS = ("plans.json", "nnUNet*Plans*.json", "nnUNetPlans*.json", "nnUNetPlans*.pkl")
_OURS = ("plans.json", "splits_final.json")  # in the folder of a run, where `missing_documents` checks them


def refuse_unnamed(config: Any, workdir: Path, plan: dict, splits: list[dict]) -> None:
    """Refuses plans and folds of the user that the config does not name and that differ from those of the run.

    Args:
      config: of the run.
      workdir: of the run.
      plan: of the run.
      splits: the folds of the run; empty if one network is trained on all cases.

    Raises:
      ConfigError: there is such a file in the raw data folder or in the folder of the run.
    """
    if not config.plan:
        for file in _found(config, workdir, _PLANS):
            _refuse_other(file, plan, "plan", "use it with --config.plan")
    if splits and not is_file_of_folds(config.folds):
        for file in _found(config, workdir, _SPLITS):
            _refuse_other(file, splits, "folds", "use them with --config.folds")


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
        if file.exists():
            _refuse_other(file, content, name, remedies.get(name, "name another --workdir"))
        else:
            missing.append(name)
    return missing


def _found(config, workdir, patterns) -> Iterator[Path]:
    raw = [Path(config.data.dir).expanduser()] if config.data.layout == RAW else []
    for folder in (*raw, workdir):
        for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
            if not (folder == workdir and path.name in _OURS):
                yield path


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
