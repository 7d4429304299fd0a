"""Finds the tiles of a data folder and the split (train, val, test) that each belongs to.

There are three layouts of tiles, and slides with annotations, which `data/slides` finds:

* `kaggle224`: the 224-pixel tiles of Kaggle `whats2000/breast-cancer-semantic-segmentation-bcss`: folders `train`,
  `train_mask`, `val`, `val_mask`, `test` and (never published) `test_mask`, in the data folder or in its `BCSS`.
  Codes 0, 1, 2. In the published split, tiles of every patient are in every split, so scores are too high. Splitting by
  institute avoids this.
* `kaggle512`: the 512-pixel tiles of the same source: `train_512`, `train_mask_512`, `val_512`, `val_mask_512`, in the
  data folder or in its `BCSS_512`. The 22 original codes; the published split is by the institutes of the challenge.
* `roi`: whole regions, `images` and `masks`, as the original data set provides them; they are cut into patches here.

`data/names.py` describes the names of the files. The names give 0.25 micrometers per pixel (or 0, where it was cut
off), which is nominal; the value that is used comes from `DataSettings`.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from bcss_jax.common.regular_file import check_regular_file, real_path
from bcss_jax.data import names, synthetic
from bcss_jax.data.image_files import image_size
from bcss_jax.data.image_folder import LeftOut, comparable, list_images, misspelled
from bcss_jax.data.resolution.check import check_mpp
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.labels import SCHEME_CODES

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
HOLD_OUT_INSTITUTES = ("OL", "LL", "E2", "EW", "GM", "S3")  # the test set of the BCSS challenge; "val" here

# For each split: folder of the images, folder of the masks, split.
FOLDERS = {
    "kaggle224": tuple((split, f"{split}_mask", split) for split in SPLITS),
    "kaggle512": tuple((f"{split}_512", f"{split}_mask_512", split) for split in ("train", "val")),
    "roi": (("images", "masks", "train"),),
}
TILE_LAYOUTS = ("sample", *FOLDERS)  # the sample is drawn, not found
SLIDES = "slides"
LAYOUTS = (*TILE_LAYOUTS, SLIDES)
_RAW_FOLDERS = ("imagesTr", "labelsTr", "imagesVal", "labelsVal", "imagesTs", "labelsTs")  # of nnU-Net
_READ_FOLDERS = {name for folders in FOLDERS.values() for images, masks, _ in folders for name in (images, masks)}
SUBFOLDER = {"kaggle224": "BCSS", "kaggle512": "BCSS_512", "roi": "."}  # where the Kaggle archive keeps them
CODES = {"sample": "bcss22", "kaggle224": "kaggle3", "kaggle512": "bcss22", "roi": "bcss22", SLIDES: SCHEME_CODES}

HOW_TO_GET = (
    "get BCSS (CC0) from Kaggle whats2000/breast-cancer-semantic-segmentation-bcss, or the regions through github "
    "PathologyDataScience/BCSS (their rgbs_colorNormalized folder is `images` here); "
    "or try the built-in sample first: --config=configs/unet.py"
)


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which data set, how it is split, and which defects are tolerated.

    Only `layout` matters for the built-in sample.

    Attributes:
      layout: "sample" (drawn by `data/synthetic.py`), "kaggle224", "kaggle512", "roi" or "slides".
      dir: the data folder.
      split_by: "published", or "institute": val = `HOLD_OUT_INSTITUTES`, train = all others, in any folder.
        Regions have no published split, so both values split them by institute.
      mpp: micrometers per pixel of the files; for slides, of the patches that are cut from them.
      patch_size: side of the patches that are cut from regions and slides, in pixels; None: whole regions. The other
        layouts are already cut.
      stride: distance between patches, in pixels. The remainder at the right and lower edge of a region is not used; in
        a slide, the last patch ends at the edge.
      allow_missing: leave out images without a mask and masks without an image, instead of raising an error.
      max_bad: share of the pairs of files, from 0 to 1, that may be unusable and are then left out.
      slide_list: CSV list of slides with their annotations, in place of `dir`.
      region: slides: name of the annotations within which everything is annotated; "": none.
    """

    layout: str
    dir: str | os.PathLike | None = None
    split_by: str = "published"
    mpp: float = 0.25
    patch_size: int | None = 224
    stride: int = 224
    allow_missing: bool = False
    max_bad: float = 0.0
    slide_list: str | os.PathLike | None = None
    region: str = ""

    @property
    def folder(self) -> Path | None:
        """The data folder, with `~` expanded; None without one."""
        return Path(self.dir).expanduser() if self.dir else None

    @property
    def list_file(self) -> Path | None:
        """The list of slides, with `~` expanded; None without one."""
        return Path(self.slide_list).expanduser() if self.slide_list else None

    @property
    def codes(self) -> str:
        """The code book of the masks, "bcss22" or "kaggle3", or "labels" if they hold labels."""
        return CODES[self.layout]

    @property
    def effective_split_by(self) -> str:
        """How the tiles are in fact split: "published", "institute", or "built-in" for the sample."""
        return {"sample": "built-in", "roi": "institute"}.get(self.layout, self.split_by)


@dataclasses.dataclass(frozen=True)
class TileOrigin:
    """The description of a tile, without its pixels and its split.

    Attributes:
      key: unique in the data set and stable: the stem of the tile's file, or what it would be.
      barcode: of the slide, for example "TCGA-A2-A0D2-DX1".
      patient: for example "TCGA-A2-A0D2".
      institute: for example "A2".
      x: offset in the region, in pixels from the left (see `data/names.py` about the published tiles).
      y: offset in the region, in pixels from the top.
      mpp: nominal micrometers per pixel.
      codes: code book of the mask, "bcss22" or "kaggle3".
    """

    key: str
    barcode: str
    patient: str
    institute: str
    x: int
    y: int
    mpp: float
    codes: str


@dataclasses.dataclass(frozen=True)
class Tile(TileOrigin):
    """One image with its mask: a pair of files, or a window of such a pair.

    Attributes:
      image: the image file. It may be missing: `checks.check_tiles` handles that.
      mask: the mask file. It may be missing too; None for images that were published without masks.
      split: "train", "val" or "test".
      window: (x, y, size) in pixels of the files, or None for the whole files.
    """

    image: Path
    mask: Path | None
    split: str
    window: tuple[int, int, int] | None


def find_tiles(
    settings: DataSettings,
    *,
    required: tuple[str, ...] = ("train", "val"),
    with_unlabeled: bool = False,
    refuse: Callable[[DataError], None] | None = None,
    left_out: LeftOut | None = None,
) -> list[Tile]:
    """Lists the tiles of a data folder, sorted by key.

    No pixel is read (only the header of regions, for their size). An image without a mask and a mask without an image
    are listed too; `checks.check_tiles` refuses or counts them. The published kaggle224 test images, which have no
    masks at all, are left out, unless `with_unlabeled` asks for them.

    Args:
      settings: which data set.
      required: the splits that must not be empty.
      with_unlabeled: list the test images that have no masks, in the split "test" and with the mask None.
      refuse: called with the error of a single file (its name, a link, the size of a region), which is then left out.
        None: the error is raised.
      left_out: gets what else is there and left out.

    Raises:
      ConfigError: a setting is invalid.
      DataError: folders are missing or empty, a name does not say its slide, two files have the same name, a link goes
        in circles or out of the data folder, a region is smaller than a patch, or a required split has no tile.
    """
    _check_settings(settings)
    home = _home(settings.layout, settings.folder)
    refuse, left_out = refuse or _raise, LeftOut() if left_out is None else left_out
    left_out.folders += _unread_folders(settings.layout, settings.folder, home)
    tiles = []
    for image_folder, mask_folder, split in FOLDERS[settings.layout]:
        masks = None if split == "test" and not (home / mask_folder).exists() else home / mask_folder
        if masks is None and not (with_unlabeled and (home / image_folder).exists()):
            if (home / image_folder).exists():
                left_out.unlabeled += _files(home / image_folder, home, refuse, left_out, regions=False).values()
        else:
            tiles += _tiles_of_split(settings, home, home / image_folder, masks, split, refuse, left_out)
    if settings.effective_split_by == "institute":
        tiles = [_split_by_institute(tile) if tile.mask else tile for tile in tiles]
    tiles.sort(key=lambda tile: tile.key)
    by_key = {}
    for tile in tiles:
        if tile.key in by_key:
            refuse(_same_name(by_key[tile.key].image, tile.image))
        by_key.setdefault(tile.key, tile)
    tiles = list(by_key.values())
    require_splits(tiles, required)
    _compare_mpp_of_names(tiles, settings)
    _compare_size_of_name(tiles, settings)
    return tiles


def require_splits(tiles: Iterable[Tile], required: tuple[str, ...] = ("train", "val")) -> None:
    """Checks that there are tiles to train on and tiles to validate on.

    Raises:
      DataError: a required split has no tile; the message names the institutes that were found.
    """
    tiles = list(tiles)
    present = {tile.split for tile in tiles}
    for split in required:
        if split not in present:
            found = ", ".join(sorted({tile.institute for tile in tiles})) or "none"
            folder = printable(tiles[0].image.parent) if tiles else "the data folder"
            raise DataError(
                f"{folder}: expected usable tiles for {split}, found none (institutes there: {found}; a split by "
                f"institute holds out {', '.join(HOLD_OUT_INSTITUTES)} as val); add data of such institutes, or use "
                "the published split"
            )


def _tiles_of_split(
    settings: DataSettings,
    home: Path,
    images: Path,
    masks: Path | None,
    split: str,
    refuse: Callable,
    left_out: LeftOut,
) -> list[Tile]:
    """Lists the tiles of one pair of folders; `masks` is None for images that were published without masks."""
    is_roi = settings.layout == "roi"
    image_files = _files(images, home, refuse, left_out, regions=is_roi)
    mask_files = {} if masks is None else _files(masks, home, refuse, left_out, regions=is_roi)
    if not image_files:
        raise _not_found(settings.layout, settings.folder, f"no image in {printable(images)}")
    tiles = []
    for stem in sorted(image_files.keys() | mask_files.keys()):
        fields = names.parse_region_name(stem) if is_roi else names.parse_tile_name(stem)
        assert fields is not None, "`_files` lists only names that can be parsed"
        whole = Tile(
            key=stem,
            image=image_files.get(stem, images / f"{stem}.png"),
            mask=None if masks is None else mask_files.get(stem, masks / f"{stem}.png"),
            split=split,
            **dataclasses.asdict(fields),
            mpp=float(settings.mpp),
            codes=settings.codes,
            window=None,
        )
        try:
            tiles += (
                _patches(whole, settings.patch_size, settings.stride) if is_roi and settings.patch_size else [whole]
            )
        except DataError as error:
            refuse(error)
    return tiles


def _compare_mpp_of_names(tiles: list[Tile], settings: DataSettings) -> None:
    """Logs a warning if names say another um per pixel than the setting."""
    said, others = names.mpp_of_names([tile.key for tile in tiles], settings.mpp)
    if others:
        first, _ = others[0]
        values = ", ".join(sorted(text for text in said if names.contradicts(text, settings.mpp)))
        log.warning(
            "%s: the names of %d of %d tiles say %s um per pixel (first %s), the setting data.mpp says %g; the setting "
            "is used, so correct it if the names are right",
            printable(settings.folder or ""),
            len(others),
            len(tiles),
            values,
            printable(tiles[first].key),
            settings.mpp,
        )


def _compare_size_of_name(tiles: list[Tile], settings: DataSettings) -> None:
    """Logs a warning if the first tile has another size than its name says: its um per pixel may have changed too."""
    tile = next((tile for tile in tiles if tile.window is None), None)
    said = names.size_of(tile.key) if tile else None
    if tile is None or not said:
        return
    try:
        width, _ = image_size(tile.image)
    except DataError:  # reported when its pixels are read
        return
    if width != said:
        log.warning(
            "%s: its name says %d pixels, found %d; if tiles were scaled, they have %.4g times the um per pixel, and "
            "the setting data.mpp, %g, must be that of the scaled tiles",
            printable(tile.image),
            said,
            width,
            said / width,
            settings.mpp,
        )


def _split_by_institute(tile: Tile) -> Tile:
    return dataclasses.replace(tile, split="val" if tile.institute in HOLD_OUT_INSTITUTES else "train")


def check_mpp_setting(mpp: float, layout: str) -> None:
    """Raises ConfigError unless the setting `data.mpp` is a possible um per pixel, and for the sample that of it."""
    check_mpp(mpp, f"--config.data.mpp={mpp}", remedy="give the um per pixel of the images")
    if layout == "sample" and mpp != synthetic.MPP:
        raise ConfigError(
            f"--config.data.mpp={mpp}: the built-in sample has {synthetic.MPP} um per pixel; leave the setting out"
        )


def _check_settings(settings: DataSettings) -> None:
    if settings.layout not in FOLDERS:
        raise ConfigError(f"layout {settings.layout!r} is none of {', '.join(FOLDERS)}")
    if settings.split_by not in ("published", "institute"):
        raise ConfigError(f"split {settings.split_by!r} is neither published nor institute")
    check_mpp_setting(settings.mpp, settings.layout)
    if (settings.patch_size is not None and settings.patch_size < 1) or settings.stride < 1:
        raise ConfigError(
            f"patch_size and stride must be 1 pixel or more; found {settings.patch_size} and {settings.stride}"
        )


def _home(layout: str, root: Path | None) -> Path:
    """Returns the folder that holds the layout's folders: the data folder, or the Kaggle archive's folder in it."""
    needed = [folder for pair in FOLDERS[layout] if pair[2] != "test" for folder in pair[:2]]
    if root is None:
        raise _not_found(layout, None, "no folder given")
    candidates = [root] if SUBFOLDER[layout] == "." else [root, root / SUBFOLDER[layout]]
    missing = [[folder for folder in needed if not os.path.lexists(home / folder)] for home in candidates]
    complete = [home for home, absent in zip(candidates, missing, strict=True) if not absent]
    if len(complete) == 2 and not complete[0].samefile(complete[1]):
        remedy = f"name {printable(complete[1])} as the data folder, or move it away"
        raise _not_found(layout, root, f"them twice, in the folder itself and in {SUBFOLDER[layout]}", remedy)
    for home in complete[:1] or candidates:
        _refuse_misspelled(home, [folder for pair in FOLDERS[layout] for folder in pair[:2]])
    if complete:
        _refuse_link(complete[0], root)
        return complete[0]
    if not root.is_dir():
        raise _not_found(layout, root, "no such folder")
    nearest = min(range(len(candidates)), key=lambda number: len(missing[number]))
    absent = "none of them" if missing[nearest] == needed else f"no {', '.join(missing[nearest])}"
    raise _not_found(layout, root, absent)


def _unread_folders(layout: str, root: Path | None, home: Path) -> list[Path]:
    """Returns the layout's folders in the data folder if the Kaggle archive's folder in it is read instead."""
    if root is None or home == root:
        return []
    return [root / folder for pair in FOLDERS[layout] for folder in pair[:2] if (root / folder).exists()]


def _refuse_misspelled(home: Path, folders: list[str]) -> None:
    """Raises DataError for a folder whose name differs by case: its images would be left out."""
    for folder, found in misspelled(home, folders).items():
        raise DataError(f"{printable(home / found)}: expected the name {folder}; rename the folder")


def _not_found(layout: str, folder: Path | None, found: str, remedy: str = HOW_TO_GET) -> DataError:
    folders = ", ".join(folder for pair in FOLDERS[layout] if pair[2] != "test" for folder in pair[:2])
    where = "" if SUBFOLDER[layout] == "." else f" (there or in {SUBFOLDER[layout]}/)"
    return DataError(
        f"{printable(folder or 'data_dir')}: expected the layout {layout} with the folders {folders}{where}, found "
        f"{found}; {remedy}"
    )


def _raise(error: DataError) -> None:
    raise error


def _files(
    folder: Path, root: Path, refuse: Callable[[DataError], None], left_out: LeftOut, *, regions: bool
) -> dict[str, Path]:
    """Lists the image files of a folder by stem. Names and links that cannot be trusted are refused."""
    parse = names.parse_region_name if regions else names.parse_tile_name
    _refuse_link(folder, root)
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: expected a folder, found a file; restore the folder")
    files, seen = {}, {}
    for path in list_images(folder, left_out):
        stem = os.path.splitext(path.name)[0]
        try:
            if path.is_symlink():
                _refuse_link(path, root)
            check_regular_file(path, "an image file", "remove it")
            # Names that differ by case only: capitals sort first, so the file in lower case is named as the copy.
            if comparable(stem) in seen:
                raise _same_name(seen[comparable(stem)], path)
            if parse(stem) is None:
                example = names.REGION_EXAMPLE if regions else names.TILE_EXAMPLE
                raise DataError(
                    f"{printable(path)}: expected a name such as {example}, which gives slide and place, "
                    "found another; rename or remove the file"
                )
            written = names.mpp_of(stem)
            if written not in (None, names.CUT_OFF):
                check_mpp(float(written), f"{printable(path)}: its name", error_type=DataError, remedy="rename it")
        except DataError as error:
            refuse(error)
            continue
        seen[comparable(stem)] = files[stem] = path
    return files


def _refuse_link(path: Path, root: Path) -> None:
    """Raises DataError for a path that leads in circles, to nothing, or out of the data folder."""
    try:
        target, home = real_path(path, strict=True), real_path(root, strict=True)
    except OSError as error:
        raise DataError(
            f"{printable(path)}: expected a file or folder, found a link that leads nowhere or in circles; remove it"
        ) from error
    if not target.is_relative_to(home):
        raise DataError(
            f"{printable(path)}: expected data inside {printable(root)}, found a link to {printable(target)}; "
            "copy the data there, or name the folder that contains them as the data folder"
        )


def _same_name(first: Path, second: Path) -> DataError:
    return DataError(
        f"{printable(second)}: expected one tile of that name, found {printable(first)} too; remove or rename one of "
        "them"
    )


def _patches(region: Tile, size: int, stride: int) -> list[Tile]:
    """Cuts a region into windows on a regular grid; the remainder at the edges is not used."""
    source = region.image if region.image.exists() else region.mask
    assert source is not None, "regions are published with masks"
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


def read_folders(option: str, folder: Path) -> list[tuple[str, Path]]:
    """Returns the folder of a data set and its folders of images and masks that exist.

    Args:
      option: that names the data set, for messages.
      folder: of the data set.

    Returns:
      Pairs of a description and a folder; the data set itself is the first one.
    """
    found = [folder / name for name in (*_READ_FOLDERS, *_RAW_FOLDERS)]
    found += [inner / name for inner in folder.glob("*/") for name in _READ_FOLDERS]  # BCSS/train and its like
    return [(option, folder), *((f"{option}/{path.relative_to(folder)}", path) for path in found if path.is_dir())]
