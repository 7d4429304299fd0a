"""Writes the run of an imported network: a checkpoint that all commands read, config.json, and MODEL_CARD.md."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import optax

from bcss_jax.common.files import locked, write_text
from bcss_jax.common.outputs import written_files
from bcss_jax.errors import ConfigError, printable
from bcss_jax.inference.imported.card import card
from bcss_jax.inference.imported.network import ImportedNetwork
from bcss_jax.training import workdir as workdirs
from bcss_jax.training.checkpoint import Checkpoints
from bcss_jax.training.optimizer import Poly
from bcss_jax.training.step import TrainState
from bcss_jax.training.step_folder import step_numbers

CARD = "MODEL_CARD.md"
_EVAL_BATCH = 8  # images of an evaluation batch


def check_output(folder: Path, overwrite: bool) -> None:
    """Raises ConfigError if the folder of the run holds a run, and `overwrite` is not set, or other files."""
    if step_numbers(folder / "checkpoints") and not overwrite:
        raise ConfigError(
            f"--output={printable(folder)}: holds a run already; name another folder, or replace it with --overwrite"
        )
    written_files.check([folder / CARD], "move it away, or name another --output")


def write_run(folder: Path, network: ImportedNetwork, overwrite: bool) -> None:
    """Writes the run.

    Args:
      folder: of the run; made if necessary.
      network: what was imported.
      overwrite: delete the run that the folder holds first.

    Raises:
      ConfigError: as `check_output`, or the folder holds files that this program did not write.
      StorageError: the folder cannot be written, or another process works in it.
    """
    with locked(folder):
        check_output(folder, overwrite)
        metadata = metadata_of(folder.name, network)
        settings = json.loads(json.dumps(metadata["config"])) | {"label_scheme": metadata["label_scheme"]}
        workdirs.claim(folder, settings, overwrite)
        write_text(folder / CARD, card(folder, network))
        state = TrainState.create(network.model, optax.identity(), Poly(1))
        with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
            checkpoints.save(state, {"epoch": None, "history": []}, metadata, improved_at=0)
            checkpoints.wait()


def metadata_of(name: str, network: ImportedNetwork) -> dict[str, Any]:
    """Returns the metadata of the checkpoint, JSON; what only training knows is None or missing."""
    config = {
        "name": name,
        "labels": network.scheme.name,
        "model": {"name": network.name, **network.arguments},
        "dtype": "float32",
        "image_mean": network.statistics.mean,
        "image_std": network.statistics.std,
        "eval_batch_size": _EVAL_BATCH,
        "data": {
            "layout": "",
            "dir": "",
            "split": "published",
            "mpp": network.mpp,
            "patch_size": network.window,
            "stride": network.window,
        },
    }
    pretrained = {
        "file": network.file,
        "sha256": network.sha256,
        "part": "model",
        "tensors": network.tensors,
        "passed_over": list(network.passed_over),
        "source": network.origin.source,
        "license": network.origin.license,
        "trained_on": network.origin.trained_on,
    }
    return {
        "config": json.loads(json.dumps(config, default=_plain)),
        "label_scheme": json.loads(json.dumps(network.scheme.to_json())),
        "pretrained": pretrained,
        "data": None,
        "imported": {"format": network.format, "overlap": network.overlap, "blend": network.blend},
        "device": None,
        "versions": None,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")
