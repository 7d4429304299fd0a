"""The settings of augmentation: probability and strength of each change of a training image, with their ranges."""

import dataclasses
import math

from bcss_jax.common.ranges import Range
from bcss_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Probability and strength of each change. The defaults are the full recipe.

    The changes are drawn independently of each other, in the order of the fields.

    Attributes:
      rotate90: probability of a rotation by 0, 90, 180 or 270 degrees, all equally likely. Needs square images.
      horizontal_flip: probability of a left-right flip.
      vertical_flip: probability of an upside-down flip.
      rotate: probability of a rotation about the center by an angle in [-rotate_degrees, rotate_degrees].
      rotate_degrees: largest angle, in degrees.
      elastic: probability of an elastic deformation.
      elastic_pixels: approximate standard deviation of the displacement along each axis, in pixels.
      elastic_smoothness: standard deviation of the Gaussian that smooths the displacement, in pixels (>= 1).
      color_jitter: probability of a change of colors: the next four changes in random order.
      brightness: factor drawn from [1 - brightness, 1 + brightness].
      contrast: like `brightness`, for contrast.
      saturation: like `brightness`, for saturation.
      hue: shift drawn from [-hue, hue], as a fraction of the color circle (at most 0.5).
      jitter_normalized: change the colors of the image as normalized for the network, as the report's own code does.
        These values are no colors, and are cut off at 0 and 1. On the host only.
      blur: probability of a Gaussian blur.
      blur_sigma: largest standard deviation of the blur, in pixels; the smallest is 0.5.
      stain: probability of a change of stain, before the colors: hematoxylin, eosin and what neither explains get
        another strength each (Tellez et al., "Quantifying the effects of data augmentation and stain color
        normalization", 2019, without their offsets, which would color the glass). Not part of the published recipe.
      stain_strength: factor on each stain's density drawn from [1 - stain_strength, 1 + stain_strength].

    Raises:
      ConfigError: a probability is outside [0, 1], or a strength is out of range.
    """

    rotate90: float = 1.0
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5
    rotate: float = 0.25
    rotate_degrees: float = 45.0
    elastic: float = 0.25
    elastic_pixels: float = 2.0
    elastic_smoothness: float = 8.0
    color_jitter: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    jitter_normalized: bool = False
    blur: float = 0.1
    blur_sigma: float = 1.5
    stain: float = 0.0
    stain_strength: float = 0.3

    def __post_init__(self):
        """Checks the ranges."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value not in RANGES[field.name]:
                raise ConfigError(f"augmentation: {field.name}={value}: must be {RANGES[field.name]}")

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Raises ConfigError if rotations by 90 degrees are on, and images of (height, width) are not square."""
        if self.rotate90 and shape[0] != shape[1]:
            raise ConfigError(
                f"augmentation: rotate90 needs square images, these have {shape[0]}x{shape[1]} pixels; set rotate90 to"
                " 0"
            )

    def displacement_factor(self) -> float:
        """Returns the factor on smoothed noise with which the elastic deformation has its strength in pixels.

        The noise has a standard deviation of about 1 / 4.5 (it is normal, and divided by its largest value). Smoothing
        divides the deviation by 2 sqrt(pi) times that of the Gaussian.
        """
        return self.elastic_pixels * 4.5 * 2 * math.sqrt(math.pi) * self.elastic_smoothness


PROBABILITIES = ("rotate90", "horizontal_flip", "vertical_flip", "rotate", "elastic", "color_jitter", "blur", "stain")

# The time of a blur and of a deformation grows with their standard deviations.
RANGES = dict.fromkeys((*PROBABILITIES, "brightness", "contrast", "saturation", "stain_strength"), Range(0, 1)) | {
    "rotate_degrees": Range(0, 180),
    "elastic_pixels": Range(0, 1000),
    "elastic_smoothness": Range(1, 100),
    "hue": Range(0, 0.5),
    "jitter_normalized": (False, True),
    "blur_sigma": Range(0.5, 100),
}

FULL = Augmentation()
FLIPS_AND_QUARTER_TURNS = Augmentation(rotate=0.0, elastic=0.0, color_jitter=0.0, blur=0.0)
NONE = Augmentation(**dict.fromkeys(PROBABILITIES, 0.0))
