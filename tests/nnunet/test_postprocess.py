"""Postprocessing: components by hand, and decisions compared with nnU-Net."""

import json
import multiprocessing
import multiprocessing.dummy
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import nnunet_small as small

from bcss_jax.errors import DataError
from bcss_jax.nnunet import postprocess

BLOBS = np.array(
    [
        [1, 1, 0, 0, 0, 2],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 2, 2, 0, 0],
        [0, 0, 0, 0, 0, 1],
    ],
    np.uint8,
)


def test_components_connect_at_corners_and_all_of_several_largest_are_kept():
    kept = postprocess.keep_largest(BLOBS, [1, 2])
    assert kept.dtype == np.uint8 and kept[0, 5] == kept[3, 5] == 0
    np.testing.assert_array_equal(kept[:, :5], BLOBS[:, :5])
    kept = postprocess.keep_largest(BLOBS, [2])
    assert kept[0, 5] == 0 and (kept == 1).sum() == 5
    tied = np.array([[1, 0, 1, 0, 0], [1, 0, 1, 0, 1]])
    np.testing.assert_array_equal(postprocess.keep_largest(tied, [1])[:, :4], tied[:, :4])
    assert postprocess.keep_largest(tied, [1])[1, 4] == 0
    assert not postprocess.keep_largest(np.zeros((3, 3), int), [1]).any()
    assert postprocess.keep_largest(np.ones((3, 3), int), [1]).all()


def organs(random, noise):
    """Returns ground truths with one tumor in one organ and an unlabeled rim, and predictions with stray specks."""
    truths, predictions = [], []
    for _ in range(5):
        rows, columns = np.mgrid[:40, :48]
        y, x = random.randint(15, 25), random.randint(15, 33)
        distance = np.hypot(rows - y, columns - x)
        truth = np.where(distance < 5, 1, np.where(distance < 11, 2, 0))
        prediction = np.where(distance < random.randint(4, 7), 1, np.where(distance < random.randint(9, 13), 2, 0))
        for label, specks in noise.items():
            for _ in range(specks):
                prediction[random.randint(40), random.randint(48)] = label
        truth[:2] = 3
        truths.append(truth.astype(np.uint8))
        predictions.append(prediction.astype(np.uint8))
    return predictions, truths


def tissue(random):
    """Returns ground truths with many components of two classes, and noisy predictions."""
    truths = [np.kron(random.randint(0, 3, (8, 8)), np.ones((5, 6), int)).astype(np.uint8) for _ in range(5)]
    return [np.where(random.uniform(size=t.shape) < 0.1, random.randint(0, 3, t.shape), t) for t in truths], truths


def two_organs(random):
    """Returns two separate organs with specks: the first step would remove the smaller organ, the second the specks."""
    truths, predictions = [], []
    for _ in range(4):
        truth = np.zeros((40, 48), np.uint8)
        truth[5:15, 5:15], truth[20:36, 25:44] = 1, 2
        prediction = np.roll(truth, random.randint(2), axis=0)
        prediction[random.randint(0, 40, 9), random.randint(0, 48, 9)] = random.randint(1, 3, 9)
        truths.append(truth)
        predictions.append(prediction)
    return predictions, truths


CASES = {
    "two organs": lambda: two_organs(np.random.RandomState(4)),
    "specks of both": lambda: organs(np.random.RandomState(0), {1: 6, 2: 6}),
    "specks of one": lambda: organs(np.random.RandomState(1), {1: 8}),
    "none": lambda: organs(np.random.RandomState(2), {}),
    "tissue": lambda: tissue(np.random.RandomState(3)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_decision_equals_nnunet(name, tmp_path, monkeypatch):
    reference = pytest.importorskip(
        "nnunetv2.postprocessing.remove_connected_components", reason="nnunetv2 is not installed"
    )
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    predictions, truths = CASES[name]()
    for folder, arrays in (("predictions", predictions), ("truths", truths)):
        (tmp_path / folder).mkdir()
        for i, array in enumerate(arrays):
            NaturalImage2DIO().write_seg(array[None], str(tmp_path / folder / f"case{i}.png"), {})
    # Use threads instead of nnU-Net's processes, because each process would import PyTorch.
    contexts, threads = multiprocessing.get_context, SimpleNamespace(Pool=multiprocessing.dummy.Pool)
    monkeypatch.setattr(
        multiprocessing, "get_context", lambda kind=None: threads if kind == "spawn" else contexts(kind)
    )
    folders = str(tmp_path / "predictions"), str(tmp_path / "truths")
    functions, arguments = reference.determine_postprocessing(*folders, small.PLAN, small.DATASET, 1)

    decision = postprocess.determine_postprocessing(predictions, truths, [1, 2], ignore=3)
    expected = [np.atleast_1d(each["labels_or_regions"]).tolist() for each in arguments]
    assert decision["keep_largest"] == expected
    scores = json.loads((tmp_path / "predictions" / "postprocessing.json").read_text())
    for ours, theirs in (("dice_before", "input_folder"), ("dice_after", "postprocessed")):
        assert decision[ours] == pytest.approx({k: v["Dice"] for k, v in scores[theirs]["mean"].items()}, abs=1e-12)
    for prediction in predictions:
        after = reference.apply_postprocessing(prediction[None], functions, arguments)[0]
        np.testing.assert_array_equal(postprocess.apply_postprocessing(prediction, decision), after)


def test_decisions_are_as_expected_and_survive_json():
    decisions = {name: postprocess.determine_postprocessing(*make(), [1, 2], ignore=3) for name, make in CASES.items()}
    assert decisions["specks of both"]["keep_largest"] == [[1, 2], [1]]
    assert decisions["two organs"]["keep_largest"] == [[1], [2]]
    assert not decisions["none"]["keep_largest"] and not decisions["tissue"]["keep_largest"]
    for decision in decisions.values():
        assert json.loads(json.dumps(decision, allow_nan=False)) == decision
        assert all(decision["dice_after"][k] >= before for k, before in decision["dice_before"].items())


def test_pixels_without_truth_do_not_count():
    truth = np.where(BLOBS == 2, 0, BLOBS)
    truth[3, 5] = 0
    prediction = np.where(BLOBS == 2, 0, BLOBS)  # one speck too many
    assert postprocess.determine_postprocessing([prediction], [truth], [1])["keep_largest"] == [[1]]
    truth[3, 5] = 3
    decision = postprocess.determine_postprocessing([prediction], [truth], [1], ignore=3)
    assert decision == {"keep_largest": [], "dice_before": {"1": 1.0}, "dice_after": {"1": 1.0}}


def test_a_class_that_never_occurs_has_no_score_and_nothing_is_kept():
    prediction = np.where(BLOBS == 2, 0, BLOBS)
    decision = postprocess.determine_postprocessing([prediction], [np.where(prediction == 1, 1, 0)], [1, 2])
    assert decision == {"keep_largest": [], "dice_before": {"1": 1.0, "2": None}, "dice_after": {"1": 1.0, "2": None}}


def test_invalid_predictions_are_refused():
    with pytest.raises(DataError, match="0 predictions"):
        postprocess.determine_postprocessing([], [], [1])
    with pytest.raises(DataError, match="1 predictions and 2 ground truths"):
        postprocess.determine_postprocessing([BLOBS], [BLOBS, BLOBS], [1])
    with pytest.raises(DataError, match="case 0"):
        postprocess.determine_postprocessing([BLOBS], [BLOBS[:2]], [1])
