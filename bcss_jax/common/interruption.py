"""Notes the signals that ask a command to save and stop, and makes sure that it stops.

They are SIGTERM (preemption), SIGUSR1 (time limit of a scheduler), Ctrl-C, and SIGHUP (the terminal is gone; left alone
under nohup). The handler only notes the request. Ordinary code acts on it between two units of work: `safe_point`
raises `Preempted` there, and loops that have something to save ask `Interruption.requested` first.

A thread watches over it. If no such point is reached within `GRACE_SECONDS`, for example while XLA compiles, it ends
the process with the same exit code. Nothing is torn by that, because every file is written completely or not at all.
A training run gets more time if more than that would have to be computed again (`work_is_saved`). A second Ctrl-C ends
the process immediately.

This module imports nothing that takes long: `python -m bcss_jax.COMMAND` installs the handlers before anything else.
"""

import atexit
import concurrent.futures
import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

from bcss_jax.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
GRACE_SECONDS = 20.0  # schedulers kill 30 s after they asked
STEPS_BETWEEN_AGREEMENTS = 10  # exchanging with the other processes makes the devices wait
T = TypeVar("T")


def install() -> None:
    """Handles the signals until the process ends. Must be called in the main thread; further calls do nothing."""
    global _watch
    if _watch is None:
        _watch = _Watch()
        # Registered before any library registers something, so it runs last.
        atexit.register(_ignore_signals)


def safe_point(message: str = "stopped on request; run the same command again") -> None:
    """Marks a safe point, where nothing is lost. Does nothing in one of several processes, and if the work is done.

    Args:
      message: of the error; says what the same command does.

    Raises:
      Preempted: the process was asked to stop.
    """
    if _watch is not None and _watch.requested and _watch.alone and not _watch.done:
        raise Preempted(message)


def work_is_saved() -> None:
    """Tells the thread that all work until now is saved.

    A stop gets as much time as the work would take that is lost otherwise, if that is more than `GRACE_SECONDS`.
    """
    if _watch is not None:
        _watch.saved_at = time.monotonic()


def work_has_ended() -> None:
    """Tells the thread that there is no work any more that would have to be saved."""
    if _watch is not None:
        _watch.saved_at = None


def act_together() -> None:
    """Leaves stopping to `Interruption.agreed` and the thread, because this is one of several processes of a run.

    If one stopped at a safe point of its own, the others would wait for it and fail.
    """
    if _watch is not None:
        _watch.alone = False


def result_of(future: concurrent.futures.Future[T]) -> T:
    """Returns the result of a future, like its method `result`; each second of the wait has a safe point."""
    while not concurrent.futures.wait([future], timeout=1).done:
        safe_point()
    return future.result()


def end_with(exit_code: int) -> None:
    """Sets the exit code of a process that is asked to stop from now on, because its work is done."""
    if _watch is not None:
        _watch.done, _watch.exit_code = True, exit_code


def leave_to_parent() -> None:
    """Ignores the signals in a child process; Ctrl-C and schedulers signal the whole group, and the parent decides."""
    global _watch
    if _watch is not None:
        _watch.close()
        _watch = None
    _ignore_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Blocks the signals in this thread, and in the processes that it starts until they call `leave_to_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interruption:
    """A context manager that handles the signals while a command, or a call of one in Python, runs.

    Outside a `with` block it handles no signals: it only tells what the handlers that are there have noted.
    """

    def __init__(self, seconds: float | None = None):
        """Takes the time after which the process counts as asked to stop; None: it has as long as it needs."""
        self._end = None if seconds is None else time.monotonic() + seconds

    def __enter__(self):
        """Installs the signal handlers, unless the process has them already."""
        global _watch
        self._own = None
        if _watch is None:
            self._own = _watch = _Watch()
        return self

    def __exit__(self, *exception):
        """Restores the previous signal handlers if this object has replaced them."""
        global _watch
        if self._own is not None:
            self._own.close()
            _watch = None

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop, or its time is over."""
        over = self._end is not None and time.monotonic() >= self._end
        return over or (_watch is not None and _watch.requested)

    def begin(self) -> None:
        """Marks the point at which the work begins, which is a safe point.

        Libraries that were imported and set up before it may have replaced the signal handlers; they are put back.

        Raises:
          Preempted: the process was asked to stop.
        """
        if _watch is not None:
            _watch.handle()
        safe_point("stopped before anything was computed; the same command starts again")

    def agreed(self, step: int) -> bool:
        """Returns whether any process was asked to stop. All processes get the same answer at the same step."""
        # Imported here, because handling signals must not wait for JAX.
        import jax

        if jax.process_count() == 1:
            return self.requested
        if step % STEPS_BETWEEN_AGREEMENTS:
            return False
        import numpy as np
        from jax.experimental import multihost_utils

        return bool(multihost_utils.process_allgather(np.asarray(self.requested)).any())


class _Watch:
    """The handlers, and the thread that ends a process that does not stop.

    Python runs a handler only between two instructions of the main thread, which a call into C can delay by minutes.
    The thread learns of a signal at once, because Python writes its number to a pipe (`signal.set_wakeup_fd`).

    Attributes:
      requested: the process was asked to stop.
      saved_at: when `work_is_saved` was called, or None.
      alone: this is not one of several processes.
      done: the work is done; the process is about to end.
      exit_code: of a process that the thread ends.
    """

    def __init__(self):
        """Installs the handlers and starts the thread."""
        self.requested, self.alone, self.done, self.exit_code = False, True, False, Preempted.exit_code
        self.saved_at: float | None = None
        self._signals = [s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]
        self._before = {number: signal.getsignal(number) for number in self._signals}
        self._numbers, self._written = os.pipe()
        os.set_blocking(self._written, False)
        self._wakeup_before = -1
        self._wakeup_before = self.handle()
        self._thread = threading.Thread(target=self._run, name="requests to stop", daemon=True)
        self._thread.start()

    def handle(self) -> int:
        """Installs the handlers, again if a library has replaced them. Returns the wakeup file of before, or -1."""
        before = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        for number in self._signals:
            signal.signal(number, self._note)
        return before

    def close(self) -> None:
        """Restores the previous handlers and ends the thread."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._written, b"\0")
        self._thread.join()
        os.close(self._numbers)
        os.close(self._written)

    def forget(self) -> None:
        """Restores the previous handlers in a forked process, whose signals are not requests to its parent."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(-1)
        os.close(self._numbers)
        os.close(self._written)

    def _note(self, number, frame):
        self.requested = True

    def _run(self) -> None:
        asked, grace, interrupts = None, GRACE_SECONDS, 0
        while True:
            ready = select.select([self._numbers], [], [], None if asked is None else 0.2)[0]
            for number in os.read(self._numbers, 512) if ready else b"":
                if number == 0:
                    return
                if number not in self._signals:
                    continue  # of another library
                self.requested = True
                interrupts += number == signal.SIGINT
                if interrupts > 1:
                    self._end("ended at once")
                if asked is None:
                    asked = time.monotonic()
                    grace = max(GRACE_SECONDS, asked - (self.saved_at or asked))
                    if not self.done:
                        _say("stop requested: stopping at the next point where nothing is lost")
            if asked is not None and time.monotonic() - asked > grace:
                self._end("stopped in the middle of a long computation")

    def _end(self, how: str) -> None:
        if not self.done:
            _say(f"note: {how}; what is saved stays, and the same command goes on from there")
        os._exit(self.exit_code)


_watch: _Watch | None = None


def _say(line: str) -> None:
    """Prints to stderr without the locks and buffers of sys.stderr, which the main thread may hold."""
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, line.encode() + b"\n")


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _forget_in_child() -> None:
    global _watch
    if _watch is not None:
        _watch.forget()
        _watch = None


os.register_at_fork(after_in_child=_forget_in_child)
