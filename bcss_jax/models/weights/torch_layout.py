"""How a PyTorch tensor and a flax variable of the same layer correspond.

A model's `torch_entries()` gives `{name in the reference's state_dict: (nnx.Variable, TorchLayout)}`; `bcss_jax.models.weights.pretrained`
reads and writes weights through it. Layers state their own entries, and modules put their prefix before them.
"""

import dataclasses

import numpy as np
from flax import nnx


@dataclasses.dataclass(frozen=True)
class TorchLayout:
    """Axis order of a variable: `ours = theirs.transpose(axes)`; no axes: the same order.

    Attributes:
      axes: for every axis of our array, the axis of PyTorch's that it is.
    """

    axes: tuple[int, ...] | None = None

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Our array from PyTorch's."""
        return array if self.axes is None else array.transpose(self.axes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's array from ours."""
        return array if self.axes is None else array.transpose(np.argsort(self.axes))

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in PyTorch of our array of the shape `shape`."""
        return tuple(shape) if self.axes is None else tuple(shape[i] for i in np.argsort(self.axes))


SAME = TorchLayout()
CONV = TorchLayout((2, 3, 1, 0))  # (O, I, kh, kw) -> (kh, kw, I, O)
CONV_TRANSPOSE = TorchLayout((2, 3, 0, 1))  # (I, O, kh, kw) -> (kh, kw, I, O)
LINEAR = TorchLayout((1, 0))  # (O, I) -> (I, O)

TorchEntries = dict[str, tuple[nnx.Variable, TorchLayout]]


def prefixed(prefix: str, entries: TorchEntries) -> TorchEntries:
    """The entries with `prefix` and a dot before their names."""
    return {f"{prefix}.{name}": entry for name, entry in entries.items()}


def entries_of(parts: dict[str, nnx.Module]) -> TorchEntries:
    """The entries of several modules, each behind its name and a dot."""
    return {name: entry for key, part in parts.items() for name, entry in prefixed(key, part.torch_entries()).items()}
