"""What a file of SAM says of itself, if it was written here: the size of its images, and what it was trained on."""

import json
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from typing_extensions import TypedDict

from bcss_jax.common.files import write_bytes
from bcss_jax.common.json_files import parse_json
from bcss_jax.errors import DataError, first_line, printable

KEY = "bcss_jax"  # of the description in the metadata of the file
SAM_FILE = "sam.safetensors"  # in the folder of a run that tuned a SAM


class SamDescription(TypedDict):
    """The description of a file of SAM.

    Attributes:
      image_size: height and width of the network's input, pixels.
      mpp: um/px of the images that it was trained with; None: unknown.
    """

    image_size: int
    mpp: NotRequired[float | None]


def write_sam(path: Path, state: dict[str, np.ndarray], description: dict[str, Any]) -> None:
    """Writes a SAM as safetensors.

    Args:
      path: of the file.
      state: under the names of Meta, in PyTorch's layout.
      description: JSON, a `SamDescription` with whatever else is known.

    Raises:
      StorageError: the file cannot be written.
    """
    write_bytes(path, save(state, metadata={KEY: json.dumps(description)}))


def description_of(path: Path) -> SamDescription | None:
    """Returns how a file describes its SAM; None if it does not.

    Raises:
      DataError: the file or the description is damaged.
    """
    if path.suffix.lower() != ".safetensors":
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{printable(path)}: cannot be read as safetensors ({first_line(error)})") from error
    if text is None:
        return None
    try:
        return parse_json(text, kind=SamDescription)
    except ValueError as error:
        raise DataError(
            f"{printable(path)}: its description of the network is damaged ({first_line(error)}); write it again"
        ) from error
