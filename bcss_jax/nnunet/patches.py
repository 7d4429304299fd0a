"""Which patch of which case an example is: nnU-Net's foreground oversampling, on the host.

What is drawn depends on the seed, the step and the example's place in the batch alone: there is no random state to keep
or to restore, and any worker can make any example.

Source: nnUNetDataLoader and get_patch_size of nnU-Net 2.8.1.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

Pair = tuple[int, int]

# nnU-Net sizes the larger patch for objects that grow by at most this, though it scales by down to 0.7: what a window
# finds outside is then empty.
_SMALLEST_SCALE = 0.85


class PatchSource(Protocol):
    """What patches are cut from; arrays in memory, or files that are opened when they are needed.

    Attributes:
      data: float32 [H, W, C], preprocessed; may be a memory map.
      labels: integers [H, W]; -1 where there is no picture; may be a memory map.
      class_locations: some pixels (y, x) of each foreground label as integers [n, 2]. In data sets with an ignore label
        a tuple of labels is a further key: there are some of all annotated pixels, background among them.
    """

    @property
    def data(self) -> np.ndarray: ...  # noqa: D102 (described above)

    @property
    def labels(self) -> np.ndarray: ...  # noqa: D102

    @property
    def class_locations(self) -> Mapping[Hashable, np.ndarray]: ...  # noqa: D102


class Patch(NamedTuple):
    """A drawn patch.

    Attributes:
      case: number of the case.
      corner: its upper left pixel (y, x); may lie outside of the case.
      forced: whether foreground was asked for.
    """

    case: int
    corner: Pair
    forced: bool


def rotation_range(patch_size: Pair) -> tuple[float, float]:
    """Angles in radians that patches are rotated by: all, or up to 15 degrees if they are longer than 1.5 to 1."""
    largest = math.radians(15 if max(patch_size) / min(patch_size) > 1.5 else 180)
    return -largest, largest


def initial_patch_size(patch_size: Pair) -> Pair:
    """Size to cut so that a patch that is rotated and scaled finds picture nearly everywhere.

    224 x 224 -> 263 x 263; 320 x 512 -> 519 x 602, but 512 x 320 -> 679 x 376: nnU-Net rotates one corner, one way.
    """
    height, width = patch_size
    angle = min(rotation_range(patch_size)[1], math.pi / 2)
    rotated = (
        abs(height * math.cos(angle) + width * math.sin(angle)),
        abs(width * math.cos(angle) - height * math.sin(angle)),
    )
    return tuple(int(max(sizes) / _SMALLEST_SCALE) for sizes in zip(rotated, patch_size, strict=True))


def forced_foreground(batch_size: int, share: float = 0.33) -> np.ndarray:
    """Which examples of a batch must show foreground: the last ones, about `share` of them. Returns bool [batch_size]."""
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

    An example that must show foreground gets the patch about a pixel of one of the labels that the case has, each label
    as likely; others lie anywhere or, in data sets with an ignore label, about any annotated pixel. Where there is no
    such pixel, the patch lies anywhere.

    Args:
      cases: only the shape of the drawn one's labels and its `class_locations` are read.
      seed: non-negative.
      step: of the training, non-negative.
      index: the example's place in the batch.
      batch_size: examples in the whole batch.
      patch_size: (H, W) that the network sees.
      cut_size: (H, W) to cut, at least as large (`initial_patch_size`); None: `patch_size`, as for validation.
      share: see `forced_foreground`.

    Returns:
      The patch; the same for the same arguments.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step, index)))
    forced = bool(forced_foreground(batch_size, share)[index])
    number = int(generator.integers(len(cases)))
    shape, locations = cases[number].labels.shape, cases[number].class_locations
    cut_size = cut_size or patch_size

    pixels = _eligible_pixels(locations, forced)
    if pixels:
        pixels = pixels[generator.integers(len(pixels))]
        corner = corner_about(pixels[generator.integers(len(pixels))], shape, patch_size, cut_size)
    else:
        lowest, highest = corner_bounds(shape, patch_size, cut_size)
        corner = tuple(int(c) for c in generator.integers(lowest, highest, endpoint=True))
    return Patch(number, corner, forced)


def _eligible_pixels(locations, forced):
    # One array of pixels per label to choose from. A case whose only truth is background has but annotated pixels.
    labels = [pixels for label, pixels in locations.items() if not isinstance(label, tuple) and len(pixels)]
    annotated = [pixels for label, pixels in locations.items() if isinstance(label, tuple) and len(pixels)]
    return labels or annotated if forced else annotated


def corner_bounds(shape: Pair, patch_size: Pair, cut_size: Pair) -> tuple[Pair, Pair]:
    """The lowest and the highest corner of patches that lie anywhere.

    They reach beyond the case by half of what is cut for the rotation, so that after it a patch may touch the case's
    border; smaller cases lie within the patch.
    """
    lowest, highest = [], []
    for length, patch, cut in zip(shape, patch_size, cut_size, strict=True):
        beyond = math.ceil(max(cut - patch, cut - length) / 2)
        lowest.append(-beyond)
        highest.append(length + beyond - cut)
    return tuple(lowest), tuple(highest)


def corner_about(pixel: Sequence[int], shape: Pair, patch_size: Pair, cut_size: Pair) -> Pair:
    """Corner of the patch about a pixel. As in nnU-Net only the lowest corner is a bound, not the highest."""
    lowest, _ = corner_bounds(shape, patch_size, cut_size)
    return tuple(max(low, int(p) - cut // 2) for low, p, cut in zip(lowest, pixel, cut_size, strict=True))


def cut_patch(data: np.ndarray, labels: np.ndarray, corner: Pair, size: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a patch out of a case; beyond the case the image is 0 and the label -1.

    Args:
      data: [H, W, C], e.g. a memory map: no other pixels than those of the patch are read.
      labels: [H, W], signed integers.
      corner: (y, x), within the case or not.
      size: (h, w).

    Returns:
      New arrays [h, w, C] and [h, w] of the types that came.
    """
    image = np.zeros((*size, data.shape[-1]), data.dtype)
    label = np.full(size, -1, labels.dtype)
    there, here = [], []
    for start, length, wanted in zip(corner, labels.shape, size, strict=True):
        first, last = np.clip((start, start + wanted), 0, length)
        there.append(slice(first, last))
        here.append(slice(first - start, last - start))
    image[tuple(here)] = data[tuple(there)]
    label[tuple(here)] = labels[tuple(there)]
    return image, label
