"""Finds the tiles of a data folder and says which part (train, val, test) each belongs to.

Three layouts occur:

* `kaggle224`: the 224-pixel tiles of Kaggle `whats2000/breast-cancer-semantic-segmentation-bcss`: folders `train`,
  `train_mask`, `val`, `val_mask`, `test` and (never published) `test_mask`, in the data folder or in its `BCSS`.
  Codes 0, 1, 2. As published, tiles of every patient lie in every part: the figures flatter. `split="institute"`
  undoes that.
* `kaggle512`: the 512-pixel tiles of the same source: `train_512`, `train_mask_512`, `val_512`, `val_mask_512`, in the
  data folder or in its `BCSS_512`. The 22 original codes; published parts are the institutes of the challenge.
* `roi`: whole regions, `images` and `masks`, as the original data set gives them; cut into patches here.

A tile is named `<barcode>_xmin<X>_ymin<Y>_MPP-0_<a>_<b>_size224.png`. In the tiles that could be compared with their
region pixel by pixel (150 of one region, cut by ourselves in that layout) a is x and b is y. For the published set one
third party says (row, column), the other way round; none could be checked, and nothing but a plot uses x and y.

Micrometers per pixel come from the caller: the names say 0.25 (or, cut off, 0), which is nominal.
"""

import dataclasses
import logging
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from bcss_jax.data.image_files import SUFFIXES, image_size
from bcss_jax.errors import ConfigError, DataError, printable

log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
HOLD_OUT_INSTITUTES = ("OL", "LL", "E2", "EW", "GM", "S3")  # the test set of the BCSS challenge; "val" here

# Per part: folder of the images, folder of the masks, part.
FOLDERS = {
    "kaggle224": tuple((part, f"{part}_mask", part) for part in PARTS),
    "kaggle512": tuple((f"{part}_512", f"{part}_mask_512", part) for part in ("train", "val")),
    "roi": (("images", "masks", "train"),),
}
LAYOUTS = ("sample", *FOLDERS)  # the sample is drawn, not found
SUBFOLDER = {"kaggle224": "BCSS", "kaggle512": "BCSS_512", "roi": "."}  # where the Kaggle archive keeps them
CODES = {"kaggle224": "kaggle3", "kaggle512": "bcss22", "roi": "bcss22"}

PATIENT = r"TCGA-(?P<institute>[A-Z0-9]{2})-[A-Z0-9]{4}"
REGION = rf"(?P<barcode>(?P<patient>{PATIENT})-[A-Z0-9-]+)_xmin\d+_ymin\d+_MPP-\d+(\.\d+)?"
REGION_NAME = re.compile(REGION, re.ASCII)
TILE_NAME = re.compile(REGION + r"_(?P<x>\d+)_(?P<y>\d+)_size\d+", re.ASCII)

HOW_TO_GET = (
    "get BCSS (CC0) from Kaggle whats2000/breast-cancer-semantic-segmentation-bcss, or the regions through github "
    "PathologyDataScience/BCSS (their rgbs_colorNormalized folder is `images` here); "
    "or try the built-in sample first: --config=configs/unet.py"
)


@dataclasses.dataclass(frozen=True)
class Tile:
    """One image with its mask: a pair of files, or a window of such a pair.

    Attributes:
      key: unique in the data set and stable: the name of the tile's file, or what it would be.
      image: the image file. It may be missing: `data_checks.check` deals with that.
      mask: the mask file, likewise; None for images that were published without masks.
      split: "train", "val" or "test".
      barcode: of the slide, such as "TCGA-A2-A0D2-DX1".
      patient: "TCGA-A2-A0D2".
      institute: "A2".
      x: offset in the region, pixels from the left (see the module's note on the published tiles).
      y: offset in the region, pixels from the top.
      mpp: nominal micrometers per pixel.
      codes: code book of the mask, "bcss22" or "kaggle3".
      window: (x, y, size) in pixels of the files, or None for the whole of them.
    """

    key: str
    image: Path
    mask: Path | None
    split: str
    barcode: str
    patient: str
    institute: str
    x: int
    y: int
    mpp: float
    codes: str
    window: tuple[int, int, int] | None


def find_tiles(
    layout: str,
    data_dir: str | os.PathLike,
    *,
    split: str = "published",
    mpp: float = 0.25,
    patch_size: int | None = 224,
    stride: int = 224,
    required: tuple[str, ...] = ("train", "val"),
    with_unlabeled: bool = False,
    refuse: Callable[[DataError], None] | None = None,
) -> list[Tile]:
    """Lists the tiles of a data folder, sorted by key.

    No pixel is read (of regions the header is, for their size). An image without a mask and a mask without an image
    are listed too; `data_checks.check` refuses or counts them. The published kaggle224 test images, which have no
    masks at all, are left out, and their number is logged, unless they are asked for.

    Args:
      layout: "kaggle224", "kaggle512" or "roi".
      data_dir: the data folder.
      split: "published", or "institute": val = `HOLD_OUT_INSTITUTES`, train = all others, whatever their folder.
        Regions have no published parts, so for them both mean the institutes.
      mpp: micrometers per pixel of the files.
      patch_size: side of the patches cut from regions, pixels; None: whole regions. The other layouts are cut already.
      stride: step from patch to patch in a region, pixels. What is left at its right and lower edge is not used.
      required: the parts that must not be empty.
      with_unlabeled: list the test images that have no masks, in the part "test", with the mask None.
      refuse: takes the error of a single file (its name, a link, a region's size), which is then left out; None: it is
        raised.

    Raises:
      ConfigError: an argument that cannot be.
      DataError: folders missing or empty, a name that does not say its slide, two files of one name, a link that goes
        in circles or out of the data folder, a region smaller than a patch, or a required part without any tile.
    """
    _check_arguments(layout, split, mpp, patch_size, stride)
    home = _home(layout, data_dir)
    refuse = refuse or _raise
    tiles = []
    for image_folder, mask_folder, part in FOLDERS[layout]:
        name = REGION_NAME if layout == "roi" else TILE_NAME
        unlabeled = part == "test" and not (home / mask_folder).exists()
        if unlabeled and not (with_unlabeled and (home / image_folder).exists()):
            if (home / image_folder).exists():
                count = len(_files(home / image_folder, home, name, refuse))
                log.info("%s: %d test tiles have no masks and are left out", printable(home / image_folder), count)
            continue
        images = _files(home / image_folder, home, name, refuse)
        masks = {} if unlabeled else _files(home / mask_folder, home, name, refuse)
        if not images:
            raise _not_found(layout, data_dir, f"no image in {printable(home / image_folder)}")
        for stem in sorted(images.keys() | masks.keys()):
            match = name.fullmatch(stem)
            image = images.get(stem, home / image_folder / f"{stem}.png")
            whole = Tile(
                key=stem,
                image=image,
                mask=None if unlabeled else masks.get(stem, home / mask_folder / f"{stem}.png"),
                split=part,
                barcode=match["barcode"],
                patient=match["patient"],
                institute=match["institute"],
                x=0 if layout == "roi" else int(match["x"]),
                y=0 if layout == "roi" else int(match["y"]),
                mpp=float(mpp),
                codes=CODES[layout],
                window=None,
            )
            try:
                tiles.extend(_patches(whole, patch_size, stride) if layout == "roi" and patch_size else (whole,))
            except DataError as error:
                refuse(error)
    if split == "institute" or layout == "roi":
        tiles = [
            dataclasses.replace(tile, split="val" if tile.institute in HOLD_OUT_INSTITUTES else "train")
            if tile.mask
            else tile
            for tile in tiles
        ]
    tiles.sort(key=lambda tile: tile.key)
    by_key = {}
    for tile in tiles:
        if tile.key in by_key:
            refuse(_same_name(by_key[tile.key].image, tile.image))
        by_key.setdefault(tile.key, tile)
    tiles = list(by_key.values())
    require_parts(tiles, required)
    return tiles


def require_parts(tiles: Iterable[Tile], required: tuple[str, ...] = ("train", "val")) -> None:
    """Makes sure that there is something to train and something to validate on.

    Raises:
      DataError: no tile in a required part; says which institutes there are.
    """
    tiles = list(tiles)
    present = {tile.split for tile in tiles}
    for part in required:
        if part not in present:
            found = ", ".join(sorted({tile.institute for tile in tiles})) or "none"
            folder = printable(tiles[0].image.parent) if tiles else "the data folder"
            raise DataError(
                f"{folder}: expected usable tiles for {part}, found none (institutes there: {found}; a split by institute "
                f"holds out {', '.join(HOLD_OUT_INSTITUTES)} as val); add data of such institutes, or use the "
                "published parts"
            )


def _check_arguments(layout: str, split: str, mpp: float, patch_size: int | None, stride: int) -> None:
    if layout not in FOLDERS:
        raise ConfigError(f"layout {layout!r} is none of {', '.join(FOLDERS)}")
    if split not in ("published", "institute"):
        raise ConfigError(f"split {split!r} is neither published nor institute")
    if not (math.isfinite(mpp) and mpp > 0):
        raise ConfigError(f"mpp must be micrometers per pixel, above 0; found {mpp}")
    if (patch_size is not None and patch_size < 1) or stride < 1:
        raise ConfigError(f"patch_size and stride must be 1 pixel or more; found {patch_size} and {stride}")


def _home(layout: str, data_dir: str | os.PathLike) -> Path:
    """The folder that holds the layout's folders: the data folder itself or the one of the Kaggle archive in it."""
    needed = [folder for pair in FOLDERS[layout] if pair[2] != "test" for folder in pair[:2]]
    if not data_dir:
        raise _not_found(layout, "data_dir", "no folder given")
    root = Path(data_dir)
    candidates = [root] if SUBFOLDER[layout] == "." else [root, root / SUBFOLDER[layout]]
    missing = []
    for home in candidates:
        missing.append([folder for folder in needed if not os.path.lexists(home / folder)])
        if not missing[-1]:
            _refuse_link(home, root)
            return home
    if not root.is_dir():
        raise _not_found(layout, data_dir, "no such folder")
    nearest = min(range(len(candidates)), key=lambda number: len(missing[number]))
    absent = "none of them" if missing[nearest] == needed else f"no {', '.join(missing[nearest])}"
    raise _not_found(layout, data_dir, absent)


def _not_found(layout: str, data_dir: str | os.PathLike, found: str) -> DataError:
    folders = ", ".join(folder for pair in FOLDERS[layout] if pair[2] != "test" for folder in pair[:2])
    where = "" if SUBFOLDER[layout] == "." else f" (there or in {SUBFOLDER[layout]}/)"
    return DataError(
        f"{printable(data_dir)}: expected the layout {layout} with the folders {folders}{where}, found {found}; {HOW_TO_GET}"
    )


def _raise(error: DataError) -> None:
    raise error


def _files(folder: Path, root: Path, name: re.Pattern, refuse: Callable[[DataError], None]) -> dict[str, Path]:
    """Image files of a folder by stem; refuses names and links that cannot be trusted, counts what is no image."""
    _refuse_link(folder, root)
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: expected a folder, found a file; restore the folder")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{printable(folder)}: expected a readable folder, found: {error.strerror}; check it"
        ) from error
    files, others, seen = {}, [], {}
    for entry in entries:
        stem, suffix = os.path.splitext(entry.name)
        if entry.name.startswith(".") or suffix.lower() not in SUFFIXES:
            others.append(entry.name)
            continue
        path = folder / entry.name
        if entry.is_symlink():
            try:
                _refuse_link(path, root)
            except DataError as error:
                refuse(error)
                continue
        # Names differ by case only: capitals sort first, so the wrongly named one of the two is told as the copy it is.
        if stem.casefold() in seen:
            refuse(_same_name(seen[stem.casefold()], path))
            continue
        if not name.fullmatch(stem):
            refuse(
                DataError(
                    f"{printable(path)}: expected a name such as TCGA-A2-A0D2-DX1_xmin96887_ymin22299_MPP-0"
                    f"{'_448_672_size224.png' if name is TILE_NAME else '.2500.png'}, which says slide and place, "
                    "found another; rename or remove the file"
                )
            )
            continue
        seen[stem.casefold()] = files[stem] = path
    if others:
        log.info(
            "%s: %d entries are no images and are left out, first %s",
            printable(folder),
            len(others),
            printable(others[0]),
        )
    return files


def _refuse_link(path: Path, root: Path) -> None:
    """Raises for a path which leads in circles, to nothing, or out of the data folder."""
    try:
        target, home = path.resolve(strict=True), root.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: how Python before 3.13 reports a loop
        raise DataError(
            f"{printable(path)}: expected a file or folder, found a link that leads nowhere or in circles; remove it"
        ) from error
    if not target.is_relative_to(home):
        raise DataError(
            f"{printable(path)}: expected data inside {printable(root)}, found a link to {printable(target)}; "
            "copy the data there, or point data_dir at the folder that really holds them"
        )


def _same_name(first: Path, second: Path) -> DataError:
    return DataError(
        f"{printable(second)}: expected one tile of that name, found {printable(first)} too; remove or rename one of them"
    )


def _patches(region: Tile, size: int, stride: int) -> list[Tile]:
    """Cuts a region into windows on a regular grid; what is left at the edges is not used."""
    source = region.image if region.image.exists() else region.mask
    width, height = image_size(source)
    if width < size or height < size:
        raise DataError(
            f"{printable(source)}: expected at least {size}x{size} pixels, found {width}x{height}; "
            "lower --config.data.patch_size or remove the region"
        )
    return [
        dataclasses.replace(region, key=f"{region.key}_{x}_{y}_size{size}", x=x, y=y, window=(x, y, size))
        for y in range(0, height - size + 1, stride)
        for x in range(0, width - size + 1, stride)
    ]
