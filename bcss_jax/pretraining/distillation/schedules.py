"""Values that change from step to step: learning rate, weight decay, and what the teacher follows.

Sources: `cosine_scheduler` and `DINOLoss.teacher_temp_schedule` of github.com/facebookresearch/dino, and
`CosineScheduler` of github.com/facebookresearch/dinov2, whose values are the same.
"""

import dataclasses

import numpy as np


def cosine(base: float, final: float, steps: int, warmup_steps: int = 0) -> np.ndarray:
    """Returns float64 [steps]: linearly from 0 to `base`, which the last warm-up step has, then half a cosine down.

    The cosine would reach `final` one step after the last.
    """
    warmup_steps = min(warmup_steps, steps)
    turn = np.arange(steps - warmup_steps) / max(steps - warmup_steps, 1)
    down = final + 0.5 * (base - final) * (1 + np.cos(np.pi * turn))
    return np.concatenate([np.linspace(0, base, warmup_steps), down])


def warmed_up(start: float, end: float, length: int, warmup: int) -> np.ndarray:
    """Returns float64 [length]: linearly from `start` to `end` in the first `warmup` values, then `end`."""
    warmup = min(warmup, length)
    return np.concatenate([np.linspace(start, end, warmup), np.full(length - warmup, end, np.float64)])


@dataclasses.dataclass(frozen=True)
class Schedules:
    """Values of every step of a pretraining, float64 [steps] each.

    Attributes:
      learning_rate: of all but the last layer of the heads.
      last_layer_learning_rate: of the last layer of the heads.
      weight_decay: decoupled; multiplied by the learning rate.
      momentum: share of the old teacher in the new one.
      teacher_temperature: of the teacher's targets.
      trains_last_layer: 0 where the optimizer passes over the last layer of the heads, else 1.
    """

    learning_rate: np.ndarray
    last_layer_learning_rate: np.ndarray
    weight_decay: np.ndarray
    momentum: np.ndarray
    teacher_temperature: np.ndarray
    trains_last_layer: np.ndarray

    def at(self, step: int) -> dict[str, np.float32]:
        """Returns the values of a step, counted from 0, as the step takes them."""
        return {field.name: np.float32(getattr(self, field.name)[step]) for field in dataclasses.fields(self)}


def make_schedules(
    *,
    epochs: int,
    epoch_steps: int,
    learning_rate: float,
    final_learning_rate: float,
    warmup_epochs: int,
    weight_decay: float,
    final_weight_decay: float,
    momentum: float,
    teacher_temperature: float,
    first_teacher_temperature: float,
    teacher_warmup_epochs: int,
    frozen_last_layer_epochs: int,
    version: int = 1,
) -> Schedules:
    """Returns the schedules of DINO (version 1) or DINOv2 (version 2).

    Version 1 changes the temperature of the teacher once per epoch, and its optimizer does not see the last layer of
    the heads while that is frozen. Version 2 changes the temperature every step, and gives a frozen last layer the
    learning rate 0.

    Args:
      epochs: number of epochs.
      epoch_steps: steps of an epoch.
      learning_rate: the largest, after the warm-up.
      final_learning_rate: what it falls to.
      warmup_epochs: in which it grows from 0.
      weight_decay: at the start.
      final_weight_decay: what it rises to.
      momentum: of the teacher at the start; it rises to 1.
      teacher_temperature: of the teacher's targets after the warm-up.
      first_teacher_temperature: at the start.
      teacher_warmup_epochs: in which the temperature changes.
      frozen_last_layer_epochs: first epochs, in which the last layer of the heads does not change.
      version: 1 or 2.
    """
    steps = epochs * epoch_steps
    rate = cosine(learning_rate, final_learning_rate, steps, warmup_epochs * epoch_steps)
    trains = np.arange(steps) >= frozen_last_layer_epochs * epoch_steps
    temperatures = (first_teacher_temperature, teacher_temperature)
    if version == 1:
        temperature = np.repeat(warmed_up(*temperatures, epochs, teacher_warmup_epochs), epoch_steps)
    else:
        temperature = warmed_up(*temperatures, steps, teacher_warmup_epochs * epoch_steps)
    return Schedules(
        learning_rate=rate,
        last_layer_learning_rate=rate if version == 1 else rate * trains,
        weight_decay=cosine(weight_decay, final_weight_decay, steps),
        momentum=cosine(momentum, 1.0, steps),
        teacher_temperature=temperature,
        trains_last_layer=trains.astype(np.float64) if version == 1 else np.ones(steps),
    )
