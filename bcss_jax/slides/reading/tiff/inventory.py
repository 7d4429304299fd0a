"""Lists every picture of a TIFF: pages, the smaller pictures below them (SubIFDs), and what OME-XML says of them.

A TIFF is a container. Besides a slide it may hold its coarser levels, a thumbnail, a label, a macro image, masks, focal
planes, time points and color planes, in any order. `main_picture.main_picture` decides which one is the slide.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast
from xml.etree import ElementTree

import tifffile

REDUCED, MASK = 1, 4  # bits of the tag NewSubfileType
MACRO = 9  # value of that tag for macro images in Aperio's files
# Names, in OME-XML and descriptions, of pictures of the whole glass slide, its paper label, or previews of them.
ASSOCIATED = re.compile(
    r"(?:.*[\[(:]|.* - )?\s*(?:slide\s*)?(?:label|macro|overview|thumbnail|thumb|barcode|preview|localizer)"
    r"(?:\s*(?:image|picture))?\s*[\])]?",
    re.IGNORECASE,
)


class OmeImage(NamedTuple):
    """What OME-XML says of one of its images.

    Attributes:
      name: may be empty.
      planes: sizes by letter of those axes that lie in separate planes: C, Z, T; only sizes above 1.
      channels: names of the channels, empty where there is none.
      colors: RGBA of the channels as signed integers, None where there is none.
      other_files: names of other files that hold pixels of the image.
    """

    name: str
    planes: dict[str, int]
    channels: tuple[str, ...]
    colors: tuple[int | None, ...]
    other_files: tuple[str, ...]


class Picture(NamedTuple):
    """One picture of a TIFF.

    Attributes:
      place: where it is in the file, in words: "page 0", "SubIFD 1 of page 0".
      number: of its page; for a SubIFD, of the page that it belongs to.
      below: number among the SubIFDs of that page, or None for a page.
      width: pixels.
      height: pixels.
      reduced: the file calls it a smaller copy of another one.
      mask: the file calls it a mask.
      name: of the picture, may be empty.
      ome: the OME image that it belongs to, or None.
      page: tifffile's description.
    """

    place: str
    number: int
    below: int | None
    width: int
    height: int
    reduced: bool
    mask: bool
    name: str
    ome: OmeImage | None
    page: tifffile.TiffPage

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.width * self.height

    @property
    def associated(self) -> bool:
        """Whether its name says that it is a label, a macro image or a thumbnail."""
        return ASSOCIATED.fullmatch(self.name) is not None

    @property
    def size(self) -> str:
        """Width and height for messages."""
        return f"{self.width}x{self.height}"


def open_tiff(path: Path) -> tifffile.TiffFile:
    """Opens a TIFF without the other files that it may refer to.

    Raises:
      Exception: tifffile can raise anything for a damaged file.
    """
    return tifffile.TiffFile(path, _multifile=False)


def pictures_of(tiff: tifffile.TiffFile) -> list[Picture]:
    """Returns all pictures of an open TIFF, in the order of the file.

    Raises:
      Exception: tifffile can raise anything for a damaged file.
    """
    images = _ome_images(tiff)
    pictures = []
    for number in range(len(tiff.pages)):
        page = cast(tifffile.TiffPage, tiff.pages[number])
        ome = images.get(number)
        pictures.append(_picture(f"page {number}", number, None, page, ome))
        for below in range(len(page.pages or ())):
            assert page.pages is not None
            under = cast(tifffile.TiffPage, page.pages[below])
            pictures.append(_picture(f"SubIFD {below} of page {number}", number, below, under, ome))
    return pictures


def _picture(place: str, number: int, below: int | None, page: tifffile.TiffPage, ome: OmeImage | None) -> Picture:
    kind = int(page.subfiletype)
    name = "macro" if kind == MACRO else _name(page, ome)
    reduced = bool(kind & REDUCED) or below is not None
    return Picture(place, number, below, page.imagewidth, page.imagelength, reduced, bool(kind & MASK), name, ome, page)


def _name(page: tifffile.TiffPage, ome: OmeImage | None) -> str:
    if ome is not None:
        return ome.name
    named = page.tags.valueof("PageName")
    if isinstance(named, str) and named.strip():
        return named.strip()
    lines = page.description.strip().splitlines() if isinstance(page.description, str) else []
    if len(lines) > 1 and lines[0].startswith("Aperio"):  # its next line: "label 387x463", "46000x32914 -> 1024x732"
        if "->" in lines[1] and not page.is_tiled:
            return "thumbnail"
        return lines[1].split()[0] if lines[1].split() else ""
    return lines[0] if len(lines) == 1 and len(lines[0]) <= 64 else ""


def _ome_images(tiff: tifffile.TiffFile) -> dict[int, OmeImage]:
    """Returns the OME image of each page that belongs to one; none if the file's OME-XML cannot be understood."""
    xml = tiff.ome_metadata if tiff.is_ome else None
    if xml is None:
        return {}
    images: dict[int, OmeImage] = {}
    try:
        root = ElementTree.fromstring(xml)
        for element in _children(root, "Image"):
            for pixels in _children(element, "Pixels"):
                others = _other_files(root, pixels, Path(tiff.filename).name)
                numbers = [number for number in _pages(pixels, others) if number < len(tiff.pages)]
                samples = cast(tifffile.TiffPage, tiff.pages[numbers[0]]).samplesperpixel if numbers else 1
                image = _ome_image(element, pixels, samples, others)
                images = dict.fromkeys(numbers, image) | images
    except (ElementTree.ParseError, ValueError):
        return {}
    return images


def _ome_image(element, pixels, samples: int, other_files: tuple[str, ...]) -> OmeImage:
    channels = list(_children(pixels, "Channel"))
    colors = (channel.get("Color") for channel in channels)
    sizes = {letter: _size(pixels, letter) for letter in "CZT"}
    sizes["C"] = -(-sizes["C"] // samples)  # channels that lie in one plane
    return OmeImage(
        name=(element.get("Name") or "").strip(),
        planes={letter: size for letter, size in sizes.items() if size > 1},
        channels=tuple((channel.get("Name") or "").strip() for channel in channels),
        colors=tuple(None if color is None else int(color) for color in colors),
        other_files=other_files,
    )


def _size(pixels, letter: str) -> int:
    return max(1, int(pixels.get(f"Size{letter}") or 1))


def _other_files(root, pixels, file_name: str) -> tuple[str, ...]:
    """Returns the names of other files that hold planes; a renamed file is known by its UUID."""
    named = {
        ((uuid.text or "").strip(), uuid.get("FileName") or "")
        for data in _children(pixels, "TiffData")
        for uuid in _children(data, "UUID")
    }
    own = root.get("UUID") or (next(iter(named))[0] if len(named) == 1 else "")
    return tuple(sorted({name or uuid for uuid, name in named if uuid != own and name != file_name}))


def _pages(pixels, other_files: tuple[str, ...]) -> Iterator[int]:
    """Yields the numbers of the pages of this file that hold an image's planes."""
    planes = math.prod(_size(pixels, letter) for letter in "CZT")
    for data in _children(pixels, "TiffData"):
        if any((uuid.get("FileName") or (uuid.text or "").strip()) in other_files for uuid in _children(data, "UUID")):
            continue
        first = data.get("IFD")
        count = int(data.get("PlaneCount") or (1 if first is not None else planes))
        yield from range(int(first or 0), int(first or 0) + min(count, planes))


def _children(element, name: str) -> Iterator:
    """Yields the children of this name, whatever the version of the schema."""
    return (child for child in element if child.tag.rpartition("}")[2] == name)
