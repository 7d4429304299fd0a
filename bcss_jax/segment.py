"""Segments whole slides with trained networks.

    python -m bcss_jax.segment --checkpoint=runs/unet --slide=case.svs --output=out
    python -m bcss_jax.segment --checkpoint=runs/unet --slides=list.csv [--shard=0/4] --output=out

Each slide gets a folder in `--output` with labels.ome.tif, regions.geojson (QuPath), overlay.png and summary.json. Label
scheme and um per pixel come from the checkpoint. Several checkpoints (--checkpoint=a,b) get a folder each in that of the
slide, and a picture that compares them. The same command goes on where it was stopped, and computes no slide twice; with
--overwrite too: it computes all slides anew until it has come to its end once, however often it is stopped before.
Exit codes: 0 done, 2 settings, 3 data, 5 storage, 6 some slides of a list failed (summary.csv says why), 75 stopped on
request.
"""

import argparse
import logging
import os
from pathlib import Path

import jax

from bcss_jax.common import command, files
from bcss_jax.common.interruption import Interruption
from bcss_jax.errors import ConfigError, DataError, Preempted, StorageError, UserError
from bcss_jax.inference import trained_run
from bcss_jax.inference.exported_model import model_of_artifact
from bcss_jax.inference.slide_model import SlideModel, check_window, model_of_run
from bcss_jax.labels import CODE_BOOKS, LabelScheme
from bcss_jax.slides.batch import batch_summary, comparison, runner
from bcss_jax.slides.batch.overwrite_journal import OverwriteJournal
from bcss_jax.slides.batch.segment_slide import Settings, SlideSegmenter
from bcss_jax.slides.batch.slide_folder import note_failure, refuse_results_of_one
from bcss_jax.slides.batch.slide_list import Entry, check_name, read_list, shard_of
from bcss_jax.slides.stitching.blend import BLENDS
from bcss_jax.training.sharding import make_mesh

ON_CPU, OTHERWISE = 4, 32  # windows of 224 pixels in a device's share of a batch, fewer of larger ones
MOST_READERS = 8


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and segments. Returns the exit code."""
    args = _parser().parse_args(argv)
    command.log_progress()
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a mask is one line
    return command.run_interruptible(lambda interruption: _run(args, interruption), debug=args.debug)


def _parser():
    parser = command.parser("python -m bcss_jax.segment", __doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="folder of a run, or file of bcss_jax.export; several: a,b")
    add("--which", choices=("best", "latest"), default="best", help="checkpoint of a run")
    slides = parser.add_mutually_exclusive_group(required=True)
    slides.add_argument("--slide", type=Path, help="SVS, NDPI, MRXS, SCN, DICOM, TIFF, PNG or JPEG")
    slides.add_argument("--slides", type=Path, help="CSV with a column slide, and perhaps mpp, tissue, truth, name")
    add("--name", help="of the slide's folder in --output; that of its file without ending if not given")
    add("--shard", help="i/n: of a list every n-th slide, from the i-th (0 to n-1) on, for job arrays")
    add("--output", required=True, type=Path, help="folder of the results")
    add("--mpp", type=float, help="um per level-0 pixel, if the slide's own is missing or wrong")
    add("--window", type=int, help="pixels of a window's side; that of the training images if not given")
    add("--overlap", type=float, default=0.25, help="of neighboring windows, as a share of their side (default 0.25)")
    add("--blend", choices=BLENDS, default="gaussian", help="how overlapping windows are joined (default gaussian)")
    add("--tta", action="store_true", help="mean over flips and quarter turns of every window")
    add("--batch_size", type=int, help="windows at a time, over all devices")
    add("--readers", type=int, help="processes that read a slide; as many as cores, at most 8, if not given")
    add("--tissue", default="colour", help="colour (default): found by color; all: everything; or a mask or .geojson")
    add("--probabilities", action="store_true", help="write probabilities.zarr too")
    add(
        "--min_area_um2",
        type=float,
        default=100.0,
        help="smaller regions are left out of regions.geojson (default 100)",
    )
    add("--truth", type=Path, help="mask of codes (PNG or TIFF) of the slide to score against")
    add("--truth_codes", choices=tuple(CODE_BOOKS), default="bcss22", help="code book of masks (default bcss22)")
    add("--truth_region", help="x,y,width,height in level-0 pixels: scores of that part besides")
    add("--overwrite", action="store_true", help="compute again, and replace results of other settings")
    command.add_debug(parser)
    return parser


def _run(args: argparse.Namespace, interruption: Interruption) -> None:
    whole = None if args.slides is None else _list(args)
    entries = [_single(args)] if whole is None else shard_of(whole, args.shard)
    segmenters = _segmenters(args, make_mesh(jax.local_devices()))
    folders = {entry: _folders(args.output, entry, segmenters) for entry in entries}
    with files.storage_errors(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
    if not args.overwrite:
        _refuse_other_results(entries, segmenters, folders)
    if len(segmenters) > 1:
        for paths in folders.values():
            refuse_results_of_one(paths[0].parent)
    overwriting = _overwriting(args, entries)

    def work(entry, place=""):  # on one slide
        _segment(entry, place, segmenters, folders[entry], args, overwriting if args.overwrite else None, interruption)

    def note(entry, error):
        note_failure(folders[entry][0], error)

    interruption.begin()
    if whole is None:
        try:
            work(entries[0])
        except UserError as error:
            if not isinstance(error, (Preempted, StorageError)):
                overwriting.end()
            raise
        ended = runner.Ended(1, {}, {})
    else:
        with batch_summary.kept_up(args.output, whole, len(segmenters) > 1) as after_slide:
            ended = runner.segment_all(entries, work, note, after_slide, args.debug, interruption)
        print(f"\n{ended.done} of {len(entries)} slides done; {args.output / 'summary.csv'} lists them")
    if not ended.busy:  # also without --overwrite: then what was not overwritten shall stay
        overwriting.end()
    runner.conclude(ended, args.output / "summary.csv")


def _list(args) -> list[Entry]:
    """All slides of the list, those of other shards too."""
    given = {"mpp": args.mpp, "truth": args.truth, "tissue": _tissue_file(args), "name": args.name}
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"--{name}={value}: is of one slide; in a list it is the column {name} of {args.slides}")
    return read_list(args.slides)


def _single(args) -> Entry:
    if args.shard is not None:
        raise ConfigError("--shard is a part of a list; give the list with --slides=list.csv")
    try:
        check_name(args.name)
    except ValueError as error:
        raise ConfigError(f"--name: {error}") from error
    truth = None if args.truth is None else str(args.truth)
    return Entry(args.slide, args.mpp, _tissue_file(args), truth, args.name or None)


def _overwriting(args, entries) -> OverwriteJournal:
    if args.slides is None:
        return OverwriteJournal.of_slide(args.output, entries[0].folder)
    return OverwriteJournal(args.output, (args.shard or "0/1").replace("/", "of"))


def _tissue_file(args) -> str | None:
    return None if args.tissue in ("colour", "all") else args.tissue


def _segmenters(args, mesh) -> list[SlideSegmenter]:
    region = _region(args.truth_region)
    if region is not None and args.truth is None and args.slides is None:
        raise ConfigError("--truth_region is a part of a mask of truth; give the mask with --truth")
    if not args.min_area_um2 >= 0:
        raise ConfigError(f"--min_area_um2={args.min_area_um2}: must be 0 or more")
    share = ON_CPU if mesh.devices.flat[0].platform == "cpu" else OTHERWISE
    readers = _at_least_one("readers", args.readers, min(MOST_READERS, os.cpu_count() or 1))
    found = []
    for model in _models(args, mesh):
        window = _at_least_one("window", args.window, model.window)
        if window != model.window and not model.any_window:
            raise ConfigError(
                f"--window={window}: {model.name} was exported for windows of {model.window}; leave it out"
            )
        if window != model.window:
            check_window(model, window)
            logging.getLogger("bcss_jax").warning(
                "--window=%d: %s was trained on images of %d pixels; others can change what it says",
                window,
                model.name,
                model.window,
            )
        settings = Settings(
            window=window,
            overlap=args.overlap,
            blend=args.blend,
            tissue="all" if args.tissue == "all" else "colour",
            probabilities=args.probabilities,
            min_area_um2=args.min_area_um2,
            truth_codes=args.truth_codes,
            truth_region=region,
        )
        default = max(1, share * 224**2 // window**2) * mesh.size
        batch_size = _at_least_one("batch_size", args.batch_size, default)
        found.append(SlideSegmenter(model, settings, batch_size, readers, mesh))
    first = found[0].model
    for model in (each.model for each in found):
        if model.scheme != first.scheme:
            raise ConfigError(
                f"--checkpoint: {first.name} has the label scheme {_told(first.scheme)}, {model.name} has "
                f"{_told(model.scheme)}; only models of one label scheme can be compared"
            )
    return found


def _told(scheme: LabelScheme) -> str:
    return f"{scheme.name} ({', '.join(scheme.evaluated_names)})"


def _models(args, mesh) -> list[SlideModel]:
    """Of runs and of exported files, in the order in which they are named."""
    paths = [Path(path) for path in args.checkpoint.split(",") if path]
    if not paths:
        raise ConfigError("--checkpoint names no folder; name a run, such as runs/unet")
    files = {path: model_of_artifact(path, mesh, args.tta) for path in paths if path.is_file()}
    taken = [files[path].name for path in paths if path in files]
    if len(set(taken)) < len(taken):
        raise ConfigError(f"--checkpoint names two files {max(taken, key=taken.count)}; name each once, or rename one")
    runs = [trained_run.read_trained_run(path, mesh, args.which) for path in paths if path not in files]
    runs = iter(trained_run.with_unique_names(runs, taken))
    return [files[path] if path in files else model_of_run(next(runs), mesh, args.tta) for path in paths]


def _at_least_one(name, value, default):
    if value is not None and value < 1:
        raise ConfigError(f"--{name}={value}: must be 1 or more")
    return default if value is None else value


def _region(text):
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--truth_region={text}: must be x,y,width,height in level-0 pixels, as in 0,1344,3391,1074")
    return tuple(map(int, parts))


def _folders(output, entry, segmenters) -> list[Path]:
    folder = output / entry.folder
    return [folder] if len(segmenters) == 1 else [folder / each.model.name for each in segmenters]


def _refuse_other_results(entries, segmenters, folders):
    """Before a night's batch starts: what it would refuse to replace in the end."""
    for entry in entries:
        for segmenter, path in zip(segmenters, folders[entry], strict=True):
            try:
                segmenter.folder_of(entry._replace(truth=None), path).check()  # labels do not depend on the truth
            except DataError:
                pass  # the slide is not there; said when its turn comes


def _segment(entry, place, segmenters, paths, args, overwriting, interruption) -> None:
    summaries = []
    for segmenter, path in zip(segmenters, paths, strict=True):
        summary, done = segmenter.segment(entry, path, overwriting, interruption)
        print(batch_summary.line(summary, place, path, done), flush=True)
        summaries.append(summary)
    picture = paths[0].parent / "comparison.png"
    if len(segmenters) > 1 and not comparison.is_current(picture, paths):
        with files.locked(picture.parent):
            comparison.write(picture, entry, summaries, paths, segmenters[0].classes, args.truth_codes)
    if len(segmenters) > 1:
        print(f"  compared: {picture}", flush=True)


if __name__ == "__main__":
    command.start(main)
