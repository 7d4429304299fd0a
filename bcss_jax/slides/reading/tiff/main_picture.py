"""Decides which picture of a TIFF is the slide, or refuses the file if that cannot be told.

The rule: the largest picture is the slide, apart from masks and from pictures that are named label, macro or thumbnail.
Its smaller copies are its levels. Where pictures of the same size could be focal planes, time points, channels or other
sections, the file is refused; three planes that are the colors of one picture are read as RGB. Other large pictures
that are not segmented are named in a note.
"""

import re
from pathlib import Path
from typing import NamedTuple

import tifffile

from bcss_jax.errors import DataError, printable
from bcss_jax.slides.reading.tiff.inventory import Picture, pictures_of

LARGE = 0.25  # a picture with at least this share of the slide's pixels may be another section
SAME_ASPECT = 0.02  # relative difference of the ratio of width and height up to which pictures may be copies
SMALLEST_STEP = 1.9  # between the sides of neighboring levels
RGB_NAMES = (("red", "green", "blue"), ("r", "g", "b"))
RGB_COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
UNNAMED = re.compile(r"(?:channel|ch|c)?[\s:_-]*[\d:_-]*", re.IGNORECASE)
WHITE = (255, 255, 255)
AXES = {"Z": "focal planes", "T": "time points", "C": "channels"}


class MainPicture(NamedTuple):
    """The picture of a TIFF that is the slide.

    Attributes:
      planes: one picture, or three gray pictures that hold red, green and blue.
      levels: its smaller copies, larger ones first; only those that the file calls so (Aperio's files by
        their tiles), and none of planes.
      notes: what a user should know about the choice: pictures that are left out, an order that is guessed.
    """

    planes: tuple[Picture, ...]
    levels: tuple[Picture, ...]
    notes: tuple[str, ...]

    @property
    def picture(self) -> Picture:
        """The picture, or the first of its planes."""
        return self.planes[0]


def main_picture(path: Path, tiff: tifffile.TiffFile) -> MainPicture:
    """Returns which picture of an open TIFF is the slide.

    Args:
      path: of the file, for messages.
      tiff: opened by `inventory.open_tiff`.

    Raises:
      DataError: the file does not tell which picture is the slide.
      ValueError: the file has no picture.
      Exception: tifffile can raise anything for a damaged file.
    """
    pictures = pictures_of(tiff)
    if not pictures:
        raise ValueError("a TIFF file without an image (cut off?)")
    scans = [picture for picture in pictures if not (picture.mask or picture.associated)]
    if not scans:
        found = ", ".join(f"{picture.name or 'a mask'} ({picture.size})" for picture in pictures[:4])
        raise _undecided(path, f"only {found}", "give the file that holds the scan itself")
    largest = max(scans, key=lambda picture: picture.pixels)
    same = [picture for picture in scans if (picture.width, picture.height) == (largest.width, largest.height)]
    _check_parts(path, tiff, largest)
    planes, notes = _planes(path, tiff, same)
    first = scans[0]
    if first is not largest and first.pixels >= LARGE * largest.pixels and not _same_aspect(first, largest):
        raise _undecided(
            path,
            f"pictures of {first.size} ({first.place}) and {largest.size} ({largest.place}) pixels, of which the "
            "first is not the larger",
            "save the slide alone in a file of its own",
        )
    notes += _others(pictures, largest, planes)
    notes += tuple(
        f"its mask of transparency ({each.place}) is not used" for each in pictures if each.mask and not each.reduced
    )[:1]
    levels = _levels(pictures, largest) if len(planes) == 1 else ()
    return MainPicture(planes, levels, notes)


def _check_parts(path: Path, tiff: tifffile.TiffFile, picture: Picture) -> None:
    """Refuses a file that holds only a part of a slide.

    Raises:
      DataError: other files hold the rest.
    """
    others = picture.ome.other_files if picture.ome is not None else ()
    if others:
        names = ", ".join(printable(name) for name in others[:3])
        raise _undecided(
            path, f"an OME-TIFF with pixels in other files ({names})", "convert the set to one pyramidal OME-TIFF"
        )
    if "BinaryOnly" in (picture.page.description or "") and picture.page.samplesperpixel == 1:
        raise _undecided(
            path,
            "one part of an OME-TIFF of several files, with gray pixels",
            "convert the set to one pyramidal OME-TIFF",
        )


def _planes(path: Path, tiff: tifffile.TiffFile, same: list[Picture]) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """Returns the planes of the slide, given all pictures of its size.

    Raises:
      DataError: there are several, and they are not the colors of one picture.
    """
    ome = same[0].ome
    if len(same) == 1 and (ome is None or not ome.planes):
        return (same[0],), ()
    remedy = "save the plane to segment as 8-bit RGB in a file of its own"
    if ome is not None and all(picture.ome is ome for picture in same):
        axes = [f"{size} {AXES[letter]}" for letter, size in ome.planes.items()]
        if ome.planes != {"C": 3} or len(same) != 3 or not _all_gray(same):
            found = " and ".join(axes) or "its planes"
            raise _undecided(path, f"{found} in {len(same)} pictures of {same[0].size} pixels", remedy)
        order = _order_of_colors(ome.channels, ome.colors)
        if order is None:
            named = ", ".join(name or "?" for name in ome.channels)
            raise _undecided(path, f"3 channels in separate planes that are not red, green and blue ({named})", remedy)
        guessed = ("its three planes have no names; they are taken for red, green and blue",)
        return tuple(same[number] for number in order), () if _named(ome.channels, ome.colors) else guessed
    labels = _imagej_labels(tiff)
    if len(same) == 3 and _all_gray(same) and labels is not None:
        order = _order_of_colors(labels, (None,) * 3)
        if order is not None and _named(labels, (None,) * 3):
            return tuple(same[number] for number in order), ()
    places = ", ".join(picture.place for picture in same[:4]) + (", ..." if len(same) > 4 else "")
    raise _undecided(
        path,
        f"{len(same)} pictures of the same size, {same[0].size} pixels ({places}): focal planes, time points, channels "
        "or sections",
        remedy,
    )


def _all_gray(pictures: list[Picture]) -> bool:
    return all(picture.page.samplesperpixel == 1 for picture in pictures)


def _imagej_labels(tiff: tifffile.TiffFile) -> tuple[str, ...] | None:
    labels = (tiff.imagej_metadata or {}).get("Labels") if tiff.is_imagej else None
    return tuple(str(label).strip() for label in labels) if labels else None


def _named(names: tuple[str, ...], colors: tuple[int | None, ...]) -> bool:
    """Returns whether names or colors say that channels are red, green and blue in some order."""
    return bool(_by_name(names) or _by_color(colors))


def _order_of_colors(names: tuple[str, ...], colors: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """Returns the numbers of the channels that are red, green and blue, or None if they are something else."""
    if all(UNNAMED.fullmatch(name) for name in names):
        if all(color is None or _rgb(color) == WHITE for color in colors):
            return 0, 1, 2
        return _by_color(colors)
    by_name, by_color = _by_name(names), _by_color(colors)
    colored = any(color is not None and _rgb(color) != WHITE for color in colors)
    return None if colored and by_name != by_color else by_name


def _by_name(names: tuple[str, ...]) -> tuple[int, ...] | None:
    lower = [name.lower() for name in names]
    return next(
        (tuple(lower.index(one) for one in order) for order in RGB_NAMES if sorted(order) == sorted(lower)), None
    )


def _by_color(colors: tuple[int | None, ...]) -> tuple[int, ...] | None:
    found = [None if color is None else _rgb(color) for color in colors]
    if len(found) != 3 or any(color not in found for color in RGB_COLORS):
        return None
    return tuple(found.index(color) for color in RGB_COLORS)


def _rgb(color: int) -> tuple[int, int, int]:
    """Returns the parts of OME's color, a signed integer of 32 bits with red in the highest byte."""
    return (color >> 24) & 255, (color >> 16) & 255, (color >> 8) & 255


def _others(pictures: list[Picture], largest: Picture, planes: tuple[Picture, ...]) -> tuple[str, ...]:
    """Returns notes about large pictures that are left out, and about a slide that is not the first picture."""
    others = [
        picture
        for picture in pictures
        if picture not in planes
        and not picture.mask
        and (
            picture.pixels > largest.pixels
            if picture.associated
            else picture.pixels >= LARGE * largest.pixels and not _is_copy(picture, largest)
        )
    ]
    if others:
        listed = ", ".join(f"{picture.size} ({picture.name or picture.place})" for picture in others[:4])
        return (f"only one picture is segmented, {largest.size} pixels ({largest.place}); left out: {listed}",)
    if len(planes) == 1 and (largest.number or largest.below is not None):
        return (f"the slide is {largest.place}, {largest.size} pixels, which is not the first picture of the file",)
    return ()


def _levels(pictures: list[Picture], slide: Picture) -> tuple[Picture, ...]:
    """Returns the smaller copies of the slide that the file declares, larger ones first."""
    if slide.below is None:
        below = [picture for picture in pictures if picture.number == slide.number and picture.below is not None]
    else:
        below = []
    aperio = slide.page.is_svs  # its levels are the pages in tiles, without a flag
    flagged = [
        picture
        for picture in pictures
        if picture.below is None and (picture.reduced or (aperio and picture.page.is_tiled))
    ]
    copies = [
        picture
        for picture in below or flagged
        if not picture.mask and picture.pixels < slide.pixels and _same_aspect(picture, slide)
    ]
    return tuple(sorted(copies, key=lambda picture: -picture.pixels))


def _is_copy(picture: Picture, largest: Picture) -> bool:
    """Returns whether a picture may be a level of another one: half its side or less, or declared a level."""
    small = picture.reduced or picture.width * SMALLEST_STEP <= largest.width
    return small and _same_aspect(picture, largest)


def _same_aspect(one: Picture, other: Picture) -> bool:
    """Returns whether two pictures have the same ratio of width and height, apart from rounding."""
    smaller, larger = sorted((one, other), key=lambda picture: picture.pixels)
    if not smaller.pixels:
        return False
    along_x, along_y = larger.width / smaller.width, larger.height / smaller.height
    rounding = 1 / smaller.width + 1 / smaller.height
    return abs(along_x / along_y - 1) <= SAME_ASPECT + rounding


def _undecided(path: Path, found: str, remedy: str) -> DataError:
    return DataError(f"{printable(path)}: expected one picture that is the slide, found {found}; {remedy}")
