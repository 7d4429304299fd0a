"""How a tensor of PyTorch and a flax variable of the same layer correspond.

`torch_entries()` of a model returns `{name in the reference's state_dict: (nnx.Variable, TorchLayout)}`.
`bcss_jax.models.weights.pretrained` reads and writes weights through it. Layers state their own entries, and modules
add their prefix to the names.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flax import nnx


@dataclasses.dataclass(frozen=True)
class TorchLayout:
    """Axis order of a variable: `ours = theirs.transpose(axes)`; without axes the order is the same.

    Attributes:
      axes: for each axis of our array, the number of the corresponding axis in PyTorch.
    """

    axes: tuple[int, ...] | None = None

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Converts an array of PyTorch's layout to ours."""
        return array if self.axes is None else array.transpose(self.axes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Converts an array of our layout to PyTorch's."""
        return array if self.axes is None else array.transpose(np.argsort(self.axes))

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape that an array of our shape `shape` has in PyTorch."""
        return tuple(shape) if self.axes is None else tuple(shape[i] for i in np.argsort(self.axes))


SAME = TorchLayout()
CONV = TorchLayout((2, 3, 1, 0))  # (O, I, kh, kw) -> (kh, kw, I, O)
CONV_TRANSPOSE = TorchLayout((2, 3, 0, 1))  # (I, O, kh, kw) -> (kh, kw, I, O)
LINEAR = TorchLayout((1, 0))  # (O, I) -> (I, O)

TorchEntries = dict[str, tuple[nnx.Variable[Any], TorchLayout]]


@runtime_checkable
class HasTorchEntries(Protocol):
    """A layer, block or network that knows the names and layouts of its weights in PyTorch."""

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the reference."""
        ...


@runtime_checkable
class HasTorchConstants(Protocol):
    """A network whose reference saves constants among the weights."""

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Returns the constants under the names of the reference."""
        ...


@runtime_checkable
class HasAdapters(Protocol):
    """A network that may have weights beside those of the reference."""

    def merged(self) -> nnx.Module:
        """Returns a network with the weights of the reference alone, which computes the same."""
        ...

    def clear_adapters(self) -> None:
        """Makes the other weights have no effect."""
        ...


@runtime_checkable
class LoadsStart(Protocol):
    """A network that a training can start from files of several networks."""

    def load_start(self, state: Mapping[str, np.ndarray]) -> Any:
        """Loads what fits of a file, name -> array in PyTorch's layout, and returns a `Start`; raises DataError."""
        ...


def prefixed(prefix: str, entries: TorchEntries) -> TorchEntries:
    """Returns the entries with `prefix` and a dot before their names."""
    return {f"{prefix}.{name}": entry for name, entry in entries.items()}


def entries_of(modules: Mapping[str, HasTorchEntries]) -> TorchEntries:
    """Returns the entries of several modules, with the key of each module and a dot before their names."""
    return {
        name: entry
        for prefix, module in modules.items()
        for name, entry in prefixed(prefix, module.torch_entries()).items()
    }
