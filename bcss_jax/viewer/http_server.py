"""The HTTP server: uvicorn, ended by the requests to stop that every command obeys."""

import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from bcss_jax.common import interruption
from bcss_jax.common.interruption import Interruption


def serve(application, listener: socket.socket, active: Interruption) -> None:
    """Serves an application until the process is asked to stop, which is how a viewer ends: its exit code is 0.

    Args:
      application: the ASGI application.
      listener: a listening socket.
      active: says when to stop.
    """
    interruption.end_with(0)
    # An open page keeps its connection, which should not delay the end.
    config = uvicorn.Config(application, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    _Server(config, active).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, active: Interruption):
        super().__init__(config)
        self._active = active

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to the handlers of the command."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Returns whether the server ends; it is called ten times a second."""
        self.should_exit |= self._active.requested
        return await super().on_tick(counter)
