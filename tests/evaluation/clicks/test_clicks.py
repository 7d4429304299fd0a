"""Clicks on objects are counted as the protocol has it, and the command writes what they say."""

import csv
import json

import numpy as np
import pytest
from helpers.sam_small import TILES, prompt_settings, use_small_sams
from helpers.small_networks import SAM_DECODER, SAM_FORM
from PIL import Image

import bcss_jax
from bcss_jax.api import click_evaluation
from bcss_jax.commands import evaluate
from bcss_jax.evaluation.clicks.sessions import agreement, box_sessions, click_sessions, clicked_objects
from bcss_jax.evaluation.clicks.summary import ClickedObject, summary_of
from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.sam.weights import loading
from bcss_jax.models.sam.weights.description import write_sam
from bcss_jax.models.weights.pretrained import to_torch_state
from bcss_jax.prompting.predictor import Prediction


class Painter:
    """Stands for a network that paints a square around each click and, with a mask, adds to it."""

    def __init__(self, shape, radius):
        self.shape, self.radius, self.calls = shape, radius, []

    def predict(self, points=None, labels=None, box=None, mask=None, *, multimask=True, logits=False):
        self.calls.append((None if points is None else points.shape, mask is not None, multimask))
        count = len(points if points is not None else box)
        masks = np.zeros((count, 3 if multimask else 1, *self.shape), bool)
        for i in range(count):
            if box is not None:
                left, top, right, bottom = box[i].astype(int)
                masks[i, 0, top : bottom + 1, left : right + 1] = True
                continue
            first = 0 if mask is None else len(points[i]) - 1
            if mask is not None:
                masks[i, 0] = mask[i] > 0
            for (x, y), label in zip(points[i][first:], labels[i][first:], strict=True):
                rows = slice(max(y - self.radius, 0), y + self.radius + 1)
                masks[i, 0, rows, max(x - self.radius, 0) : x + self.radius + 1] = label
        scores = np.tile(np.array([0.9, 0.1, 0.2])[: masks.shape[1]], (count, 1))
        return Prediction(masks, scores, np.where(masks, 1.0, -1.0))


def test_each_object_is_clicked_until_nothing_is_wrong():
    shape, known = (24, 40), np.ones((24, 40), bool)
    masks = [np.zeros(shape, bool) for _ in range(2)]
    masks[0][2:11, 2:11] = True  # one square of the painter
    masks[1][2:11, 12:39] = True  # three of them
    painter = Painter(shape, 4)
    found = click_sessions(painter, masks, known, feed_back=True, clicks=8)
    assert found.dice.shape == (2, 8) and found.dice[0].tolist() == [1.0] * 8
    assert found.dice[1, 0] == pytest.approx(2 * 81 / (81 + 243)) and (np.diff(found.dice[1]) >= 0).all()
    assert found.dice[1, -1] == 1.0 and found.iou[1, 0] == pytest.approx(1 / 3)
    assert painter.calls[0] == ((2, 1, 2), False, True) and painter.calls[1] == ((2, 2, 2), True, False)
    assert box_sessions(painter, masks, known).dice.tolist() == [1.0, 1.0]
    painter.calls.clear()
    after = list(clicked_objects(painter, masks, known, feed_back=True, clicks=8))
    assert [each.clicks.tolist() for each in after[:2]] == [[1, 1], [1, 2]]  # the first object is done
    assert after[-1].clicks[1] < 8 and ((after[-1].logits > 0) == masks).all()
    painter.calls.clear()
    click_sessions(painter, masks, known, feed_back=False, clicks=2)
    assert [fed for _, fed, _ in painter.calls] == [False, False]


def test_only_known_pixels_count():
    mask, known = np.array([[1, 1, 0, 0]], bool), np.array([[1, 1, 1, 0]], bool)
    assert agreement(mask, np.array([[1, 0, 0, 1]], bool), known) == (2 / 3, 0.5)
    assert agreement(mask & False, np.array([[0, 0, 0, 1]], bool), known) == (1.0, 1.0)


def clicked(patient, first, last, box=0.9):
    dice = np.linspace(first, last, 20)
    return ClickedObject("tile", patient, "tumor", 100, dice, dice / (2 - dice), box, box / (2 - box), dice[:10] - 0.1)


def test_the_summary_counts_objects_that_are_never_good_enough_as_all_clicks():
    objects = [clicked(f"P{i}", 0.5, 1.0) for i in range(9)] + [clicked("P9", 0.2, 0.4)]
    found = summary_of(objects)
    first = next(n for n in range(1, 21) if objects[0].iou[n - 1] >= 0.8)
    assert objects[0].clicks_to(0.8) == first and objects[9].clicks_to(0.8) is None
    to_iou = found["clicks_to_iou"]["0.80"]
    assert to_iou["mean"]["value"] == pytest.approx((9 * first + 20) / 10)
    assert to_iou["share_never"]["value"] == pytest.approx(0.1) and to_iou["mean"]["over"] == "patients"
    assert found["dice_after"]["1"]["value"] == pytest.approx((9 * 0.5 + 0.2) / 10)
    fed = found["dice_mask_fed_back_minus_not"]["5"]
    assert fed["value"] == pytest.approx(0.1) and fed["low"] == pytest.approx(0.1)
    assert found["dice_box_minus_one_click"]["value"] == pytest.approx(0.9 - 0.47)
    assert found["by_patient"]["P9"]["clicks_to_iou"] == {"0.80": 20.0, "0.85": 20.0}
    assert summary_of(objects[:2])["dice_after"]["1"]["over"] == "objects"


@pytest.fixture
def sam_file(tmp_path, monkeypatch):
    use_small_sams(monkeypatch)
    monkeypatch.setattr(loading, "decoder_form_of", lambda arrays: SAM_DECODER)
    file = tmp_path / "tiny_sam.safetensors"
    write_sam(file, to_torch_state(Sam(SAM_FORM, SAM_DECODER, image_size=32)), {"image_size": 32, "mpp": 0.25})
    return file


def options(tmp_path, models, *more):
    folders = f"--output={tmp_path / 'results'}", f"--prepared_dir={tmp_path / 'prepared'}"
    return ["--clicks", f"--checkpoints={models}", *folders, *more]


@pytest.mark.slow
def test_the_command_scores_a_file_and_a_run(tmp_path, sam_file, capsys):
    bcss_jax.train(prompt_settings(tmp_path, epochs=1), tmp_path / "run")
    models = f"{sam_file},{tmp_path / 'run'}"
    data = ("--data.layout=kaggle224", f"--data.dir={TILES}")
    assert evaluate.main(options(tmp_path, models, *data)) == 0
    results = tmp_path / "results"
    found = json.loads((results / "clicks.json").read_text())
    assert found["split"] == "val" and list(found["models"]) == ["tiny_sam", "run"]
    rows = list(csv.DictReader((results / "objects.csv").open()))
    assert len(rows) == sum(model["objects"] for model in found["models"].values()) > 0
    assert found["models"]["run"]["image_size"] == 32
    assert Image.open(results / "clicks.png").size[0] > 500
    assert "clicks to an IoU of 0.80" in capsys.readouterr().out
    assert evaluate.main(options(tmp_path, tmp_path / "run")) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert evaluate.main(options(tmp_path, tmp_path / "run" / "checkpoints", "--overwrite")) == 0


@pytest.mark.slow
def test_each_fold_is_scored_on_the_tiles_that_it_held_out(tmp_path, sam_file, capsys):
    bcss_jax.train(prompt_settings(tmp_path, epochs=1, **{"data.folds": 2}), tmp_path / "run")
    next_command = capsys.readouterr().out.splitlines()[-1]
    assert f"evaluate --clicks --checkpoints={tmp_path / 'run'} " in next_command
    tiles = []
    # The same data set under another name: the folds hold out the same tiles.
    link = tmp_path / "link"
    link.symlink_to(TILES)
    for more in ((), (f"--data.dir={link}", "--overwrite")):
        assert evaluate.main(options(tmp_path, tmp_path / "run", *more)) == 0
        rows = list(csv.DictReader((tmp_path / "results" / "objects.csv").open()))
        tiles.append({name: {row["tile"] for row in rows if row["model"] == name} for name in ("fold_0", "fold_1")})
        assert all(tiles[-1].values()) and not tiles[-1]["fold_0"] & tiles[-1]["fold_1"]
    assert tiles[0] == tiles[1]


@pytest.mark.parametrize(
    ("models", "more", "code", "message"),
    [
        ("{file}", ("--data.layout=kaggle224", "--data.dir=nowhere"), 3, "nowhere"),
        ("{file}", (), 2, "--data.layout"),
        ("{file}", ("--tta",), 2, "--clicks does not go with --tta"),
        ("{folder}", (), 3, "expected sam.safetensors of a finished run"),
        ("{folder}/no.safetensors", (), 3, "no.safetensors"),
        ("{folder}/damaged.safetensors", (), 3, "damaged"),
    ],
)
def test_bad_input_is_one_line(tmp_path, sam_file, capsys, models, more, code, message):
    (tmp_path / "damaged.safetensors").write_bytes(sam_file.read_bytes()[:5000])
    models = models.format(file=sam_file, folder=tmp_path)
    assert evaluate.main(options(tmp_path, models, *more)) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "results" / "clicks.json").exists()


def test_a_sam_is_no_run_for_the_other_scores(tmp_path, sam_file, capsys):
    assert evaluate.main([f"--checkpoints={sam_file}", f"--output={tmp_path / 'results'}"]) == 3
    assert "evaluate --clicks scores it" in capsys.readouterr().err


def test_many_objects_are_scored_a_few_at_a_time(tmp_path, sam_file, monkeypatch):
    scores = []
    for at_once in (1, 16):
        monkeypatch.setattr(click_evaluation, "DECODED_AT_ONCE", at_once)
        models = bcss_jax.evaluate_clicks(
            sam_file, output=tmp_path / str(at_once), layout="kaggle224", data_dir=TILES, prepared_dir=tmp_path / "p"
        )["models"]
        scores.append([each["value"] for each in models["tiny_sam"]["dice_curve"]])
    np.testing.assert_allclose(*scores, atol=1e-6)
