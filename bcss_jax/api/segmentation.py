"""`bcss_jax.segment`: segments whole slides."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import jax

from bcss_jax.api.arguments import PathLike, as_paths, check_choice, check_numbers, optional_path, user_errors
from bcss_jax.api.slide_results import SlideResults
from bcss_jax.common import files
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.ranges import COUNT, PROCESSES, WINDOW, Range
from bcss_jax.common.startup import compilation_cache
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
from bcss_jax.slides.batch.slide_list import Entry, read_list, shard_of, single_entry
from bcss_jax.slides.batch.stain_normalizer import KEEP_STAIN, STAIN
from bcss_jax.slides.windows import BLENDS, MAX_OVERLAP
from bcss_jax.training.sharding import make_mesh

CPU_BATCH, ACCELERATOR_BATCH = 4, 32  # windows of 224 pixels for each device; fewer if they are larger
MAX_READERS = 8
WHICH = ("best", "latest")
TRUTH_CODES = (*CODE_BOOKS, OWN_CODES)
RANGES = {
    "window": WINDOW,
    "overlap": Range(0, MAX_OVERLAP),
    "batch_size": COUNT,
    "readers": PROCESSES,
    "min_area_um2": Range(0, 1e12),
}


# Long: every argument is described.
def segment(
    checkpoint: PathLike | Sequence[PathLike],
    slide: PathLike | None = None,
    *,
    output: PathLike,
    slides: PathLike | None = None,
    name: str | None = None,
    which: str = "best",
    shard: str | None = None,
    mpp: float | None = None,
    window: int | None = None,
    overlap: float | None = None,
    blend: str | None = None,
    tta: bool = False,
    batch_size: int | None = None,
    readers: int | None = None,
    tissue: PathLike = "colour",
    glass: str | None = None,
    stain: str = KEEP_STAIN,
    probabilities: bool = False,
    min_area_um2: float = 100.0,
    truth: PathLike | None = None,
    truth_codes: str | None = None,
    truth_region: tuple[int, int, int, int] | None = None,
    overwrite: bool = False,
    debug: bool = False,
) -> SlideResults:
    """Segments one slide, or the slides of a list, with one or more trained networks.

    What was computed before is not computed again: a call that was interrupted goes on where it was.

    Args:
      checkpoint: folder of a run, or a file written by `python -m bcss_jax.export`; several are compared.
      slide: the slide: SVS, NDPI, MRXS, SCN, DICOM (a file, or the folder of a slide), TIFF, PNG or JPEG.
      output: folder for the results; each slide gets a folder in it.
      slides: instead of `slide`, a CSV with a column slide, and optionally mpp, tissue, truth, name.
      name: of the slide's folder in `output`; by default the file name without its extension.
      which: checkpoint of a run, "best" or "latest".
      shard: "i/n": every n-th slide of the list, starting with the i-th (0 to n-1).
      mpp: um per level-0 pixel, if the slide does not state it or states it wrongly.
      window: side of a window in pixels; by default that of the training images.
      overlap: of neighboring windows, a share of their side; by default that of the model.
      blend: how windows are blended, "gaussian" or "centre"; by default that of the model.
      tta: average the predictions over flips and quarter turns of every window, and write where these disagree.
      batch_size: windows computed at a time, over all devices.
      readers: processes that read a slide; by default one for each core, at most 8.
      tissue: what is segmented: "colour": tissue, found by its color; "all": the whole slide; or the path of a mask
        or a .geojson file.
      glass: inside tissue: "background" takes it out, "keep" labels it; by default as the model was trained.
      stain: "normalize" changes the stain of each slide into that of the model's training images, "keep" does not.
      probabilities: write probabilities.zarr too.
      min_area_um2: smaller regions are left out of regions.geojson.
      truth: ground truth of the slide to score against, a mask of codes (PNG or TIFF).
      truth_codes: codes of these masks: "bcss22", "kaggle3", or "own_codes": those of the label scheme; by default
        "own_codes" if it defines some, else "bcss22".
      truth_region: (x, y, width, height) in level-0 pixels: score this region too.
      overwrite: compute again, and replace results of other settings.
      debug: raise an unexpected error of a slide of a list, instead of going on with the next slide.

    Returns:
      The results of the slides that were asked for, one for each slide and network.

    Raises:
      ConfigError: the arguments cannot work together, or a folder holds results of other settings.
      DataError: the slide, or a file that belongs to it, cannot be used.
      NumericalError: the output of the network is not finite.
      StorageError: the results cannot be written, or there is not enough memory.
      PartialError: some slides of a list failed; `SlideResults(output)` has the others.
      Preempted: the process was asked to stop, or another one works on a slide of the list.
    """
    values = locals()
    if (slide is None) == (slides is None):
        raise ConfigError("give one of --slide and --slides: a slide, or a list of slides")
    check_numbers(RANGES, values)
    check_choice("which", which, WHICH)
    check_choice("stain", stain, STAIN)
    for option, choices in (("blend", BLENDS), ("glass", GLASS), ("truth_codes", TRUTH_CODES)):
        if values[option] is not None:
            check_choice(option, values[option], choices)
    args = SimpleNamespace(**values)
    args.checkpoints, args.tissue, args.output = as_paths(checkpoint), os.fspath(tissue), Path(output)
    for option in ("slide", "slides", "truth"):
        setattr(args, option, optional_path(values[option]))
    with user_errors():
        return _run(args, Interruption())


def _run(args: SimpleNamespace, interruption: Interruption) -> SlideResults:
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
    return SlideResults([path for paths_of_slide in folders.values() for path in paths_of_slide])


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
    truth = None if args.truth is None else str(args.truth)
    return single_entry(args.slide, mpp=args.mpp, tissue=_tissue_file(args), truth=truth, name=args.name)


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
    paths = args.checkpoints
    if not paths:
        raise ConfigError("--checkpoint names no folder; name a run, for example runs/unet")
    exported = {path: model_of_artifact(path, mesh, args.tta) for path in paths if path.is_file()}
    taken = [exported[path].name for path in paths if path in exported]
    if len(set(taken)) < len(taken):
        raise ConfigError(f"--checkpoint names two files {max(taken, key=taken.count)}; name each once, or rename one")
    runs = [trained_run.read_trained_run(path, mesh, args.which) for path in paths if path not in exported]
    runs = iter(trained_run.with_unique_names(runs, taken))
    return [exported[path] if path in exported else model_of_run(next(runs), mesh, args.tta) for path in paths]


def _region(given) -> tuple[int, int, int, int] | None:
    if given is None:
        return None
    values = tuple(given)
    whole = Range(0, 10**9, whole=True)
    if len(values) != 4 or not all(value in whole for value in values):
        raise ConfigError(
            f"--truth_region={printable(str(given))[:60]}: must be x,y,width,height in level-0 pixels, as in "
            "0,1344,3391,1074"
        )
    x, y, width, height = map(int, values)
    return x, y, width, height


def _folders(output, entry, segmenters) -> list[Path]:
    folder = output / entry.folder
    return [folder] if len(segmenters) == 1 else [folder / each.model.name for each in segmenters]


def _refuse_inputs(args, entries, folders):
    """Raises ConfigError if results would be written where the command reads."""
    inputs = [("--checkpoint", path) for path in args.checkpoints]
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
