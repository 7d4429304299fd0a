import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bcss_jax.common import figures, files
from bcss_jax.errors import ConfigError, StorageError
from bcss_jax.labels import SCHEMES

SCHEME = SCHEMES["tumor_stroma"]
BACKGROUND = 200


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def contains(picture, color, at_least, tolerance=1):
    return (np.abs(picture.astype(int) - np.asarray(color)).max(-1) <= tolerance).sum() >= at_least


def blocks():
    """Returns an image, labels and predictions.

    Tumor is on the left, stroma on the right, and the bottom is ignored. Half of the stroma is predicted as tumor.
    """
    image = np.full((1, 64, 64, 3), BACKGROUND, np.uint8)
    labels = np.zeros((1, 64, 64), np.uint8)
    labels[0, :48, :32], labels[0, :48, 32:] = 1, 2
    predictions = np.ones((1, 64, 64), np.uint8)
    predictions[0, :, 48:] = 2
    return image, labels, predictions


def tint(name):
    return np.round(0.5 * BACKGROUND + 0.5 * np.array(figures.CLASS_COLORS[name])).astype(np.uint8)


def history(count, **changes):
    rows = [
        dict(epoch=e, train_loss=2 / e, val_loss=2.2 / e, train_iou=0.5, val_iou=0.4 + e / 100, val_dice=0.5,
             learning_rate=1e-3, seconds=3.0, best=True)
        for e in range(1, count + 1)
    ]  # fmt: skip
    return [row | changes for row in rows]


def test_every_scheme_has_distinct_colors():
    for scheme in SCHEMES.values():
        colors = figures.class_colors(scheme)
        assert colors.shape == (scheme.num_classes, 3) and colors.dtype == np.uint8
        assert len({tuple(c) for c in colors}) == scheme.num_classes


def test_overlay_pixel_by_pixel():
    image, labels, _ = blocks()
    picture = figures.overlay(image[0], labels[0], SCHEME)
    np.testing.assert_array_equal(picture[10, 5], tint("tumor"))
    np.testing.assert_array_equal(picture[10, 60], tint("stroma"))
    ignored = picture[48:]
    assert (ignored[..., 0] == ignored[..., 1]).all() and (ignored[..., 1] == ignored[..., 2]).all()
    assert len(np.unique(ignored)) == 2  # stripes


def test_overlay_keeps_the_image_visible():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    picture = figures.overlay(image, np.full((8, 8), 2, np.uint8), SCHEME)
    assert np.corrcoef(image.ravel(), picture.ravel())[0, 1] > 0.7


def test_overlay_with_an_ignored_label_without_a_logit():
    scheme = SCHEMES["tumor_stroma_other"]
    labels = np.array([[0, 255]], np.uint8)
    picture = figures.overlay(np.full((1, 2, 3), BACKGROUND, np.uint8), labels, scheme)
    np.testing.assert_array_equal(picture[0, 0], tint("other"))
    assert len(set(picture[0, 1])) == 1


def test_error_map_pixel_by_pixel():
    _, labels, predictions = blocks()
    picture = figures.error_map(labels[0], predictions[0], SCHEME)
    np.testing.assert_array_equal(picture[10, 5], figures.CORRECT)
    np.testing.assert_array_equal(picture[10, 60], figures.CORRECT)
    np.testing.assert_array_equal(picture[10, 40], figures.CLASS_COLORS["tumor"])
    assert len(set(picture[60, 40])) == 1 and picture[60, 40, 0] < 255


def test_dice_lines():
    _, labels, predictions = blocks()
    # Tumor: 32 columns of 48 rows are correct, 16 columns too many. Stroma: 16 of 32 columns are found.
    assert figures.dice_lines(labels[0], predictions[0], SCHEME) == ["tumor 0.800", "stroma 0.667"]
    only = np.ones((4, 4), np.uint8)
    assert figures.dice_lines(only, only, SCHEME) == ["tumor 1.000", "stroma –"]


@pytest.mark.parametrize("count", [1, 6])
def test_samples_file(tmp_path, count):
    image, labels, predictions = (np.repeat(x, count, 0) for x in blocks())
    path = tmp_path / "samples.png"
    figures.samples(image, labels, predictions, SCHEME, path, ["a_very_long_name" * 5] * count, "title")
    picture = read(path)
    assert picture.shape[1] == pytest.approx(1260, abs=30)
    assert picture.shape[0] == pytest.approx(148 + 262 * count, abs=30)
    # Each panel is about 250 pixels wide and high, so each of these areas has thousands of pixels.
    for color in (tint("tumor"), tint("stroma"), figures.CLASS_COLORS["tumor"], [BACKGROUND] * 3):
        assert contains(picture, color, 5000 * count)
    assert sorted(os.listdir(tmp_path)) == [".lock", "samples.png"]


def test_samples_in_other_shapes_and_schemes(tmp_path):
    scheme = SCHEMES["five_classes"]
    labels = np.tile(np.arange(6, dtype=np.uint8)[:, None].repeat(8, 0), (2, 1, 96))
    figures.samples(np.zeros((*labels.shape, 3), np.uint8), labels, labels, scheme, tmp_path / "s.png", "ab", "t")
    picture = read(tmp_path / "s.png")
    for name in scheme.evaluated_names:
        assert contains(picture, np.array(figures.CLASS_COLORS[name]) / 2, 500)


def test_samples_refuses_arrays_that_do_not_match(tmp_path):
    image, labels, predictions = blocks()
    for changed in (
        dict(labels=labels[:, :5]),
        dict(predictions=predictions[:0]),
        dict(names=[]),
        dict(images=image[..., :1]),
        dict(images=image[:0], labels=labels[:0], predictions=predictions[:0], names=[]),
    ):
        arguments = dict(images=image, labels=labels, predictions=predictions, names=["a"]) | changed
        with pytest.raises(ValueError, match="do not match"):
            figures.samples(scheme=SCHEME, path=tmp_path / "s.png", title="t", **arguments)
    assert not os.listdir(tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rows",
    [
        history(1),
        history(40),
        history(3, val_loss=None, val_iou=float("nan")),
        history(3, train_loss=float("inf"), best=False),
        [{"epoch": 7}],
    ],
    ids=["one epoch", "many", "no validation", "no best epoch", "no values"],
)
def test_curves_file(tmp_path, rows):
    figures.curves(rows, tmp_path / "curves.png", "title")
    assert read(tmp_path / "curves.png").shape == (462, 1100, 3)
    assert sorted(os.listdir(tmp_path)) == [".lock", "curves.png"]


def test_curves_draw_both_splits(tmp_path):
    figures.curves(history(40), tmp_path / "both.png", "t")
    figures.curves(history(40, val_loss=None, val_iou=None), tmp_path / "train.png", "t")
    blue, vermilion = (0, 114, 178), (213, 94, 0)
    both, train = read(tmp_path / "both.png"), read(tmp_path / "train.png")
    assert contains(both, blue, 400) and not contains(train, blue, 400)  # the legend alone has fewer
    assert contains(both, vermilion, 200) and contains(train, vermilion, 200)


def test_curves_refuses_an_empty_history(tmp_path):
    with pytest.raises(ValueError, match="no epoch"):
        figures.curves([], tmp_path / "curves.png", "t")


def test_existing_picture_is_replaced(tmp_path):
    path = tmp_path / "curves.png"
    files.write_bytes(path, b"old")
    figures.curves(history(2), str(path), "t")
    assert read(path).shape == (462, 1100, 3)


def test_path_that_cannot_be_written(tmp_path):
    with pytest.raises(StorageError, match=re.escape("missing")) as raised:
        figures.curves(history(2), tmp_path / "missing" / "curves.png", "t")
    assert "\n" not in str(raised.value)
    (tmp_path / "taken.png").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(ConfigError, match="expected a file, found a folder"):
        figures.curves(history(2), tmp_path / "taken.png", "t")
    assert sorted(os.listdir(tmp_path)) == [".lock", "taken.png"]  # no incomplete file is left


def test_figures_and_synthetic_load_neither_pyplot_nor_tensorflow():
    code = (
        "import sys, bcss_jax.common.figures, bcss_jax.data.synthetic; "
        "print({'matplotlib.pyplot', 'tensorflow'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
