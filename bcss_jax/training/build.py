"""Builds what a run computes with from its config: network, objective, optimizer, schedule and compiled steps.

`config` is a ConfigDict with the fields of `bcss_jax.config.default`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from bcss_jax import losses, models
from bcss_jax.data import synthetic
from bcss_jax.data.augmentation.on_device import make_augment
from bcss_jax.data.augmentation.settings import Augmentation
from bcss_jax.errors import ConfigError
from bcss_jax.labels import LabelScheme
from bcss_jax.losses import Objective
from bcss_jax.models.decoders.eomt import mask_probabilities
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.training.frozen.feature_cache import make_encode
from bcss_jax.training.optimizer import Plateau, Poly, adamw, clipped, separate_encoder_optimizer, sgd
from bcss_jax.training.sharding import place_replicated
from bcss_jax.training.step import TrainState, make_eval_step, make_train_step


class StepsOnFeatures(NamedTuple):
    """The compiled steps of a network whose encoder is frozen and has no adapters.

    Attributes:
      encode: as `feature_cache.make_encode` returns it.
      train: as `step.make_train_step` returns it, on features.
      evaluate: as `step.make_eval_step` returns it, on features.
    """

    encode: Callable
    train: Callable
    evaluate: Callable


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled steps of a run and what they are made of.

    Attributes:
      objective: what is minimized and counted.
      tx: optimizer chain.
      schedule: of the learning rate.
      train: as `step.make_train_step` returns it; with the encoder frozen if it is never trained.
      train_frozen: the same with the encoder frozen; None if no epoch needs it.
      evaluate: as `step.make_eval_step` returns it.
      frozen_epochs: number of first epochs in which the encoder is frozen.
      never_trained: parts of the network that are not trained in any epoch.
      on_features: steps of a network whose features never change; None for others.
      augment: of the images on the device, as `make_augment` returns it; None if the host augments them.
    """

    objective: Objective
    tx: optax.GradientTransformation
    schedule: Plateau | Poly
    train: Callable
    train_frozen: Callable | None
    evaluate: Callable
    frozen_epochs: int
    never_trained: tuple[str, ...]
    on_features: "StepsOnFeatures | None"
    augment: Callable | None

    def train_step(self, epoch: int) -> Callable:
        """Returns the training step of an epoch, counted from 0."""
        return self.train_frozen if self.train_frozen and epoch < self.frozen_epochs else self.train

    def at_start_of_epoch(self, state: TrainState, progress: float, mesh: jax.sharding.Mesh) -> TrainState:
        """Returns the state with what changes from epoch to epoch: how likely the queries' attention is masked.

        Args:
          state: before the epoch.
          progress: share of the epochs that is done.
          mesh: devices.
        """
        if not self.objective.queries:
            return state
        decoder = state.model_state["decoder"]
        probability = mask_probabilities(progress, len(decoder["mask_probability"]))
        decoder = decoder | {"mask_probability": place_replicated(probability, mesh)}
        return dataclasses.replace(state, model_state=state.model_state | {"decoder": decoder})


def create_model(config: Any, scheme: LabelScheme) -> Any:
    """Creates the network with new weights.

    Raises:
      ConfigError: the network does not exist, or does not take the arguments or images of this size.
    """
    arguments = {**config.model, "num_classes": scheme.num_classes, "dtype": config.dtype, "seed": config.seed}
    models.check_size(**arguments)
    model = models.create(**arguments)
    cut = config.data.patch_size
    side = {"sample": synthetic.SIZE, "roi": cut, "slides": cut}.get(config.data.layout)
    if side:  # the image size of the other layouts is known only when they are read
        jax.eval_shape(model, jax.ShapeDtypeStruct((1, side, side, 3), np.float32))
    return model


def make_steps(config: Any, scheme: LabelScheme, model: Any, mesh: jax.sharding.Mesh) -> Steps:
    """Builds the compiled steps of a run.

    Raises:
      ConfigError: the network does not have the encoder or the heads that the config asks for.
    """
    never_trained = never_trained_parts(config, model)
    tx, schedule = make_optimizer(config, model), make_schedule(config)
    objective = Objective(
        num_classes=scheme.num_classes,
        ignore_index=scheme.ignore_index,
        classes=scheme.evaluated,
        deep_supervision=_head_weights(config, model),
        queries=getattr(model, "has_queries", False),
        **config.loss,
    )
    statistics = ImageStatistics(tuple(config.image_mean), tuple(config.image_std))
    make_train = functools.partial(
        make_train_step,
        model,
        tx,
        mesh,
        objective,
        statistics=statistics,
        micro_batches=config.micro_batches,
        remat=config.remat,
        sync_batch_norm=config.sync_batch_norm,
        seed=config.seed,
    )
    make_evaluate = functools.partial(make_eval_step, model, mesh, objective, statistics=statistics)
    features_are_fixed = hasattr(model, "encode") and never_trained and getattr(model, "adapters", None) is None
    return Steps(
        objective=objective,
        tx=tx,
        schedule=schedule,
        train=make_train(frozen=never_trained),
        train_frozen=make_train(frozen=("encoder",)) if config.freeze_encoder_epochs else None,
        evaluate=make_evaluate(),
        frozen_epochs=config.freeze_encoder_epochs,
        never_trained=never_trained,
        on_features=StepsOnFeatures(
            make_encode(model, mesh, statistics),
            make_train(frozen=never_trained, on_features=True),
            make_evaluate(on_features=True),
        )
        if features_are_fixed
        else None,
        augment=(
            make_augment(Augmentation(**config.augment), scheme.ignore_index, mesh, config.seed)
            if config.augment_on == "device"
            else None
        ),
    )


def never_trained_parts(config: Any, model: Any) -> tuple[str, ...]:
    """Returns the parts of the network that are not trained in any epoch.

    Raises:
      ConfigError: the config has settings of the training of the encoder although it is not trained.
    """
    lora = getattr(model, "adapters", None) is not None
    if not lora and not config.freeze_encoder:
        return ()
    why = "config.lora.rank" if lora else "config.freeze_encoder"
    if not hasattr(model, "encoder"):
        raise ConfigError(f"{why}: {config.model.name} has no encoder of its own; leave it at its default")
    if config.freeze_encoder_epochs:
        raise ConfigError(f"{why}: the encoder is never trained; leave config.freeze_encoder_epochs at 0")
    if config.optimizer.encoder_scale != 1:
        raise ConfigError(f"{why}: the encoder is never trained; leave config.optimizer.encoder_scale at 1")
    if config.model.get("drop_path"):
        raise ConfigError(f"{why}: drop path has no effect in an encoder that is not trained; set model.drop_path=0")
    return ("encoder",)


def make_optimizer(config: Any, model: nnx.Module) -> optax.GradientTransformation:
    """Builds the optimizer chain of a network. Raises ConfigError as `never_trained_parts`."""
    settings = config.optimizer
    rule = adamw if settings.name == "adamw" else functools.partial(sgd, momentum=settings.momentum)
    tx = rule(settings.learning_rate, settings.weight_decay)
    if never_trained_parts(config, model):
        tx = separate_encoder_optimizer(optax.set_to_zero(), tx)  # which keeps no state of the encoder
    elif settings.encoder_scale != 1 or config.freeze_encoder_epochs:
        if not hasattr(model, "encoder"):
            setting = "freeze_encoder_epochs" if config.freeze_encoder_epochs else "optimizer.encoder_scale"
            raise ConfigError(
                f"config.{setting}: {config.model.name} has no encoder of its own; leave it at its default"
            )
        encoder_tx = rule(settings.encoder_scale * settings.learning_rate, settings.weight_decay)
        tx = separate_encoder_optimizer(encoder_tx, tx)
    return clipped(tx, settings.clip_norm or None)


def make_schedule(config: Any) -> Plateau | Poly:
    """Builds the schedule of the learning rate."""
    if config.schedule == "poly":
        return Poly(config.epochs)
    return Plateau(config.plateau.factor, config.plateau.patience, config.plateau.min_scale)


def _head_weights(config: Any, model: Any) -> tuple[float, ...]:
    """Returns the weights of the losses at the network's heads; none without deep supervision."""
    if not config.deep_supervision:
        return ()
    if not hasattr(model, "all_logits"):
        raise ConfigError(f"config.deep_supervision: {config.model.name} has one head only; leave it at False")
    return losses.deep_supervision_weights(model.num_scales)
