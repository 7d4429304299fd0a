"""Serves Segment Anything to QuPath: its extension for SAM takes this for its own server, samapi.

    python -m bcss_jax.serve_sam --model=sam_vit_b_01ec64.pth [--port=8000] [--host=127.0.0.1]

In QuPath, install qupath-extension-sam and enter http://localhost:8000/sam/ as its server. Whatever network is chosen
there, that of --model answers. Only this machine can use the server unless another --host is given. Ctrl-C and SIGTERM
end it. Exit codes: 0 ended, 2 settings, 3 no weights of SAM, 5 the port cannot be used, 75 stopped before it was ready.
"""

import argparse
import sys

import numpy as np

from bcss_jax.api.prompting import load_sam
from bcss_jax.commands._address import add_address, address_of, listening
from bcss_jax.commands.prompt import add_model
from bcss_jax.common import command
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.startup import compilation_cache
from bcss_jax.prompting.predictor import Predictor
from bcss_jax.viewer import http_server
from bcss_jax.viewer.samapi import application


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and serves until it is asked to stop. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command.log_progress()
    return command.run_interruptible(
        lambda interruption: _serve(_parser().parse_args(argv), interruption), debug="--debug" in argv
    )


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("python -m bcss_jax.serve_sam", __doc__)
    add_model(parser)
    add_address(parser)
    command.add_debug(parser)
    return parser


def _serve(args: argparse.Namespace, interruption: Interruption) -> None:
    with listening(args.host, args.port) as listener:
        compilation_cache.enable()
        loaded = load_sam(args.model, args.image_size)
        predictor = Predictor(loaded.model)
        _compile(predictor)
        url, hosts = address_of(listener)
        if "*" in hosts:
            print(f"warning: --host={args.host}: everyone who can reach this machine can use the network", flush=True)
        print(f"{loaded.file}: enter {url}sam/ in QuPath's extension for SAM (Ctrl-C ends)", flush=True)
        http_server.serve(application(loaded, predictor, hosts), listener, interruption)


def _compile(predictor: Predictor) -> None:
    """Compiles what a point and a box need, so that the first ones in QuPath need not wait for it."""
    side = predictor.model.image_size
    predictor.set_image(np.full((side, side, 3), 255, np.uint8))
    predictor.predict(points=[[0, 0]], labels=[1])
    predictor.predict(box=[0, 0, side - 1, side - 1])
