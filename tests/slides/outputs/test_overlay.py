import os

import numpy as np
import pytest
from PIL import Image

from bcss_jax.common import figures
from bcss_jax.errors import StorageError
from bcss_jax.labels import SCHEMES
from bcss_jax.slides.classes import SlideClass, classes_of
from bcss_jax.slides.outputs import overlay

CLASSES = (SlideClass(1, "tumor", (230, 159, 0)), SlideClass(2, "stroma", (0, 114, 178)))
PINK = (220, 120, 180)
GRAY = 0.299 * 220 + 0.587 * 120 + 0.114 * 180


def slide(height=120, width=160):
    """Background above; tumor left, stroma right, some of it unreadable."""
    thumbnail = np.full((height, width, 3), PINK, np.uint8)
    labels = np.zeros((height, width), np.uint8)
    labels[40:, : width // 2], labels[40:, width // 2 :] = 1, 2
    labels[-20:, -20:] = 255
    return thumbnail, labels


def tint(color):
    return np.round((1 - overlay.TINT) * GRAY + overlay.TINT * np.array(color))


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def count(picture, color, tolerance=1):
    return (np.abs(picture.astype(int) - np.asarray(color)).max(-1) <= tolerance).sum()


def test_tints_outlines_background_and_unreadable_pixel_by_pixel():
    thumbnail, labels = slide()
    picture = overlay.tinted(thumbnail, labels, CLASSES).astype(int)
    np.testing.assert_array_equal(picture[:39], np.broadcast_to(PINK, (39, 160, 3)))
    np.testing.assert_array_equal(picture[39], np.broadcast_to(PINK, (160, 3)))  # outlines lie within the regions
    assert np.abs(picture[42:118, 2:78] - tint(CLASSES[0].color)).max() <= 1
    assert np.abs(picture[42:98, 82:138] - tint(CLASSES[1].color)).max() <= 1
    np.testing.assert_array_equal(picture[40, :80], np.broadcast_to(CLASSES[0].color, (80, 3)))
    np.testing.assert_array_equal(picture[50, 79], CLASSES[0].color)
    np.testing.assert_array_equal(picture[50, 80], CLASSES[1].color)
    hatch = picture[-20:, -20:]
    assert (hatch.max(-1) == hatch.min(-1)).all() and len(np.unique(hatch)) == 2
    np.testing.assert_array_equal(thumbnail, slide()[0])


def test_sizes_that_differ_are_refused():
    thumbnail, labels = slide()
    with pytest.raises(ValueError, match="thumbnail"):
        overlay.tinted(thumbnail, labels[:-1], CLASSES)


def test_differences_have_the_second_results_colors():
    thumbnail, first = slide()
    second = first.copy()
    second[60:70, 10:20] = 2
    second[60:70, 30:40] = 0  # nothing to compare
    first = first.copy()
    first[60:70, 50:60] = 255
    picture = overlay.differences(thumbnail, first, second, CLASSES).astype(int)
    faint = np.round(255 - (255 - GRAY) * overlay._FADED)
    assert (picture[60:70, 10:20] == CLASSES[1].color).all()
    assert np.abs(picture[60:70, 30:40] - faint).max() <= 1 and np.abs(picture[:30] - faint).max() <= 1
    assert len(np.unique(picture[60:70, 50:60])) == 2  # hatched
    assert count(picture, CLASSES[1].color) == 100 and not count(picture, CLASSES[0].color)


def test_the_picture_shows_the_thumbnail_pixel_by_pixel_with_a_legend_and_a_bar(tmp_path):
    thumbnail, labels = slide(600, 800)
    path = tmp_path / "overlay.png"
    areas = {1: 1.5, 2: 0.5, 255: 0.0004}
    overlay.overlay(thumbnail, labels, CLASSES, path, title="case.svs", mm_per_pixel=0.01, areas_mm2=areas)
    picture = read(path)
    assert picture.shape[0] > 650 and picture.shape[1] > 800
    expected = overlay.tinted(thumbnail, labels, CLASSES)
    for color in (PINK, tint(CLASSES[0].color), tint(CLASSES[1].color)):  # except for what the bar and the frame cover
        shown, there = count(picture, color), count(expected, color)
        assert 0.9 * there < shown < 1.05 * there
    black = (picture.max(-1) < 40).sum(1)  # the bar: 200 pixels of 0.01 mm each are 2 mm
    assert 190 <= black.max() <= 215
    legend = 255 - (255 - np.array(CLASSES[0].color)) * (overlay.TINT + 0.2)
    assert count(picture[-60:], legend, 2) > 100


def test_the_legend_states_areas_and_shares(tmp_path, monkeypatch):
    texts = {}
    monkeypatch.setattr(overlay, "_patches", lambda classes, given: texts.update(given) or [])
    thumbnail, labels = slide()
    draw = dict(path=tmp_path / "o.png", title="t", mm_per_pixel=0.01)
    overlay.overlay(thumbnail, labels, CLASSES, areas_mm2={1: 1.5, 2: 12.345, 255: 0.0004}, **draw)
    assert texts == {1: "tumor 1.5 mm² (10.8 %)", 2: "stroma 12.3 mm² (89.2 %)", 255: "unreadable < 0.001 mm²"}
    texts.clear()
    overlay.overlay(thumbnail, np.zeros_like(labels), CLASSES, areas_mm2={}, **draw)
    assert texts == {1: "tumor 0 mm²", 2: "stroma 0 mm²"}


@pytest.mark.parametrize("height, width", [(1, 1), (3, 1500), (1500, 3)])
def test_sizes_at_the_limits(tmp_path, height, width):
    thumbnail, labels = np.full((height, width, 3), 200, np.uint8), np.ones((height, width), np.uint8)
    options = dict(title="a long name " * 20, mm_per_pixel=0.01)
    overlay.overlay(thumbnail, labels, CLASSES, tmp_path / "o.png", areas_mm2={1: 1}, **options)
    panels = [overlay.Panel("truth", labels), overlay.Panel("a", labels)]
    overlay.comparison(thumbnail, panels, CLASSES, tmp_path / "c.png", **options)
    assert max(read(tmp_path / "o.png").shape) < 4000 and max(read(tmp_path / "c.png").shape) < 4000


def test_a_comparison_names_both_results_and_their_difference(tmp_path, monkeypatch):
    thumbnail, truth = slide(300, 260)
    first, second = truth.copy(), truth.copy()
    second[100:150, 10:60] = 2
    compared = ((second != 0) & (second != 255)).sum()
    titles = []
    original = overlay.Axes.set_title
    monkeypatch.setattr(
        overlay.Axes, "set_title", lambda self, text, **k: titles.append(text) or original(self, text, **k)
    )
    panels = [
        overlay.Panel("truth", truth),
        overlay.Panel("U-Net\nDice 0.9", first),
        overlay.Panel("TransUNet", second),
    ]
    path = tmp_path / "comparison.png"
    overlay.comparison(thumbnail, panels, CLASSES, path, title="case.svs", mm_per_pixel=0.01)
    assert titles[:4] == ["slide", "truth", "U-Net\nDice 0.9", "TransUNet"]
    assert f"U-Net and TransUNet differ in {100 * 2500 / compared:.1f} %" in titles[4].replace("\n", " ")
    picture = read(path)
    assert count(picture, tint(CLASSES[0].color), 3) > 10_000 and count(picture, CLASSES[1].color, 3) > 2000


def test_the_same_picture_has_the_same_bytes_and_failures_are_one_line(tmp_path, monkeypatch):
    thumbnail, labels = slide()
    options = dict(title="t", mm_per_pixel=0.01, areas_mm2={1: 1, 2: 2})
    for name in ("a.png", "b.png"):
        overlay.overlay(thumbnail, labels, CLASSES, tmp_path / name, **options)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        overlay.overlay(thumbnail, labels, CLASSES, tmp_path / "c.png", **options)
    assert sorted(os.listdir(tmp_path)) == [".lock", "a.png", "b.png"]


def test_the_colors_of_all_schemes_are_distinguishable_on_tissue():
    """Tints on gray differ from each other and from parts that are not tinted."""
    for scheme in SCHEMES.values():
        classes = classes_of(scheme)
        seen = [tint(entry.color) for entry in classes] + [np.array(PINK)]
        apart = [np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]]
        assert min(apart) > 20
    assert figures.CLASS_COLORS["tumor"] == CLASSES[0].color
