"""Writes a trained network as one file that runs without this package.

    python -m bcss_jax.export --checkpoint=runs/unet --output=unet.jaxexport [--which=best] [--tta]

The file holds a StableHLO program of jax.export with weights and preprocessing inside, and what it means as JSON
(`bcss_jax.slides.exported_model` says how to run it with jax alone). `python -m bcss_jax.segment --checkpoint` takes it
in place of a run. Exit codes: 0 done, 2 settings, 3 data, 5 storage, 75 stopped on request.
"""

import argparse
import logging
import sys
from pathlib import Path

import jax

from bcss_jax.errors import ConfigError, Preempted, UserError
from bcss_jax.evaluation import trained_run
from bcss_jax.interruption import Interruption
from bcss_jax.sharding import make_mesh
from bcss_jax.slides.exported_model import PLATFORMS, artefact_of
from bcss_jax.slides.slide_model import model_of_run
from bcss_jax.workdir import storage_errors, write_bytes


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and exports. Returns the exit code."""
    args = _parser().parse_args(argv)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        with Interruption():
            _run(args)
    except UserError as error:
        if args.debug:
            raise
        print(f"{'note' if isinstance(error, Preempted) else 'error'}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m bcss_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, help="folder of a run")
    add("--which", choices=("best", "latest"), default="best", help="checkpoint of the run")
    add("--output", required=True, type=Path, help="the file to write; one that is there is replaced")
    add("--tta", action="store_true", help="mean over flips and quarter turns of every image")
    add("--debug", action="store_true", help="show the traceback of errors")
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.output.is_dir():
        raise ConfigError(f"--output={args.output} is a folder; name a file, such as {args.output / 'unet.jaxexport'}")
    mesh = make_mesh(jax.local_devices()[:1])
    model = model_of_run(trained_run.read(args.checkpoint, mesh, args.which), mesh, args.tta)
    content = artefact_of(model)
    with storage_errors(args.output):
        args.output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(args.output, content)
    print(
        f"{args.output}: {len(content) / 1e6:.3g} MB; uint8 RGB [N, {model.window}, {model.window}, 3] at {model.mpp:g} "
        f"um/px -> probabilities of {', '.join(model.scheme.evaluated_names)}; for {', '.join(PLATFORMS)}"
    )


if __name__ == "__main__":
    # By force: Orbax has set up logging in its own way when it was imported.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    sys.exit(main())
