"""Where the slides are now: where they were segmented or, on another machine, in a folder that the user names.

A slide is known again by its name, its size and the hash of both its ends, which its summary.json has. Requests of a
browser choose among summaries, never among files.
"""

import functools
import os
import threading
from pathlib import Path

from bcss_jax.errors import DataError, printable
from bcss_jax.slides.batch.slide_folder import fingerprints
from bcss_jax.viewer.results import Summary, inside


class SlideFiles:
    """Finds slides where they were, else in a folder and below. Threads may share it."""

    def __init__(self, folder: Path | None):
        """Looks through the folder, if there is one, without following links that lead out of it.

        Raises:
          DataError: it cannot be read.
        """
        self._folder, self._lock = folder, threading.Lock()
        self._by_name: dict[str, list[Path]] = {}
        self._unread: list[OSError] = []
        if folder is not None:
            try:
                self._folder = folder.resolve(strict=True)
                os.listdir(self._folder)
            except OSError as error:
                raise DataError(
                    f"--slides={printable(folder)}: expected a folder with slides ({error.strerror}); check the path"
                ) from error
            self.look_again()

    def look_again(self) -> None:
        """Takes in what has come into the folder since."""
        if self._folder is None:
            return
        with self._lock:  # one walk at a time
            by_name, unread = {}, []
            for folder, subfolders, names in os.walk(self._folder, onerror=unread.append):
                subfolders.sort()
                for name in sorted(names):
                    by_name.setdefault(printable(name), []).append(Path(folder, name))
            self._by_name, self._unread = by_name, unread

    def path_of(self, summary: Summary) -> Path:
        """The file of a slide.

        Raises:
          DataError: it is neither where it was nor in the folder; says what else has its name there.
        """
        if os.path.isfile(summary.slide_path):  # no error either where one may not look
            return summary.slide_path
        others = []
        for path in self._of_name(summary):
            if _is_slide(path, summary.fingerprint):
                return path
            others.append(path)
        raise DataError(self._missing(summary, others))

    def _of_name(self, summary):
        # What was segmented may have been a link to a file of another name.
        names = dict.fromkeys((summary.slide_name, summary.slide_path.name))
        paths = [path for name in names for path in self._by_name.get(name, ())]
        return [path for path in paths if inside(path, self._folder) and os.path.isfile(path)]

    def _missing(self, summary, others):
        gone = f"{summary.slide_path}: the slide is not there any more"
        if self._folder is None:
            return f"{gone} (start the viewer with --slides=FOLDER if it is elsewhere)"
        if others:
            return f"{gone}, and {printable(others[0])} is another file (size or content differ)"
        unread = self._unread
        but = f", but {printable(unread[0].filename)} cannot be read ({unread[0].strerror})" if unread else ""
        return f"{gone}, and no file of its name is in {printable(self._folder)} or below{but}"


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
    """Once for a file, unless it changes: asked for with every tile."""
    return fingerprints(path)["slide"]
