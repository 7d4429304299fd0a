"""Remembers the predictions that a command has written before it was stopped, so that the same command goes on."""

import json
import os
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from bcss_jax.common.digests import sha256_of, sha256_of_file, sha256_of_json
from bcss_jax.common.files import storage_errors, write_bytes, write_text
from bcss_jax.common.json_files import read_json
from bcss_jax.errors import ConfigError, DataError

NAME = ".unfinished_predictions.json"


class _Record(TypedDict):
    """Content of `NAME`: digest of what the predictions depend on, and the SHA-256 of each finished prediction."""

    identity: str
    sha256: dict[str, str]


class UnfinishedPredictions:
    """The predictions in a folder while a command writes them."""

    def __init__(self, folder: Path, identity: dict[str, Any]):
        """Reads what the same command has written before it was stopped.

        Args:
          folder: of the predictions.
          identity: JSON, everything that the predictions depend on.
        """
        self._file, self._identity = folder / NAME, sha256_of_json(identity)
        self._sha256: dict[str, str] = {}
        if os.path.lexists(self._file):
            try:
                found = read_json(self._file, "a record of predictions", "delete it", kind=_Record)
                if found["identity"] == self._identity:
                    self._sha256 = found["sha256"]
            except DataError:  # it is not needed, apart from the time that it saves
                pass

    def has(self, path: Path) -> bool:
        """Returns whether this command has written the file, which is unchanged."""
        expected = self._sha256.get(path.name)
        try:
            return expected is not None and sha256_of_file(path) == expected
        except (DataError, OSError):
            return False

    def refuse_others(self, paths: list[Path], overwrite: bool) -> None:
        """Raises ConfigError if a file exists that another command has written, unless it may be overwritten."""
        others = [path for path in paths if os.path.lexists(path) and not self.has(path)]
        if others and not overwrite:
            raise ConfigError(f"{others[0]}: this prediction already exists; use another --out, or --overwrite")

    def write(self, path: Path, content: bytes) -> None:
        """Writes a finished prediction. It is recorded first, so that a command that stops in between knows it.

        Raises:
          StorageError: it cannot be written.
        """
        self._sha256[path.name] = sha256_of(content)
        write_text(self._file, json.dumps({"identity": self._identity, "sha256": self._sha256}) + "\n")
        write_bytes(path, content)

    def end(self) -> None:
        """Forgets the predictions, which are all there."""
        with storage_errors(self._file):
            self._file.unlink(missing_ok=True)
