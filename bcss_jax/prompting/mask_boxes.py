"""Boxes around masks, and which of overlapping boxes stay."""

import numpy as np


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Returns first column, first row, last column and last row of masks, bool (M, H, W): int64 (M, 4).

    The box of an empty mask is 0, 0, 0, 0.
    """
    (x0, x1), (y0, y1) = _bounds(masks, 1), _bounds(masks, 2)
    return np.stack([x0, y0, x1, y1], axis=1) * np.any(masks, axis=(1, 2))[:, None]


def _bounds(masks: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first and the last place that is inside after `axis`, 1 or 2, of the masks is taken together."""
    inside = np.logical_or.reduce(masks, axis=axis)
    return inside.argmax(axis=1), inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)


def kept_boxes(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Returns the numbers of the boxes that stay, best score first ("non-maximum suppression").

    A box is dropped if its intersection over union with a better one that stays exceeds the threshold. As in
    torchvision's `nms`, numbers are float32, and of equal scores the first one is better.

    Args:
      boxes: (M, 4), x and y of two corners; the area is the product of the differences.
      scores: float32 (M,).
      threshold: of the intersection over union.
    """
    boxes = boxes.astype(np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.maximum(high - low, 0).prod(1)
        with np.errstate(invalid="ignore"):  # boxes without area
            overlap = (shared / (areas[best] + areas[rest] - shared)).astype(np.float64)
        order = rest[~(overlap > threshold)]
    return kept
