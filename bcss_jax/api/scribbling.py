"""Segments a slide from a few strokes on it."""

import os
from pathlib import Path
from types import SimpleNamespace

import jax

from bcss_jax.api.arguments import PathLike, check_choice, check_numbers, optional_path, user_errors
from bcss_jax.api.embedding import TILE, load_encoder
from bcss_jax.api.segmentation import ACCELERATOR_BATCH, CPU_BATCH, MAX_READERS, TRUTH_CODES, WHICH
from bcss_jax.api.slide_results import SlideResult
from bcss_jax.common import files
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.ranges import COUNT, PROCESSES, Range
from bcss_jax.common.startup import compilation_cache
from bcss_jax.data.resolution.check import COARSEST_MPP, FINEST_MPP
from bcss_jax.errors import ConfigError, StorageError, UserError
from bcss_jax.labels import codes_of_slide_masks, find_scheme, readable_codes
from bcss_jax.slides.batch import batch_summary
from bcss_jax.slides.batch.mask_colors import check_mask_colors
from bcss_jax.slides.batch.overwrite_journal import OverwriteJournal
from bcss_jax.slides.batch.segment_slide import SegmentSettings, SlideSegmenter
from bcss_jax.slides.batch.slide_folder import OUTPUTS, fingerprints
from bcss_jax.slides.batch.slide_list import Entry, single_entry
from bcss_jax.slides.batch.slide_overview import origin_of, place_grid
from bcss_jax.slides.reading.dicom.series import slide_file
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.scribbles.pixel_features import PixelFeatures, token_features
from bcss_jax.slides.scribbles.stroke_model import OVERLAP, model_of_strokes
from bcss_jax.slides.scribbles.strokes import read_strokes
from bcss_jax.slides.scribbles.texture import texture_features
from bcss_jax.slides.windows import BLEND
from bcss_jax.training.sharding import make_mesh

LABELS = "five_classes"
STROKE_UM = 2.0
RANGES = {
    "stroke_um": Range(0, 1000, above=True),
    "target_mpp": Range(FINEST_MPP, COARSEST_MPP, above=True, below=True),
    "batch_size": COUNT,
    "readers": PROCESSES,
    "min_area_um2": Range(0, 1e12),
}


# Long: every argument is described.
def scribble(
    slide: PathLike,
    strokes: PathLike,
    *,
    output: PathLike,
    labels: str = LABELS,
    stroke_um: float = STROKE_UM,
    encoder: str | None = None,
    weights: PathLike | None = None,
    checkpoint: PathLike | None = None,
    which: str = "best",
    name: str | None = None,
    mpp: float | None = None,
    target_mpp: float | None = None,
    tissue: PathLike = "colour",
    probabilities: bool = False,
    min_area_um2: float = 100.0,
    truth: PathLike | None = None,
    truth_codes: str | None = None,
    batch_size: int | None = None,
    readers: int | None = None,
    overwrite: bool = False,
    debug: bool = False,
) -> SlideResult:
    """Segments a slide with a classifier that is fitted to strokes on it.

    Args:
      slide: the slide, as `segment` takes it.
      strokes: GeoJSON of QuPath, or XML of ASAP: lines, points and polygons with classes.
      output: folder for the results; the slide gets a folder in it, as `segment` writes it.
      labels: label scheme: the name of a shipped one, or a .toml file.
      stroke_um: width of lines, and diameter of points, in um.
      encoder: name of a published encoder, for `weights` that do not describe themselves.
      weights: file of an encoder's weights, whose tokens are classified; without any, stain and texture are.
      checkpoint: instead of `weights`, the folder of a run of the network `vit`.
      which: checkpoint of a run, "best" or "latest".
      name: of the slide's folder in `output`; by default the file name without its extension.
      mpp: um per level-0 pixel, if the slide does not state it or states it wrongly.
      target_mpp: um per pixel for an encoder; by default those that it was trained with.
      tissue: as `segment` takes it.
      probabilities: write probabilities.zarr too.
      min_area_um2: smaller regions are left out of regions.geojson.
      truth: ground truth of the slide to score against, a mask of codes (PNG or TIFF).
      truth_codes: codes of these masks, as `segment` takes them.
      batch_size: windows computed at a time, over all devices.
      readers: processes that read a slide; by default one for each core, at most 8.
      overwrite: compute again, and replace results of other settings.
      debug: not used here; the command shows tracebacks with it.

    Returns:
      The result.

    Raises:
      ConfigError: the arguments cannot work together, or the folder holds results of other settings.
      DataError: the slide, the strokes, or another file cannot be used.
      NumericalError: the features are not finite.
      StorageError: the results cannot be written, or there is not enough memory.
      Preempted: the process was asked to stop.
    """
    del debug
    values = locals()
    check_numbers(RANGES, values)
    check_choice("which", which, WHICH)
    if truth_codes is not None:
        check_choice("truth_codes", truth_codes, TRUTH_CODES)
    args = SimpleNamespace(**values)
    args.tissue, args.output = os.fspath(tissue), Path(output)
    for option in ("slide", "strokes", "weights", "checkpoint", "truth"):
        setattr(args, option, optional_path(values[option]))
    with user_errors():
        return _run(args, Interruption())


def _run(args: SimpleNamespace, interruption: Interruption) -> SlideResult:
    scheme, entry = find_scheme(args.labels, "labels"), _entry(args)
    folder = args.output / entry.folder
    _refuse_inputs(args, entry, folder)
    compilation_cache.enable()
    mesh = make_mesh(jax.local_devices())
    features = _features(args, mesh)
    readers = args.readers or min(MAX_READERS, os.cpu_count() or 1)
    truth_codes = args.truth_codes or codes_of_slide_masks(scheme)
    check_mask_colors([entry], readable_codes(scheme, truth_codes))
    interruption.begin()
    strokes_are = fingerprints(slide_file(entry.slide), strokes=str(args.strokes))["strokes"]
    given = {"strokes": strokes_are, "stroke_um": args.stroke_um}
    with ReaderPool(slide_file(entry.slide), readers) as pool:
        info = pool.info
        mpp, grid = place_grid(entry, info, features.mpp, lambda line: None)  # the segmentation says it
        strokes = read_strokes(
            args.strokes, scheme, (info.width, info.height), mpp, origin_of(info.bounds), args.stroke_um
        )
        model = model_of_strokes(
            strokes,
            scheme,
            features,
            pool,
            grid,
            given=given,
            readers=readers,
            mesh=mesh,
            stopped=lambda: interruption.requested,
        )
    settings = SegmentSettings(
        window=features.window,
        overlap=OVERLAP,
        blend=BLEND,
        tissue="all" if args.tissue == "all" else "colour",
        probabilities=args.probabilities,
        min_area_um2=args.min_area_um2,
        truth_codes=truth_codes,
        truth_region=None,
    )
    per_device = CPU_BATCH if mesh.devices.flat[0].platform == "cpu" else ACCELERATOR_BATCH
    batch_size = args.batch_size or max(1, per_device * TILE**2 // features.window**2) * mesh.size
    segmenter = SlideSegmenter(model, settings, batch_size, readers, mesh)
    with files.storage_errors(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
    journal = OverwriteJournal.of_slide(args.output, entry.folder)
    try:
        summary, done = segmenter.segment(entry, folder, journal if args.overwrite else None, interruption)
    except UserError as error:
        if not isinstance(error, StorageError):
            journal.delete()
        raise
    journal.delete()
    print(batch_summary.line_of(summary, "", folder, done), flush=True)
    return SlideResult(folder)


def _entry(args) -> Entry:
    tissue = None if args.tissue in ("colour", "all") else args.tissue
    truth = None if args.truth is None else str(args.truth)
    return single_entry(args.slide, mpp=args.mpp, tissue=tissue, truth=truth, name=args.name)


def _features(args, mesh) -> PixelFeatures:
    if args.weights is None and args.checkpoint is None:
        for option in ("encoder", "target_mpp"):
            if getattr(args, option) is not None:
                raise ConfigError(f"--{option} is for an encoder; give its weights with --weights")
        return texture_features()
    encoder = load_encoder(args.encoder, args.weights, args.checkpoint, args.which, mesh)
    mpp = args.target_mpp or encoder.mpp
    if mpp is None:
        raise ConfigError(
            f"{encoder.name} says no um per pixel, because it was trained with photographs or many resolutions; give "
            "that of the windows with --target_mpp, for example 0.5"
        )
    patch = encoder.architecture.patch
    return token_features(encoder, mpp, -(-TILE // patch) * patch)


def _refuse_inputs(args, entry: Entry, folder: Path) -> None:
    """Raises ConfigError if results would be written where the command reads."""
    named = [("--strokes", args.strokes), ("--weights", args.weights), ("--checkpoint", args.checkpoint)]
    named += [("--slide", entry.slide), ("--truth", entry.truth), ("--tissue", entry.tissue)]
    inputs = [(option, Path(path)) for option, path in named if path is not None]
    checkpoints = [("the checkpoints", args.checkpoint / "checkpoints")] if args.checkpoint is not None else []
    refuse_inputs("--output", args.output, inputs, parts=[folder / each for each in OUTPUTS], data_folders=checkpoints)
