"""The command changes the stain of slides into that of the training set only if asked to, and says what it did."""

import shutil

import numpy as np
import pytest
import tifffile
from helpers import slide_files
from helpers.segment_command import call, contents, one_line, summary_of
from helpers.slides_small import write_run
from helpers.stained_pixels import OTHER_VECTORS, amounts, stained

from bcss_jax.data.stain.measured_stain import measure

HEIGHT, WIDTH = 300, 400
AMOUNTS = amounts(HEIGHT, WIDTH)
AMOUNTS[:, 320:] = 0  # glass
ORIGINAL = stained(AMOUNTS)
FACTORS = np.array([0.6, 1.3])  # on the stains of the slide from another laboratory
OPTIONS = ("--tissue=all", "--glass=keep", "--min_area_um2=0", "--readers=1", "--batch_size=8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    stain = measure(ORIGINAL.reshape(-1, 3), np.full(3, 240.0))
    return write_run(tmp_path_factory.mktemp("runs") / "one", seed=1, window=64, stain=stain.to_json())


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    other = stained(AMOUNTS * FACTORS, vectors=OTHER_VECTORS, white=225)
    return {
        name: slide_files.tiled(folder / f"{name}.tif", pixels)
        for name, pixels in (("original", ORIGINAL), ("other", other))
    }


def segmented(run, slide, output, *options):
    assert call(f"--checkpoint={run}", f"--slide={slide}", f"--output={output}", *OPTIONS, *options) == 0
    return output / slide.stem


def labels(folder):
    return tifffile.imread(folder / "labels.ome.tif")


@pytest.fixture(scope="module")
def results(run, slides, tmp_path_factory):
    """The folders of both slides with the default, and of the other one normalized."""
    folder = tmp_path_factory.mktemp("results")
    return {
        (name, option): segmented(
            run, slide, folder / (option or "default"), *([f"--stain={option}"] if option else [])
        )
        for name, slide, option in (
            ("original", slides["original"], None),
            ("other", slides["other"], None),
            ("other", slides["other"], "normalize"),
        )
    }


def test_a_slide_of_known_factors_gets_the_labels_of_the_original(results):
    original, other = (labels(results[name, None]) for name in ("original", "other"))
    normalized = labels(results["other", "normalize"])
    assert np.mean(normalized != original) < min(0.02, 0.25 * np.mean(other != original))


def test_the_summary_states_what_was_changed(results):
    summary = summary_of(results["other", "normalize"])
    stain = summary["stain"]
    np.testing.assert_allclose(list(stain["factors"].values()), 1 / FACTORS, rtol=0.06)
    np.testing.assert_allclose(stain["from"]["vectors"], OTHER_VECTORS, atol=0.03)
    assert stain["from"]["white"] == [225, 225, 225] and stain["to"] == summary["identity"]["stain_of_training"]
    assert summary["identity"]["settings"]["stain"] == "normalize"
    for name in ("original", "other"):
        kept = summary_of(results[name, None])
        assert "stain" not in kept and "stain" not in kept["identity"]["settings"]
        assert "stain_of_training" not in kept["identity"]


def test_keep_is_the_default_to_the_bit_and_does_not_mix_with_the_other(run, slides, results, tmp_path, capsys):
    kept = segmented(run, slides["other"], tmp_path / "kept", "--stain=keep")
    assert contents(kept) == contents(results["other", None])
    output = tmp_path / "out"
    shutil.copytree(results["other", "normalize"], output / "other")
    options = (f"--checkpoint={run}", f"--slide={slides['other']}", f"--output={output}", *OPTIONS)
    assert call(*options, "--stain=normalize") == 0 and "done before" in capsys.readouterr().out
    assert call(*options) == 2
    assert "holds results of other settings" in one_line(capsys)
    assert call(*options, "--overwrite") == 0
    assert contents(output / "other") == contents(kept)


def test_the_result_does_not_depend_on_batches_and_readers(run, slides, results, tmp_path):
    again = segmented(run, slides["other"], tmp_path, "--stain=normalize", "--batch_size=3", "--readers=2")
    assert contents(again) == contents(results["other", "normalize"])


def test_a_gray_slide_is_left_alone_and_that_is_said(run, tmp_path, caplog):
    slide = slide_files.tiled(tmp_path / "gray.tif", np.repeat(ORIGINAL[..., 1:2], 3, axis=2))
    kept, left = (segmented(run, slide, tmp_path / option, f"--stain={option}") for option in ("keep", "normalize"))
    np.testing.assert_array_equal(labels(left), labels(kept))
    summary = summary_of(left)
    assert summary["stain"] == {"left_alone": "shades of gray only"}
    said = "gray.tif: its stain is not changed, because it has shades of gray only"
    assert said in summary["notes"] and said in caplog.text


@pytest.mark.parametrize("stain", [{}, {"stain": None}])
def test_a_model_that_states_no_stain_is_refused(slides, tmp_path, capsys, stain):
    run = write_run(tmp_path / "earlier", seed=1, window=64, **stain)
    output = tmp_path / "out"
    assert call(f"--checkpoint={run}", f"--slide={slides['other']}", f"--output={output}", "--stain=normalize") == 2
    assert "--stain=normalize: earlier does not state the stain of its training images" in one_line(capsys)
    assert not output.exists()


def test_a_stain_that_was_changed_in_the_run_is_refused(slides, tmp_path, capsys):
    run = write_run(tmp_path / "changed", seed=1, window=64, stain={"vectors": []})
    assert call(f"--checkpoint={run}", f"--slide={slides['other']}", f"--output={tmp_path / 'out'}") == 3
    assert "the checkpoint was changed" in one_line(capsys)
