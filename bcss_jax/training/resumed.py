"""Checks that a checkpoint was saved by the run that resumes from it."""

from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from bcss_jax.common.json_files import check_shape
from bcss_jax.config import differences
from bcss_jax.errors import ConfigError, DataError, first_line, printable


class _Pretrained(TypedDict):
    sha256: str


class _Config(TypedDict):
    data: dict[str, Any]


class _Metadata(TypedDict):
    """What is read of the metadata of a checkpoint, of either method of training."""

    config: _Config
    label_scheme: dict[str, Any]
    data_sha256: NotRequired[str]
    pretrained: NotRequired[_Pretrained | None]


def check_same_run(folder: Path, saved: Any, metadata: dict) -> None:
    """Checks the metadata of a checkpoint, which may have been copied from another run.

    Args:
      folder: of the checkpoints.
      saved: metadata of the checkpoint.
      metadata: of the run that resumes.

    Raises:
      ConfigError: the checkpoint was saved with other settings.
      DataError: the metadata are not those of a checkpoint.
    """
    try:
        check_shape(saved, _Metadata, finite=False)
        before, now = ({**each["config"], "label_scheme": each["label_scheme"]} for each in (saved, metadata))
        changed = differences(before, now)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{printable(folder)}: expected the description of a run in its checkpoint, found: {first_line(error)}; "
            "delete the damaged checkpoint, or start over with --fresh"
        ) from error
    if changed:
        raise ConfigError(
            f"{printable(folder)}: the checkpoint was saved by a run with other settings ({'; '.join(changed)}); move "
            "it away, or use --fresh or another --workdir"
        )
    # nnU-Net's method compares another digest of the data; its older checkpoints do not describe them.
    for name in ("data_sha256",) if "data_sha256" in metadata else ("data", "pretrained"):
        if name not in saved or (name == "data" and not isinstance(saved[name], dict)):
            raise DataError(
                f"{printable(folder)}: expected {name} in the description of a run in its checkpoint, found none; "
                "delete the damaged checkpoint, or start over with --fresh"
            )


def check_same_data(workdir: Path, saved: dict, metadata: dict) -> None:
    """Raises ConfigError if a checkpoint was saved with another data set.

    Args:
      workdir: of the run.
      saved: metadata of the checkpoint, checked.
      metadata: of the run that resumes.
    """
    if saved["data"].get("content_sha256") != metadata["data"]["content_sha256"]:
        raise ConfigError(
            f"{workdir}: the data set is not the one this run was trained on (its tiles, splits or masks "
            "differ); put it back, or use --fresh or another --workdir"
        )
