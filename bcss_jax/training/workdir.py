"""The folder of one run: one process at a time, one config for its whole life, no half-written files."""

import json
import shutil
from pathlib import Path

from bcss_jax.common.files import storage_errors, write_text
from bcss_jax.common.json_files import read_json
from bcss_jax.errors import ConfigError

# All that a run writes into its folder, and so all that `--fresh` takes away.
OUTPUTS = (
    "checkpoints", "tensorboard", "config.json", "history.csv", "summary.json", "curves.png", "samples.png",
    "plans.json", "dataset.json", "dataset_fingerprint.json", "splits_final.json", "cross_validation.json",
    "postprocessing.json", "test", "fold_*",
)  # fmt: skip


def claim(workdir: Path, config: dict, fresh: bool) -> None:
    """Ties the folder to a config. A folder tied to an equal one is resumed, `fresh` empties it first.

    A run that has saved nothing yet has no claim: its settings may be mended.

    Raises:
      ConfigError: the folder is that of another config; the message says what differs. With `fresh`: what is there was
        not written by a run.
      StorageError: it cannot be written.
    """
    with storage_errors(workdir):
        if fresh:
            found = sorted(path.name for name in OUTPUTS for path in workdir.glob(name))
            if found and "config.json" not in found:
                raise ConfigError(
                    f"{workdir} holds {', '.join(found)} but no config.json, so no run; --fresh will not delete that"
                )
            for path in (workdir / name for name in found):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    from bcss_jax.config import differences  # here, because it imports JAX, which the viewer does without

    path = workdir / "config.json"
    saved = any(any(workdir.glob(folder)) for folder in ("checkpoints/*[0-9]", "fold_*/checkpoints/*[0-9]"))
    begun = saved or (workdir / "history.csv").exists()
    if path.exists() and begun:
        old = read_json(path, "the config of a run", "start over with --fresh", kind=dict, error_type=ConfigError)
        changed = differences(old, config)
        if changed:
            raise ConfigError(
                f"{workdir} holds a run of another config ({'; '.join(changed)}); "
                "use another --workdir, the same settings, or --fresh to delete that run"
            )
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
