"""Annotates a slide in a browser: clicks and boxes become outlines, which brush and eraser correct.

    python -m bcss_jax.annotate case.svs --model=sam_vit_b.pth [--labels=my_labels.toml] [--start-from=out/case]
    python -m bcss_jax.annotate case.svs --model=sam_vit_b.pth --start-from=out/case --next

The annotations are saved at each change, beside the slide as case.geojson: QuPath opens the file, and the layout
`slides` trains on it. The same command goes on with it. --start-from=FOLDER shows the regions that bcss_jax.segment
found, to be accepted or corrected; --start-from=FILE begins with annotations of QuPath or ASAP. With --next, the page
goes from one region to the next where several models (bcss_jax.segment --checkpoint=a,b) or the flips of one (--tta)
disagree most. Only this machine can open the page unless another --host is given, and only who has the printed address
can change something. Ctrl-C and SIGTERM end the command. Exit codes: 0 ended, 2 settings, 3 data, 5 the file or the
port cannot be used, or the last annotations are not saved, 75 stopped before the page was there.
"""

import argparse
import logging
import secrets
import sys
from pathlib import Path

from bcss_jax.annotator.opened_slide import AnnotateSettings, open_annotator
from bcss_jax.annotator.proposals.segmenter import SamSegmenter, Segmenter
from bcss_jax.api.prompting import load_sam
from bcss_jax.commands._address import add_address, address_of, listening
from bcss_jax.commands.prompt import add_model
from bcss_jax.common import command
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.ranges import Range
from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.common.startup import compilation_cache
from bcss_jax.data.resolution.check import COARSEST_MPP, FINEST_MPP
from bcss_jax.viewer import http_server

LABELS = "five_classes"
TOKEN_BYTES = 24


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and serves until it is asked to stop. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return command.run_interruptible(
        lambda interruption: _serve(_parser().parse_args(argv), interruption), debug="--debug" in argv
    )


def _parser():
    parser = command.parser("python -m bcss_jax.annotate", __doc__)
    add = parser.add_argument
    add("slide", type=Path, metavar="SLIDE", help="the slide, as bcss_jax.segment takes it")
    add_model(parser)
    add("--labels", default=LABELS, help=f"classes: a label scheme's name or a .toml file (default {LABELS})")
    add(
        "--start-from",
        type=Path,
        help="results of bcss_jax.segment for this slide (a folder), to be accepted or corrected; or a file of "
        "annotations to go on from",
    )
    add(
        "--next",
        action="store_true",
        dest="next_region",
        help="show which region to annotate next: where the models of --start-from, or the flips of one, disagree most",
    )
    add("--output", type=Path, help="file that is saved (default: the name of the slide with .geojson, beside it)")
    add(
        "--mpp",
        type=Range(FINEST_MPP, COARSEST_MPP, above=True, below=True).parse,
        help="um per pixel of level 0, if the slide does not state it or states it wrongly",
    )
    add_address(parser)
    command.add_debug(parser)
    return parser


def _serve(args: argparse.Namespace, interruption: Interruption) -> None:
    settings = AnnotateSettings(
        slide=args.slide.expanduser(),
        model=args.model.expanduser(),
        labels=args.labels,
        start_from=args.start_from and args.start_from.expanduser(),
        output=args.output and args.output.expanduser(),
        mpp=args.mpp,
        next_region=args.next_region,
    )

    def load() -> tuple[Segmenter, str]:
        compilation_cache.enable()
        loaded = load_sam(args.model.expanduser(), args.image_size)
        return SamSegmenter(loaded), loaded.name or loaded.file

    check_regular_file(settings.model, "weights of SAM or SAM 2.1", "check the path")
    with listening(args.host, args.port) as listener, open_annotator(settings, load, _say) as annotator:
        url, hosts = address_of(listener)
        if "*" in hosts:
            _say(f"warning: --host={args.host}: everyone who can reach this machine can see this slide")
        token = secrets.token_urlsafe(TOKEN_BYTES)
        _say(f"open {url}#token={token} (Ctrl-C ends); annotations are saved to {annotator.path}")
        http_server.serve(annotator.application(token, hosts), listener, interruption)


def _say(line: str) -> None:
    print(line, flush=True)
