"""Encoding an image and decoding prompts, traced for devices that are only described."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jax.sharding import Mesh

from bcss_jax.models.sam.architecture import HieraForm, ViTForm
from bcss_jax.models.sam.hiera import MULTIPLE
from bcss_jax.models.sam.presets import form_of_encoder
from bcss_jax.models.sam.sam import Sam, check_image_size
from bcss_jax.models.sam.sam2 import Sam2
from bcss_jax.prompting import predictor
from bcss_jax.training.sharding import replicated

STEPS = ("encode", "decode")


def checked_form(encoder: str, image_size: int) -> ViTForm | HieraForm:
    """Returns the form of an encoder. Raises ConfigError as `lower_step`."""
    form = form_of_encoder(encoder, image_size)
    check_image_size(encoder, image_size, MULTIPLE if isinstance(form, HieraForm) else form.patch)
    return form


def lower_step(name: str, encoder: str, *, image_size: int, batch: int, dtype: Dtype, mesh: Mesh) -> jax.stages.Lowered:
    """Traces a step of what `Predictor` runs; nothing is computed.

    Args:
      name: of `STEPS`.
      encoder: of SAM, see `presets.form_of_encoder`.
      image_size: height and width of the network's input, pixels.
      batch: images that are encoded, or prompts on one image that are decoded: one click each, filled up as always.
      dtype: type of the computation.
      mesh: of the description of a device.

    Raises:
      ConfigError: there is no such encoder, or it takes no images of this size.
    """
    form = checked_form(encoder, image_size)
    network: Any = Sam2 if isinstance(form, HieraForm) else Sam
    graph, state = nnx.split(nnx.eval_shape(lambda: network(form, image_size=image_size, dtype=dtype)))

    def described(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree)

    state = described(state)
    images = jax.ShapeDtypeStruct((batch if name == "encode" else 1, image_size, image_size, 3), jnp.float32)
    if name == "encode":
        return predictor._encode.lower(graph, state, described(images))
    features = jax.eval_shape(functools.partial(predictor._encode, graph), state, images)
    points = jax.ShapeDtypeStruct((batch, predictor.MIN_POINTS, 2), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch, predictor.MIN_POINTS), jnp.int32)
    return predictor._decode.lower(graph, state, *described((features, points, labels)), None, None)
