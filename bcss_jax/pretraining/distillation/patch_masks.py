"""Which patches of the global views are hidden from the student.

Source: `MaskingGenerator` and `collate_data_and_cast` of github.com/facebookresearch/dinov2: half of the images are
masked, in rectangular blocks, by shares that are spread evenly between the images.
"""

import math

import numpy as np

MASKED_IMAGES = 0.5
SHARES = (0.1, 0.5)  # of the patches of an image
SMALLEST_BLOCK = 4  # patches
LARGEST_BLOCK = 0.5  # share of the patches
ASPECT = 0.3  # smallest height / width of a block; the largest is its inverse
TRIES = 10


def patch_masks(images: int, rows: int, columns: int, seed: int, step: int) -> np.ndarray:
    """Returns the masks of a batch, a function of seed and step: bool [images, rows * columns]."""
    count = int(images * MASKED_IMAGES)
    rng = np.random.default_rng((seed, step, 0x6D61736B))
    bounds = np.linspace(*SHARES, count + 1)
    masks = np.zeros((images, rows, columns), bool)
    places = rng.permutation(images)[:count]
    for place, low, high in zip(places, bounds[:-1], bounds[1:], strict=True):
        masks[place] = _mask(rng, rows, columns, int(rows * columns * rng.uniform(low, high)))
    return masks.reshape(images, -1)


def most_masked(images: int, patches: int) -> int:
    """Returns the largest number of masked patches in a batch."""
    bounds = np.linspace(*SHARES, int(images * MASKED_IMAGES) + 1)[1:]
    return max(sum(int(patches * high) for high in bounds), 1)


def most_masked_of_one(patches: int) -> int:
    """Returns the largest number of masked patches in an image."""
    return max(int(patches * SHARES[1]), 1)


def _mask(rng: np.random.Generator, rows: int, columns: int, wanted: int) -> np.ndarray:
    """Returns a mask with at most `wanted` patches, made of blocks; bool [rows, columns]."""
    mask = np.zeros((rows, columns), bool)
    cap = int(LARGEST_BLOCK * rows * columns)
    while (left := wanted - int(mask.sum())) > 0:
        if not _add_block(rng, mask, min(left, cap)):
            break
    return mask


def _add_block(rng: np.random.Generator, mask: np.ndarray, most: int) -> bool:
    """Masks one more block of at most `most` new patches. Returns whether one was found."""
    rows, columns = mask.shape
    for _ in range(TRIES):
        area = rng.uniform(SMALLEST_BLOCK, max(most, SMALLEST_BLOCK))
        aspect = math.exp(rng.uniform(math.log(ASPECT), -math.log(ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
        block = mask[top : top + height, left : left + width]
        if 0 < block.size - int(block.sum()) <= most:
            block[:] = True
            return True
    return False
