"""The shapes of what the page sends, and the checks of who sends it."""

import hmac
import json
from typing import Annotated, Any, NotRequired

import pydantic
from starlette.exceptions import HTTPException
from starlette.requests import Request
from typing_extensions import TypedDict

from bcss_jax.common.json_files import parse_json

TOKEN_HEADER = "x-annotate-token"
MOST_BYTES = 1 << 20  # of a request
MOST_POINTS = 1000  # of a prompt
MOST_BRUSH_POINTS = 20_000
_FAR = 1e7  # pixels of level 0; no slide is so large

Coordinate = Annotated[float, pydantic.Field(ge=-_FAR, le=_FAR)]
Point = Annotated[list[Coordinate], pydantic.Field(min_length=2, max_length=2)]
Corners = Annotated[list[Coordinate], pydantic.Field(min_length=4, max_length=4)]
Number = Annotated[int, pydantic.Field(ge=-1, le=1 << 53)]
Resolution = Annotated[float, pydantic.Field(gt=1e-4, le=1e6)]
Identity = Annotated[str, pydantic.Field(max_length=64)]
ClassName = Annotated[str, pydantic.Field(max_length=200)]


class Target(TypedDict):
    """An outline as the page has seen it."""

    id: Identity
    revision: Number


class LookRequest(TypedDict):
    """Where the page is: `box` in pixels of level 0, um per pixel of the screen."""

    box: Corners
    um_per_pixel: Resolution


class PromptPoint(TypedDict):
    """A click: in the object, or outside."""

    at: Point
    inside: bool


class PromptRequest(TypedDict):
    """A prompt; `previous` is number and choice of the answer that it corrects."""

    points: Annotated[list[PromptPoint], pydantic.Field(max_length=MOST_POINTS)]
    box: Corners | None
    um_per_pixel: Resolution
    previous: Annotated[list[Number], pydantic.Field(min_length=2, max_length=2)] | None


class EditRequest(TypedDict):
    """What all edits have: the work since the last one, and the revision that the page knows."""

    clicks: Annotated[int, pydantic.Field(ge=0, le=100_000)]
    seconds: Annotated[float, pydantic.Field(ge=0, le=86_400)]
    since: Number


class AddRequest(EditRequest):
    """Accepts an outline of an answer, as a new one or added to another."""

    answer: Number
    choice: Number
    class_name: ClassName
    to: Target | None


class BrushRequest(EditRequest):
    """A stroke of the brush, as a new outline or added to another."""

    points: Annotated[list[Point], pydantic.Field(min_length=1, max_length=MOST_BRUSH_POINTS)]
    radius: Annotated[float, pydantic.Field(gt=0, le=1e6)]
    class_name: ClassName
    to: Target | None


class EraseRequest(EditRequest):
    """A stroke of the eraser over one outline, or over all."""

    points: Annotated[list[Point], pydantic.Field(min_length=1, max_length=MOST_BRUSH_POINTS)]
    radius: Annotated[float, pydantic.Field(gt=0, le=1e6)]
    of: Target | None


class TargetsRequest(EditRequest):
    """Outlines that are deleted, accepted, or get a class."""

    targets: Annotated[list[Target], pydantic.Field(min_length=1, max_length=10_000)]
    class_name: NotRequired[ClassName]


class NextRegionRequest(TypedDict):
    """The rank of the region to annotate that is shown now, -1 for none."""

    after: Number


class HistoryRequest(EditRequest):
    """A transaction that is undone or done again."""

    transaction: Number


def check_sender(request: Request, token: str) -> None:
    """Raises a 403 unless a request comes from a page of this server that was opened with the session's token."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(403, "this request comes from another site")
    given = request.headers.get(TOKEN_HEADER, "")
    if not hmac.compare_digest(given.encode("utf-8", "backslashreplace"), token.encode()):
        raise HTTPException(403, "open the address that the command has printed: it holds the key for changes")


async def json_of(request: Request, kind: Any) -> Any:
    """Returns the content of a request, checked against its shape.

    Raises:
      HTTPException: it is too large (413), of another type (415), or something else (400).
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected JSON")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise HTTPException(413, "the request is too large")
    try:
        return parse_json(bytes(content), kind=kind)
    except ValueError as error:
        raise HTTPException(400, str(error)[:300]) from error


def json_bytes(value: Any) -> bytes:
    """Returns JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
