"""Answers QuPath's extension for SAM, as the server samapi does.

Source of the protocol: github.com/ksugar/samapi (main.py) and github.com/ksugar/qupath-extension-sam (SAMDetectionTask,
SAMAutoMaskTask, SAMFetchWeightsTask). The extension sends what the viewer shows as a PNG with prompts in its pixels,
and gets Features whose coordinates are pixels of this picture. It can choose among networks; here all names stand for
the one network that the server was started with. There are no videos, no downloads and no SAM 3.
"""

import base64
import binascii
import contextlib
import hashlib
import io
import json
import logging
import threading
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pydantic
import shapely
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import bcss_jax
from bcss_jax.errors import UserError, first_line
from bcss_jax.models.sam.weights.loading import LoadedSam
from bcss_jax.prompting import automatic
from bcss_jax.prompting.mask_prompt import mask_prompt
from bcss_jax.prompting.predictor import Predictor
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.prompts.outlines import outlines, smooth_outlines
from bcss_jax.slides.prompts.view import View

MAX_BYTES = 1 << 26  # of a request
MAX_PIXELS = 40_000_000  # of a picture
MOST_POINTS = 1000  # of a prompt
Coordinate = Annotated[float, pydantic.Field(allow_inf_nan=False)]
# Limits of what the extension may ask for, so that no request takes all memory or hours.
Side = Annotated[int, pydantic.Field(ge=1, le=256)]
Batch = Annotated[int, pydantic.Field(ge=1, le=1024)]
Layers = Annotated[int, pydantic.Field(ge=0, le=4)]
_MOST_NAMED = 20  # names of networks that are said
log = logging.getLogger(__name__)


class _Body(pydantic.BaseModel):
    """What the extension sends of every picture."""

    type: str = pydantic.Field("", max_length=100)
    b64img: str
    checkpoint_url: str | None = None


class _Prompt(_Body):
    bbox: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = None
    point_coords: list[tuple[Coordinate, Coordinate]] | None = pydantic.Field(None, max_length=MOST_POINTS)
    point_labels: list[int] | None = pydantic.Field(None, max_length=MOST_POINTS)
    b64mask: str | None = None
    multimask_output: bool = False


class _Everything(_Body):
    points_per_side: Side = 32
    points_per_batch: Batch = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: Layers = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0


def application(loaded: LoadedSam, predictor: Predictor, allowed_hosts: Sequence[str] = ("*",)) -> Starlette:
    """Returns the server.

    Args:
      loaded: the network.
      predictor: with it.
      allowed_hosts: host names that requests may use for the server.
    """
    server = _Server(loaded, predictor)
    routes = [
        Route("/sam/", server.prompt, methods=["POST"]),
        Route("/sam/automask/", server.everything, methods=["POST"]),
        Route("/sam/weights/", server.weights, methods=["GET"]),
        Route("/sam/weights/", server.no_download, methods=["POST"]),
        Route("/sam/weights/cancel/", lambda _: PlainTextResponse("there is no download"), methods=["GET"]),
        Route("/sam/progress/", lambda _: JSONResponse({"message": None, "percent": -1}), methods=["GET"]),
        Route("/sam/version/", lambda _: PlainTextResponse(f"bcss_jax {bcss_jax.__version__}"), methods=["GET"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)],
        exception_handlers={HTTPException: _in_json},
    )
    app.router.redirect_slashes = False
    return app


class _Server:
    """The routes. One picture is looked at a time, and its embedding is kept for the next prompt."""

    def __init__(self, loaded: LoadedSam, predictor: Predictor):
        self._loaded, self._predictor = loaded, predictor
        self._url, self._lock = f"file:{loaded.file}", threading.Lock()
        self._image: bytes | None = None  # digest of the picture that the predictor has
        self._size = (0, 0)
        self._named: set[str] = set()

    def weights(self, request: Request) -> Response:
        kind = request.query_params.get("type", self._loaded.name or "sam")
        return JSONResponse([{"type": kind, "name": self._loaded.file, "url": self._url}])

    def no_download(self, request: Request) -> Response:
        raise HTTPException(501, "this server has the weights that it was started with; start it with other ones")

    async def prompt(self, request: Request) -> Response:
        body = await _body(request, _Prompt)
        return JSONResponse(await run_in_threadpool(self._answering, self._prompt, body))

    async def everything(self, request: Request) -> Response:
        body = await _body(request, _Everything)
        return JSONResponse(await run_in_threadpool(self._answering, self._everything, body))

    def _answering(self, endpoint, body: Any) -> list[dict[str, Any]]:
        if body.checkpoint_url not in (None, "", self._url):
            raise HTTPException(422, f"this server has no other weights than {self._loaded.file}; choose these")
        if body.type and body.type not in self._named and len(self._named) < _MOST_NAMED:
            self._named.add(body.type)
            log.info("asked for %s; %s answers", ascii(body.type)[1:-1][:40], self._loaded.file)
        with self._lock, _refusals():
            return endpoint(body)

    def _prompt(self, body: _Prompt) -> list[dict[str, Any]]:
        if not (body.point_coords or body.bbox or body.b64mask):
            raise HTTPException(422, "expected points, a box or a mask, found no prompt")
        self._look_at(body.b64img)
        mask = None
        if body.b64mask:
            given = _picture(body.b64mask, "L")
            if given.shape != self._size:
                raise HTTPException(422, f"expected a mask of the picture's size {self._size}, found {given.shape}")
            mask = mask_prompt(self._predictor.model, given > 0)
        prediction = self._predictor.predict(
            points=body.point_coords or None,
            labels=body.point_labels if body.point_coords else None,
            box=body.bbox,
            mask=mask,
            multimask=body.multimask_output,
            logits=True,
        )
        view = _view_of(*self._size)
        found = zip((smooth_outlines(each, view) for each in prediction.masks), prediction.scores, strict=True)
        return _features(((parts, float(score)) for parts, score in found), body.type)

    def _everything(self, body: _Everything) -> list[dict[str, Any]]:
        image = _picture(body.b64img, "RGB")
        settings = automatic.Settings(
            points_per_side=body.points_per_side,
            points_per_batch=body.points_per_batch,
            score_threshold=body.pred_iou_thresh,
            stability_threshold=body.stability_score_thresh,
            stability_offset=body.stability_score_offset,
            box_threshold=body.box_nms_thresh,
            crop_layers=body.crop_n_layers,
            crop_threshold=body.crop_nms_thresh,
            crop_overlap=body.crop_overlap_ratio,
            crop_points_factor=body.crop_n_points_downscale_factor,
            smallest_region=body.min_mask_region_area,
        )
        self._image = None  # the predictor gets the crops of this picture
        masks = automatic.automatic_masks(self._predictor, image, settings)
        view = _view_of(*image.shape[:2])
        return _features(((outlines(each.mask.mask(), view), float(each.score)) for each in masks), body.type)

    def _look_at(self, text: str) -> None:
        digest = hashlib.sha256(text.encode()).digest()
        if digest != self._image:
            image = _picture(text, "RGB")
            self._image = None
            self._predictor.set_image(image)
            self._image, self._size = digest, image.shape[:2]


def _features(found, kind: str) -> list[dict[str, Any]]:
    """Returns outlines with their scores as Features; a mask without pixels is left out."""
    features = []
    for parts, score in found:
        if parts:
            area = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
            properties = {"object_idx": len(features), "label": "object", "quality": score, "sam_model": kind}
            geometry = json.loads(shapely.to_geojson(shapely.orient_polygons(area)))
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return features


def _view_of(height: int, width: int) -> View:
    """Returns the view of a picture whose pixels are those of level 0."""
    return View(Grid(width, height, 1.0, (1.0, 1.0)), 0, 0, width, height)


async def _body(request: Request, kind: type[Any]) -> Any:
    """Returns the JSON of a request. Pages of other sites cannot send this type of content without asking first."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected application/json")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f"expected at most {MAX_BYTES >> 20} MiB; zoom in, or make the window smaller")
    try:
        return kind.model_validate_json(bytes(content))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise HTTPException(422, f"{where}: {first['msg']}") from error


def _picture(text: str, mode: str) -> np.ndarray:
    """Returns a PNG or JPEG in base64 as uint8 [H, W, 3], or [H, W] for the mode "L"."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise HTTPException(413, f"expected a picture of at most {MAX_PIXELS} pixels; make the window smaller")
            if "A" in image.getbands() and mode == "RGB":
                white = Image.new("RGBA", image.size, "white")
                return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
            return np.asarray(image.convert(mode))
    except HTTPException:
        raise
    except (binascii.Error, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise HTTPException(422, f"expected a PNG or JPEG in base64, found: {first_line(error)}") from error


@contextlib.contextmanager
def _refusals():
    """Answers with 422 and the reason where prompts cannot be used."""
    try:
        yield
    except UserError as error:
        raise HTTPException(422, str(error)) from error


def _in_json(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    log.warning("%s: %s", request.url.path[:80], error.detail)
    return JSONResponse({"detail": error.detail}, error.status_code)
