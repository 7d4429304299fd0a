"""Files of small vision transformers with random weights, as published ones and as pretraining writes them."""

import dataclasses
import json

from flax import nnx
from safetensors.numpy import save_file

from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.weights.pretrained import to_torch_state
from helpers.small_networks import TINY_FORM

MEAN, STD = (0.7, 0.58, 0.7), (0.21, 0.23, 0.18)


def encoder_file(path, *, seed=0, form=TINY_FORM, mpp=0.25, described=True):
    """Writes an encoder under timm's names and returns it; without the description it needs a name."""
    network = VisionTransformer(form, rngs=nnx.Rngs(seed))
    state = {name.replace("register_tokens", "reg_token"): array for name, array in to_torch_state(network).items()}
    description = {
        "encoder": "tiny",
        "architecture": dataclasses.asdict(form) | {"resizing": form.resizing.value},
        "image_mean": MEAN,
        "image_std": STD,
        "mpp": mpp,
    }
    save_file(state, path, metadata={"bcss_jax": json.dumps(description)} if described else None)
    return network
