"""The folders of single checkpoints: which there are, and whether their files are as they were written.

A checkpoint is written under a temporary name. Before it gets its name, the SHA-256 of all its files are written to
`digests.json` in it, and its metadata say so. Checkpoints of earlier versions have no digests.
"""

from collections.abc import Collection
from pathlib import Path

from typing_extensions import TypedDict

from bcss_jax.common import digests
from bcss_jax.common.json_files import read_json
from bcss_jax.errors import DataError, first_line, printable

DIGESTS_FIELD = "digests"  # in the metadata of a checkpoint that has digests
WEIGHTS = ("about", "metrics", "params", "progress", "rest")  # the items that are read without the optimizer
# Orbax writes this file after the digests, and the time of the commit into the other one.
_COMMITTED, _DESCRIPTION, _COMMIT_TIME = "commit_success.txt", "_CHECKPOINT_METADATA", "commit_timestamp_nsecs"


class _Metrics(TypedDict, total=False):
    """Content of the item `metrics`."""

    improved_at: int


def step_numbers(folder: Path) -> list[int]:
    """Returns the steps that have an entry in the folder of the checkpoints, sound or not, ascending."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and name == str(int(name)))


def write_digests(step: Path) -> None:
    """Writes the digests of a checkpoint whose files are all written.

    Raises:
      StorageError: they cannot be written.
    """
    digests.write_digests(step, _sha256(step, None))


def damage(step: Path, items: Collection[str] | None = None) -> str | None:
    """Looks for damage in a checkpoint.

    Args:
      step: folder of the checkpoint.
      items: the items that will be read; other items are not looked at. None: all.

    Returns:
      What is damaged, in a few words; None if nothing is, or if the checkpoint has no digests and the damage does not
      show without them.
    """
    try:
        improved_at(step)
        about = _read(step / "about" / "metadata", dict)
        expected = digests.read_digests(step)
        if expected is None:
            return f"{digests.NAME} is missing" if DIGESTS_FIELD in about else None
        expected = {name: sha256 for name, sha256 in expected.items() if _is_of(name, items)}
        return digests.differing(expected, _sha256(step, items))
    except DataError as error:
        return first_line(error).removeprefix(f"{printable(step)}/").partition(";")[0]
    except OSError as error:
        return f"{str(error.filename).removeprefix(f'{step}/')}: {error.strerror}"


def has_digests(step: Path) -> bool:
    """Returns whether a checkpoint has digests; those of earlier versions have none."""
    return (step / digests.NAME).exists()


def improved_at(step: Path) -> int:
    """Returns the epoch that ended with this checkpoint and the lowest validation loss so far; -1 for others.

    Raises:
      DataError: the file cannot be read, or does not hold that.
    """
    return _read(step / "metrics" / "metrics", _Metrics).get("improved_at", -1)


def _sha256(step: Path, items: Collection[str] | None) -> dict[str, str]:
    """Returns the SHA-256 of the files of a checkpoint, as `write_digests` writes them."""
    names = [name for name in digests.files_in(step) if name not in (digests.NAME, _COMMITTED) and _is_of(name, items)]
    found = digests.sha256_of_files(step, [name for name in names if name != _DESCRIPTION])
    if _DESCRIPTION in names:
        content = _read(step / _DESCRIPTION, dict)
        found[_DESCRIPTION] = digests.sha256_of_json({k: v for k, v in content.items() if k != _COMMIT_TIME})
    return found


def _is_of(name: str, items: Collection[str] | None) -> bool:
    """Returns whether a file belongs to one of the items, or to none, as the files beside them do."""
    item, _, inside = name.partition("/")
    return items is None or not inside or item in items


def _read(path: Path, kind: type) -> dict:
    return read_json(path, "JSON of a checkpoint", "the checkpoint is damaged", kind=kind, finite=False)
