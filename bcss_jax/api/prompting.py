"""Outlines of what prompts on a slide point at."""

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bcss_jax.api.arguments import PathLike, check_numbers, optional_path, user_errors
from bcss_jax.api.scribbling import LABELS
from bcss_jax.common import files
from bcss_jax.common.device_memory import out_of_memory_errors
from bcss_jax.common.digests import sha256_of_file
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.ranges import PROCESSES, Range
from bcss_jax.common.regular_file import check_regular_file, real_path
from bcss_jax.common.startup import compilation_cache
from bcss_jax.data.resolution.check import FINEST_MPP
from bcss_jax.errors import StorageError, UserError, printable
from bcss_jax.labels import LabelScheme, find_scheme
from bcss_jax.models.sam.weights.loading import LoadedSam, load
from bcss_jax.prompting.predictor import Predictor
from bcss_jax.slides.batch.overwrite_journal import OverwriteJournal
from bcss_jax.slides.batch.slide_folder import fingerprints
from bcss_jax.slides.batch.slide_list import Entry, single_entry
from bcss_jax.slides.batch.slide_overview import TISSUE_MPP, find_tissue, origin_of, place_grid, read_thumbnail
from bcss_jax.slides.prompts.prompt_file import read_prompts
from bcss_jax.slides.prompts.prompt_folder import OUTPUTS, PromptFolder
from bcss_jax.slides.prompts.prompt_slide import Place, answer_views, resolutions_in_words, write_results
from bcss_jax.slides.prompts.view_plan import plan_views
from bcss_jax.slides.reading.dicom.series import slide_file
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.training.summary import device, versions

READERS = 2  # processes: one view is read while another is answered
MIN_AREA_UM2 = 25.0
RANGES = {
    "target_mpp": Range(FINEST_MPP, 1000, above=True),
    "image_size": Range(64, 4096, whole=True),
    "readers": PROCESSES,
    "min_area_um2": Range(0, 1e12),
}
log = logging.getLogger(__name__)


def prompt_slide(
    model: PathLike,
    slide: PathLike,
    prompts: PathLike,
    *,
    output: PathLike,
    labels: str = LABELS,
    name: str | None = None,
    mpp: float | None = None,
    target_mpp: float | None = None,
    image_size: int | None = None,
    min_area_um2: float = MIN_AREA_UM2,
    readers: int = READERS,
    overwrite: bool = False,
    debug: bool = False,
) -> Path:
    """Outlines the objects that points, boxes and polygons on a slide stand for, with SAM or SAM 2.1.

    Prompts that were answered before with the same settings are not answered again.

    Args:
      model: file of the weights of SAM or SAM 2.1: .pth, .pt or .safetensors.
      slide: the slide, as `segment` takes it.
      prompts: GeoJSON of QuPath, or XML of ASAP: points, rectangles and polygons with classes.
      output: folder for the results; the slide gets a folder in it with regions.geojson, overlay.png, summary.json.
      labels: label scheme: the name of a shipped one, or a .toml file.
      name: of the slide's folder in `output`; by default the file name without its extension.
      mpp: um per level-0 pixel, if the slide does not state it or states it wrongly.
      target_mpp: um per pixel that objects are seen at; by default a box takes half of what the network sees.
      image_size: height and width of the network's input, if another than that of the weights.
      min_area_um2: smaller holes are filled, and smaller parts of an object left out, except its largest one.
      readers: processes that read the slide.
      overwrite: answer again, and replace results of other settings.
      debug: not used here; the command shows tracebacks with it.

    Returns:
      The folder of the results.

    Raises:
      ConfigError: the arguments cannot work together, or the folder holds results of other settings.
      DataError: the slide, the prompts or the weights cannot be used.
      NumericalError: the output of the network is not finite.
      StorageError: the results cannot be written, or there is not enough memory.
      Preempted: the process was asked to stop.
    """
    del debug
    values = locals()
    check_numbers(RANGES, values)
    args = SimpleNamespace(**values)
    for option in ("model", "slide", "prompts", "output"):
        setattr(args, option, optional_path(values[option]))
    with user_errors():
        return _run(args, Interruption())


def _run(args: SimpleNamespace, interruption: Interruption) -> Path:
    scheme, entry = find_scheme(args.labels, "labels"), single_entry(args.slide, mpp=args.mpp, name=args.name)
    path = args.output / entry.folder
    inputs = [("--model", args.model), ("--prompts", args.prompts), ("--slide", entry.slide)]
    refuse_inputs("--output", args.output, inputs, parts=[path / each for each in OUTPUTS])
    check_regular_file(args.model, "weights of SAM or SAM 2.1", "check the path")
    folder = PromptFolder(path, _identity(args, entry, scheme))
    journal = OverwriteJournal.of_slide(args.output, entry.folder)
    folder.check(replace=args.overwrite)
    done = None if args.overwrite and not journal.is_cleared(path) else folder.finished()
    if done is not None:
        journal.delete()
        print(f"{_line_of(done)}; done before\n  results: {path}", flush=True)
        return path
    compilation_cache.enable()
    interruption.begin()
    with ReaderPool(slide_file(entry.slide), args.readers) as pool:
        _answer(args, entry, scheme, folder, journal, pool, interruption)
    return path


def _answer(
    args: SimpleNamespace,
    entry: Entry,
    scheme: LabelScheme,
    folder: PromptFolder,
    journal: OverwriteJournal,
    pool: ReaderPool,
    interruption: Interruption,
) -> None:
    started, notes, info = time.perf_counter(), [], pool.info

    def warn(line: str) -> None:
        log.warning("%s", line)
        notes.append(line)

    entry = entry._replace(slide=slide_file(entry.slide))
    mpp, grid = place_grid(entry, info, TISSUE_MPP, warn)

    def tissue() -> np.ndarray:
        thumbnail, _ = read_thumbnail(entry, pool, grid, warn)
        return find_tissue(entry, thumbnail, grid, info.bounds, warn).mask

    place = Place(printable(entry.slide.name), (info.width, info.height), mpp, origin_of(info.bounds))
    prompts = read_prompts(args.prompts, scheme, place.size, mpp, place.origin, tissue, warn)
    loaded = load_sam(args.model, args.image_size)
    predictor = Predictor(loaded.model)
    side = loaded.model.image_size
    plan = plan_views(prompts.objects, place.size, mpp, side, args.target_mpp)
    if plan.coarser:
        warn(
            f"{place.name}: {plan.coarser} of {len(prompts.objects)} objects are too large for --target_mpp="
            f"{args.target_mpp:g}, at which the network sees {side * args.target_mpp:.0f} um; they are seen coarser"
        )
    log.info("%s: %s", place.name, resolutions_in_words(plan.views, side))
    with files.locked(folder.path):
        folder.check(replace=args.overwrite)
        recompute = args.overwrite and not journal.is_cleared(folder.path)
        folder.begin(recompute=recompute)
        if recompute:
            journal.add(folder.path)
        try:
            with out_of_memory_errors(f"{place.name}: a view", lambda: "a smaller --image_size"):
                found, resumed = answer_views(
                    predictor, pool, prompts, plan.views, folder, place, args.min_area_um2, interruption, warn
                )
            about = write_results(found, prompts, scheme, place, pool, folder.path, args.min_area_um2, warn)
        except UserError as error:
            if not isinstance(error, StorageError):
                journal.delete()
            raise
        summary = {
            "slide": {
                "path": str(real_path(entry.slide)),
                "name": entry.slide.name,
                "width": info.width,
                "height": info.height,
                "mpp": list(mpp),
                "mpp_from": "slide" if entry.mpp is None else "--mpp",
                "bounds": None if info.bounds is None else list(info.bounds),
            },
            "model": {"name": loaded.name, "file": loaded.file, "sha256": loaded.sha256, "image_size": side},
            "label_scheme": scheme.to_json(),
            "views": len(plan.views),
            **about,
            "notes": notes,
            "resumed": resumed,
            "seconds": round(time.perf_counter() - started, 2),
            "versions": versions(),
            "device": device(),
        }
        folder.finish(summary)
        journal.delete()
    print(f"{_line_of(summary)}; {summary['seconds']:.1f} s\n  results: {folder.path}", flush=True)


def load_sam(path: Path, image_size: int | None) -> LoadedSam:
    """Returns the network in a file, and logs what it is; raises DataError or ConfigError if it is none."""
    loaded = load(path, image_size=image_size or 0)
    network = loaded.name or "a network of the form of SAM"
    log.info("%s: %s, input of %d pixels", printable(path.name), network, loaded.model.image_size)
    if loaded.unused:
        first = ", ".join(printable(name) for name in loaded.unused[:3])
        more = ", ..." if len(loaded.unused) > 3 else ""
        log.info("%s: %d entries are not used (%s%s)", printable(path.name), len(loaded.unused), first, more)
    return loaded


def _identity(args: SimpleNamespace, entry: Entry, scheme: LabelScheme) -> dict[str, Any]:
    slide = slide_file(entry.slide)
    return {
        "slide": slide.name,
        "files": fingerprints(slide, prompts=str(args.prompts)),
        "mpp": entry.mpp,
        "model": {"sha256": sha256_of_file(args.model), "image_size": args.image_size},
        "label_scheme": scheme.identity(),
        "settings": {"target_mpp": args.target_mpp, "min_area_um2": args.min_area_um2},
    }


def _line_of(summary: dict[str, Any]) -> str:
    classes = ", ".join(f"{each['name']} {each['objects']}" for each in summary["classes"] if each["objects"])
    return f"{summary['slide']['name']}: {summary['regions']} regions ({classes or 'none'})"
