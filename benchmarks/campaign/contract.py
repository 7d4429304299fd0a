"""The contract for bad input: for every kind, the command, the exit code and the words that the line must have."""

import contextlib
import importlib.util
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import inputs
import numpy as np
import tifffile
import trials
from inputs import Inputs
from PIL import Image, PngImagePlugin
from trials import Outcome, Trial

VERIFY = ("verify", "--data.layout=kaggle224", "--data.dir={work}/tiles")
SEGMENT = ("--slide={work}/slide.tif", "--output={out}", "--readers=1", "--min_area_um2=0")
TILE = f"{inputs.tile_name('TCGA-A2-A0D2', 0)}.png"
IMAGE, MASK = f"tiles/train/{TILE}", f"tiles/train_mask/{TILE}"


def outcomes(source: Inputs, rounds: int, seed: int, keep: Path, only: str) -> Iterator[Outcome]:
    """Runs the rows."""
    yield from trials.run_rows(rows(source), rounds, seed, keep, only)


def rows(source: Inputs) -> Iterator[Trial]:
    """Yields a trial for every row of the contract that is tried with a command."""
    yield from tile_rows(source)
    yield from setting_rows(source)
    yield from checkpoint_rows(source)
    yield from slide_rows(source)
    yield from list_rows(source)


def tile_rows(source: Inputs) -> Iterator[Trial]:
    """Yields the rows about tiles: `data verify` on a data set with one damaged file."""
    rng = np.random.default_rng(0)
    image, codes = inputs.tissue(inputs.SIDE, inputs.SIDE, seed=5)

    def row(name: str, code: int, says: str, damage: Callable[[Path], object]) -> Trial:
        def prepare(work: Path) -> None:
            source.copier("tiles")(work)
            damage(work)

        return Trial("contract", name, "data", VERIFY, (code,), says, prepare)

    def saved(where: str, picture, **options) -> Callable[[Path], object]:
        picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        return lambda work: picture.save(work / where, **options)

    def written(where: str, content: bytes) -> Callable[[Path], object]:
        return lambda work: (work / where).write_bytes(content)

    def palette(shown: list[int], index: np.ndarray) -> Image.Image:
        picture = Image.fromarray(index, "P")
        picture.putpalette(shown)
        return picture

    def text(work: Path) -> None:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("comment", "x" * 100_000_000, zip=True)
        Image.fromarray(image).save(work / IMAGE, pnginfo=chunks)

    def emptied(work: Path) -> None:
        shutil.rmtree(work / "tiles")
        (work / "tiles").mkdir()

    def copied(work: Path, *, patient: str, pixels: bool) -> None:
        name = f"{inputs.tile_name(patient, 7)}.png"
        for folder, content in (("val", image), ("val_mask", codes)):
            target = work / "tiles" / folder / name
            if pixels:
                shutil.copy(work / "tiles" / folder.replace("val", "train") / TILE, target)
            else:
                Image.fromarray(content).save(target)

    def looped(work: Path) -> None:
        (work / IMAGE).unlink()
        (work / IMAGE).symlink_to(TILE)

    def outside(work: Path) -> None:
        (work / IMAGE).rename(work / "other.png")
        (work / IMAGE).symlink_to(work / "other.png")

    def fifo(work: Path) -> None:
        (work / MASK).unlink()
        os.mkfifo(work / MASK)

    def twice(work: Path) -> None:
        for folder in ("train", "train_mask"):
            path = work / "tiles" / folder / TILE
            shutil.copy(path, path.with_name(TILE.replace(".png", ".PNG")))

    def named(name: str) -> Callable[[Path], object]:
        return lambda work: os.rename(work / IMAGE, (work / IMAGE).with_name(name))

    mixed = rng.integers(0, 256, codes.shape).astype(np.uint8)
    clear = np.dstack([image, np.full(codes.shape, 128, np.uint8)])
    yield row("B01 empty data folder", 3, "kaggle224", emptied)
    yield row("B02 image without mask", 3, "mask", lambda work: (work / MASK).unlink())
    yield row("B03 mask without image", 3, "image", lambda work: (work / IMAGE).unlink())
    yield row("B04 mask of another size", 3, r"64x64.*63x63", saved(MASK, codes[:63, :63]))
    yield row("B05 mask with a palette of colors", 0, "", saved(MASK, palette([0, 0, 0, 200, 0, 0, 0, 200, 0], codes)))
    yield row("B05 mask in RGB", 3, "channel|RGB", saved(MASK, np.dstack([codes] * 3)))
    yield row(
        "B06 mask value outside the scheme", 3, "3: ", saved(MASK, np.where(mixed < 9, 3, codes).astype(np.uint8))
    )
    yield row("B07 mask resampled", 3, "resampled", saved(MASK, mixed))
    yield row("B08 nothing but ignored pixels", 0, "", saved(MASK, codes * 0))
    yield row("B10 image of 16 bits", 3, "16 bits", saved(IMAGE, Image.fromarray(codes.astype(np.uint16))))
    yield row("B10 mask of 16 bits with codes", 0, "", saved(MASK, Image.fromarray(codes.astype(np.uint16))))
    yield row("B11 transparent image", 3, "opaque", saved(IMAGE, clear))
    yield row("B12 gray image", 3, "RGB", saved(IMAGE, image[..., 0]))
    yield row("B12 CMYK image", 3, "CMYK", saved(IMAGE, Image.fromarray(image).convert("CMYK"), format="JPEG"))
    yield row("B13 truncated image", 3, TILE[:20], lambda work: os.truncate(work / IMAGE, 900))
    yield row("B14 empty image", 3, "empty", written(IMAGE, b""))
    yield row("B15 bomb of pixels", 3, "pixels", written(IMAGE, png_header(60_000, 60_000)))
    yield row("B16 bomb of text", 3, TILE[:20], text)
    yield row("B17 JPEG named .png", 0, "JPEG", saved(IMAGE, image, format="JPEG", quality=95))
    yield row("B18 name with a line break", 3, "name", named("a\nb.png"))
    yield row("B18 name that is not UTF-8", 3, "name", named(os.fsdecode(b"\xff\xfe.png")))
    yield row("B19 link to itself", 3, "link", looped)
    yield row("B19 link out of the folder", 3, "link", outside)
    yield row("B20 names that differ by case", 3, "both|name", twice)
    yield row(
        "B21 patient in train and val, as published",
        0,
        "more than one split",
        lambda work: copied(work, patient="TCGA-A2-A0D2", pixels=False),
    )
    yield row(
        "B22 same pixels in train and val", 3, "same", lambda work: copied(work, patient="TCGA-OL-A66H", pixels=True)
    )
    yield row(
        "B23 mask of floats with NaN", 3, "float", lambda work: tifffile.imwrite(work / MASK, codes * np.float32("nan"))
    )
    yield row("FIFO in place of a mask", 3, "FIFO", fifo)


def png_header(width: int, height: int) -> bytes:
    """Returns a PNG that claims a size and has few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def setting_rows(source: Inputs) -> Iterator[Trial]:
    """Yields the rows about settings, which are refused before anything is read."""

    def row(name: str, says: str, *settings: str) -> Trial:
        given = {setting.split("=")[0] for setting in settings}  # absl takes each setting once, the config first
        arguments = [*(a for a in inputs.TRAIN if a.split("=")[0] not in given), *settings]
        arguments.sort(key=lambda argument: not argument.startswith("--config="))
        return Trial("contract", name, "train", tuple(arguments), (2,), says, prepare)

    def prepare(work: Path) -> None:
        source.copier("tiles")(work)
        for patient in ("TCGA-A2-A0D2", "TCGA-OL-A5D6"):
            for folder, pixels in zip(
                ("images", "masks"), inputs.tissue(300, 300, seed=sum(map(ord, patient))), strict=True
            ):
                (work / "regions" / folder).mkdir(parents=True, exist_ok=True)
                name = f"{patient}-DX1_xmin100_ymin200_MPP-0.2500.png"
                Image.fromarray(pixels).save(work / "regions" / folder / name)

    regions = ("--config=configs/unet.py:roi", "--config.data.dir={work}/regions")
    yield row("B24 unknown setting", "learning_rate", "--config.optimizer.learning_rat=1")
    yield row("B24 setting of another type", "epochs", "--config.epochs=many")
    yield row("B24 negative learning rate", "learning_rate", "--config.optimizer.learning_rate=-1")
    yield row("B24 infinite learning rate", "learning_rate", "--config.optimizer.learning_rate=inf")
    yield row("B24 NaN", "weight_decay", "--config.optimizer.weight_decay=nan")
    yield row("um per pixel that is a magnification", "mpp", "--config.data.mpp=40")
    yield row("blur beyond reason", "blur_sigma", "--config.augment.blur_sigma=1e9")
    yield row("seed beyond 32 bits", "seed", "--config.seed=99999999999999999999")
    yield row("batch beyond memory", "batch_size", "--config.batch_size=1000000000000")
    yield row("patch beyond a region", "patch_size", *regions, "--config.data.patch_size=100000")


def checkpoint_rows(source: Inputs) -> Iterator[Trial]:
    """Yields the rows about checkpoints and other files that could carry a program."""
    with_run = ("--checkpoint={work}/run", *SEGMENT)

    def row(name: str, code: int, says: str, damage, command="segment", arguments=with_run, changes=()) -> Trial:
        def prepare(work: Path) -> None:
            source.copier("run", "slide.tif", "tiles")(work)
            damage(work)

        untouched = lambda work: "the canary was touched" if (work / "canary").exists() else ""  # noqa: E731
        return Trial("contract", name, command, arguments, (code,), says, prepare, untouched, may_change=changes)

    def emptied(work: Path) -> None:
        shutil.rmtree(work / "run/checkpoints")
        (work / "run/checkpoints").mkdir()

    def edited(key: str, value: object) -> Callable[[Path], object]:
        def edit(work: Path) -> None:
            for path in (work / "run/checkpoints").glob("*/about/*"):
                with contextlib.suppress(ValueError):  # Orbax's own files are empty
                    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

        return edit

    class Canary:
        def __init__(self, path: Path):
            self.path = path

        def __reduce__(self):
            return os.mkdir, (str(self.path),)

    def pickled(work: Path) -> None:
        with zipfile.ZipFile(work / "weights.pth", "w") as archive:
            archive.writestr("weights/data.pkl", pickle.dumps(Canary(work / "canary")))
            archive.writestr("weights/version", "3\n")

    def objects(work: Path) -> None:
        np.savez(work / "weights.npz", a=np.array([Canary(work / "canary")], object))

    def archive(work: Path) -> None:
        shutil.rmtree(work / "run")
        with zipfile.ZipFile(work / "run", "w") as file:
            file.writestr("../canary", "")

    def program(work: Path) -> None:
        for name in ("config.py", "__init__.py", "conftest.py"):
            (work / "run" / name).write_text(f"open({str(work / 'canary')!r}, 'w')")

    kept = (a for a in inputs.TRAIN if not a.startswith(("--config=", "--config.model")))
    pretrained = ("--config=configs/unet_resnet101.py:kaggle224,few", *kept)
    other = tuple(a.replace("{out}", "{work}/run") for a in inputs.TRAIN if "width" not in a)
    yield row("B26 folder without checkpoints", 3, "no checkpoint", emptied)
    yield row(
        "B27 run of another network",
        2,
        "width",
        lambda work: None,
        "train",
        (*other, "--config.model.width=6"),
        ("run",),
    )
    yield row("B28 edited label scheme", 3, "damaged|digest|SHA-256|changed", edited("label_scheme", {}))
    yield row("B28 edited data", 3, "damaged|digest|SHA-256|changed", edited("data", {"image_mean": [0, 0, 0]}))
    yield row("B29 newer format", 3, "format|damaged|SHA-256|changed", edited("format_version", 99))
    for name, write in (("pth", pickled), ("npz", objects)):
        arguments = (
            *(a for a in pretrained if "width" not in a and "depth" not in a),
            f"--config.pretrained={{work}}/weights.{name}",
        )
        code = 2 if name == "pth" and importlib.util.find_spec("torch") is None else 3  # the remedy is to install it
        yield row(f"B30 object in .{name}", code, f"weights.{name}", write, "train", arguments)
    yield row("B31 ZIP in place of a run", 3, "run", archive)
    yield row("B32 program in the run's folder", 0, "", program)
    evaluate = ("--checkpoints={work}/run", "--output={out}", "--data.dir={work}/tiles", "--prepared_dir={work}/tmp")
    yield row("B48 nothing to evaluate", 3, "no checkpoint", emptied, "evaluate", evaluate)


def slide_rows(source: Inputs) -> Iterator[Trial]:
    """Yields the rows about slides: `segment` with a drawn or damaged slide."""
    pixels = inputs.tissue(*inputs.SLIDE)[0]

    def row(
        name: str, codes: int | tuple[int, ...], says: str, write: Callable[[Path], object], *options: str, check=None
    ):
        arguments = (f"--checkpoint={source.run}", *SEGMENT, *options)
        codes = codes if isinstance(codes, tuple) else (codes,)
        return Trial("contract", name, "segment", arguments, codes, says, write, check)

    def drawn(**options) -> Callable[[Path], object]:
        return lambda work: inputs.slide(work / "slide.tif", **options)

    def resolution(x: float, y: float) -> Callable[[Path], object]:
        options = {"resolution": (x, y), "resolutionunit": "CENTIMETER"}
        return lambda work: tifffile.imwrite(
            work / "slide.tif", pixels, tile=(64, 64), photometric="rgb", metadata=None, **options
        )

    def patched(tag: str, value: int) -> Callable[[Path], object]:
        def write(work: Path) -> None:
            inputs.slide(work / "slide.tif")
            with tifffile.TiffFile(work / "slide.tif", mode="r+") as tiff:
                tiff.pages.first.tags[tag].overwrite(value)

        return write

    def looped(work: Path) -> None:
        inputs.slide(work / "slide.tif")
        content = bytearray((work / "slide.tif").read_bytes())
        (first,) = struct.unpack_from("<I", content, 4)
        (count,) = struct.unpack_from("<H", content, first)
        struct.pack_into("<I", content, first + 2 + 12 * count, first)
        (work / "slide.tif").write_bytes(content)

    def spoiled(tiles: int, side: int = 16) -> Callable[[Path], object]:
        def write(work: Path) -> None:
            inputs.slide(work / "slide.tif", tile=(side, side))
            with tifffile.TiffFile(work / "slide.tif") as tiff:
                page = tiff.pages.first
                places = list(zip(page.dataoffsets, page.databytecounts, strict=True))[40 : 40 + tiles]
            with open(work / "slide.tif", "r+b") as file:
                for offset, count in places:
                    file.seek(offset)
                    file.write(b"\x5a" * count)

        return write

    def with_file(name: str, write: Callable[[Path], object]) -> Callable[[Path], object]:
        def both(work: Path) -> None:
            inputs.slide(work / "slide.tif")
            write(work / name)

        return both

    def whole(work: Path) -> str:
        height, width = tifffile.imread(next((work / "out").rglob("labels.ome.tif"))).shape[-2:]
        return "" if (width, height) == inputs.SLIDE else f"labels of {width}x{height}"

    def written_before(work: Path) -> None:
        inputs.slide(work / "slide.tif")
        (work / "out").mkdir()
        (work / "out/slide").mkdir()
        (work / "out/slide/summary.json").write_text('{"mine": true}')
        (work / "out/slide/labels.ome.tif").write_text("mine")

    def kept(work: Path) -> str:
        return "" if (work / "out/slide/labels.ome.tif").read_text() == "mine" else "another's file was replaced"

    stripe = inputs.tissue(4000, 3)[0]
    glass = np.full((256, 320, 3), 240, np.uint8)
    yield row("B33 no um per pixel", 3, "um per pixel|--mpp", drawn(mpp=None))
    for mpp in (0, -0.25, "nan", "inf", 250, 40):
        yield row(f"B34 --mpp={mpp}", 2, "mpp", drawn(), f"--mpp={mpp}")
    yield row("B34 um in nanometers", 3, "um|mpp", drawn(mpp=250))
    yield row("B34 x and y differ", (0, 3), "differ|square|um", resolution(40_000, 20_000))
    yield row(
        "B36 one tile of 320 damaged", 0, "cannot be (read|decoded)|unreadable|invalid", spoiled(1), "--tissue=all"
    )
    yield row(
        "B36 a quarter of the tiles damaged", 3, "cannot be|damaged|unreadable|invalid", spoiled(80), "--tissue=all"
    )
    yield row("B37 directory that points to itself", (0, 3), "", looped)
    yield row("B37 tile of size 0", 3, "slide.tif", patched("TileWidth", 0))
    yield row("B37 more tiles than bytes", 3, "slide.tif", patched("ImageWidth", 2**31 - 1))
    yield row("B38 one pixel", 0, "", drawn(pixels=pixels[:1, :1], tile=None))
    yield row("B38 strip", 0, "", drawn(pixels=stripe, tile=None))
    yield row("B40 glass", 0, "", drawn(pixels=glass))
    yield row("white everywhere", 0, "white", drawn(pixels=np.full_like(glass, 255)))
    yield row("B41 without tiles", 0, "", drawn(tile=None), check=whole)
    yield row("B42 gray", (0, 3), "gray", drawn(pixels=np.dstack([pixels[..., 0]] * 3)), "--tissue=all")
    wrong_size = with_file("mask.png", lambda path: Image.fromarray(np.ones((9, 70), np.uint8)).save(path))
    yield row("B43 tissue mask of another shape", 3, "mask.png", wrong_size, "--tissue={work}/mask.png")
    yield row("B43 truth of another shape", 3, "mask.png", wrong_size, "--truth={work}/mask.png")
    yield row("B44 results of another program", 2, "", written_before, "--overwrite", check=kept)
    fifo = with_file("regions.geojson", lambda path: os.mkfifo(path))
    yield row("FIFO as tissue", 3, "FIFO", fifo, "--tissue={work}/regions.geojson")
    yield row("FIFO as slide", 3, "FIFO", lambda work: os.mkfifo(work / "slide.tif"))
    yield row("folder as slide", 3, "folder", lambda work: (work / "slide.tif").mkdir())
    yield row("device as truth", 3, "device", drawn(), "--truth=/dev/zero")
    yield row("window beyond memory", 2, "window", drawn(), "--window=1000000")
    yield row("infinite smallest area", 2, "min_area_um2", drawn(), "--min_area_um2=inf")
    yield row("name of 300 characters", (2, 3), "", drawn(), "--slide={work}/" + "n" * 300 + ".tif")


def list_rows(source: Inputs) -> Iterator[Trial]:
    """Yields the rows about lists of slides."""
    arguments = (f"--checkpoint={source.run}", "--slides={work}/list.csv", "--output={out}", "--readers=1")

    def row(name: str, code: int, says: str, content: str | bytes, encoding: str = "utf-8", slides: int = 2) -> Trial:
        def prepare(work: Path) -> None:
            for number in range(2):
                inputs.slide(work / f"s{number}.tif")
            os.truncate(work / "s1.tif", 4000) if slides == 1 else None
            text = content if isinstance(content, bytes) else content.encode(encoding)
            (work / "list.csv").write_bytes(text)

        def all_there(work: Path) -> str:
            found = len(list((work / "out").glob("*/labels.ome.tif")))
            return "" if code or found == slides else f"{found} slides segmented, {slides} in the list"

        return Trial("contract", name, "segment", arguments, (code,), says, prepare, all_there)

    yield row("B35 one slide truncated", 6, "", "slide\ns0.tif\ns1.tif\n", slides=1)
    yield row("B45 list with BOM and CRLF", 0, "", 'slide,mpp\r\ns0.tif,0.25\r\n"s1.tif",\r\n', "utf-8-sig")
    yield row("B45 list without the column", 3, "slide", "path\ns0.tif\n")
    yield row("B45 misspelled column", 3, "mmp", "slide,mmp\ns0.tif,0.25\n")
    yield row("NUL in a list", 3, "list.csv", "slide\ns0\0.tif\n")
    yield row("list that is not text", 3, "list.csv", b"\xff\xfe\x00slide\n\x81\x82")
    yield row("um per pixel in a list is a magnification", 3, "mpp|um", "slide,mpp\ns0.tif,40\n")
    yield row("row given twice", 3, "s0", "slide\ns0.tif\ns0.tif\n")
