"""The step of a pretraining, traced for devices that are only described."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from bcss_jax.pretraining import build
from bcss_jax.pretraining.distillation.step import new_state
from bcss_jax.pretraining.visual_words import empty_words
from bcss_jax.training.loss_scale import loss_scale_for
from bcss_jax.training.sharding import check_batch_size, replicated, split_over_data


def lower_step(config: Any, mesh: Mesh) -> jax.stages.Lowered:
    """Traces a step as a run with a config does; nothing is computed.

    Args:
      config: a ConfigDict, valid (`pretraining.config.validate`).
      mesh: of descriptions of devices.

    Raises:
      ConfigError: the batch does not divide over the devices.
    """
    check_batch_size("--batch", config.batch_size, config.micro_batches, mesh)
    network = nnx.eval_shape(lambda: build.create_network(config))
    optimizer = build.create_optimizer(config, network)
    step = build.create_step(config, network, optimizer, mesh)
    everywhere, split = replicated(mesh), split_over_data(mesh)

    def described(tree, sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=sharding), tree)

    words = empty_words() if config.objective.words_weight else None
    scale = loss_scale_for(config.dtype)
    state = jax.eval_shape(lambda: new_state(build.create_network(config), optimizer, scale, words))
    side, patch = config.data.tile_size, network.encoder.architecture.patch
    images = jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8, sharding=split)
    masks = None
    if config.objective.patch_weight:
        patches = (config.views.global_size // patch) ** 2
        masks = jax.ShapeDtypeStruct((config.batch_size, 2, patches), jnp.bool_, sharding=split)
    values = described(build.create_schedules(config, 1).at(0), everywhere)
    return step.lower(described(state, everywhere), images, masks, values)
