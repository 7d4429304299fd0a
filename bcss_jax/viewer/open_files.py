"""Keeps the most recently used files open, together with the objects that read them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """An object that can be closed."""

    def close(self) -> None:
        """Releases its resources."""


T = TypeVar("T", bound=Closable)


class OpenFiles(Generic[T]):
    """A cache of at most `limit` open files, which closes the least recently used one. Threads may share it."""

    def __init__(self, limit: int):
        """Opens nothing yet."""
        self._limit, self._lock = limit, threading.Lock()
        self._opened: OrderedDict[Hashable, Future[T]] = OrderedDict()

    def get(self, key: Hashable, opener: Callable[[], T]) -> T:
        """Returns the open file of a key; opens it if necessary.

        Args:
          key: identifies the file.
          opener: opens it. Other threads that ask for the same key meanwhile wait.

        Raises:
          Exception: what `opener` raises; the next call tries again.
        """
        with self._lock:
            future = self._opened.get(key)
            is_new = future is None
            if future is None:
                future = self._opened[key] = Future()
            self._opened.move_to_end(key)
            surplus = [self._opened.popitem(last=False)[1] for _ in range(len(self._opened) - self._limit)]
        for each in surplus:
            each.add_done_callback(_close)
        if is_new:
            try:
                future.set_result(opener())
            except BaseException as error:
                self._forget(key, future)
                future.set_exception(error)
        return future.result()

    def drop(self, key: Hashable) -> None:
        """Closes a file if it is open; the next `get` opens it again."""
        with self._lock:
            future = self._opened.get(key)
        if future is not None:
            self._forget(key, future)
            future.add_done_callback(_close)

    def close(self) -> None:
        """Closes all files."""
        for key in list(self._opened):
            self.drop(key)

    def _forget(self, key, future):
        with self._lock:
            if self._opened.get(key) is future:
                del self._opened[key]


def _close(future):
    if future.exception() is None:
        future.result().close()
