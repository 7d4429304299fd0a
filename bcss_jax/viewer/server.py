"""The viewer's server: pages, tiles and static files, for GET and HEAD requests.

No part of a URL becomes a path. Results and static files are looked up by their full name among those that were found,
the slide is the one that the summary of the result names, and tile numbers are checked against the geometry before any
file is opened.
"""

import contextlib
import hashlib
import importlib.resources
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from bcss_jax.common.regular_file import real_path
from bcss_jax.errors import DataError, first_line, printable
from bcss_jax.slides.slide_summary import SlideSummary
from bcss_jax.viewer import page, results, thumbnail
from bcss_jax.viewer.label_file import LabelFile
from bcss_jax.viewer.label_tiles import LabelTiles
from bcss_jax.viewer.open_files import OpenFiles
from bcss_jax.viewer.responses import cached_response, file_stamp, html_response, page_application, requested_tile
from bcss_jax.viewer.results import Result
from bcss_jax.viewer.slide_files import SlideFiles
from bcss_jax.viewer.slide_tiles import SlideTiles

log = logging.getLogger(__name__)
MAX_OPEN_SLIDES, MAX_OPEN_LABELS = 3, 12  # an open slide has processes, open labels a file
STATIC = {
    "viewer.css": "text/css",
    "viewer.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "openseadragon/openseadragon.min.js": "text/javascript",
}


def application(folder: Path, open_pool, slide_files: SlideFiles, allowed_hosts: Sequence[str] = ("*",)) -> Starlette:
    """Returns the viewer of a folder.

    Args:
      folder: with results, as in `results.find`.
      open_pool: (path, processes) -> a `bcss_jax.slides.reading.reader_pool.ReaderPool`.
      slide_files: finds the slides.
      allowed_hosts: host names that requests may use for the server.
    """
    viewer = _Viewer(real_path(folder), open_pool, slide_files)

    routes = {
        "/": viewer.start,
        "/static/{name:path}": viewer.static,
        "/result/{key:path}/thumbnail.jpg": viewer.thumbnail,
        "/result/{key:path}/slide/{level}/{name}": viewer.slide_tile,
        "/result/{key:path}/labels/{level}/{name}": viewer.label_tile,
        "/result/{key:path}": viewer.page,
    }
    answering = [Route(path, _answering(endpoint)) for path, endpoint in routes.items()]
    return page_application(answering, allowed_hosts, viewer.close)


def _answering(endpoint: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """Returns an endpoint that answers with 404 and a reason where the other one fails: results may hold anything."""

    def answer(request: Request) -> Response:
        try:
            return endpoint(request)
        except HTTPException:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            log.warning("%s: cannot be shown (%s)", printable(request.url.path), reason)
            raise HTTPException(404, f"this result cannot be shown ({reason})") from error

    return answer


class _Viewer:
    """The routes. Starlette runs them in threads, several at the same time."""

    def __init__(self, folder, open_pool, slide_files):
        self._folder, self._open_pool, self._slide_files = folder, open_pool, slide_files
        self._results = results.find(folder)
        self._slides: OpenFiles[SlideTiles] = OpenFiles(MAX_OPEN_SLIDES)
        self._labels: OpenFiles[LabelTiles] = OpenFiles(MAX_OPEN_LABELS)
        files = importlib.resources.files("bcss_jax.viewer") / "static"
        self._static = {name: (files / name).read_bytes() for name in STATIC}

    def close(self):
        self._slides.close()
        self._labels.close()

    def start(self, request: Request) -> Response:
        try:
            self._results = results.find(self._folder)  # results may have been added
        except DataError:  # the folder is gone
            self._results = {}
        if len(self._results) == 1:
            return RedirectResponse(page.url(next(iter(self._results.values()))), headers={"cache-control": "no-store"})
        return html_response(page.list_page(list(self._results.values())))

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            raise HTTPException(404)
        content = self._static[name]
        return cached_response(request, (name, hashlib.blake2b(content).hexdigest()), STATIC[name], lambda: content)

    def page(self, request: Request) -> Response:
        found = self._result(request)
        result = results.result_in(found.folder, self._folder)  # it may have changed
        self._results[result.key] = result
        notes, slide, labels, moved_to = [], None, None, None
        if result.summary:
            try:
                labels = self._label_tiles(result, result.summary)
            except DataError as error:
                notes.append(str(error))
            try:
                path = self._current_path(result.summary)
                slide = self._slide_tiles(result.summary, path)
                moved_to = None if str(path) == result.summary.slide.path else printable(path)
            except DataError as error:
                notes.append(f"{error}; the result is shown on white" if labels else str(error))
        else:
            notes.append(result.problem)
        others = [each for each in self._results.values() if result.summary and _same_slide(each, result)]
        alone = len(self._results) == 1
        return html_response(page.slide_page(result, others, slide, labels, notes, moved_to, alone))

    def thumbnail(self, request: Request) -> Response:
        result, summary = self._usable(request)
        overlay, labels = summary.files["overlay"], self._inside(result, summary.labels_file)
        picture = self._inside(result, overlay) if overlay else None

        def make():
            try:
                return thumbnail.jpeg(summary, picture, lambda: self._label_tiles(result, summary))
            except DataError as error:
                raise HTTPException(404) from error

        return cached_response(request, (request.url.path, file_stamp(picture), file_stamp(labels)), "image/jpeg", make)

    def slide_tile(self, request: Request) -> Response:
        _, summary = self._usable(request)
        with _not_found():
            path = self._slide_files.path_of(summary)
            slide = self._slide_tiles(summary, path)
        tile = requested_tile(request, slide.geometry, "jpg")

        def make():
            try:
                return slide.jpeg(tile)
            except DataError as error:  # the slide is damaged there
                raise HTTPException(503, str(error)) from error
            except Exception as error:  # the readers hang, or were closed to open another slide
                self._slides.drop(file_stamp(path))
                raise HTTPException(503, "the slide cannot be read now") from error

        return cached_response(request, (request.url.path, file_stamp(path)), "image/jpeg", make)

    def label_tile(self, request: Request) -> Response:
        result, summary = self._usable(request)
        with _not_found():
            labels = self._label_tiles(result, summary)
        tile = requested_tile(request, labels.geometry, "labels")

        def make():
            try:
                return labels.gzipped(tile)
            except DataError as error:
                raise HTTPException(503, str(error)) from error

        stamp = file_stamp(self._inside(result, summary.labels_file))
        return cached_response(request, (request.url.path, stamp), "application/octet-stream", make, "gzip")

    def _result(self, request) -> Result:
        result = self._results.get(request.path_params["key"])
        if result is None:
            raise HTTPException(404)
        return result

    def _usable(self, request) -> tuple[Result, SlideSummary]:
        result = self._result(request)
        if result.summary is None:
            raise HTTPException(404)
        return result, result.summary

    def _current_path(self, summary: SlideSummary) -> Path:
        """Where the slide is, after a new search if necessary; the requests for tiles do not search."""
        try:
            return self._slide_files.path_of(summary)
        except DataError:
            self._slide_files.update()
            return self._slide_files.path_of(summary)

    def _slide_tiles(self, summary: SlideSummary, path: Path) -> SlideTiles:
        return self._slides.get(file_stamp(path), lambda: SlideTiles(path, summary, self._open_pool))

    def _label_tiles(self, result: Result, summary: SlideSummary) -> LabelTiles:
        path = self._inside(result, summary.labels_file)
        if path is None:
            raise DataError(
                f"{printable(result.folder / summary.labels_file)}: expected the labels of the slide, found no such "
                "file; segment the slide again"
            )
        slide, grid = summary.slide, summary.grid
        return self._labels.get(
            file_stamp(path), lambda: LabelTiles(LabelFile(path, grid), slide.width, slide.height, grid)
        )

    def _inside(self, result: Result, name: str) -> Path | None:
        """A file of the result; None if it is missing, or lies outside the folder that is served."""
        path = result.folder / name
        return path if results.inside(path, self._folder) else None


def _same_slide(one, other):
    return one.summary is not None and one.summary.slide.path == other.summary.slide.path


@contextlib.contextmanager
def _not_found():
    """Responds with 404 if a slide or its labels cannot be opened."""
    try:
        yield
    except DataError as error:
        raise HTTPException(404, str(error)) from error
