"""The server of the annotation page.

Reading is open to whoever can reach the server, as in the viewer. Everything that changes or computes something is a
POST request with the session's token, which only the address that the command prints has, in the part that browsers do
not send: the page reads it there. No part of a URL becomes a path.
"""

import hashlib
import importlib.resources
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bcss_jax.annotator import page, requests
from bcss_jax.annotator.actions import Actions, Refused
from bcss_jax.annotator.drawing.document import Conflict
from bcss_jax.annotator.drawing.session import Session
from bcss_jax.errors import DataError, UserError, first_line, one_line
from bcss_jax.viewer.responses import cached_response, html_response, page_application, requested_tile
from bcss_jax.viewer.slide_tiles import OpenSlideTiles

log = logging.getLogger(__name__)
_MODULES = ("main", "server", "slide", "state", "overlay", "prompts", "strokes", "keyboard", "panel", "region")
STATIC = {
    "annotator/annotator.css": "text/css",
    **{f"annotator/{name}.js": "text/javascript" for name in _MODULES},
    "viewer/viewer.css": "text/css",
    "viewer/icon.svg": "image/svg+xml",
    "viewer/openseadragon/openseadragon.min.js": "text/javascript",
}
_SHAPES = {
    "look": requests.LookRequest,
    "next_region": requests.NextRegionRequest,
    "prompt": requests.PromptRequest,
    "add": requests.AddRequest,
    "brush": requests.BrushRequest,
    "erase": requests.EraseRequest,
    "set_class": requests.TargetsRequest,
    "delete": requests.TargetsRequest,
    "accept": requests.TargetsRequest,
    "undo": requests.HistoryRequest,
    "redo": requests.HistoryRequest,
    "take_the_files": requests.EditRequest,
    "keep_mine": requests.EditRequest,
}


def application(
    session: Session,
    actions: Actions,
    tiles: OpenSlideTiles,
    view: dict[str, Any],
    token: str,
    allowed_hosts: Sequence[str] = ("*",),
    close: Callable[[], None] = lambda: None,
) -> Starlette:
    """Returns the application for one slide.

    Args:
      session: the annotations.
      actions: what requests do.
      tiles: of the slide.
      view: what the page needs, see `page.view_of`.
      token: that requests for changes must have.
      allowed_hosts: host names that requests may use for the server.
      close: called when the server ends.
    """
    server = _Annotator(session, actions, tiles, view, token)

    reads = {
        "/": server.start,
        "/static/{name:path}": server.static,
        "/slide/{level}/{name}": server.tile,
        "/state/{since:int}": server.state,
        "/annotations.geojson": server.download,
    }
    routes = [
        *(Route(path, endpoint) for path, endpoint in reads.items()),
        *(Route(f"/{name}", server.posted(name), methods=["POST"]) for name in _SHAPES),
    ]
    return page_application(routes, allowed_hosts, close)


class _Annotator:
    """The routes. Starlette runs them in threads, several at the same time."""

    def __init__(self, session: Session, actions: Actions, tiles: OpenSlideTiles, view: dict[str, Any], token: str):
        self._session, self._actions, self._tiles, self._view, self._token = session, actions, tiles, view, token
        self._static = {name: _static_file(name) for name in STATIC}

    def start(self, request: Request) -> Response:
        return html_response(page.html(self._view))

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            raise HTTPException(404)
        content = self._static[name]
        return cached_response(request, (name, hashlib.blake2b(content).hexdigest()), STATIC[name], lambda: content)

    def tile(self, request: Request) -> Response:
        tile = requested_tile(request, self._tiles.geometry, "jpg")

        def make():
            try:
                return self._tiles.jpeg(tile)
            except Exception as error:  # the slide is damaged there, or the readers hang
                raise HTTPException(503, first_line(error)) from error

        return cached_response(request, (request.url.path, self._view["digest"]), "image/jpeg", make)

    def state(self, request: Request) -> Response:
        return _json(self._actions.state(request.path_params["since"] - 1))

    def download(self, request: Request) -> Response:
        headers = {"content-disposition": 'attachment; filename="annotations.geojson"', "cache-control": "no-store"}
        return Response(self._session.content(), media_type="application/geo+json", headers=headers)

    def posted(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        """Returns the endpoint of an action."""
        action = getattr(self._actions, name)

        async def endpoint(request: Request) -> Response:
            requests.check_sender(request, self._token)
            values = await requests.json_of(request, _SHAPES[name])
            try:
                return _json(await run_in_threadpool(action, values))
            except Conflict as error:
                return _json({"error": str(error)}, 409)
            except (Refused, DataError) as error:
                return _json({"error": one_line(str(error))}, 400)
            except UserError as error:
                return _json({"error": one_line(str(error))}, 500)
            except Exception as error:
                log.warning("%s: %s: %s", name, type(error).__name__, first_line(error))
                return _json({"error": f"{type(error).__name__}: {first_line(error)}"}, 500)

        return endpoint


def _static_file(name: str) -> bytes:
    package, _, path = name.partition("/")
    return (importlib.resources.files(f"bcss_jax.{package}") / "static" / path).read_bytes()


def _json(value: dict, status: int = 200) -> Response:
    return Response(
        requests.json_bytes(value), status, media_type="application/json", headers={"cache-control": "no-store"}
    )
