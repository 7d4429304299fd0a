"""The fingerprint: what nnU-Net extracts from a data set before it plans.

Source: `DatasetFingerprintExtractor` of nnU-Net 2.8.1. Its intensity statistics are those of pixels that are drawn at
random from the foreground (labels above 0, including the label `ignore`), with replacement, the same number from each
case. The same pixels are drawn here. They are counted by value instead of stored, which needs almost no memory.
"""

import math
from collections.abc import Sequence, Sized

import numpy as np

from bcss_jax.errors import DataError
from bcss_jax.nnunet.preprocess import crop_to_nonzero

SPACING = (999, 1, 1)  # nnU-Net's value for images without a spacing, such as PNG files
_SEED = 1234
_DRAWN_AT_ONCE = 1 << 20


def extract_fingerprint(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    *,
    names: Sequence[str] | None = None,
    samples: int = 100_000_000,
) -> dict:
    """Returns the contents of nnU-Net's dataset_fingerprint.json.

    Args:
      images: uint8 [H, W, 3]; sizes may differ. They are read once, in order, so a sequence that loads them lazily
        works.
      masks: integers [H, W], nnU-Net's labels (0 is background).
      names: names of the cases, for messages.
      samples: number of pixels that are drawn from the whole data set. Fewer take less time, but the statistics then
        differ from nnU-Net's; only plans with `ct` channels use them.

    Returns:
      `spacings`, `shapes_after_crop` ([1, H, W] of each case), `median_relative_size_after_cropping` and
      `foreground_intensity_properties_per_channel`.

    Raises:
      DataError: there is no case or no foreground, an image is not RGB, or a mask has another size than its image.
    """
    count = _count(images, masks)
    per_case = samples // count
    histograms = np.zeros((3, 256), np.int64)
    shapes, relative_sizes = [], []
    for index, image, mask in zip(
        range(count), images, masks, strict=False
    ):  # stops before it reads beyond the last case
        image, mask = np.asarray(image), np.asarray(mask)
        name = names[index] if names is not None else f"case {index + 1} of {count}"
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DataError(
                f"{name}: the image is {image.dtype} {list(image.shape)}, not RGB (uint8 [H, W, 3]); convert it"
            )
        if mask.shape != image.shape[:2] or not np.issubdtype(mask.dtype, np.integer):
            raise DataError(
                f"{name}: the mask is {mask.dtype} {list(mask.shape)} and the image {list(image.shape)}; "
                "expected integers of the same height and width"
            )
        cropped, labels, _ = crop_to_nonzero(image, mask)
        shapes.append([1, *labels.shape])
        relative_sizes.append(math.prod(labels.shape) / math.prod(mask.shape))
        histograms += _draw(cropped[labels > 0], per_case)
    if not histograms.any():
        raise DataError(f"none of the {count} masks has a label above 0; expected at least one annotated class")
    return {
        "foreground_intensity_properties_per_channel": {
            str(channel): _statistics(histogram) for channel, histogram in enumerate(histograms)
        },
        "median_relative_size_after_cropping": float(np.median(relative_sizes)),
        "shapes_after_crop": shapes,
        "spacings": [list(SPACING) for _ in shapes],
    }


def _count(images: Sized, masks: Sized) -> int:
    if len(images) != len(masks):
        raise DataError(f"there are {len(images)} images and {len(masks)} masks; expected one mask for each image")
    if not len(images):
        raise DataError("there are no cases for the fingerprint; expected at least one image with its mask")
    return len(images)


def _draw(pixels: np.ndarray, number: int) -> np.ndarray:
    """Draws pixels [n, 3] and returns how often each value was drawn: [3, 256].

    All three channels use one stream of random numbers, red first.
    """
    random, counts = np.random.RandomState(_SEED), np.zeros((3, 256), np.int64)
    for channel in range(3 if len(pixels) else 0):
        values = np.ascontiguousarray(pixels[:, channel])
        for start in range(0, number, _DRAWN_AT_ONCE):
            drawn = random.randint(0, len(values), size=min(_DRAWN_AT_ONCE, number - start))
            counts[channel] += np.bincount(values[drawn], minlength=256)
    return counts


def _statistics(histogram):
    """Returns statistics of the values that a histogram counts, under nnU-Net's names."""
    values, total, below = np.arange(len(histogram)), histogram.sum(), np.cumsum(histogram)
    mean = (histogram * values).sum() / total
    present = np.flatnonzero(histogram)

    def percentile(percent):  # interpolates linearly, as NumPy does
        rank = percent / 100 * (total - 1)
        low = math.floor(rank)
        lower, upper = np.searchsorted(below, [low, min(low + 1, total - 1)], side="right")
        return float(lower + (upper - lower) * (rank - low))

    return {
        "max": float(present[-1]),
        "mean": float(mean),
        "median": percentile(50),
        "min": float(present[0]),
        "percentile_00_5": percentile(0.5),
        "percentile_99_5": percentile(99.5),
        "std": float(np.sqrt((histogram * (values - mean) ** 2).sum() / total)),
    }
