"""Calls a function of many items on several threads and yields the results in the order of the items."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from bcss_jax.common.interruption import result_of

T = TypeVar("T")
R = TypeVar("R")
READ_AHEAD = 2  # items for each thread


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yields the results of a function; only a few of them wait to be taken at any time.

    Decoding and NumPy release the interpreter's lock, so that threads suffice.
    """
    threads = min(8, os.cpu_count() or 1)
    waiting: collections.deque[concurrent.futures.Future[R]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > READ_AHEAD * threads:
                yield result_of(waiting.popleft())
        while waiting:
            yield result_of(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)
