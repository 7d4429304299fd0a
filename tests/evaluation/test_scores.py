"""All scores of a set of images, compared with counting the pixels."""

import json

import numpy as np
import pytest

from bcss_jax import metrics
from bcss_jax.errors import DataError
from bcss_jax.evaluation.scores import ImageResults, global_dice, scores
from bcss_jax.evaluation.statistics import bootstrap
from bcss_jax.evaluation.statistics.calibration import confidence_counts, reliability
from bcss_jax.evaluation.statistics.surface_distance import surface_scores
from bcss_jax.labels import SCHEMES

SCHEME = SCHEMES["tumor_stroma_other"]  # ignored: 255
NAMES = ("other", "tumor", "stroma")


@pytest.fixture(scope="module")
def case():
    """Returns twelve small images of nine patients in two institutes. Image 0 has one class only, image 1 lacks it."""
    rng = np.random.default_rng(8)
    labels = np.kron(rng.integers(0, 3, (12, 4, 4)), np.ones((1, 4, 4), int))
    labels[0], labels[1][labels[1] == 2] = 2, 1
    labels[rng.random(labels.shape) < 0.1] = 255
    logits = rng.normal(size=(*labels.shape, 3)) + 2 * (labels[..., None] == np.arange(3))
    logits[0, ..., 2] = -9
    probabilities = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)
    predictions = probabilities.argmax(-1)
    images = [{"key": f"k{i}", "patient": f"P{i % 9}", "institute": "AB"[i % 9 > 4]} for i in range(12)]
    surface = [
        surface_scores(t, p, SCHEME.evaluated, 255, mpp=0.25, tolerance_um=0.5)
        for t, p in zip(labels, predictions, strict=True)
    ]
    hd95, nsd = (np.stack([getattr(each, name) for each in surface]) for name in ("hd95_um", "nsd"))
    arguments = {
        "images": images,
        "confusion": np.asarray(metrics.confusion(predictions, labels, 3, 255)),
        "hd95_um": hd95,
        "nsd": nsd,
        "confidence": confidence_counts(probabilities, labels, SCHEME.evaluated, 255),
        "scheme": SCHEME,
    }
    return arguments, labels, predictions, scores(ImageResults(**arguments), batch_size=5, tolerance_um=0.5)


def test_the_scores_are_json_without_nan(case):
    assert json.loads(json.dumps(case[3], allow_nan=False)) == case[3]


def test_named_averages_equal_metrics(case):
    arguments, _, _, found = case
    of_report = metrics.report_scores(arguments["confusion"], NAMES, (1, 2))
    assert found["scores"] == metrics.scores(arguments["confusion"], 5, NAMES, (0, 1, 2)) | of_report
    assert {*of_report} == {"dice_report", "iou_report"}
    assert found["calibration"] == reliability(arguments["confidence"])


def test_numbers_precision_recall_and_confusion_equal_counts_of_pixels(case):
    _, labels, predictions, found = case
    known = labels != 255
    assert found["number"] == {"images": 12, "patients": 9, "institutes": 2, "pixels": int(known.sum())}
    for c, name in enumerate(NAMES):
        right = (known & (labels == c) & (predictions == c)).sum()
        assert found["precision"][name] == pytest.approx(right / (known & (predictions == c)).sum(), abs=1e-12)
        assert found["recall"][name] == pytest.approx(right / (labels == c).sum(), abs=1e-12)
        for other in range(3):
            assert found["confusion"]["pixels"][c][other] == ((labels == c) & (predictions == other)).sum()
    assert found["recall"]["macro"] == pytest.approx(np.mean([found["recall"][name] for name in NAMES]), abs=1e-12)


def test_patients_and_institutes_are_scored_on_their_own_images(case):
    arguments, labels, predictions, found = case
    for key, field in (("by_patient", "patient"), ("by_institute", "institute")):
        owners = [image[field] for image in arguments["images"]]
        assert sorted(found[key]) == sorted(set(owners))
        for owner, of_owner in found[key].items():
            mine = [i for i, each in enumerate(owners) if each == owner]
            t, p = labels[mine], predictions[mine]
            assert of_owner["images"] == len(mine)
            for c, name in enumerate(NAMES):
                both = ((t == c) & (p == c)).sum()
                either = (t == c).sum() + ((p == c) & (t != 255)).sum()
                assert of_owner["dice_global"][name] == (pytest.approx(2 * both / either) if either else None)


def test_surface_means_count_missed_and_falsely_predicted_classes(case):
    arguments, _, predictions, found = case
    diagonal = 0.25 * np.hypot(16, 16)
    assert arguments["hd95_um"][0, 2] == diagonal and arguments["nsd"][0, 2] == 0  # missed
    stroma = arguments["hd95_um"][:, 2]
    assert found["surface"]["hd95_um"]["stroma"] == pytest.approx(np.nanmean(stroma), abs=1e-12)
    assert found["surface"]["images"] == found["scores"]["images"]
    assert found["surface"]["images"]["stroma"]["missed"] >= 1 and (predictions[1] == 2).any()
    assert found["surface"]["images"]["stroma"]["false"] >= 1
    macro = np.mean([found["surface"]["nsd"][name] for name in NAMES])
    assert found["surface"]["nsd"]["macro"] == pytest.approx(macro, abs=1e-12)


def test_intervals_are_over_patients_and_hold_the_values(case):
    arguments, _, _, found = case
    intervals = found["intervals"]
    assert (intervals["over"], intervals["n"]) == ("patients", 9)
    for measure, values in (
        *((name, found["scores"][name]) for name in ("dice_global", "iou_global", "dice_image", "iou_image")),
        ("hd95_um", found["surface"]["hd95_um"]),
        ("nsd", found["surface"]["nsd"]),
    ):
        for name, value in values.items():
            low, high = intervals[measure][name]
            assert low < value < high
    patients = [image["patient"] for image in arguments["images"]]
    alone = bootstrap.interval(arguments["confusion"], patients, lambda totals: global_dice(totals, SCHEME)[:, -1])
    assert intervals["dice_global"]["macro"] == [alone.low, alone.high]
    worse = arguments["confusion"][:, :, ::-1]
    assert (
        bootstrap.paired_difference(
            arguments["confusion"], worse, patients, lambda totals: global_dice(totals, SCHEME)[:, -1]
        ).low
        > 0
    )


def test_a_class_that_never_occurs_has_no_score(case):
    arguments, _, _, _ = case
    confusion = np.zeros((12, 3, 3), int)
    confusion[:, 1, 1] = 10
    nothing = np.full((12, 3), np.nan)
    changed = ImageResults(**arguments | {"confusion": confusion, "hd95_um": nothing, "nsd": nothing})
    found = scores(changed, batch_size=5, tolerance_um=0.5)
    assert found["scores"]["dice_global"] == {"other": None, "tumor": 1.0, "stroma": None, "macro": 1.0}
    assert found["precision"]["stroma"] is None and found["surface"]["nsd"]["macro"] is None
    assert found["intervals"]["dice_global"]["stroma"] == [None, None]
    assert found["surface"]["images"]["stroma"]["absent"] == 12


def test_nothing_to_score_is_an_error(case):
    arguments, _, _, _ = case
    options = {"batch_size": 5, "tolerance_um": 0.5}
    empty = {"images": [], "confusion": np.zeros((0, 3, 3), int), "hd95_um": np.zeros((0, 3)), "nsd": np.zeros((0, 3))}
    with pytest.raises(DataError, match="expected images, found none"):
        scores(ImageResults(**arguments | empty), **options)
    with pytest.raises(DataError, match="pixels with ground truth"):
        scores(ImageResults(**arguments | {"confusion": np.zeros((12, 3, 3), int)}), **options)
    confusion = np.ones((12, 3, 3), int)
    scheme = SCHEMES["tumor_stroma"]  # it ignores 0, so there must be no counts of it
    with pytest.raises(ValueError, match="60 pixels have classes that tumor_stroma does not evaluate"):
        zeros = {"hd95_um": np.zeros((12, 2)), "nsd": np.zeros((12, 2))}
        scores(ImageResults(**arguments | {"confusion": confusion, "scheme": scheme} | zeros), **options)
