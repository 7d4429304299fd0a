"""The device mesh, and the placement of arrays: batches are split over the `data` axis, all else is on every device."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bcss_jax.errors import ConfigError


def make_mesh(devices: list | None = None) -> Mesh:
    """Returns a mesh with one `data` axis over all devices of all processes, or over the given devices."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_over_data(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with the first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns global arrays, given this process's examples of the batch (first axis)."""
    sharding = split_over_data(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def place_replicated(tree, mesh: Mesh):
    """Copies host arrays, which are the same in every process, to every device."""
    sharding = replicated(mesh)

    def place(value):
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, tree)


def check_batch_size(name: str, batch_size: int, micro_batches: int, mesh: Mesh) -> None:
    """Checks that a batch divides evenly over devices and micro-batches.

    Raises:
      ConfigError: it does not; the message names the nearest sizes that do.
    """
    unit = mesh.size * micro_batches
    if batch_size > 0 and batch_size % unit == 0:
        return
    below = max(batch_size, 0) // unit * unit
    nearest = f"{below} or {below + unit}" if below else f"{unit}"
    divisor = f"{mesh.size} devices" + (f" x {micro_batches} micro-batches" if micro_batches > 1 else "")
    raise ConfigError(f"{name}={batch_size} does not divide over {divisor}; the nearest sizes are {nearest}")
