"""Writes the event files that TensorBoard shows."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from clu import metric_writers

from bcss_jax.data.host_tensorflow import tf
from bcss_jax.errors import StorageError, first_line, printable


class TensorBoard:
    """The event files of a run. Errors of TensorFlow, which writes them, become a StorageError of one line."""

    def __init__(self, folder: Path, *, active: bool):
        """Begins a new event file.

        Args:
          folder: of the files.
          active: False to write nothing, as in all processes but the main one.

        Raises:
          StorageError: it cannot be written.
        """
        self._folder = folder
        with self._storage_errors():
            self._writer = metric_writers.SummaryWriter(str(folder)) if active else metric_writers.MultiWriter([])

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers by their name; raises StorageError."""
        with self._storage_errors():
            self._writer.write_scalars(step, scalars)

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image, uint8 [H, W, 3]; raises StorageError."""
        with self._storage_errors():
            self._writer.write_images(step, {name: image[None]})

    def close(self) -> None:
        """Writes what is still in memory; raises StorageError."""
        with self._storage_errors():
            self._writer.flush()

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            raise StorageError(
                f"{printable(self._folder)}: cannot be written ({first_line(error)}); check space and permissions"
            ) from error
