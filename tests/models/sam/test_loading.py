"""Files of SAM load whoever published them; every name is used or said, and other files are refused in one line."""

import json

import numpy as np
import pytest
from flax import nnx
from helpers.hugging_face_sam import hugging_face_names
from helpers.references import FOUNDATION
from safetensors.numpy import save_file

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.models.sam import presets
from bcss_jax.models.sam.architecture import DecoderForm, ViTForm
from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.sam.weights import loading
from bcss_jax.models.sam.weights.fitting import decoder_form_of, form_of, preset_of
from bcss_jax.models.sam.weights.names import canonical
from bcss_jax.models.weights.pretrained import to_torch_state

# With the decoder of the published networks.
FORM = ViTForm(24, 2, 2, (1,), window=3, hidden=48, table=4)
PARAMETERS = {  # of segment-anything and of the image path of sam2
    "sam_vit_b": 93_735_472,
    "sam_vit_l": 312_342_832,
    "sam_vit_h": 641_090_608,
    "sam2.1_hiera_t": 31_440_721,
    "sam2.1_hiera_s": 38_538_577,
    "sam2.1_hiera_b+": 73_328_401,
    "sam2.1_hiera_l": 216_924_865,
}


@pytest.fixture(scope="module")
def state():
    return to_torch_state(Sam(FORM, seed=3))


def abstract_state(name):
    """Arrays without memory in the shapes of a published network, under Meta's names."""
    model = nnx.eval_shape(lambda: presets.create(name))
    shapes = {key: layout.torch_shape(variable.shape) for key, (variable, layout) in model.torch_entries().items()}
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    "name", [name if name == "sam_vit_b" else pytest.param(name, marks=pytest.mark.slow) for name in PARAMETERS]
)
def test_published_networks_have_their_size_and_are_told_by_their_weights(name):
    state = abstract_state(name)
    assert sum(array.size for array in state.values()) == PARAMETERS[name] + 256  # the matrix is no parameter
    for named in (state, hugging_face_names(state, sam2="sam2" in name)):
        arrays, unused = canonical(named)
        assert {key: array.shape for key, array in arrays.items()} == {key: a.shape for key, a in state.items()}
        assert preset_of(form_of(arrays)) == name and unused == []
        assert decoder_form_of(arrays) == DecoderForm()
    wanted = json.loads((FOUNDATION / "index.json").read_text()).get(name) if FOUNDATION.is_dir() else None
    if wanted:
        assert {key: list(array.shape) for key, array in state.items()} == wanted["tensors"]


@pytest.mark.parametrize("kind", ["meta", "hugging_face", "wrapped"])
def test_files_of_all_publishers_give_the_same_weights(tmp_path, state, kind):
    named = {"meta": state, "hugging_face": hugging_face_names(state)}.get(kind)
    named = named or {f"module.sam.{name}": array for name, array in state.items()}
    path = tmp_path / "sam.safetensors"
    save_file(named, path)
    loaded = loading.load(path)
    assert loaded.name is None and loaded.unused == () and loaded.model.image_size == 64
    assert loaded.model.image_encoder.form == FORM and len(loaded.sha256) == 64
    for key, array in to_torch_state(loaded.model).items():
        np.testing.assert_array_equal(array, state[key])


def test_a_checkpoint_of_pytorch_says_what_it_holds_beside_the_network(tmp_path, state):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    arrays = {f"sam.{name}": torch.from_numpy(array.copy()) for name, array in state.items()}
    arrays["sam.pixel_mean"] = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    torch.save({"model_state": arrays, "decoder_state": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "sam.pth")
    loaded = loading.load(tmp_path / "sam.pth")
    assert set(loaded.unused) == {"sam.pixel_mean", "decoder_state", "epoch"}


def test_what_sam2_holds_for_videos_is_said():
    state = abstract_state("sam2.1_hiera_t")
    video = ["memory_attention.norm.weight", "maskmem_tpos_enc", "obj_ptr_proj.layers.0.bias", "no_obj_embed_spatial"]
    arrays, unused = canonical(state | {name: np.zeros(3) for name in video})
    assert sorted(unused) == sorted(video) and arrays.keys() == state.keys()


def test_another_size_of_images_resizes_the_positions(tmp_path, state):
    save_file(state, tmp_path / "sam.safetensors")
    model = loading.load(tmp_path / "sam.safetensors", image_size=96).model
    assert isinstance(model, Sam) and model.embedding_size == 6
    assert model.image_encoder.trunk.positions(6, 6).shape == (1, 6, 6, 24)
    with pytest.raises(ConfigError, match="multiple of 16, not 100"):
        loading.load(tmp_path / "sam.safetensors", image_size=100)


def without(state, *starts):
    return {name: array for name, array in state.items() if not name.startswith(starts)}


WRONG = {
    "another size": (lambda s: s, "expected the weights of sam_vit_b, found those of no published SAM"),
    "half": (lambda s: dict(list(s.items())[: len(s) // 2]), "missing"),
    "encoder only": (lambda s: without(s, "prompt_encoder", "mask_decoder"), "mask_tokens.weight is missing"),
    "without the encoder": (lambda s: without(s, "image_encoder"), "expected the weights of SAM or SAM 2.1"),
    "one missing": (lambda s: without(s, "prompt_encoder.no_mask"), "missing prompt_encoder.no_mask_embed.weight"),
    "one too many": (
        lambda s: s | {"mask_decoder.hf_token.weight": np.ones(3)},
        "unknown mask_decoder.hf_token.weight",
    ),
    "a vision transformer": (lambda s: {"cls_token": np.ones((1, 1, 3))}, "this is a vision transformer"),
    "copies that differ": (
        lambda s: hugging_face_names(s) | {"prompt_encoder.shared_embedding.positional_embedding": np.ones((2, 128))},
        "and differ; keep one of them",
    ),
    "another normalization": (lambda s: s | {"pixel_mean": np.ones(3)}, "pixel_mean is [1.0, 1.0, 1.0], expected"),
    "another width": (
        lambda s: s | {"mask_decoder.mask_tokens.weight": np.ones((4, 128))},
        "the decoder has 128 channels, expected 256",
    ),
    "another SAM 2": (
        lambda s: {
            "image_encoder.trunk.patch_embed.proj.weight": np.ones((64, 3, 7, 7)),
            "image_encoder.trunk.pos_embed": np.ones((1, 64, 7, 7)),
        },
        "is none of SAM 2.1's",
    ),
    "nothing": (lambda s: {}, "expected the weights of SAM or SAM 2.1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_files_are_refused_in_one_line(tmp_path, state, case):
    change, says = WRONG[case]
    path = tmp_path / "file.safetensors"
    save_file({name: np.ascontiguousarray(array, np.float32) for name, array in change(state).items()}, path)
    with pytest.raises(DataError) as error:
        loading.load(path, name="sam_vit_b" if case == "another size" else "")
    message = str(error.value)
    assert message.startswith(f"{path}: ") and says in message and "\n" not in message, message


def test_a_network_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"there is no SAM 'sam2.1_hiera_b'.*did you mean sam2.1_hiera_b\+"):
        presets.create("sam2.1_hiera_b")
