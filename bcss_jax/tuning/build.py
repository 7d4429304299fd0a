"""Builds what a training with prompts computes with from its config: network, optimizer and compiled steps.

`config` is a ConfigDict with the fields of `bcss_jax.config.default` and `bcss_jax.tuning.config.add_prompts`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from bcss_jax.labels import LabelScheme
from bcss_jax.models.image_normalization import IMAGENET
from bcss_jax.models.sam.promptable import PromptableSam
from bcss_jax.training.build import make_optimizer, make_schedule, never_trained_parts
from bcss_jax.training.frozen.feature_cache import make_encode
from bcss_jax.training.optimizer import Plateau, Poly
from bcss_jax.tuning.step import make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class PromptSteps:
    """The compiled steps of a run and what they are made of.

    Attributes:
      tx: optimizer chain.
      schedule: of the learning rate.
      never_trained: parts of the network that are not trained.
      train: as `step.make_train_step` returns it.
      evaluate: as `step.make_eval_step` returns it.
      encode: as `feature_cache.make_encode` returns it, if the encoder's features never change; else None.
      train_on_features: `train`, given them.
      evaluate_on_features: `evaluate`, given them.
    """

    tx: optax.GradientTransformation
    schedule: Plateau | Poly
    never_trained: tuple[str, ...]
    train: Callable
    evaluate: Callable
    encode: Callable | None
    train_on_features: Callable
    evaluate_on_features: Callable


def create_network(config: Any) -> PromptableSam:
    """Creates the network with new weights.

    Raises:
      ConfigError: there is no such encoder.
    """
    return PromptableSam(
        config.encoder,
        image_size=config.image_size,
        lora_rank=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_on=config.lora.on,
        dtype=config.dtype,
        seed=config.seed,
    )


def make_steps(config: Any, scheme: LabelScheme, network: PromptableSam, mesh: jax.sharding.Mesh) -> PromptSteps:
    """Builds the compiled steps of a run.

    Raises:
      ConfigError: settings of the training of the encoder do not fit together.
    """
    never_trained = never_trained_parts(config, network)
    tx = make_optimizer(config, network)
    how: dict[str, Any] = dict(
        seed=config.seed,
        objects=config.prompts.objects,
        clicks=config.prompts.clicks,
        classes=scheme.evaluated,
        ignore_index=scheme.ignore_index,
    )
    train: dict[str, Any] = dict(micro_batches=config.micro_batches, frozen=never_trained, remat=config.remat, **how)
    fixed = bool(never_trained) and network.adapters is None
    return PromptSteps(
        tx=tx,
        schedule=make_schedule(config),
        never_trained=never_trained,
        train=make_train_step(network, tx, mesh, on_features=False, **train),
        evaluate=make_eval_step(network, mesh, on_features=False, **how),
        encode=make_encode(network, mesh, IMAGENET) if fixed else None,
        train_on_features=make_train_step(network, tx, mesh, on_features=True, **train),
        evaluate_on_features=make_eval_step(network, mesh, on_features=True, **how),
    )
