"""The folder with the results of one slide: finished, to be gone on with, or failed.

labels.ome.tif, regions.geojson, overlay.png, probabilities.zarr
summary.json     written last: the slide is finished
failure.json     instead, why it failed
.work/           of a slide that is not finished: labels so far, and what they are of
"""

import json
import shutil
from pathlib import Path

from bcss_jax.errors import ConfigError, UserError
from bcss_jax.workdir import storage_errors, write_text

FORMAT = 1  # of summary.json
OUTPUTS = (
    "labels.ome.tif",
    "regions.geojson",
    "overlay.png",
    "probabilities.zarr",
    "summary.json",
    "failure.json",
    ".work",
)


class SlideFolder:
    """The results of one slide with one model and one set of settings, which are its identity."""

    def __init__(self, path: Path, identity: dict):
        """Looks at nothing yet."""
        self.path, self._identity = path, json.loads(json.dumps({"format": FORMAT, **identity}))

    @property
    def work(self) -> Path:
        """Folder of what is not finished."""
        return self.path / ".work"

    def finished(self) -> dict | None:
        """The summary, if the slide was finished before with this identity."""
        summary = _read(self.path / "summary.json")
        if summary is None or summary.get("identity") != self._identity:
            return None
        names = [name for name in summary["files"].values() if name]
        return summary if all((self.path / name).exists() for name in names) else None

    def begin(self, overwrite: bool) -> None:
        """Makes the folder ready to work in: goes on with labels of this identity, makes way for them otherwise.

        Raises:
          ConfigError: there are results of another identity, and `overwrite` is not asked for, or files of something else.
          StorageError: it cannot be written.
        """
        found = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        others = sorted(name for name in found if name not in OUTPUTS and not name.startswith("."))
        if others or (self.path.exists() and not self.path.is_dir()):
            raise ConfigError(
                f"{self.path} holds {', '.join(others[:5]) or 'no folder'}, which is not of a segmented slide; name another "
                "--output"
            )
        before = _read(self.path / "summary.json")
        before = before.get("identity") if before else _read(self.work / "identity.json")
        if before is not None and before != self._identity and not overwrite:
            changed = _changed(before, self._identity)
            raise ConfigError(
                f"{self.path} holds results of other settings ({', '.join(changed)} differ); name another --output, take the "
                "same settings, or replace them with --overwrite"
            )
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if before != self._identity or overwrite:
                self._clear(OUTPUTS)
            self._clear(("summary.json", "failure.json"))
            self.work.mkdir(exist_ok=True)
        write_text(self.work / "identity.json", json.dumps(self._identity))

    def finish(self, summary: dict) -> None:
        """Writes the summary, and takes away what was in progress.

        Raises:
          StorageError: it cannot be written.
        """
        write_text(self.path / "summary.json", json.dumps({**summary, "identity": self._identity}, indent=1) + "\n")
        with storage_errors(self.work):
            self._clear((".work",))

    def fail(self, error: UserError) -> None:
        """Notes why the slide failed; what was computed stays for another try."""
        write_text(self.path / "failure.json", json.dumps({"reason": str(error), "exit_code": error.exit_code}) + "\n")

    def _clear(self, names):
        for path in (self.path / name for name in names):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def status_of(path: Path) -> tuple[str, dict]:
    """("done", its summary), ("failed", its failure) or ("pending", {}) of a slide's folder."""
    summary, failure = _read(path / "summary.json"), _read(path / "failure.json")
    if summary is not None:
        return "done", summary
    return ("pending", {}) if failure is None else ("failed", failure)


def _read(path):
    """JSON of an object; None if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _changed(old, new, prefix=""):
    """Names of the settings that differ."""
    names = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += _changed(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(prefix + key)
    return names
