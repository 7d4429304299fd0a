import io
import json
import re
import shutil

import numpy as np
import pytest
from helpers.paths import DATA
from helpers.tile_files import image, kaggle512, mask, name, save
from PIL import Image

from bcss_jax import labels
from bcss_jax.common import figures, files
from bcss_jax.data import synthetic
from bcss_jax.data.__main__ import main
from bcss_jax.data.discovery import DataSettings, find_tiles
from bcss_jax.data.inspection import neighbors, pictures, similar, stain, survey
from bcss_jax.data.inspection.source import Source

TRAIN, VAL = "TCGA-A2-A0D2", "TCGA-OL-A5D6"
TURNS = (
    lambda a: a, np.fliplr, np.flipud, lambda a: np.rot90(a, 2),
    lambda a: a.swapaxes(0, 1), lambda a: np.rot90(a, -1), np.rot90, lambda a: np.rot90(a, 2).swapaxes(0, 1),
)  # fmt: skip


@pytest.fixture(scope="module")
def tissue():
    """Returns eight drawn images of 224 pixels."""
    return [synthetic.draw_patch(patient, number).image for patient in range(2) for number in range(4)]


def recompressed(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def brighter(pixels):
    return np.clip(pixels * 0.8 + 45, 0, 255).astype(np.uint8)


def smaller(pixels):
    return np.asarray(Image.fromarray(pixels).resize((112, 112), Image.Resampling.LANCZOS))


def hashes(images):
    return np.stack([similar.hash_of(np.ascontiguousarray(each)).words for each in images])


@pytest.mark.parametrize("turn", range(8), ids=similar.ORIENTATIONS)
@pytest.mark.parametrize("copy", [lambda a: a, lambda a: recompressed(a, 20), brighter, smaller])
def test_copies_are_found_in_every_orientation_and_nothing_else(tissue, turn, copy):
    words = hashes([*tissue, copy(np.ascontiguousarray(TURNS[turn](tissue[2])))])
    found = similar.pairs_between(words, np.array([8]), np.arange(8))
    assert [(i, j) for i, j, *_ in found] == [(8, 2)] and found[0][3] < similar.NEAR / 2
    assert similar.pairs_between(words, np.arange(8), np.array([8]))[0][:3] == (
        2,
        8,
        turn,
    )  # 8 is 2 in this orientation
    turned_back = TURNS[similar.pairs_between(words, np.array([8]), np.arange(8))[0][2]](TURNS[turn](tissue[2]))
    assert (turned_back == tissue[2]).all()


def test_small_shifts_are_found_and_unrelated_tiles_are_far(tissue):
    whole = tissue[0]
    words = hashes([whole[:-4, :-4], whole[2:-2, 2:-2], *(each[:-4, :-4] for each in tissue[1:])])
    assert [pair[:3] for pair in similar.pairs_between(words, np.array([0]), np.arange(1, 9))] == [(0, 1, 0)]
    turned = similar._all_orientations(words[:1])
    assert np.bitwise_count(turned ^ words[2:]).sum(axis=-1).min() > similar.NEAR + 16


def test_search_in_blocks_equals_comparing_all_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**63, (90, 4), dtype=np.uint64)
    for copy in range(12):  # copies with 0 to 66 bits changed
        bits = np.unpackbits(words[copy].view(np.uint8))
        bits[rng.choice(256, 6 * copy, replace=False)] ^= 1
        words[60 + copy] = np.packbits(bits).view(np.uint64)
    monkeypatch.setattr(similar, "_BLOCK", (7, 11))
    first, second = np.arange(50), np.arange(50, 90)
    distances = np.bitwise_count(similar._all_orientations(words[:50])[:, :, None] ^ words[50:]).astype(int)
    near = (distances.sum(axis=-1) <= similar.NEAR) & (distances[..., 0] <= similar._COARSE_NEAR)
    expected = {(int(i), int(j) + 50, int(o)) for o, i, j in np.argwhere(near)}
    found = similar.pairs_between(words, first, second)
    assert len(expected) >= 9 and {pair[:3] for pair in found} == expected
    assert [pair[3] for pair in found] == sorted(pair[3] for pair in found)


def test_stain_amounts_of_known_mixtures():
    """The light behind known amounts of both stains is decomposed into these amounts."""
    put_in = np.array([[0.5, 0.2], [0.1, 0.6], [0.3, 0.3]])
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    density = put_in @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    values = np.round(256 * 10**-density - 1)
    found = np.stack([stain.density_of(np.full((8, 8, 3), value, np.uint8)).mean for value in values])
    assert np.abs(stain.amounts(found)[:, 1:3] - put_in).max() < 0.01
    assert np.abs(stain.amounts(found)[:, 3]).max() < 0.01
    assert np.abs(stain.amounts(found)[:, 0] - density.mean(axis=1)).max() < 0.01


def test_glass_is_not_tissue():
    half = np.full((8, 8, 3), 245, np.uint8)
    half[:4] = (150, 60, 140)
    assert stain.density_of(half).tissue == 0.5
    assert stain.density_of(np.full((8, 8, 3), 245, np.uint8)).tissue == 0


def test_robust_z():
    values = np.array([1.0, 2, 3, 4, 5, 1000])
    assert np.allclose(stain.robust_z(values), 0.6745 * (values - 3.5) / 1.5)
    assert (stain.robust_z(np.array([2.0, 2, 2, 9])) == 0).all() and stain.robust_z(np.zeros(0)).size == 0


def test_very_different_patches_are_found():
    grays = [100, 120, 110, 250, 105, 20, 130]
    images = [np.full((4, 4, 3), gray, np.uint8) for gray in grays]
    assert survey.most_different(np.stack([survey._measure(each)[0] for each in images])) == (3, 5)
    assert survey.most_different(survey._measure(images[0])[0][None]) == (0, 0)


def test_neighbors_by_name(tmp_path):
    root = kaggle512(tmp_path, train=(TRAIN,), val=(VAL,), tiles_each=1)
    for split, patient, x in (
        ("val", TRAIN, 512),
        ("val", TRAIN, 1500),
        ("train", TRAIN, 1300),
        ("val", "TCGA-BH-A0B1", 0),
    ):
        save(root / f"{split}_512" / f"{name(patient, x)}.png", image(x))
        save(root / f"{split}_mask_512" / f"{name(patient, x)}.png", mask(x))
    tiles = find_tiles(DataSettings("kaggle512", root))
    keys = [tile.key for tile in tiles]
    counts, pairs = neighbors.neighbors(tiles, [(512, 512)] * len(tiles))
    assert counts == {
        "train": {"tiles": 2, "overlapping": 1, "touching": 1},
        "val": {"tiles": 4, "overlapping": 1, "touching": 1},
    }
    assert [{keys[i], keys[j]} for i, j in pairs] == [{name(TRAIN, 1300), name(TRAIN, 1500)}]


@pytest.fixture(scope="module")
def planted(tmp_path_factory, tissue):
    """A data set with one example of everything that the inspection reports."""
    root = tmp_path_factory.mktemp("planted")
    train = [*tissue[:6], (tissue[5] * (0.3, 0.9, 0.4)).astype(np.uint8)]  # the last of another stain
    val = [
        tissue[6],
        tissue[0],
        np.rot90(tissue[1]),
        recompressed(tissue[2], 50),
        tissue[7],
        np.full_like(tissue[0], 245),
    ]
    for split, patient, images in (("train", TRAIN, train), ("val", VAL, val)):
        for number, pixels in enumerate(images):
            stem = name(patient, 2000 * number)
            save(root / f"{split}_512" / f"{stem}.png", np.ascontiguousarray(pixels))
            codes = (0, 7, 15) if (split, number) == ("val", 4) else (0, 1, 2, 3, 9, 19)
            save(root / f"{split}_mask_512" / f"{stem}.png", mask(number, 224, codes))
    extra = name(TRAIN, 40000).replace("MPP-0", "MPP-0.5")
    save(root / "val_512" / f"{extra}.png", synthetic.draw_patch(3, 0).image)
    save(root / "val_mask_512" / f"{extra}.png", mask(9, 224))
    return root


@pytest.fixture
def undrawn(monkeypatch):
    """Makes figures without drawing them, which takes most of the time; one test draws all of them."""
    monkeypatch.setattr(figures, "write", lambda figure, path: None)


def run(capfd, root, output, *arguments):
    """Runs `inspect` and returns exit code, output and errors."""
    code = main(["inspect", f"--data.dir={root}", "--data.layout=kaggle512", f"--output={output}", *arguments])
    out, err = capfd.readouterr()
    assert "Traceback" not in err and (code == 0) == (not err)
    return code, out, err


@pytest.fixture(scope="module")
def inspected(planted, tmp_path_factory):
    output = tmp_path_factory.mktemp("inspected") / "new"
    options = ["--data.layout=kaggle512", "--labels=five_classes", f"--output={output}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_DPI", 40)  # drawn small: faster
        assert main(["inspect", f"--data.dir={planted}", *options]) == 0
    return output, json.loads((output / "inspect.json").read_text())


def test_copies_between_splits_are_reported(inspected):
    _, found = inspected
    assert found["same_pixels"]["between_parts"] == {
        "count": 1,
        "first": [[{"tile": name(TRAIN), "part": "train"}, {"tile": name(VAL, 2000), "part": "val"}]],
    }
    assert found["same_pixels"]["of_one_colour_not_compared"]["first"] == [name(VAL, 10000)]
    near = found["near_copies"]
    assert near["too_little_contrast_not_compared"] == 1 and near["count"] == 2
    assert {(pair["first"], pair["second"], pair["second_is_first"]) for pair in near["first"]} == {
        (name(TRAIN, 2000), name(VAL, 4000), "turned by 90 degrees anticlockwise"),
        (name(TRAIN, 4000), name(VAL, 6000), "as it is"),
    }


def test_unusual_tiles_are_reported(inspected):
    _, found = inspected
    assert found["stain"]["outliers"]["first"][0]["tile"] == name(TRAIN, 12000)
    assert abs(found["stain"]["outliers"]["first"][0]["z"]) > stain.FAR
    assert found["stain"]["hardly_any_tissue"]["first"] == [name(VAL, 10000)]
    assert found["no_evaluated_class"] == {"count": 1, "first": [name(VAL, 8000)]}
    assert found["patients_in_several_parts"] == {TRAIN: {"train": 7, "val": 1}}
    assert found["mpp"]["names_say"] == {"0": 13, "0.5": 1} and found["mpp"]["others"]["first"][0]["mpp"] == 0.5
    assert found["empty_parts"] == ["test"] and found["tiles"] == {"train": 7, "val": 7}
    assert found["institutes"] == {"A2": 8, "OL": 6}


@pytest.mark.parametrize("group", ["part", "institute"])
def test_class_counts_equal_counting_files(planted, inspected, group):
    _, found = inspected
    table = labels.lookup_table(labels.SCHEMES["five_classes"], "bcss22")
    tiles = find_tiles(DataSettings("kaggle512", planted))
    for value in {"part": ("train", "val"), "institute": ("A2", "OL")}[group]:
        of = [tile for tile in tiles if (tile.split if group == "part" else tile.institute) == value]
        codes = np.concatenate([np.asarray(Image.open(tile.mask)).ravel() for tile in of])
        for code, its_name in enumerate(labels.BCSS22_NAMES):
            assert found["classes"]["codes"][f"per_{group}"][value][its_name] == (codes == code).sum()
        names_of_labels = labels.SCHEMES["five_classes"].class_names
        assert found["classes"]["labels"][f"per_{group}"][value] == {
            its_name: int((table[codes] == label).sum()) for label, its_name in enumerate(names_of_labels)
        }


def test_histograms_equal_counting_pixels(planted, inspected):
    _, found = inspected
    patches = found["rgb_histograms"]["pixels"]
    assert set(patches) == {name(TRAIN, 12000), name(VAL, 10000)}  # the unusual stain and the glass
    pixels = np.asarray(Image.open(planted / "train_512" / f"{name(TRAIN, 12000)}.png"))
    for channel, color in enumerate(("red", "green", "blue")):
        expected = np.histogram(pixels[..., channel], bins=64, range=(0, 256))[0]
        assert patches[name(TRAIN, 12000)][color] == expected.tolist()


def test_figures_are_written_completely(inspected):
    output, found = inspected
    assert {path.name for path in output.iterdir()} == {".lock", "inspect.json", *found["pictures"]}
    drawn = ("classes", "codes", "rgb_histograms", "examples", "stain", "copies")
    assert {path.stem for path in output.glob("*.pdf")} == set(drawn)
    for stem in drawn:
        with Image.open(output / f"{stem}.png") as picture:
            assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors(10**6)) > 10
        assert (output / f"{stem}.pdf").read_bytes().startswith(b"%PDF")


def test_results_of_other_settings_are_kept(planted, inspected, tmp_path, capfd, undrawn):
    shutil.copytree(inspected[0], tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "inspect.json").read_bytes()
    code, _, err = run(capfd, planted, tmp_path)
    assert code == 2 and re.search(r"other settings \(labels: five_classes -> tumor_stroma\); .* --overwrite$", err)
    assert (tmp_path / "inspect.json").read_bytes() == before and (tmp_path / "copies.png").exists()
    assert run(capfd, planted, tmp_path, "--labels=five_classes")[0] == 0  # the same settings: inspected again
    assert not (tmp_path / "copies.png").exists()  # nothing is drawn here, and old figures are deleted
    chosen = f"--patches={name(TRAIN)}.png,{name(VAL)}"
    code, out, _ = run(capfd, planted, tmp_path, chosen, "--overwrite")
    assert code == 0
    found = json.loads((tmp_path / "inspect.json").read_text())
    assert list(found["rgb_histograms"]["pixels"]) == [name(TRAIN), name(VAL)]
    assert "near copies between splits: 2, first" in out and "test: this layout has no such split" in out
    (tmp_path / "inspect.json").write_text("[]")
    assert run(capfd, planted, tmp_path)[0] == 2


@pytest.mark.parametrize(
    ("spoil", "code", "line"),
    [
        (lambda root: root.rename(root.with_name("elsewhere")), 3, "found no such folder"),
        (
            lambda root: [p.unlink() for p in root.glob("*_mask_512/*")],
            3,
            "6 of 6 pairs of files cannot be used: .*none",
        ),
        (
            lambda root: (root / "train_512" / f"{name()}.png").write_bytes(b"\x89PNG"),
            3,
            "readable PNG, JPEG or TIFF file",
        ),
        (lambda root: (root / "train_512" / "x.png").write_bytes(b""), 3, "x.png: expected a name such as"),
        (
            lambda root: Image.fromarray(np.zeros((16, 16), np.uint16)).save(root / "train_512" / f"{name()}.png"),
            3,
            "expected 8 bits per channel, found 16 bits or more",
        ),
        (
            lambda root: Image.fromarray(image()).convert("P").save(root / "train_512" / f"{name()}.png"),
            3,
            "expected RGB, found the color mode palette",
        ),
    ],
    ids=["no folder", "no masks", "damaged", "name", "16 bits", "palette"],
)
def test_bad_data_make_one_line(tmp_path, capfd, spoil, code, line):
    root = kaggle512(tmp_path / "data")
    spoil(root)
    found, _, err = run(capfd, root, tmp_path / "out")
    assert found == code and re.search(line, err) and len(err.splitlines()) == 1
    assert not list((tmp_path / "out").glob("[!.]*"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([f"--patches={name(TRAIN)[:-1]}9"], f"no tile .*; the nearest is {name(TRAIN)}"),
        (["--patches=,"], "--patches: expected keys"),
        (["--patches=" + ",".join([name(TRAIN)] * 7)], "at most 6 fit next to each other, found 7"),
        (["--labels=five"], "--labels=five: must be one of .*; did you mean five_classes"),
        (
            ["--data.layout=kaggle224", "--labels=five_classes"],
            "masks with the codes of kaggle3 .* cannot express the label scheme five_classes",
        ),
        (["--data.layout=kaggle"], "--data.layout=kaggle: must be one of"),
    ],
)
def test_wrong_arguments_make_one_line(tmp_path, capfd, arguments, line):
    code, _, err = run(capfd, kaggle512(tmp_path / "data"), tmp_path / "out", *arguments)
    assert code == 2 and re.search(line, err) and len(err.splitlines()) == 1


def test_an_output_that_is_a_file(tmp_path, capfd):
    (tmp_path / "out").write_text("mine")
    code, _, err = run(capfd, kaggle512(tmp_path / "data"), tmp_path / "out")
    assert code == 2 and "expected a folder, found a file" in err
    code, _, err = run(capfd, kaggle512(tmp_path / "data"), tmp_path / "out" / "below")
    assert code == 2 and (tmp_path / "out").read_text() == "mine"


def test_two_inspections_do_not_write_into_one_folder(tmp_path, capfd):
    with files.locked(tmp_path / "out"):
        code, _, err = run(capfd, kaggle512(tmp_path / "data"), tmp_path / "out")
    assert code == 5 and "out: in use by process" in err


def test_images_without_masks_are_included(tmp_path, capfd, tissue, undrawn):
    for split, patient, pixels in (
        ("train", TRAIN, tissue[0]),
        ("val", VAL, tissue[1]),
        ("test", VAL, np.flipud(tissue[0])),
    ):
        stem = name(patient, 224 if split == "test" else 0, size=224)
        save(tmp_path / "data" / split / f"{stem}.png", np.ascontiguousarray(pixels))
        if split != "test":
            save(tmp_path / "data" / f"{split}_mask" / f"{stem}.png", mask(0, 224))
    arguments = [f"--data.dir={tmp_path / 'data'}", f"--output={tmp_path / 'out'}"]
    assert main(["inspect", *arguments]) == 0
    out = capfd.readouterr().out
    assert "test: 1 image without masks, which count in everything but the classes" in out
    found = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert set(found["classes"]["codes"]["per_part"]) == {"train", "val"}
    assert found["institutes"]["OL"] == 2 and found["classes"]["tiles"]["per_institute"]["OL"] == 1
    assert found["near_copies"]["first"][0]["parts"] == ["train", "test"]
    assert found["no_evaluated_class"]["count"] == 0


def test_examples_are_from_many_institutes(tmp_path):
    root = kaggle512(tmp_path, train=[f"TCGA-A{i}-A0D2" for i in range(9)], tiles_each=1)
    taken = survey.take_survey(Source(DataSettings("kaggle512", root)))
    chosen = pictures.choose_examples(taken, labels.SCHEMES["tumor_stroma"])
    assert len({taken.tiles[index].institute for index in chosen}) == len(chosen) == pictures.EXAMPLES


def test_the_sample(tmp_path, capfd, monkeypatch, undrawn):
    monkeypatch.setattr(synthetic, "TRAIN_PATIENTS", 1)
    monkeypatch.setattr(synthetic, "VAL_PATIENTS", 1)
    monkeypatch.setattr(synthetic, "PLANS", synthetic.PLANS[:2])
    assert main(["inspect", "--data.layout=sample", f"--output={tmp_path / 'out'}"]) == 0
    out = capfd.readouterr().out
    assert "built-in sample: 4 tiles from 2 institutes: train 2 (1 patient), val 2 (1 patient)" in out
    assert "near copies between splits: none" in out and "no figure of copies, because there are none" in out


def test_real_tiles(tmp_path, capfd, undrawn):
    folder = DATA / "bcss_kaggle224"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    assert main(["inspect", f"--data.dir={folder}", f"--output={tmp_path / 'out'}"]) == 0
    out = capfd.readouterr().out
    assert "150 tiles from 1 institute" in out and "near copies between splits: none" in out
