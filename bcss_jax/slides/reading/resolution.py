"""Finds the size of a slide's pixels, from the slide or from the user; it is never guessed.

H&E scans have about 0.25 (40x) or 0.5 (20x) um per pixel (mpp). Values far from these are nearly always nanometers, the
resolution of a screen (72 dpi) or an empty field.
"""

import logging
import math
import os
from collections.abc import Callable

from bcss_jax.errors import ConfigError, DataError, printable

log = logging.getLogger(__name__)

PLAUSIBLE_MPP = (0.1, 2.0)  # values outside this range are used with a warning
COARSEST_MPP = 10.0  # no scan of tissue is coarser
FINEST_MPP = 0.01  # no light microscope is finer
TOLERANCE = 0.02  # relative difference between x and y, or between the slide and the user, that causes no warning
UM_PER_UNIT = {"inch": 25_400.0, "centimeter": 10_000.0}  # um in the units of a TIFF's resolution


def mpp_from_density(x: float, y: float, unit: str) -> tuple[float, float] | None:
    """Converts an image file's resolution fields (TIFF tags, PNG's pHYs, JFIF's density) to um per pixel.

    Args:
      x: pixels per unit along x.
      y: pixels per unit along y.
      unit: "inch" or "centimeter"; any other value is not a length.

    Returns:
      um per pixel along x and y. None if the fields do not describe a scan: they have no unit, are zero, or hold the 72
      or 96 dpi that programs write for screens (any value above `COARSEST_MPP`).
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
    """Returns the um per pixel to segment a slide with.

    Args:
      slide_path: the slide's file, for messages.
      found: um per pixel along x and y as stored in the slide, or None.
      given: the value of `--mpp`, or None. It takes precedence over the slide.
      warn: called with one line about each value that is odd but usable.

    Returns:
      um per pixel of level 0, along x and y.

    Raises:
      DataError: the slide stores no value or an impossible one, and `given` is None.
      ConfigError: `given` is impossible.
    """
    path = printable(slide_path)
    if given is not None:
        impossible = _impossible((given,))
        if impossible:
            raise ConfigError(f"--mpp={given:g}: expected um per pixel of level 0 such as 0.25, found {impossible}")
        if found is not None and any(not abs(value / given - 1) <= TOLERANCE for value in found):
            warn(f"{path}: the slide says {_text(found)} um per pixel, --mpp says {given:g}; using --mpp")
        mpp = (float(given), float(given))
    else:
        if found is None:
            raise DataError(
                f"{path}: expected a slide that stores the size of its pixels, found no um per pixel; "
                "give it with --mpp (0.25 for most 40x scans, 0.5 for 20x)"
            )
        impossible = _impossible(found)
        if impossible:
            raise DataError(
                f"{path}: expected um per pixel such as 0.25, found {impossible} in the slide; "
                "give the right one with --mpp"
            )
        mpp = (float(found[0]), float(found[1]))
        if abs(mpp[0] / mpp[1] - 1) > TOLERANCE:
            warn(f"{path}: pixels are not square, {_text(mpp)} um along x and y; using both as they are")
    low, high = PLAUSIBLE_MPP
    if not all(low <= value <= high for value in mpp):
        warn(f"{path}: {_text(mpp)} um per pixel is unusual for a scan ({low:g} to {high:g}); check it, or give --mpp")
    return mpp


def _impossible(values: tuple[float, ...]) -> str | None:
    """Returns a description of the first value that no scan can have, or None if all are possible."""
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
