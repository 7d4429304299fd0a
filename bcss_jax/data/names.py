"""Reads the names of tiles and regions: slide, patient, institute, place, and micrometers per pixel.

A region is named `<barcode>_xmin<X>_ymin<Y>_MPP-<mpp>`, a tile `<region>_<a>_<b>_size224`. In the tiles that could be
compared with their region pixel by pixel (150 of one region, which we cut in that layout ourselves) a is x and b is y.
For the published set one third party says (row, column), the other way round. None of the published tiles could be
checked, and only a plot uses x and y.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence

from bcss_jax.data.resolution.check import differ

PATIENT = r"TCGA-(?P<institute>[A-Z0-9]{2})-[A-Z0-9]{4}"
_REGION = rf"(?P<barcode>(?P<patient>{PATIENT})-[A-Z0-9-]+)_xmin\d+_ymin\d+_MPP-\d+(\.\d+)?"
_REGION_NAME = re.compile(_REGION, re.ASCII)
_TILE_NAME = re.compile(_REGION + r"_(?P<x>\d+)_(?P<y>\d+)_size\d+", re.ASCII)
_TCGA_PATIENT = re.compile(PATIENT, re.ASCII | re.IGNORECASE)
_NUMBERED_PATIENT = re.compile(r"(patient|pat|subject|subj|sub)[-_ ]?\d+(?![0-9A-Za-z])", re.ASCII | re.IGNORECASE)
_PLACE = re.compile(r"_\d+_\d+(_size\d+)?$")
NOT_SAID = "not said"
CUT_OFF = "0"  # um per pixel in the names of the published tiles, where all after the point is missing
_SIZE = re.compile(r"_size(\d{1,6})$", re.ASCII)
_MPP = re.compile(r"_MPP-(\d+(?:\.\d+)?)(?=_|$)")

TILE_EXAMPLE = "TCGA-A2-A0D2-DX1_xmin96887_ymin22299_MPP-0_448_672_size224.png"
REGION_EXAMPLE = "TCGA-A2-A0D2-DX1_xmin96887_ymin22299_MPP-0.2500.png"


@dataclasses.dataclass(frozen=True)
class NameFields:
    """What the name of a tile or region says.

    Attributes:
      barcode: of the slide, for example "TCGA-A2-A0D2-DX1".
      patient: for example "TCGA-A2-A0D2".
      institute: for example "A2".
      x: offset of a tile in its region, in pixels from the left; 0 for a region.
      y: offset of a tile in its region, in pixels from the top; 0 for a region.
    """

    barcode: str
    patient: str
    institute: str
    x: int = 0
    y: int = 0


def parse_tile_name(stem: str) -> NameFields | None:
    """Returns what the name of a tile says (without the file's suffix), or None if it is not the name of a tile."""
    match = _TILE_NAME.fullmatch(stem)
    if match is None:
        return None
    return NameFields(match["barcode"], match["patient"], match["institute"], int(match["x"]), int(match["y"]))


def parse_region_name(stem: str) -> NameFields | None:
    """Returns what the name of a region says (without the file's suffix), or None if it is not the name of a region."""
    match = _REGION_NAME.fullmatch(stem)
    return match and NameFields(match["barcode"], match["patient"], match["institute"])


def stated_patient(name: str) -> str | None:
    """Returns the patient that a name starts with, or None if it does not say one.

    A barcode such as TCGA-A2-A0D2 says a patient, and so does a number after a word for one: pat08_visit1, patient-8,
    sub-01, subject_3. Other beginnings may be the number of a slide, a region or a case, so they are not taken for one.
    """
    match = _TCGA_PATIENT.match(name) or _NUMBERED_PATIENT.match(name)
    return match and (match[0].upper() if match.re is _TCGA_PATIENT else match[0].lower())


def stated_institute(patient: str) -> str | None:
    """Returns the institute that a patient's barcode says, or None."""
    match = _TCGA_PATIENT.match(patient)
    return match and match["institute"].upper()


def region_of(key: str) -> str:
    """Returns the key of a tile without its place: the same text for all tiles of a region."""
    return _PLACE.sub("", key)


def size_of(key: str) -> int | None:
    """Returns the side of a tile in pixels as its name says it, None if it does not."""
    match = _SIZE.search(key)
    return match and int(match[1])


def mpp_of(key: str) -> str | None:
    """Returns the micrometers per pixel as the name says them ("0" where they were cut off), None if it does not."""
    match = _MPP.search(key)
    return match and match[1]


def contradicts(written: str, declared: float) -> bool:
    """Returns whether the um per pixel of a name, as `mpp_of` returns it, is another one than the declared value."""
    value = 0.0 if written in (CUT_OFF, NOT_SAID) else float(written)
    return value > 0 and differ(value, declared)


def mpp_of_names(keys: Sequence[str], declared: float) -> tuple[dict[str, int], list[tuple[int, float]]]:
    """Compares the micrometers per pixel in the names of tiles with the declared value.

    Returns:
      Number of tiles for each value as written (`CUT_OFF`, or `NOT_SAID` if there is none); and (index, value) of each
      tile whose value differs from the declared one.
    """
    said = [mpp_of(key) or NOT_SAID for key in keys]
    others = [(index, float(written)) for index, written in enumerate(said) if contradicts(written, declared)]
    return dict(collections.Counter(said)), others
