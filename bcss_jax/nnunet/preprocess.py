"""Preprocessing: crops black borders, normalizes as the plan says, and samples pixels of each class.

Source: `DefaultPreprocessor` of nnU-Net 2.8.1. Images have the plan's spacing (PNG files always do), so they are not
resampled.
"""

from typing import Any, NamedTuple

import numpy as np

from bcss_jax.errors import DataError
from bcss_jax.nnunet import labels as label_rules

Box = tuple[tuple[int, int], tuple[int, int]]

OUTSIDE = -1  # label of black background pixels; 0 in training
_EPSILON = 1e-8
_SEED = 1234
_MIN_LOCATIONS, _MIN_SHARE = 10_000, 0.01  # smallest number and share of each class's pixels to sample


class PreprocessedCase(NamedTuple):
    """A preprocessed image.

    Attributes:
      data: float32 [H, W, C].
      labels: int8 (int16 if labels exceed 127) [H, W]; `OUTSIDE` where the image is black.
      properties: `shape_before_cropping` (height and width), `bbox_used_for_cropping` ((y0, y1), (x0, x1)), and, if
        there is a mask, `class_locations`: int64 [n, 2] pixels (y, x) of each class. If there is a label `ignore`, it
        also has pixels of the whole annotated area; their key is the tuple of `OUTSIDE` and all other labels.
    """

    data: np.ndarray
    labels: np.ndarray
    properties: dict


def preprocess(image: np.ndarray, mask: np.ndarray | None, plan: dict, dataset: dict) -> PreprocessedCase:
    """Preprocesses an image for the network.

    Args:
      image: [H, W, C], uint8 if it is RGB.
      mask: integers [H, W], nnU-Net's labels; None for an image to predict.
      plan: from `plan.make_plan` or a plan file, with the configuration `2d`.
      dataset: nnU-Net's dataset.json, for its labels.

    Raises:
      DataError: the image does not fit the plan, or the mask does not fit the image or the labels.
    """
    configuration = plan["configurations"]["2d"]
    schemes, masked = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    if image.ndim != 3 or image.shape[2] != len(schemes):
        raise DataError(
            f"the image has the shape {list(image.shape)}; the plan is for [H, W, {len(schemes)}], so images with "
            f"{len(schemes)} channels; convert the image, or make a plan for such images"
        )
    if list(configuration["spacing"]) != [1, 1] or list(plan["transpose_forward"]) != [0, 1, 2]:
        raise DataError(
            f"the plan has the spacing {configuration['spacing']} and the axes {plan['transpose_forward']}; only "
            "[1, 1] and [0, 1, 2], those of images without a spacing, are supported; make a plan for PNG images"
        )
    if mask is not None:
        _check_mask(image, mask, dataset)
    cropped, labels, box = crop_to_nonzero(image, mask)
    properties: dict[str, Any] = {"shape_before_cropping": tuple(image.shape[:2]), "bbox_used_for_cropping": box}
    if mask is not None:
        properties["class_locations"] = class_locations(labels, dataset)
    # Channels come first and are contiguous, because sums of float32 depend on the order of the pixels.
    channels = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    channels = channels[:, slice(*box[0]), slice(*box[1])]
    intensities = plan["foreground_intensity_properties_per_channel"]
    for index, (scheme, use_mask) in enumerate(zip(schemes, masked, strict=True)):
        if scheme not in NORMALIZATIONS:
            raise DataError(f"the plan has the normalization {scheme!r}; expected {', '.join(NORMALIZATIONS)}")
        NORMALIZATIONS[scheme](channels[index], labels >= 0 if use_mask else None, intensities.get(str(index)))
    data = np.ascontiguousarray(channels.transpose(1, 2, 0))
    return PreprocessedCase(data, labels.astype(np.int16 if labels.max() > 127 else np.int8), properties)


def crop_to_nonzero(image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, Box]:
    """Crops the black border of an image.

    nnU-Net fills holes before it looks for black pixels. In its arrays of one layer, however, each pixel is at the
    outside above and below, so there are no holes. Black pixels inside an image therefore are `OUTSIDE`, too.

    Args:
      image: [H, W, C].
      mask: integers [H, W], or None.

    Returns:
      The cropped image (a view); int16 labels (0 without a mask), with `OUTSIDE` for background pixels whose channels
      are all 0; and the box ((y0, y1), (x0, x1)), ends excluded. An image that is completely black is not cropped.
    """
    nonzero = np.any(image != 0, axis=2)
    box = (_extent(nonzero.any(axis=1)), _extent(nonzero.any(axis=0)))
    rows, columns = slice(*box[0]), slice(*box[1])
    labels = np.zeros(nonzero.shape, np.int16) if mask is None else mask.astype(np.int16)
    labels = labels[rows, columns]
    labels[(labels == 0) & ~nonzero[rows, columns]] = OUTSIDE
    return image[rows, columns], labels, box


def class_locations(labels: np.ndarray, dataset: dict) -> dict[int | tuple[int, ...], np.ndarray]:
    """Samples pixels of each class on which patches can be centered.

    At least 10,000 pixels and 1 % of the pixels of each class are sampled, or all if the class has fewer.

    Args:
      labels: [H, W], preprocessed.
      dataset: nnU-Net's dataset.json.

    Returns:
      See `PreprocessedCase`. These are the pixels that nnU-Net draws, in its order. Classes that do not occur have an
      empty array.
    """
    ignore, outputs = label_rules.ignore_label(dataset), label_rules.num_outputs(dataset)
    groups: list[tuple[int, ...]] = [(label,) for label in range(1, outputs)]
    if ignore is not None:
        groups.append((OUTSIDE, *range(outputs)))
    random, flat, locations = np.random.RandomState(_SEED), labels.ravel(), {}
    for group in groups:
        pixels = np.concatenate([np.flatnonzero(flat == label) for label in group])
        if len(pixels):
            number = max(min(_MIN_LOCATIONS, len(pixels)), int(np.ceil(len(pixels) * _MIN_SHARE)))
            pixels = pixels[random.choice(len(pixels), number, replace=False)]
        key: int | tuple[int, ...] = group[0] if len(group) == 1 else group
        locations[key] = np.stack(np.unravel_index(pixels, labels.shape), axis=1)
    return locations


def _check_mask(image, mask, dataset):
    if mask.shape != image.shape[:2] or not np.issubdtype(mask.dtype, np.integer):
        raise DataError(
            f"the mask is {mask.dtype} {list(mask.shape)} and the image is {list(image.shape)}; "
            "expected integers of the same height and width"
        )
    highest = max(dataset["labels"].values())
    if mask.size and (mask.min() < 0 or mask.max() > highest):
        wrong = mask.max() if mask.max() > highest else mask.min()
        raise DataError(
            f"the mask has the label {wrong}; the labels of the data set are 0 to {highest} "
            f"({', '.join(dataset['labels'])})"
        )


def _extent(occupied):
    """Returns the range from the first to the last True, end excluded; the full range if all values are False."""
    indices = np.flatnonzero(occupied)
    return (int(indices[0]), int(indices[-1]) + 1) if len(indices) else (0, len(occupied))


def _z_score(channel, inside, intensities):
    """Normalizes to mean 0 and standard deviation 1; if `inside` is given, only these pixels count and change."""
    del intensities
    where = slice(None) if inside is None else inside
    pixels = channel[where]
    mean, deviation = pixels.mean(), pixels.std()
    channel[where] = (pixels - mean) / max(deviation, _EPSILON)


def _rgb_to_0_1(channel, inside, intensities):
    del inside, intensities
    if channel.min() < 0 or channel.max() > 255:
        raise DataError(
            f"the image has values from {channel.min():g} to {channel.max():g}; rgb_to_0_1 expects 0 to 255; "
            "convert the image to 8 bits, or make a plan with other channel names"
        )
    channel /= 255


def _rescale_to_0_1(channel, inside, intensities):
    del inside, intensities
    channel -= channel.min()
    channel /= max(channel.max(), _EPSILON)


def _ct(channel, inside, intensities):
    """Clips and scales with the foreground statistics of the whole data set."""
    del inside
    np.clip(channel, intensities["percentile_00_5"], intensities["percentile_99_5"], out=channel)
    channel -= intensities["mean"]
    channel /= max(intensities["std"], _EPSILON)


def _no_change(channel, inside, intensities):
    del channel, inside, intensities


# Each function changes one channel, float32 [H, W], in place. Its arguments are the channel, the pixels inside the
# image (None: all) and the foreground statistics of the channel.
NORMALIZATIONS = {
    "ZScoreNormalization": _z_score,
    "CTNormalization": _ct,
    "NoNormalization": _no_change,
    "RescaleTo01Normalization": _rescale_to_0_1,
    "RGBTo01Normalization": _rgb_to_0_1,
}
