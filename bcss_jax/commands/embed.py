"""Writes features of the tiles of whole slides, for multiple-instance learning and other work on features.

    python -m bcss_jax.embed --encoder=gigapath_flash --weights=gigapath_flash.safetensors --slide=case.svs --output=out
    python -m bcss_jax.embed --weights=runs/dino/encoder.safetensors --slides=list.csv [--shard=0/4] --output=out
    python -m bcss_jax.embed --checkpoint=runs/vit --slide=case.svs --output=out

The encoder is a published one with your own file of weights, a file of bcss_jax.pretrain, which describes itself, or
that of a trained run of the network vit. Each slide gets a file NAME.h5 in --output in the layout of TRIDENT: features
[N, D] and coords [N, 2], the upper left corners of the tiles in pixels of level 0. Tiles lie side by side, those with
tissue are taken. The same command skips slides that are done.
Exit codes: 0 done, 2 settings, 3 data, 4 numbers, 5 storage, 6 some slides of a list failed (features.csv lists the
reasons), 75 stopped on request.
"""

import logging
import sys
from pathlib import Path

from bcss_jax.api.embedding import RANGES, TILE, embed
from bcss_jax.api.segmentation import MAX_READERS, WHICH
from bcss_jax.common import command
from bcss_jax.inference.frozen_encoder import FEATURES

# What messages of the weights' readers name as flags of training.
FLAGS = {"--config.encoder": "--encoder", "--config.pretrained": "--weights"}


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and computes features. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command.log_progress()
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # problems of a mask are reported in one line
    return command.run(lambda: embed(**vars(_parser().parse_args(argv))), debug="--debug" in argv, flags=FLAGS)


def add_encoder(parser) -> None:
    """Adds the options that name an encoder."""
    add = parser.add_argument
    add("--encoder", help="name of the published encoder in --weights, such as gigapath_flash; see docs/models.md")
    add("--weights", type=Path, help="file of weights: .safetensors, .pth or .npz")
    add("--checkpoint", type=Path, help="instead of --weights: folder of a trained run of the network vit")
    add("--which", choices=WHICH, default="best", help="checkpoint of the run (default best)")


def add_slide(parser) -> None:
    """Adds the options that say how a slide is read."""
    add = parser.add_argument
    add("--name", help="name of the slide's results in --output (default: the file name without its extension)")
    add("--mpp", type=float, help="um per level-0 pixel, if the slide does not state it or states it wrongly")
    add(
        "--readers",
        type=RANGES["readers"].parse,
        help=f"processes that read a slide (default: one for each core, at most {MAX_READERS})",
    )
    add("--overwrite", action="store_true", help="compute again, and replace results of other settings")


def _parser():
    parser = command.parser("python -m bcss_jax.embed", __doc__)
    add = parser.add_argument
    add_encoder(parser)
    slides = parser.add_mutually_exclusive_group(required=True)
    slides.add_argument(
        "--slide", type=Path, help="slide: SVS, NDPI, MRXS, SCN, DICOM (a file, or the folder of a slide), TIFF, PNG"
    )
    slides.add_argument("--slides", type=Path, help="CSV with a column slide, and optionally mpp, tissue, name")
    add("--shard", help="i/n: every n-th slide of the list, starting with the i-th (0 to n-1), for job arrays")
    add("--output", required=True, type=Path, help="folder for the results")
    add_slide(parser)
    add(
        "--target_mpp",
        type=RANGES["target_mpp"].parse,
        help="um per pixel of the tiles (default: as the encoder was trained)",
    )
    add("--tile", type=RANGES["tile"].parse, default=TILE, help=f"side of the tiles in pixels (default {TILE})")
    add(
        "--feature",
        choices=tuple(FEATURES),
        help="what describes a tile: the class token, the mean over its patches, or both (default: as published)",
    )
    add(
        "--tissue",
        default="colour",
        help="which tiles: colour (default): those with tissue, found by its color; all: the whole slide; or the path "
        "of a mask or a .geojson file",
    )
    add("--batch_size", type=RANGES["batch_size"].parse, help="tiles computed at a time, over all devices")
    command.add_debug(parser)
    return parser
