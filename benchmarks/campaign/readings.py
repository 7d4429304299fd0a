"""One picture stored in many ways: every command reads the same picture, says what it read, or refuses the file.

The slide and its truth are written again and again with other tags, pages, palettes and units. The labels and scores
must equal those of the plain files. A row may also end with 3, and where `said` is given with that text and any result.
"""

import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import inputs
import numpy as np
import tifffile
import trials
from inputs import Inputs
from PIL import Image
from trials import Outcome, Trial

SEGMENT = ("--output={out}", "--readers=1", "--min_area_um2=0", "--tissue=all", "--truth_codes=kaggle3")
UM = 10_000 / 0.25  # pixels per cm
TAGS = {"resolution": (UM, UM), "resolutionunit": "CENTIMETER", "metadata": None}
LOSSY = 0.85  # share of equal labels that is enough where the file is compressed with loss


def outcomes(source: Inputs, rounds: int, seed: int, keep: Path, only: str) -> Iterator[Outcome]:
    """Runs the rows, after the plain slide that the others are compared with."""
    plain = source.folder / "plain"
    if not plain.exists():
        first = _trial("plain", lambda work: _tiled(work / "slide.tif"), source, check=lambda work: _keep(work, plain))
        outcome = trials.run(first)
        if outcome.faults:
            raise RuntimeError(f"the plain slide fails: {outcome}")
        share = (_results(plain)[0] == 1).mean()
        if not 0.2 < share < 0.8:
            raise RuntimeError(f"the trained network labels {100 * share:.0f} % tumor, so that no mistake would show")
    rows = (*slides(source, plain), *resolutions(source), *truths(source, plain), *tissues(source))
    yield from trials.run_rows(rows, rounds, seed, keep, only)


def _keep(work: Path, plain: Path) -> str:
    (work / "out").rename(plain)
    return ""


def _trial(name, write, source, *options, slide="slide.tif", codes=(0,), says="", check=None) -> Trial:
    truth = source.folder / "truth.png"
    scored = () if any(option.startswith("--truth") for option in options) else (f"--truth={truth}",)
    arguments = (f"--checkpoint={source.run}", f"--slide={{work}}/{slide}", *SEGMENT, *scored, *options)
    return Trial("readings", name, "segment", arguments, codes, says, write, check)


def _results(folder: Path) -> tuple[np.ndarray, dict]:
    summary = json.loads(next(folder.glob("*/summary.json")).read_text())
    return tifffile.imread(next(folder.rglob("labels.ome.tif"))), summary


def _same_as(plain: Path, share: float = 1.0) -> Callable[[Path], str]:
    def check(work: Path) -> str:
        if not (work / "out").exists() or not list((work / "out").rglob("labels.ome.tif")):
            return ""  # refused
        found, expected = _results(work / "out")[0], _results(plain)[0]
        if found.shape != expected.shape:
            return f"labels of {found.shape}, expected {expected.shape}"
        equal = (found == expected).mean()
        return "" if equal >= share else f"only {100 * equal:.0f} % of the labels are right"

    return check


def _tiled(path: Path, pixels: np.ndarray | None = None, **options) -> None:
    pixels = inputs.tissue(*inputs.SLIDE)[0] if pixels is None else pixels
    tifffile.imwrite(path, pixels, **({"photometric": "rgb", "tile": (64, 64)} | TAGS | options))


def slides(source: Inputs, plain: Path) -> Iterator[Trial]:
    """Yields rows in which the slide is stored in another way."""
    pixels = inputs.tissue(*inputs.SLIDE)[0]
    small = np.asarray(Image.fromarray(pixels).resize((80, 64)))

    def row(name: str, write, *options, slide="slide.tif", share=1.0, said="", codes=(0, 3)) -> Trial:
        check = None if said else _same_as(plain, share)
        return _trial(name, write, source, *options, slide=slide, codes=codes, says=said, check=check)

    def tiled(stored=pixels, **options) -> Callable[[Path], None]:
        return lambda work: _tiled(work / "slide.tif", stored, **options)

    def pages(*written: tuple[np.ndarray, dict]) -> Callable[[Path], None]:
        def write(work: Path) -> None:
            with tifffile.TiffWriter(work / "slide.tif") as tiff:
                for stored, options in written:
                    tiff.write(stored, **({"photometric": "rgb"} | TAGS | options))

        return write

    for value in range(2, 9):
        stored = np.ascontiguousarray(_stored(pixels, value))
        for kind, options in (("tiles", {}), ("strips", {"tile": None, "rowsperstrip": 16})):
            tag = [(274, "H", 1, value, True)]
            yield row(f"orientation {value} in {kind}", tiled(stored, extratags=tag, **options))
    for form in ("PNG", "JPEG"):
        stored = Image.fromarray(_stored(pixels, 3))
        exif = Image.Exif()
        exif[274] = 3
        name = f"slide.{form.lower()}"

        def write(work: Path, stored=stored, exif=exif, name=name) -> None:
            stored.save(work / name, exif=exif, quality=98)

        yield row(f"orientation 3 in {form}", write, "--mpp=0.25", slide=name, share=1.0 if form == "PNG" else LOSSY)
    whole = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    tile = {"tile": (64, 64)}
    yield row("alpha that is opaque", tiled(np.dstack([pixels, whole]), extrasamples=["UNASSALPHA"]))
    yield row("fourth channel without meaning, zero", tiled(np.dstack([pixels, whole * 0]), extrasamples=[0]))
    yield row("fourth channel without meaning, noise", tiled(np.dstack([pixels, pixels[..., :1]]), extrasamples=[0]))
    clear = tiled(np.dstack([pixels, whole * 0]), extrasamples=["UNASSALPHA"])
    yield row("transparent everywhere", clear, said="transparent|white|alpha")
    yield row("planes R, G, B", tiled(np.ascontiguousarray(pixels.transpose(2, 0, 1)), planarconfig="separate"))
    yield row("LZW with predictor", tiled(compression="lzw", predictor=True))
    yield row("zstd", tiled(compression="zstd"))
    yield row("big endian", _big_endian(pixels))
    yield row("tiles of 16", tiled(tile=(16, 16)))
    yield row("16 bits", tiled(pixels.astype(np.uint16) * 257))
    yield row("floats", tiled(pixels.astype(np.float32) / 255))
    yield row("signed", tiled((pixels // 2).astype(np.int8)))
    yield row("CMYK", tiled(np.asarray(Image.fromarray(pixels).convert("CMYK")), photometric="separated"))
    yield row("strips of JPEG", tiled(tile=None, rowsperstrip=64, compression="jpeg"), share=LOSSY)
    yield row("tiles of JPEG in YCbCr", tiled(compression="jpeg"), share=LOSSY)
    lossy = {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}}
    yield row("tiles of JPEG in RGB", tiled(**lossy), share=LOSSY)
    first = (small, tile)
    yield row("thumbnail first, then the scan in tiles", pages(first, (pixels, tile)))
    yield row("thumbnail in strips first", pages((small, {}), (pixels, tile)))
    yield row("thumbnail in tiles first, then the scan in strips", pages(first, (pixels, {})))
    yield row("thumbnail and scan in strips", pages((small, {}), (pixels, {})))
    yield row("scan first, then a thumbnail", pages((pixels, tile), (small, {"subfiletype": 1})))
    yield row("levels in ascending order", pages((pixels[::4, ::4], tile), (pixels[::2, ::2], tile), (pixels, tile)))
    macro = np.asarray(Image.fromarray(pixels).resize((200, 600)))
    yield row(
        "scan, then a larger macro image", pages((pixels, tile), (macro, {})), said="another|other|larger|macro|image"
    )
    twin = np.ascontiguousarray(pixels[::-1])
    yield row("two scans of one size", pages((pixels, tile), (twin, tile)), said="another|other|several|image|page")
    yield row("scan in a SubIFD", _in_subifd(pixels, small))
    yield row("OME with planes R, G, B", _ome(pixels.transpose(2, 0, 1), "CYX"), slide="slide.ome.tif")
    yield row(
        "OME with three focal planes", _ome(np.stack([pixels, twin, pixels]), "ZYXS"), slide="slide.ome.tif",
        said="plane|focal|Z",
    )  # fmt: skip
    yield row(
        "OME with three times",
        _ome(np.stack([twin, pixels, pixels]), "TYXS"),
        slide="slide.ome.tif",
        said="time|plane|T",
    )
    fluorescence = np.stack([pixels[..., 0], pixels[..., 1], pixels[..., 2], pixels[..., 0]])
    yield row(
        "OME with four channels",
        _ome(fluorescence, "CYX"),
        slide="slide.ome.tif",
        said="channel|plane|gray",
        codes=(0, 3),
    )
    gray = pixels[..., 1]
    yield row("gray, inverted", tiled(gray, photometric="miniswhite"), said="gray|invert|white|RGB")


def _stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns the pixels as they must be stored so that a viewer that follows the tag shows them upright."""
    undo = {
        2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1], 5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p), 7: lambda p: p[::-1, ::-1].transpose(1, 0, 2), 8: lambda p: np.rot90(p, -1),
    }  # fmt: skip
    return np.ascontiguousarray(undo[orientation](pixels))


def _big_endian(pixels: np.ndarray) -> Callable[[Path], None]:
    def write(work: Path) -> None:
        with tifffile.TiffWriter(work / "slide.tif", byteorder=">") as tiff:
            tiff.write(pixels, photometric="rgb", tile=(64, 64), **TAGS)

    return write


def _in_subifd(pixels: np.ndarray, small: np.ndarray) -> Callable[[Path], None]:
    def write(work: Path) -> None:
        with tifffile.TiffWriter(work / "slide.tif") as tiff:
            tiff.write(small, photometric="rgb", tile=(64, 64), subifds=1, **TAGS)
            tiff.write(pixels, photometric="rgb", tile=(64, 64), **TAGS)

    return write


def _ome(pixels: np.ndarray, axes: str, unit: str = "\u00b5m", size: float = 0.25) -> Callable[[Path], None]:
    metadata = {"axes": axes} | {f"PhysicalSize{a}": size for a in "XY"} | {f"PhysicalSize{a}Unit": unit for a in "XY"}
    photometric = "rgb" if "S" in axes else "minisblack"

    def write(work: Path) -> None:
        stored = np.ascontiguousarray(pixels)
        tifffile.imwrite(work / "slide.ome.tif", stored, photometric=photometric, tile=(64, 64), metadata=metadata)

    return write


def resolutions(source: Inputs) -> Iterator[Trial]:
    """Yields rows in which um per pixel stands in another place or unit: it is read rightly, or the slide refused."""
    pixels = inputs.tissue(*inputs.SLIDE)[0]

    def row(name: str, write, *options, slide="slide.tif", codes=(0, 3), said="") -> Trial:
        def check(work: Path) -> str:
            if not list((work / "out").rglob("labels.ome.tif")):
                return ""
            found = _results(work / "out")[1]["slide"]["mpp"]
            right = np.allclose(found, 0.25, rtol=0.01)
            return "" if right or said else f"{found} um per pixel instead of 0.25"

        return _trial(f"resolution: {name}", write, source, *options, slide=slide, codes=codes, says=said, check=check)

    def tagged(x: float, y: float, unit, **options) -> Callable[[Path], None]:
        options = {"resolution": (x, y), "resolutionunit": unit, "metadata": None} | options
        return lambda work: tifffile.imwrite(work / "slide.tif", pixels, photometric="rgb", tile=(64, 64), **options)

    def imagej(unit: str) -> Callable[[Path], None]:
        text = f"ImageJ=1.53t\nunit={unit}\n"
        return tagged(4, 4, "NONE", description=text)

    for unit, size in (("\u00b5m", 0.25), ("nm", 250), ("mm", 0.00025), ("cm", 0.000025), ("um", 0.25)):
        yield row(
            f"OME in {unit.encode('ascii', 'replace').decode()}", _ome(pixels, "YXS", unit, size), slide="slide.ome.tif"
        )
    yield row("OME in pixels", _ome(pixels, "YXS", "pixel", 1.0), slide="slide.ome.tif", codes=(3,))
    yield row("OME that is a magnification", _ome(pixels, "YXS", "\u00b5m", 40), slide="slide.ome.tif", codes=(3,))
    for unit in ("micron", "um", "\\u00B5m"):
        yield row(f"ImageJ in {unit}", imagej(unit))
    yield row("ImageJ in pixels", imagej("pixel"), codes=(3,))
    yield row("inches", tagged(101_600, 101_600, "INCH"))
    yield row("no unit", tagged(UM, UM, "NONE"), codes=(3,))
    yield row("72 dots per inch", tagged(72, 72, "INCH"), codes=(3,))
    yield row("300 dots per inch", tagged(300, 300, "INCH"), codes=(3,))
    yield row("x is twice y", tagged(2 * UM, UM, "CENTIMETER"), said="differ|square|along x")
    text = "Aperio Image Library v10\r\n320x256|AppMag = 40|MPP = {}"
    yield row("Aperio", tagged(UM, UM, "CENTIMETER", description=text.format(0.25)))
    yield row("Aperio of 40", tagged(UM, UM, "CENTIMETER", description=text.format(40)), codes=(3,))
    yield row("--mpp that differs from the file", tagged(UM, UM, "CENTIMETER"), "--mpp=0.5", said="0.25")


def truths(source: Inputs, plain: Path) -> Iterator[Trial]:
    """Yields rows in which the truth is stored in another way: the scores are those of the plain truth."""
    codes = inputs.tissue(*inputs.SLIDE)[1]

    def row(name: str, write, *options, truth="mask.png", said="") -> Trial:
        def both(work: Path) -> None:
            _tiled(work / "slide.tif")
            write(work / truth)

        def check(work: Path) -> str:
            if not list((work / "out").rglob("labels.ome.tif")):
                return ""
            found, expected = _scores(_results(work / "out")[1]), _scores(_results(plain)[1])
            return "" if found == expected or said else f"scores {found} instead of {expected}"

        options = (f"--truth={{work}}/{truth}", *options)
        return _trial(f"truth: {name}", both, source, *options, codes=(0, 3), says=said, check=check)

    def picture(pixels, mode=None, **options) -> Callable[[Path], None]:
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels, mode)
        return lambda path: image.save(path, **options)

    def palette(index: np.ndarray, shown: list[int]) -> Image.Image:
        image = Image.fromarray(index, "P")
        image.putpalette(shown)
        return image

    def tiff(pixels=codes, **options) -> Callable[[Path], None]:
        return lambda path: tifffile.imwrite(
            path, pixels, **({"photometric": "minisblack", "metadata": None} | options)
        )

    other = np.ascontiguousarray(codes[::-1, ::-1])
    yield row("gray palette, sorted", picture(palette(2 - codes, [2, 2, 2, 1, 1, 1, 0, 0, 0])))
    yield row("gray palette, in order", picture(palette(codes, [0, 0, 0, 1, 1, 1, 2, 2, 2])))
    yield row("palette of colors", picture(palette(codes, [0, 0, 0, 200, 0, 0, 0, 200, 0])))
    yield row("gray palette, two entries alike", picture(palette(codes + 1, [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2])))
    yield row("RGB with equal channels", picture(np.dstack([codes] * 3)))
    yield row("with alpha", picture(np.dstack([codes, codes * 0]), "LA"))
    yield row("16 bits", picture(Image.fromarray(codes.astype(np.uint16))))
    yield row("inverted TIFF", tiff(255 - codes, photometric="miniswhite"), truth="mask.tif")
    yield row("inverted TIFF in tiles", tiff(255 - codes, photometric="miniswhite", tile=(64, 64)), truth="mask.tif")
    for value in (2, 3, 4):
        stored, tag = _stored(codes[..., None], value)[..., 0], [(274, "H", 1, value, True)]
        yield row(f"orientation {value}", tiff(stored, extratags=tag), truth="mask.tif")
        yield row(f"orientation {value} in tiles", tiff(stored, extratags=tag, tile=(64, 64)), truth="mask.tif")
    exif = Image.Exif()
    exif[274] = 3
    yield row("orientation 3 in PNG", picture(other, exif=exif))
    yield row("two pages", tiff(np.stack([codes, other])), truth="mask.tif", said="page|frame|image|scored|truth")
    yield row("frames", picture(codes, save_all=True, append_images=[Image.fromarray(other)]), said="frame|page|anim")
    yield row("floats", tiff(codes.astype(np.float32)), truth="mask.tif")
    yield row("signed", tiff(codes.astype(np.int16)), truth="mask.tif")
    yield row("2 bits a pixel", lambda path: path.write_bytes(_packed_png(codes)))
    yield row("half the size", picture(codes[::2, ::2]), said="size|half|scale|pixels|truth")


def _packed_png(codes: np.ndarray) -> bytes:
    """Returns a gray PNG of 2 bits a pixel."""
    height, width = codes.shape
    quads = codes.reshape(height, width // 4, 4).astype(np.uint8)
    rows = quads[..., 0] << 6 | quads[..., 1] << 4 | quads[..., 2] << 2 | quads[..., 3]
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    content = io.BytesIO(b"")
    content.write(b"\x89PNG\r\n\x1a\n")
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 2, 0, 0, 0, 0)), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")
    ):  # fmt: skip
        content.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return content.getvalue()


def _scores(summary: dict):
    """Returns what a summary says about the truth."""
    return json.dumps(
        {key: value for key, value in summary.items() if "truth" in key or "score" in key}, sort_keys=True
    )


def tissues(source: Inputs) -> Iterator[Trial]:
    """Yields rows about drawn regions: what is drawn has labels, however often it is covered."""
    width, height = inputs.SLIDE
    ring = inputs.square

    def row(
        name: str, rings: list, covered: Callable[[np.ndarray, np.ndarray], np.ndarray], said="", codes=(0, 3)
    ) -> Trial:
        def write(work: Path) -> None:
            _tiled(work / "slide.tif")
            inputs.regions(work / "drawn.geojson", *rings)

        def check(work: Path) -> str:
            if not list((work / "out").rglob("labels.ome.tif")):
                return ""
            labels = _results(work / "out")[0]
            y, x = np.mgrid[:height, :width] + 0.5
            expected = covered(x, y)
            wrong = (labels > 0) != expected
            return (
                "" if wrong.mean() < 0.01 else f"{100 * wrong.sum() / expected.sum():.0f} % of the drawn area is wrong"
            )

        return _trial(
            f"tissue: {name}", write, source, "--tissue={work}/drawn.geojson", codes=codes, says=said, check=check
        )

    def box(x0, y0, x1, y1):
        return lambda x, y: (x > x0) & (x < x1) & (y > y0) & (y < y1)

    loop = [
        [40, 40],
        [200, 40],
        [200, 200],
        [40, 200],
        [40, 40],
        [80, 80],
        [160, 80],
        [160, 160],
        [80, 160],
        [80, 80],
        [40, 40],
    ]
    twice = [[40, 40], [200, 40], [200, 200], [40, 200]] * 2 + [[40, 40]]
    yield row("a square", [[ring(40, 40, 160)]], box(40, 40, 200, 200))
    yield row("the outline turns twice", [[twice]], box(40, 40, 200, 200))
    yield row("the outline covers its middle twice", [[loop]], box(40, 40, 200, 200))
    yield row("two features overlap", [[ring(40, 40, 100)], [ring(100, 100, 100)]],
              lambda x, y: box(40, 40, 140, 140)(x, y) | box(100, 100, 200, 200)(x, y))  # fmt: skip
    yield row("a feature twice", [[ring(40, 40, 160)]] * 2, box(40, 40, 200, 200))
    yield row("a hole", [[ring(40, 40, 160), ring(80, 80, 80)]],
              lambda x, y: box(40, 40, 200, 200)(x, y) & ~box(80, 80, 160, 160)(x, y))  # fmt: skip
    yield row("turned the other way", [[ring(40, 40, 160)[::-1]]], box(40, 40, 200, 200))
    yield row("not closed", [[ring(40, 40, 160)[:-1]]], box(40, 40, 200, 200))
    bow = [[40, 40], [200, 200], [200, 40], [40, 200], [40, 40]]
    yield row("a bow tie", [[bow]], lambda x, y: box(40, 40, 200, 200)(x, y) & (abs(y - 120) < abs(x - 120)))
    yield row("half outside the slide", [[ring(240, 40, 160)]], box(240, 40, 320, 200), said="outside")
    yield row("outside the slide", [[ring(1000, 1000, 100)]], lambda x, y: x < 0, said="outside")
