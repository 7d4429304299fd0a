"""Published vision transformers have their known sizes, and their files are read under every name."""

import dataclasses
import math

import numpy as np
import pytest
from flax import nnx

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.fitting import architecture_of, check_fit
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS
from bcss_jax.models.weights.pretrained import to_torch_state
from bcss_jax.models.weights.vision_transformer_names import canonical

PARAMETERS = {  # of the reference implementations, with the mask token that DINOv2 and DINOv3 have
    "gigapath_flash": 21_681_024,
    "dino_vits16": 21_665_664,
    "dinov2_vits14": 22_056_576,
    "dinov2_vitb14": 86_580_480,
    "dinov2_vitl14": 304_368_640,
    "dinov2_vitg14": 1_136_480_768,
    "dinov2_vits14_reg": 22_058_112,
    "dinov2_vitg14_reg": 1_136_486_912,
    "dinov3_vits16": 21_601_152,
    "dinov3_vits16plus": 28_697_472,
    "dinov3_vitb16": 85_669_632,
    "dinov3_vitl16": 303_154_176,
    "dinov3_vith16plus": 840_633_600,
}


def small(architecture, **changes):
    return dataclasses.replace(architecture, width=16, depth=2, heads=2, hidden=24, **changes)


def weights_of(architecture, mask_token=False):
    model = VisionTransformer(architecture, mask_token=mask_token, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(array.shape, np.float32) for name, array in to_torch_state(model).items()}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name):
    with_mask = name.startswith(("dinov2", "dinov3"))
    model = nnx.eval_shape(
        lambda: VisionTransformer(PRESETS[name].architecture, mask_token=with_mask, rngs=nnx.Rngs(0))
    )
    count = sum(math.prod(variable.shape) for variable, _ in model.torch_entries().values())
    assert count == PARAMETERS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_form_is_told_by_the_weights(name):
    architecture = small(PRESETS[name].architecture, patch=4)
    arrays = weights_of(architecture)
    assert architecture_of(arrays, architecture) == architecture
    check_fit(arrays, architecture)


def as_hugging_face(state):
    """Names of Dinov2 in Hugging Face's files."""
    renamed = {}
    for name, array in state.items():
        name = name.replace("blocks.", "encoder.layer.").replace("attn.proj.", "attention.output.dense.")
        name = name.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        name = name.replace("w12", "weights_in").replace("w3", "weights_out")
        name = "layernorm." + name[5:] if name.startswith("norm.") else name
        if name in ("cls_token", "register_tokens", "mask_token"):
            name = f"embeddings.{name}"
        name = name.replace("pos_embed", "embeddings.position_embeddings")
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        if "attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.attention.{part}")] = piece
        else:
            renamed[name] = array
    return renamed


def as_hugging_face_vit(state):
    """Names of ViT (Phikon) in Hugging Face's files."""
    renamed = as_hugging_face(state)
    for ours, theirs in {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }.items():  # fmt: skip
        renamed = {name.replace(ours, theirs): array for name, array in renamed.items()}
    return {f"vit.{name}": array for name, array in renamed.items()} | {"vit.pooler.dense.bias": np.zeros(3)}


def as_dinov3_of_hugging_face(state):
    renamed = {}
    for name, array in state.items():
        name = name.replace("blocks.", "layer.").replace("attn.proj.", "attention.o_proj.")
        name = name.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        if name in ("cls_token", "register_tokens", "mask_token"):
            name = f"embeddings.{name}"
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings").replace("mlp.w3", "mlp.down_proj")
        if "attn.qkv." in name:
            for part, piece in zip("qkv", np.split(array, 3), strict=True):
                if part != "k" or "weight" in name:
                    renamed[name.replace("attn.qkv", f"attention.{part}_proj")] = piece
        elif "mlp.w12." in name:
            for part, piece in zip(("gate_proj", "up_proj"), np.split(array, 2), strict=True):
                renamed[name.replace("w12", part)] = piece
        else:
            renamed[name.replace("fc1", "up_proj").replace("fc2", "down_proj")] = array
    return renamed


def as_timm(state):
    names = {"register_tokens": "reg_token", "mlp.w12": "mlp.fc1", "mlp.w3": "mlp.fc2"}
    return {_replaced(name, names): array for name, array in state.items()} | {"head.weight": np.zeros((3, 16))}


def as_teacher_in_chunks(state):
    chunks = {f"blocks.{i}.": f"blocks.{i}.{i}." for i in range(2)}
    own = {f"backbone.{_replaced(name, chunks)}": array for name, array in state.items()}
    return own | {"dino_head.last_layer.weight_v": np.zeros((3, 4))}


def _replaced(name, pairs):
    for ours, theirs in pairs.items():
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize(
    ("preset", "rename", "others"),
    [
        ("midnight", as_hugging_face, []),
        ("hibou_b", as_hugging_face, []),
        ("phikon", as_hugging_face_vit, ["vit.pooler.dense.bias"]),
        ("dinov3_vits16", as_dinov3_of_hugging_face, []),
        ("dinov3_vits16plus", as_dinov3_of_hugging_face, []),
        ("gigapath_flash", as_timm, ["head.weight"]),
        ("virchow2", as_timm, ["head.weight"]),
        ("uni2_h", as_timm, ["head.weight"]),
        ("openmidnight", as_teacher_in_chunks, ["dino_head.last_layer.weight_v"]),
    ],
)
def test_every_dialect_is_read(preset, rename, others):
    architecture = small(PRESETS[preset].architecture, patch=4)
    state = weights_of(architecture)
    if not architecture.key_bias:
        for name in state:
            if name.endswith("qkv.bias"):
                state[name][16:32] = 0
    arrays, passed_over = canonical(rename(state))
    assert passed_over == others
    assert arrays.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_dinov3_as_meta_publishes_it():
    state = weights_of(small(PRESETS["dinov3_vits16plus"].architecture, patch=4))
    theirs = {"rope_embed.periods": np.float32(100) ** (np.arange(2) / 2), "local_cls_norm.bias": np.zeros(16)}
    for name, array in state.items():
        name = name.replace("register_tokens", "storage_tokens")
        if "mlp.w12." in name:
            theirs[name.replace("w12", "w1")], theirs[name.replace("w12", "w2")] = np.split(array, 2)
        else:
            theirs[name] = array
        if name.endswith("qkv.bias"):
            array[16:32] = np.nan  # as their files have it where nothing was trained
            theirs[f"{name}_mask"] = np.repeat([1, 0, 1], 16)
    arrays, others = canonical(theirs)
    assert set(others) == {name for name in theirs if "mask" in name or "rope" in name or "local" in name}
    assert arrays.keys() == state.keys()
    assert np.all(arrays["blocks.0.attn.qkv.bias"][16:32] == 0)
    with pytest.raises(DataError, match="not that of DINOv3"):
        canonical({**theirs, "rope_embed.periods": np.arange(1, 3)})


def test_a_file_of_another_encoder_names_the_one_that_it_fits():
    arrays = weights_of(Architecture(384, 12, 6, 14, 1536, layer_scale=True, table=37))
    with pytest.raises(DataError, match=r"layer_scale is True, expected False.* fits --config.encoder=dinov2_vits14"):
        check_fit(arrays, PRESETS["dino_vits16"].architecture)


def test_another_position_table_names_its_setting():
    uni = small(PRESETS["uni"].architecture)
    with pytest.raises(DataError, match=r"6x6, expected 14x14; set --config.model.table=6"):
        check_fit(weights_of(dataclasses.replace(uni, table=6)), uni)


def test_registers_that_no_preset_has_name_the_nearest():
    arrays = weights_of(small(PRESETS["uni2_h"].architecture, registers=3, patch=4))
    with pytest.raises(DataError, match=r"registers is 3, expected 8.*nearest is"):
        check_fit(arrays, small(PRESETS["uni2_h"].architecture, patch=4))


@pytest.mark.parametrize("state", [{}, {"conv1.weight": np.zeros((64, 3, 7, 7))}])
def test_other_networks_are_refused(state):
    with pytest.raises(DataError, match="not the weights of a vision transformer"):
        check_fit(canonical(state)[0], PRESETS["uni"].architecture)


@pytest.mark.parametrize("changes", [dict(heads=5), dict(depth=0), dict(patch=0), dict(prefix_rows=3)])
def test_impossible_forms_are_refused(changes):
    with pytest.raises(ConfigError):
        dataclasses.replace(PRESETS["uni"].architecture, **changes).check()


def test_images_must_be_whole_patches():
    model = VisionTransformer(small(PRESETS["uni"].architecture), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="40x16, expected multiples of the patch of 16"):
        model(np.zeros((1, 40, 16, 3), np.float32))
