"""Finds images that show the same in any orientation: a hash of 255 bits for each image, and a search by distance.

The hash is a perceptual hash: the signs of the 16 x 16 lowest coefficients of the discrete cosine transform of the gray
image, without the mean. It is longer than the usual 64 bits, because tissue differs less than photographs. Mirroring an
image only changes signs of coefficients, and a rotation by 90 degrees also swaps rows and columns, so the hashes of all
eight orientations follow from one.

The search finds copies that were recompressed, made lighter or darker, changed in contrast, scaled, slightly blurred,
shifted by up to 3 of 224 pixels, mirrored, or rotated by multiples of 90 degrees, whatever their names. It does not
find crops of the same tissue that are shifted farther or rotated by another angle; `neighbors.py` finds those by their
names. Images with hardly any contrast are not compared, because only noise is left of them.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from PIL import Image

from bcss_jax.common.interruption import safe_point

SIDE = 64  # pixels of the scaled image
FREQUENCIES = 16
WORDS = FREQUENCIES**2 // 64
LEAST_CONTRAST = 3.0  # gray levels, standard deviation of the scaled image
# Number of bits by which copies may differ. Unrelated tiles of two real regions and of the sample differ in 127.5 bits
# with a standard deviation of 8.0, like coin tosses (1.4 million comparisons, none below 88). JPEG at quality 10
# changes at most 23 bits, a shift by 3 pixels in both directions 55, and a shift by 4 pixels 55 in the median.
NEAR = 64
_COARSE_NEAR = 16  # of the 63 coarsest bits, which are compared first: 1 of 20,000 unrelated pairs passes
_BLOCK = (64, 4096)  # number of hashes compared at a time, so that they fit into the CPU's cache

# How the second image of a pair results from the first.
ORIENTATIONS = (
    "as it is", "mirrored left to right", "mirrored top to bottom", "turned by 180 degrees",
    "transposed", "turned by 90 degrees clockwise", "turned by 90 degrees anticlockwise", "transposed the other way",
)  # fmt: skip

_ROW, _COLUMN = np.divmod(np.arange(FREQUENCIES**2), FREQUENCIES)
# Order of the bits: coarse structure first, so that the first word has the 8 x 8 lowest coefficients.
_ORDER = np.argsort(np.maximum(_ROW, _COLUMN), kind="stable")
_COSINES = np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * (np.arange(SIDE) + 0.5) / SIDE)


@dataclasses.dataclass(frozen=True)
class Hash:
    """The hash of an image.

    Attributes:
      words: uint64 [4].
      contrast: standard deviation of the scaled gray image, in gray levels.
    """

    words: np.ndarray
    contrast: float


def hash_of(image: np.ndarray) -> Hash:
    """Returns the hash of an image, uint8 [H, W, 3]."""
    small = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    gray = np.asarray(small, np.float64)
    bits = (_COSINES @ (gray - gray.mean()) @ _COSINES.T).ravel() > 0
    bits[0] = False  # the mean, which is zero except for rounding
    return Hash(_packed(bits[_ORDER]), float(gray.std()))


def pairs_between(words: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Returns the pairs of similar images, one from each of two groups.

    Args:
      words: uint64 [N, 4], hashes.
      first: indices of the images of one group.
      second: indices of the images of the other group.

    Returns:
      (index from first, index from second, orientation, distance in bits) of every pair whose nearest orientation
      differs by at most `NEAR` bits, sorted by distance.
    """
    if len(first) > len(second):
        swapped = pairs_between(words, second, first)
        back = (
            0,
            1,
            2,
            3,
            4,
            6,
            5,
            7,
        )  # the two rotations by 90 degrees are each other's inverse; the others are their own
        return sorted(((b, a, back[o], d) for a, b, o, d in swapped), key=lambda pair: (pair[3], pair))
    best = {}
    for orientation, turned in enumerate(_all_orientations(words[first])):
        for i, j in _candidates(turned[:, 0], words[second, 0]):
            distances = np.bitwise_count(turned[i] ^ words[second[j]]).sum(axis=1, dtype=int)
            near = distances <= NEAR
            for a, b, distance in zip(first[i[near]], second[j[near]], distances[near], strict=True):
                pair = (int(a), int(b))
                best[pair] = min(best.get(pair, (NEAR + 1, 0)), (int(distance), orientation))
    return sorted(((*pair, o, d) for pair, (d, o) in best.items()), key=lambda pair: (pair[3], pair))


def _candidates(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, block by block, the indices of pairs whose coarse words, uint64 [n] and [m], differ in few bits."""
    rows, columns = _BLOCK
    for top in range(0, len(first), rows):
        for left in range(0, len(second), columns):
            safe_point()
            differing = np.bitwise_count(first[top : top + rows, None] ^ second[left : left + columns])
            i, j = np.nonzero(differing <= _COARSE_NEAR)
            if len(i):
                yield top + i, left + j


def _all_orientations(words: np.ndarray) -> np.ndarray:
    """Returns the hashes, uint64 [8, N, 4], of all eight orientations of images with the hashes uint64 [N, 4]."""
    bits = np.empty((len(words), FREQUENCIES**2), bool)
    bits[:, _ORDER] = np.unpackbits(words.view(np.uint8).reshape(len(words), -1), axis=1).astype(bool)
    swapped = bits.reshape(-1, FREQUENCIES, FREQUENCIES).transpose(0, 2, 1).reshape(bits.shape)
    odd_row, odd_column = _ROW % 2 == 1, _COLUMN % 2 == 1
    masks = (np.zeros_like(odd_row), odd_column, odd_row, odd_row ^ odd_column)
    return np.stack([_packed((source ^ mask)[:, _ORDER]) for source in (bits, swapped) for mask in masks])


def _packed(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.packbits(bits, axis=-1)).view(np.uint64)
