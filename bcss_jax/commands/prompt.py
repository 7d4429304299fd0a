"""Outlines what you point at on a slide, with Segment Anything: points, boxes and polygons drawn in QuPath.

    python -m bcss_jax.prompt --model=sam_vit_b_01ec64.pth --slide=case.svs --prompts=prompts.geojson --output=out

A rectangle stands for the object in it, any other polygon for an outline that is to be corrected, and the points of an
annotation for one object. Points of other classes, and of QuPath's Ignore*, lie outside of it. The slide gets a folder
in --output with regions.geojson for QuPath, overlay.png and summary.json. The same command resumes where it was
stopped. Where masks overlap, the larger logit decides.
Exit codes: 0 done, 2 settings, 3 data, 4 numbers, 5 storage, 75 stopped on request.
"""

import sys
from pathlib import Path

from bcss_jax.api.prompting import LABELS, MIN_AREA_UM2, RANGES, READERS, prompt_slide
from bcss_jax.common import command


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and answers the prompts. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command.log_progress()
    return command.run(lambda: prompt_slide(**vars(_parser().parse_args(argv))), debug="--debug" in argv)


def add_model(parser) -> None:
    """Adds the options that name a network."""
    parser.add_argument(
        "--model", type=Path, required=True, help="weights of SAM or SAM 2.1, MedSAM, ...: .pth, .pt or .safetensors"
    )
    parser.add_argument(
        "--image_size",
        type=RANGES["image_size"].parse,
        help="height and width of the network's input (default: that of the weights, 1024 as released); smaller is "
        "faster",
    )


def _parser():
    parser = command.parser("python -m bcss_jax.prompt", __doc__)
    add = parser.add_argument
    add_model(parser)
    add(
        "--slide",
        type=Path,
        required=True,
        help="slide: SVS, NDPI, MRXS, SCN, DICOM (a file, or the folder of a slide), TIFF, PNG or JPEG",
    )
    add("--prompts", type=Path, required=True, help="GeoJSON of QuPath or XML of ASAP with the prompts")
    add("--output", required=True, type=Path, help="folder for the results")
    add("--labels", default=LABELS, help=f"label scheme: a shipped name or a .toml file (default {LABELS})")
    add("--name", help="name of the slide's results in --output (default: the file name without its extension)")
    add("--mpp", type=float, help="um per level-0 pixel, if the slide does not state it or states it wrongly")
    add(
        "--target_mpp",
        type=RANGES["target_mpp"].parse,
        help="um per pixel that objects are seen at (default: a box takes half of what the network sees, points 0.5)",
    )
    add(
        "--min_area_um2",
        type=RANGES["min_area_um2"].parse,
        default=MIN_AREA_UM2,
        help=f"fill smaller holes, and leave smaller parts of an object out but its largest (default {MIN_AREA_UM2:g})",
    )
    add(
        "--readers",
        type=RANGES["readers"].parse,
        default=READERS,
        help=f"processes that read the slide (default {READERS})",
    )
    add("--overwrite", action="store_true", help="answer again, and replace results of other settings")
    command.add_debug(parser)
    return parser
