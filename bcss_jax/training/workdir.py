"""The folder of a run: it belongs to one config."""

import json
import shutil
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from bcss_jax.common.files import storage_errors, write_text
from bcss_jax.common.json_files import read_json
from bcss_jax.errors import ConfigError

# Everything that a run writes into its folder, and that `--fresh` deletes.
OUTPUTS = (
    "checkpoints", "tensorboard", "config.json", "history.csv", "summary.json", "curves.png", "samples.png",
    "plans.json", "dataset.json", "dataset_fingerprint.json", "splits_final.json", "cross_validation.json",
    "postprocessing.json", "test", "fold_*",
)  # fmt: skip


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
    with storage_errors(workdir):
        if fresh:
            found = sorted(path.name for name in OUTPUTS for path in workdir.glob(name))
            if found and "config.json" not in found:
                raise ConfigError(
                    f"{workdir} holds {', '.join(found)} but no config.json, so it is not the folder of a run; --fresh "
                    "does not delete that"
                )
            for path in (workdir / name for name in found):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    from bcss_jax.config import differences  # here, because it imports JAX, which the viewer does not need

    path = workdir / "config.json"
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
