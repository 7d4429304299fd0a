"""What a network has computed of views: in the background, newest request first, kept in memory and on the disk."""

import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from bcss_jax.annotator.proposals.segmenter import Embedding
from bcss_jax.annotator.proposals.view_grid import Key
from bcss_jax.common import files
from bcss_jax.common.npz_files import read_npz
from bcss_jax.errors import UserError

log = logging.getLogger(__name__)
MEMORY_BYTES = 512 << 20  # of embeddings in memory
DISK_BYTES = 4 << 30  # of all embeddings on the disk, of all slides and networks
CHECKED_AFTER_BYTES = DISK_BYTES // 16  # that are written, before old ones are looked for again


class Embeddings:
    """Embeddings of the views of one slide by one network. Threads may share it."""

    def __init__(
        self,
        compute: Callable[[Key], Embedding],
        folder: Path | None,
        root: Path | None = None,
        prepare: Callable[[Key, Embedding], None] = lambda key, embedding: None,
    ):
        """Starts the thread that computes.

        Args:
          compute: returns the embedding of a view; called in that thread alone.
          folder: where embeddings of this slide and network are kept; None: in memory only.
          root: folder of the embeddings of all slides, whose size is bounded.
          prepare: called with each embedding, new or read, before it is there.
        """
        self._compute, self._folder, self._root, self._prepare = compute, folder, root or folder, prepare
        self._memory: OrderedDict[Key, Embedding] = OrderedDict()
        self._bytes = self._written = 0
        self._urgent: list[Key] = []  # the last one is computed first
        self._wanted: list[Key] = []  # the first one is computed first
        self._failed: dict[Key, Exception] = {}
        self._changed = threading.Condition()
        self._ends = False
        self._make_room()
        self._thread = threading.Thread(target=self._run, name="embeddings", daemon=True)
        self._thread.start()

    def look(self, keys: Iterable[Key]) -> None:
        """Computes these views when nothing is urgent, in this order, instead of those of the last call."""
        with self._changed:
            self._wanted = [key for key in keys if key not in self._memory]
            self._failed = {key: error for key, error in self._failed.items() if key not in self._wanted}
            self._changed.notify_all()

    def is_ready(self, key: Key) -> bool:
        """Returns whether the embedding of a view is there at once."""
        with self._changed:
            return key in self._memory

    def get(self, key: Key, seconds: float) -> Embedding | None:
        """Returns the embedding of a view, which is computed before all others; None if it takes longer.

        Args:
          key: of the view.
          seconds: to wait.

        Raises:
          DataError: the view cannot be read.
        """
        with self._changed:
            found = self._of_memory(key)
            if found is not None:
                return found
            self._failed.pop(key, None)
            self._urgent = [*(each for each in self._urgent if each != key), key]
            self._changed.notify_all()
            self._changed.wait_for(lambda: key in self._memory or key in self._failed or self._ends, seconds)
            if key in self._failed:
                raise self._failed[key]
            return self._of_memory(key)

    def close(self) -> None:
        """Computes nothing any more. What is computed now is left to end by itself."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()

    def _of_memory(self, key: Key) -> Embedding | None:
        found = self._memory.get(key)
        if found is not None:
            self._memory.move_to_end(key)
        return found

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._urgent or self._wanted or self._ends)
                if self._ends:
                    return
                key = self._urgent[-1] if self._urgent else self._wanted[0]
                is_there = key in self._memory
            try:
                embedding = None if is_there else self._read(key)
                is_new = embedding is None and not is_there
                if is_new:
                    embedding = self._compute(key)
                if embedding is not None:
                    self._prepare(key, embedding)
            except Exception as error:  # of the slide's reader, or of the network
                log.debug("%s", error)
                with self._changed:
                    self._failed[key] = error
                    self._done(key)
                continue
            with self._changed:
                if embedding is not None:
                    self._keep(key, embedding)
                self._done(key)
            if is_new and embedding is not None:
                self._write(key, embedding)

    def _done(self, key: Key) -> None:
        self._urgent = [each for each in self._urgent if each != key]
        self._wanted = [each for each in self._wanted if each != key]
        self._changed.notify_all()

    def _keep(self, key: Key, embedding: Embedding) -> None:
        self._memory[key] = embedding
        self._bytes += _bytes(embedding)
        while self._bytes > MEMORY_BYTES and len(self._memory) > 1:
            self._bytes -= _bytes(self._memory.popitem(last=False)[1])

    def _path(self, key: Key) -> Path | None:
        return None if self._folder is None else self._folder / f"{key.level}_{key.column}_{key.row}.npz"

    def _read(self, key: Key) -> Embedding | None:
        """Returns an embedding of an earlier session; None if there is none, or the file is damaged."""
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            found = read_npz(path, "an embedding", "delete it")
            os.utime(path)  # the ones used least recently are deleted first
        except (UserError, OSError):
            return None
        is_sound = "embedding" in found and all(np.isfinite(each).all() for each in found.values())
        return found if is_sound else None

    def _write(self, key: Key, embedding: Embedding) -> None:
        """Keeps an embedding on the disk, unless that is not possible."""
        path = self._path(key)
        if path is None:
            return
        with contextlib.suppress(UserError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with files.whole_file(path, private=True) as unfinished, open(unfinished, "wb") as file:
                np.savez(file, allow_pickle=False, **embedding)
            self._written += _bytes(embedding)
        if self._written > CHECKED_AFTER_BYTES:
            self._make_room()

    def _make_room(self) -> None:
        """Deletes the embeddings that were used least recently until the rest fits."""
        self._written = 0
        if self._root is None:
            return
        found = []
        for path in self._root.glob("**/*.npz"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= DISK_BYTES - CHECKED_AFTER_BYTES:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


def _bytes(embedding: Embedding) -> int:
    return sum(each.nbytes for each in embedding.values())
