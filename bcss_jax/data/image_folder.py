"""Lists the images in a folder, and counts what else is there and left out.

Every command that reads a folder of images lists it here, so that the same files are found everywhere: the ending
decides, in any case. Hidden files, such as the `._NAME.png` that macOS adds to copies, are no images.
"""

import dataclasses
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from bcss_jax.data.image_files import SUFFIXES
from bcss_jax.errors import DataError, printable

SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin")  # of file managers, in lower case


@dataclasses.dataclass
class LeftOut:
    """What the folders of a data set hold besides what is read, each a list of paths.

    Attributes:
      hidden: hidden files and folders, and those of file managers.
      folders: folders, which are not looked into.
      others: files that are not images.
      unlabeled: test images without masks, which are not scored.
      unpaired: images without a mask, and masks without an image.
    """

    hidden: list[Path] = dataclasses.field(default_factory=list)
    folders: list[Path] = dataclasses.field(default_factory=list)
    others: list[Path] = dataclasses.field(default_factory=list)
    unlabeled: list[Path] = dataclasses.field(default_factory=list)
    unpaired: list[Path] = dataclasses.field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Returns the number of each kind that occurs, as JSON."""
        return {name: len(paths) for name, paths in vars(self).items() if paths}

    def line(self) -> str:
        """Returns the counts with the first of each kind as text; "" if nothing is left out."""
        kinds = (
            (self.hidden, "hidden", "hidden"),
            (self.folders, "folder that is not looked into", "folders that are not looked into"),
            (self.others, "entry that is no image", "entries that are no images"),
            (self.unlabeled, "test image without a mask", "test images without masks"),
            (self.unpaired, "image or mask without the other", "images or masks without the other"),
        )
        return ", ".join(
            f"{len(paths)} {one if len(paths) == 1 else several} (first {_short(paths[0])})"
            for paths, one, several in kinds
            if paths
        )


def sorted_entries(folder: Path, expected: str) -> list[os.DirEntry]:
    """Returns what is in a folder, sorted by name.

    Args:
      folder: is not searched deeper.
      expected: what it should be, for the message.

    Raises:
      DataError: the folder cannot be read.
    """
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{printable(folder)}: expected {expected}, found: {error.strerror}; check it") from error


def list_images(folder: Path, left_out: LeftOut) -> list[Path]:
    """Returns the images in a folder, sorted by name.

    Args:
      folder: is not searched deeper.
      left_out: gets everything else in the folder.

    Raises:
      DataError: the folder cannot be read.
    """
    images = []
    for entry in sorted_entries(folder, "a readable folder"):
        path = folder / entry.name
        if is_hidden(entry.name):
            left_out.hidden.append(path)
        elif path.suffix.lower() in SUFFIXES:
            images.append(path)
        elif entry.is_dir():
            left_out.folders.append(path)
        else:
            left_out.others.append(path)
    return images


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder of this name is hidden, or belongs to a file manager."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def comparable(name: str) -> str:
    """Returns the same text for names that some file system does not tell apart: other case, or composed otherwise."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def composed(name: str) -> str:
    """Returns a name with composed characters (NFC), because macOS may have taken them apart in the copy of a file."""
    return unicodedata.normalize("NFC", name)


def misspelled(folder: Path, wanted: Iterable[str]) -> dict[str, str]:
    """Returns {wanted name: name found} for entries of a folder whose names differ from the wanted ones by case only.

    A wanted name that exists as it is is left out.
    """
    try:
        found = {comparable(name): name for name in sorted(os.listdir(folder))}
    except OSError:
        return {}
    alike = {name: found[comparable(name)] for name in wanted if comparable(name) in found}
    return {name: other for name, other in alike.items() if not os.path.lexists(folder / name)}


def _short(path: Path) -> str:
    return printable(os.path.join(path.parent.name, path.name))
