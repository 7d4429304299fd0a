"""Finds the slides: where they were segmented or, on another machine, in a folder that the user names.

A slide is recognized by its name, its size and the hash of both its ends, which its summary.json states. A request of a
browser selects a summary, never a file.
"""

import functools
import os
import threading
from pathlib import Path

from bcss_jax.common.regular_file import real_path
from bcss_jax.errors import DataError, printable
from bcss_jax.slides.batch.slide_folder import fingerprints
from bcss_jax.slides.slide_summary import SlideSummary
from bcss_jax.viewer.results import inside


class SlideFiles:
    """Finds slides where they were segmented, otherwise in a folder and its subfolders. Threads may share it."""

    def __init__(self, folder: Path | None):
        """Searches the folder.

        Args:
          folder: with slides; links that lead out of it are not followed. None: slides are not searched for.

        Raises:
          DataError: the folder cannot be read.
        """
        self._folder, self._lock = folder, threading.Lock()
        self._by_name: dict[str, list[Path]] = {}
        self._unread: list[OSError] = []
        if folder is not None:
            try:
                self._folder = real_path(folder, strict=True)
                os.listdir(self._folder)
            except OSError as error:
                raise DataError(
                    f"--slides={printable(folder)}: expected a folder with slides ({error.strerror}); check the path"
                ) from error
            self.update()

    def update(self) -> None:
        """Searches the folder again, for files that were added since."""
        if self._folder is None:
            return
        with self._lock:  # one search at a time
            by_name, unread = {}, []
            for folder, subfolders, names in os.walk(self._folder, onerror=unread.append):
                subfolders.sort()
                for name in sorted(names):
                    by_name.setdefault(printable(name), []).append(Path(folder, name))
            self._by_name, self._unread = by_name, unread

    def path_of(self, summary: SlideSummary) -> Path:
        """Returns the file of a slide.

        Raises:
          DataError: it is neither where it was nor in the folder; the message names a file that has its name there.
        """
        if os.path.isfile(summary.slide.path):  # not an error where permission is missing
            return Path(summary.slide.path)
        others = []
        for path in self._of_name(summary):
            if _is_slide(path, summary.fingerprint):
                return path
            others.append(path)
        raise DataError(self._missing(summary, others))

    def _of_name(self, summary):
        if self._folder is None:
            return []
        # What was segmented may have been a link to a file of another name.
        names = dict.fromkeys((summary.slide.name, Path(summary.slide.path).name))
        paths = [path for name in names for path in self._by_name.get(printable(name), ())]
        return [path for path in paths if inside(path, self._folder) and os.path.isfile(path)]

    def _missing(self, summary, others):
        gone = f"{printable(summary.slide.path)}: the slide is not there any more"
        if self._folder is None:
            return f"{gone} (if it was moved, start the viewer with --slides=FOLDER)"
        if others:
            return f"{gone}, and {printable(others[0])} is a different file (its size or content differs)"
        unread = self._unread
        but = f", but {printable(unread[0].filename)} cannot be read ({unread[0].strerror})" if unread else ""
        return f"{gone}, and no file of its name is in {printable(self._folder)} or its subfolders{but}"


def _is_slide(path, expected):
    try:
        found = path.stat()
        if found.st_size != expected["bytes"]:
            return False
        return _fingerprint(path, found.st_size, found.st_mtime_ns) == expected
    except (OSError, DataError):
        return False


@functools.lru_cache(1024)
def _fingerprint(path, size, changed):
    """The fingerprint of a slide. It is needed for every tile, but computed only when the file has changed."""
    return fingerprints(path)["slide"]
