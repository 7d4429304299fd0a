"""The steps of a training with prompts, traced for devices that are only described."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from bcss_jax.labels import find_scheme
from bcss_jax.models.apply import split_model
from bcss_jax.training.loss_scale import loss_scale_for
from bcss_jax.training.sharding import check_batch_size, replicated, split_over_data
from bcss_jax.training.step import TrainState
from bcss_jax.tuning import build
from bcss_jax.tuning import config as tuning_config

STEPS = ("tune", "tune_frozen")
TILE = 224  # height and width of the tiles in pixels, as in the layout kaggle224


def lower_step(
    name: str, encoder: str, *, image_size: int, batch: int, micro_batches: int, remat: bool, dtype: str, mesh: Mesh
) -> jax.stages.Lowered:
    """Traces a training step of the whole network, or of all but a frozen encoder; nothing is computed.

    Args:
      name: of `STEPS`; with "tune_frozen", what the encoder computes comes from the cache.
      encoder: of SAM, see `presets.form_of_encoder`.
      image_size: height and width of the network's input, pixels.
      batch: tiles, over all devices.
      micro_batches: parts of the batch.
      remat: compute the rounds again for the gradient.
      dtype: type of the computation.
      mesh: of descriptions of devices.

    Raises:
      ConfigError: there is no such encoder, or it takes no images of this size, or the batch does not divide over the
        devices.
    """
    config: Any = tuning_config.default()
    config.encoder, config.image_size, config.dtype = encoder, image_size, dtype
    config.batch_size, config.micro_batches, config.remat = batch, micro_batches, remat
    config.freeze_encoder = name == "tune_frozen"
    scheme = find_scheme(config.labels)
    tuning_config.validate(config, scheme)
    check_batch_size("--batch", batch, micro_batches, mesh)
    network = nnx.eval_shape(lambda: build.create_network(config))
    steps = build.make_steps(config, scheme, network, mesh)
    everywhere, split = replicated(mesh), split_over_data(mesh)

    def described(tree, sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=sharding), tree)

    def new_state():
        return TrainState.create(build.create_network(config), steps.tx, steps.schedule, loss_scale_for(config.dtype))

    state = described(jax.eval_shape(new_state), everywhere)
    images = jax.ShapeDtypeStruct((batch, TILE, TILE, 3), jnp.uint8, sharding=split)
    labels = jax.ShapeDtypeStruct((batch, TILE, TILE), jnp.uint8, sharding=split)
    indices = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split)
    if steps.encode is None:
        return steps.train.lower(state, images, labels, indices)
    maps = jax.eval_shape(steps.encode, *split_model(network)[1:], images)
    return steps.train_on_features.lower(state, images, labels, indices, described(maps, split))
