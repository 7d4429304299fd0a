"""The disagreement of flips is the share of their pairs with different classes; the mean over them stays as it is."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from bcss_jax import models
from bcss_jax.inference.flip_disagreement import log_probabilities_and_disagreement
from bcss_jax.inference.predict import log_probabilities, views
from bcss_jax.labels import SCHEMES
from bcss_jax.models.apply import ModelFunction, split_model

SCHEME = SCHEMES["tumor_stroma"]


@pytest.mark.parametrize("shape", [(16, 16), (16, 24)])
def test_every_flip_is_counted(shape):
    model = models.create("unet", num_classes=SCHEME.num_classes, width=4, depth=1, seed=3)
    function = ModelFunction(model)
    _, params, model_state = split_model(model)
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    # Drawn weights prefer one class nearly everywhere; the bias is set so that both occur.
    logits = function(params, model_state, jnp.asarray(images), train=False)[0]
    tumor, stroma = (SCHEME.class_names.index(name) for name in ("tumor", "stroma"))
    bias = params["outc"]["bias"]
    params["outc"]["bias"] = bias.at[stroma].add(jnp.median(logits[..., tumor] - logits[..., stroma]))
    mean, share = log_probabilities_and_disagreement(function, SCHEME, params, model_state, images)
    wanted = log_probabilities(function, SCHEME, True, params, model_state, images)
    np.testing.assert_allclose(np.exp(mean), np.exp(wanted), atol=1e-6)
    predicted = []
    for view in views(*shape, tta=True):
        turned = np.rot90(images[:, :, ::-1] if view.flipped else images, view.quarter_turns, (1, 2))
        found = log_probabilities(function, SCHEME, False, params, model_state, jnp.asarray(turned.copy()))
        found = np.rot90(np.asarray(found).argmax(-1), -view.quarter_turns, (1, 2))
        predicted.append(found[:, :, ::-1] if view.flipped else found)
    pairs = list(itertools.combinations(predicted, 2))
    assert len(pairs) == (28 if shape[0] == shape[1] else 6)
    of_pairs = sum((one != other).astype(float) for one, other in pairs) / len(pairs)
    assert 0 < of_pairs.mean() < 1
    # A class that is most probable by less than rounding may differ.
    assert (np.abs(np.asarray(share) - of_pairs) < 1e-6).mean() > 0.99
