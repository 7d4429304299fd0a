"""Collects what image files say about the size of their pixels: TIFF tags, OME-XML, ImageJ, Aperio, PNG, JPEG, EXIF.

Nothing is judged here; `check` does that.
"""

import os
import re
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from bcss_jax.data.resolution.check import (
    StatedMpp,
    mpp_from_density,
    remark_on_power,
    um_per_unit,
    with_axes_exchanged,
)
from bcss_jax.errors import UserError

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TAGS = "the TIFF's resolution tags"
_UNITS = {1: "none", 2: "inch", 3: "centimeter"}  # TIFF's ResolutionUnit
_ONE_DIRECTION = "gives one direction only; pixels are taken to be square"
_JFIF_UNITS = {1: "inch", 2: "centimeter"}
_ORIENTATION = 274  # tag; values from 5 on exchange width and height
_MAX_XML = 1 << 26  # characters of OME-XML that are parsed


def stated_in_file(path: str | os.PathLike) -> tuple[StatedMpp, ...]:
    """Returns what the first image of a PNG, JPEG or TIFF says; () if the file cannot be read or has another format."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
        if magic in TIFF_MAGIC:
            return stated_in_tiff_file(path) or ()
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            return stated_in_picture(image)
    except UserError:  # includes a request to stop
        raise
    except Exception:  # whoever reads the pixels reports what is wrong with the file
        return ()


def stated_in_tiff_file(
    path: str | os.PathLike, width: int | None = None, height: int | None = None
) -> tuple[StatedMpp, ...] | None:
    """Returns what `stated_in_tiff` finds, by default for the first image; None if tifffile cannot read the file."""
    import tifffile  # imported here: PNG and JPEG files do not need it

    try:
        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[0]
            return stated_in_tiff(tiff, width or page.imagewidth, height or page.imagelength)
    except UserError:  # includes a request to stop
        raise
    except Exception:  # tifffile can raise anything for a damaged file
        return None


def stated_in_tiff(tiff: Any, width: int, height: int, page: Any = None) -> tuple[StatedMpp, ...]:
    """Returns what a TIFF says about an image of the given size, the most specific source first.

    Args:
      tiff: an open `tifffile.TiffFile`.
      width: of the image in pixels.
      height: of the image in pixels. Values of images of other sizes are not used.
      page: of the image; None: the first one of that size.
    """
    size = (width, height)
    page = page or next((each for each in tiff.pages if (each.imagewidth, each.imagelength) == size), None)
    if page is None:
        return ()
    density = [_number(page.tags[name].value) if name in page.tags else None for name in ("XResolution", "YResolution")]
    description = _text(page.description)
    stated = [*_aperio(description), *_ome_xml(_text(tiff.pages[0].description), width, height)]
    if tiff.is_imagej or description.startswith("ImageJ="):
        stated += _imagej(description or _text(tiff.pages[0].description), density)
    code = page.tags["ResolutionUnit"].value if "ResolutionUnit" in page.tags else 2
    return (*stated, *_from_density(density, _UNITS.get(int(code), f"number {int(code)}"), TAGS))


def stated_in_picture(image: Image.Image) -> tuple[StatedMpp, ...]:
    """Returns what a PNG or JPEG says about its pixels as they are shown, turned by EXIF's orientation."""
    stated = []
    if image.format == "PNG" and "dpi" in image.info:  # pHYs without a unit gives `aspect` instead
        stated += _from_density(image.info["dpi"], "inch", "PNG's pHYs")
    if image.format == "JPEG" and "jfif_density" in image.info:
        stated += _from_density(image.info["jfif_density"], _JFIF_UNITS.get(image.info["jfif_unit"], "none"), "JFIF")
    exif = image.getexif()
    if 282 in exif or 283 in exif:
        unit = _UNITS.get(exif.get(296, 2), "unknown")
        stated += _from_density([_number(exif.get(tag)) for tag in (282, 283)], unit, "EXIF")
    return with_axes_exchanged(stated) if exif.get(_ORIENTATION) in (5, 6, 7, 8) else tuple(stated)


def _from_density(density: Any, unit: str, source: str) -> list[StatedMpp]:
    """Returns the statement of two fields of resolution, pixels per unit; [] if there are none."""
    both = _both_directions(*density)
    if both is None:
        return []
    x, y, remark = both
    mpp = mpp_from_density(x, y, unit)
    if mpp is not None:
        return [StatedMpp(mpp, source, remark)]
    if um_per_unit(unit) is None:
        remark = f"{x:g} x {y:g} pixels per unit, without a unit of length" if unit == "none" else f"the unit {unit}"
    else:
        remark = f"{x:g} x {y:g} pixels per {unit}, which is the resolution of a screen or of none"
    return [StatedMpp(None, source, remark)]


def _aperio(description: str) -> list[StatedMpp]:
    if not description.startswith("Aperio"):
        return []
    values = dict.fromkeys(re.findall(r"\bMPP\s*=\s*([^|;\s]+)", description))
    powers = re.findall(r"\bAppMag\s*=\s*([^|;\s]+)", description)
    power = _decimal(powers[0]) if powers else None
    stated = []
    for text in values:
        value = _decimal(text)
        mpp = None if value is None else (value, value)
        remark = remark_on_power(mpp, power) if mpp else f"MPP = {text[:40]}, which is no number"
        stated.append(StatedMpp(mpp, f"Aperio's description (MPP = {text[:40]})", remark))
    return stated


def _imagej(description: str, density: list[float | None]) -> list[StatedMpp]:
    """Returns the statement of ImageJ, whose unit of length stands in the description and applies to the TIFF tags."""
    units = dict(re.findall(r"^(unit|yunit)=(.*?)\s*$", description, re.MULTILINE))
    unit = units.get("unit", "")
    if not unit:
        return []
    source = f"ImageJ (unit={unit[:40]})"
    x, y = (um_per_unit(each) for each in (unit, units.get("yunit", unit)))
    if x is None or y is None:
        return [StatedMpp(None, source, "no known unit of length")]
    if density[0] is None and density[1] is None:
        return [StatedMpp(None, source, "no XResolution")]
    # Converts the densities to pixels per um, so that both axes have one unit.
    return _from_density(
        [None if each is None else each / um for each, um in zip(density, (x, y), strict=True)], "um", source
    )


def _ome_xml(description: str, width: int, height: int) -> list[StatedMpp]:
    """Returns what OME-XML says about images of this size, each value once."""
    if not description.lstrip().startswith("<") or "<OME" not in description and ":OME" not in description:
        return []
    if len(description) > _MAX_XML:
        return [StatedMpp(None, "OME-XML", "it is too long to be read")]
    try:
        root = ElementTree.fromstring(description.strip())
    except (ElementTree.ParseError, ValueError) as error:
        return [StatedMpp(None, "OME-XML", f"it cannot be parsed ({str(error)[:60]})")]
    size = (str(width), str(height))
    pixels = [each for each in root.iter() if _local(each.tag) == "Pixels"]
    images = [each for each in pixels if (each.get("SizeX", "").strip(), each.get("SizeY", "").strip()) == size]
    if not images:
        return [StatedMpp(None, "OME-XML", f"it describes no image of {width}x{height} pixels")]
    return list(dict.fromkeys(_ome_pixels(each) for each in images))


def _ome_pixels(pixels: ElementTree.Element) -> StatedMpp:
    source, mpp = "OME-XML", []
    for axis in "XY":
        text, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        um, value = um_per_unit(unit), None if text is None else _decimal(text)
        if text is None:
            mpp.append(None)
        elif value is None:
            return StatedMpp(None, source, f"PhysicalSize{axis}={text[:40]!r} is no number")
        elif um is None:
            return StatedMpp(None, source, f"PhysicalSize{axis}Unit={unit[:40]!r} is no known unit of length")
        else:
            mpp.append(value * um)
    both = _both_directions(*mpp)
    if both is None:
        return StatedMpp(None, source, "it has no PhysicalSizeX")
    x, y, remark = both
    return StatedMpp((x, y), source, remark)


def _both_directions(x: float | None, y: float | None) -> tuple[float, float, str] | None:
    """Returns both values and a remark if one was missing; None if both are missing."""
    if x is None:
        return None if y is None else (y, y, _ONE_DIRECTION)
    return (x, x, _ONE_DIRECTION) if y is None else (x, y, "")


def _local(tag: Any) -> str:
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _decimal(text: str) -> float | None:
    """Returns the number in a text, with a point or a comma for the decimals; None if there is none."""
    text = text.strip()
    try:
        return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        return None


def _number(value: Any) -> float | None:
    """Returns the value of a tag: a number, or numerator and denominator; NaN if that has no value."""
    if value is None:
        return None
    try:
        if isinstance(value, tuple):
            return float(value[0]) / float(value[1])
        return float(value)
    except (TypeError, ValueError, ZeroDivisionError, IndexError):
        return float("nan")


def _text(description: Any) -> str:
    return description if isinstance(description, str) else ""
