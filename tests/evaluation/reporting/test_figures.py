"""What the figures of an evaluation show."""

import io

import numpy as np
import pytest
from helpers.evaluation_small import evaluation, history
from PIL import Image

from bcss_jax.errors import ConfigError
from bcss_jax.evaluation.reporting import figures
from bcss_jax.labels import SCHEMES


@pytest.fixture(scope="module")
def small():
    return evaluation()


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_every_figure_is_written_as_png_and_as_vector_pdf(tmp_path, small):
    found, gallery = small
    figures.write(tmp_path, [found], {"unet": gallery})
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if path.name != ".lock"}
    pictures = ("curves", "unet/confusion", "unet/reliability", "unet/worst", "unet/median", "unet/best")
    assert names == {f"{name}.{kind}" for name in pictures for kind in ("png", "pdf")}
    for name in pictures:
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300 and len(np.unique(np.asarray(picture))) > 5
        content = (tmp_path / f"{name}.pdf").read_bytes()
        assert content.startswith(b"%PDF")
        pixels = name.split("/")[-1] in (
            "worst",
            "median",
            "best",
            "confusion",
        )  # photographs, and the cells of the matrix
        assert (b"/Subtype /Image" in content) == pixels


def test_equal_evaluations_give_equal_files(tmp_path, small):
    for folder in ("a", "b"):
        figures.write(tmp_path / folder, [small[0]], {})
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: expected a folder"):
        figures.save(figures.curves({"a": history()}), tmp_path / "file" / "curves")


@pytest.mark.parametrize("stacked", (False, True))
def test_curves_of_several_runs_differ_without_color_too(stacked):
    figure = figures.curves({f"run{i}": history(3 + i) for i in range(9)}, stacked)
    for axes in figure.axes:
        lines = axes.get_lines()
        train, validation = lines[::2], lines[1::2]
        assert {line.get_linestyle() for line in train} == {"--"}
        assert {line.get_linestyle() for line in validation} == {"-"}
        looks = [(line.get_color(), line.get_marker()) for line in validation]
        assert looks == [(line.get_color(), line.get_marker()) for line in train]
        assert len(set(looks)) == 9 and len({marker for _, marker in looks}) == 5
    last = figure.axes[1].get_lines()[-1]
    np.testing.assert_allclose(last.get_ydata(), [1 - 0.7 / e for e in range(1, 12)])
    assert {f"run{i}" for i in range(9)} | {"training", "validation"} <= set(texts(figure))


def test_curves_with_gaps_and_without_iou():
    rows = history(4)
    rows[1]["val_loss"], rows[2]["val_loss"] = "", "inf"
    figure = figures.curves({"gaps": rows, "plain": [{"epoch": 1, "train_loss": 0.5, "val_loss": None}], "none": []})
    values = figure.axes[0].get_lines()[1].get_ydata()
    assert np.isnan(values).tolist() == [False, True, True, False]
    assert "no IoU recorded: plain" in texts(figure)
    assert "none" not in texts(figure)
    with pytest.raises(ValueError, match="no epoch"):
        figures.curves({"none": []})


def test_confusion_shows_shares_of_the_row_and_counts():
    counts = {"truth": ["a", "b"], "prediction": ["a", "b"], "pixels": [[3_000_000, 1_000_000], [0, 0]]}
    shown = texts(figures.confusion(counts, "name"))
    assert {"75.0%\n3,000,000", "25.0%\n1,000,000", "name", "a", "b"} <= set(shown)
    assert shown.count("no pixels") == 2


@pytest.mark.filterwarnings("error")
def test_long_names_leave_room_for_the_picture():
    name = "c" * 64
    figure = figures.confusion({"truth": [name, "b"], "prediction": [name, "b"], "pixels": [[3, 1], [0, 2]]}, name * 3)
    figure.draw_without_rendering()
    assert min(figure.axes[0].get_window_extent().size) > 100
    assert f"{name[:23]}…" in texts(figure)
    title = figure._suptitle.get_window_extent()
    assert title.x0 >= 0 and title.x1 <= figure.bbox.width


def test_reliability_draws_the_curve_before_and_after(small):
    found = small[0]["scores"]["calibration"]
    temperature = small[0]["temperature"]
    figure = figures.reliability(found, "name", temperature)
    _, before, after = figure.axes[0].get_lines()
    np.testing.assert_array_equal(before.get_ydata(), np.array(found["curve"]["accuracy"], float))
    assert (before.get_linestyle(), before.get_marker()) != (after.get_linestyle(), after.get_marker())
    assert f"as trained: ECE {found['ece']:.3f}" in texts(figure)
    assert "temperature 1.50 (pixels sampled from train): ECE 0.010" in texts(figure)
    without_curve = {name: value for name, value in temperature.items() if name != "curve_after"}
    for known in (None, without_curve):
        assert len(figures.reliability(found, "name", known).axes[0].get_lines()) == 2


def test_names_are_not_formulas(small):
    name = "$\\frac{$ and $x$"
    figure = figures.confusion(small[0]["scores"]["confusion"], name)
    assert figure.get_suptitle() == name.replace("$", r"\$")
    assert figures.png(figure).startswith(b"\x89PNG")  # matplotlib raises for an invalid formula
    entries = [entry | {"key": name} for entry in small[1][:1]]
    assert Image.open(io.BytesIO(figures.png(figures.gallery(entries, SCHEMES["tumor_stroma"], name)))).size[0] > 300
