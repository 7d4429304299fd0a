"""Masks of everything in an image: a grid of points, and the masks that are good, stable and different.

Source: `SamAutomaticMaskGenerator` of github.com/facebookresearch/segment-anything.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import MOST_LEVELS, check_counts, check_fraction
from bcss_jax.prompting.mask_boxes import boxes_of, kept_boxes
from bcss_jax.prompting.predictor import THRESHOLD, Predictor
from bcss_jax.prompting.run_lengths import RunLengths
from bcss_jax.prompting.small_regions import without_small_regions

EDGE = 20  # pixels from the edge of a crop, within which a mask is probably cut off
_AT_ONCE = 16  # masks in the size of the image


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the original lets choose, with its defaults; those of SAM 2.1 differ in `score_threshold`, 0.8.

    Attributes:
      points_per_side: of the grid.
      points_per_batch: predicted at once.
      score_threshold: expected intersection over union, which masks have to exceed; 0: no mask is dropped for it.
      stability_threshold: stability that masks have to reach; 0: no mask is dropped for it.
      stability_offset: distance of the two thresholds of the logits, between which a stable mask does not change.
      box_threshold: intersection over union of boxes above which the mask of the lower score is dropped.
      crop_layers: predict in crops as well; layer k has 2^k x 2^k of them.
      crop_threshold: as `box_threshold`, between masks of different crops; those of smaller crops stay.
      crop_overlap: of the crops in the first layer, as a fraction of the image's shorter side.
      crop_points_factor: points per side of layer k are divided by its k-th power.
      smallest_region: pixels; smaller holes are filled and smaller islands removed. 0: all stay.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    score_threshold: float = 0.88
    stability_threshold: float = 0.95
    stability_offset: float = 1.0
    box_threshold: float = 0.7
    crop_layers: int = 0
    crop_threshold: float = 0.7
    crop_overlap: float = 512 / 1500
    crop_points_factor: int = 1
    smallest_region: int = 0

    def points_of_layer(self, layer: int) -> int:
        """Returns the points per side in the crops of a layer."""
        return int(self.points_per_side / self.crop_points_factor**layer)

    def check(self) -> None:
        """Raises ConfigError for settings with which nothing can be predicted."""
        check_counts("automatic masks", points_per_side=self.points_per_side, points_per_batch=self.points_per_batch)
        check_counts("automatic masks", crop_points_factor=self.crop_points_factor)
        check_fraction("automatic masks", allow_zero=True, allow_one=False, crop_overlap=self.crop_overlap)
        if not 0 <= self.crop_layers <= MOST_LEVELS or self.points_of_layer(self.crop_layers) < 1:
            raise ConfigError(
                f"automatic masks: {self.crop_layers} layers of crops need more than {self.points_per_side} "
                f"points_per_side with a crop_points_factor of {self.crop_points_factor}; each layer divides them by it"
            )


@dataclasses.dataclass(frozen=True)
class AutomaticMask:
    """A mask of an image.

    Attributes:
      mask: the mask as run lengths.
      box: x, y, width and height of the pixels' indices: the width is that of the last column minus the first.
      score: expected intersection over union.
      stability: of the mask, at most 1.
      point: x and y of its prompt.
      crop: x, y, width and height of the crop in which it was found.
    """

    mask: RunLengths
    box: tuple[int, int, int, int]
    score: float
    stability: float
    point: tuple[float, float]
    crop: tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class _Found:
    """A mask before the last filters; boxes are first and last column and row, in pixels of the whole image."""

    mask: RunLengths
    box: np.ndarray
    score: np.float32
    stability: np.float32
    point: np.ndarray
    crop: np.ndarray


def automatic_masks(
    predictor: Predictor,
    image: np.ndarray,
    settings: Settings = Settings(),  # noqa: B008  # frozen
) -> list[AutomaticMask]:
    """Returns masks of everything in an image; without crops, those of the highest score come first.

    Args:
      predictor: its image becomes the last crop.
      image: RGB uint8 (H, W, 3).
      settings: the filters.

    Raises:
      DataError: the array is no such image.
      ConfigError: settings cannot work, such as a layer of crops without points.
    """
    settings.check()
    height, width = image.shape[:2]
    found: list[_Found] = []
    crops = crop_boxes(height, width, settings.crop_layers, settings.crop_overlap)
    for crop, layer in crops:
        of_crop = list(_masks_of_crop(predictor, image, np.array(crop), layer, settings))
        found += _kept(of_crop, [each.score for each in of_crop], settings.box_threshold)
    if len(crops) > 1:
        # Masks of smaller crops are preferred.
        areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (each.crop for each in found)]
        found = _kept(found, [1 / np.float32(area) for area in areas], settings.crop_threshold)
    if settings.smallest_region > 0:
        found = _cleaned(found, settings)
    return [
        AutomaticMask(
            each.mask,
            _corner_and_size(each.box),
            float(each.score),
            float(each.stability),
            (float(each.point[0]), float(each.point[1])),
            _corner_and_size(each.crop),
        )
        for each in found
    ]


def point_grid(side: int) -> np.ndarray:
    """Returns the centers of `side` x `side` fields, row by row: x and y between 0 and 1, float64 (side^2, 2)."""
    offset = 1 / (2 * side)
    centers = np.linspace(offset, 1 - offset, side)
    return np.stack(np.meshgrid(centers, centers), axis=-1).reshape(-1, 2)


def crop_boxes(height: int, width: int, layers: int, overlap: float) -> list[tuple[tuple[int, int, int, int], int]]:
    """Returns the whole image and its crops, each with its layer: first column and row, end of columns and rows.

    Args:
      height: of the image.
      width: of the image.
      layers: of crops.
      overlap: of the crops of the first layer, as a fraction of the shorter side.
    """
    boxes = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(height, width) * (2 / count))
        crop_width, crop_height = (math.ceil((shared * (count - 1) + side) / count) for side in (width, height))
        for i in range(count):
            for j in range(count):
                x, y = (crop_width - shared) * i, (crop_height - shared) * j
                boxes.append(((x, y, min(x + crop_width, width), min(y + crop_height, height)), layer))
    return boxes


def _masks_of_crop(
    predictor: Predictor, image: np.ndarray, crop: np.ndarray, layer: int, settings: Settings
) -> Iterator[_Found]:
    """Yields the masks of one crop that pass the filters of single masks."""
    x0, y0, x1, y1 = crop
    predictor.set_image(np.ascontiguousarray(image[y0:y1, x0:x1]))
    points = point_grid(settings.points_of_layer(layer)) * (x1 - x0, y1 - y0)
    for start in range(0, len(points), settings.points_per_batch):
        batch = points[start : start + settings.points_per_batch]
        low_res, scores = predictor.low_resolution(batch, np.ones(len(batch)), settings.points_per_batch)
        of_mask = np.repeat(batch, low_res.shape[1], axis=0)
        low_res, scores = low_res.reshape(-1, *low_res.shape[2:]), scores.ravel()
        good = np.flatnonzero(scores > settings.score_threshold) if settings.score_threshold > 0 else range(len(scores))
        for first in range(0, len(good), _AT_ONCE):
            some = np.asarray(good[first : first + _AT_ONCE])
            logits = predictor.to_image(low_res[some])
            yield from _stable(logits, scores[some], of_mask[some], crop, image.shape[:2], settings)


def _stable(
    logits: np.ndarray,
    scores: np.ndarray,
    points: np.ndarray,
    crop: np.ndarray,
    size: tuple[int, ...],
    settings: Settings,
) -> Iterator[_Found]:
    """Yields the stable masks that no edge of the crop cuts off, from logits (M, H, W) of the crop."""
    height, width = size
    corner = np.tile(crop[:2], 2)
    stabilities = stability_of(logits, settings.stability_offset)
    masks = logits > THRESHOLD
    for mask, box, score, stability, point in zip(masks, boxes_of(masks), scores, stabilities, points, strict=True):
        if settings.stability_threshold > 0 and not stability >= settings.stability_threshold:
            continue
        box = box + corner
        if ((abs(box - crop) <= EDGE) & ~(abs(box - (0, 0, width, height)) <= EDGE)).any():
            continue
        whole = np.zeros((height, width), bool)
        whole[crop[1] : crop[3], crop[0] : crop[2]] = mask
        yield _Found(RunLengths.of(whole), box, score, stability, point + crop[:2], crop)


def stability_of(logits: np.ndarray, offset: float) -> np.ndarray:
    """Returns the stability of masks (M, H, W), float32 (M,); NaN for a mask that is empty at the lower threshold.

    It is the intersection over union of the masks at two thresholds, `offset` above and below that of masks.
    """
    inner, outer = (
        np.count_nonzero(logits > THRESHOLD + shift, axis=(1, 2)).astype(np.float32) for shift in (offset, -offset)
    )
    with np.errstate(invalid="ignore"):
        return inner / outer


def _kept(found: list[_Found], scores: list, threshold: float) -> list[_Found]:
    """Returns the masks that stay among those whose boxes overlap, best score first."""
    boxes = np.array([each.box for each in found]).reshape(-1, 4)
    return [found[i] for i in kept_boxes(boxes, np.array(scores, np.float32), threshold)]


def _cleaned(found: list[_Found], settings: Settings) -> list[_Found]:
    """Returns the masks without small holes and islands; of those whose boxes overlap now, untouched ones stay."""
    cleaned, scores = [], []
    for each in found:
        mask, changed = without_small_regions(each.mask.mask(), settings.smallest_region)
        if changed:
            each = dataclasses.replace(each, mask=RunLengths.of(mask), box=boxes_of(mask[None])[0])
        cleaned.append(each)
        scores.append(not changed)
    return _kept(cleaned, scores, max(settings.box_threshold, settings.crop_threshold))


def _corner_and_size(box: np.ndarray) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (int(side) for side in box)
    return x0, y0, x1 - x0, y1 - y0
