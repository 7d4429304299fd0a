import re

import pytest
from helpers.paths import DATA
from helpers.tile_files import image, kaggle512, mask, name, png_bytes, save

from bcss_jax.data import synthetic
from bcss_jax.data.__main__ import main
from bcss_jax.data.checks import check_tiles
from bcss_jax.data.discovery import DataSettings, find_tiles
from bcss_jax.data.inspection.source import Source
from bcss_jax.data.inspection.verify import verify
from bcss_jax.errors import DataError


@pytest.fixture
def root(tmp_path):
    return kaggle512(tmp_path / "data")


def run(capfd, *arguments):
    """Runs `verify` and returns exit code, output and errors; checks that errors are lines without a traceback."""
    code = main(["verify", *map(str, arguments)])
    out, err = capfd.readouterr()
    assert "Traceback" not in err and (code == 0) == (not err)
    return code, out, err


def verify_512(capfd, root):
    return run(capfd, f"--data.dir={root}", "--data.layout=kaggle512")


def test_a_data_set_without_defects(root, capfd):
    code, out, _ = verify_512(capfd, root)
    assert code == 0
    assert re.search(
        r"^6 usable tiles \(train 4, val 2\) of 3 patients from 3 institutes; 6 pairs of files read in .* tiles/s\nno "
        "defect$",
        out,
        re.MULTILINE,
    )


def test_all_defects_are_found_named_and_counted(root, capfd):
    train, val = name("TCGA-A2-A0D2"), name("TCGA-OL-A5D6")
    (root / "train_512" / f"{train}.png").write_bytes(png_bytes(image())[:300])  # truncated
    (root / "train_mask_512" / f"{name('TCGA-BH-A0B1')}.png").unlink()
    save(root / "val_mask_512" / f"{val}.png", mask(codes=(1, 77)))
    save(root / "val_512" / f"{name('TCGA-OL-A5D6', 512)}.png", image(4))  # the last of train again
    save(root / "val_512" / f"{name('TCGA-A2-A0D2', 1024)}.png", image(50))  # a patient of train
    save(root / "val_mask_512" / f"{name('TCGA-A2-A0D2', 1024)}.png", mask(50))
    save(root / "val_512" / f"{name('TCGA-OL-A5D7')}.png", image(51, size=8))
    save(root / "val_mask_512" / f"{name('TCGA-OL-A5D7')}.png", mask(51, size=8))
    save(root / "train_512" / "holiday.png", image(52))
    (root / "train_512" / f"{name('TCGA-BH-A0B2')}.png").symlink_to("/nowhere/at.png")
    code, out, err = verify_512(capfd, root)
    assert code == 3
    for line in (
        "^name or place: .*holiday.png: expected a name such as .*, which gives slide and place, found another; rename",
        r"^name or place: .*TCGA-BH-A0B2.*: expected a file or folder, found a link that leads nowhere",
        r"^missing: .*train_512/TCGA-BH-A0B1.*: expected its mask .*, found none",
        rf"^unusable: .*train_512/{train}.png: expected a readable PNG, JPEG or TIFF file",
        rf"^unusable: .*val_mask_512/{val}.png: expected the codes 0 to 21 .*77: \d+",
        r"^of another size: .*TCGA-OL-A5D7.*: expected 16x16 pixels as most tiles have, found 8x8",
        "^in two splits: TCGA-OL-A5D6.*_512_0.*: expected an image that only val has, found the same pixels as in "
        "TCGA-BH",
        r"^patients in two splits: .* found 1 in several \(TCGA-A2-A0D2\).* use --data.split=institute$",
        r"^error: .*data: 8 defects \(2 name or place, 1 missing, 2 unusable, 1 of another size, 1 in two splits, "
        r"1 patients in two splits\); repair",
    ):
        assert re.search(line, err, re.MULTILINE), line
    assert len(err.splitlines()) == 9
    assert out.startswith("4 usable tiles (train 2, val 2)")


def test_the_first_ten_are_named_and_all_counted(tmp_path, capfd):
    root = kaggle512(tmp_path, tiles_each=6)
    for path in (root / "train_mask_512").iterdir():
        path.write_bytes(b"")
    code, _, err = verify_512(capfd, root)
    assert code == 3
    assert err.count("found an empty file") == 10 and "\nand 2 more\n" in err and "12 defects (12 unusable)" in err


def test_it_agrees_with_training(root):
    """What `check_tiles` refuses is a defect with the same message."""
    (root / "train_512" / f"{name()}.png").write_bytes(b"<html>")
    verdict = verify(Source(DataSettings("kaggle512", root), collect=True))
    with pytest.raises(DataError) as error:
        check_tiles(find_tiles(DataSettings("kaggle512", root)))
    assert str(error.value).startswith(verdict.defects["unusable"][0])


def kaggle224(root, test_masks):
    for split, patient in (("train", "TCGA-A2-A0D2"), ("val", "TCGA-A2-A0D2"), ("test", "TCGA-OL-A5D6")):
        for number in range(2):
            seed = 10 * len(split) + number + (split == "val") * 100
            stem = name(patient, x=224 * number + 1000 * (split == "val"), size=224)
            save(root / split / f"{stem}.png", image(seed))
            if split != "test" or test_masks:
                save(root / f"{split}_mask" / f"{stem}.png", mask(seed, codes=(0, 1, 2)))
    return root


@pytest.mark.parametrize("test_masks", [False, True])
def test_published_kaggle224(tmp_path, capfd, test_masks):
    kaggle224(tmp_path / "BCSS", test_masks)
    code, out, _ = run(capfd, f"--data.dir={tmp_path}")
    assert code == 0
    assert "note: 1 patients have tiles in more than one split, as this data set was published" in out
    assert ("note: test: 2 images have no masks (none were published)" in out) == (not test_masks)
    assert "6 usable tiles (train 2, val 2, test 2)" in out
    assert (
        len(find_tiles(DataSettings("kaggle224", tmp_path))) == 4 + 2 * test_masks
    )  # training gets only images with masks
    next((tmp_path / "BCSS" / "test").iterdir()).write_bytes(b"")
    assert run(capfd, f"--data.dir={tmp_path}")[0] == 3


def test_regions(tmp_path, capfd):
    for seed, patient in enumerate(("TCGA-A2-A0D2", "TCGA-BH-A0B1")):
        region = f"{patient}-DX1_xmin100_ymin200_MPP-0.2500.png"
        save(tmp_path / "images" / region, image(seed, size=32))
        save(tmp_path / "masks" / region, mask(seed, size=32))
    arguments = (f"--data.dir={tmp_path}", "--data.layout=roi", "--data.patch_size=16", "--data.stride=16")
    code, out, _ = run(capfd, *arguments)
    assert code == 0 and "8 usable tiles (train 8)" in out
    assert "note: no usable tiles for val: training needs them" in out
    small = name("TCGA-BH-A0B2").replace("_0_0_size512", "") + ".png"
    save(tmp_path / "images" / small, image(9, size=8))
    save(tmp_path / "masks" / small, mask(9, size=8))
    code, _, err = run(capfd, *arguments)
    assert code == 3 and re.search("A0B2.*: expected at least 16x16 pixels, found 8x8; lower --data.patch_size", err)


def test_the_sample_has_no_defects(capfd, monkeypatch):
    monkeypatch.setattr(synthetic, "TRAIN_PATIENTS", 1)
    monkeypatch.setattr(synthetic, "VAL_PATIENTS", 1)
    monkeypatch.setattr(synthetic, "PLANS", synthetic.PLANS[:2])
    code, out, _ = run(capfd, "--data.layout=sample")
    assert code == 0 and "4 usable tiles (train 2, val 2) of 2 patients" in out


def test_no_masks_at_all(root, capfd):
    for folder in ("train_mask_512", "val_mask_512"):
        for path in (root / folder).iterdir():
            path.unlink()
    code, _, err = verify_512(capfd, root)
    assert code == 3 and "6 defects (6 missing)" in err


def test_only_bad_names(root, capfd):
    for path in (root / "train_512").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    code, _, err = verify_512(capfd, root)
    assert code == 3 and err.count("which gives slide and place") == 4 and "no image in" in err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ([], 2, "--data.dir=FOLDER is missing"),
        (["--data.dir=nowhere"], 3, "nowhere: expected the layout kaggle224 .* found no such folder; get BCSS"),
        (["--data.dir=."], 3, "expected the layout kaggle224 with the folders train, .* found none of them"),
        (["--data.dir=.", "--data.layout=kagle224"], 2, "must be one of sample, .*; did you mean kaggle224?"),
        (["--data.dir=.", "--data.layout=sample"], 2, "the built-in sample has no folder"),
        (["--data.dir=.", "--data.split=random"], 2, "split 'random' is neither published nor institute"),
        (["--data.dir=.", "--data.mpp=0"], 2, "--data.mpp=0.0: expected um per pixel such as 0.25, found 0"),
        (["--data.dir=.", "--data.mpp=x"], 2, "argument --data.mpp: .*'?x'?.*; see --help"),
        (["--data.dir=.", "--dat.layout=roi"], 2, "unrecognized arguments: --dat.layout=roi; see --help"),
    ],
)
def test_wrong_arguments_make_one_line(tmp_path, monkeypatch, capfd, arguments, code, line):
    monkeypatch.chdir(tmp_path)
    found, _, err = run(capfd, *arguments)
    assert found == code and re.search(line, err)
    assert len(err.splitlines()) == 1 and err.startswith("error: ")


def test_progress_counts_tiles(root):
    seen = []
    verify(Source(DataSettings("kaggle512", root)), seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_real_tiles(capfd):
    folder = DATA / "bcss_kaggle224"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    code, out, _ = run(capfd, f"--data.dir={folder}")
    assert code == 0 and "150 usable tiles (train 90, val 30, test 30) of 1 patient from 1 institute" in out


def test_real_region_without_mask(capfd):
    folder = DATA / "bcss_roi"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    code, _, err = run(capfd, f"--data.dir={folder}", "--data.layout=roi")
    assert code == 3 and re.search("missing: .*A3XX.*: expected its mask", err)
