"""The HTTP server: uvicorn, which bounds neither the number of connections nor the time of a request, with such bounds.

It ends by the requests to stop that every command obeys.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bcss_jax.common import interruption
from bcss_jax.common.interruption import Interruption

MAX_CONNECTIONS = 64  # a browser opens six
REQUEST_SECONDS = 10.0  # from the start of a connection, or from the last response, to the end of the next request
MAX_HEADERS = 16_384  # bytes of a request line with its headers


def serve(application, listener: socket.socket, active: Interruption) -> None:
    """Serves an application until the process is asked to stop, which is how a viewer ends: its exit code is 0.

    Args:
      application: the ASGI application.
      listener: a listening socket.
      active: says when to stop.
    """
    interruption.end_with(0)
    _Server(config_of(application), active).run(sockets=[listener])


def config_of(application) -> uvicorn.Config:
    """Returns the settings of uvicorn for an ASGI application."""
    return uvicorn.Config(
        application,
        http=Connection,
        ws="none",
        h11_max_incomplete_event_size=MAX_HEADERS,
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=1,  # an open page keeps its connection, which should not delay the end
    )


class Connection(H11Protocol):
    """A connection. One that waits for its client is closed after `REQUEST_SECONDS`, or when others need its place."""

    _deadline: asyncio.TimerHandle | None = None
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Accepts a connection; if there are too many, ends the one that has waited longest for its client."""
        super().connection_made(transport)
        self._wait_for_client()
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [each for each in self.connections if isinstance(each, Connection) and not each._is_served()]
            first = min(waiting, key=Connection._waits_until)
            self.connections.discard(first)  # it is told of its end only later
            first.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Handles bytes of the client. A part of a request does not give it more time for the rest."""
        for start in range(0, len(data), MAX_HEADERS):  # only what is not complete yet is checked for its size
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + MAX_HEADERS])
        if self._is_served():
            self._cancel()

    def on_response_complete(self) -> None:
        """Starts to wait for the next request."""
        super().on_response_complete()
        if not self._is_served():  # the next request may have arrived already
            self._wait_for_client()

    def pause_writing(self) -> None:
        """Starts to wait until the client has received more of the response."""
        super().pause_writing()
        self._wait_for_client()

    def resume_writing(self) -> None:
        """Goes on with the response."""
        super().resume_writing()
        if self._is_served():
            self._cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the connection."""
        self._cancel()
        super().connection_lost(exc)

    def _is_served(self) -> bool:
        """Returns whether a request is answered now, and its client keeps up."""
        return self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused

    def _waits_until(self) -> float:
        return self._deadline.when() if self._deadline else 0.0

    def _wait_for_client(self) -> None:
        self._cancel()
        self._unsent = self.transport.get_write_buffer_size()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def _give_up(self) -> None:
        """Ends a connection whose client sends no request, unless it still receives the last response."""
        self._deadline = None
        if 0 < self.transport.get_write_buffer_size() < self._unsent:
            self._wait_for_client()
        else:
            self.transport.abort()

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


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
