"""What the viewer answers: pages, tiles and the files of the package, to GET and HEAD alone.

No part of a URL ever becomes a path: results and static files are looked up by their whole name among those found, the
slide is the one that the result's summary tells of, and numbers of tiles are checked against the geometry before a file is
touched.
"""

import contextlib
import hashlib
import importlib.resources
import os
import re
from collections.abc import Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

import bcss_jax
from bcss_jax.errors import DataError, printable
from bcss_jax.viewer import page, results, thumbnail
from bcss_jax.viewer.label_file import LabelFile
from bcss_jax.viewer.label_tiles import LabelTiles
from bcss_jax.viewer.open_files import OpenFiles
from bcss_jax.viewer.results import Result
from bcss_jax.viewer.slide_files import SlideFiles
from bcss_jax.viewer.slide_tiles import SlideTiles

NUMBER = re.compile(r"[0-9]{1,8}")
TILE_NAME = re.compile(r"([0-9]{1,8})_([0-9]{1,8})\.(jpg|labels)")
OPEN_SLIDES, OPEN_LABELS = 3, 12  # a slide holds processes, labels a file
STATIC = {
    "viewer.css": "text/css",
    "viewer.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "openseadragon/openseadragon.min.js": "text/javascript",
}
OPENSEADRAGON_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"  # a rule that it adds to the page
POLICY = (
    f"default-src 'self'; style-src 'self' {OPENSEADRAGON_STYLE}; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def application(folder: Path, open_pool, slide_files: SlideFiles, allowed_hosts: Sequence[str] = ("*",)) -> Starlette:
    """The viewer of a folder.

    Args:
      folder: with results, as in `results.find`.
      open_pool: (path, processes) -> a `bcss_jax.slides.reading.reader_pool.ReaderPool`.
      slide_files: where the slides are.
      allowed_hosts: names that requests may call the server by.
    """
    viewer = _Viewer(folder.resolve(), open_pool, slide_files)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        viewer.close()

    app = Starlette(
        routes=[
            Route("/", viewer.start),
            Route("/static/{name:path}", viewer.static),
            Route("/result/{key:path}/thumbnail.jpg", viewer.thumbnail),
            Route("/result/{key:path}/slide/{level}/{name}", viewer.slide_tile),
            Route("/result/{key:path}/labels/{level}/{name}", viewer.label_tile),
            Route("/result/{key:path}", viewer.page),
        ],
        middleware=[
            Middleware(_Headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False),
        ],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class _Headers:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        async def with_headers(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)


class _Viewer:
    """The routes. Starlette runs them in threads, several at a time."""

    def __init__(self, folder, open_pool, slide_files):
        self._folder, self._open_pool, self._slide_files = folder, open_pool, slide_files
        self._results = results.find(folder)
        self._slides, self._labels = OpenFiles(OPEN_SLIDES), OpenFiles(OPEN_LABELS)
        files = importlib.resources.files("bcss_jax.viewer") / "static"
        self._static = {name: (files / name).read_bytes() for name in STATIC}

    def close(self):
        self._slides.close()
        self._labels.close()

    def start(self, request: Request) -> Response:
        try:
            self._results = results.find(self._folder)  # there may be more by now
        except DataError:  # or not even the folder
            self._results = {}
        if len(self._results) == 1:
            return RedirectResponse(page.url(next(iter(self._results.values()))), headers={"cache-control": "no-store"})
        return _html(page.list_of(list(self._results.values())))

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            raise HTTPException(404)
        content = self._static[name]
        return _answer(request, (name, hashlib.blake2b(content).hexdigest()), STATIC[name], lambda: content)

    def page(self, request: Request) -> Response:
        found = self._result(request)
        result = results.result_in(found.folder, self._folder)  # it may be another one by now
        self._results[result.key] = result
        notes, slide, labels, moved_to = [], None, None, None
        if result.summary:
            try:
                labels = self._label_tiles(result)
            except DataError as error:
                notes.append(str(error))
            try:
                path = self._path_now(result)
                slide = self._slide(result, path)
                moved_to = None if path == result.summary.slide_path else printable(path)
            except DataError as error:
                notes.append(f"{error}; the result is shown over white" if labels else str(error))
        else:
            notes.append(result.problem)
        others = [each for each in self._results.values() if result.summary and _same_slide(each, result)]
        alone = len(self._results) == 1
        return _html(page.slide(result, others, slide, labels, notes, moved_to, alone))

    def thumbnail(self, request: Request) -> Response:
        result = self._usable(request)
        files = [self._inside(result, name) for name in (result.summary.overlay, result.summary.labels) if name]

        def make():
            try:
                return thumbnail.jpeg(result, files[0] if result.summary.overlay else None, self._label_tiles)
            except DataError as error:
                raise HTTPException(404) from error

        return _answer(request, (request.url.path, *map(_stamp, files)), "image/jpeg", make)

    def slide_tile(self, request: Request) -> Response:
        result = self._usable(request)
        try:
            path = self._slide_files.path_of(result.summary)
            slide = self._slide(result, path)
        except DataError as error:
            raise HTTPException(404, str(error)) from error
        tile = _tile(request, slide.geometry, "jpg")

        def make():
            try:
                return slide.jpeg(tile)
            except DataError as error:  # this place cannot be read
                raise HTTPException(503, str(error)) from error
            except Exception as error:  # the readers hang, or were closed for another slide
                self._slides.drop(_stamp(path))
                raise HTTPException(503, "the slide cannot be read now") from error

        return _answer(request, (request.url.path, _stamp(path)), "image/jpeg", make)

    def label_tile(self, request: Request) -> Response:
        result = self._usable(request)
        try:
            labels = self._label_tiles(result)
        except DataError as error:
            raise HTTPException(404, str(error)) from error
        tile = _tile(request, labels.geometry, "labels")

        def make():
            try:
                return labels.gzipped(tile)
            except DataError as error:
                raise HTTPException(503, str(error)) from error

        stamp = _stamp(self._inside(result, result.summary.labels))
        return _answer(request, (request.url.path, stamp), "application/octet-stream", make, "gzip")

    def _result(self, request) -> Result:
        result = self._results.get(request.path_params["key"])
        if result is None:
            raise HTTPException(404)
        return result

    def _usable(self, request) -> Result:
        result = self._result(request)
        if result.summary is None:
            raise HTTPException(404)
        return result

    def _path_now(self, result) -> Path:
        """Where the slide is; if need be after a fresh look for it, which no tile is worth."""
        try:
            return self._slide_files.path_of(result.summary)
        except DataError:
            self._slide_files.look_again()
            return self._slide_files.path_of(result.summary)

    def _slide(self, result, path) -> SlideTiles:
        return self._slides.get(_stamp(path), lambda: SlideTiles(path, result.summary, self._open_pool))

    def _label_tiles(self, result) -> LabelTiles:
        summary, path = result.summary, self._inside(result, result.summary.labels)
        if path is None:
            raise DataError(
                f"{result.folder / summary.labels}: expected the labels of the slide; segment the slide again"
            )
        return self._labels.get(
            _stamp(path),
            lambda: LabelTiles(LabelFile(path, summary.grid), summary.width, summary.height, summary.grid),
        )

    def _inside(self, result, name) -> Path | None:
        """A file of the result; None if it is missing, or lies outside the folder that is served."""
        path = result.folder / name
        return path if results.inside(path, self._folder) else None


def _same_slide(one, other):
    return one.summary is not None and one.summary.slide_path == other.summary.slide_path


def _stamp(path: Path | None):
    """Changes when the file does."""
    try:
        found = os.stat(path) if path else None
    except OSError:
        found = None
    return (str(path), found.st_mtime_ns, found.st_size, found.st_ino) if found else (str(path),)


def _tile(request, geometry, kind):
    level, name = request.path_params["level"], TILE_NAME.fullmatch(request.path_params["name"])
    if not NUMBER.fullmatch(level) or not name or name[3] != kind:
        raise HTTPException(404)
    tile = geometry.tile(int(level), int(name[1]), int(name[2]))
    if tile is None:
        raise HTTPException(404)
    return tile


def _html(text: str) -> Response:
    return Response(text, media_type="text/html", headers={"cache-control": "no-store"})


def _answer(request: Request, identity: tuple, media_type: str, make, encoding: str | None = None) -> Response:
    """What `make` gives, unless the browser has it: the same identity means the same bytes."""
    digest = hashlib.blake2b(repr((bcss_jax.__version__, identity)).encode("utf-8", "backslashreplace"), digest_size=12)
    headers = {"etag": f'"{digest.hexdigest()}"', "cache-control": "private, no-cache"}
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if headers["etag"] in known:
        return Response(status_code=304, headers=headers)
    return Response(
        make(), media_type=media_type, headers=headers | ({"content-encoding": encoding} if encoding else {})
    )
