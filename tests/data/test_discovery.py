import os
import re

import numpy as np
import pytest
from helpers.paths import DATA
from helpers.tile_files import image, kaggle512, mask, name, save
from PIL import Image

from bcss_jax.data import discovery
from bcss_jax.data.discovery import DataSettings, find_tiles
from bcss_jax.data.image_folder import LeftOut
from bcss_jax.errors import ConfigError, DataError


def line_of(error):
    """Returns the message of an error and checks that it is one line of printable characters."""
    text = str(error.value)
    assert text.isprintable(), text
    return text


def test_kaggle512(tmp_path):
    tiles = find_tiles(DataSettings("kaggle512", kaggle512(tmp_path), mpp=0.5))
    assert [(tile.key, tile.split) for tile in tiles] == [
        (name("TCGA-A2-A0D2", 0), "train"),
        (name("TCGA-A2-A0D2", 512), "train"),
        (name("TCGA-BH-A0B1", 0), "train"),
        (name("TCGA-BH-A0B1", 512), "train"),
        (name("TCGA-OL-A5D6", 0), "val"),
        (name("TCGA-OL-A5D6", 512), "val"),
    ]
    tile = tiles[1]
    assert (tile.patient, tile.institute, tile.barcode) == ("TCGA-A2-A0D2", "A2", "TCGA-A2-A0D2-DX1")
    assert (tile.x, tile.y, tile.mpp, tile.codes, tile.window) == (512, 0, 0.5, "bcss22", None)
    assert tile.image == tmp_path / "train_512" / f"{tile.key}.png"
    assert tile.mask == tmp_path / "train_mask_512" / f"{tile.key}.png"


def test_folder_of_the_kaggle_archive(tmp_path):
    kaggle512(tmp_path / "BCSS_512")
    assert len(find_tiles(DataSettings("kaggle512", tmp_path))) == 6


def test_published_test_images_without_masks_are_left_out(tmp_path):
    for split in ("train", "val", "test"):
        save(tmp_path / split / f"{name(x=len(split))}.png", image())
        if split != "test":
            save(tmp_path / f"{split}_mask" / f"{name(x=len(split))}.png", mask())
    assert {tile.split for tile in find_tiles(DataSettings("kaggle224", tmp_path))} == {"train", "val"}
    save(tmp_path / "test_mask" / f"{name(x=len('test'))}.png", mask())
    assert {tile.split for tile in find_tiles(DataSettings("kaggle224", tmp_path))} == {"train", "val", "test"}


def test_split_by_institute_pools_the_published_splits(tmp_path):
    kaggle512(tmp_path, train=("TCGA-A2-A0D2", "TCGA-EW-A1P8"), val=("TCGA-OL-A5D6", "TCGA-AR-A0U1"))
    assert {
        tile.institute: tile.split for tile in find_tiles(DataSettings("kaggle512", tmp_path, split_by="institute"))
    } == {
        "A2": "train",
        "AR": "train",
        "EW": "val",
        "OL": "val",
    }


def test_split_by_institute_needs_institutes_to_hold_out(tmp_path):
    kaggle512(tmp_path, val=("TCGA-A8-A07C",))
    with pytest.raises(DataError) as error:
        find_tiles(DataSettings("kaggle512", tmp_path, split_by="institute"))
    assert re.search(r"tiles for val, found none .*A2, A8, BH.*OL, LL, E2, EW, GM, S3", line_of(error))


def test_regions_are_cut_into_patches(tmp_path):
    for patient in ("TCGA-A2-A0D2", "TCGA-OL-A5D6"):
        region = f"{patient}-DX1_xmin100_ymin200_MPP-0.2500.png"
        save(tmp_path / "images" / region, image()[:13])
        save(tmp_path / "masks" / region, mask()[:13])
    tiles = find_tiles(DataSettings("roi", tmp_path, patch_size=8, stride=4))
    assert [tile.window for tile in tiles if tile.split == "val"] == [
        (x, y, 8) for x, y in ((0, 0), (0, 4), (4, 0), (4, 4), (8, 0), (8, 4))
    ]
    assert len({tile.key for tile in tiles}) == 12
    with pytest.raises(DataError, match=r"at least 14x14 pixels, found 16x13; lower --config.data.patch_size"):
        find_tiles(DataSettings("roi", tmp_path, patch_size=14))


@pytest.mark.parametrize(
    "arguments",
    [{"layout": "kaggle"}, {"split_by": "rows"}, {"mpp": 0}, {"mpp": float("nan")}, {"patch_size": 0}, {"stride": 0}],
    ids=str,
)
def test_invalid_settings(tmp_path, arguments):
    with pytest.raises(ConfigError):
        find_tiles(DataSettings(**({"layout": "roi", "dir": tmp_path} | arguments)))


@pytest.mark.parametrize("layout", discovery.FOLDERS)
def test_b01_empty_data_folder(tmp_path, layout):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError) as error:
            find_tiles(DataSettings(layout, folder))
        first = discovery.FOLDERS[layout][0][0]
        assert re.search(
            rf"{re.escape(str(folder))}: expected the layout {layout} with the folders {first}, .*Kaggle whats2000/"
            r".*PathologyDataScience/BCSS.*--config=configs/unet.py",
            line_of(error),
        )
    with pytest.raises(DataError, match="data_dir: expected the layout"):
        find_tiles(DataSettings(layout, None))


def test_b01_folders_without_images(tmp_path):
    kaggle512(tmp_path, val=())
    for folder in ("val_512", "val_mask_512"):
        with pytest.raises(DataError, match=f"found no {folder}"):
            find_tiles(DataSettings("kaggle512", tmp_path))
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match="found no image in .*val_512"):
        find_tiles(DataSettings("kaggle512", tmp_path))


@pytest.mark.parametrize(
    "odd",
    [
        b"two\nlines.png",
        b"c:..\\..\\up.png",
        b"not-utf8-\xff\xfe.png",
        b"n" * 251 + b".png",
        b"\xd8\xae.png",
        b"TCGA-A2-A0D2-DX1_xmin1_ymin2_MPP-0_\xd9\xa1_0_size224.png",  # a digit, but not one of 0 to 9
        b"tile_17.png",
    ],
)
def test_b18_odd_file_names(tmp_path, odd):
    kaggle512(tmp_path)
    with open(os.path.join(os.fsencode(tmp_path / "train_512"), odd), "wb") as file:
        file.write(b"")
    with pytest.raises(DataError) as error:
        find_tiles(DataSettings("kaggle512", tmp_path))
    assert re.search(r"expected a name such as TCGA-A2-A0D2-DX1.*rename or remove the file", line_of(error))


def test_b18_odd_folder_name_works(tmp_path):
    root = kaggle512(tmp_path / "line\nbreak \udcff..")
    assert len(find_tiles(DataSettings("kaggle512", root))) == 6
    (root / "train_512" / "odd.png").touch()
    with pytest.raises(DataError) as error:
        find_tiles(DataSettings("kaggle512", root))
    line_of(error)


def test_files_that_are_not_images_are_left_out(tmp_path):
    kaggle512(tmp_path)
    for other in ("Thumbs.db", ".DS_Store", f"._{name()}.png"):
        (tmp_path / "train_512" / other).touch()
    assert len(find_tiles(DataSettings("kaggle512", tmp_path))) == 6


@pytest.mark.parametrize("where", ["train_512", f"train_512/{name()}.png"])
@pytest.mark.parametrize("target", ["loop", "outside", "nowhere"])
def test_b19_links(tmp_path, where, target):
    root = kaggle512(tmp_path / "data")
    path = root / where
    path.rename(tmp_path / "moved")
    path.symlink_to({"loop": path, "outside": tmp_path / "moved", "nowhere": tmp_path / "absent"}[target])
    with pytest.raises(DataError) as error:
        find_tiles(DataSettings("kaggle512", root))
    expected = (
        "expected data inside .*found a link to .*copy" if target == "outside" else "nowhere or in circles; remove"
    )
    assert re.search(f"{re.escape(str(path))}: .*{expected}", line_of(error))


def test_b19_links_inside_and_a_linked_data_folder_work(tmp_path):
    root = kaggle512(tmp_path / "data")
    path = root / "train_512" / f"{name()}.png"
    path.rename(root / "moved.png")
    path.symlink_to(root / "moved.png")
    (tmp_path / "link").symlink_to(root)
    assert len(find_tiles(DataSettings("kaggle512", tmp_path / "link"))) == 6


@pytest.mark.parametrize(
    "copy", [f"train_512/{name().lower()}.png", f"train_512/{name()}.jpg", f"val_512/{name()}.png"]
)
def test_b20_two_files_of_one_name(tmp_path, copy):
    kaggle512(tmp_path)
    save(tmp_path / copy, image())
    with pytest.raises(DataError) as error:
        find_tiles(DataSettings("kaggle512", tmp_path))
    assert re.search("expected one tile of that name, found .*remove or rename", line_of(error))


def test_offsets_of_the_real_tiles_are_x_and_y():
    tiles_dir, regions = DATA / "bcss_kaggle224", DATA / "bcss_roi"
    if not tiles_dir.exists():
        pytest.skip(f"{tiles_dir} is not there")
    tiles = find_tiles(DataSettings("kaggle224", tiles_dir))
    assert len(tiles) == 150
    region = next((regions / "images").glob("TCGA-A2-A0D2*"))
    whole = np.asarray(Image.open(region))
    codes = np.asarray(Image.open(regions / "masks" / region.name))
    for tile in tiles[::10]:
        window = np.s_[tile.y : tile.y + 224, tile.x : tile.x + 224]
        assert (np.asarray(Image.open(tile.image)) == whole[window]).all()
        assert (np.asarray(Image.open(tile.mask)) == np.where(codes[window] <= 2, codes[window], 0)).all()


def test_real_tiles_of_one_institute_cannot_be_split_by_institute():
    if not DATA.exists():
        pytest.skip(f"{DATA} is not there")
    for layout, folder in (("kaggle224", "bcss_kaggle224"), ("roi", "bcss_roi")):
        with pytest.raises(DataError, match="tiles for val, found none .institutes there: A2;"):
            find_tiles(DataSettings(layout, DATA / folder, split_by="institute"))


def save_region(root, mpp):
    for folder, pixels in (("images", image()), ("masks", mask())):
        save(root / folder / f"TCGA-A2-A0D2-DX1_xmin1_ymin2_MPP-{mpp}.png", pixels)


@pytest.mark.parametrize("size, said", [(224, False), (112, True)])
def test_tiles_of_another_size_than_their_names_say(tmp_path, caplog, size, said):
    for part, institute in (("train", "A2"), ("val", "OL")):
        key = f"TCGA-{institute}-A0D2-DX1_xmin10_ymin20_MPP-0_0_0_size224"
        save(tmp_path / part / f"{key}.png", np.zeros((size, size, 3), np.uint8))
        save(tmp_path / f"{part}_mask" / f"{key}.png", np.zeros((size, size), np.uint8))
    find_tiles(DataSettings("kaggle224", tmp_path))
    assert (f"its name says 224 pixels, found {size}; if tiles were scaled, they have 2 times" in caplog.text) == said


@pytest.mark.parametrize("written, said", [("0.2500", False), ("0.2540", False), ("0.5000", True), ("0", False)])
def test_names_with_another_um_per_pixel_than_the_setting_are_said(tmp_path, caplog, written, said):
    save_region(tmp_path, written)
    find_tiles(DataSettings("roi", tmp_path, patch_size=16, stride=16), required=())
    lines = [line for line in caplog.messages if "um per pixel" in line]
    assert len(lines) == said
    if said:
        assert f"say {written} um per pixel" in lines[0] and "data.mpp says 0.25" in lines[0]


@pytest.mark.parametrize("written", ["40", "250.0", "0.0000"])
def test_names_with_an_impossible_um_per_pixel_are_refused(tmp_path, written):
    save_region(tmp_path, written)
    with pytest.raises(DataError, match="its name: expected um per pixel such as 0.25, found"):
        find_tiles(DataSettings("roi", tmp_path), required=())


def test_what_is_left_out_is_counted(tmp_path):
    kaggle512(tmp_path)
    train = tmp_path / "train_512"
    for other in ("Thumbs.db", ".DS_Store", f"._{name()}.png", "notes.txt"):
        (train / other).touch()
    (train / "old").mkdir()
    left_out = LeftOut()
    assert len(find_tiles(DataSettings("kaggle512", tmp_path), left_out=left_out)) == 6
    assert left_out.counts() == {"hidden": 3, "folders": 1, "others": 1}
    assert "1 folder that is not looked into (first train_512/old)" in left_out.line()


def test_a_layout_that_is_there_twice_is_refused(tmp_path):
    kaggle512(tmp_path)
    kaggle512(tmp_path / "BCSS_512")
    with pytest.raises(DataError, match="found them twice, .*; name .*/BCSS_512 as the data folder, or move it away"):
        find_tiles(DataSettings("kaggle512", tmp_path))
    (tmp_path / "val_512").rename(tmp_path / "elsewhere")  # an incomplete copy is not read, but counted
    left_out = LeftOut()
    tiles = find_tiles(DataSettings("kaggle512", tmp_path), left_out=left_out)
    assert tiles[0].image.is_relative_to(tmp_path / "BCSS_512") and left_out.counts() == {"folders": 3}


@pytest.mark.parametrize("folder", ("train_512", "val_mask_512"))
def test_folders_in_another_case_are_named(tmp_path, folder):
    kaggle512(tmp_path)
    (tmp_path / folder).rename(tmp_path / folder.title())
    with pytest.raises(DataError, match=f"{folder.title()}: expected the name {folder}; rename"):
        find_tiles(DataSettings("kaggle512", tmp_path))


def test_special_files_are_refused_before_they_are_opened(tmp_path):
    kaggle512(tmp_path)
    path = tmp_path / "train_512" / f"{name()}.png"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="expected an image file, found a FIFO"):
        find_tiles(DataSettings("kaggle512", tmp_path))
