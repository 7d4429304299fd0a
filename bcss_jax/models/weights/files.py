"""Reads files of weights: safetensors, npz and, where PyTorch is installed, .pth. Nothing is unpickled freely."""

import _codecs
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open

from bcss_jax.errors import ConfigError, DataError, first_line

# Before 2.10 a crafted file could run code through `weights_only=True` as well (GHSA-63cw-57p8-fm3p).
_TORCH_AT_LEAST = (2, 10)
_PTH = (".pth", ".pt", ".bin", ".tar")
_TORCH_LOADER = "PyTorch's weights-only loader, so damaged or more than weights"
# Where training programs put the weights inside of what they save; nnU-Net uses the last.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network_weights")
# What stands among the weights and is none: the label values that milesial's U-Net keeps there.
_NO_WEIGHTS = ("mask_values",)


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A file's arrays.

    Attributes:
      arrays: name in the file -> float32 (or integer) array, in the file's layout.
      sha256: of the file's bytes, in hexadecimal.
    """

    arrays: dict[str, np.ndarray]
    sha256: str


def read_weights(path: Path) -> WeightFile:
    """Reads a file of weights.

    Args:
      path: .safetensors, .npz, or .pth, .pt, .bin, .tar of PyTorch. A .pth may hold the weights under `state_dict`,
        `model_state_dict`, `model` or `network_weights` (nnU-Net).

    Raises:
      DataError: there is no such file, or it is damaged, or it holds anything but arrays.
      ConfigError: the kind is unknown, or it is PyTorch's and torch >= 2.10 is not installed.
    """
    path = _existing(path)
    if path.suffix in _PTH:
        read_arrays, what = lambda path: _torch_arrays(_load_torch(path))[0], _TORCH_LOADER
        _check_torch(path)
    elif path.suffix == ".safetensors":
        read_arrays, what = _read_safetensors, "the safetensors reader, so damaged"
    elif path.suffix == ".npz":
        read_arrays, what = (
            _read_npz,
            "NumPy's reader, so damaged or more than plain arrays (objects are never unpickled)",
        )
    else:
        raise ConfigError(f"{path}: unknown kind of weights; expected .safetensors, .npz or .pth")
    with _refusals(path, what):
        arrays = {name: _as_float32(name, array) for name, array in read_arrays(path).items()}
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightFile(arrays, sha256)


def read_torch_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Reads what a training program saved with PyTorch: the weights, and what stands beside them.

    Returns:
      name -> array as of `read_weights`, and the other entries (numbers, texts, lists, dictionaries, tensors).

    Raises:
      DataError: there is no such file, or it is damaged, or it holds more than plain values.
      ConfigError: torch >= 2.10 is not installed.
    """
    path = _existing(path)
    _check_torch(path)
    with _refusals(path, _TORCH_LOADER):
        arrays, beside = _torch_arrays(_load_torch(path))
        return {name: _as_float32(name, array) for name, array in arrays.items()}, beside


def _existing(path: Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of weights")
    return path


@contextlib.contextmanager
def _refusals(path: Path, reader: str) -> Iterator[None]:
    """Turns whatever goes wrong while a file is read into one line."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file makes these libraries raise errors of a dozen kinds
        raise DataError(f"{path}: refused by {reader} ({first_line(error)})") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, framework="flax") as file:  # through jax, which knows bfloat16
        return {name: np.asarray(file.get_tensor(name)) for name in file.keys()}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _check_torch(path: Path) -> None:
    convert = "or convert the file to safetensors where PyTorch is"
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(f"{path}: .pth needs PyTorch: pip install 'torch>=2.10', {convert}")
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < _TORCH_AT_LEAST:
        raise ConfigError(
            f"{path}: .pth needs torch >= 2.10, found {version}, whose loader is not safe; update it, {convert}"
        )


def _load_torch(path: Path):
    import torch

    # Plain numbers of NumPy, which training programs keep beside the weights (nnU-Net its scores); they run no code.
    scalar = np._core.multiarray.scalar
    numbers = [
        np.dtype,
        *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)),
        _codecs.encode,
    ]
    with torch.serialization.safe_globals([scalar, (scalar, "numpy.core.multiarray.scalar"), *numbers]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _torch_arrays(content) -> tuple[dict[str, np.ndarray], dict]:
    """The weights in what was loaded, and what stands beside them."""
    import torch

    beside = {}
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content, beside = content[name], {key: value for key, value in content.items() if key != name}
            break
    if not isinstance(content, dict):
        raise DataError(f"expected a dictionary of tensors, found {type(content).__name__}")
    content = {str(name): value for name, value in content.items() if name not in _NO_WEIGHTS}
    others = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise DataError(f"expected tensors only, found others under {', '.join(others[:10])}")
    return {name: _torch_array(tensor.detach()) for name, tensor in content.items()}, beside


def _torch_array(tensor) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _as_float32(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "iub":
        return array
    if array.dtype.kind not in "fV" or array.dtype.names:  # V: bfloat16 and its like
        raise DataError(f"{name} holds {array.dtype}, expected numbers")
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"{name} holds values that are not finite; these weights are of no use")
    return array
