"""Keeps the last few files open that were asked for, with what reads them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """Something to close."""

    def close(self) -> None:
        """Gives back what it holds."""


T = TypeVar("T", bound=Closable)


class OpenFiles(Generic[T]):
    """At most `limit` of them; the one that was not asked for the longest is closed. Threads may share it."""

    def __init__(self, limit: int):
        """None is open yet."""
        self._limit, self._lock = limit, threading.Lock()
        self._opened: OrderedDict[Hashable, Future[T]] = OrderedDict()

    def get(self, key: Hashable, opener: Callable[[], T]) -> T:
        """What `opener` gave for this key; whoever asks while it is being opened waits.

        Raises:
          Exception: what `opener` raises; it is tried again the next time.
        """
        with self._lock:
            future = self._opened.get(key)
            mine = future is None
            if mine:
                future = self._opened[key] = Future()
            self._opened.move_to_end(key)
            surplus = [self._opened.popitem(last=False)[1] for _ in range(len(self._opened) - self._limit)]
        for each in surplus:
            each.add_done_callback(_close)
        if mine:
            try:
                future.set_result(opener())
            except BaseException as error:
                self._forget(key, future)
                future.set_exception(error)
        return future.result()

    def drop(self, key: Hashable) -> None:
        """Closes one, if it is open: the next `get` opens it anew."""
        with self._lock:
            future = self._opened.get(key)
        if future is not None:
            self._forget(key, future)
            future.add_done_callback(_close)

    def close(self) -> None:
        """Closes all."""
        for key in list(self._opened):
            self.drop(key)

    def _forget(self, key, future):
        with self._lock:
            if self._opened.get(key) is future:
                del self._opened[key]


def _close(future):
    if future.exception() is None:
        future.result().close()
