import dataclasses
import re
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers.paths import DATA, ROOT
from helpers.tile_files import chunk, image, kaggle512, mask, name, png, png_bytes, save
from PIL import Image

from bcss_jax import labels
from bcss_jax.data import image_files
from bcss_jax.data.checks import CheckedTile, check_tiles, report_on
from bcss_jax.data.discovery import DataSettings, find_tiles
from bcss_jax.data.tile_reader import tile_stats
from bcss_jax.errors import ConfigError, DataError

TILE = f"{name()}.png"  # the tile that each test damages


@pytest.fixture
def root(tmp_path):
    return kaggle512(tmp_path)


def checked(root, **options):
    return check_tiles(find_tiles(DataSettings("kaggle512", root)), **options)


def line_of(error):
    text = str(error.value)
    assert text.isprintable(), text
    return text


def colors():
    return np.repeat(mask()[..., None], 3, -1)


def as_palette():
    indexed = Image.fromarray(mask()).convert("P")
    indexed.putdata(mask().ravel().tolist())
    indexed.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
    return indexed


def smoothed():
    return np.asarray(
        Image.fromarray(mask(codes=(0, 255))).resize((24, 24), Image.Resampling.BICUBIC).crop((0, 0, 16, 16))
    )


def half_transparent():
    return np.dstack([image(), np.full((16, 16), 128, np.uint8)])


def key_color():
    """Returns RGB with a transparent color that occurs in it."""
    pixels = image()
    zero = chunk(b"tRNS", b"".join(b"\0" + bytes([v]) for v in pixels[0, 0].tolist()))
    return png(16, 16, 8, 2, b"".join(b"\0" + row.tobytes() for row in pixels), zero)


def float_tiff(value):
    pixels = np.zeros((16, 16), np.float32)
    pixels[3, 4] = value
    return Image.fromarray(pixels)


def put(path, content):
    """Writes bytes as they are, and pixels as PNG, or as TIFF if the name has that suffix."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        picture = content if isinstance(content, Image.Image) else Image.fromarray(content)
        picture.save(path, "TIFF" if picture.mode == "F" else "PNG")


GRAY16 = b"".join(b"\0" + row.astype(">u2").tobytes() for row in mask().astype(np.uint16))
RGB16 = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image().astype(np.uint16))

# Row of the contract, which file, its new content, what the message says: expected .. found .. remedy.
UNUSABLE = [
    ("B04 one row less", "mask", lambda: mask()[1:], "16x16 pixels as in .*, found 16x15; cut both"),
    ("B05 colors", "mask", colors, "one channel of codes, found the color mode RGB; save the codes"),
    ("B06 code 22", "mask", lambda: mask(codes=(1, 22)), r"0 to 21 .*, found \d+ of 256 pixels .*22: \d+\); correct"),
    ("B06 0 and 255", "mask", lambda: mask(codes=(0, 255)), r"0: \d+, 255: \d+\); this is a black and white image"),
    ("B07 interpolated", "mask", smoothed, r"more values\); resampled with interpolation\? .* nearest neighbor"),
    ("B10 16-bit image", "image", lambda: png(16, 16, 16, 2, RGB16), "8 bits per channel, found 16 bits or more; save"),
    ("B10 16-bit code", "mask", lambda: mask().astype(np.uint16) * 300, r"300: \d+, 600: \d+\); correct the mask"),
    ("B11 transparent", "image", half_transparent, "an opaque image, found transparent pixels; flatten"),
    ("B11 key color", "image", key_color, "an opaque image, found transparent pixels; flatten"),
    ("B12 gray", "image", lambda: image()[..., 0], "RGB, found the color mode gray; save"),
    ("B13 truncated", "image", lambda: png_bytes(image())[:400], "readable PNG, JPEG or TIFF file, found .*; fetch or"),
    ("B13 truncated", "mask", lambda: png_bytes(mask())[:60], "readable PNG, JPEG or TIFF file, found .*; fetch or"),
    ("B13 damaged", "image", lambda: png_bytes(image())[:300] + bytes(500), "readable PNG, .*found .*; fetch or"),
    ("B14 empty", "image", lambda: b"", "readable PNG, JPEG or TIFF file, found an empty file; fetch or"),
    ("B14 empty", "mask", lambda: b"", "readable PNG, JPEG or TIFF file, found an empty file; fetch or"),
    ("B16 text", "image", lambda: png(16, 16, 8, 2, b"", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))),
     "too large"),
    ("B23 NaN", "image", lambda: float_tiff(np.nan), "8-bit RGB, found 32-bit floats with NaN or infinity; save"),
    ("B23 infinity", "mask", lambda: float_tiff(np.inf),
     "integer codes, found 32-bit floats with NaN or infinity; save"),
    ("text", "image", lambda: b"<html>not found</html>",
     "readable PNG, JPEG or TIFF file, found another format; fetch"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "content", "message"), [row[1:] for row in UNUSABLE], ids=[row[0] for row in UNUSABLE]
)
def test_unusable_files(root, kind, content, message):
    path = root / {"image": "train_512", "mask": "train_mask_512"}[kind] / TILE
    put(path, content())
    with pytest.raises(DataError) as error:
        checked(root)
    assert error.value.exit_code == 3
    assert re.search(f"^{re.escape(str(path))}: expected .*{message}", line_of(error))
    usable, report = checked(root, max_bad=0.2)  # 1 of 6
    assert len(usable) == 5 and len(report.bad) == 1 and str(path) in report.bad[0]
    with pytest.raises(DataError):
        checked(root, max_bad=0.1)


USABLE = [
    ("B05 palette", "mask", as_palette),
    ("B05 2 bits", "mask", lambda: png(4, 1, 2, 0, b"\0\x1b")),
    ("B05 4 bits", "mask", lambda: png(4, 1, 4, 0, b"\0\x01\x23")),
    ("B10 16-bit mask", "mask", lambda: png(16, 16, 16, 0, GRAY16)),
    ("B11 opaque", "image", lambda: np.dstack([image(), np.full((16, 16), 255, np.uint8)])),
]


@pytest.mark.parametrize(("kind", "content"), [row[1:] for row in USABLE], ids=[row[0] for row in USABLE])
def test_usable_files(tmp_path, kind, content):
    put(tmp_path / "a.png", content())
    if kind == "image":
        assert (image_files.read_image(tmp_path / "a.png") == image()).all()
        return
    codes = image_files.read_mask(tmp_path / "a.png", "bcss22")
    assert codes.dtype == np.uint8
    assert (codes == ([[0, 1, 2, 3]] if codes.shape == (1, 4) else mask())).all()


def test_b02_image_without_mask(root):
    (root / "train_mask_512" / TILE).unlink()
    with pytest.raises(DataError) as error:
        checked(root)
    assert re.search(
        f"train_512/{TILE}: expected its mask .*train_mask_512/{TILE}, found none; .*allow_missing", line_of(error)
    )
    usable, report = checked(root, allow_missing=True)
    assert len(usable) == 5 and len(report.missing) == 1


def test_b03_mask_without_image(root):
    (root / "train_512" / TILE).unlink()
    with pytest.raises(
        DataError, match=f"train_mask_512/{TILE}: expected its image .*train_512/{TILE}, found none; .*allow_"
    ):
        checked(root)
    assert len(checked(root, allow_missing=True)[1].missing) == 1


def test_leaving_out_files_may_leave_nothing(root):
    for path in (root / "val_mask_512").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="2 of 6 pairs of files cannot be used: "):
        checked(root)
    with pytest.raises(DataError, match="usable tiles for val, found none"):
        checked(root, allow_missing=True)


def test_b04_tile_of_another_size(root):
    save(root / "train_512" / TILE, image(size=8))
    save(root / "train_mask_512" / TILE, mask(size=8))
    with pytest.raises(DataError, match=f"{TILE}: expected 16x16 pixels as most tiles have, found 8x8; repair"):
        checked(root)


def test_b07_kaggle_codes(tmp_path):
    save(tmp_path / "a.png", mask(codes=(1, 4, 9)))
    with pytest.raises(DataError, match="these look like the 22 original codes: use the layout kaggle512 or roi"):
        image_files.read_mask(tmp_path / "a.png", "kaggle3")


def test_b08_tiles_without_ground_truth_are_counted(root):
    save(root / "train_mask_512" / TILE, mask(codes=(0, 7, 15)))
    save(root / "val_mask_512" / f"{name('TCGA-OL-A5D6')}.png", mask(codes=(3, 4)))
    _, report = checked(root)
    assert report.all_ignored["tumor_stroma"] == {"train": 1, "val": 1}
    assert report.all_ignored["tumor_stroma_other"] == {"train": 1, "val": 0}
    assert report.all_ignored["five_classes"] == {"train": 1, "val": 0}


def test_b09_class_absent_from_a_split_is_a_warning(root, caplog):
    for path in (root / "val_mask_512").iterdir():
        save(path, mask(codes=(1, 9)))
    _, report = checked(root)
    assert report.absent["tumor_stroma"] == {"train": [], "val": ["stroma"]}
    assert report.absent["five_classes"]["val"] == ["stroma", "inflammatory", "necrosis"]
    caplog.clear()  # the tiles are smaller than their names say
    with caplog.at_level("WARNING", "bcss_jax"):  # other tests may have set the level to INFO
        report.log(labels.SCHEMES["tumor_stroma"], "bcss22")
    assert caplog.messages == ["val contains no pixel of stroma, so there is no score for it"]


def test_b12_cmyk(tmp_path):
    Image.fromarray(image()).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="a.jpg: expected RGB, found the color mode CMYK; save"):
        image_files.read_image(tmp_path / "a.jpg")


def test_b15_decompression_bomb_is_refused_by_its_header(root, monkeypatch):
    path = root / "train_512" / TILE
    rows = zlib.compress(bytes(10**6)) * 1000  # 1 MB that claims to be 60,000 rows
    put(path, png(60_000, 60_000, 8, 2, rows))
    with pytest.raises(DataError, match=f"{TILE}: expected at most 178956970 pixels, found .* by its header; cut it"):
        checked(root)
    # Peak memory of a new process: 60,000 x 60,000 pixels would take gigabytes and seconds.
    script = """
import resource, sys, time
from bcss_jax.data import image_files
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    image_files.read_image(sys.argv[1])
except image_files.DataError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)
"""
    result = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, cwd=ROOT, check=True)
    more_kib, cpu_s = map(float, result.stdout.split())
    assert more_kib < 100 * 1024 and cpu_s < 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # our limit holds even if Pillow's limit is removed
    with pytest.raises(DataError, match="found 60000x60000 by its header"):
        image_files.image_size(path)


def test_b17_jpeg_named_png(root):
    save(root / "train_512" / TILE, image(), format="JPEG", quality=95)
    usable, report = checked(root)
    assert len(usable) == 6
    assert len(report.warnings) == 1 and f"{TILE}: the content is JPEG" in report.warnings[0]
    save(root / "train_mask_512" / TILE, mask(), format="JPEG")
    with pytest.raises(DataError, match=f"train_mask_512/{TILE}: expected a mask stored without loss, found JPEG"):
        checked(root)


def test_b21_patient_in_two_splits(root):
    kaggle512(root, val=("TCGA-OL-A5D6",))
    stem = name("TCGA-A2-A0D2", 1024)
    save(root / "val_512" / f"{stem}.png", image(99))
    save(root / "val_mask_512" / f"{stem}.png", mask(99))
    with pytest.raises(DataError) as error:
        checked(root)
    assert re.search(
        r"every patient in one split only, found 1 in several \(TCGA-A2-A0D2\); .*split=institute", line_of(error)
    )
    _, report = checked(root, patients_may_recur=True)
    assert report.patients_in_two_parts == ["TCGA-A2-A0D2"]


@pytest.mark.parametrize("options", [{}, {"compress_level": 0}], ids=["same bytes", "same pixels"])
def test_b22_same_image_in_two_splits(root, options):
    save(root / "val_512" / f"{name('TCGA-OL-A5D6')}.png", image(1), **options)
    with pytest.raises(DataError) as error:
        checked(root)
    assert re.search(
        "TCGA-OL-A5D6.*that only val has, found the same pixels as in .*A0D2.* of train; remove", line_of(error)
    )


def test_blank_tiles_may_resemble_one_another(root):
    blank = np.full((16, 16, 3), 255, np.uint8)
    save(root / "val_512" / f"{name('TCGA-OL-A5D6')}.png", blank)
    save(root / "train_512" / TILE, blank)
    assert len(checked(root)[0]) == 6


def test_repeats_within_a_split_are_counted(root):
    save(root / "train_512" / f"{name(x=512)}.png", image(1))
    assert checked(root)[1].repeated == 1


def test_counts(root):
    usable, report = checked(root)
    assert usable == find_tiles(DataSettings("kaggle512", root))
    assert report.tiles == {"train": 4, "val": 2} and report.patients == {"train": 2, "val": 1}
    assert sum(report.code_pixels["train"].values()) == 4 * 256
    codes = np.concatenate([np.asarray(Image.open(tile.mask)).ravel() for tile in usable if tile.split == "val"])
    assert report.code_pixels["val"] == {
        labels.BCSS22_NAMES[code]: int((codes == code).sum()) for code in (0, 1, 2, 3, 4, 9)
    }
    assert not (report.missing or report.bad or report.warnings or report.repeated or report.patients_in_two_parts)


def test_many_bad_files_make_one_line(root):
    for path in (root / "train_512").iterdir():
        put(path, b"")
    with pytest.raises(DataError) as error:
        checked(root)
    text = line_of(error)
    assert text.startswith("4 of 6 pairs of files cannot be used: ") and text.count("an empty file") == 3


@pytest.mark.parametrize("max_bad", [-0.1, 1.1, float("nan")])
def test_max_bad_is_a_share(root, max_bad):
    with pytest.raises(ConfigError, match="max_bad"):
        checked(root, max_bad=max_bad)


def test_patches_of_a_region(tmp_path):
    for seed, patient in enumerate(("TCGA-A2-A0D2", "TCGA-OL-A5D6")):
        region = f"{patient}-DX1_xmin100_ymin200_MPP-0.2500.png"
        save(tmp_path / "images" / region, image(seed, size=32))
        save(tmp_path / "masks" / region, mask(seed, size=32))
    found = find_tiles(DataSettings("roi", tmp_path, patch_size=16, stride=16))
    assert check_tiles(found)[1].tiles == {"train": 4, "val": 4}
    save(tmp_path / "masks" / region, mask(size=31))
    with pytest.raises(DataError, match="expected 32x32 pixels as in .*, found 31x31"):
        check_tiles(found)


def test_progress_is_reported(root):
    seen = []
    checked(root, progress=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_report_alone():
    stats = [tile_stats(image(seed), mask(seed)) for seed in range(2)]
    tiles = [CheckedTile("a", "train", "p", stats[0]), CheckedTile("b", "val", "q", stats[1])]
    assert report_on(tiles, "kaggle3").tiles == {"train": 1, "val": 1}
    assert "five_classes" not in report_on(tiles, "kaggle3").absent
    with pytest.raises(DataError, match="^b: expected an image that only val has"):
        report_on([tiles[0], tiles[1]._replace(stats=stats[0])], "kaggle3")


def test_real_tiles_with_alpha():
    folder = DATA / "edge_tiles"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    for path in folder.iterdir():
        assert image_files.read_image(path).shape[2] == 3


def test_real_masks_of_another_scheme():
    folder = DATA / "binary_mask_pairs"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    for path in (folder / "masks").iterdir():
        for codes in labels.CODE_BOOKS:
            with pytest.raises(DataError, match=r"0: \d+, 255: \d+\); this is a black and white image of a mask"):
                image_files.read_mask(path, codes)


def test_real_masks_of_other_patients():
    folder = DATA / "bcss_masks_only"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    path = sorted(folder.iterdir())[-1]
    assert image_files.read_mask(path, "bcss22").max() == 18


def test_real_tiles():
    folder = DATA / "bcss_kaggle224"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    found = find_tiles(DataSettings("kaggle224", folder))
    with pytest.raises(DataError, match="every patient in one split only"):
        check_tiles(found)
    _, report = check_tiles(found, patients_may_recur=True)
    assert report.tiles == {"train": 90, "val": 30, "test": 30} and report.patients_in_two_parts == ["TCGA-A2-A0D2"]


def test_real_region_without_mask():
    folder = DATA / "bcss_roi"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    only = Image.open(next((folder / "masks").iterdir())).size
    assert only == (3391, 2418)
    # Both real regions are from one institute, so the splits are set here by hand.
    whole = find_tiles_of_one_institute(folder)
    with pytest.raises(DataError, match="TCGA-A2-A3XX.*: expected its mask .*found none; .*allow_missing"):
        check_tiles(whole)


def find_tiles_of_one_institute(folder):
    found = find_tiles(DataSettings("roi", folder, patch_size=1024, stride=1024), required=())
    return [dataclasses.replace(tile, split="val" if "A3XX" in tile.key else "train") for tile in found]
