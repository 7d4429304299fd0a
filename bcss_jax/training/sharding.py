"""The device mesh, and where arrays live on it: batches split over the `data` axis, everything else on every device."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bcss_jax.errors import ConfigError


def make_mesh(devices: list | None = None) -> Mesh:
    """One `data` axis over all devices of all processes (or those given)."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_over_data(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from this process's part of the batch (first axis)."""
    sharding = split_over_data(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def place_replicated(tree, mesh: Mesh):
    """Copies of host arrays (the same in every process) on every device."""
    sharding = replicated(mesh)

    def place(value):
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, tree)


def check_batch_size(name: str, batch_size: int, micro_batches: int, mesh: Mesh) -> None:
    """Refuses a batch that does not split evenly.

    Raises:
      ConfigError: `batch_size` is no multiple of devices x micro-batches; names the nearest sizes that are.
    """
    unit = mesh.size * micro_batches
    if batch_size > 0 and batch_size % unit == 0:
        return
    below = max(batch_size, 0) // unit * unit
    nearest = f"{below} or {below + unit}" if below else f"{unit}"
    parts = f"{mesh.size} devices" + (f" x {micro_batches} micro-batches" if micro_batches > 1 else "")
    raise ConfigError(f"{name}={batch_size} does not divide over {parts}; the nearest sizes are {nearest}")
