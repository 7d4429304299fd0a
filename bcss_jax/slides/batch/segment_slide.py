"""Segments one slide with one model, from the file to its folder of results."""

import dataclasses
import functools
import logging
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from bcss_jax.accelerators.remedies import remedy_for_slides
from bcss_jax.common.device_memory import out_of_memory_errors
from bcss_jax.common.files import locked
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.regular_file import real_path
from bcss_jax.common.timing import StageClock
from bcss_jax.data.resolution.check import warn_if_other_size
from bcss_jax.data.resolution.stated import stated_in_file
from bcss_jax.errors import DataError, Preempted, UserError, printable
from bcss_jax.inference.slide_model import SlideModel, WindowPredictor
from bcss_jax.slides.batch.overwrite_journal import OverwriteJournal
from bcss_jax.slides.batch.slide_folder import Done, SlideFolder, delete_failure, fingerprints, write_failure
from bcss_jax.slides.batch.slide_list import Entry
from bcss_jax.slides.batch.slide_overview import find_tissue, origin_of, place_grid, read_thumbnail
from bcss_jax.slides.batch.stain_normalizer import KEEP_STAIN, NormalizedStain, StainNormalizer
from bcss_jax.slides.classes import BACKGROUND, UNREADABLE, classes_of
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.outputs import results
from bcss_jax.slides.reading.dicom.series import slide_file
from bcss_jax.slides.reading.reader_pool import Block, ReaderPool, SlideInfo
from bcss_jax.slides.scoring import slide_scores
from bcss_jax.slides.scoring.truth import TruthError, check_truth
from bcss_jax.slides.slide_summary import ClassArea, SegmentedSlide, SlideSummary
from bcss_jax.slides.stitching import labeling
from bcss_jax.slides.stitching.blend import blend_weights
from bcss_jax.slides.stitching.seams import seam_score
from bcss_jax.slides.stitching.slide_glass import SlideGlass
from bcss_jax.slides.stitching.tile_writer import read_disagreement
from bcss_jax.slides.store import disagreement_map
from bcss_jax.slides.store.probability_store import ProbabilityStore
from bcss_jax.slides.store.tile_store import TileStore
from bcss_jax.slides.tissue.tissue_by_color import glass_of, scanned_area
from bcss_jax.slides.tissue.tissue_mask import Tissue
from bcss_jax.slides.windows import Windows, windows_of
from bcss_jax.training.summary import device, versions

OVERLAY_SIDE = 2000  # pixels of the longer side of the thumbnail under overlay.png
PROBABILITIES = "probabilities.zarr"
GLASS = BACKGROUND_GLASS, KEEP_GLASS = ("background", "keep")
MUCH_GLASS = 0.5  # share of the tissue from which on it is said that it was taken for glass
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SegmentSettings:
    """How slides are segmented; the same for all slides of a batch.

    Attributes:
      window: side of the windows, pixels.
      overlap: of neighboring windows, as a share of their side.
      blend: one of `windows.BLENDS`.
      tissue: "colour" (found by color) or "all" (the whole slide); a file given for a slide takes precedence.
      probabilities: write the probabilities too.
      min_area_um2: smaller regions are left out of regions.geojson.
      glass: one of `GLASS`, what becomes of the glass inside tissue: "background" takes it out, "keep" labels it. None:
        "background" if the scheme has no class for it, unless a folder holds results that keep it.
      stain: one of `stain_normalizer.STAIN`: "normalize" changes the stain of slides into that of the training set.
      truth_codes: code book of ground truth masks; like the region it affects scores alone, not labels.
      truth_region: x, y, width, height in level-0 pixels to score in addition to the whole slide, or None.
    """

    window: int
    overlap: float
    blend: str
    tissue: str
    probabilities: bool
    min_area_um2: float
    truth_codes: str
    truth_region: tuple[int, int, int, int] | None
    glass: str | None = None
    stain: str = KEEP_STAIN


class _Overview(NamedTuple):
    """A slide before its windows are read.

    Attributes:
      info: format, size, resolution and bounds of the slide.
      mpp: um per level-0 pixel along x and y.
      grid: that the slide is segmented on.
      thumbnail: the one that tissue is found on.
      tissue: what to segment.
      stain: changes its stain; None: it stays as it is.
      notes: what a user should know of how the slide was read, a line each.
    """

    info: SlideInfo
    mpp: tuple[float, float]
    grid: Grid
    thumbnail: Block
    tissue: Tissue
    stain: NormalizedStain | None
    notes: tuple[str, ...]


class _Labeled(NamedTuple):
    """A slide with all its labels.

    Attributes:
      windows: of the grid.
      store: the labels.
      probabilities: None if they are not wanted.
      resumed: some labels had been computed before.
      seconds: by stage, of reading, computing and writing the labels.
    """

    windows: Windows
    store: TileStore
    probabilities: ProbabilityStore | None
    resumed: bool
    seconds: dict[str, float]


class SlideSegmenter:
    """A model with its settings, compiled once for all slides.

    Attributes:
      model: the model.
      classes: that it distinguishes.
    """

    def __init__(self, model: SlideModel, settings: SegmentSettings, batch_size: int, readers: int, mesh: Mesh):
        """Prepares the model.

        Args:
          model: the model.
          settings: for all slides.
          batch_size: windows at a time, at most.
          readers: processes that read a slide.
          mesh: devices to compute on.

        Raises:
          ConfigError: the stain is to be changed, and that of the model's training set is not known.
        """
        self.model, self._settings, self._readers = model, settings, readers
        layout = windows_of(settings.window, settings.window, settings.window, settings.overlap)
        self._weights = blend_weights(layout, settings.blend)
        self._predictor = WindowPredictor(model, self._weights, batch_size, mesh)
        self._normalizer = None
        if settings.stain != KEEP_STAIN:
            self._normalizer = StainNormalizer(model, self._weights, batch_size, mesh)
        self._smaller_batch = functools.partial(
            remedy_for_slides, batch_size, model.identity, settings.window, list(mesh.devices.flat)
        )
        self.classes = classes_of(model.scheme)
        self._glass = settings.glass or (BACKGROUND_GLASS if model.scheme.ignores_tissue else KEEP_GLASS)

    def folder_of(self, entry: Entry, path: Path, *, begun: bool = True) -> SlideFolder:
        """Returns the folder of a slide's results.

        Args:
          entry: the slide.
          path: of the folder.
          begun: results that the folder holds, finished or not, keep their rule for glass unless the user names one.
            Those of versions that labeled all tissue stay valid this way, and no slide mixes two rules.

        Raises:
          DataError: the slide, or a file that belongs to it, is missing.
        """
        slide = slide_file(entry.slide)
        identity = {
            "slide": slide.name,
            "files": fingerprints(slide, tissue=entry.tissue, truth=entry.truth),
            "mpp": entry.mpp,
            "model": self.model.identity,
        }
        settings = dataclasses.asdict(self._settings)
        del settings["glass"]
        if self._normalizer is None:
            del settings["stain"]  # as versions that changed no stain wrote it
        else:
            identity["stain_of_training"] = self._normalizer.target.to_json()
        keeping = SlideFolder(path, identity | {"settings": settings})  # as versions that knew no other rule wrote it
        if self._glass == KEEP_GLASS or (begun and self._settings.glass is None and keeping.is_begun()):
            return keeping
        return SlideFolder(path, identity | {"settings": {**settings, "glass": self._glass}})

    def segment(
        self, entry: Entry, path: Path, journal: OverwriteJournal | None, interruption: Interruption
    ) -> tuple[SlideSummary, Done]:
        """Segments a slide and scores it if there is a ground truth; resumes where the slide was stopped.

        Args:
          entry: the slide.
          path: folder of its results.
          journal: of a command that overwrites results, each once; None: no results are overwritten.
          interruption: active; tells when to stop.

        Returns:
          The summary, and what was done.

        Raises:
          UserError: one line for the user; written into the folder too, except for invalid settings.
        """
        with locked(path):
            recompute = journal is not None and not journal.is_cleared(path)
            try:
                folder = self.folder_of(entry, path, begun=not recompute)
            except DataError as error:
                write_failure(path, error)
                raise
            entry = entry._replace(slide=slide_file(entry.slide))  # of a folder, the file that the results name
            if not _takes_out_glass(folder) and self._glass != KEEP_GLASS:
                log.warning(
                    "%s: %s holds results with glass inside tissue labeled as tissue, and so it stays; --overwrite "
                    "computes them without it",
                    printable(entry.slide.name),
                    path,
                )
            summary, done = None if recompute else folder.finished(), Done.BEFORE
            if summary is None:
                folder.begin(replace=journal is not None, recompute=recompute)
                if journal is not None and recompute:
                    journal.add(path)
            try:
                if summary is None:
                    with out_of_memory_errors(
                        f"{printable(entry.slide.name)}: a batch of windows", self._smaller_batch
                    ):
                        summary, done = self._segment(entry, folder, interruption), Done.COMPUTED
                    folder.finish(summary)
                if not folder.is_scored(summary):
                    summary = self._score(entry, path, summary, interruption)
                    done = Done.SCORED if done is Done.BEFORE else done
            except UserError as error:
                # What was read of a damaged slide is of no use once the slide is repaired.
                if summary is None and isinstance(error, DataError) and not isinstance(error, TruthError):
                    folder.delete_work()
                write_failure(path, error)
                raise
            delete_failure(path)
            return summary, done

    def _score(self, entry: Entry, path: Path, summary: SlideSummary, interruption: Interruption) -> SlideSummary:
        """Scores a finished slide and writes the scores into its summary."""
        assert entry.truth is not None
        settings = self._settings
        folder = self.folder_of(
            entry, path
        )  # again, because the ground truth may have changed since the slide was begun
        stop = functools.partial(_stop_if_asked, interruption, printable(entry.slide.name))
        truth, codes, region = Path(entry.truth), settings.truth_codes, settings.truth_region
        summary = slide_scores.with_scores(summary, path, truth, self.model.scheme, codes, region, stop)
        folder.write_scores(summary)
        return summary

    def _segment(self, entry: Entry, folder: SlideFolder, interruption: Interruption) -> SlideSummary:
        """Computes all results of a slide but its scores: overview, label, write, summarize."""
        clock, name = StageClock(), printable(entry.slide.name)
        # The pool ends first, and with it what is still being read for the overlay.
        with ThreadPoolExecutor(1) as background, ReaderPool(entry.slide, self._readers) as pool:
            overview = self._overview(entry, pool)
            picture = background.submit(_overlay_thumbnail, overview.thumbnail.pixels, pool)
            clock.lap("thumbnail_and_tissue")
            labeled = self._label(name, overview, folder, pool, interruption)
            thumbnail = picture.result()
            clock.lap("labelling")
        counts = labeled.store.counts()
        if counts[UNREADABLE] > labeling.MAX_UNREADABLE * (counts.sum() - counts[BACKGROUND]):
            raise labeling.too_unreadable(name)
        stop = functools.partial(_stop_if_asked, interruption, name)
        files = self._write(name, overview, labeled, counts, thumbnail, folder.path, clock, stop)
        stop()
        seconds = {**clock.seconds, **labeled.seconds, "total": clock.total()}
        return self._summarize(entry, overview, labeled, counts, files, seconds, folder.identity)

    def _overview(self, entry: Entry, pool: ReaderPool) -> _Overview:
        """Places the grid on the slide, finds tissue, and checks the ground truth if there is one."""
        settings, info, notes = self._settings, pool.info, []

        def warn(line: str) -> None:
            log.warning("%s", line)
            notes.append(line)

        name = printable(entry.slide.name)
        mpp, grid = place_grid(entry, info, self.model.mpp, warn)
        if entry.truth is not None:
            truth = Path(entry.truth)
            check_truth(truth, self.model.scheme, settings.truth_codes, grid, settings.truth_region)
            warn_if_other_size(truth, stated_in_file(truth), [mpp, (grid.mpp, grid.mpp)], warn)
        thumbnail, problem = read_thumbnail(entry, pool, grid, warn)
        tissue = find_tissue(entry, thumbnail, grid, info.bounds, warn, everywhere=settings.tissue == "all")
        stain = None
        if self._normalizer is not None:
            stain = self._normalizer.of_slide(pool, tissue, _glass_color(thumbnail), problem)
            if stain.left_alone:
                warn(f"{name}: its stain is not changed, because it has {stain.left_alone}")
        return _Overview(info, mpp, grid, thumbnail, tissue, stain, tuple(notes))

    def _label(
        self, name: str, overview: _Overview, folder: SlideFolder, pool: ReaderPool, interruption: Interruption
    ) -> _Labeled:
        """Computes all labels that are not there yet, and the probabilities if they are wanted."""
        settings, grid = self._settings, overview.grid
        windows = windows_of(grid.height, grid.width, settings.window, settings.overlap)
        probabilities = None
        if settings.probabilities:
            probabilities = ProbabilityStore(
                folder.path / PROBABILITIES, grid.width, grid.height, mpp=grid.mpp, classes=self.classes, name=name
            )
            if not probabilities.kept:
                folder.delete_labels()
        store = TileStore(folder.labels, grid.width, grid.height)
        resumed = store.has_row(0)  # rows are written from the first one on
        glass = None
        if _takes_out_glass(folder):
            glass = SlideGlass(pool, overview.tissue, overview.mpp, _glass_color(overview.thumbnail))
        seconds = labeling.label_slide(
            pool,
            overview.tissue,
            windows,
            self._predictor if overview.stain is None else overview.stain.predictor or self._predictor,
            self._weights,
            store,
            probabilities,
            classes=len(self.classes),
            readers=self._readers,
            interruption=interruption,
            label=name,
            glass=glass,
            with_disagreement=self.model.flip_disagreement is not None,
        )
        return _Labeled(windows, store, probabilities, resumed, dataclasses.asdict(seconds))

    def _write(
        self,
        name: str,
        overview: _Overview,
        labeled: _Labeled,
        counts: np.ndarray,
        thumbnail: np.ndarray,
        folder: Path,
        clock: StageClock,
        stop: Callable[[], None],
    ) -> dict[str, str | None]:
        """Writes the result files, each whole or not at all; returns their names."""
        grid = overview.grid
        tracing_seconds = results.write(
            folder,
            labeled.store,
            grid,
            self.classes,
            thumbnail,
            name=name,
            title=f"{name}, {self.model.name}",
            origin=origin_of(overview.info.bounds),
            min_area_um2=self._settings.min_area_um2,
            areas_mm2={value: float(counts[value] * grid.pixel_mm2) for value in np.flatnonzero(counts).tolist()},
            lap=clock.lap,
            stop=stop,
        )
        clock.seconds["tracing"] = tracing_seconds  # at the same time as the pyramid and the overlay
        files = results.FILES | {"probabilities": None if labeled.probabilities is None else PROBABILITIES}
        if self.model.flip_disagreement is None:
            return files
        rows = [read_disagreement(labeled.store, row) for row in range(labeled.store.rows)]
        disagreement_map.write_map(folder / disagreement_map.FILE, rows, grid)
        return files | {"disagreement": disagreement_map.FILE}

    def _summarize(
        self,
        entry: Entry,
        overview: _Overview,
        labeled: _Labeled,
        counts: np.ndarray,
        files: dict[str, str | None],
        seconds: dict[str, float],
        identity: dict[str, Any],
    ) -> SlideSummary:
        """Returns the summary of a slide, without scores; `counts` are pixels by label, int64 [256]."""
        model, info, grid, windows = self.model, overview.info, overview.grid, labeled.windows
        tissue_pixels, glass_mm2 = counts.sum() - counts[BACKGROUND], None
        notes = overview.notes
        if "glass" in identity["settings"]:
            area = overview.tissue.area()
            glass_mm2 = float((area - tissue_pixels) * grid.pixel_mm2)
            if overview.tissue.share < 1 and area - tissue_pixels > MUCH_GLASS * area:
                share = f"{100 * (1 - tissue_pixels / area):.0f} % of the tissue were taken out as glass"
                notes += (f"{printable(entry.slide.name)}: {share}; look at overlay.png, or keep it with --glass=keep",)
                log.warning("%s", notes[-1])
        return SlideSummary(
            slide=SegmentedSlide(
                path=str(real_path(entry.slide)),
                name=entry.slide.name,
                format=info.format,
                width=info.width,
                height=info.height,
                mpp=overview.mpp,
                mpp_from="slide" if entry.mpp is None else "--mpp",
                bounds=info.bounds,
            ),
            model={**model.metadata, "mpp": model.mpp, "window": self._settings.window},
            grid=grid,
            classes=tuple(
                ClassArea(*each, pixels=int(counts[each.value]), area_mm2=float(counts[each.value] * grid.pixel_mm2))
                for each in self.classes
            ),
            tissue_area_mm2=float(tissue_pixels * grid.pixel_mm2),
            unreadable_area_mm2=float(counts[UNREADABLE] * grid.pixel_mm2),
            tumor_stroma_ratio=_tumor_stroma_ratio(self.classes, counts),
            windows={"computed": int(overview.tissue.windows(windows).sum()), "of": windows.rows * windows.columns},
            seams=seam_score(labeling.seam_counts(labeled.store)),
            files=files,
            notes=notes or None,
            glass_area_mm2=glass_mm2,
            stain=None if overview.stain is None else overview.stain.description,
            resumed=labeled.resumed,
            seconds=seconds,
            peak_memory_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            versions=versions(),
            device=device(),
            scores=None,
            scores_of_region=None,
            identity=identity,
        )


def _takes_out_glass(folder: SlideFolder) -> bool:
    """Returns whether the results in a folder have the glass inside tissue as background."""
    return "glass" in folder.identity["settings"]


def _glass_color(thumbnail: Block) -> np.ndarray | None:
    """Returns the color of the slide's glass, float [3], or None if it is unknown."""
    return glass_of(thumbnail.pixels, scanned_area(thumbnail.pixels, thumbnail.unreadable))


def _stop_if_asked(interruption, name):
    if interruption.requested:
        raise Preempted(f"{name}: stopped before all results were written; the same command resumes from there")


def _overlay_thumbnail(thumbnail, pool):
    """Returns the thumbnail at `OVERLAY_SIDE`, from the tissue thumbnail or, if that is smaller, from the slide."""
    if max(thumbnail.shape) <= OVERLAY_SIDE:
        return thumbnail if max(thumbnail.shape) == OVERLAY_SIDE else pool.thumbnail(OVERLAY_SIDE).pixels
    image = Image.fromarray(thumbnail)
    image.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE), Image.Resampling.BOX)
    return np.asarray(image)


def _tumor_stroma_ratio(classes, counts):
    pixels = {each.name: int(counts[each.value]) for each in classes}
    return pixels["tumor"] / pixels["stroma"] if pixels.get("stroma") and "tumor" in pixels else None
