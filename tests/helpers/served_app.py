"""Serves an ASGI application on a free port of this machine."""

import contextlib
import socket
import threading

import uvicorn

from bcss_jax.viewer import http_server


@contextlib.contextmanager
def served_app(app):
    """Yields the port; the server has ended afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(http_server.config_of(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
