"""Segments whole slides with trained networks.

    python -m bcss_jax.segment --checkpoint=runs/unet --slide=case.svs --output=out
    python -m bcss_jax.segment --checkpoint=runs/unet --slides=list.csv [--shard=0/4] --output=out

Each slide gets a folder in `--output` with labels.ome.tif, regions.geojson (for QuPath), overlay.png and summary.json.
The label scheme and the resolution come from the checkpoint. Several checkpoints (--checkpoint=a,b) get one folder each
in the folder of the slide, and a picture that compares them. The same command resumes where it was stopped and computes
no slide twice. This holds with --overwrite too: each slide is computed again once, however often the command is stopped
before it ends.
Exit codes: 0 done, 2 settings, 3 data, 4 numbers, 5 storage, 6 some slides of a list failed (summary.csv lists the
reasons), 75 stopped on request.
"""

import argparse
import logging
import sys
from pathlib import Path

from bcss_jax.api.segmentation import MAX_READERS, RANGES, TRUTH_CODES, WHICH, segment
from bcss_jax.common import command
from bcss_jax.labels import OWN_CODES
from bcss_jax.slides.batch.segment_slide import GLASS
from bcss_jax.slides.batch.stain_normalizer import KEEP_STAIN, STAIN
from bcss_jax.slides.windows import BLEND, BLENDS, OVERLAP


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and segments. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command.log_progress()
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # problems of a mask are reported in one line
    return command.run(lambda: segment(**vars(_parser().parse_args(argv))), debug="--debug" in argv)


def _parser():
    parser = command.parser("python -m bcss_jax.segment", __doc__)
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        type=command.comma_separated_paths,
        help="folder of a run, or file written by bcss_jax.export; several: a,b",
    )
    add("--which", choices=WHICH, default="best", help="checkpoint of the run (default best)")
    slides = parser.add_mutually_exclusive_group(required=True)
    slides.add_argument(
        "--slide",
        type=Path,
        help="slide to segment: SVS, NDPI, MRXS, SCN, DICOM (a file, or the folder of a slide), TIFF, PNG or JPEG",
    )
    slides.add_argument("--slides", type=Path, help="CSV with a column slide, and optionally mpp, tissue, truth, name")
    add("--name", help="name of the slide's folder in --output (default: the file name without its extension)")
    add("--shard", help="i/n: every n-th slide of the list, starting with the i-th (0 to n-1), for job arrays")
    add("--output", required=True, type=Path, help="folder for the results")
    add("--mpp", type=float, help="um per level-0 pixel, if the slide does not state it or states it wrongly")
    add(
        "--window",
        type=RANGES["window"].parse,
        help="side of a window in pixels (default: that of the training images)",
    )
    add(
        "--overlap",
        type=RANGES["overlap"].parse,
        help=f"overlap of neighboring windows, a share of their side (default {OVERLAP}; an imported model may differ)",
    )
    add("--blend", choices=BLENDS, help=f"how windows are blended (default {BLEND}; an imported model may differ)")
    add(
        "--tta",
        action="store_true",
        help="average the predictions over flips and quarter turns of every window, and write where these disagree",
    )
    add("--batch_size", type=RANGES["batch_size"].parse, help="windows computed at a time, over all devices")
    add(
        "--readers",
        type=RANGES["readers"].parse,
        help=f"processes that read a slide (default: one for each core, at most {MAX_READERS})",
    )
    add(
        "--tissue",
        default="colour",
        help="what is segmented: colour (default): tissue, found by its color; all: the whole slide; or the path of a "
        "mask or a .geojson file",
    )
    add(
        "--glass",
        choices=GLASS,
        help="glass inside tissue, such as lumina: background takes it out of labels, areas and probabilities, keep "
        "labels it (default: background if the model has no class for tissue that is not among its classes)",
    )
    add(
        "--stain",
        choices=STAIN,
        default=KEEP_STAIN,
        help="normalize changes the stain of each slide into that of the model's training images (default keep)",
    )
    add("--probabilities", action="store_true", help="write probabilities.zarr too")
    add(
        "--min_area_um2",
        type=RANGES["min_area_um2"].parse,
        default=100.0,
        help="leave smaller regions out of regions.geojson (default 100)",
    )
    add("--truth", type=Path, help="ground truth of the slide to score against: a mask of codes (PNG or TIFF)")
    add(
        "--truth_codes",
        choices=TRUTH_CODES,
        help=f"codes of these masks (default: {OWN_CODES} if the label scheme defines them, else bcss22)",
    )
    add("--truth_region", type=_region, help="x,y,width,height in level-0 pixels: score this region too")
    add("--overwrite", action="store_true", help="compute again, and replace results of other settings")
    command.add_debug(parser)
    return parser


def _region(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise argparse.ArgumentTypeError(f"={text}: must be x,y,width,height in level-0 pixels, as in 0,1344,3391,1074")
    return tuple(map(int, parts))
