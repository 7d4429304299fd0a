"""The table of `python -m bcss_jax.compile_for --all`: the training step of every network on one target."""

import contextlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import jax
from jax.sharding import Mesh

from bcss_jax import models
from bcss_jax.accelerators.computed_steps import (
    REMAT,
    ComputedStep,
    Key,
    Line,
    Row,
    code_digest,
    read_rows,
    write_row,
)
from bcss_jax.accelerators.hlo_text import read_program
from bcss_jax.accelerators.roofline import roofline
from bcss_jax.accelerators.steps import STEPS, CompiledStep, DoesNotFit, Memory, compile_step, recipe
from bcss_jax.accelerators.targets import Target, describe_devices
from bcss_jax.accelerators.traffic import account
from bcss_jax.common.interruption import safe_point
from bcss_jax.errors import ConfigError, first_line
from bcss_jax.labels import find_scheme
from bcss_jax.training.sharding import make_mesh

COLUMNS = (
    "network", "images at once", "memory", "traffic", "TFLOP", "least ms (memory, arithmetic)", "images/s, at most",
    "compiles in",
)  # fmt: skip
GRADIENTS = 0.5  # bytes of all gradients, at most, as a share of parameters and optimizer state
PREDICTED_AT_ONCE = 4  # images on a device for which evaluation and slides are compiled


def print_table(target: Target, devices: int, dtype: str, batch: int, side: int, file: Path | None) -> None:
    """Prints the table in Markdown, row by row.

    Each network is compiled in a process of its own, because the compiler may end the process.

    Args:
      target: to compile for.
      devices: that share a batch.
      dtype: type of the computation.
      batch: images of a batch.
      side: of the images, in pixels.
      file: keeps the rows, with the memory of evaluation and slides (`computed_steps`); rows that it has from this
        code and compiler are not computed again. None: no file.
    """
    describe_devices(target, devices)  # if the compiler is missing, one line says so instead of one for each network
    print(f"{target.device} x {devices}, {dtype}, batch {batch}, {side} pixels; computed from the compiled program")
    for row in (COLUMNS, ["---"] * len(COLUMNS)):
        print(f"| {' | '.join(row)} |", flush=True)
    known = {row.key: row for row in read_rows(file) if row.is_current()} if file else {}
    for model in sorted(models.MODELS):
        safe_point("stopped; run the same command again to go on" if file else "stopped")
        key = Key(target.name, devices, model, dtype, batch, side)
        row = known.get(key)
        if row is None:
            row = _compute(target, key, every_step=file is not None)
            if file:
                write_row(row, file)
        print(f"| {' | '.join(_cells(row, target))} |", flush=True)


def _compute(target: Target, key: Key, every_step: bool) -> Row:
    """Computes a row in a process of its own. A network that cannot be compiled gets a row with the reason."""
    step, reason = None, ""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            step = process.submit(compute_step, target, key, every_step).result()
        except BrokenProcessPool:
            reason = "the compiler ends the process"
        except Exception as error:  # whatever the compiler raises, the other networks get their rows
            reason = first_line(error)
    return Row(key, step, reason, jax.__version__, code_digest())


def _cells(row: Row, target: Target) -> list[str]:
    key, step = row.key, row.step
    if step is None:
        return [f"`{key.network}`", row.reason, *[""] * (len(COLUMNS) - 2)]
    at_once = key.batch // key.devices // step.micro_batches
    parts = f" (`--config.micro_batches={step.micro_batches}`)" if step.micro_batches > 1 else ""
    least = step.least
    return [
        f"`{key.network}`",
        f"{at_once}{parts}",
        f"{step.memory.total() / 1e9:.1f} of {target.usable / 1e9:.1f} GB",
        f"{step.bytes / 1e9:.0f} GB",
        f"{step.operations / 1e12:.1f}",
        f"{1e3 * least.total:.0f} ({1e3 * least.memory:.0f}, {1e3 * least.arithmetic:.0f})",
        f"{key.batch / least.total:.0f}",
        f"{step.seconds:.0f} s",
    ]


def compute_step(target: Target, key: Key, every_step: bool = False) -> ComputedStep:
    """Compiles the training step of a network in as few micro-batches, a power of two, as fit.

    Args:
      target: that the key names.
      key: what to compile.
      every_step: compile evaluation and slides too, for their memory.

    Raises:
      ConfigError: the compiler fails.
      DoesNotFit: a single image on each device needs more memory than there is.
    """
    jax.config.update("jax_platforms", "cpu")
    mesh = make_mesh(describe_devices(target, key.devices))
    parts = 1
    while key.batch % (parts * key.devices) == 0:
        try:
            step = _compile("train", mesh, key, key.batch, parts)
        except DoesNotFit:
            parts *= 2
            continue
        if step.memory.total() <= target.usable:
            found = account(read_program(step.text))
            least = roofline(found, target)
            lines = _memory_lines(mesh, key, step, key.batch // key.devices // parts) if every_step else {}
            return ComputedStep(parts, step.memory, found.bytes(), found.operations(), least, step.seconds, lines)
        parts *= _factor(step.memory, target.usable)
    raise DoesNotFit("a single image does not fit")


def _compile(name: str, mesh: Mesh, key: Key, batch: int, parts: int = 1, remat: bool = False) -> CompiledStep:
    config = recipe(key.network, key.dtype, batch, parts, key.side, remat)
    return compile_step(name, config, find_scheme(config.labels), mesh, key.side)


def _memory_lines(mesh: Mesh, key: Key, train: CompiledStep, at_once: int) -> dict[str, Line]:
    """Returns the memory of all steps, given the training step with `at_once` images on a device."""
    lines = {"train": memory_line(train.memory, at_once, GRADIENTS)}
    for name in STEPS:
        if name != "train":
            memory = _compile(name, mesh, key, PREDICTED_AT_ONCE * key.devices).memory
            lines[name] = memory_line(memory, PREDICTED_AT_ONCE)
    with contextlib.suppress(ConfigError, DoesNotFit):  # a compiler that refuses it leaves the row
        memory = _compile("train", mesh, key, at_once * key.devices, remat=True).memory
        lines[REMAT] = memory_line(memory, at_once, GRADIENTS)
    return lines


def memory_line(memory: Memory, at_once: int, gradients: float = 0.0) -> Line:
    """Returns the memory of a step as a line over the number of images, given that of `at_once` images.

    Args:
      memory: of the step.
      at_once: images on a device.
      gradients: bytes that do not depend on the images, as a share of what the step is given.
    """
    return Line((1 + gradients) * memory.arguments, (memory.temporary + memory.results) / at_once)


def _factor(memory: Memory, usable: float) -> int:
    """Returns by which power of two a batch has to be divided, at least, if what is temporary shrinks with it."""
    free = usable - memory.arguments - memory.results
    return next((factor for factor in (2, 4, 8, 16, 32) if memory.temporary / factor <= free), 64)
