"""The size of the table of position embeddings follows the weights that a vision transformer begins with."""

import dataclasses
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from bcss_jax.common.json_files import read_json
from bcss_jax.common.processes import print_main
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.fitting import architecture_of
from bcss_jax.models.encoders.vision_transformer.presets import preset_of
from bcss_jax.models.weights.files import read_shapes
from bcss_jax.models.weights.vision_transformer_names import canonical


class _Model(TypedDict):
    encoder: NotRequired[str]
    table: NotRequired[int]


class _Config(TypedDict):
    """What is read of the config of a run."""

    model: _Model


def set_position_table(config: Any, workdir: Path) -> None:
    """Sets `config.model.table` to that of the pretrained weights, if it is not the published one.

    Weights that cannot be read, or are those of another network, are left to those who load them.

    Args:
      config: settings of a run; changed in place.
      workdir: of the run. If the weights are gone, a run that began with them keeps their table.
    """
    model = config.model
    if model.get("name") != "vit" or model.get("table", 1) or not config.pretrained:
        return
    architecture = preset_of(model.encoder).architecture
    if architecture.table is None:
        return
    path = Path(config.pretrained).expanduser()
    try:
        table = _table_of_run(path, model.encoder) if path.is_dir() else _table_of_file(path, architecture)
    except (DataError, ConfigError):
        table = None
    if table is None:
        table = _table_of_run(workdir, model.encoder)
    if table and table != architecture.table:
        print_main(
            f"{printable(config.pretrained)}: has a position table of {table}x{table}, and the network takes it; that "
            f"of {model.encoder} is {architecture.table}x{architecture.table}"
        )
        model.table = table


def _table_of_file(path: Path, like: Architecture) -> int | None:
    """Returns the rows of the table in a file; None if it differs from the published encoder in more than that."""
    found = architecture_of(canonical(read_shapes(path))[0], like)
    return found.table if dataclasses.replace(found, table=like.table) == like else None


def _table_of_run(folder: Path, encoder: str) -> int | None:
    """Returns the setting of a run of the same encoder; None if there is none, or it is the published one."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    model = read_json(file, "the config of a run", "name another folder", kind=_Config)["model"]
    return (model.get("table") or None) if model.get("encoder") == encoder else None
