"""The table of `python -m bcss_jax.compile_for --all`: the training step of every network on one target."""

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import jax

from bcss_jax import models
from bcss_jax.accelerators.hlo_text import read_program
from bcss_jax.accelerators.roofline import Roofline, roofline
from bcss_jax.accelerators.steps import DoesNotFit, Memory, compile_step, recipe
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


@dataclasses.dataclass(frozen=True)
class Measured:
    """The training step of a network, as compiled.

    Attributes:
      model: name of the network.
      micro_batches: parts of the batch, the fewest power of two that fit.
      memory: of each device.
      bytes: moved between a device and its memory.
      operations: of convolutions and matrix products of a device.
      least: time of a step.
      seconds: that compiling took.
    """

    model: str
    micro_batches: int
    memory: Memory
    bytes: int
    operations: float
    least: Roofline
    seconds: float


def print_table(target: Target, devices: int, dtype: str, batch: int, side: int) -> None:
    """Prints the table in Markdown, row by row.

    Each network is compiled in a process of its own, because the compiler may end the process.

    Args:
      target: to compile for.
      devices: that share a batch.
      dtype: type of the computation.
      batch: images of a batch.
      side: of the images, in pixels.
    """
    print(f"{target.device} x {devices}, {dtype}, batch {batch}, {side} pixels; computed from the compiled program")
    for row in (COLUMNS, ["---"] * len(COLUMNS)):
        print(f"| {' | '.join(row)} |", flush=True)
    for model in sorted(models.MODELS):
        safe_point()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            try:
                found = process.submit(measure, target, devices, model, dtype, batch, side).result()
            except (ConfigError, DoesNotFit) as error:
                print(f"| `{model}` | {first_line(error)} |{' |' * (len(COLUMNS) - 2)}", flush=True)
                continue
            except BrokenProcessPool:
                print(f"| `{model}` | the compiler ends the process |{' |' * (len(COLUMNS) - 2)}", flush=True)
                continue
        print(f"| {' | '.join(_cells(found, target, batch, devices))} |", flush=True)


def _cells(found: Measured, target: Target, batch: int, devices: int) -> list[str]:
    at_once = batch // devices // found.micro_batches
    parts = f" (`--config.micro_batches={found.micro_batches}`)" if found.micro_batches > 1 else ""
    least = found.least
    return [
        f"`{found.model}`",
        f"{at_once}{parts}",
        f"{found.memory.total() / 1e9:.1f} of {target.usable / 1e9:.1f} GB",
        f"{found.bytes / 1e9:.0f} GB",
        f"{found.operations / 1e12:.1f}",
        f"{1e3 * least.total:.0f} ({1e3 * least.memory:.0f}, {1e3 * least.arithmetic:.0f})",
        f"{batch / least.total:.0f}",
        f"{found.seconds:.0f} s",
    ]


def measure(target: Target, devices: int, model: str, dtype: str, batch: int, side: int) -> Measured:
    """Compiles the training step of a network in as few micro-batches, a power of two, as fit.

    Args:
      target: see `print_table`.
      devices: see `print_table`.
      model: name of the network.
      dtype: see `print_table`.
      batch: see `print_table`.
      side: see `print_table`.

    Raises:
      ConfigError: the compiler fails.
      DoesNotFit: a single image on each device needs more memory than there is.
    """
    jax.config.update("jax_platforms", "cpu")
    mesh = make_mesh(describe_devices(target, devices))
    parts = 1
    while batch % (parts * devices) == 0:
        config = recipe(model, dtype, batch, parts, side)
        try:
            step = compile_step("train", config, find_scheme(config.labels), mesh, side)
        except DoesNotFit:
            parts *= 2
            continue
        if step.memory.total() <= target.usable:
            found = account(read_program(step.text))
            least = roofline(found, target)
            return Measured(model, parts, step.memory, found.bytes(), found.operations(), least, step.seconds)
        parts *= _factor(step.memory, target.usable)
    raise DoesNotFit("a single image does not fit")


def _factor(memory: Memory, usable: float) -> int:
    """Returns by which power of two a batch has to be divided, at least, if what is temporary shrinks with it."""
    free = usable - memory.arguments - memory.results
    return next((factor for factor in (2, 4, 8, 16, 32) if memory.temporary / factor <= free), 64)
