"""Presets have the names, shapes and values of timm's own networks, which are created without a download."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.timm_models import import_timm

from bcss_jax.models.encoders.vision_transformer.fitting import architecture_of
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS
from bcss_jax.models.weights.pretrained import load_torch_state
from bcss_jax.models.weights.vision_transformer_names import canonical

timm = import_timm()
torch = pytest.importorskip("torch")

SWIGLU = dict(mlp_layer="SwiGLUPacked", act_layer=torch.nn.SiLU)
# Preset -> timm's name of the form and its arguments, as the model cards of the encoders have them.
FORMS = {
    "gigapath_flash": ("vit_small_patch16_224", dict(init_values=1e-5, mlp_ratio=16 / 3, **SWIGLU)),
    "kaiko_vits16": ("vit_small_patch16_224", {}),
    "kaiko_vits8": ("vit_small_patch8_224", {}),
    "kaiko_vitb16": ("vit_base_patch16_224", {}),
    "kaiko_vitb8": ("vit_base_patch8_224", {}),
    "kaiko_vitl14": ("vit_large_patch14_reg4_dinov2", {}),
    "h_optimus_0": ("vit_giant_patch14_reg4_dinov2", dict(img_size=518, init_values=1e-5)),
    "h_optimus_1": ("vit_giant_patch14_reg4_dinov2", dict(img_size=518, init_values=1e-5)),
    "h0_mini": ("vit_base_patch14_reg4_dinov2", dict(mlp_ratio=5.33334, **SWIGLU)),
    "virchow": ("vit_huge_patch14_224", dict(img_size=224, init_values=1e-5, mlp_ratio=5.3375, **SWIGLU)),
    "virchow2": (
        "vit_huge_patch14_224", dict(img_size=224, init_values=1e-5, mlp_ratio=5.3375, reg_tokens=4, **SWIGLU),
    ),
    "uni": ("vit_large_patch16_224", dict(img_size=224, init_values=1e-5)),
    "uni2_h": (
        "vit_giant_patch14_224",
        dict(img_size=224, depth=24, num_heads=24, init_values=1e-5, embed_dim=1536, mlp_ratio=2.66667 * 2,
             no_embed_class=True, reg_tokens=8, **SWIGLU),
    ),
    "prov_gigapath": (
        "vit_giant_patch14_dinov2", dict(patch_size=16, img_size=224, init_values=1e-5, mlp_ratio=5.33334),
    ),
    "gpfm": ("vit_large_patch14_dinov2", dict(img_size=224, init_values=1e-5)),
    "lunit_vits16": ("vit_small_patch16_224", {}),
    "lunit_vits8": ("vit_small_patch8_224", {}),
}  # fmt: skip


def create(preset, **changes):
    name, arguments = FORMS[preset]
    arguments = arguments | changes
    if arguments.get("mlp_layer"):
        arguments["mlp_layer"] = timm.layers.SwiGLUPacked
    return timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, **arguments).eval()


LARGE = {"h_optimus_0", "h_optimus_1", "virchow", "virchow2", "uni2_h", "prov_gigapath", "gpfm", "uni", "kaiko_vitl14"}


@pytest.mark.parametrize("preset", [pytest.param(p, marks=pytest.mark.slow) if p in LARGE else p for p in FORMS])
def test_names_and_shapes(preset):
    """On the meta device, where nothing is allocated; zeros of the same shapes here are views of one number."""
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in create(preset).state_dict().items()}
    arrays, others = canonical({name: np.broadcast_to(np.float32(0), shape) for name, shape in theirs.items()})
    assert others == []
    architecture = PRESETS[preset].architecture
    assert architecture_of(arrays, architecture) == architecture
    model = nnx.eval_shape(lambda: VisionTransformer(architecture, rngs=nnx.Rngs(0)))
    ours = {name: layout.torch_shape(variable.shape) for name, (variable, layout) in model.torch_entries().items()}
    assert {name: array.shape for name, array in arrays.items()} == ours


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["gigapath_flash", "kaiko_vits8", "h_optimus_0", "virchow2", "uni2_h", "gpfm"])
def test_values_of_a_small_network(preset):
    """At the native size of the table and at another one, where each publisher resizes in its own way."""
    form = PRESETS[preset].architecture
    small = dataclasses.replace(form, width=48, depth=2, heads=3, hidden=64, table=4)
    ratio = (2 if form.gated else 1) * small.hidden / small.width
    torch.manual_seed(0)
    theirs = create(preset, embed_dim=48, depth=2, num_heads=3, mlp_ratio=ratio, img_size=4 * form.patch)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    arrays, _ = canonical({name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()})
    ours = load_torch_state(VisionTransformer(small, rngs=nnx.Rngs(0)), arrays)
    for rows, columns in ((4, 4), (5, 3)):
        image = torch.randn(1, 3, rows * form.patch, columns * form.patch)
        with torch.no_grad():
            expected = theirs.forward_features(image)[0, small.prefix :].numpy()
        found = ours(jnp.asarray(image.numpy().transpose(0, 2, 3, 1))).patches.reshape(rows * columns, -1)
        assert np.abs(found - expected).max() < 3e-4 * expected.std()
