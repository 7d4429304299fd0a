"""The file of a published encoder goes through training, resumption, evaluation, a slide and export."""

import numpy as np
import pytest
from flax import nnx
from helpers.every_command import TILES, every_command
from helpers.small_networks import TINY_FORM
from safetensors.numpy import save_file

import bcss_jax
from bcss_jax.errors import Preempted
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS, Preset
from bcss_jax.models.image_normalization import ImageStatistics

STATISTICS = ImageStatistics((0.7, 0.5, 0.6), (0.2, 0.25, 0.2))


def timm_file(path, preset):
    """Writes weights that are drawn from their names and shapes under timm's names, as such encoders are published."""
    model = nnx.eval_shape(lambda: VisionTransformer(PRESETS[preset].architecture, rngs=nnx.Rngs(0)))
    state = {}
    for name, (variable, layout) in model.torch_entries().items():
        shape = layout.torch_shape(variable.shape)
        rng = np.random.default_rng(list(name.encode()))
        array = rng.standard_normal(shape, np.float32) * (0.02 if len(shape) > 1 else 0.1)
        is_scale = name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "gamma"))
        timm = name.replace("register_tokens", "reg_token").replace("w12", "fc1").replace("w3", "fc2")
        state[timm] = array + 1 if is_scale else array
    save_file(state, path)


def settings(tmp_path, file, **changes):
    config = {
        "data.dir": str(TILES), "data.prepared_dir": str(tmp_path / "prepared"), "pretrained": str(file),
        "epochs": 2, "batch_size": 8, "eval_batch_size": 8,
    }  # fmt: skip
    return bcss_jax.load_config("vit:kaggle224,few", config | changes)


@pytest.mark.slow
def test_lora(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "tiny", Preset(TINY_FORM, STATISTICS, "not for commercial use"))
    timm_file(tmp_path / "tiny.safetensors", "tiny")
    config = settings(tmp_path, tmp_path / "tiny.safetensors", encoder="tiny", **{"lora.rank": 2})
    (model, metadata), results = every_command(tmp_path, config)
    output = capsys.readouterr().out
    assert "license of these weights: not for commercial use" in output and "are trained, " in output
    assert np.any(model.adapters.blocks[0].qkv.b[...])
    assert metadata["pretrained"]["license"] == "not for commercial use"
    assert metadata["config"]["image_mean"] == list(STATISTICS.mean)
    card = next(results.rglob("MODEL_CARD.md")).read_text()
    assert "not for commercial use" in card


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"freeze_encoder": True, "model.decoder": "linear"}, {"model.decoder": "eomt"}])
def test_gigapath_flash(tmp_path, how):
    timm_file(tmp_path / "gigapath_flash.safetensors", "gigapath_flash")
    config = settings(tmp_path, tmp_path / "gigapath_flash.safetensors", **how)
    (model, metadata), _ = every_command(tmp_path, config)
    assert metadata["pretrained"]["part"] == "encoder" and metadata["pretrained"]["passed_over"] == []
    assert len(model.encoder.blocks) == 12 and model.encoder.architecture == PRESETS["gigapath_flash"].architecture


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"freeze_encoder": True}, {"lora.rank": 2}])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, monkeypatch, how):
    """Also where the features of the encoder were kept in memory before the run was stopped."""
    monkeypatch.setitem(PRESETS, "tiny", Preset(TINY_FORM, STATISTICS, ""))
    timm_file(tmp_path / "tiny.safetensors", "tiny")
    config = settings(tmp_path, tmp_path / "tiny.safetensors", encoder="tiny", **{"model.decoder": "linear"}, **how)
    whole = bcss_jax.train(config, tmp_path / "whole")
    with pytest.raises(Preempted):
        bcss_jax.train(config, tmp_path / "resumed", hours=0)
    resumed = bcss_jax.train(config, tmp_path / "resumed")
    assert resumed.summary["params_sha256"] == whole.summary["params_sha256"]
