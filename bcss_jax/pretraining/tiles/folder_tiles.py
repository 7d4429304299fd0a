"""Tiles of a folder of images, of any sizes."""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcss_jax.data.decoded_tiles import free_memory, holds
from bcss_jax.data.decoding.open_image import open_image
from bcss_jax.data.decoding.stored_image import StoredImage
from bcss_jax.data.image_files import read_shown
from bcss_jax.errors import DataError, printable
from bcss_jax.pretraining.tiles.image_content import is_drawing, is_glass
from bcss_jax.pretraining.tiles.image_search import find_images
from bcss_jax.pretraining.tiles.in_order import in_order
from bcss_jax.pretraining.tiles.tiles import HeldTiles, Tiles

NAMED = 3  # files of one kind that are named in a note


class Place(NamedTuple):
    """Where a tile is: number of its image, and its left and upper edge in pixels."""

    image: int
    x: int
    y: int


@dataclasses.dataclass(frozen=True)
class FileTiles:
    """Tiles that are decoded whenever they are read; see `Tiles`.

    Attributes:
      paths: of the images.
      places: of the tiles.
      names: see `Tiles`.
      size: see `Tiles`.
      notes: see `Tiles`.
    """

    paths: Sequence[Path]
    places: Sequence[Place]
    names: Sequence[str]
    size: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Returns the number of tiles."""
        return len(self.places)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns the tiles of these numbers, uint8 [len(indices), size, size, 3]; each image is decoded once.

        Raises:
          DataError: an image cannot be read any more.
        """
        rows_of_image = collections.defaultdict(list)
        for row, index in enumerate(indices):
            rows_of_image[self.places[index].image].append((row, self.places[index]))
        tiles = np.empty((len(indices), self.size, self.size, 3), np.uint8)

        def read_image(image: int) -> None:
            pixels = _pixels(self.paths[image])
            for row, place in rows_of_image[image]:
                tiles[row] = _tile(pixels, place.x, place.y, self.size)

        for _ in in_order(read_image, rows_of_image):
            pass
        return tiles


def folder_tiles(
    folders: Sequence[Path],
    size: int = 256,
    *,
    exclude: Sequence[str] = (),
    memory_share: float = 0.25,
    processes: int = 1,
) -> Tiles:
    """Cuts all images below some folders into tiles.

    An image is covered by a grid of tiles, which overlap where its sides are no multiples of the tile's. Images that
    are smaller than a tile, are not 8-bit RGB or have few colors, such as masks, are left out, and so are tiles of
    glass; `notes` of the result says how many. Transparent pixels become white.

    Args:
      folders: see `image_search.find_images`.
      size: pixels of a tile on each side.
      exclude: see `image_search.find_images`.
      memory_share: the tiles are held in memory if they take at most this share of what is free; otherwise they are
        decoded whenever they are read.
      processes: of the run, each of which may hold the tiles on the same machine.

    Raises:
      DataError: there is no usable image, or one is damaged.
      ConfigError: a pattern excludes nothing.
    """
    found, excluded = find_images(folders, exclude)
    where = ", ".join(printable(folder) for folder in folders)
    images, left_out = _usable_images(found, size, where)
    most = sum(len(image.corners) for image in images)
    held, why = holds(most * size * size * 3, memory_share, processes, free_memory())
    # Memory is taken when it is written, so that the tiles of glass need none.
    pixels = np.empty((most if held else 0, size, size, 3), np.uint8)
    places: list[Place] = []
    damaged: list[DataError] = []
    drawings, glass = [], 0
    for number, content in enumerate(in_order(lambda image: _content(image, size), images)):
        if isinstance(content, DataError):
            damaged.append(content)
            continue
        if content.drawing:
            drawings.append(images[number].name)
        glass += content.glass
        for (x, y), tile in content.tiles:
            if held:
                pixels[len(places)] = tile
            places.append(Place(number, x, y))
    _refuse_damaged(damaged, len(images))
    left_out += [_note(drawings, "images with few colors, such as masks")] if drawings else []
    left_out += [f"left out: {glass} tiles that show glass"] if glass else []
    if not places:
        raise DataError(f"{where}: expected images of tissue, found none ({'; '.join(left_out)}); add images")
    several = [len(image.corners) > 1 for image in images]
    names = [images[i].name + (f" at {x},{y}" if several[i] else "") for i, x, y in places]
    notes = [f"{where}: {len(places)} tiles of {size} pixels from {len({place.image for place in places})} images"]
    notes += [f"left out: {excluded} images that are excluded"] if excluded else []
    notes += left_out
    notes += [f"tiles are {'held in memory' if held else 'decoded whenever they are read'}: {why}"]
    if held:
        return HeldTiles(pixels[: len(places)], names, tuple(notes))
    return FileTiles([image.path for image in images], places, names, size, tuple(notes))


class _Image(NamedTuple):
    """A usable image: its name, its path, and the left and upper edges of its tiles in pixels."""

    name: str
    path: Path
    corners: list[tuple[int, int]]


def _usable_images(found: list[tuple[str, Path]], size: int, where: str) -> tuple[list[_Image], list[str]]:
    """Returns the images that can be cut into tiles, by their headers, and a note for each kind that is left out."""
    images, damaged, small, others = [], [], [], []
    largest = 0
    for (name, path), stored in zip(found, in_order(lambda pair: _opened(pair[1]), found), strict=True):
        if isinstance(stored, DataError):
            damaged.append(stored)
        elif stored.color != "RGB" or stored.bits != 8 or stored.kind != "u":
            others.append(name)
        elif min(stored.shown_size) < size:
            small.append(name)
            largest = max(largest, min(stored.shown_size))
        else:
            across, down = (_starts(length, size) for length in stored.shown_size)
            images.append(_Image(name, path, [(x, y) for y in down for x in across]))
    _refuse_damaged(damaged, len(found))
    if not images:
        what = f"{len(small)} smaller ones" if small else ""
        what += (" and " if small and others else "") + (f"{len(others)} that are not 8-bit RGB" if others else "")
        remedy = f"lower --config.data.tile_size to at most {largest}" if small else "save them as 8-bit RGB"
        raise DataError(f"{where}: expected RGB images of at least {size}x{size} pixels, found {what}; {remedy}")
    notes = [_note(small, f"images that are smaller than {size} pixels")] if small else []
    notes += [_note(others, "images that are not 8-bit RGB, such as masks")] if others else []
    return images, notes


def _note(names: list[str], what: str) -> str:
    shown = ", ".join(printable(name) for name in names[:NAMED])
    return f"left out: {len(names)} {what} ({shown}{', ...' if len(names) > NAMED else ''})"


def _opened(path: Path) -> StoredImage | DataError:
    try:
        return open_image(path)
    except DataError as error:
        return error


class _Content(NamedTuple):
    """What an image shows: corner and pixels of each tile of tissue, number of tiles of glass, whether it is drawn."""

    tiles: list[tuple[tuple[int, int], np.ndarray]]
    glass: int
    drawing: bool


def _content(image: _Image, size: int) -> _Content | DataError:
    """Returns what an image shows; a drawing has no tiles."""
    try:
        pixels = _pixels(image.path)
    except DataError as error:
        return error
    tiles = [(corner, _tile(pixels, *corner, size)) for corner in image.corners]
    stained = [(corner, tile) for corner, tile in tiles if not is_glass(tile)]
    if stained and is_drawing(pixels):
        return _Content([], 0, True)
    return _Content(stained, len(tiles) - len(stained), False)


def _refuse_damaged(errors: list[DataError], images: int) -> None:
    if errors:
        others = f" ({len(errors)} of {images} images are unusable)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0]}, or leave it out with --config.data.exclude=NAME{others}")


def _starts(length: int, size: int) -> list[int]:
    """Returns the first pixels of the fewest tiles that cover an axis, at equal distances."""
    return np.linspace(0, length - size, -(-length // size)).round().astype(int).tolist()


def _pixels(path: Path) -> np.ndarray:
    return read_shown(path, warn=lambda line: None)[1]


def _tile(pixels: np.ndarray, x: int, y: int, size: int) -> np.ndarray:
    return pixels[y : y + size, x : x + size]
