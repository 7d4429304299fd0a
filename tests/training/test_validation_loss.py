"""What the schedule watches: the loss of all validation pixels together, or the mean over batches."""

import types

import numpy as np
import pytest

from bcss_jax import losses, metrics
from bcss_jax.labels import SCHEMES
from bcss_jax.losses import Objective
from bcss_jax.training import loop

SCHEME = SCHEMES["tumor_stroma_other"]
OBJECTIVE = Objective(3, 255, (0, 1, 2), smooth=1e-6)


@pytest.mark.parametrize("kind", ["pixels", "batches"])
def test_validation_loss_of_three_images_in_batches_of_two(kind, monkeypatch):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 2, (3, 4, 4, 3)).astype(np.float32), rng.integers(0, 3, (3, 4, 4))
    filled = np.concatenate([labels, np.full((1, 4, 4), 255)])
    images = np.concatenate([logits, np.zeros((1, 4, 4, 3), np.float32)])  # the "network" returns its input
    batches = [{"image": images[i : i + 2], "label": filled[i : i + 2], "index": np.array([i, i + 1])} for i in (0, 2)]
    monkeypatch.setattr(loop, "eval_batches", lambda *args, **kwargs: iter(batches))
    monkeypatch.setattr(loop, "place_batch", lambda batch, mesh: batch)

    def evaluate(params, model_state, images, labels):
        predictions = metrics.predict(images)
        counts = metrics.confusion(predictions, labels, 3, 255)
        return {
            "sums": losses.loss_sums(images, labels, OBJECTIVE), "confusion": counts, "predictions": predictions,
        }  # fmt: skip

    run = types.SimpleNamespace(
        _config=types.SimpleNamespace(eval_batch_size=2, validation_loss=kind),
        _data=types.SimpleNamespace(splits={"val": 3}, load=lambda split: None),
        _pipeline={},
        _mesh=None,
        _scheme=SCHEME,
        _features=lambda weights, images: (),
        _steps=types.SimpleNamespace(evaluate=evaluate, objective=OBJECTIVE),
    )
    weights = types.SimpleNamespace(params=None, model_state=None)
    found = loop.Run.evaluate(run, weights).loss  # pyright: ignore[reportArgumentType]
    wanted = {
        "pixels": losses.ce_dice(logits, labels, OBJECTIVE),
        "batches": (
            losses.ce_dice(logits[:2], labels[:2], OBJECTIVE) + losses.ce_dice(logits[2:], labels[2:], OBJECTIVE)
        )
        / 2,
    }
    assert found == pytest.approx(float(wanted[kind]), abs=1e-6)
    assert abs(wanted["pixels"] - wanted["batches"]) > 1e-3
