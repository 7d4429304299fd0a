"""Reads files of weights: safetensors, npz and, where PyTorch is installed, .pth. Nothing is unpickled freely."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import zipfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from bcss_jax.errors import ConfigError, DataError

# Before 2.10 a crafted file could run code through `weights_only=True` as well (GHSA-63cw-57p8-fm3p).
_TORCH_AT_LEAST = (2, 10)
_PTH = (".pth", ".pt", ".bin", ".tar")
# Where training programs put the weights inside of what they save; nnU-Net uses the last.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network_weights")


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A file's arrays.

    Attributes:
      arrays: name in the file -> float32 (or integer) array, in the file's layout.
      sha256: of the file's bytes, in hexadecimal.
    """

    arrays: dict[str, np.ndarray]
    sha256: str


def read(path: Path) -> WeightFile:
    """Reads a file of weights.

    Args:
      path: .safetensors, .npz, or .pth, .pt, .bin, .tar of PyTorch. A .pth may hold the weights under `state_dict`,
        `model_state_dict`, `model` or `network_weights` (nnU-Net).

    Raises:
      DataError: there is no such file, or it is damaged, or it holds anything but arrays.
      ConfigError: the kind is unknown, or it is PyTorch's and torch >= 2.10 is not installed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of weights")
    if path.suffix == ".safetensors":
        arrays = _read_safetensors(path)
    elif path.suffix == ".npz":
        arrays = _read_npz(path)
    elif path.suffix in _PTH:
        arrays = _read_torch(path)
    else:
        raise ConfigError(f"{path}: unknown kind of weights; expected .safetensors, .npz or .pth")
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightFile({name: _as_float32(array) for name, array in arrays.items()}, sha256)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="flax") as file:  # through jax, which knows bfloat16
            return {name: np.asarray(file.get_tensor(name)) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not readable as safetensors ({error}); download it again") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not readable as an npz of plain arrays ({_first_line(error)}); pickled objects are refused"
        ) from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    convert = "or convert the file to safetensors where PyTorch is"
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(f"{path}: .pth needs PyTorch: pip install 'torch>=2.10', {convert}")
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < _TORCH_AT_LEAST:
        raise ConfigError(
            f"{path}: .pth needs torch >= 2.10, found {version}, whose loader is not safe; update it, {convert}"
        )
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # many kinds: UnpicklingError, RuntimeError, EOFError, OSError
        raise DataError(
            f"{path}: refused by PyTorch's weights-only loader, so damaged or more than weights ({_first_line(error)})"
        ) from error
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise DataError(f"{path}: expected tensors only, found others under {', '.join(others[:10])}")
    return {str(name): _torch_array(tensor) for name, tensor in content.items()}


def _torch_array(tensor) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _as_float32(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind in "iub" else np.asarray(array, np.float32)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
