"""Judges every um per pixel (mpp) that enters: from slides and images, lists, settings, names and trained models.

A value is never guessed. H&E scans have about 0.25 (40x) or 0.5 (20x) um per pixel. Values far from these are nearly
always nanometers, a magnification, the resolution of a screen (72 dpi) or an empty field.
"""

import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bcss_jax.errors import ConfigError, DataError, UserError, printable

log = logging.getLogger(__name__)

PLAUSIBLE_MPP = (0.1, 2.0)  # values outside this range are used with a warning
COARSEST_MPP = 10.0  # every scan of tissue is finer
FINEST_MPP = 0.01  # no light microscope is finer
TOLERANCE = 0.02  # relative difference between two values for the same pixels that causes no warning
MOST_OBLONG = 2.0  # ratio of the sides of a pixel above which one of them is wrong
POWER_TIMES_MPP = (5.5, 18.0)  # objective power times um per pixel; about 10 for most scanners
_MAGNIFICATIONS = (10, 20, 40, 60, 63, 80, 100)
_UM_PER_UNIT = {
    "nm": 1e-3, "nanometer": 1e-3, "nanometers": 1e-3,
    "µm": 1.0, "μm": 1.0, "um": 1.0, "\\u00b5m": 1.0, "âµm": 1.0, "î¼m": 1.0,  # both letters mu; as ImageJ escapes it
    "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometers": 1.0, "micrometre": 1.0, "micrometres": 1.0,
    "mm": 1e3, "millimeter": 1e3, "millimeters": 1e3, "millimetre": 1e3, "millimetres": 1e3,
    "cm": 1e4, "centimeter": 1e4, "centimeters": 1e4, "centimetre": 1e4, "centimetres": 1e4,
    "m": 1e6, "meter": 1e6, "meters": 1e6, "metre": 1e6, "metres": 1e6,
    "in": 25_400.0, "inch": 25_400.0, "inches": 25_400.0, "å": 1e-4, "thou": 25.4,
}  # fmt: skip
_OTHER_CASE = ("Mm", "M", "MM", "NM")  # megameters and others, which differ from a unit above only by case


class StatedMpp(NamedTuple):
    """What one source in a file says about the size of the file's pixels.

    Attributes:
      mpp: um per pixel along x and y, unchecked; None if the source gives no length.
      source: for messages, for example "OME-XML".
      remark: what the user should know if the value is used, or why there is none; "" for nothing.
    """

    mpp: tuple[float, float] | None
    source: str
    remark: str = ""


def first_stated(stated: Sequence[StatedMpp]) -> tuple[float, float] | None:
    """Returns the um per pixel along x and y of the first source that gives any, unchecked, or None."""
    return next((each.mpp for each in stated if each.mpp is not None), None)


def with_axes_exchanged(stated: Sequence[StatedMpp]) -> tuple[StatedMpp, ...]:
    """Returns the same statements for pixels whose x and y are exchanged."""
    return tuple(each._replace(mpp=each.mpp and each.mpp[::-1]) for each in stated)


def um_per_unit(unit: str) -> float | None:
    """Returns the um in a unit of length as files spell it, for example "µm" or "inch"; None if it is no length."""
    unit = unit.strip()
    return None if unit in _OTHER_CASE else _UM_PER_UNIT.get(unit.lower())


def mpp_from_density(x: float, y: float, unit: str) -> tuple[float, float] | None:
    """Converts an image file's resolution fields (TIFF tags, PNG's pHYs, JFIF's density) to um per pixel.

    Args:
      x: pixels per unit along x.
      y: pixels per unit along y.
      unit: as `um_per_unit` takes it; any other value is not a length.

    Returns:
      um per pixel along x and y. None if the fields do not describe a scan: they have no unit, are zero, or hold the 72
      or 96 dpi that programs write for screens (any value from `COARSEST_MPP` on).
    """
    um = um_per_unit(unit)
    if um is None or not all(math.isfinite(density) and density > 0 for density in (x, y)):
        return None
    mpp = (um / x, um / y)
    return None if max(mpp) >= COARSEST_MPP else mpp


def check_mpp(
    value: Any, where: str, *, error_type: type[UserError] = ConfigError, remedy: str = "correct it"
) -> float:
    """Returns um per pixel that a setting, a list, a name or a trained model states.

    Args:
      value: the value.
      where: for messages: the setting with its value ("--mpp=40"), or the file and the place in it.
      error_type: of the error.
      remedy: what the user can do about it.

    Raises:
      ConfigError: or `error_type`: no scan has such pixels, or `value` is not a number.
    """
    impossible = why_impossible(value)
    if impossible:
        raise error_type(f"{where}: expected um per pixel such as 0.25, found {impossible}; {remedy}")
    return float(value)


def why_impossible(value: Any) -> str | None:
    """Returns a description of a value that is no number or that no scan can have; None if a scan can have it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return f"{ascii(value)[:80]}"
    try:
        return _impossible((float(value),))
    except OverflowError:  # a whole number of hundreds of digits
        return f"{ascii(value)[:20]}..."


def warn_if_unusual(mpp: tuple[float, ...], where: str, remedy: str, warn: Callable[[str], None] = log.warning) -> None:
    """Calls `warn` with one line unless scans usually have pixels of this size."""
    low, high = PLAUSIBLE_MPP
    if not all(low <= value <= high for value in mpp):
        warn(f"{where}: {_text(mpp)} um per pixel is unusual for a scan ({low:g} to {high:g}); {remedy}")


def differ(a: float, b: float) -> bool:
    """Returns whether two values for the same pixels contradict each other."""
    return not abs(a / b - 1) <= TOLERANCE if b else True


def resolved_mpp(
    slide_path: str | os.PathLike,
    stated: Sequence[StatedMpp],
    given: float | None,
    warn: Callable[[str], None] = log.warning,
) -> tuple[float, float]:
    """Returns the um per pixel to segment a slide with.

    Args:
      slide_path: the slide's file, for messages.
      stated: what the slide says, the source to believe first.
      given: the value of `--mpp` or of a list, or None. It takes precedence over the slide.
      warn: called with one line about each value that is odd but usable.

    Returns:
      um per pixel of level 0, along x and y.

    Raises:
      DataError: the slide states no value or an impossible one, and `given` is None.
      ConfigError: `given` is impossible.
    """
    path = printable(slide_path)
    found = [each for each in stated if each.mpp is not None]
    if given is not None:
        check_mpp(given, f"--mpp={given:g}")
        mpp = (float(given), float(given))
        for each in found:
            if each.mpp is not None and _contradict(each.mpp, mpp):
                warn(
                    f"{path}: expected {_text(each.mpp)} um per pixel by {each.source}, found {given:g} given (--mpp, "
                    "or the list); using what is given"
                )
    else:
        mpp = _first_possible(path, stated, found, warn)
    warn_if_unusual(mpp, path, "check it, or give --mpp", warn)
    return mpp


def _first_possible(path, stated, found, warn) -> tuple[float, float]:
    """Returns the value of the first source, after checking it against the others."""
    if not found:
        reasons = "".join(f" ({each.source}: {each.remark})" for each in stated if each.remark)
        raise DataError(
            f"{path}: expected a slide that stores the size of its pixels, found no um per pixel{reasons}; "
            "give it with --mpp (0.25 for most 40x scans in full size, 0.5 for 20x)"
        )
    used, *others = found
    mpp = used.mpp
    others = [f"{_text(each.mpp)} by {each.source}" for each in others if _contradict(each.mpp, mpp)]
    impossible = _impossible(mpp)
    if impossible:
        also = f" (and {', '.join(others)})" if others else ""
        raise DataError(
            f"{path}: expected um per pixel such as 0.25, found {impossible} by {used.source} in the slide{also}; "
            + (
                "pixels of this size are those of an overview or a thumbnail: give the file of the scan itself"
                if COARSEST_MPP <= min(mpp) < math.inf and not impossible.endswith(")")
                else "give the right one with --mpp"
            )
        )
    if max(mpp) > MOST_OBLONG * min(mpp):
        raise DataError(
            f"{path}: expected pixels that are nearly square, found {_text(mpp)} um along x and y by {used.source}; "
            "give the right one with --mpp"
        )
    if others:
        warn(
            f"{path}: the file contradicts itself: {_text(mpp)} um per pixel by {used.source}, {', '.join(others)}; "
            f"using {used.source}; if that is wrong, give --mpp"
        )
    if used.remark:
        warn(f"{path}: {used.source}: {used.remark}; if that is wrong, give --mpp")
    if differ(mpp[0], mpp[1]):
        warn(f"{path}: pixels are not square, {_text(mpp)} um along x and y; using both as they are")
    return mpp


def warn_if_other_size(
    path: str | os.PathLike,
    stated: Sequence[StatedMpp],
    expected: Sequence[tuple[float, float]],
    warn: Callable[[str], None] = log.warning,
) -> None:
    """Calls `warn` with one line if a mask states another size of its pixels than its place on the slide gives it.

    Args:
      path: the mask's file.
      stated: what it says.
      expected: um per pixel along x and y, each of which it may have.
      warn: called with the line.
    """
    found = next((each for each in stated if each.mpp is not None), None)
    if found is not None and found.mpp is not None and all(_contradict(found.mpp, each) for each in expected):
        warn(
            f"{printable(path)}: {_text(found.mpp)} um per pixel by {found.source}, but laid over the slide its pixels "
            f"have {' or '.join(dict.fromkeys(_text(each) for each in expected))}; check that it is the mask of this "
            "slide"
        )


def remark_on_power(mpp: tuple[float, float] | None, power: float | None) -> str:
    """Returns a remark if the power of the objective does not fit the size of the pixels, or else ""."""
    low, high = POWER_TIMES_MPP
    if mpp is None or power is None or not power > 0 or low <= power * mpp[0] <= high:
        return ""
    return f"{mpp[0]:.4g} um per pixel and an objective of {power:g}x (usually {10 / power:.4g} um) do not fit together"


def _contradict(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return any(differ(one, other) for one, other in zip(a, b, strict=True))


def _impossible(values: Sequence[float]) -> str | None:
    """Returns a description of the first value that no scan can have, or None if all are possible."""
    for value in values:
        if not math.isfinite(value) or value <= 0:
            return f"{value:g}"
        if value >= COARSEST_MPP:
            nanometers = value / 1000
            if PLAUSIBLE_MPP[0] < nanometers <= PLAUSIBLE_MPP[1]:
                return f"{value:g} (nanometers? that would be {nanometers:g} um)"
            return f"{value:g}" + (
                f" (a magnification? {value:g}x scans have about {10 / value:.3g})" if value in _MAGNIFICATIONS else ""
            )
        if value < FINEST_MPP:
            micrometers = value * 1000
            plausible = PLAUSIBLE_MPP[0] <= micrometers <= PLAUSIBLE_MPP[1]
            return f"{value:g}" + (f" (millimeters? that would be {micrometers:g} um)" if plausible else "")
    return None


def _text(mpp: Sequence[float]) -> str:
    return f"{mpp[0]:.4g}" if len(set(mpp)) == 1 else " x ".join(f"{value:.4g}" for value in mpp)
