"""Shows segmented slides in a browser: the slide, its result over it, and the areas.

    python -m bcss_jax.view out/ [--slides=FOLDER] [--port=8000] [--host=127.0.0.1]

The folder is what `python -m bcss_jax.segment` wrote: of one slide, or of many. Slides that are not where they were
segmented, on a cluster for instance, are looked for in --slides and below. Only this machine can see the page unless
another --host is given. Ctrl-C ends it. Exit codes: 0 done, 2 settings, 3 no results or no such folder, 5 the port is
taken.
"""

import argparse
import contextlib
import ipaddress
import logging
import os
import socket
import sys
from pathlib import Path

import uvicorn

from bcss_jax.common import command
from bcss_jax.errors import ConfigError, DataError, StorageError, printable
from bcss_jax.viewer import results
from bcss_jax.viewer.server import application
from bcss_jax.viewer.slide_files import SlideFiles

PORT, TRIED = 8000, 20  # without --port the first free one of so many
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")  # as requests name it; other names may be another site's (DNS rebinding)


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and serves until it is asked to stop. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file stands on its page
    with contextlib.suppress(KeyboardInterrupt):
        return command.run(lambda: _serve(_parser().parse_args(argv)), debug="--debug" in argv)
    return 0


def _parser():
    parser = command.parser("python -m bcss_jax.view", __doc__, command.OneLineParser)
    parser.add_argument("output", type=Path, metavar="OUT", help="folder that bcss_jax.segment wrote")
    parser.add_argument(
        "--slides", type=Path, help="folder with slides that are not where they were segmented any more"
    )
    parser.add_argument("--port", type=int, help=f"the first free one from {PORT} on if not given")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; this machine alone if not given")
    command.add_debug(parser)
    return parser


def _serve(args: argparse.Namespace) -> None:
    if args.port is not None and not 0 <= args.port <= 65535:
        raise ConfigError(f"--port={args.port}: expected a number from 0 (any free port) to 65535")
    found = results.find(args.output.expanduser())
    if not found:
        raise DataError(
            f"{printable(args.output)}: expected results of slides ({results.SUMMARY}), found none; "
            "segment a slide first: python -m bcss_jax.segment"
        )
    slide_files = SlideFiles(None if args.slides is None else args.slides.expanduser())
    with _listening(args.host, args.port) as listener:
        host, port = listener.getsockname()[:2]
        local = ipaddress.ip_address(host).is_loopback
        if not local:
            print(f"warning: --host={args.host}: everybody who reaches this machine can see these slides", flush=True)
        name = f"[{host}]" if ":" in host else host
        print(
            f"{len(found)} result{'s' if len(found) != 1 else ''}: open http://{name}:{port}/ (Ctrl-C ends)", flush=True
        )
        hosts = (*LOOPBACK, host) if local else ("*",)
        app = application(args.output.expanduser(), _open_pool, slide_files, hosts)
        # A page that is open keeps its connection; nobody should wait for that.
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int | None) -> socket.socket:
    """A listening socket.

    Raises:
      ConfigError: there is no such host here.
      StorageError: the port is taken, or not ours to take.
    """
    try:
        family, *_ = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host={host}: expected an address of this machine ({error.strerror})") from error
    for number in (port,) if port is not None else range(PORT, PORT + TRIED):
        try:
            return socket.create_server((host, number), family=family)
        except OSError as error:
            failure = error
    tried = f"port {port}" if port is not None else f"ports {PORT} to {PORT + TRIED - 1}"
    raise StorageError(
        f"{host}, {tried}: cannot be used ({os.strerror(failure.errno)}); choose another --port"
    ) from failure


def _open_pool(path: Path, processes: int):
    from bcss_jax.slides.reading.reader_pool import ReaderPool  # here, because a result whose slide is gone needs none

    return ReaderPool(path, processes)


if __name__ == "__main__":
    sys.exit(main())
