"""Opens everything that annotating a slide needs: slide, network, annotations, suggestions."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from starlette.applications import Starlette

from bcss_jax.annotator import page, server
from bcss_jax.annotator.actions import Actions
from bcss_jax.annotator.drawing import geojson_file
from bcss_jax.annotator.drawing.geojson_file import Contents, SlideFacts
from bcss_jax.annotator.drawing.outline import Outline
from bcss_jax.annotator.drawing.palette import Palette
from bcss_jax.annotator.drawing.saved_file import SavedFile
from bcss_jax.annotator.drawing.session import Session
from bcss_jax.annotator.drawing.suggestions import SuggestionsFile, read_suggestions, suggestions_file
from bcss_jax.annotator.next_region.disagreement import read_disagreement
from bcss_jax.annotator.next_region.next_regions import NextRegions
from bcss_jax.annotator.next_region.ranking import LEAST
from bcss_jax.annotator.proposals.engine import Engine
from bcss_jax.annotator.proposals.segmenter import Segmenter
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.data.resolution.check import resolved_mpp
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.labels import find_scheme
from bcss_jax.slides.batch.slide_folder import fingerprints, is_of_several_models, model_folders
from bcss_jax.slides.batch.slide_overview import origin_of
from bcss_jax.slides.reading.dicom.series import slide_file
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.viewer.slide_tiles import OpenSlideTiles

READERS = 3  # processes; two serve tiles while one reads a view
_DRAWN = (".geojson", ".json", ".xml")
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class AnnotateSettings:
    """What the user asks for; see the options of `commands.annotate`."""

    slide: Path
    model: Path
    labels: str
    start_from: Path | None = None
    output: Path | None = None
    mpp: float | None = None
    next_region: bool = False


@dataclasses.dataclass(frozen=True)
class OpenedSlide:
    """A slide that is ready to be annotated.

    Attributes:
      path: of the file that is saved.
      session: the annotations.
      engine: the prompts.
      tiles: of the slide.
      view: what the page needs.
      regions: which to annotate next, if that was asked for.
    """

    path: Path
    session: Session
    engine: Engine
    tiles: OpenSlideTiles
    view: dict
    regions: NextRegions | None

    def application(self, token: str, allowed_hosts: Sequence[str] = ("*",)) -> Starlette:
        """Returns the ASGI application; see `server.application`."""
        actions = Actions(self.session, self.engine, self.regions)
        return server.application(self.session, actions, self.tiles, self.view, token, allowed_hosts)


@contextlib.contextmanager
def open_annotator(
    settings: AnnotateSettings, load: Callable[[], tuple[Segmenter, str]], say: Say
) -> Iterator[OpenedSlide]:
    """Opens a slide to annotate it; at the end, saves what is not saved yet.

    Args:
      settings: of the user.
      load: returns the network and its name; called when all else is known to be usable.
      say: called with each line for the user.

    Raises:
      ConfigError: settings cannot work.
      DataError: the slide, the weights or the annotations cannot be used.
      StorageError: the file of annotations cannot be written, or the last annotations are not saved.
    """
    palette, path = Palette(find_scheme(settings.labels, "--labels")), _output(settings)
    _check_start(settings)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ReaderPool(slide_file(settings.slide), READERS))
        info = pool.info
        mpp = resolved_mpp(settings.slide, info.stated_mpp, settings.mpp, say)
        slide = SlideFacts(settings.slide.name, (info.width, info.height), mpp, origin_of(info.bounds))
        fingerprint = fingerprints(slide_file(settings.slide))["slide"]
        digest = _digest(settings.slide, fingerprint)
        file = SavedFile(path)
        unless_begun = stack.enter_context(contextlib.ExitStack())
        unless_begun.callback(file.close)
        start, regions = _next_regions(settings, slide, fingerprint, say)
        beginning = _beginning(start, file, slide, fingerprint, say)
        segmenter, name = load()
        session = Session(file, beginning.contents, palette, slide, say)
        unless_begun.pop_all()
        stack.callback(session.close)
        _begin(session, file, beginning, say)
        if regions is not None:
            say(_described(regions, session))
        engine = Engine(pool, slide, segmenter, _cache(), digest)
        stack.callback(engine.close)
        tiles = OpenSlideTiles(pool, info.width, info.height, mpp[0])
        view = page.view_of(
            slide, info.bounds, tiles.geometry, palette, file=str(path), model=name, digest=digest, regions=regions
        )
        yield OpenedSlide(path, session, engine, tiles, view, regions)


def _next_regions(
    settings: AnnotateSettings, slide: SlideFacts, fingerprint: dict, say: Say
) -> tuple[Path | None, NextRegions | None]:
    """Returns what suggestions or annotations to start from, and the regions to annotate next if they are wanted."""
    start = settings.start_from
    if not settings.next_region:
        return start, None
    regions = NextRegions(read_disagreement(start, slide, fingerprint, say), slide.size)
    if start is not None and is_of_several_models(start):
        say(
            f"{printable(start)}: no regions are suggested, because it holds those of several models; name the folder "
            f"of one to correct it, as in --start-from={printable(model_folders(start)[0])}"
        )
        start = None
    return start, regions


def _described(regions: NextRegions, session: Session) -> str:
    """Returns a line about the regions to annotate."""
    first, left = regions.after(-1, session.annotated())
    if not len(regions):
        return f"--next: {regions.members} agree: in no region do they dispute {LEAST:.0%} of the area"
    if first is None:
        return f"--next: all {len(regions)} regions where {regions.members} disagree are annotated"
    x, y = (round((first.box[axis] + first.box[axis + 2]) / 2) for axis in (0, 1))
    return (
        f"--next: {left} of {len(regions)} regions where {regions.members} disagree are left to annotate; the page "
        f"shows number {first.rank + 1}, around the level-0 pixel ({x}, {y}), with {first.share:.0%} of its area in "
        "dispute"
    )


class _Beginning(NamedTuple):
    """Annotations to begin with; `replaces`: of a foreign file, which is replaced; suggestions and their file."""

    contents: Contents
    replaces: bool
    suggestions: list[Outline]
    file: SuggestionsFile | None


def _beginning(start: Path | None, file: SavedFile, slide: SlideFacts, fingerprint: dict, say: Say) -> _Beginning:
    """Reads what is there, and writes nothing."""
    suggestions = None if start is None else suggestions_file(start)
    contents, replaces = _contents(file, start if suggestions is None else None, slide, say)
    found = [] if suggestions is None else read_suggestions(suggestions, start, slide, fingerprint, say)
    return _Beginning(contents, replaces, found, suggestions)


def _begin(session: Session, file: SavedFile, beginning: _Beginning, say: Say) -> None:
    """Says what is begun with, renames a foreign file that is gone on from, and offers suggestions."""
    path, outlines = printable(file.path), beginning.contents.outlines
    if beginning.replaces:
        kept = file.set_aside()
        session.edit(lambda document: {})  # writes the file under its name at once
        say(
            f"{path}: goes on with its {len(outlines)} annotations; the file as it was is kept as "
            f"{printable(kept.name)}"
        )
    elif outlines and file.exists:
        say(f"{path}: goes on with {len(outlines)} annotations")
    unknown = sorted({each.name for each in outlines if each.name and session.palette.of(each.name) is None})
    if unknown:
        more = " and others" if len(unknown) > 3 else ""
        say(
            f"warning: the label scheme does not know {', '.join(map(ascii, unknown[:3]))}{more}; these annotations "
            "stay as they are"
        )
    if beginning.file is not None:
        left = session.suggest(beginning.suggestions, beginning.file.digest)
        say(
            f"{printable(beginning.file.path)}: {left} of {len(beginning.suggestions)} regions are left to accept, "
            "correct or delete"
        )


def _contents(file: SavedFile, start: Path | None, slide: SlideFacts, say: Say) -> tuple[Contents, bool]:
    """Returns the annotations to begin with, and whether they are those of a foreign file that will be replaced."""
    if not file.exists:
        return (Contents([]) if start is None else _begun(start, slide, say)), False
    names_it = start is not None and start.exists() and os.path.samefile(start, file.path)
    contents = geojson_file.read(file.path, slide, say)
    if contents.is_own:
        if start is not None and not names_it:
            raise ConfigError(
                f"--start-from={printable(start)}: {printable(file.path)} holds {len(contents.outlines)} annotations "
                "already; leave --start-from out to go on with them, or give another --output"
            )
        return contents, False
    if not names_it:
        raise ConfigError(
            f"{printable(file.path)}: expected no file, or one that this command wrote, found annotations of another "
            f"program; go on from them with --start-from={printable(file.path)} (a copy is kept), or give another "
            "--output"
        )
    return contents, True


def _begun(start: Path, slide: SlideFacts, say: Say) -> Contents:
    contents = geojson_file.read(start, slide, say)
    say(f"{printable(start)}: begins with its {len(contents.outlines)} annotations")
    return contents


def _output(settings: AnnotateSettings) -> Path:
    slide = settings.slide
    path = settings.output or slide.with_name(f"{slide.stem}.geojson")
    if path.suffix.lower() not in (".geojson", ".json"):
        raise ConfigError(f"--output={printable(path)}: expected a file that ends in .geojson; rename it")
    refuse_inputs("--output", path, [("the slide", slide), ("the model", settings.model)])
    return path


def _check_start(settings: AnnotateSettings) -> None:
    start = settings.start_from
    if start is not None and not start.exists():
        raise DataError(
            f"--start-from={printable(start)}: expected the results of bcss_jax.segment or a file of annotations, "
            "found nothing there; check the path"
        )
    if start is not None and start.is_file() and start.suffix.lower() not in _DRAWN:
        raise DataError(
            f"--start-from={printable(start)}: expected GeoJSON, ASAP's XML or a folder with results, found another "
            "file; give one of these"
        )


def _digest(slide: Path, fingerprint: dict) -> str:
    """Returns what views and tiles of a slide are kept under; files of one form may have the same ends."""
    changed = slide_file(slide).stat().st_mtime_ns
    return hashlib.sha256(repr((sorted(fingerprint.items()), changed)).encode()).hexdigest()[:16]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bcss_jax" / "embeddings"
