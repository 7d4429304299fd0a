"""The folder with what prompts on a slide became.

regions.geojson, overlay.png
summary.json     written last: the prompts are answered
.work/           until then: the answers so far, and their identity
"""

import functools
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcss_jax.common.files import storage_errors, write_bytes, write_text
from bcss_jax.common.json_files import as_json, describe_differences, differences, read_json
from bcss_jax.common.npz_files import read_npz
from bcss_jax.common.outputs import written_files
from bcss_jax.errors import ConfigError, DataError, StorageError, printable
from bcss_jax.slides.prompts.answers import Answer

FORMAT = 1
COMMAND = "prompt"
SUMMARY, REGIONS, OVERLAY, WORK = "summary.json", "regions.geojson", "overlay.png", ".work"
OUTPUTS = (REGIONS, OVERLAY, SUMMARY, WORK)
_FILES = (REGIONS, OVERLAY, SUMMARY)
_WORK_FILES = r"identity\.json|answers-\d+\.npz|\.[^/]+\.tmp"
_VIEWS = 4  # whose answers are in memory; objects that overlap are on the same or on neighboring ones
log = logging.getLogger(__name__)


class PromptFolder:
    """The results of the prompts on one slide with one network and one set of settings, which are their identity."""

    def __init__(self, path: Path, identity: dict):
        """Reads and writes nothing yet; `identity` is JSON."""
        self.path, self.identity = path, as_json({"format": FORMAT, "command": COMMAND, **identity})
        self._last = functools.lru_cache(_VIEWS)(self.saved)

    def check(self, *, replace: bool) -> None:
        """Checks that results may be written into the folder, and changes nothing.

        Args:
          replace: results of other settings may be there.

        Raises:
          ConfigError: it holds results of other settings or another command, or files or links of something else.
        """
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            what = "a link to another folder" if self.path.is_symlink() else "not a folder"
            raise ConfigError(f"{printable(self.path)} is {what}; name another --output")
        if not self.path.exists():
            return
        written_files.check(self.path / name for name in _FILES)
        written_files.check_tree(self.path / WORK, _WORK_FILES)
        found = self._found_identity()
        with storage_errors(self.path):
            names = sorted(each.name for each in self.path.iterdir() if not each.name.startswith("."))
        others = [name for name in names if name not in written_files.names(self.path)]
        if (found is None and names) or (found is not None and found.get("command") != COMMAND):
            what = ", ".join(printable(name) for name in (others or names)[:5])
            raise ConfigError(
                f"{printable(self.path)} holds {what}, which this command did not write; name another --output"
            )
        if found is not None and found != self.identity and not replace:
            raise ConfigError(
                f"{printable(self.path)} holds results of other settings "
                f"({describe_differences(differences(found, self.identity))}); name another --output, use the same "
                "settings, or replace the results with --overwrite"
            )

    def finished(self) -> dict[str, Any] | None:
        """Returns the summary if the prompts were answered with this identity; files that were edited stay."""
        summary = _read_object(self.path / SUMMARY)
        if summary is None or summary.get("identity") != self.identity:
            return None
        if not all((self.path / name).exists() for name in _FILES):
            return None
        for name in written_files.changed(self.path, _FILES):
            log.warning(
                "%s: has changed since it was written; it stays as it is (--overwrite computes it again)",
                printable(self.path / name),
            )
        with storage_errors(self._work):
            written_files.delete_tree(self._work, _WORK_FILES)
        return summary

    def begin(self, *, recompute: bool) -> None:
        """Prepares the folder: keeps answers that have this identity, and deletes other results.

        Args:
          recompute: results of this identity are deleted too.

        Raises:
          StorageError: it cannot be written.
        """
        with storage_errors(self.path):
            if recompute or _read_object(self._work / "identity.json") != self.identity:
                written_files.delete(self.path, _FILES)
                written_files.delete_tree(self._work, _WORK_FILES)
            self._work.mkdir(exist_ok=True)
        write_text(self._work / "identity.json", json.dumps(self.identity), private=True)

    def save(self, number: int, answers: Sequence[Answer]) -> None:
        """Writes the answers on a view, which another try need not compute again.

        Raises:
          StorageError: they cannot be written.
        """
        content = io.BytesIO()
        numbers = np.array([[each.left, each.top, *each.logits.shape, each.cut] for each in answers], np.int64)
        np.savez_compressed(
            content,
            numbers=numbers.reshape(-1, 5),
            scores=np.array([each.score for each in answers], np.float64),
            logits=np.concatenate([np.zeros(0), *(each.logits.ravel() for each in answers)], dtype=np.float16),
        )
        write_bytes(self._answers(number), content.getvalue(), private=True)

    def saved(self, number: int, count: int) -> list[Answer] | None:
        """Returns the answers on a view to so many prompts, or None if they were not saved."""
        path = self._answers(number)
        if not path.exists():
            return None
        try:
            found = read_npz(path, "answers to prompts", "delete it")
            numbers, scores, logits = found["numbers"], found["scores"], found["logits"].astype(np.float32)
            ends = np.cumsum(numbers[:, 2] * numbers[:, 3])
            if len(numbers) != count or len(scores) != count or (ends[-1] if count else 0) != len(logits):
                return None
        except (DataError, KeyError, IndexError, ValueError):
            return None
        return [
            Answer(float(score), logits[end - h * w : end].reshape(h, w), left, top, bool(cut))
            for (left, top, h, w, cut), score, end in zip(numbers.tolist(), scores, ends.tolist(), strict=True)
        ]

    def answer(self, number: int, position: int, count: int) -> Answer:
        """Returns one of the answers on a view, which were saved before; raises StorageError if they are gone."""
        answers = self._last(number, count)
        if answers is None:
            path = self._answers(number)
            raise StorageError(f"{printable(path)}: expected the answers that were written, found others; run it again")
        return answers[position]

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the summary, and deletes the answers that were saved; raises StorageError."""
        content = json.dumps({**summary, "identity": self.identity}, indent=1, allow_nan=False)
        write_text(self.path / SUMMARY, content + "\n")
        with storage_errors(self._work):
            written_files.delete_tree(self._work, _WORK_FILES)

    @property
    def _work(self) -> Path:
        return self.path / WORK

    def _answers(self, number: int) -> Path:
        return self._work / f"answers-{number:06d}.npz"

    def _found_identity(self) -> dict[str, Any] | None:
        summary = _read_object(self.path / SUMMARY)
        found = _read_object(self._work / "identity.json") if summary is None else summary.get("identity")
        return found if isinstance(found, dict) else None


def _read_object(path: Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file, or None if there is none."""
    try:
        return read_json(path, "a JSON object", "delete it", kind=dict) if path.is_file() else None
    except DataError:
        return None
