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
import os
import sys
from pathlib import Path

import jax

from bcss_jax.common import command, files
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.ranges import COUNT, PROCESSES, WINDOW, Range
from bcss_jax.common.startup import compilation_cache
from bcss_jax.data.resolution.check import check_mpp
from bcss_jax.errors import ConfigError, DataError, StorageError, UserError, printable
from bcss_jax.inference import trained_run
from bcss_jax.inference.exported_model import model_of_artifact
from bcss_jax.inference.slide_model import SlideModel, check_window, model_of_run
from bcss_jax.labels import CODE_BOOKS, OWN_CODES, LabelScheme, codes_of_slide_masks, readable_codes
from bcss_jax.slides.batch import batch_summary, comparison, runner
from bcss_jax.slides.batch.mask_colors import check_mask_colors
from bcss_jax.slides.batch.overwrite_journal import OverwriteJournal
from bcss_jax.slides.batch.segment_slide import GLASS, SegmentSettings, SlideSegmenter
from bcss_jax.slides.batch.slide_folder import OUTPUTS, refuse_results_of_one_model, write_failure
from bcss_jax.slides.batch.slide_list import Entry, check_name, read_list, shard_of
from bcss_jax.slides.batch.stain_normalizer import KEEP_STAIN, STAIN
from bcss_jax.slides.windows import BLEND, BLENDS, MAX_OVERLAP, OVERLAP
from bcss_jax.training.sharding import make_mesh

CPU_BATCH, ACCELERATOR_BATCH = 4, 32  # windows of 224 pixels for each device; fewer if they are larger
MAX_READERS = 8


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and segments. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command.log_progress()
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # problems of a mask are reported in one line
    return command.run_interruptible(
        lambda interruption: _run(_parser().parse_args(argv), interruption), debug="--debug" in argv
    )


def _parser():
    parser = command.parser("python -m bcss_jax.segment", __doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="folder of a run, or file written by bcss_jax.export; several: a,b")
    add("--which", choices=("best", "latest"), default="best", help="checkpoint of the run (default best)")
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
    add("--window", type=WINDOW.parse, help="side of a window in pixels (default: that of the training images)")
    add(
        "--overlap",
        type=Range(0, MAX_OVERLAP).parse,
        help=f"overlap of neighboring windows, a share of their side (default {OVERLAP}; an imported model may differ)",
    )
    add("--blend", choices=BLENDS, help=f"how windows are blended (default {BLEND}; an imported model may differ)")
    add("--tta", action="store_true", help="average the predictions over flips and quarter turns of every window")
    add("--batch_size", type=COUNT.parse, help="windows computed at a time, over all devices")
    add(
        "--readers",
        type=PROCESSES.parse,
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
        type=Range(0, 1e12).parse,
        default=100.0,
        help="leave smaller regions out of regions.geojson (default 100)",
    )
    add("--truth", type=Path, help="ground truth of the slide to score against: a mask of codes (PNG or TIFF)")
    add(
        "--truth_codes",
        choices=(*CODE_BOOKS, OWN_CODES),
        help=f"codes of these masks (default: {OWN_CODES} if the label scheme defines them, else bcss22)",
    )
    add("--truth_region", help="x,y,width,height in level-0 pixels: score this region too")
    add("--overwrite", action="store_true", help="compute again, and replace results of other settings")
    command.add_debug(parser)
    return parser


def _run(args: argparse.Namespace, interruption: Interruption) -> None:
    whole = None if args.slides is None else _list(args)
    entries = [_single(args)] if whole is None else shard_of(whole, args.shard)
    compilation_cache.enable()
    segmenters = _segmenters(args, make_mesh(jax.local_devices()))
    folders = {entry: _folders(args.output, entry, segmenters) for entry in entries}
    with files.storage_errors(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
    _refuse_inputs(args, entries, folders)
    _refuse_other_results(entries, segmenters, folders, args.overwrite)
    scheme = segmenters[0].model.scheme
    check_mask_colors(entries, readable_codes(scheme, _truth_codes(args, scheme)))
    if args.slides is not None:
        batch_summary.check_table(args.output)
    if len(segmenters) > 1:
        for paths in folders.values():
            if paths[0].parent.is_symlink():
                raise ConfigError(f"{paths[0].parent} is a link to another folder; name another --output")
            refuse_results_of_one_model(paths[0].parent)
            comparison.check_picture(paths[0].parent / comparison.FILE)
    journal = _journal(args, entries)

    def segment(entry, position=""):
        _segment(entry, position, segmenters, folders[entry], args, journal if args.overwrite else None, interruption)

    interruption.begin()
    if whole is None:
        try:
            segment(entries[0])
        except UserError as error:
            if not isinstance(error, StorageError):
                journal.delete()
            raise
        outcome = runner.BatchOutcome(1, {}, {})
    else:
        with batch_summary.updated_table(args.output, whole, len(segmenters) > 1) as after_slide:
            outcome = runner.segment_all(
                entries,
                segment,
                lambda entry, error: write_failure(folders[entry][0], error),
                after_slide,
                args.debug,
                interruption,
            )
        print(f"\n{outcome.done} of {len(entries)} slides done; {args.output / 'summary.csv'} lists them")
    if not outcome.busy:  # without --overwrite too: what was not overwritten until now is to stay
        journal.delete()
    runner.raise_unless_done(outcome, args.output / "summary.csv")


def _list(args) -> list[Entry]:
    """Returns all slides of the list, including those of other shards."""
    given = {"mpp": args.mpp, "truth": args.truth, "tissue": _tissue_file(args), "name": args.name}
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"--{name}={value}: applies to a single slide; for a list use the column {name} of {args.slides}"
            )
    return read_list(args.slides)


def _single(args) -> Entry:
    if args.shard is not None:
        raise ConfigError("--shard selects a part of a list; give the list with --slides=list.csv")
    try:
        check_name(args.name)
    except ValueError as error:
        raise ConfigError(f"--name: {error}") from error
    if args.mpp is not None:
        check_mpp(args.mpp, f"--mpp={args.mpp:g}", remedy="give the um per pixel of the slide's level 0")
    truth = None if args.truth is None else str(args.truth)
    return Entry(args.slide, args.mpp, _tissue_file(args), truth, args.name or None)


def _journal(args, entries) -> OverwriteJournal:
    if args.slides is None:
        return OverwriteJournal.of_slide(args.output, entries[0].folder)
    return OverwriteJournal(args.output, (args.shard or "0/1").replace("/", "of"))


def _tissue_file(args) -> str | None:
    return None if args.tissue in ("colour", "all") else args.tissue


def _segmenters(args, mesh) -> list[SlideSegmenter]:
    region = _region(args.truth_region)
    if region is not None and args.truth is None and args.slides is None:
        raise ConfigError("--truth_region is a region of a ground truth mask; give the mask with --truth")
    per_device = CPU_BATCH if mesh.devices.flat[0].platform == "cpu" else ACCELERATOR_BATCH
    readers = args.readers or min(MAX_READERS, os.cpu_count() or 1)
    segmenters = []
    for model in _models(args, mesh):
        window = args.window or model.window
        if window != model.window and not model.any_window:
            raise ConfigError(
                f"--window={window}: {model.name} was exported for windows of {model.window}; leave it out"
            )
        if window != model.window:
            check_window(model, window)
            logging.getLogger("bcss_jax").warning(
                "--window=%d: %s was trained on images of %d pixels; windows of another size can change its "
                "predictions",
                window,
                model.name,
                model.window,
            )
        settings = SegmentSettings(
            window=window,
            overlap=model.overlap if args.overlap is None else args.overlap,
            blend=args.blend or model.blend,
            tissue="all" if args.tissue == "all" else "colour",
            probabilities=args.probabilities,
            min_area_um2=args.min_area_um2,
            truth_codes=_truth_codes(args, model.scheme),
            truth_region=region,
            glass=args.glass,
            stain=args.stain,
        )
        default = max(1, per_device * 224**2 // window**2) * mesh.size
        segmenters.append(SlideSegmenter(model, settings, args.batch_size or default, readers, mesh))
    _refuse_different_schemes(segmenters)
    return segmenters


def _truth_codes(args, scheme: LabelScheme) -> str:
    return args.truth_codes or codes_of_slide_masks(scheme)


def _refuse_different_schemes(segmenters):
    first = segmenters[0].model
    for model in (each.model for each in segmenters):
        if model.scheme != first.scheme:
            raise ConfigError(
                f"--checkpoint: {first.name} has the label scheme {_described(first.scheme)}, {model.name} has "
                f"{_described(model.scheme)}; only models of one label scheme can be compared"
            )


def _described(scheme: LabelScheme) -> str:
    return f"{scheme.name} ({', '.join(scheme.evaluated_names)})"


def _models(args, mesh) -> list[SlideModel]:
    """Returns the models of runs and of exported files, in the order in which they are named."""
    paths = [Path(path) for path in args.checkpoint.split(",") if path]
    if not paths:
        raise ConfigError("--checkpoint names no folder; name a run, for example runs/unet")
    exported = {path: model_of_artifact(path, mesh, args.tta) for path in paths if path.is_file()}
    taken = [exported[path].name for path in paths if path in exported]
    if len(set(taken)) < len(taken):
        raise ConfigError(f"--checkpoint names two files {max(taken, key=taken.count)}; name each once, or rename one")
    runs = [trained_run.read_trained_run(path, mesh, args.which) for path in paths if path not in exported]
    runs = iter(trained_run.with_unique_names(runs, taken))
    return [exported[path] if path in exported else model_of_run(next(runs), mesh, args.tta) for path in paths]


def _region(text):
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise ConfigError(f"--truth_region={text}: must be x,y,width,height in level-0 pixels, as in 0,1344,3391,1074")
    x, y, width, height = map(int, parts)
    return x, y, width, height


def _folders(output, entry, segmenters) -> list[Path]:
    folder = output / entry.folder
    return [folder] if len(segmenters) == 1 else [folder / each.model.name for each in segmenters]


def _refuse_inputs(args, entries, folders):
    """Raises ConfigError if results would be written where the command reads."""
    inputs = [("--checkpoint", Path(path)) for path in args.checkpoint.split(",") if path]
    checkpoints = [path / "checkpoints" if (path / "checkpoints").is_dir() else path for _, path in inputs]
    data_folders = [("the checkpoints", path) for path in checkpoints if path.is_dir()]
    inputs += [("--slides", args.slides)] if args.slides is not None else []
    for entry in entries:
        files_of_slide = {"slide": entry.slide, "truth": entry.truth, "tissue": entry.tissue}
        inputs += [(f"the {name} {printable(path)}", Path(path)) for name, path in files_of_slide.items() if path]
    parts = [args.output / batch_summary.TABLE] if args.slides is not None else []
    for paths in folders.values():
        parts += [path / name for path in paths for name in OUTPUTS]
        parts += [paths[0].parent / comparison.FILE] if len(paths) > 1 else []
    refuse_inputs("--output", args.output, inputs, parts=parts, data_folders=data_folders)


def _refuse_other_results(entries, segmenters, folders, replace):
    """Raises ConfigError before the first slide is computed if any folder holds what may not be replaced."""
    for entry in entries:
        for segmenter, path in zip(segmenters, folders[entry], strict=True):
            try:
                # The labels do not depend on the truth.
                segmenter.folder_of(entry._replace(truth=None), path).check(replace=replace)
            except DataError:
                pass  # the slide is missing, which is reported when its turn comes


def _segment(entry, position, segmenters, paths, args, journal, interruption) -> None:
    summaries = []
    for segmenter, path in zip(segmenters, paths, strict=True):
        summary, done = segmenter.segment(entry, path, journal, interruption)
        print(batch_summary.line_of(summary, position, path, done), flush=True)
        summaries.append(summary)
    if len(segmenters) > 1:
        picture = paths[0].parent / comparison.FILE
        if not comparison.is_current(picture, paths):
            with files.locked(picture.parent):
                codes = _truth_codes(args, segmenters[0].model.scheme)
                comparison.draw_comparison(picture, entry, summaries, paths, segmenters[0].classes, codes)
        print(f"  comparison: {picture}", flush=True)
