"""SAM in the smallest form that there are reference values for."""

from bcss_jax.models.sam.architecture import DecoderForm, ViTForm
from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.weights.pretrained import load_torch_state
from helpers.references import FOUNDATION, foundation_case, module_at

FORM = ViTForm(48, 3, 3, (1,), patch=8, window=4, hidden=192, table=10)
DECODER = DecoderForm(channels=32, heads=4, hidden=64, score_hidden=24)


def sam_tiny():
    """Returns SAM with the weights of the reference."""
    return load_torch_state(Sam(FORM, DECODER), foundation_case("sam_tiny")[1])


def picture(seed, height, width):
    """Returns a picture of the reference, RGB uint8 (H, W, 3)."""
    return module_at(FOUNDATION / "weights.py", "no reference outputs").rgb(seed, height, width)


def foundation_normal(seed, *shape):
    """Returns normal numbers of the reference, float32."""
    return module_at(FOUNDATION / "weights.py", "no reference outputs").image(seed, shape)
