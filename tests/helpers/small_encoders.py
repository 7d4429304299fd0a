"""Files of small vision transformers with random weights, as published ones and as pretraining writes them."""

from flax import nnx
from safetensors.numpy import save_file

from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.pretraining.encoder_file import timm_state, write_encoder
from helpers.small_networks import TINY_FORM

MEAN, STD = (0.7, 0.58, 0.7), (0.21, 0.23, 0.18)


def encoder_file(path, *, seed=0, form=TINY_FORM, mpp=0.25, described=True):
    """Writes an encoder under timm's names and returns it; without the description it needs a name."""
    network = VisionTransformer(form, rngs=nnx.Rngs(seed))
    if described:
        write_encoder(path, network, "tiny", ImageStatistics(MEAN, STD), mpp, {})
    else:
        save_file(timm_state(network), path)
    return network
