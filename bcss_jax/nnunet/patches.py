"""Draws patches of cases on the host, with nnU-Net's foreground oversampling.

A draw depends only on the seed, the step and the index of the example in the batch. There is no random state to save or
restore, and any worker can make any example.

Source: nnUNetDataLoader and get_patch_size of nnU-Net 2.8.1.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

Pair = tuple[int, int]

# nnU-Net chooses the size of the larger patch for this scale, although it scales down to 0.7. The window then reaches
# beyond the patch, where it is empty.
_SMALLEST_SCALE = 0.85


class PatchSource(Protocol):
    """A preprocessed case from which patches are cut: arrays in memory, or files that are opened when needed.

    Attributes:
      data: float32 [H, W, C], preprocessed; may be a memory map.
      labels: integers [H, W]; -1 outside the image; may be a memory map.
      class_locations: integers [n, 2], some pixels (y, x) of each foreground label. In data sets with an ignore label,
        another key is a tuple of labels; its pixels are some of all annotated pixels, including background.
    """

    @property
    def data(self) -> np.ndarray: ...  # noqa: D102

    @property
    def labels(self) -> np.ndarray: ...  # noqa: D102

    @property
    def class_locations(self) -> Mapping[Hashable, np.ndarray]: ...  # noqa: D102


class Patch(NamedTuple):
    """A drawn patch.

    Attributes:
      case: index of the case.
      corner: upper left pixel (y, x) of the patch; may be outside the case.
      forced: whether the patch must show foreground.
    """

    case: int
    corner: Pair
    forced: bool


def rotation_range(patch_size: Pair) -> tuple[float, float]:
    """Returns the range of rotation angles, in radians: all, or up to 15 degrees for patches longer than 1.5 to 1."""
    largest = math.radians(15 if max(patch_size) / min(patch_size) > 1.5 else 180)
    return -largest, largest


def initial_patch_size(patch_size: Pair) -> Pair:
    """Returns the size to cut so that a rotated and scaled patch lies almost entirely inside it.

    224 x 224 -> 263 x 263; 320 x 512 -> 519 x 602, but 512 x 320 -> 679 x 376, because nnU-Net rotates only one corner
    in one direction.
    """
    height, width = patch_size
    angle = min(rotation_range(patch_size)[1], math.pi / 2)
    rotated = (
        abs(height * math.cos(angle) + width * math.sin(angle)),
        abs(width * math.cos(angle) - height * math.sin(angle)),
    )
    cut_height, cut_width = (int(max(sizes) / _SMALLEST_SCALE) for sizes in zip(rotated, patch_size, strict=True))
    return cut_height, cut_width


def forced_foreground(batch_size: int, share: float = 0.33) -> np.ndarray:
    """Returns bool [batch_size]: which examples must show foreground; about the last `share` of the batch."""
    return np.arange(batch_size) >= round(batch_size * (1 - share))


def choose_patch(
    cases: Sequence[PatchSource],
    seed: int,
    step: int,
    index: int,
    *,
    batch_size: int,
    patch_size: Pair,
    cut_size: Pair | None = None,
    share: float = 0.33,
) -> Patch:
    """Draws one example of a batch: a case, with replacement, and a patch of it.

    If the example must show foreground, one of the labels of the case is drawn, all with the same probability, and the
    patch is centered on a pixel of this label. Otherwise the patch can be anywhere; in data sets with an ignore label,
    it is centered on any annotated pixel. If there is no such pixel, the patch can be anywhere.

    Args:
      cases: only `class_locations` and the shape of the labels of the drawn case are read.
      seed: non-negative.
      step: training step, non-negative.
      index: index of the example in the batch.
      batch_size: number of examples in the whole batch.
      patch_size: (H, W) of the network's input.
      cut_size: (H, W) to cut, at least as large (`initial_patch_size`); None: `patch_size`, as for validation.
      share: see `forced_foreground`.

    Returns:
      The patch. The same arguments always give the same patch.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step, index)))
    forced = bool(forced_foreground(batch_size, share)[index])
    number = int(generator.integers(len(cases)))
    case = cases[number]
    shape, locations = (case.labels.shape[0], case.labels.shape[1]), case.class_locations
    cut_size = cut_size or patch_size

    candidates = _eligible_pixels(locations, forced)
    if candidates:
        pixels = candidates[generator.integers(len(candidates))]
        corner = corner_around(pixels[generator.integers(len(pixels))], shape, patch_size, cut_size)
    else:
        lowest, highest = corner_bounds(shape, patch_size, cut_size)
        y, x = (int(c) for c in generator.integers(lowest, highest, endpoint=True))
        corner = y, x
    return Patch(number, corner, forced)


def _eligible_pixels(locations, forced):
    # Returns one array of pixels per label. If background is the only label of a case, it has annotated pixels only.
    labels = [pixels for label, pixels in locations.items() if not isinstance(label, tuple) and len(pixels)]
    annotated = [pixels for label, pixels in locations.items() if isinstance(label, tuple) and len(pixels)]
    return labels or annotated if forced else annotated


def corner_bounds(shape: Pair, patch_size: Pair, cut_size: Pair) -> tuple[Pair, Pair]:
    """Returns the lowest and the highest corner of patches that can be anywhere.

    Patches reach beyond the case by half of what is cut for the rotation, so that a rotated patch can touch the border
    of the case. Cases smaller than the patch are inside it.
    """
    lowest, highest = [], []
    for length, patch, cut in zip(shape, patch_size, cut_size, strict=True):
        beyond = math.ceil(max(cut - patch, cut - length) / 2)
        lowest.append(-beyond)
        highest.append(length + beyond - cut)
    return (lowest[0], lowest[1]), (highest[0], highest[1])


def corner_around(pixel: Sequence[int] | np.ndarray, shape: Pair, patch_size: Pair, cut_size: Pair) -> Pair:
    """Returns the corner of the patch around a pixel. As in nnU-Net, the corner is bounded from below only."""
    lowest, _ = corner_bounds(shape, patch_size, cut_size)
    y, x = (max(low, int(p) - cut // 2) for low, p, cut in zip(lowest, pixel, cut_size, strict=True))
    return y, x


def cut_patch(data: np.ndarray, labels: np.ndarray, corner: Pair, size: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a patch from a case. Outside the case the image is 0 and the label -1.

    Args:
      data: [H, W, C], for example a memory map; only the pixels of the patch are read.
      labels: [H, W], signed integers.
      corner: (y, x), inside or outside the case.
      size: (h, w).

    Returns:
      New arrays [h, w, C] and [h, w] of the same types.
    """
    image = np.zeros((*size, data.shape[-1]), data.dtype)
    label = np.full(size, -1, labels.dtype)
    in_case, in_patch = [], []
    for start, length, wanted in zip(corner, labels.shape, size, strict=True):
        first, last = np.clip((start, start + wanted), 0, length)
        in_case.append(slice(first, last))
        in_patch.append(slice(first - start, last - start))
    image[tuple(in_patch)] = data[tuple(in_case)]
    label[tuple(in_patch)] = labels[tuple(in_case)]
    return image, label
