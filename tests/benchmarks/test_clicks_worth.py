"""Labels by clicks: the larger logit decides, clicks are counted, and a SAM that has seen the tiles is refused."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.paths import ROOT
from PIL import Image

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.prompting.predictor import Prediction

sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from clicked_labels import clicked_labels, labels_of, quality, regions_and_left_out  # noqa: E402

from benchmarks import clicks_worth  # noqa: E402
from benchmarks.clicks_worth import Tile  # noqa: E402


class Painter:
    """Stands for a network that answers a click with a disc of logits, which fall with the distance, and adds them."""

    def __init__(self, radius):
        self.radius, self.images = radius, []

    def set_image(self, image):
        self.images.append(image)
        self.rows, self.columns = np.mgrid[: image.shape[0], : image.shape[1]]

    def predict(self, points, labels, mask=None, multimask=True, logits=False):
        found = np.full((len(points), *self.rows.shape), -9.0, np.float32)
        for i, (at, inside) in enumerate(zip(points, labels, strict=True)):
            for (x, y), label in zip(at, inside, strict=True):
                disc = self.radius - np.hypot(self.columns - x, self.rows - y)
                found[i] = np.where(disc > 0, np.maximum(found[i], disc) if label else -disc, found[i])
        return Prediction(found[:, None], np.ones((len(points), 1)), found[:, None])


def tile(labels, name="tile.png", patient="P"):
    labels = np.asarray(labels, np.uint8)
    return Tile(name, patient, np.zeros((*labels.shape, 3), np.uint8), labels)


def two_regions():
    labels = np.zeros((40, 60), np.uint8)
    labels[4:24, 4:24], labels[4:24, 24:56] = 1, 2
    labels[32:36, 4:8] = 2  # 16 pixels: too small to be clicked
    return labels


def test_the_larger_logit_decides_and_what_no_mask_covers_is_ignored():
    logits = np.array([[[2.0, 1.0, -1.0, 0.0, 3.0]], [[1.0, 1.5, -2.0, -1.0, 3.0]]])
    assert labels_of(logits, np.array([2, 1])).tolist() == [[2, 1, 0, 0, 2]]
    assert labels_of(logits, np.array([2, 2])).tolist() == [[2, 2, 0, 0, 2]]


def test_each_region_gets_its_clicks_and_they_are_counted():
    tiles, painter = [tile(two_regions()), tile(np.zeros((40, 60)))], Painter(9)
    found = clicked_labels(tiles, painter, [1, 3])
    assert found[1].clicks.tolist() == [2, 0] and found[3].clicks.tolist() == [6, 0]
    assert len(painter.images) == 1  # nothing is clicked in a tile without regions
    first, third = (found[amount].labels[0] for amount in (1, 3))
    assert first[13, 13] == 1 and first[13, 39] == 2 and first[5, 5] == 0 and first[34, 6] == 0
    assert (third > 0).sum() > (first > 0).sum()
    assert not found[3].labels[1].any() and first.dtype == np.uint8
    # A region that is right needs no further click.
    assert clicked_labels([tile(np.ones((40, 60)))], Painter(90), [5])[5].clicks.tolist() == [1]


def test_small_regions_and_what_labels_lack_are_counted():
    regions, left_out = regions_and_left_out([tile(two_regions())])
    assert regions == 2 and left_out == pytest.approx(16 / (400 + 640 + 16))
    truth = np.zeros((8, 10), np.uint8)
    truth[:, :4], truth[:, 4:8] = 1, 2
    labels = truth.copy()
    labels[:, 3], labels[:, 4], labels[:, 9] = 0, 1, 2  # missed, wrong, and where there is no truth
    found = quality(labels[None], [tile(truth)])
    assert found.labeled == pytest.approx(7 / 8) and found.right == pytest.approx(6 / 7)
    assert found.beyond == pytest.approx(1 / 2)
    assert found.dice.value == pytest.approx((2 * 3 / (4 + 4) + 2 * 3 / (4 + 3)) / 2)


@pytest.fixture
def run_on(tmp_path):
    def written(layout, images):
        for number, image in enumerate(images):
            folder = tmp_path / "data" / ("train", "val")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
        run = tmp_path / layout
        run.mkdir()
        config = {"data": {"layout": layout, "dir": str(tmp_path / "data") if layout != "sample" else ""}}
        (run / "config.json").write_text(json.dumps(config))
        return run

    return written


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("layout", "seen", "error", "message"),
    [
        ("sample", [], None, ""),
        ("kaggle224", [7, 8], None, ""),
        ("kaggle224", [7, 1], ConfigError, "was trained with annotated.png"),
        ("kaggle224", [2, 7], ConfigError, "was trained with tested.png"),
        ("kaggle224", [], DataError, "found none"),
        ("slides", [], ConfigError, "sample or kaggle224"),
    ],
)
def test_a_network_that_has_seen_the_tiles_is_refused(run_on, layout, seen, error, message):
    of = {
        name: Tile(name, "P", noise(seed), noise(0)[..., 0]) for seed, name in ((1, "annotated.png"), (2, "tested.png"))
    }
    tiles = clicks_worth.Material([of["annotated.png"]], [], [clicks_worth.TestSet("set", [of["tested.png"]], (1,))])
    run = run_on(layout, map(noise, seen))
    if error is None:
        clicks_worth.check_unseen(run, tiles)
    else:
        with pytest.raises(error, match=message):
            clicks_worth.check_unseen(run, tiles)


def test_results_of_other_settings_are_not_taken_for_these(tmp_path):
    args = SimpleNamespace(output=tmp_path, steps=8, unet_width=4, unet_rate=1e-3)
    tiles = clicks_worth.Material([tile(two_regions())], [], [])
    clicks_worth.claim(args, tiles, "a")
    clicks_worth.claim(args, tiles, "a")
    for changed, name in (
        ((args, tiles, "b"), "sam_sha256"),
        ((SimpleNamespace(**{**vars(args), "steps": 9}), tiles, "a"), "steps"),
    ):
        with pytest.raises(ConfigError, match=name):
            clicks_worth.claim(*changed)
    (tmp_path / "settings.json").unlink()
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match="runs of something else"):
        clicks_worth.claim(args, tiles, "a")
