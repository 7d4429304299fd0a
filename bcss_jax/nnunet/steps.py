"""The compiled steps of nnU-Net's training: augmentation on the device, deep supervision, SGD, poly schedule.

Source: nnUNetTrainer of nnU-Net 2.8.1.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bcss_jax import losses
from bcss_jax.errors import ConfigError
from bcss_jax.losses import Objective
from bcss_jax.nnunet.augment import augment
from bcss_jax.nnunet.batches import padded_size
from bcss_jax.training.loss_scale import loss_scale_for
from bcss_jax.training.optimizer import Poly, clipped, sgd
from bcss_jax.training.sharding import make_mesh
from bcss_jax.training.step import TrainState, make_eval_step, make_train_step

MOMENTUM, LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 0.99, 1e-2, 3e-5, 12.0


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a fold is trained; the defaults are those of nnU-Net.

    Attributes:
      epochs: number of epochs.
      iterations: number of training batches per epoch.
      val_iterations: number of validation batches per epoch.
    """

    epochs: int = 1000
    iterations: int = 250
    val_iterations: int = 50


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled steps and what else is the same in all folds.

    Attributes:
      train: as `step.make_train_step` returns it.
      evaluate: as `step.make_eval_step` returns it.
      schedule: of the learning rate.
      start: the state before the first iteration, on the host.
      mesh: devices that share a batch.
      objective: what is minimized and counted; its classes include the background, but not `ignore`.
      patch_size: height and width in pixels.
      batch_size: examples of a batch.
      seed: of patches and augmentation.
      length: of the training.
    """

    train: Callable
    evaluate: Callable
    schedule: Poly
    start: TrainState
    mesh: jax.sharding.Mesh
    objective: Objective
    patch_size: tuple[int, int]
    batch_size: int
    seed: int
    length: Length


def make_steps(
    model: Any,
    configuration: dict,
    *,
    num_classes: int,
    length: Length,
    seed: int,
    batch_size: int,
    micro_batches: int = 1,
    remat: bool = False,
    dtype: str = "float32",
) -> Steps:
    """Builds the compiled steps of a plan.

    Args:
      model: the network, with deep supervision heads; every fold starts from its weights.
      configuration: the plan's `2d`.
      num_classes: background included, without `ignore`.
      length: of the training.
      seed: of patches and augmentation.
      batch_size: examples per batch.
      micro_batches: number of parts that a batch is computed in.
      remat: keep less for the gradient (`training.step.make_train_step`).
      dtype: type of the network's computation.

    Raises:
      ConfigError: the batch does not divide into that many parts.
    """
    patch_size, masked = tuple(configuration["patch_size"]), configuration["use_mask_for_norm"]
    mesh = make_mesh()
    if padded_size(batch_size, mesh) % (mesh.size * micro_batches):
        raise ConfigError(
            f"config.micro_batches={micro_batches}: a batch of {batch_size} on {mesh.size} device(s) does not divide "
            "into that many parts; choose another number"
        )
    objective = Objective(
        num_classes=num_classes,
        ignore_index=num_classes,  # the label of `ignore`, and of the examples that fill a batch up
        classes=tuple(range(1, num_classes)),
        dice_batch=bool(configuration["batch_dice"]),
        deep_supervision=losses.deep_supervision_weights(model.num_scales),
    )
    tx, schedule = clipped(sgd(LEARNING_RATE, WEIGHT_DECAY, MOMENTUM), CLIP_NORM), Poly(length.epochs)
    train = make_train_step(
        model,
        tx,
        mesh,
        objective,
        statistics=None,  # patches are normalized by the plan
        seed=seed,
        micro_batches=micro_batches,
        remat=remat,
        augment=functools.partial(
            augment, patch_size=patch_size, masked_channels=tuple(int(c) for c in np.flatnonzero(masked))
        ),
    )
    evaluate = make_eval_step(model, mesh, objective, statistics=None, choose_among=tuple(range(num_classes)))
    # On the host: the training step overwrites the state that it is given.
    start = jax.device_get(TrainState.create(model, tx, schedule, loss_scale_for(dtype)))
    return Steps(train, evaluate, schedule, start, mesh, objective, patch_size, batch_size, seed, length)
