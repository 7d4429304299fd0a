"""Shows segmented slides in a browser: the slide, its labels over it, and the areas of the classes.

    python -m bcss_jax.view out/ [--slides=FOLDER] [--port=8000] [--host=127.0.0.1]

The folder is one that `python -m bcss_jax.segment` wrote, for one slide or for many. Slides that are no longer where
they were segmented, for example on a cluster, are searched for in --slides and its subfolders. Only this machine can
open the page unless another --host is given. Ctrl-C and SIGTERM end the viewer. Exit codes: 0 ended, 2 settings, 3 no
results or no such folder, 5 the port cannot be used, 75 stopped before the page was there.
"""

import argparse
import logging
import sys
from pathlib import Path

from bcss_jax.commands._address import add_address, address_of, listening
from bcss_jax.common import command
from bcss_jax.common.interruption import Interruption
from bcss_jax.errors import DataError, printable
from bcss_jax.slides import slide_summary
from bcss_jax.viewer import http_server, results
from bcss_jax.viewer.server import application
from bcss_jax.viewer.slide_files import SlideFiles


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and serves until it is asked to stop. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # problems of a file are shown on its page
    return command.run_interruptible(
        lambda interruption: _serve(_parser().parse_args(argv), interruption), debug="--debug" in argv
    )


def _parser():
    parser = command.parser("python -m bcss_jax.view", __doc__)
    parser.add_argument("output", type=Path, metavar="OUT", help="folder that python -m bcss_jax.segment wrote")
    parser.add_argument("--slides", type=Path, help="folder with slides that are no longer where they were segmented")
    add_address(parser)
    command.add_debug(parser)
    return parser


def _serve(args: argparse.Namespace, interruption: Interruption) -> None:
    found = results.find(args.output.expanduser())
    if not found:
        raise DataError(
            f"{printable(args.output)}: expected results of slides ({slide_summary.FILE}), found none; "
            "segment a slide first: python -m bcss_jax.segment"
        )
    slide_files = SlideFiles(None if args.slides is None else args.slides.expanduser())
    with listening(args.host, args.port) as listener:
        url, hosts = address_of(listener)
        if "*" in hosts:
            print(f"warning: --host={args.host}: everyone who can reach this machine can see these slides", flush=True)
        print(f"{len(found)} result{'s' if len(found) != 1 else ''}: open {url} (Ctrl-C ends)", flush=True)
        app = application(args.output.expanduser(), _open_pool, slide_files, hosts)
        http_server.serve(app, listener, interruption)


def _open_pool(path: Path, processes: int):
    from bcss_jax.slides.reading.reader_pool import ReaderPool  # not needed for a result whose slide is gone

    return ReaderPool(path, processes)
