"""Where the commands that serve pages listen: --host and --port, and which host names requests may use."""

import argparse
import ipaddress
import os
import socket

from bcss_jax.common.ranges import Range
from bcss_jax.errors import ConfigError, StorageError

PORT, TRIED_PORTS = 8000, 20  # without --port the first free one of these
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")  # host names of requests; others may be another site's (DNS rebinding)


def add_address(parser: argparse.ArgumentParser) -> None:
    """Adds --host and --port."""
    parser.add_argument(
        "--port",
        type=Range(0, 65535, whole=True).parse,
        help=f"port to listen on (default: the first free one from {PORT} on)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: only this machine)"
    )


def address_of(listener: socket.socket) -> tuple[str, tuple[str, ...]]:
    """Returns the URL of a listening socket, and the host names that requests may use: "*" if others can reach it."""
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/", (*LOOPBACK, host) if ipaddress.ip_address(host).is_loopback else ("*",)


def listening(host: str, port: int | None) -> socket.socket:
    """Returns a listening socket.

    Raises:
      ConfigError: the host is not an address of this machine.
      StorageError: the port is taken, or this user may not listen on it.
    """
    try:
        family, *_ = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host={host}: expected an address of this machine ({error.strerror})") from error
    failure = None
    for number in (port,) if port is not None else range(PORT, PORT + TRIED_PORTS):
        try:
            return socket.create_server((host, number), family=family)
        except OSError as error:
            failure = error
    assert failure is not None
    tried = f"port {port}" if port is not None else f"ports {PORT} to {PORT + TRIED_PORTS - 1}"
    raise StorageError(
        f"{host}, {tried}: cannot be used ({os.strerror(failure.errno or 0)}); choose another --port"
    ) from failure
