"""Files that are not the weights of the chosen encoder are refused in one line that says what they are."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from bcss_jax import models
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS
from bcss_jax.models.weights.pretrained import load_pretrained


@pytest.fixture(scope="module")
def model():
    return models.create("vit", num_classes=3, encoder="vit_tiny16", decoder="linear")


def zeros(**changes):
    architecture = dataclasses.replace(PRESETS["vit_tiny16"].architecture, **changes)
    network = nnx.eval_shape(lambda: VisionTransformer(architecture, rngs=nnx.Rngs(0)))
    return {
        name: np.zeros(layout.torch_shape(variable.shape), np.float32)
        for name, (variable, layout) in network.torch_entries().items()
    }


def without(*names):
    return {name: array for name, array in zeros().items() if name not in names}


FILES = {
    "another width": (zeros(width=384, heads=6, hidden=1536), r"width is 384, expected 192.*fits .*kaiko_vits16"),
    "patch": (zeros(patch=14), "patch is 14, expected 16"),
    "registers": (zeros(registers=4), "registers is 4, expected 0"),
    "LayerScale": (zeros(layer_scale=True), "layer_scale is True, expected False"),
    "SwiGLU": (zeros(gated=True, hidden=512), "gated is True, expected False"),
    "fewer blocks": (zeros(depth=11), "depth is 11, expected 12"),
    "more blocks": (zeros(depth=13), "depth is 13, expected 12"),
    "rotary positions": (without("pos_embed"), "table is None, expected 14"),
    "missing": (without("blocks.3.mlp.fc1.bias"), r"1 problem\(s\): missing blocks.3.mlp.fc1.bias \(768,\)"),
    "left over": (zeros() | {"neck.weight": np.zeros((3, 3), np.float32)}, r"unknown neck.weight \(3, 3\)"),
    "channels": (
        zeros() | {"patch_embed.proj.weight": np.zeros((192, 1, 16, 16), np.float32)},
        r"\(192, 1, 16, 16\), expected \(192, 3, 16, 16\)",
    ),
    "a block of another size": (
        zeros() | {"blocks.5.mlp.fc1.weight": np.zeros((192, 192), np.float32)},
        r"blocks.5.mlp.fc1.weight is \(192, 192\)",
    ),
    "not finite": (zeros() | {"norm.bias": np.full(192, np.nan, np.float32)}, "norm.bias holds values that are not"),
    "a student alone": ({f"student.{name}": a for name, a in zeros().items()}, "not the weights of a vision"),
    "a ResNet": ({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, "not the weights of a vision transformer"),
}


@pytest.mark.parametrize("name", FILES)
def test_other_weights_are_named(model, tmp_path, name):
    state, message = FILES[name]
    save_file(state, tmp_path / "encoder.safetensors")
    with pytest.raises(DataError, match=f"^{tmp_path}/encoder.safetensors: .*{message}") as error:
        load_pretrained(model, tmp_path / "encoder.safetensors")
    assert "\n" not in str(error.value)


def test_half_a_file(model, tmp_path):
    file = tmp_path / "encoder.safetensors"
    save_file(zeros(), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match="refused by the safetensors reader.*get the file again"):
        load_pretrained(model, file)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model-00001-of-00002.safetensors", "one of 2 parts"),
        ("pytorch_model-00012-of-00012.bin", "one of 12 parts"),
        ("model.safetensors.index.json", "the index of several parts"),
    ],
)
def test_one_of_several_parts(model, tmp_path, name, found):
    save_file(zeros(), tmp_path / name)
    with pytest.raises(DataError, match=f"expected all weights of a network in one file, found {found}"):
        load_pretrained(model, tmp_path / name)


def test_one_part_of_one_is_the_whole(model, tmp_path):
    save_file(zeros(), tmp_path / "model-00001-of-00001.safetensors")
    assert load_pretrained(model, tmp_path / "model-00001-of-00001.safetensors")["passed_over"] == []
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ConfigError, match="unknown type"):
        load_pretrained(model, tmp_path / "model.json")


class Runs:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("content", ["objects", "a module"])
def test_pickled_objects_are_not_run(model, tmp_path, content, capsys):
    torch = pytest.importorskip("torch")
    saved = {"model": {}, "args": Runs()} if content == "objects" else torch.nn.Linear(2, 2)
    torch.save(saved, tmp_path / "encoder.pth")
    with pytest.raises(DataError, match="weights-only loader.*save its state_dict alone"):
        load_pretrained(model, tmp_path / "encoder.pth")
    assert "run" not in capsys.readouterr().out
