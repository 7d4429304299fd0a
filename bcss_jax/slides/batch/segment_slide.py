"""One slide with one model, from the file to its folder of results."""

import dataclasses
import functools
import logging
import math
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from bcss_jax.common.device_memory import out_of_memory_errors
from bcss_jax.common.files import locked
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.timing import StageClock
from bcss_jax.errors import DataError, Preempted, UserError, printable
from bcss_jax.inference.slide_model import SlideModel, WindowPredictor
from bcss_jax.slides.batch.overwrite_journal import OverwriteJournal
from bcss_jax.slides.batch.slide_folder import FORMAT, Done, SlideFolder, fingerprints, forget_failure, note_failure
from bcss_jax.slides.batch.slide_list import Entry
from bcss_jax.slides.classes import BACKGROUND, UNREADABLE, classes_of
from bcss_jax.slides.grid import Grid, grid_of
from bcss_jax.slides.outputs import results
from bcss_jax.slides.reading.reader_pool import Block, ReaderPool
from bcss_jax.slides.reading.resolution import resolved_mpp
from bcss_jax.slides.scoring import slide_scores
from bcss_jax.slides.scoring.truth import TruthError, check_truth
from bcss_jax.slides.stitching import labeling
from bcss_jax.slides.stitching.blend import blend_weights
from bcss_jax.slides.stitching.seams import seam_score
from bcss_jax.slides.store.probability_store import ProbabilityStore
from bcss_jax.slides.store.tile_store import TileStore
from bcss_jax.slides.tissue.stain_check import out_of_domain
from bcss_jax.slides.tissue.tissue_by_color import looks_like_glass, tissue_by_color
from bcss_jax.slides.tissue.tissue_file import read_tissue
from bcss_jax.slides.tissue.tissue_mask import Tissue
from bcss_jax.slides.windows import windows_of
from bcss_jax.training.summary import device, versions

TISSUE_MPP = 4.0  # um per pixel of the thumbnail that tissue is found on
TISSUE_SIDE = 4096  # its longest side at most, pixels
NEARLY_ALL = 0.95  # share of a slide that is tissue, from which on it may be glass that was not known as such
OVERLAY_SIDE = 2000  # pixels of the longer side of the thumbnail under overlay.png
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How slides are segmented, the same for all of a batch.

    Attributes:
      window: side of the windows, pixels.
      overlap: of neighboring windows, a share of their side.
      blend: one of `blend.BLENDS`.
      tissue: "color" (found by color) or "all" (the whole slide); a file given for a slide goes before.
      probabilities: write them too.
      min_area_um2: smaller regions are left out of regions.geojson.
      truth_codes: code book of masks of truth; it and the region decide about scores alone, not about labels.
      truth_region: x, y, width, height in level-0 pixels to be scored besides the whole, or None.
    """

    window: int
    overlap: float
    blend: str
    tissue: str
    probabilities: bool
    min_area_um2: float
    truth_codes: str
    truth_region: tuple[int, int, int, int] | None


class SlideSegmenter:
    """A model with its settings, compiled once for all slides."""

    def __init__(self, model: SlideModel, settings: Settings, batch_size: int, readers: int, mesh: Mesh):
        """Takes the model, the most windows of a batch, the reader processes of a slide, and the devices."""
        self.model, self._settings, self._readers = model, settings, readers
        layout = windows_of(settings.window, settings.window, settings.window, settings.overlap)
        self._weights = blend_weights(layout, settings.blend)
        self._predictor = WindowPredictor(model, self._weights, batch_size, mesh)
        self.classes = classes_of(model.scheme)

    def folder_of(self, entry: Entry, path: Path) -> SlideFolder:
        """The folder of a slide's results.

        Raises:
          DataError: the slide, or a file that belongs to it, is not there.
        """
        identity = {
            "slide": entry.slide.name,
            "files": fingerprints(entry.slide, tissue=entry.tissue, truth=entry.truth),
            "mpp": entry.mpp,
            "model": self.model.identity,
            "settings": dataclasses.asdict(self._settings),
        }
        return SlideFolder(path, identity)

    def segment(
        self, entry: Entry, path: Path, overwriting: OverwriteJournal | None, interruption: Interruption
    ) -> tuple[dict, Done]:
        """Segments a slide, going on where that was stopped, and scores it if there is a truth.

        Args:
          entry: the slide.
          path: folder of its results.
          overwriting: results make way that were there before it began; None: nothing does.
          interruption: active; tells when to stop.

        Returns:
          Its summary, and what was left to do.

        Raises:
          UserError: with one line for the user; noted in the folder too, but for settings that cannot be.
        """
        with locked(path):
            try:
                folder = self.folder_of(entry, path)
            except DataError as error:
                note_failure(path, error)
                raise
            anew = overwriting is not None and not overwriting.is_cleared(path)
            summary, done = None if anew else folder.finished(), Done.BEFORE
            if summary is None:
                folder.begin(replace=overwriting is not None, anew=anew)
                if anew:
                    overwriting.note(path)
            try:
                if summary is None:
                    with out_of_memory_errors(
                        f"{printable(entry.slide.name)}: a batch of windows", "a smaller --batch_size"
                    ):
                        summary, done = self._segment(entry, folder, interruption), Done.COMPUTED
                    folder.finish(summary)
                if not folder.is_scored(summary):
                    summary = self._score(entry, path, summary, interruption)
                    done = Done.SCORED if done is Done.BEFORE else done
            except Preempted:
                raise
            except UserError as error:
                # What was read of a damaged slide is of no use to a mended one.
                if summary is None and isinstance(error, DataError) and not isinstance(error, TruthError):
                    folder.forget_work()
                note_failure(path, error)
                raise
            forget_failure(path)
            return summary, done

    def _score(self, entry, path, summary, interruption):
        """Scores a finished slide, and keeps its summary with the scores."""
        settings = self._settings
        folder = self.folder_of(entry, path)  # anew: the truth as it is now, perhaps hours after the beginning
        stop = functools.partial(_stop_if_asked, interruption, printable(entry.slide.name))
        truth, codes, region = Path(entry.truth), settings.truth_codes, settings.truth_region
        summary = slide_scores.with_scores(summary, path, truth, self.model.scheme, codes, region, stop)
        folder.keep_scores(summary)
        return summary

    def _segment(self, entry, folder, interruption):
        clock = StageClock()
        settings, model, name = self._settings, self.model, printable(entry.slide.name)
        # The pool ends first: what is still read for the overlay ends with it.
        with ThreadPoolExecutor(1) as beside, ReaderPool(entry.slide, self._readers) as pool:
            info = pool.info
            mpp = resolved_mpp(entry.slide, info.mpp, entry.mpp)
            grid = grid_of(info.width, info.height, mpp, model.mpp)
            if entry.truth is not None:
                check_truth(Path(entry.truth), model.scheme, settings.truth_codes, grid, settings.truth_region)
            longest = max(grid.width, grid.height)
            small = pool.thumbnail(min(TISSUE_SIDE, math.ceil(longest * grid.mpp / TISSUE_MPP)))
            thumbnail = small.pixels
            odd = out_of_domain(thumbnail)
            if odd:
                log.warning(
                    "%s: has %s; the model knows H&E in bright field alone, so mistrust what it says", name, odd
                )
            tissue = self._tissue(entry, small, grid, info.bounds)
            shown = beside.submit(_for_overlay, thumbnail, pool)
            clock.lap("thumbnail_and_tissue")
            windows = windows_of(grid.height, grid.width, settings.window, settings.overlap)
            probabilities = None
            if settings.probabilities:
                path = folder.path / "probabilities.zarr"
                size = dict(width=grid.width, height=grid.height, mpp=grid.mpp)
                probabilities = ProbabilityStore(path, **size, classes=self.classes, name=name)
                if not probabilities.kept:
                    folder.forget_labels()
            store = TileStore(folder.labels, grid.width, grid.height)
            resumed = store.has_row(0)  # rows are written from the first one on
            seconds = labeling.label_slide(
                pool,
                tissue,
                windows,
                self._predictor,
                self._weights,
                store,
                probabilities,
                classes=len(self.classes),
                readers=self._readers,
                interruption=interruption,
                label=name,
            )
            thumbnail = shown.result()
            clock.lap("labelling")
        counts = store.counts()
        known = counts.sum() - counts[BACKGROUND]
        if counts[UNREADABLE] > labeling.MAX_UNREADABLE * known:
            raise labeling.too_unreadable(name)
        stop = functools.partial(_stop_if_asked, interruption, name)
        files = self._write(folder, store, probabilities, grid, info, name, thumbnail, counts, clock, stop)
        stop()
        return {
            "format": FORMAT,
            "slide": {
                "path": str(entry.slide.resolve()),
                "name": entry.slide.name,
                "format": info.format,
                "width": info.width,
                "height": info.height,
                "mpp": list(mpp),
                "mpp_from": "slide" if entry.mpp is None else "--mpp",
                "bounds": info.bounds,
            },
            "model": {**model.about, "mpp": model.mpp, "window": settings.window},
            "grid": dataclasses.asdict(grid),
            "classes": [
                {
                    "value": each.value,
                    "name": each.name,
                    "colour": each.color,
                    "pixels": int(counts[each.value]),
                    "area_mm2": float(counts[each.value] * grid.pixel_mm2),
                }
                for each in self.classes
            ],
            "tissue_area_mm2": float(known * grid.pixel_mm2),
            "unreadable_area_mm2": float(counts[UNREADABLE] * grid.pixel_mm2),
            "tumor_stroma_ratio": _tumor_stroma_ratio(self.classes, counts),
            "windows": {"computed": int(tissue.windows(windows).sum()), "of": windows.rows * windows.columns},
            "seams": seam_score(labeling.seam_counts(store)),
            "files": files,
            "resumed": resumed,  # with labels of before it was stopped, so that seconds are those of the last session alone
            "seconds": {**clock.seconds, **dataclasses.asdict(seconds), "total": clock.total()},
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "versions": versions(),
            "device": device(),
        }

    def _tissue(self, entry: Entry, thumbnail: Block, grid: Grid, bounds: tuple | None) -> Tissue:
        if entry.tissue is not None:
            return read_tissue(Path(entry.tissue), grid, _origin(bounds))
        if self._settings.tissue == "all":
            return Tissue(np.ones((1, 1), bool), grid)
        height, width = thumbnail.pixels.shape[:2]
        mpp = (grid.mpp * grid.width / width, grid.mpp * grid.height / height)
        tissue = Tissue(tissue_by_color(thumbnail.pixels, mpp, thumbnail.unreadable), grid)
        if tissue.share > NEARLY_ALL and looks_like_glass(thumbnail.pixels, tissue.mask):
            log.warning(
                "%s: nearly all of it is taken for tissue, though most has one color, as glass has; look at overlay.png, "
                "and say with --tissue=FILE where tissue is",
                printable(entry.slide.name),
            )
        return tissue

    def _write(self, folder, store, probabilities, grid, info, name, thumbnail, counts, clock, stop):
        """Writes the results, each whole or not at all; returns their names."""
        # At the same time as pyramid and overlay.
        clock.seconds["tracing"] = results.write(
            folder.path,
            store,
            grid,
            self.classes,
            thumbnail,
            name=name,
            title=f"{name}, {self.model.name}",
            origin=_origin(info.bounds),
            min_area_um2=self._settings.min_area_um2,
            areas_mm2={value: float(counts[value] * grid.pixel_mm2) for value in np.flatnonzero(counts).tolist()},
            lap=clock.lap,
            stop=stop,
        )
        return results.FILES | {"probabilities": None if probabilities is None else "probabilities.zarr"}


def _stop_if_asked(interruption, name):
    if interruption.requested:
        raise Preempted(f"{name}: stopped before all its results were written; the same command goes on from there")


def _origin(bounds):
    """Where QuPath counts from: the corner of the scanned area, where the slide has one."""
    return bounds[:2] if bounds else (0, 0)


def _for_overlay(thumbnail, pool):
    """The thumbnail at `OVERLAY_SIDE`, from the one for tissue or, where that is smaller, from the slide."""
    if max(thumbnail.shape) <= OVERLAY_SIDE:
        return thumbnail if max(thumbnail.shape) == OVERLAY_SIDE else pool.thumbnail(OVERLAY_SIDE).pixels
    image = Image.fromarray(thumbnail)
    image.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE), Image.Resampling.BOX)
    return np.asarray(image)


def _tumor_stroma_ratio(classes, counts):
    pixels = {each.name: int(counts[each.value]) for each in classes}
    return pixels["tumor"] / pixels["stroma"] if pixels.get("stroma") and "tumor" in pixels else None
