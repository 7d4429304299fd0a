"""Prints a table of the networks' sizes: `python -m bcss_jax.models`.

For each network, the table lists

- its number of parameters,
- the multiplications and additions of a forward pass over one 224x224 image, as XLA counts them,
- the memory of a training step with batch size 128 on a GPU, in each type for which it has been computed,
- the largest part of that batch (`--config.micro_batches=128/part`) with which a step fits into 16 GB, of which JAX
  leaves 75 % to a program.

Memory is what XLA's compiler plans for GPUs (`python -m bcss_jax.compile_for --all --write`): computed, not measured.
"""

import math
import sys

import jax
import jax.numpy as jnp
from flax import nnx

from bcss_jax import models
from bcss_jax.accelerators.step_memory import images_that_fit, memory_line
from bcss_jax.accelerators.targets import GPU_SHARE
from bcss_jax.common import command
from bcss_jax.common.interruption import safe_point
from bcss_jax.config import DTYPES
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.models.cost import forward_flops

SIZE, BATCH, NUM_CLASSES = 224, 128, 3
MEMORY = 16e9


def main(argv: list[str] | None = None) -> int:
    """Prints the table, or the help. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv

    def parse_and_print():
        _parser().parse_args(argv)
        print_table()

    return command.run(parse_and_print, debug="--debug" in argv)


def _parser():
    parser = command.parser("python -m bcss_jax.models", __doc__)
    command.add_debug(parser)
    return parser


def print_table() -> None:
    """Prints one line per network and type."""
    titles = f"{'type':<10}{'memory at batch 128':>20}{'part that fits 16 GB':>22}"
    print(f"{'network':<18}{'parameters':>13}{'GFLOPs':>9}  {titles}")
    for name in sorted(models.MODELS):
        safe_point()
        parameters, gflops = measure(name)
        start = f"{name:<18}{parameters:>13,}{gflops:>9.1f}"
        for cells in memory_cells(name) or [("", "not computed", "")]:
            print(f"{start}  {cells[0]:<10}{cells[1]:>20}{cells[2]:>22}")
            start = " " * len(start)


def measure(name: str) -> tuple[int, float]:
    """Returns the number of parameters and the GFLOPs of a forward pass over one image."""
    size = {"image_size": SIZE} if "image_size" in models.default_arguments(name) else {}
    model = nnx.eval_shape(lambda: models.create(name, num_classes=NUM_CLASSES, **size))
    _, params, model_state = split_model(model)
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.uint8)
    flops = forward_flops(ModelFunction(model), params, model_state, images)
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params)), flops / 1e9


def memory_cells(name: str) -> list[tuple[str, str, str]]:
    """Returns type, memory at batch 128 and the part that fits, for each type that was computed."""
    cells = []
    for dtype in DTYPES:
        line = memory_line("train", {"name": name}, dtype, SIZE)
        if line:
            part = fitting_part(images_that_fit(line, GPU_SHARE * MEMORY))
            fits = f"{part} (x {BATCH // part})" if part else "none"
            cells.append((dtype, f"{(line.fixed + BATCH * line.per_image) / 1e9:.1f} GB", fits))
    return cells


def fitting_part(images: int) -> int:
    """Returns the largest divisor of the batch size that is at most as many images; 0 if there is none."""
    return max((part for part in range(1, images + 1) if BATCH % part == 0), default=0)


if __name__ == "__main__":
    command.start(main)
