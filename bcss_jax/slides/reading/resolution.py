"""How large a pixel of a slide is: from the slide, or from the user, never guessed.

um per pixel (mpp) of H&E scans lie near 0.25 (40x) or 0.5 (20x). What lies far off is nearly always nanometers, a
screen's resolution (72 dpi) or an empty field.
"""

import logging
import math
import os
from collections.abc import Callable

from bcss_jax.errors import ConfigError, DataError, printable

log = logging.getLogger(__name__)

PLAUSIBLE_MPP = (0.1, 2.0)  # outside: usable, but seldom meant
COARSEST_MPP = 10.0  # above: no scan of tissue
FINEST_MPP = 0.01  # below: no light microscope
TOLERANCE = 0.02  # between x and y, and between the slide and the user
UM_PER_UNIT = {"inch": 25_400.0, "centimeter": 10_000.0}  # the units of a TIFF's resolution


def mpp_from_density(x: float, y: float, unit: str) -> tuple[float, float] | None:
    """um per pixel of an image file's resolution fields (TIFF tags, PNG's pHYs, JFIF's density).

    Args:
      x: pixels per unit.
      y: likewise.
      unit: "inch" or "centimeter"; anything else is no length.

    Returns:
      (along x, along y); None where the fields say nothing of a scan: no unit, zero, or the 72 and 96 dpi which programs
      write for screens (any value above `COARSEST_MPP`).
    """
    um = UM_PER_UNIT.get(unit.lower())
    if um is None or not all(math.isfinite(density) and density > 0 for density in (x, y)):
        return None
    mpp = (um / x, um / y)
    return None if max(mpp) > COARSEST_MPP else mpp


def resolved_mpp(
    slide_path: str | os.PathLike,
    found: tuple[float, float] | None,
    given: float | None,
    warn: Callable[[str], None] = log.warning,
) -> tuple[float, float]:
    """The um per pixel to segment a slide with.

    Args:
      slide_path: for the messages.
      found: what the slide says along x and y, if it says something.
      given: `--mpp`. It wins over the slide.
      warn: takes a line about something odd but usable.

    Returns:
      (along x, along y) of level 0.

    Raises:
      DataError: the slide says nothing, or nonsense, and `given` is None.
      ConfigError: `given` is nonsense.
    """
    path = printable(slide_path)
    if given is not None:
        wrong = _nonsense((given,))
        if wrong:
            raise ConfigError(f"--mpp={given:g}: expected um per pixel of level 0 such as 0.25, found {wrong}")
        if found is not None and any(not abs(value / given - 1) <= TOLERANCE for value in found):
            warn(f"{path}: the slide says {_text(found)} um per pixel, --mpp says {given:g}; going on with --mpp")
        mpp = (float(given), float(given))
    else:
        if found is None:
            raise DataError(
                f"{path}: expected a slide that says how large its pixels are, found no um per pixel; "
                "give it with --mpp (0.25 for most 40x scans, 0.5 for 20x)"
            )
        wrong = _nonsense(found)
        if wrong:
            raise DataError(
                f"{path}: expected um per pixel such as 0.25, found {wrong} in the slide; give the right one with --mpp"
            )
        mpp = (float(found[0]), float(found[1]))
        if abs(mpp[0] / mpp[1] - 1) > TOLERANCE:
            warn(f"{path}: pixels are not square, {_text(mpp)} um along x and y; going on with both as they are")
    low, high = PLAUSIBLE_MPP
    if not all(low <= value <= high for value in mpp):
        warn(f"{path}: {_text(mpp)} um per pixel is unusual for a scan ({low:g} to {high:g}); check it, or give --mpp")
    return mpp


def _nonsense(values: tuple[float, ...]) -> str | None:
    """What is wrong with um per pixel, if no scan can have them."""
    for value in values:
        if not math.isfinite(value) or value <= 0:
            return f"{value:g}"
        if value > COARSEST_MPP:
            nanometers = value / 1000
            plausible = PLAUSIBLE_MPP[0] <= nanometers <= PLAUSIBLE_MPP[1]
            return f"{value:g}" + (f" (nanometers? that would be {nanometers:g} um)" if plausible else "")
        if value < FINEST_MPP:
            micrometers = value * 1000
            plausible = PLAUSIBLE_MPP[0] <= micrometers <= PLAUSIBLE_MPP[1]
            return f"{value:g}" + (f" (millimeters? that would be {micrometers:g} um)" if plausible else "")
    return None


def _text(mpp: tuple[float, float]) -> str:
    return f"{mpp[0]:.4g}" if mpp[0] == mpp[1] else f"{mpp[0]:.4g} x {mpp[1]:.4g}"
