"""A small evaluation as in evaluation.json: random images of nine patients, scored with the package."""

import json

import numpy as np

from bcss_jax import metrics
from bcss_jax.evaluation.scores import ImageResults, scores
from bcss_jax.evaluation.statistics import calibration
from bcss_jax.evaluation.statistics.surface_distance import surface_scores
from bcss_jax.labels import SCHEMES, LabelScheme

COUNT, SIZE = 12, 48


def history(epochs=5):
    """Returns rows as csv.DictReader reads them."""
    return [
        {"epoch": str(e), "train_loss": str(1.5 / e), "val_loss": str(1.7 / e), "train_iou": str(1 - 0.6 / e),
         "val_iou": str(1 - 0.7 / e), "best": "True"}
        for e in range(1, epochs + 1)
    ]  # fmt: skip


def data(**changes):
    """Returns a description of a data set, as `tfrecords.PreparedData.describe` does."""
    return {
        "layout": "kaggle224", "split": "institute", "codes": "kaggle3", "mpp": 0.25, "fingerprint": "f" * 64,
        "data_version": "1.0.1", "tiles": {"train": 40, "val": COUNT}, "patients": {"train": 20, "val": 9},
        "patients_in_two_parts": 0, "code_pixels": {"train": {"tumor": 900, "stroma": 100}, "val": {"tumor": 10}},
        "all_ignored": {"tumor_stroma": {"train": 0, "val": 1}}, "absent": {"tumor_stroma": {"train": [], "val": []}},
        "repeated": 0, "missing": 0, "bad": 0, "warnings": 0, "content_sha256": "c" * 64, **changes,
    }  # fmt: skip


def evaluation(name="unet", scheme: LabelScheme = SCHEMES["tumor_stroma"], noise=1.0, seed=0):
    """Returns an evaluation and the entries of its gallery."""
    rng = np.random.default_rng(seed)
    classes = np.array(scheme.evaluated)
    truth = classes[np.kron(rng.integers(0, len(classes), (COUNT, 4, 4)), np.ones((1, SIZE // 4, SIZE // 4), int))]
    truth[:, 0] = np.resize(classes, SIZE)  # every class in every image
    truth[:, -6:] = scheme.ignore_index
    logits = 3 * (truth[..., None] == np.arange(scheme.num_classes)) + rng.normal(
        size=(*truth.shape, scheme.num_classes), scale=noise
    )
    prediction = classes[logits[..., classes].argmax(-1)]
    exponentials = np.exp(logits)
    probabilities = (exponentials / exponentials.sum(-1, keepdims=True)).astype(np.float32)
    confidence = calibration.confidence_counts(probabilities, truth, scheme.evaluated, scheme.ignore_index)
    images = [{"key": f"tile_{i}", "patient": f"P{i % 9}", "institute": "AB"[i % 9 > 4]} for i in range(COUNT)]
    outlines = [
        surface_scores(t, p, scheme.evaluated, scheme.ignore_index, mpp=0.25, tolerance_um=2.0)
        for t, p in zip(truth, prediction, strict=True)
    ]
    image_results = ImageResults(
        images,
        np.asarray(metrics.confusion(prediction, truth, scheme.num_classes, scheme.ignore_index)),
        np.stack([each.hd95_um for each in outlines]),
        np.stack([each.nsd for each in outlines]),
        confidence,
        scheme,
    )
    found = scores(image_results, batch_size=4, tolerance_um=2.0)
    measured = calibration.reliability(confidence)
    result = {
        "name": name, "folder": name, "model": "unet", "label_scheme": scheme.to_json(), "trained_on": data(),
        "data": data(), "part": "val", "scores": found, "history": history(), "config": {"image_mean": [0.5] * 3,
        "image_std": [0.25] * 3, "batch_size": 128}, "versions": {"bcss_jax": "0.1.0", "jax": "0.10.2"},
        "pretrained": None, "params_sha256": "ab" * 32,
        "checkpoint": {"folder": "runs/unet/checkpoints", "which": "best", "step": 60, "epoch": 5},
        "temperature": {"value": 1.5, "fitted_on": "train", "in_sample": False, "pixels": 2000, "ece_before": 0.04,
                        "ece_after": 0.01, "curve_after": measured["curve"]},
    }  # fmt: skip
    gallery = [
        {
            "rank": rank,
            "key": images[i]["key"],
            "image": np.kron(rng.integers(120, 250, (3, 3, 3)), np.ones((SIZE // 3, SIZE // 3, 1))).astype(np.uint8),
            "truth": truth[i].astype(np.uint8),
            "prediction": prediction[i].astype(np.uint8),
        }
        for i, rank in enumerate(["worst", "worst", "median", "best"])
    ]
    return json.loads(json.dumps(result)), gallery


def differences(a, b, names=("tumor", "stroma", "macro")):
    """Returns one entry of the paired differences."""
    found = {name: {"difference": 0.0123, "low": -0.004, "high": 0.031} for name in names}
    return {"a": a, "b": b, "images": COUNT, "over": "patients", "n": 9, "dice_global": found}


def results(*evaluations, paired=()):
    """Returns the content of evaluation.json."""
    return {
        "format": 1,
        "settings": {"part": "val", "tta": False},
        "evaluations": list(evaluations),
        "differences": list(paired),
    }
