"""The rule by which the stored samples of a mask are codes: pixels that look the same have the same code.

A gray sample is its code. A palette of grays is read by the shown gray levels if all of them are codes: programs that
make files smaller turn gray masks into palettes and sort these. Other palettes only color the codes, and the index is
the code. A file is refused if both readings are possible and differ, or if two codes look the same. The levels are
those that a viewer shows: inverted samples (TIFF's MinIsWhite) are turned back. Samples of 1, 2 and 4 bits are the
codes themselves, although viewers show them stretched to black and white.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bcss_jax.data.decoding.open_image import describe_floats
from bcss_jax.data.decoding.stored_image import StoredImage, unusable
from bcss_jax.errors import DataError, printable

SAVE_GRAY = "save the codes themselves as an 8-bit gray image"
SORTED = "a program that makes files smaller may have sorted the palette: " + SAVE_GRAY
MAX_BITS = 16  # of samples that a table translates


class ContradictoryColorsError(DataError):
    """Raised when a color stands for different codes in two masks."""


class PaletteColors:
    """Notes which code each color stands for in the masks of a data set, which must not contradict one another."""

    def __init__(self):
        """No color is known yet."""
        self._codes: dict[tuple[int, ...], tuple[int, Path]] = {}
        self._lock = threading.Lock()

    def check(self, path: Path, colors: dict[tuple[int, ...], int]) -> None:
        """Adds the colors of a mask.

        Raises:
          ContradictoryColorsError: another mask has one of these colors for another code.
        """
        with self._lock:
            for color, code in colors.items():
                other, where = self._codes.get(color, (code, path))
                if other != code:
                    raise ContradictoryColorsError(
                        f"{printable(path)}: expected a color that stands for the same code in all masks, found "
                        f"{color} for code {code}, which is code {other} in {printable(where)}; {SORTED}"
                    )
            for color, code in colors.items():
                self._codes.setdefault(color, (code, path))


def check_one_channel(stored: StoredImage) -> None:
    """Checks that a file can be a mask.

    Raises:
      DataError: it has several channels, floats or transparency, or was compressed with loss.
    """
    if stored.kind == "f":
        raise unusable(stored.path, "integer codes", describe_floats(stored), "save as 8-bit")
    if stored.color not in ("gray", "palette") or stored.alpha or stored.kind not in "ui":
        what = stored.color_mode if stored.kind in "uif" else "samples of another kind"
        remedy = "save the codes themselves, not their colors"
        raise unusable(stored.path, "one channel of codes", f"the color mode {what}", remedy)
    if stored.lossy:
        found = f"{stored.lossy}, which changes codes"
        raise unusable(stored.path, "a mask stored without loss", found, "export it again as PNG")
    if needs_table(stored) and (stored.kind == "i" or stored.bits > MAX_BITS):
        found = f"signed samples, or samples of {stored.bits} bits, that are inverted or have a palette"
        raise unusable(stored.path, "codes", found, SAVE_GRAY)


def needs_table(stored: StoredImage) -> bool:
    """Returns whether samples are not simply the codes, so that `code_table` is needed."""
    return stored.palette is not None or stored.inverted or stored.bits < 8 or stored.transparent is not None


def code_table(
    stored: StoredImage,
    used: np.ndarray,
    num_codes: int,
    warn: Callable[[str], None],
    colors: PaletteColors | None = None,
) -> np.ndarray:
    """Returns the code of each sample.

    Args:
      stored: description of a mask that `check_one_channel` accepts and `needs_table` is true for.
      used: the different samples that occur in it, ascending.
      num_codes: number of codes, which start at 0.
      warn: called with one line if the file could be read in another way too.
      colors: what colors stand for in other masks of the data set.

    Returns:
      Unsigned integers [1 + the highest sample]. A value may lie outside the codes.

    Raises:
      DataError: the samples can be read in two ways.
    """
    path, used = stored.path, used.astype(np.int64)
    table = np.arange(used.max(initial=0) + 1)
    if stored.palette is not None:
        looks = _looks(stored, used)
        table[used] = _codes_of_palette(path, looks, used, num_codes, warn)
    else:
        if stored.transparent is not None and stored.transparent[0] in used:
            raise unusable(path, "an opaque mask", "transparent pixels", SAVE_GRAY)
        white = (1 << stored.bits) - 1
        if stored.inverted:
            table[used] = white - used
            _check_inverted(path, used, table[used], num_codes)
            warn(f"{printable(path)}: stored inverted (MinIsWhite); the shown gray levels are the codes")
        shown = table[used]
        if stored.bits < 8:
            levels = shown * (255 // white)
            if (levels < num_codes).all() and (levels != shown).any():
                found = f"samples of {stored.bits} bits ({_few(shown)}) that are shown as {_few(levels)}, codes too"
                raise unusable(path, "samples that can be codes in one way only", found, SAVE_GRAY)
            if (levels != shown).any():
                name = printable(path)
                warn(f"{name}: samples of {stored.bits} bit(s) are the codes; what is shown white is code {white}")
            looks = np.repeat(levels[:, None], 3, axis=1)
        else:
            looks = np.repeat(shown[:, None], 3, axis=1)
    if colors is not None and stored.bits <= 8:
        colors.check(path, dict(zip(map(tuple, looks.tolist()), table[used].tolist(), strict=True)))
    return table.astype(np.min_scalar_type(table.max()))  # the smallest type, because masks may be large


def tissue_table(
    stored: StoredImage, used: np.ndarray, warn: Callable[[str], None], colors: PaletteColors | None = None
) -> np.ndarray:
    """Returns 1 for each sample that is tissue, else 0: tissue is what is not shown black.

    In a palette with colors, the index 0 is no tissue.

    Args:
      stored: as in `code_table`.
      used: as in `code_table`.
      warn: as in `code_table`.
      colors: which colors are tissue (code 1) and which are not (code 0) in the masks of other slides.

    Raises:
      DataError: the samples can be read in two ways.
    """
    path, used = stored.path, used.astype(np.int64)
    table = np.zeros(used.max(initial=0) + 1, np.uint8)
    if stored.palette is None:
        if stored.transparent is not None and stored.transparent[0] in used:
            raise unusable(path, "an opaque mask", "transparent pixels", SAVE_GRAY)
        table[used] = used != ((1 << stored.bits) - 1 if stored.inverted else 0)
        if stored.inverted:
            warn(f"{printable(path)}: stored inverted (MinIsWhite); tissue is what is shown white")
        return table
    looks = _looks(stored, used)
    gray = (looks == looks[:, :1]).all(axis=1)
    black = (looks == 0).all(axis=1)
    if not gray.all() and black[used != 0].any():
        found = f"black under the index {used[black][-1]} of a palette"
        raise unusable(path, "a tissue mask whose index 0 is no tissue", found, SAVE_GRAY)
    table[used] = ~black if gray.all() else used != 0
    if colors is not None:
        colors.check(path, dict(zip(map(tuple, looks.tolist()), table[used].tolist(), strict=True)))
    if not gray.all():
        warn(f"{printable(path)}: the palette holds colors; every index but 0 is tissue")
    return table


def _looks(stored: StoredImage, used: np.ndarray) -> np.ndarray:
    """Returns the shown colors of the used indices, int [n, 3]."""
    assert stored.palette is not None
    if used.max(initial=0) >= len(stored.palette):  # Pillow writes such files, and loses codes in doing so
        found = f"the index {used.max()} in a palette of {len(stored.palette)} colors"
        raise unusable(stored.path, "a palette with a color for every index", found, SAVE_GRAY)
    if stored.palette_alpha is not None and (stored.palette_alpha[used] < 255).any():
        raise unusable(stored.path, "an opaque mask", "transparent colors in the palette", SAVE_GRAY)
    return stored.palette[used].astype(np.int64)


def _codes_of_palette(
    path: Path, looks: np.ndarray, used: np.ndarray, num_codes: int, warn: Callable[[str], None]
) -> np.ndarray:
    """Returns the code of each used index of a palette, given their shown colors [n, 3]."""
    different, which, counts = np.unique(looks, axis=0, return_inverse=True, return_counts=True)
    if len(different) < len(used):
        most = np.argmax(counts)
        found = f"the color {tuple(different[most].tolist())} for the indices {_few(used[which.ravel() == most])}"
        raise unusable(path, "codes that look different", found, SAVE_GRAY)
    levels = looks[:, 0]
    gray = (looks == looks[:, :1]).all(axis=1)
    if gray.all() and (levels < num_codes).all():
        if (levels != used).any():
            warn(f"{printable(path)}: a gray palette in another order; the shown gray levels are the codes")
        return levels
    moved = gray & (levels < num_codes) & (levels != used)
    if moved.any():
        index, level = used[moved][0], levels[moved][0]
        found = f"the gray level {level}, which is a code, under the index {index} of the palette"
        raise unusable(path, "a palette in the order of the codes", found, SORTED)
    if gray.all() and (np.diff(levels) <= 0).any():
        found = f"the gray levels {_few(levels)} for the indices {_few(used)}"
        raise unusable(path, "a palette in the order of its gray levels", found, SORTED)
    voc = _moved_in_voc(looks, used)
    if voc is not None:
        found = f"the color of index {voc[1]} under the index {voc[0]}"
        raise unusable(path, "the palette of Pascal VOC in its order", found, SORTED)
    warn(f"{printable(path)}: the colors of the palette are ignored; its indices are the codes")
    return used


def _moved_in_voc(looks: np.ndarray, used: np.ndarray) -> tuple[int, int] | None:
    """Returns index and own index of a color of Pascal VOC's color map if all used colors are from it but moved."""
    own = {tuple(color): index for index, color in reversed(list(enumerate(_voc_colors().tolist())))}
    places = [own.get(tuple(look)) for look in looks.tolist()]
    if len(places) < 2 or any(place is None for place in places):
        return None
    return next(
        ((int(i), place) for i, place in zip(used, places, strict=True) if i != place and place is not None), None
    )


def _voc_colors() -> np.ndarray:
    """Returns the color map that Pascal VOC's masks have, int [256, 3]: bits of the index, spread over the channels."""
    index, colors = np.arange(256), np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return colors


def _check_inverted(path: Path, stored: np.ndarray, shown: np.ndarray, num_codes: int) -> None:
    if (stored < num_codes).all() and (shown >= num_codes).any():
        found = f"inverted gray (MinIsWhite) that stores {_few(stored)} and shows {_few(shown)}"
        raise unusable(path, "gray levels that are codes", found, "save the codes as gray in which 0 is black")


def _few(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:6].tolist())) + (", .." if len(values) > 6 else "")
