"""A model of a slide from the strokes on it: the features under the strokes, a classifier, and the two together."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bcss_jax.common.digests import sha256_of
from bcss_jax.errors import DataError, NumericalError, Preempted
from bcss_jax.inference.slide_model import SlideModel
from bcss_jax.labels import LabelScheme
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.scribbles.classifier import L2, LinearClassifier, fit_classifier
from bcss_jax.slides.scribbles.pixel_features import PixelFeatures, at_pixels, enlarged
from bcss_jax.slides.scribbles.strokes import CellPixels, Strokes, limited, pixels_in_cells
from bcss_jax.slides.stitching.block_cache import AHEAD, BlockCache
from bcss_jax.slides.windows import BLEND, cut_window, windows_of
from bcss_jax.training import sharding

OVERLAP = 0.5  # of neighboring windows, a share of their side: a pixel is seen with its surroundings
PIXELS = 10_000  # of a class that are fitted, at most; more strokes are sampled
NAME = "scribbles"
log = logging.getLogger(__name__)


def model_of_strokes(
    strokes: Strokes,
    scheme: LabelScheme,
    features: PixelFeatures,
    pool: ReaderPool,
    grid: Grid,
    *,
    given: dict,
    readers: int,
    mesh: Mesh,
    stopped: Callable[[], bool],
) -> SlideModel:
    """Returns a model that was fitted to strokes.

    Args:
      strokes: on the slide.
      scheme: label scheme of the result.
      features: of the pixels.
      pool: reads the slide.
      grid: of the slide, at the resolution of the features.
      given: JSON that determines the strokes, for the identity of the model.
      readers: processes of the pool.
      mesh: devices to compute on.
      stopped: () -> whether the process was asked to stop.

    Raises:
      DataError: the slide cannot be read, or the strokes of a class cover no pixel that can be read.
      NumericalError: the features are not finite.
      Preempted: asked to stop.
    """
    windows = windows_of(grid.height, grid.width, features.window, OVERLAP)
    cells = limited(pixels_in_cells(strokes, grid, windows), PIXELS, len(strokes.classes))
    chosen = np.zeros((windows.rows, windows.columns), bool)
    for cell in cells:
        chosen[cell.row, cell.column] = True
    blocks = BlockCache(pool, grid, windows, chosen, 0, AHEAD * readers)
    compute = jax.jit(features.apply, out_shardings=sharding.replicated(mesh))
    vectors, numbers = [], []
    for cell in cells:
        if stopped():
            raise Preempted("stopped while strokes were read; the same command begins again")
        pixels, origin = blocks.window(cell.row, cell.column)
        corner = windows.corner(cell.row, cell.column)
        image = cut_window(pixels, corner, windows.size, origin, (windows.height, windows.width))
        cell = _readable(cell, blocks, corner)
        maps = np.asarray(compute(features.arrays, image[None])[0])
        vectors.append(at_pixels(maps, features.stride, cell.ys, cell.xs))
        numbers.append(cell.numbers)
        blocks.forget(above=windows.corner(cell.row, 0)[0], left_of=windows.width)
    vectors, numbers = np.concatenate(vectors), np.concatenate(numbers)
    counts = np.bincount(numbers, minlength=len(strokes.classes))
    names = [scheme.class_names[label] for label in strokes.classes]
    if not counts.all():
        raise DataError(
            f"the strokes of {names[int(np.argmin(counts))]} cover no pixel at {grid.mpp:g} um per pixel that can be "
            "read; draw longer ones, or wider lines with --stroke_um"
        )
    if not np.isfinite(vectors).all():
        raise NumericalError(f"the features of {features.name} are not finite")
    log.info("strokes: %s pixels", ", ".join(f"{n} {name}" for n, name in zip(counts, names, strict=True)))
    classifier = fit_classifier(vectors, numbers, len(strokes.classes))
    return _slide_model(classifier, strokes, scheme, features, given, mesh)


def _readable(cell: CellPixels, blocks: BlockCache, corner: tuple[int, int]) -> CellPixels:
    """Returns the pixels of a cell that could be decoded."""
    top, left = corner
    ys, xs = cell.ys + top, cell.xs + left
    unreadable = blocks.unreadable_in(int(ys.min()), int(ys.max()) + 1, int(xs.min()), int(xs.max()) + 1)
    if unreadable is None:
        return cell
    keep = ~unreadable[ys - ys.min(), xs - xs.min()]
    return cell._replace(ys=cell.ys[keep], xs=cell.xs[keep], numbers=cell.numbers[keep])


def _slide_model(
    classifier: LinearClassifier,
    strokes: Strokes,
    scheme: LabelScheme,
    features: PixelFeatures,
    given: dict,
    mesh: Mesh,
) -> SlideModel:
    places = np.array([scheme.evaluated.index(label) for label in strokes.classes])

    def probabilities(arrays: Any, images: jax.Array) -> jax.Array:
        weights, fitted = arrays
        logits = enlarged(LinearClassifier(*fitted)(features.apply(weights, images)), images.shape[1])
        known = jax.nn.softmax(logits)
        return jax.numpy.zeros((*known.shape[:-1], len(scheme.evaluated))).at[..., places].set(known)

    fitted = sharding.place_replicated(tuple(classifier), mesh)
    digest = sha256_of(b"".join(np.asarray(part).tobytes() for part in classifier))
    metadata = {
        "name": NAME,
        "network": f"{features.name}, linear classifier",
        "label_scheme": scheme.to_json(),
        "params_sha256": digest,
        "checkpoint": None,
        "tta": False,
        **({"license": features.license} if features.license else {}),
    }
    identity = {"features": features.identity, "classifier": {"l2": L2, "pixels": PIXELS}}
    identity |= {**given, "label_scheme": scheme.identity()}
    arrays = (features.arrays, fitted)
    return SlideModel(
        NAME,
        scheme,
        features.mpp,
        features.window,
        identity,
        metadata,
        arrays,
        probabilities,
        overlap=OVERLAP,
        blend=BLEND,
    )
