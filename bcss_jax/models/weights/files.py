"""Reads files of weights: safetensors, npz and, if PyTorch is installed, .pth. No code in the files is run."""

import _codecs
import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open

from bcss_jax.common import npz_files
from bcss_jax.common.digests import sha256_of_file
from bcss_jax.common.json_files import parse_json
from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.errors import ConfigError, DataError, first_line, printable

# Before 2.10 a crafted file could run code in spite of `weights_only=True` (GHSA-63cw-57p8-fm3p).
_MIN_TORCH = (2, 10)
_MAX_HEADER = 100_000_000  # bytes, as in the library
PTH = (".pth", ".pt", ".bin", ".tar")
_TORCH_LOADER = (
    "PyTorch's weights-only loader, so the file is damaged or holds more than weights, which is never run: save its "
    "state_dict alone"
)
# Large networks are published in several files, with an index beside them.
_PART = re.compile(r"-\d+-of-0*([2-9]|[1-9]\d+)(?=\.[a-z]+$)")
_SAFETENSORS_READER = "the safetensors reader, so the file is damaged"
_NPZ_READER = "the npz reader, so the file is damaged or holds more than plain arrays (objects are never unpickled)"
# First bytes, in lower case, of what downloads leave in place of a file.
_OF_A_DOWNLOAD = (
    (b"version https://git-lfs", "a pointer of Git LFS in place of the file"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
)
# Keys under which training programs save the weights; nnU-Net uses the fourth, TIAToolbox the fifth, DINO the sixth,
# beside the student's, and micro_sam the last one.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network_weights", "desc", "teacher", "model_state")
# Entries that are saved among the weights but are not weights: milesial's U-Net saves its label values there.
_NOT_WEIGHTS = ("mask_values",)


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The content of a file of weights.

    Attributes:
      arrays: name in the file -> float32 (or integer) array, in the layout of the file.
      sha256: of the bytes of the file, in hexadecimal.
    """

    arrays: dict[str, np.ndarray]
    sha256: str


def read_weights(path: Path) -> WeightFile:
    """Reads a file of weights.

    Args:
      path: .safetensors, .npz, or .pth, .pt, .bin, .tar of PyTorch. A .pth may hold the weights under `state_dict`,
        `model_state_dict`, `model`, `network_weights` (nnU-Net), `desc` (TIAToolbox), `teacher` (DINO) or `model_state`
        (micro_sam).

    Raises:
      DataError: the file does not exist, is damaged, or holds anything other than arrays.
      ConfigError: the file type is unknown, or it is PyTorch's and torch >= 2.10 is not installed.
    """
    path = _existing(path)
    suffix = path.suffix.lower()
    if suffix in PTH:
        read_arrays, reader = lambda path: _torch_arrays(_load_torch(path))[0], _TORCH_LOADER
        _check_torch(path)
    elif suffix == ".safetensors":
        read_arrays, reader = _read_safetensors, _SAFETENSORS_READER
    elif suffix == ".npz":
        read_arrays, reader = _read_npz, _NPZ_READER
    else:
        raise ConfigError(f"{printable(path)}: unknown type of weights file; expected .safetensors, .npz or .pth")
    _check_download(path)
    with _one_line_errors(path, reader):
        arrays = {name: _as_float32(name, array) for name, array in read_arrays(path).items()}
    return WeightFile(arrays, sha256_of_file(path))


def read_shapes(path: Path) -> dict[str, np.ndarray]:
    """Returns arrays of the shapes in a file of weights; their values mean nothing. Arguments and errors as above.

    Of a safetensors file, which may have gigabytes, only the header is read.
    """
    path = _existing(path)
    if path.suffix.lower() != ".safetensors":
        return read_weights(path).arrays
    _check_download(path)
    with _one_line_errors(path, _SAFETENSORS_READER), safe_open(path, framework="numpy") as file:
        return {name: np.broadcast_to(np.float32(0), file.get_slice(name).get_shape()) for name in file.keys()}


def read_torch_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Reads a checkpoint that a training program saved with PyTorch.

    Returns:
      The weights (name -> array, as in `WeightFile`), and the other entries (numbers, strings, lists, dictionaries,
      tensors).

    Raises:
      DataError: the file does not exist, is damaged, or holds more than plain values.
      ConfigError: torch >= 2.10 is not installed.
    """
    path = _existing(path)
    _check_torch(path)
    _check_download(path)
    with _one_line_errors(path, _TORCH_LOADER):
        arrays, others = _torch_arrays(_load_torch(path))
        return {name: _as_float32(name, array) for name, array in arrays.items()}, others


def _existing(path: Path) -> Path:
    path = Path(path).expanduser()
    check_regular_file(path, "a file of weights", "name a .safetensors, .npz or .pth file")
    part = _PART.search(path.name)
    if part or path.name.endswith(".index.json"):
        raise DataError(
            f"{printable(path)}: expected all weights of a network in one file, found "
            f"{f'one of {part[1]} parts' if part else 'the index of several parts'}; join them where PyTorch is "
            "installed: load the model and save its state_dict as safetensors"
        )
    return path


def _check_download(path: Path) -> None:
    """Raises DataError if the file is what a failed download leaves."""
    with open(path, "rb") as file:
        start = file.read(64).lower()
    found = next((what for first, what in _OF_A_DOWNLOAD if start.lstrip().startswith(first)), None)
    if found or not start:
        found = found or "an empty file"
        raise DataError(f"{printable(path)}: expected a file of weights, found {found}; download it again")


@contextlib.contextmanager
def _one_line_errors(path: Path, reader: str) -> Iterator[None]:
    """Converts every error that occurs while a file is read to a DataError of one line."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{printable(path)}: {error}") from error
    except Exception as error:  # these libraries raise a dozen types of errors for damaged files
        said = re.split(r"\. |\n", first_line(error))[0]  # PyTorch goes on with how to run the code in a file
        raise DataError(f"{printable(path)}: refused by {reader} ({said}); get the file again") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, _MAX_HEADER):
            raise ValueError(f"a header of {length} bytes")
        parse_json(file.read(length), kind=dict)  # refuses a name that occurs twice
    with safe_open(path, framework="flax") as file:  # JAX supports bfloat16, which NumPy does not
        return {name: np.asarray(file.get_tensor(name)) for name in file.keys()}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    return npz_files.unpack(path)


def _check_torch(path: Path) -> None:
    convert = "or convert the file to safetensors where PyTorch is installed"
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(f"{printable(path)}: .pth needs PyTorch: pip install 'torch>=2.10', {convert}")
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < _MIN_TORCH:
        raise ConfigError(
            f"{printable(path)}: .pth needs torch >= 2.10, found {version}, whose loader is not safe; update PyTorch, "
            f"{convert}"
        )


def _load_torch(path: Path):
    import torch  # pyright: ignore[reportMissingImports]  # optional

    if zipfile.is_zipfile(path):
        npz_files.check_archive(path)
    # NumPy's scalars are allowed: training programs save them with the weights (nnU-Net its scores), and they run no
    # code.
    scalar = np._core.multiarray.scalar  # pyright: ignore[reportAttributeAccessIssue], private
    numbers = [
        argparse.Namespace,  # the options of DINO's training, which are not read
        np.dtype,
        *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)),
        _codecs.encode,
    ]
    with torch.serialization.safe_globals([scalar, (scalar, "numpy.core.multiarray.scalar"), *numbers]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _torch_arrays(content) -> tuple[dict[str, np.ndarray], dict]:
    """Returns the weights and the other entries of a loaded file."""
    import torch  # pyright: ignore[reportMissingImports]  # optional

    others = {}
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content, others = content[name], {key: value for key, value in content.items() if key != name}
            break
    if not isinstance(content, dict):
        raise DataError(f"expected a dictionary of tensors, found {type(content).__name__}")
    content = {str(name): value for name, value in content.items() if name not in _NOT_WEIGHTS}
    not_tensors = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if not_tensors:
        raise DataError(f"expected only tensors, found others under {', '.join(not_tensors[:10])}")
    return {name: _torch_array(tensor.detach()) for name, tensor in content.items()}, others


def _torch_array(tensor) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _as_float32(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "iub":
        return array
    if array.dtype.kind not in "fV" or array.dtype.names:  # V: bfloat16 and similar types
        raise DataError(f"{name} holds {array.dtype}, expected numbers")
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"{name} holds values that are not finite; such weights cannot be used")
    return array
