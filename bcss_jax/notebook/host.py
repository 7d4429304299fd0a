"""The host of a notebook: Kaggle, Colab or a machine of one's own, with its folders, its data and its devices."""

import dataclasses
import importlib.util
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from bcss_jax.data.discovery import FOLDERS, SUBFOLDER
from bcss_jax.training.device_advice import half_type

LAYOUTS = ("kaggle224", "kaggle512")  # of the published data set; where both are there, the recipe uses the first
DEPTH = 4  # folders below the inputs: datasets/OWNER/NAME/BCSS
KAGGLE_HOURS = 12.0  # that a session may take
MARGIN_HOURS = 0.75  # for installing before, and for the evaluation, the report and the upload after the training
_TILE_FOLDERS = {name for layout in LAYOUTS for pair in FOLDERS[layout] for name in pair[:2]}
_STARTED = time.monotonic()


@dataclasses.dataclass(frozen=True)
class Host:
    """Where a notebook runs.

    Attributes:
      name: "kaggle", "colab" or "local".
      inputs: folder of attached data sets and of the saved output of earlier runs; None if there is none.
      output: folder that is kept when the session ends.
      hours: that a session may take; None if there is no limit that is known.
    """

    name: str
    inputs: Path | None
    output: Path
    hours: float | None


def find_host(root: Path = Path("/")) -> Host:
    """Returns the host that this notebook runs on.

    Args:
      root: of the file system.
    """
    kaggle = root / "kaggle"
    if (kaggle / "working").is_dir():
        return Host("kaggle", kaggle / "input", kaggle / "working", KAGGLE_HOURS)
    if "COLAB_RELEASE_TAG" in os.environ or importlib.util.find_spec("google.colab") is not None:
        drive = root / "content" / "drive" / "MyDrive"
        return Host("colab", drive if drive.is_dir() else None, drive if drive.is_dir() else root / "content", None)
    return Host("local", None, Path(), None)


def find_bcss(inputs: Path | None) -> tuple[str, Path] | None:
    """Returns layout and folder of the BCSS data set among the inputs; None if it is not there.

    The data set is known by its folders, because its place depends on the host: Kaggle mounts it as input/NAME or as
    input/datasets/OWNER/NAME, with tiles of 224 pixels in BCSS and tiles of 512 pixels in BCSS_512.

    Args:
      inputs: folder in which the data sets are mounted.
    """
    if inputs is None or not inputs.is_dir():
        return None
    candidates = list(folders_below(inputs, DEPTH, _TILE_FOLDERS))
    for layout in LAYOUTS:
        needed = [folder for images, masks, split in FOLDERS[layout] if split != "test" for folder in (images, masks)]
        for folder in candidates:
            if all((folder / name).is_dir() for name in needed):
                return layout, folder.parent if folder.name == SUBFOLDER[layout] else folder
    return None


def folders_below(top: Path, depth: int, closed: Collection[str]) -> Iterator[Path]:
    """Yields a folder and those below it, the nearest first, sorted.

    Args:
      top: the first folder.
      depth: how many levels below it.
      closed: names of folders that are not looked into, because listing the tiles in them would take minutes.
    """
    level = [top]
    for remaining in range(depth, -1, -1):
        yield from level
        if remaining:
            inner = [entry for folder in level if folder.name not in closed for entry in _folders_in(folder)]
            level = sorted(inner)


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [folder / entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:  # not readable for this user
        return []


def describe_devices(devices: Sequence[Any]) -> str:
    """Returns a line on the devices of JAX, all of which a training uses, and on the precision that suits them."""
    kinds = [str(device.device_kind) for device in devices]
    counted = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    if devices[0].platform == "cpu":
        return f"{counted}: no GPU or TPU, so a training on all of BCSS would take weeks; choose an accelerator"
    return f"{counted}: all of them are used; {precision(devices)} is the fast precision there"


def precision(devices: Sequence[Any]) -> str:
    """Returns the type of the computation that suits the devices: float32 on CPUs, else bfloat16 or float16."""
    return "float32" if devices[0].platform == "cpu" else half_type(devices)


def hours_left(host: Host) -> float | None:
    """Returns how long a training may take until the host ends the session; None if there is no limit that is known."""
    if host.hours is None:
        return None
    return max(0.0, host.hours - MARGIN_HOURS - (time.monotonic() - _STARTED) / 3600)
