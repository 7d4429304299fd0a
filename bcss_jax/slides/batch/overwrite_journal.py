"""Records which results a command with --overwrite has deleted, so that a stopped command resumes where it was.

The journal is a file in the output, one for each shard or single slide, with a line for every folder that was cleared.
It is deleted when the command has ended.
"""

import json
import os
from pathlib import Path

from bcss_jax.common.files import storage_errors, sync
from bcss_jax.common.outputs import written_files


class OverwriteJournal:
    """The folders that a command with --overwrite has cleared, in this session or in one that was stopped."""

    def __init__(self, output: Path, part: str):
        """Writes nothing yet.

        Args:
          output: the output of the command.
          part: what the command computes of that output: a shard, for example "0of4", or as of `of_slide`.
        """
        self._output, self._path = output, output / f".overwrite-{part}"

    @classmethod
    def of_slide(cls, output: Path, folder: str) -> "OverwriteJournal":
        """Returns the journal of a command for one slide; `folder` is the name of its folder in the output."""
        return cls(output, f"slide-{folder}")

    def is_cleared(self, folder: Path) -> bool:
        """Returns whether the folder was cleared: what is in it now is not to be overwritten.

        Raises:
          StorageError: the journal is there and cannot be read.
        """
        with storage_errors(self._path):
            return self._path.exists() and self._line(folder) in self._path.read_text(errors="replace").split("\n")

    def add(self, folder: Path) -> None:
        """Records that a folder of the output was cleared.

        Raises:
          StorageError: it cannot be written.
        """
        with storage_errors(self._path), os.fdopen(written_files.open_own(self._path, os.O_APPEND), "ab") as file:
            # Begins a new line in case the last one was cut short.
            file.write(f"\n{self._line(folder)}\n".encode())
            file.flush()
            os.fsync(file.fileno())
            sync(self._path.parent)

    def delete(self) -> None:
        """Deletes the journal: the next command with --overwrite starts from the beginning.

        Raises:
          StorageError: it cannot be deleted.
        """
        with storage_errors(self._path):
            self._path.unlink(missing_ok=True)

    def _line(self, folder: Path) -> str:
        return json.dumps(folder.relative_to(self._output).as_posix())  # in quotes, so that half a line names no folder
