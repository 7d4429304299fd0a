"""Preprocessing: cropping to what is not black, normalization by the plan, and where each class lies.

Source: `DefaultPreprocessor` of nnU-Net 2.8.1. Images have the plan's spacing (PNG files always do), so nothing is
resampled here.
"""

from typing import NamedTuple

import numpy as np

from bcss_jax.errors import DataError
from bcss_jax.nnunet import labels as label_rules

Box = tuple[tuple[int, int], tuple[int, int]]

OUTSIDE = -1  # label of black pixels that were background; 0 in training
_EPSILON = 1e-8
_SEED = 1234
_MIN_LOCATIONS, _MIN_SHARE = 10_000, 0.01  # of each class that are kept


class PreprocessedCase(NamedTuple):
    """A preprocessed image.

    Attributes:
      data: float32 [H, W, C].
      labels: int8 (int16 where labels exceed 127) [H, W]; `OUTSIDE` where the image is black.
      properties: `shape_before_cropping` (height and width), `bbox_used_for_cropping` ((y0, y1), (x0, x1)), and with
        a mask `class_locations`: int64 [n, 2] places (y, x) of each class, and of all that is annotated where there is
        a label `ignore`, under the tuple of all other labels and `OUTSIDE`.
    """

    data: np.ndarray
    labels: np.ndarray
    properties: dict


def preprocess(image: np.ndarray, mask: np.ndarray | None, plan: dict, dataset: dict) -> PreprocessedCase:
    """An image as the network sees it.

    Args:
      image: [H, W, C], uint8 if it is RGB.
      mask: integers [H, W], nnU-Net's labels; None for an image to predict.
      plan: of `bcss_jax.nnunet.plan`, with the configuration `2d`.
      dataset: nnU-Net's dataset.json, for its labels.

    Raises:
      DataError: the image does not fit the plan, or the mask the image or the labels.
    """
    configuration = plan["configurations"]["2d"]
    schemes, masked = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    if image.ndim != 3 or image.shape[2] != len(schemes):
        raise DataError(
            f"the image is {list(image.shape)}; the plan is for [H, W, {len(schemes)}], so images of {len(schemes)} "
            "channels; convert it, or plan for such images"
        )
    if list(configuration["spacing"]) != [1, 1] or list(plan["transpose_forward"]) != [0, 1, 2]:
        raise DataError(
            f"the plan has the spacing {configuration['spacing']} and the axes {plan['transpose_forward']}; only "
            "[1, 1] and [0, 1, 2], those of images without a spacing, are preprocessed; plan for PNG images"
        )
    if mask is not None:
        _check_mask(image, mask, dataset)
    cropped, labels, box = crop_to_nonzero(image, mask)
    properties = {"shape_before_cropping": tuple(image.shape[:2]), "bbox_used_for_cropping": box}
    if mask is not None:
        properties["class_locations"] = class_locations(labels, dataset)
    # Channels first and contiguous: sums of float32 depend on the order of the pixels.
    channels = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    channels = channels[:, slice(*box[0]), slice(*box[1])]
    intensities = plan["foreground_intensity_properties_per_channel"]
    for index, (scheme, use_mask) in enumerate(zip(schemes, masked, strict=True)):
        if scheme not in NORMALIZATIONS:
            raise DataError(f"the plan has the normalization {scheme!r}; known are {', '.join(NORMALIZATIONS)}")
        NORMALIZATIONS[scheme](channels[index], labels >= 0 if use_mask else None, intensities.get(str(index)))
    data = np.ascontiguousarray(channels.transpose(1, 2, 0))
    return PreprocessedCase(data, labels.astype(np.int16 if labels.max() > 127 else np.int8), properties)


def crop_to_nonzero(image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, Box]:
    """Takes a black border away.

    nnU-Net fills holes before it looks for black pixels, but in its arrays of one layer each pixel lies at the outside
    above and below, so that nothing counts as a hole. Black pixels inside an image are `OUTSIDE`, too.

    Args:
      image: [H, W, C].
      mask: integers [H, W], or None.

    Returns:
      The cropped image (a view), int16 labels (0 without a mask) with `OUTSIDE` where all channels of a background
      pixel are 0, and the box ((y0, y1), (x0, x1)), ends not included; the whole of an image that is all black.
    """
    nonzero = np.any(image != 0, axis=2)
    box = tuple(_extent(nonzero.any(axis=1 - axis)) for axis in (0, 1))
    rows, columns = (slice(*extent) for extent in box)
    labels = np.zeros(nonzero.shape, np.int16) if mask is None else mask.astype(np.int16)
    labels = labels[rows, columns]
    labels[(labels == 0) & ~nonzero[rows, columns]] = OUTSIDE
    return image[rows, columns], labels, box


def class_locations(labels: np.ndarray, dataset: dict) -> dict[int | tuple[int, ...], np.ndarray]:
    """Places to center patches on: at least 10,000 and 1 % of each class's pixels, fewer only where it has fewer.

    Args:
      labels: [H, W], preprocessed.
      dataset: nnU-Net's dataset.json.

    Returns:
      See `PreprocessedCase`; the pixels that nnU-Net draws, in its order. Classes that do not occur have an empty array.
    """
    ignore, outputs = label_rules.ignore_label(dataset), label_rules.num_outputs(dataset)
    wanted = [(label,) for label in range(1, outputs)]
    if ignore is not None:
        wanted.append((OUTSIDE, *range(outputs)))
    random, flat, locations = np.random.RandomState(_SEED), labels.ravel(), {}
    for group in wanted:
        places = np.concatenate([np.flatnonzero(flat == label) for label in group])
        if len(places):
            number = max(min(_MIN_LOCATIONS, len(places)), int(np.ceil(len(places) * _MIN_SHARE)))
            places = places[random.choice(len(places), number, replace=False)]
        key = group if len(group) > 1 else group[0]
        locations[key] = np.stack(np.unravel_index(places, labels.shape), axis=1)
    return locations


def _check_mask(image, mask, dataset):
    if mask.shape != image.shape[:2] or not np.issubdtype(mask.dtype, np.integer):
        raise DataError(
            f"the mask is {mask.dtype} {list(mask.shape)} and the image {list(image.shape)}; "
            "expected integers of the same height and width"
        )
    highest = max(dataset["labels"].values())
    if mask.size and (mask.min() < 0 or mask.max() > highest):
        wrong = mask.max() if mask.max() > highest else mask.min()
        raise DataError(
            f"the mask has the label {wrong}; the data set's are 0 to {highest} ({', '.join(dataset['labels'])})"
        )


def _extent(occupied):
    """First and last True, the latter's successor; all if there is none."""
    places = np.flatnonzero(occupied)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, len(occupied))


def _z_score(channel, inside, intensities):
    """Mean 0 and standard deviation 1; with `inside` over and at those pixels only, the others (black) stay 0."""
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
            "convert it to 8 bits, or plan with other channel names"
        )
    channel /= 255


def _rescale_to_0_1(channel, inside, intensities):
    del inside, intensities
    channel -= channel.min()
    channel /= max(channel.max(), _EPSILON)


def _ct(channel, inside, intensities):
    """Clipped and scaled with the statistics of the whole data set's foreground."""
    del inside
    np.clip(channel, intensities["percentile_00_5"], intensities["percentile_99_5"], out=channel)
    channel -= intensities["mean"]
    channel /= max(intensities["std"], _EPSILON)


def _nothing(channel, inside, intensities):
    del channel, inside, intensities


# Each changes one channel, float32 [H, W], in place: (channel, pixels that count or None, foreground statistics).
NORMALIZATIONS = {
    "ZScoreNormalization": _z_score,
    "CTNormalization": _ct,
    "NoNormalization": _nothing,
    "RescaleTo01Normalization": _rescale_to_0_1,
    "RGBTo01Normalization": _rgb_to_0_1,
}
