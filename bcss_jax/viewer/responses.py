"""What the pages of slides are answered with: tiles and files that browsers keep, and headers that restrict pages."""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import bcss_jax
from bcss_jax.viewer.deep_zoom import DeepZoom, Tile

NUMBER = re.compile(r"[0-9]{1,8}")
TILE_NAME = re.compile(r"([0-9]{1,8})_([0-9]{1,8})\.(jpg|labels)")
OPENSEADRAGON_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"  # of a style rule that OpenSeadragon adds
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


class SecurityHeaders:
    """Adds `HEADERS` to every response."""

    def __init__(self, app):
        """Takes the ASGI application whose responses get them."""
        self._app = app

    async def __call__(self, scope, receive, send):
        """Handles a request."""

        async def with_headers(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)


def page_application(routes: Sequence[Route], allowed_hosts: Sequence[str], close: Callable[[], None]) -> Starlette:
    """Returns the application of pages that show slides, for requests that use one of the host names of the server.

    Args:
      routes: of the application.
      allowed_hosts: host names that requests may use for the server.
      close: called when the server ends.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        close()

    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(SecurityHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False),
        ],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def file_stamp(path: Path | None):
    """Returns a value that changes when the file does."""
    try:
        found = os.stat(path) if path else None
    except OSError:
        found = None
    return (str(path), found.st_mtime_ns, found.st_size, found.st_ino) if found else (str(path),)


def requested_tile(request: Request, geometry: DeepZoom, kind: str) -> Tile:
    """Returns the tile that a URL names, whose file has the ending `kind`; raises a 404 if there is none."""
    level, name = request.path_params["level"], TILE_NAME.fullmatch(request.path_params["name"])
    if not NUMBER.fullmatch(level) or not name or name[3] != kind:
        raise HTTPException(404)
    tile = geometry.tile(int(level), int(name[1]), int(name[2]))
    if tile is None:
        raise HTTPException(404)
    return tile


def html_response(text: str) -> Response:
    """Responds with a page, which browsers do not keep."""
    return Response(text, media_type="text/html", headers={"cache-control": "no-store"})


def cached_response(request: Request, identity: tuple, media_type: str, make, encoding: str | None = None) -> Response:
    """Responds with what `make` returns, unless the browser has it already.

    Args:
      request: of the browser.
      identity: determines the bytes.
      media_type: of the content.
      make: returns the content.
      encoding: of the content, for example "gzip".
    """
    digest = hashlib.blake2b(repr((bcss_jax.__version__, identity)).encode("utf-8", "backslashreplace"), digest_size=12)
    headers = {"etag": f'"{digest.hexdigest()}"', "cache-control": "private, no-cache"}
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if headers["etag"] in known:
        return Response(status_code=304, headers=headers)
    return Response(
        make(), media_type=media_type, headers=headers | ({"content-encoding": encoding} if encoding else {})
    )
