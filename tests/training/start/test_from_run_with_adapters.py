"""Adapters of the run that another begins with are part of its matrices; those of the new run begin anew."""

import numpy as np
import pytest
from helpers.small_networks import SAM_DECODER, SAM_FORMS, TINY_FORM
from helpers.trained_small import write_run

from bcss_jax import config, models
from bcss_jax.labels import SCHEMES
from bcss_jax.models import sam_segmenter
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS, Preset
from bcss_jax.models.image_normalization import IMAGENET
from bcss_jax.models.sam.presets import PRESETS as SAM_PRESETS
from bcss_jax.models.weights.pretrained import to_torch_state
from bcss_jax.training.checkpoint import load_model
from bcss_jax.training.start.from_run import load_from_run

IMAGES = np.random.default_rng(0).standard_normal((1, 32, 32, 3), np.float32)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", Preset(TINY_FORM, IMAGENET, ""))


def trained(params):
    """Changes adapters as training does."""
    for adapter in params.get("adapters", {"blocks": {}})["blocks"].values():
        adapter["qkv"]["b"] = adapter["qkv"]["b"] + 0.3


@pytest.mark.slow
@pytest.mark.parametrize("before", [{}, {"lora_rank": 2}])
@pytest.mark.parametrize("now", [{}, {"lora_rank": 3, "lora_on": "proj"}])
def test_the_new_network_computes_the_same(tmp_path, before, now):
    run = write_run(tmp_path / "vit", "vit", seed=1, change=trained, encoder="tiny", **before)
    theirs, _ = load_model(run / "checkpoints")
    model = models.create("vit", num_classes=3, encoder="tiny", **now)
    known = load_from_run(model, run, config.default("vit", encoder="tiny", **now), SCHEMES["tumor_stroma"])
    assert known["new"] == []
    np.testing.assert_allclose(model(IMAGES), theirs(IMAGES), atol=1e-5)
    for (name, one), other in zip(to_torch_state(model).items(), to_torch_state(theirs).values(), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_layers_of_other_classes_begin_anew(tmp_path, monkeypatch):
    monkeypatch.setitem(SAM_PRESETS, "tiny", SAM_FORMS["tiny"])
    monkeypatch.setattr(sam_segmenter, "DECODER", SAM_DECODER)
    run = write_run(tmp_path / "sam", "sam", seed=1, encoder="tiny")
    theirs, _ = load_model(run / "checkpoints")
    scheme = SCHEMES["five_classes"]
    model = models.create("sam", num_classes=scheme.num_classes, encoder="tiny")
    known = load_from_run(model, run, config.default("sam", encoder="tiny"), scheme)
    assert known["new"] and all("mask_tokens" in name or "mask_vectors" in name for name in known["new"])
    np.testing.assert_array_equal(model.encoder.pos_embed[...], theirs.encoder.pos_embed[...])
    np.testing.assert_array_equal(model.decoder.transformer.norm.scale[...], theirs.decoder.transformer.norm.scale[...])
