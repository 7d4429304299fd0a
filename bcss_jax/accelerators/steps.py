"""Compiles the steps of a run for devices that are only described: training, evaluation, and windows of a slide."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bcss_jax import config as configs
from bcss_jax import models
from bcss_jax.common.device_memory import is_out_of_memory
from bcss_jax.errors import ConfigError, first_line
from bcss_jax.inference.slide_model import make_window_step, probabilities_of
from bcss_jax.labels import LabelScheme
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.training import build
from bcss_jax.training.loss_scale import loss_scale_for
from bcss_jax.training.sharding import check_batch_size, replicated, split_over_data
from bcss_jax.training.step import TrainState

STEPS = ("train", "evaluate", "slide")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory that a compiled step takes of each device, in bytes.

    Attributes:
      arguments: the state and the batch.
      results: those that do not take the place of arguments.
      temporary: what is computed in between.
    """

    arguments: int
    results: int
    temporary: int

    def total(self) -> int:
        """Returns the sum."""
        return self.arguments + self.results + self.temporary


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step that is compiled for a target.

    Attributes:
      name: one of `STEPS`, or "pretrain".
      seconds: that compiling took.
      memory: of each device.
      text: of the compiled program.
    """

    name: str
    seconds: float
    memory: Memory
    text: str


class DoesNotFit(Exception):
    """Raised when the compiler finds that a step needs more memory than the device has."""


def compile_step(name: str, config: Any, scheme: LabelScheme, mesh: Mesh, side: int) -> CompiledStep:
    """Compiles a step as a run with a config does; nothing is computed.

    Args:
      name: one of `STEPS`.
      config: a ConfigDict, valid (`bcss_jax.config.validate`).
      scheme: label scheme of the run.
      mesh: of descriptions of devices.
      side: of the images or windows, in pixels.

    Raises:
      ConfigError: the network does not take these settings or images, or the compiler fails.
      DoesNotFit: see there.
    """
    return compile_lowered(name, _lower(name, config, scheme, mesh, side), f"the {name} step of {config.model.name}")


def compile_lowered(name: str, lowered: jax.stages.Lowered, what: str) -> CompiledStep:
    """Compiles a step that is traced; `what` names it in messages. Raises errors as `compile_step`."""
    started = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(error):
            raise DoesNotFit(first_line(error)) from error
        raise ConfigError(f"the compiler fails on {what}: {first_line(error)}") from error
    seconds = time.monotonic() - started
    found = compiled.memory_analysis()
    assert found is not None
    memory = Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
    )
    return CompiledStep(name, seconds, memory, compiled.as_text() or "")


def recipe(model: str, dtype: str, batch: int, micro_batches: int, side: int, remat: bool = False) -> Any:
    """Returns the config of the recipe that a network is trained with.

    Args:
      model: name of the network.
      dtype: type of the computation.
      batch: images of a batch, in training and otherwise.
      micro_batches: parts of a training batch.
      side: of the images, in pixels.
      remat: keep less for the gradient and compute it again.
    """
    fixed_size = "image_size" in models.default_arguments(model)
    config: Any = configs.default(model, **({"image_size": side} if fixed_size else {}))
    config.data.layout = "kaggle224"
    if model in ("nnunet", "nnunet_resenc"):
        configs.train_as_nnunet(config)
    config.dtype, config.batch_size, config.eval_batch_size, config.micro_batches = dtype, batch, batch, micro_batches
    config.remat = remat
    return config


def _lower(name: str, config: Any, scheme: LabelScheme, mesh: Mesh, side: int) -> jax.stages.Lowered:
    model = nnx.eval_shape(lambda: build.create_model(config, scheme))
    everywhere, split = replicated(mesh), split_over_data(mesh)

    def described(tree, sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    params, model_state = described(split_model(model)[1:], everywhere)
    batch = config.batch_size if name == "train" else config.eval_batch_size
    check_batch_size("--batch", batch, config.micro_batches if name == "train" else 1, mesh)
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8, sharding=split)
    labels = jax.ShapeDtypeStruct((batch, side, side), jnp.uint8, sharding=split)
    if name == "slide":
        statistics = ImageStatistics(tuple(config.image_mean), tuple(config.image_std))
        step = make_window_step(probabilities_of(ModelFunction(model, statistics), scheme, tta=False), mesh)
        weights = jax.ShapeDtypeStruct((side, side), jnp.float32, sharding=everywhere)
        return step.lower((params, model_state), weights, images)
    steps = build.make_steps(config, scheme, model, mesh)
    if name == "evaluate":
        return steps.evaluate.lower(params, model_state, images, labels)
    state = jax.eval_shape(
        lambda params, model_state: TrainState(
            np.int32(0),
            params,
            model_state,
            steps.tx.init(params),
            steps.schedule.init(),
            loss_scale_for(config.dtype),
        ),
        params,
        model_state,
    )
    return steps.train.lower(described(state, everywhere), images, labels)
