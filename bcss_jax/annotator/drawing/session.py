"""The annotations of a slide while they are edited: the document, its file, and what went wrong with saving.

Every edit is saved at once. If that fails, the edits stay in memory, the page says so, and a thread tries again.
"""

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from shapely.geometry.base import BaseGeometry

from bcss_jax.annotator.drawing import edits, geojson_file
from bcss_jax.annotator.drawing.document import Document
from bcss_jax.annotator.drawing.edits import Changes
from bcss_jax.annotator.drawing.geojson_file import Effort, SlideFacts
from bcss_jax.annotator.drawing.outline import Outline
from bcss_jax.annotator.drawing.palette import Palette
from bcss_jax.annotator.drawing.saved_file import ChangedByAnother, SavedFile
from bcss_jax.common import files
from bcss_jax.errors import StorageError, UserError, one_line, printable

log = logging.getLogger(__name__)
RETRY_SECONDS = 3.0
MOST_RESCUED = 100  # names that are tried
NO_EFFORT = Effort()


class Problem(NamedTuple):
    """Why the last edits are not saved: `kind` is "storage" or "changed" (by another program)."""

    kind: str
    text: str


class State(NamedTuple):
    """What has changed since a revision; see `Document.changed_since`."""

    revision: int
    changed: list[Outline]
    removed: list[str]
    problem: Problem | None
    effort: Effort


class Session:
    """One slide that is annotated. Threads may share it.

    Attributes:
      palette: the classes.
      slide: the slide.
      path: of the file.
    """

    def __init__(
        self, file: SavedFile, contents: geojson_file.Contents, palette: Palette, slide: SlideFacts, warn=log.warning
    ):
        """Begins with what the file holds; nothing is written before the first edit."""
        self.palette, self.slide, self.path = palette, slide, file.path
        self._file, self._warn = file, warn
        self._document = Document(contents.outlines)
        self._effort, self._handled = contents.effort, {key: set(ids) for key, ids in contents.handled.items()}
        self._suggested: dict[str, str] = {}  # id of a suggestion -> digest of their file
        self._lock = threading.RLock()
        self._saved_revision, self._problem = 0, None
        self._ends = threading.Event()
        self._retries = threading.Thread(target=self._retry, name="saving again", daemon=True)
        self._retries.start()

    def suggest(self, suggestions: Iterable[Outline], digest: str) -> int:
        """Offers outlines of a model, except what was handled or annotated before; returns how many are left.

        Args:
          suggestions: not accepted.
          digest: of their file; ids are the same each time the file is read.
        """
        handled = self._handled.get(digest, set())
        with self._lock:
            open_ones = [each for each in suggestions if each.id not in handled]
            left = edits.suggested(open_ones, self._document.outlines())
            self._suggested |= {each.id: digest for each in left}
            self._document.apply({each.id: each for each in left})
            self._saved_revision = self._document.revision
            return len(left)

    def edit(self, change: Callable[[Document], Changes], effort: Effort = NO_EFFORT) -> int:
        """Applies what a function of the document returns, and saves; returns the number of the transaction.

        Raises:
          Conflict: what `change` raises; nothing is changed.
        """
        with self._lock:
            number = self._document.apply(change(self._document))
            self._add(effort)
            self._save()
            return number

    def undo(self, number: int, effort: Effort = NO_EFFORT) -> None:
        """Undoes a transaction and saves. Raises Conflict."""
        with self._lock:
            self._document.undo(number)
            self._add(effort)
            self._save()

    def redo(self, number: int, effort: Effort = NO_EFFORT) -> None:
        """Does a transaction again and saves. Raises Conflict."""
        with self._lock:
            self._document.redo(number)
            self._add(effort)
            self._save()

    def state(self, since: int) -> State:
        """Returns what has changed since a revision; with -1, everything."""
        with self._lock:
            changed, removed = self._document.changed_since(since)
            return State(self._document.revision, changed, removed, self._problem, self._effort)

    def annotated(self) -> list[BaseGeometry]:
        """Returns the areas with a class of the label scheme that the user has made or accepted."""
        with self._lock:
            outlines = self._document.outlines()
        return [each.area for each in outlines if each.accepted and self.palette.of(each.name) is not None]

    def content(self) -> bytes:
        """Returns the file as it would be saved now."""
        with self._lock:
            handled = {digest: sorted(ids) for digest, ids in self._handled.items() if ids}
            for identity, digest in self._suggested.items():
                outline = self._document.get(identity)
                if outline is None or outline.accepted:
                    handled.setdefault(digest, []).append(identity)
            return geojson_file.content_of(self._document.outlines(), self.palette, self.slide, self._effort, handled)

    def take_the_files(self) -> int:
        """Replaces the annotations by those of the file, which another program has changed; can be undone.

        Of the file a copy stays, as it may hold what has no area or is no annotation.

        Raises:
          DataError: the file cannot be read.
          StorageError: it cannot be copied.
        """
        with self._lock:
            contents = geojson_file.read(self.path, self.slide, self._warn)
            self._file.adopt()
            mine = {each.id: None for each in self._document.outlines() if each.accepted}
            changes: dict[str, Any] = mine | {each.id: each for each in contents.outlines}
            number = self._document.apply(changes)
            self._save()
            return number

    def keep_mine(self) -> Path | None:
        """Saves the annotations where another program has written; its file is renamed, and its new path returned.

        Raises:
          StorageError: it cannot be renamed.
        """
        with self._lock:
            kept = self._file.set_aside() if self.path.exists() else None
            self._save()
            return kept

    def close(self) -> None:
        """Saves what is not saved yet.

        Raises:
          StorageError: it cannot be saved under its name; the message says where it is instead.
        """
        self._ends.set()
        self._retries.join()
        with self._lock:
            if not self._is_saved():
                self._save()
            self._file.close()
            if not self._is_saved() and self._problem is not None:
                rescued = self._rescued()
                where = f"they are in {printable(rescued)}" if rescued else "they are lost, as no other place took them"
                raise StorageError(f"the last annotations are not saved: {self._problem.text}; {where}")

    def _add(self, effort: Effort) -> None:
        self._effort = Effort(self._effort.clicks + effort.clicks, self._effort.seconds + effort.seconds)

    def _is_saved(self) -> bool:
        return self._saved_revision == self._document.revision

    def _save(self) -> None:
        try:
            self._file.save(self.content())
        except ChangedByAnother:
            self._problem = Problem("changed", f"{printable(self.path)} was changed by another program")
        except (UserError, OSError) as error:
            self._problem = Problem("storage", one_line(str(error)))
        else:
            self._saved_revision, self._problem = self._document.revision, None

    def _rescued(self) -> Path | None:
        """Writes the annotations beside their file, or else to the folder for temporary files; returns the path."""
        for folder in (self.path.parent, Path(tempfile.gettempdir())):
            for number in range(1, MOST_RESCUED):
                path = folder / f"{self.path.name}.unsaved-{number}"
                with contextlib.suppress(UserError, OSError):
                    if not os.path.lexists(path):
                        files.write_bytes(path, self.content(), private=True)
                        return path
        return None

    def _retry(self) -> None:
        while not self._ends.wait(RETRY_SECONDS):
            with self._lock, contextlib.suppress(Exception):
                if self._problem is not None and self._problem.kind == "storage":
                    self._save()
