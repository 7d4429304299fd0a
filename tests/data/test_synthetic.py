import importlib.util
import itertools
import json
import re

import numpy as np
import pytest
from helpers.paths import ROOT

from bcss_jax import labels
from bcss_jax.data import synthetic

BENCHMARK = ROOT / "benchmarks" / "sample_difficulty.py"


@pytest.fixture(scope="module")
def patches():
    return list(synthetic.draw(seed=0))


@pytest.fixture(scope="module")
def difficulty():
    spec = importlib.util.spec_from_file_location("sample_difficulty", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pixels(patches):
    """Returns every 25th labeled pixel of each split: its colors and whether it is tumor."""
    found = {}
    for split in ("train", "val"):
        images = np.concatenate([p.image.reshape(-1, 3) for p in patches if p.split == split])
        masks = np.concatenate([p.mask.ravel() for p in patches if p.split == split])
        kept = np.flatnonzero((masks == 1) | (masks == 2))[::25]
        found[split] = images[kept], masks[kept] == 1
    return found


def test_patches_have_the_documented_shapes_and_types(patches):
    assert [sum(p.split == split for p in patches) for split in ("train", "val")] == [96, 32]
    assert len({p.key for p in patches}) == len(patches)
    assert len({p.image.tobytes() for p in patches}) == len({p.mask.tobytes() for p in patches}) == len(patches)
    for p in patches:
        assert p.image.shape == (224, 224, 3) and p.image.dtype == np.uint8
        assert p.mask.shape == (224, 224) and p.mask.dtype == np.uint8
        assert re.fullmatch(r"SAMPLE-[A-E][1-5]-\d{4}", p.patient) and p.key == f"{p.patient}_{p.x}_{p.y}"


def test_patches_of_a_patient_do_not_overlap(patches):
    for a, b in itertools.combinations(patches, 2):
        if a.patient == b.patient:
            assert abs(a.x - b.x) >= 224 or abs(a.y - b.y) >= 224


def test_no_patient_is_in_both_splits(patches):
    train, val = ({p.patient for p in patches if p.split == split} for split in ("train", "val"))
    assert (len(train), len(val)) == (12, 4) and not train & val


def test_codes_and_their_shares(patches):
    for split in ("train", "val"):
        masks = np.stack([p.mask for p in patches if p.split == split])
        share = np.bincount(masks.ravel(), minlength=256) / masks.size
        assert set(np.flatnonzero(share)) == {0, 1, 2, 3, 4, 9, 21}
        assert 0.35 < share[1] < 0.6 and 0.3 < share[2] < 0.6
        assert min(share[[0, 3, 4, 9, 21]]) > 0.005
        assert 0.05 < 1 - share[1] - share[2] < 0.25  # what the scheme tumor_stroma ignores


def test_every_patch_has_a_border_between_tumor_and_stroma(patches):
    for p in patches:
        left, right = p.mask[:, :-1], p.mask[:, 1:]
        assert np.sum((left != right) & np.isin(left, (1, 2)) & np.isin(right, (1, 2))) > 40, p.key
        assert min((p.mask == code).mean() for code in (1, 2)) > 0.1, p.key


def test_codes_belong_to_the_code_book(patches):
    for scheme in labels.SCHEMES.values():
        table = labels.lookup_table(scheme, "bcss22")
        assert labels.UNMAPPED not in {int(v) for p in patches[:8] for v in np.unique(table[p.mask])}


def test_images_look_stained(patches):
    for p in patches:
        tissue = p.image[p.mask != 21].astype(float)
        red, green, blue = tissue.mean(0)
        assert green < red - 15 and green < blue - 15, p.key  # pink to purple
        assert tissue.std(0).min() > 12, p.key
    glass = np.concatenate([p.image[p.mask == 21] for p in patches])
    assert np.median(glass, 0).min() > 225


def test_stain_differs_between_patients(patches):
    means = {}
    for p in patches:
        means.setdefault(p.patient, []).append(p.image[(p.mask == 1) | (p.mask == 2)].mean(0))
    means = np.array([np.mean(rows, 0) for rows in means.values()])
    assert means.std(0).max() > 6


def test_image_continues_outside_the_roi(patches):
    cut = [p for p in patches if (p.mask == 0).any()]
    assert len(cut) == 16
    assert all(p.image[p.mask == 0].std() > 12 for p in cut)


def test_a_patch_depends_only_on_its_numbers(patches):
    for patient, number in ((15, 7), (0, 0), (4, 3)):
        alone = synthetic.draw_patch(patient, number, 0)
        within = patches[patient * 8 + number]
        assert alone.key == within.key
        np.testing.assert_array_equal(alone.image, within.image)
        np.testing.assert_array_equal(alone.mask, within.mask)


@pytest.mark.parametrize(
    ("patient", "number", "means", "pixels"),
    [(0, 0, (185.538, 119.932, 180.399), (27640, 22536, 0)), (13, 6, (165.685, 90.764, 164.907), (24967, 17142, 8067))],
)
def test_the_drawing_is_the_one_that_its_version_names(patient, number, means, pixels):
    """If this fails on purpose, change `synthetic.VERSION`: prepared samples are found by it."""
    patch = synthetic.draw_patch(patient, number)
    np.testing.assert_allclose(patch.image.mean(axis=(0, 1)), means, atol=0.01)
    np.testing.assert_allclose(np.bincount(patch.mask.ravel(), minlength=22)[1:4], pixels, atol=20)


def test_seeds_give_different_data(patches):
    other = synthetic.draw_patch(3, 2, seed=1)
    assert other.key == patches[26].key
    assert (other.image != patches[26].image).mean() > 0.9
    assert (other.mask != patches[26].mask).mean() > 0.1


@pytest.mark.parametrize(("patient", "number"), [(-1, 0), (16, 0), (0, 8), (0, -1)])
def test_out_of_range(patient, number):
    with pytest.raises(ValueError, match="no patch"):
        synthetic.draw_patch(patient, number)


def test_negative_seed():
    with pytest.raises(ValueError):
        next(synthetic.draw(seed=-1))


def test_color_alone_does_not_separate_the_tissues(difficulty, pixels):
    for quadratic in (False, True):
        assert 0.5 < difficulty.color_dice(quadratic=quadratic, pixels=pixels)["macro"] < 0.75


def test_logistic_fit_is_the_maximum(difficulty, pixels):
    colors, tumor = (part[::20] for part in pixels["train"])
    weights = difficulty.fit(colors, tumor, quadratic=False)

    def log_likelihood(weights):
        z = difficulty.features(colors, False) @ weights
        return np.sum(tumor * z - np.logaddexp(0, z))

    for shift in np.concatenate([np.eye(4), -np.eye(4)]):
        assert log_likelihood(weights) > log_likelihood(weights + 0.02 * shift)


def test_dice_by_hand(difficulty):
    predicted, truth = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 0, 1], bool)
    # tumor: TP 1, FP 2, FN 1 -> 2/5; stroma: TP 1, FP 1, FN 2 -> 2/5
    assert difficulty.dice(predicted, truth) == {"macro": 0.4, "tumor": 0.4, "stroma": 0.4}


def test_benchmark_prints_a_run_for_comparison(difficulty, pixels, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(difficulty, "labeled_pixels", lambda seed: pixels)
    (tmp_path / "summary.json").write_text(json.dumps({"dice_global": {"macro": 0.8765}}))
    monkeypatch.setattr("sys.argv", ["sample_difficulty.py", f"--run={tmp_path}"])
    assert difficulty.main() == 0
    printed = capsys.readouterr().out
    assert "0.8765" in printed and re.search(r"^RGB +0\.\d{4}", printed, re.MULTILINE)


@pytest.mark.parametrize("content", [None, "{", "{}", '{"dice_global": 3}'])
def test_benchmark_refuses_a_run_without_summary(difficulty, content, monkeypatch, tmp_path, capsys):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    monkeypatch.setattr("sys.argv", ["sample_difficulty.py", f"--run={tmp_path}"])
    assert difficulty.main() == 2
    assert "summary.json" in capsys.readouterr().err
