"""`bcss_jax.segment --tta` writes where the flips disagree, and `annotate --next` goes there."""

import numpy as np
import tifffile
from helpers.annotator_small import ServedAnnotator
from helpers.segment_command import command, contents, summary_of
from helpers.segmented_slide import runs, slide  # noqa: F401 (fixtures)
from PIL import Image

from bcss_jax.slides.batch.slide_folder import fingerprints
from bcss_jax.slides.slide_summary import read_summary
from bcss_jax.slides.store.disagreement_map import read_map


def test_flips_leave_a_map_of_where_they_disagree(runs, slide, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert command(runs[0], slide, tmp_path / "out", "--tta") == 0
    folder = tmp_path / "out/case"
    assert summary_of(folder)["files"]["disagreement"] == "disagreement.png"
    shares = read_map(folder / "disagreement.png", read_summary(folder / "summary.json").grid)
    assert shares.shape == (5, 7) and 0.01 < shares.mean() < 0.6  # drawn weights: flips differ
    assert Image.open(folder / "disagreement.png").size == (7, 5)
    before = contents(folder)
    assert command(runs[0], slide, tmp_path / "out", "--tta") == 0  # nothing is computed again
    assert contents(folder) == before
    with ServedAnnotator(slide, start_from=folder, next_region=True) as found:
        answer = found.post("next_region", {"after": -1})
        assert answer["left"] == 1 and answer["region"]["box"] == [0, 0, 200, 150]
        assert abs(answer["region"]["share"] - shares.mean()) < 1e-4
        assert any("where the flips of one disagree" in line for line in found.lines)
    (folder / "disagreement.png").unlink()
    assert command(runs[0], slide, tmp_path / "out", "--tta") == 0  # a result that is missing is computed again
    assert contents(folder)[0] == before[0]


def test_two_models_without_flips_have_no_map_and_are_compared_by_their_labels(runs, slide, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert command(f"{runs[0]},{runs[1]}", slide, tmp_path / "out") == 0
    folder = tmp_path / "out/case"
    assert not list(folder.rglob("disagreement*"))
    one, two = (tifffile.imread(folder / name / "labels.ome.tif") for name in ("one", "two"))
    assert read_summary(folder / "one/summary.json").fingerprint == fingerprints(slide)["slide"]
    for start in (folder, folder / "one"):
        output = tmp_path / f"{start.name}.geojson"
        with ServedAnnotator(slide, start_from=start, next_region=True, output=output) as found:
            region = found.post("next_region", {"after": -1})["region"]
            assert any("where the models one and two disagree" in line for line in found.lines)
            # Labels are compared at every fourth pixel, and the cells at the edge are wider than the slide.
            assert abs(region["share"] - (one != two).sum() / (224 * 160)) < 0.05 and np.mean(one != two) > 0.05
