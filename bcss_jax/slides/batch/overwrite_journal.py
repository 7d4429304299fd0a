"""Which results have made way since a command with --overwrite began, so that one that was stopped goes on where it was.

A file in the output, one for each shard or single slide, with a line for every folder that was emptied. It goes when the
command has come to its end.
"""

import json
import os
from pathlib import Path

from bcss_jax.common.files import storage_errors


class OverwriteJournal:
    """The notes of a command with --overwrite, of this one or of one that was stopped before."""

    def __init__(self, output: Path, part: str):
        """Of a part of what goes into an output: a shard, such as "0of4", or `of_slide`. Nothing is written yet."""
        self._output, self._path = output, output / f".overwrite-{part}"

    @classmethod
    def of_slide(cls, output: Path, folder: str) -> "OverwriteJournal":
        """The notes of a command for one slide, by the name of its folder in the output."""
        return cls(output, f"slide-{folder}")

    def is_cleared(self, folder: Path) -> bool:
        """Whether the folder was emptied since: what is in it now is not to be overwritten.

        Raises:
          StorageError: the notes are there and cannot be read.
        """
        with storage_errors(self._path):
            return self._path.exists() and self._line(folder) in self._path.read_text(errors="replace").split("\n")

    def note(self, folder: Path) -> None:
        """Keeps in mind that a folder of the output was emptied.

        Raises:
          StorageError: it cannot be written.
        """
        with storage_errors(self._path), open(self._path, "a") as file:
            file.write(f"\n{self._line(folder)}\n")  # a line of its own also after one that broke off
            file.flush()
            os.fsync(file.fileno())

    def end(self) -> None:
        """Forgets everything: the next command with --overwrite begins anew.

        Raises:
          StorageError: it cannot be written.
        """
        with storage_errors(self._path):
            self._path.unlink(missing_ok=True)

    def _line(self, folder: Path) -> str:
        return json.dumps(folder.relative_to(self._output).as_posix())  # in quotes: half a line is none
