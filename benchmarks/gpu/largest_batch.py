"""Finds the largest batch of the U-Net's training step that the compiler expects to fit, and runs it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bcss_jax import losses, models
from bcss_jax.accelerators.targets import TARGETS, describe_devices
from bcss_jax.common.device_memory import is_out_of_memory
from bcss_jax.errors import ConfigError
from bcss_jax.models.apply import split_model
from bcss_jax.training import sharding, step
from bcss_jax.training.loss_scale import loss_scale_for
from bcss_jax.training.optimizer import Plateau, adamw
from benchmarks import train_step
from benchmarks.gpu.child import Report

UNIT = 8  # batches are multiples of it
MORE = 1.15  # times the largest that is expected to fit is the one that should not
STEPS = 2


def run(report: Report, *, width: int, side: int, batch: int, dtype: str) -> None:
    """Compiles a first batch for a device that is only described, extrapolates, and runs what should fit.

    Args:
      report: gets a row for each batch.
      width: of the U-Net.
      side: of the images, in pixels.
      batch: the first one, from which the largest is computed.
      dtype: type of the computation.
    """
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    lowered = functools.partial(_lowered, width, side, dtype)
    described, reason = _described(device.device_kind)
    mesh = sharding.make_mesh([device])
    expecting = described or mesh
    first = lowered(batch, expecting).compile().memory_analysis()
    assert first
    fixed, each = first.argument_size_in_bytes, first.temp_size_in_bytes / batch
    usable = limit or fixed + 4 * batch * each  # a CPU has no limit: anything serves to try this part
    largest = max(UNIT, int((usable - fixed) / each) // UNIT * UNIT)
    for size in (largest, -(-int(largest * MORE) // UNIT) * UNIT):
        expected = _total(lowered(size, expecting).compile().memory_analysis()) if described else None
        planned, runs = _try(lowered(size, mesh), size, side, width, dtype, mesh)
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        report.add(
            network=f"unet {width}", type=dtype, batch=size, expected_to_run=size == largest, runs=runs,
            compile_for_gb=_gb(expected), planned_gb=_gb(planned), peak_gb=_gb(peak), limit_gb=_gb(limit), note=reason,
        )  # fmt: skip


def _lowered(width: int, side: int, dtype: str, batch: int, mesh: Any) -> jax.stages.Lowered:
    model = nnx.eval_shape(lambda: models.create("unet", num_classes=train_step.NUM_CLASSES, width=width, dtype=dtype))
    tx = adamw(train_step.LEARNING_RATE, train_step.WEIGHT_DECAY)
    objective = losses.Objective(train_step.NUM_CLASSES, train_step.IGNORED, train_step.EVALUATED)
    train = step.make_train_step(model, tx, mesh, objective)
    state = jax.eval_shape(lambda *trees: _state(tx, dtype, *trees), *split_model(model)[1:])
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
    return train.lower(state, images, jax.ShapeDtypeStruct((batch, side, side), jnp.uint8))


def _state(tx: Any, dtype: str, params: Any, model_state: Any) -> step.TrainState:
    schedule = Plateau(0.5, 5).init()
    return step.TrainState(np.int32(0), params, model_state, tx.init(params), schedule, loss_scale_for(dtype))


def _try(
    lowered: jax.stages.Lowered, batch: int, side: int, width: int, dtype: str, mesh: Any
) -> tuple[int | None, bool]:
    """Returns the bytes that the compiler plans, and whether some steps run. None: it refuses to compile."""
    planned = None
    try:
        train = lowered.compile()
        planned = _total(train.memory_analysis())
        model = models.create("unet", num_classes=train_step.NUM_CLASSES, width=width, dtype=dtype)
        start = _state(adamw(train_step.LEARNING_RATE, train_step.WEIGHT_DECAY), dtype, *split_model(model)[1:])
        state = sharding.place_replicated(start, mesh)
        images, labels = train_step.random_batch(batch, side)
        placed = sharding.place_batch({"images": images, "labels": labels}, mesh)
        for _ in range(STEPS):
            state, report = train(state, placed["images"], placed["labels"])
        jax.block_until_ready((state, report))
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return planned, False
    return planned, True


def _described(kind: str) -> tuple[Any, str]:
    """Returns a mesh of a described device like this one, or None and the reason."""
    target = next((target for name, target in TARGETS.items() if name.upper() in kind.upper()), None)
    if target is None:
        return None, f"compile_for does not know {kind}"
    try:
        return sharding.make_mesh(describe_devices(target, 1)), ""
    except ConfigError as error:
        return None, str(error)


def _total(memory: Any) -> int:
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def _gb(count: int | None) -> float | None:
    return None if count is None else count / 1e9
