"""Features of the tiles of whole slides, computed by a vision transformer that stays as it is."""

import csv
import io
import os
from pathlib import Path
from types import SimpleNamespace

import jax

from bcss_jax.api.arguments import PathLike, check_choice, check_numbers, optional_path, user_errors
from bcss_jax.api.segmentation import MAX_READERS, WHICH
from bcss_jax.common import files
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.outputs import written_files
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.ranges import COUNT, PROCESSES, WINDOW, Range
from bcss_jax.common.startup import compilation_cache
from bcss_jax.data.resolution.check import COARSEST_MPP, FINEST_MPP
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.inference.frozen_encoder import FEATURES, FrozenEncoder, encoder_of_file, encoder_of_run
from bcss_jax.slides.batch import runner
from bcss_jax.slides.batch.overwrite_journal import OverwriteJournal
from bcss_jax.slides.batch.slide_list import Entry, read_list, shard_of, single_entry
from bcss_jax.slides.features.embed_slide import EmbeddedSlide, EmbedSettings, SlideEmbedder
from bcss_jax.training.sharding import make_mesh

TILE = 224  # pixels of a tile; all published encoders of pathology were trained with crops of this size
CPU_BATCH, ACCELERATOR_BATCH = 8, 128  # tiles of 224 pixels for each device; fewer if they are larger
RANGES = {
    "tile": WINDOW,
    "target_mpp": Range(FINEST_MPP, COARSEST_MPP, above=True, below=True),
    "batch_size": COUNT,
    "readers": PROCESSES,
}
TABLE = "features.csv"
COLUMNS = ("slide", "status", "reason", "tiles", "file")


# Long: every argument is described.
def embed(
    slide: PathLike | None = None,
    *,
    output: PathLike,
    slides: PathLike | None = None,
    encoder: str | None = None,
    weights: PathLike | None = None,
    checkpoint: PathLike | None = None,
    which: str = "best",
    name: str | None = None,
    shard: str | None = None,
    mpp: float | None = None,
    target_mpp: float | None = None,
    tile: int = TILE,
    feature: str | None = None,
    tissue: PathLike = "colour",
    batch_size: int | None = None,
    readers: int | None = None,
    overwrite: bool = False,
    debug: bool = False,
) -> list[Path]:
    """Writes the features of the tiles of one slide, or of the slides of a list, as HDF5 in TRIDENT's layout.

    A slide that was done before is not computed again.

    Args:
      slide: the slide, as `segment` takes it.
      output: folder for the results; each slide gets a file in it.
      slides: instead of `slide`, a CSV with a column slide, and optionally mpp, tissue, name.
      encoder: name of a published encoder, for `weights` that do not describe themselves.
      weights: file of weights.
      checkpoint: instead of `weights`, the folder of a run of the network `vit`.
      which: checkpoint of a run, "best" or "latest".
      name: of the slide's file in `output`; by default the file name of the slide.
      shard: "i/n": every n-th slide of the list, starting with the i-th (0 to n-1).
      mpp: um per level-0 pixel, if the slide does not state it or states it wrongly.
      target_mpp: um per pixel of the tiles; by default those that the encoder was trained with.
      tile: side of the tiles in pixels; a multiple of the encoder's patch.
      feature: what describes a tile: "class", "mean" or "class+mean"; by default as published.
      tissue: which tiles: "colour": those with tissue, found by its color; "all": the whole slide; or the path of a
        mask or a .geojson file.
      batch_size: tiles computed at a time, over all devices.
      readers: processes that read a slide; by default one for each core, at most 8.
      overwrite: compute again, and replace features of other settings.
      debug: raise an unexpected error of a slide of a list, instead of going on with the next slide.

    Returns:
      The files of the slides that were asked for.

    Raises:
      ConfigError: the arguments cannot work together, or a file holds features of other settings.
      DataError: the weights, the slide, or a file that belongs to it, cannot be used.
      NumericalError: the features are not finite.
      StorageError: the results cannot be written, or there is not enough memory.
      PartialError: some slides of a list failed; the others are done.
      Preempted: the process was asked to stop.
    """
    values = locals()
    if (slide is None) == (slides is None):
        raise ConfigError("give one of --slide and --slides: a slide, or a list of slides")
    check_numbers(RANGES, values)
    check_choice("which", which, WHICH)
    if feature is not None:
        check_choice("feature", feature, FEATURES)
    args = SimpleNamespace(**values)
    args.tissue, args.output = os.fspath(tissue), Path(output)
    for option in ("slide", "slides", "weights", "checkpoint"):
        setattr(args, option, optional_path(values[option]))
    with user_errors():
        return _run(args, Interruption())


def load_encoder(encoder: str | None, weights: Path | None, checkpoint: Path | None, which: str, mesh) -> FrozenEncoder:
    """Returns the encoder that the options name; see `embed`."""
    if (weights is None) == (checkpoint is None):
        raise ConfigError("give one of --weights and --checkpoint: a file of weights, or the folder of a run of vit")
    if weights is not None:
        return encoder_of_file(weights, encoder, mesh)
    assert checkpoint is not None
    if encoder is not None:
        raise ConfigError(f"--encoder={printable(encoder)}: names what is in a file of --weights; a run says it itself")
    return encoder_of_run(checkpoint, which, mesh)


def _run(args: SimpleNamespace, interruption: Interruption) -> list[Path]:
    whole = None if args.slides is None else _list(args)
    entries = [_single(args)] if whole is None else shard_of(whole, args.shard)
    compilation_cache.enable()
    mesh = make_mesh(jax.local_devices())
    embedder = _embedder(args, mesh)
    paths = {entry: args.output / f"{entry.folder}.h5" for entry in entries}
    table = args.output / (TABLE if args.shard is None else f"features-{args.shard.replace('/', 'of')}.csv")
    _refuse_inputs(args, paths, table)
    with files.storage_errors(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
    written_files.check([*paths.values(), *([] if whole is None else [table])])
    for entry, path in paths.items():
        try:
            embedder.check(entry, path, replace=args.overwrite)
        except DataError:
            pass  # the slide is missing, which is reported when its turn comes
    journal = _journal(args, entries)
    rows: dict[Entry, dict] = {}

    def one(entry: Entry, position: str = "") -> None:
        path = paths[entry]
        recompute = args.overwrite and not journal.is_cleared(path)
        done = embedder.embed(entry, path, interruption, replace=args.overwrite, recompute=recompute)
        if recompute:
            journal.add(path)
        rows[entry] = {"status": "done", "tiles": done.tiles, "file": path}
        print(_line_of(entry, position, path, done), flush=True)

    interruption.begin()
    if whole is None:
        one(entries[0])
        journal.delete()
        return list(paths.values())
    try:
        outcome = runner.segment_all(entries, one, lambda *_: None, lambda: None, args.debug, interruption)
        for entry, error in outcome.failures.items():
            rows[entry] = {"status": "failed", "reason": " ".join(str(error).split())}
    finally:
        _write_table(table, entries, rows)
    print(f"\n{outcome.done} of {len(entries)} slides done; {table} lists them")
    journal.delete()
    runner.raise_unless_done(outcome, table)
    return list(paths.values())


def _list(args) -> list[Entry]:
    """Returns all slides of the list, including those of other shards."""
    given = {"mpp": args.mpp, "tissue": _tissue_file(args), "name": args.name}
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"--{name}={value}: applies to a single slide; for a list use the column {name} of {args.slides}"
            )
    return [entry._replace(truth=None) for entry in read_list(args.slides)]


def _single(args) -> Entry:
    if args.shard is not None:
        raise ConfigError("--shard selects a part of a list; give the list with --slides=list.csv")
    return single_entry(args.slide, mpp=args.mpp, tissue=_tissue_file(args), name=args.name)


def _tissue_file(args) -> str | None:
    return None if args.tissue in ("colour", "all") else args.tissue


def _embedder(args, mesh) -> SlideEmbedder:
    encoder = load_encoder(args.encoder, args.weights, args.checkpoint, args.which, mesh)
    patch = encoder.architecture.patch
    if args.tile % patch:
        below = max(args.tile // patch, 1) * patch
        raise ConfigError(
            f"--tile={args.tile}: {encoder.name} takes tiles of a multiple of {patch} pixels, for example {below}"
        )
    mpp = args.target_mpp or encoder.mpp
    if mpp is None:
        raise ConfigError(
            f"{encoder.name} says no um per pixel, because it was trained with photographs or many resolutions; give "
            "that of the tiles with --target_mpp, for example 0.5"
        )
    settings = EmbedSettings(
        tile=args.tile,
        mpp=mpp,
        feature=args.feature or encoder.feature,
        tissue="all" if args.tissue == "all" else "colour",
    )
    per_device = CPU_BATCH if mesh.devices.flat[0].platform == "cpu" else ACCELERATOR_BATCH
    default = max(1, per_device * TILE**2 // args.tile**2) * mesh.size
    readers = args.readers or min(MAX_READERS, os.cpu_count() or 1)
    return SlideEmbedder(encoder, settings, args.batch_size or default, readers, mesh)


def _journal(args, entries) -> OverwriteJournal:
    if args.slides is None:
        return OverwriteJournal.of_slide(args.output, entries[0].folder)
    return OverwriteJournal(args.output, (args.shard or "0/1").replace("/", "of"))


def _refuse_inputs(args, paths, table) -> None:
    """Raises ConfigError if results would be written where the command reads."""
    named = (("--weights", args.weights), ("--checkpoint", args.checkpoint), ("--slides", args.slides))
    inputs = [(option, path) for option, path in named if path is not None]
    for entry in paths:
        found = {"slide": entry.slide, "tissue": entry.tissue}
        inputs += [(f"the {kind} {printable(path)}", Path(path)) for kind, path in found.items() if path]
    checkpoints = [("the checkpoints", args.checkpoint / "checkpoints")] if args.checkpoint is not None else []
    refuse_inputs("--output", args.output, inputs, parts=[*paths.values(), table], data_folders=checkpoints)


def _line_of(entry: Entry, position: str, path: Path, done: EmbeddedSlide) -> str:
    how = "done before" if done.seconds is None else f"{done.seconds:.1f} s, {done.tiles / done.seconds:.1f} tiles/s"
    left_out = f", {done.unreadable} that cannot be decoded left out" if done.unreadable else ""
    return f"{position}{printable(entry.slide.name)}: {done.tiles} tiles{left_out}; {how}\n  features: {path}"


def _write_table(path: Path, entries: list[Entry], rows: dict[Entry, dict]) -> None:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for entry in entries:
        row = {"slide": printable(entry.slide), "status": "pending"} | rows.get(entry, {})
        table.writerow([row.get(column, "") for column in COLUMNS])
    files.write_text(path, text.getvalue())
