"""Segments a slide from a few strokes on it: lines, points and polygons with classes, as QuPath exports them.

    python -m bcss_jax.scribble --slide=case.svs --strokes=strokes.geojson --output=out
    python -m bcss_jax.scribble --weights=runs/dino/encoder.safetensors --slide=case.svs --strokes=strokes.geojson \
        --output=out

A linear classifier is fitted to the features of the pixels under the strokes, and labels the whole slide. The features
are stain and texture at several scales, which need no weights, or the tokens of a vision transformer. The results are
those of bcss_jax.segment: labels.ome.tif, regions.geojson, overlay.png and summary.json in a folder of the slide.
Exit codes: 0 done, 2 settings, 3 data, 4 numbers, 5 storage, 75 stopped on request.
"""

import logging
import sys
from pathlib import Path

from bcss_jax.api.scribbling import LABELS, RANGES, STROKE_UM, scribble
from bcss_jax.api.segmentation import TRUTH_CODES
from bcss_jax.commands.embed import FLAGS, add_encoder, add_slide
from bcss_jax.common import command


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and segments. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command.log_progress()
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # problems of a mask are reported in one line
    return command.run(lambda: scribble(**vars(_parser().parse_args(argv))), debug="--debug" in argv, flags=FLAGS)


def _parser():
    parser = command.parser("python -m bcss_jax.scribble", __doc__)
    add = parser.add_argument
    add(
        "--slide",
        type=Path,
        required=True,
        help="slide: SVS, NDPI, MRXS, SCN, DICOM (a file, or the folder of a slide), TIFF, PNG or JPEG",
    )
    add("--strokes", type=Path, required=True, help="GeoJSON of QuPath or XML of ASAP with the strokes")
    add("--output", required=True, type=Path, help="folder for the results")
    add("--labels", default=LABELS, help=f"label scheme: a shipped name or a .toml file (default {LABELS})")
    add(
        "--stroke_um",
        type=RANGES["stroke_um"].parse,
        default=STROKE_UM,
        help=f"width of lines, and diameter of points, in um (default {STROKE_UM:g})",
    )
    add_encoder(parser)
    add_slide(parser)
    add(
        "--target_mpp",
        type=RANGES["target_mpp"].parse,
        help="um per pixel for an encoder (default: as it was trained)",
    )
    add(
        "--tissue",
        default="colour",
        help="what is segmented: colour (default): tissue, found by its color; all: the whole slide; or the path of a "
        "mask or a .geojson file",
    )
    add("--probabilities", action="store_true", help="write probabilities.zarr too")
    add(
        "--min_area_um2",
        type=RANGES["min_area_um2"].parse,
        default=100.0,
        help="leave smaller regions out of regions.geojson (default 100)",
    )
    add("--truth", type=Path, help="ground truth of the slide to score against: a mask of codes (PNG or TIFF)")
    add("--truth_codes", choices=TRUTH_CODES, help="codes of this mask (default: as for bcss_jax.segment)")
    add("--batch_size", type=RANGES["batch_size"].parse, help="windows computed at a time, over all devices")
    command.add_debug(parser)
    return parser
