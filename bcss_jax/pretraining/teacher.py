"""The encoder of the teacher, which is what a pretraining is for: its features, and a module with its weights."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from bcss_jax.models.apply import normalize, split_model
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.pretraining.distillation.network import PretrainedNetwork


def encoder_of(network: PretrainedNetwork, teacher: dict) -> VisionTransformer:
    """Returns the encoder of a network with the weights of the teacher, in evaluation mode.

    Args:
      network: gives the structure; it does not change.
      teacher: `state.model_state["teacher"]`.
    """
    graphdef, params, rest = nnx.split(network.encoder, nnx.Param, ...)
    params = jax.tree.map(lambda x: x, params)
    nnx.replace_by_pure_dict(params, jax.device_get(teacher["encoder"]))
    encoder = nnx.merge(graphdef, params, rest)
    encoder.eval()
    return encoder


class ClassFeatures:
    """Features of the class token of whole tiles, compiled once."""

    def __init__(self, network: PretrainedNetwork, statistics: ImageStatistics, batch_size: int):
        """Builds the function for the encoder of a network; tiles are normalized with the statistics."""
        self._batch_size = batch_size
        graphdef, variables, rest = nnx.split(network.encoder, nnx.Param, ...)
        patch = network.encoder.architecture.patch

        @jax.jit
        def features(params: dict, images: jax.Array) -> jax.Array:
            own = jax.tree.map(lambda x: x, variables)
            nnx.replace_by_pure_dict(own, params)
            encoder = nnx.merge(graphdef, own, rest)
            encoder.eval()
            height, width = (side // patch * patch for side in images.shape[1:3])
            return encoder.class_features(normalize(images[:, :height, :width], statistics))

        self._features: Callable = features

    def __call__(self, teacher: dict, images: np.ndarray) -> np.ndarray:
        """Tiles uint8 [N, S, S, 3] -> float32 [N, C]. What is left over beside whole patches is cut off."""
        found = []
        for start in range(0, len(images), self._batch_size):
            part = images[start : start + self._batch_size]
            padded = np.concatenate([part, np.repeat(part[:1], self._batch_size - len(part), axis=0)])
            found.append(np.asarray(self._features(teacher["encoder"], padded), np.float32)[: len(part)])
        return np.concatenate(found)


def parameters_of(network: PretrainedNetwork) -> int:
    """Returns the number of parameters of the encoder."""
    return sum(value.size for value in jax.tree.leaves(split_model(network.encoder)[1]))
