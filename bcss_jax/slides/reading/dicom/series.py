"""Finds the files that make up a DICOM slide: each level of its pyramid is an instance in a file of its own.

The instances of a slide are those of one series. pydicom reads their headers; it comes with the optional reader
(`pip install "bcss_jax[dicom]"`).
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.errors import DataError, first_line, printable

MAGIC, MAGIC_AT = b"DICM", 128  # the first bytes of a DICOM file after its preamble
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # SOP class VL Whole Slide Microscopy Image Storage
VOLUME = "VOLUME"  # third value of ImageType of the levels of a pyramid; others are labels, overviews and thumbnails
INSTALL = 'pip install "bcss_jax[dicom]"'
TAGS = ["SOPClassUID", "SeriesInstanceUID", "ImageType", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"]


class Instance(NamedTuple):
    """A DICOM file.

    Attributes:
      path: of the file.
      kind: name of its SOP class, for example "CT Image Storage"; "" for a picture of a slide.
      series: its SeriesInstanceUID.
      image_type: third value of ImageType, for example "VOLUME" or "LABEL".
      width: pixels of the whole picture.
      height: pixels of the whole picture.
    """

    path: Path
    kind: str
    series: str
    image_type: str
    width: int
    height: int

    @property
    def is_level(self) -> bool:
        """Whether it is a level of a slide."""
        return not self.kind and self.image_type == VOLUME

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.width * self.height


def is_dicom(path: Path) -> bool:
    """Returns whether a file begins as DICOM files do."""
    try:
        with open(path, "rb") as file:
            return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


def slide_file(path: str | os.PathLike) -> Path:
    """Returns the file to open for a slide: the path itself, or the finest level of a DICOM slide in a folder.

    Args:
      path: a file, or a folder that holds the instances of one DICOM slide.

    Raises:
      DataError: the folder holds no DICOM slide or several, or pydicom is not installed.
    """
    folder = Path(path)
    if not folder.is_dir():
        return folder
    expected = f"{printable(folder)}: expected a slide"
    files = _dicom_files(folder)
    if not files:
        raise DataError(
            f"{expected}, found a folder; name the file itself (for a DICOM slide, one of its .dcm files), or a folder "
            "with the .dcm files of one slide"
        )
    instances = _read_headers(files, f"{expected}, found a folder of DICOM files; name one of them, or ")
    levels = [each for each in instances if each.is_level]
    if not levels:
        raise DataError(f"{expected}, found a folder with {_described(instances)}; give a slide's own files")
    series = sorted({each.series for each in levels})
    if len(series) > 1:
        raise DataError(f"{expected}, found a folder with {len(series)} DICOM slides; name a .dcm file of one of them")
    return max(levels, key=lambda each: (each.pixels, each.path.name)).path


def levels_of_slide(path: Path) -> list[Instance]:
    """Returns the levels of the slide that a DICOM file belongs to, the finest first; they lie in the file's folder.

    Raises:
      DataError: the file is another kind of DICOM, or its folder lacks the levels.
      ImportError: pydicom is not installed.
      Exception: pydicom can raise anything for a damaged file.
    """
    own = _header(path)
    if own.kind:
        raise DataError(
            f"{printable(path)}: expected a slide, found DICOM of another kind ({own.kind}); give a DICOM file of the "
            "kind VL Whole Slide Microscopy Image"
        )
    instances = [own]
    for each in _dicom_files(path.parent):
        if each.name != path.name:
            try:
                instances.append(_header(each))
            except Exception:  # a damaged file of another slide is of no concern; a level of this one is missed below
                continue
    instances = [each for each in instances if each.series == own.series]
    levels = [each for each in instances if each.is_level]
    if not levels:
        raise DataError(
            f"{printable(path)}: expected a slide, found only {_described(instances)} of its series; put the files of "
            "its levels (ImageType VOLUME) into the same folder"
        )
    return sorted(levels, key=lambda each: -each.pixels)


def _dicom_files(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_file() and is_dicom(path)]
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be read ({error.strerror}); check permissions") from error


def _read_headers(files: list[Path], where: str) -> list[Instance]:
    instances = []
    for path in files:
        try:
            instances.append(_header(path))
        except ImportError as error:
            raise DataError(f"{where}install the reader for folders: {INSTALL}") from error
        except Exception as error:  # pydicom can raise anything
            raise DataError(
                f"{printable(path)}: expected a DICOM file, found a damaged one ({first_line(error)}); fetch it again"
            ) from error
    return instances


def _header(path: Path) -> Instance:
    import pydicom  # imported here: it comes with an optional reader

    check_regular_file(path, "a DICOM file", "check the path")
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
    kind = header.get("SOPClassUID")
    name = "" if kind == WHOLE_SLIDE else str(getattr(kind, "name", None) or "without a kind")
    image_type = header.get("ImageType") or ()
    width, height = (int(header.get(tag) or 0) for tag in TAGS[3:])
    third = str(image_type[2]) if not isinstance(image_type, str) and len(image_type) > 2 else ""
    return Instance(path, name, str(header.get("SeriesInstanceUID", "")), third, width, height)


def _described(instances: Iterable[Instance]) -> str:
    names = {f"DICOM of the kind {each.kind}" if each.kind else each.image_type or "a picture" for each in instances}
    return " and ".join(sorted(names)[:3])
