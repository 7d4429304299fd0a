"""Where a slide has tissue: by the color of a thumbnail, or by a mask or regions that are given.

Glass is bright and without color. A pixel's score is the optical density of its darkest channel, in which haematoxylin and
eosin both are strong and glass is not; Otsu's threshold (scikit-image) parts the two. On slides that are all tissue, or
all glass, it would cut through the one that there is, so it is kept between `LEAST` and `MOST`: fainter is glass
everywhere, stronger is tissue everywhere. Densities are those that the slide would have if its glass were as bright as it
usually is, so that a dim or tinted scan is no tissue; where no glass is found, those against white. Green and blue ink is
told by red being darker than green, which no H&E stain makes it; red ink is taken for tissue, and black ink too unless it
is as black as padding.
"""

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

LEAST, MOST = 0.06, 0.12  # optical density
USUAL_GLASS = 240  # gray level of glass, which is not corrected where it is as bright as this or brighter
DIMMEST_GLASS = 150  # gray level of its darkest channel
GLASS_CHROMA = 48  # gray levels between the channels of glass, at most: tinted by a lamp or a wrong white balance
STAINED = 8  # gray levels by which green is the darkest channel of what is stained
GLASS_RANGE = 25  # gray levels between the brightest glass and the darkest
GLASS_SHARE = 0.05  # of the slide, at least, for its color to be known
PADDING = 8  # gray level of black around what was scanned, at most: JPEG makes it no pure black
RIM = 2  # pixels around padding that are mixed with it
INK = 8  # gray levels by which red is darker than green
ONE_COLOR = 0.5  # share of the tissue that has one density up to `SAME_DENSITY`, from which on it may be glass
SAME_DENSITY = 0.03
SMOOTHING_UM = 4.0  # standard deviation of the blur before the threshold: gaps between fibres are tissue
SMALLEST_UM2 = 20_000.0  # tissue: smaller spots are dust
LARGEST_HOLE_UM2 = 4_000.0  # in tissue: smaller ones, as of fat cells and vessels, are taken as tissue


def tissue_by_color(
    thumbnail: np.ndarray, mpp: tuple[float, float], unreadable: np.ndarray | None = None
) -> np.ndarray:
    """Finds tissue.

    Args:
      thumbnail: uint8 RGB [h, w, 3].
      mpp: um per pixel of the thumbnail, along x and y.
      unreadable: bool [h, w], pixels that the slide does not give: taken as tissue, so that they are asked for and counted.

    Returns:
      bool [h, w].
    """
    scanned = ~_padding(thumbnail)
    if unreadable is not None:
        scanned &= ~unreadable
    density = _density(thumbnail, glass_of(thumbnail, scanned))
    density[~scanned] = 0
    density = ndimage.gaussian_filter(density, [SMOOTHING_UM / mpp[1], SMOOTHING_UM / mpp[0]], mode="nearest")
    seen = density[scanned]
    flat = not seen.size or seen.min() == seen.max()
    threshold = LEAST if flat else float(np.clip(threshold_otsu(seen), LEAST, MOST))
    tissue = (density > threshold) & scanned
    if unreadable is not None:
        tissue |= unreadable
    area = mpp[0] * mpp[1]
    tissue = ~_without_small(~_without_small(tissue, SMALLEST_UM2 / area), LARGEST_HOLE_UM2 / area)
    return tissue


def glass_of(thumbnail: np.ndarray, scanned: np.ndarray) -> np.ndarray | None:
    """The color of the slide's glass; None if there is too little to tell.

    The brightest of what has no stain; pure white is left out, with which readers fill up what was not scanned.

    Args:
      thumbnail: uint8 RGB [h, w, 3].
      scanned: bool [h, w], pixels to look at.

    Returns:
      float64 [3].
    """
    pixels = thumbnail[scanned & (thumbnail.min(axis=2) < 255)].astype(np.int16)
    red, green, blue = pixels.T
    darkest = pixels.min(axis=1)
    unstained = (green >= np.minimum(red, blue) - STAINED) & (green <= red + INK)
    unstained &= (darkest >= DIMMEST_GLASS) & (pixels.max(axis=1) - darkest <= GLASS_CHROMA)
    if not unstained.any():
        return None
    glass = unstained & (darkest >= np.percentile(darkest[unstained], 99) - GLASS_RANGE)
    return np.median(pixels[glass], axis=0) if glass.mean() >= GLASS_SHARE else None


def looks_like_glass(thumbnail: np.ndarray, tissue: np.ndarray) -> bool:
    """Whether most of what was found as tissue has one color, as glass has and tissue has not.

    Args:
      thumbnail: uint8 RGB [h, w, 3].
      tissue: bool [h, w], as `tissue_by_color` found it.
    """
    density = _density(thumbnail, None)[tissue]
    step = SAME_DENSITY / 3
    counts = np.bincount((density / step).astype(np.int64), minlength=3)
    together = counts[:-2] + counts[1:-1] + counts[2:]
    return bool(density.size) and together.max() > ONE_COLOR * density.size


def _density(thumbnail, glass):
    """Optical density of the channel that is darkest against the glass, float32 [h, w]; 0 where there is ink."""
    white = np.full(3, 255) if glass is None else np.minimum(255, glass * 255 / USUAL_GLASS)
    relative = (thumbnail.astype(np.float32) + 1) / (white + 1).astype(np.float32)
    density = np.maximum(-np.log10(relative.min(axis=2)), 0)
    density[relative[..., 0] + INK / 256 < relative[..., 1]] = 0
    return density


def _padding(thumbnail):
    """Black around what was scanned, and what is mixed with it: bool [h, w]."""
    black = thumbnail.max(axis=2) <= PADDING
    return ndimage.binary_dilation(black, iterations=RIM) if black.any() else black


def _without_small(mask, pixels):
    """Without connected parts that are smaller and do not touch the edge, where they may go on."""
    parts, count = ndimage.label(mask)
    keep = np.bincount(parts.ravel(), minlength=count + 1) >= pixels
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        keep[edge] = True
    keep[0] = False
    return keep[parts]
