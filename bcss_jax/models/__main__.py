"""Prints a table of the networks' sizes: `python -m bcss_jax.models`.

For each network, the table lists

- its number of parameters,
- the multiplications and additions of a forward pass over one 224x224 image, as XLA counts them,
- the memory of the activations that a training step with batch size 128 stores for the backward pass: the arrays that
  JAX's differentiation saves, before XLA fuses or frees any,
- the largest part of that batch (`--config.micro_batches=128/part`) with which a step fits into 16 GB, including
  parameters, gradients and AdamW's two moments.

The networks are only traced, not run.
"""

import math
import sys

import jax
import jax.numpy as jnp
from flax import nnx

from bcss_jax import losses, models
from bcss_jax.common import command
from bcss_jax.common.interruption import safe_point
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.models.cost import forward_flops

SIZE, BATCH, NUM_CLASSES = 224, 128, 3
MEMORY = 16e9
USABLE = 0.9  # share of the memory that the framework leaves to a program


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
    """Prints one line per network."""
    print(f"{'network':<16}{'parameters':>13}{'GFLOPs':>9}{'activations at batch 128':>26}{'part that fits 16 GB':>22}")
    for name in sorted(models.MODELS):
        safe_point()
        parameters, gflops, per_image = measure(name)
        part = fitting_part(parameters, per_image)
        print(
            f"{name:<16}{parameters:>13,}{gflops:>9.1f}{BATCH * per_image / 1e9:>23.1f} GB"
            f"{f'{part} (x {BATCH // part})' if part else 'none':>22}"
        )


def measure(name: str) -> tuple[int, float, float]:
    """Returns the number of parameters, the GFLOPs of a forward pass over one image, and the stored bytes per image."""
    model = nnx.eval_shape(lambda: models.create(name, num_classes=NUM_CLASSES))
    _, params, model_state = split_model(model)
    run = ModelFunction(model)
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.uint8)
    flops = forward_flops(run, params, model_state, images)

    def stored_bytes(batch):
        """Returns the bytes of all arrays that the backward pass needs, apart from parameters and input."""
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
        batch_images = jax.ShapeDtypeStruct((batch, SIZE, SIZE, 3), jnp.uint8)
        labels = jax.ShapeDtypeStruct((batch, SIZE, SIZE), jnp.uint8)

        def pullback(params, model_state, images, labels, keys):
            def loss(params):
                logits, new_state = run(params, model_state, images, train=True, dropout_keys=keys)
                return losses.ce_dice(logits, labels, losses.Objective(NUM_CLASSES, ignore_index=0)), new_state

            return jax.vjp(loss, params, has_aux=True)[1]

        residuals = jax.eval_shape(pullback, params, model_state, batch_images, labels, keys)
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(residuals))

    # The difference between two images and one excludes everything that does not grow with the batch, such as
    # parameters.
    return (
        sum(math.prod(p.shape) for p in jax.tree.leaves(params)),
        flops / 1e9,
        float(stored_bytes(2) - stored_bytes(1)),
    )


def fitting_part(parameters: int, bytes_per_image: float) -> int:
    """Returns the largest divisor of the batch size that fits next to the training state; 0 if no image fits."""
    free = USABLE * MEMORY - 4 * 4 * parameters
    return max(
        (part for part in range(1, BATCH + 1) if BATCH % part == 0 and part * bytes_per_image <= free), default=0
    )


if __name__ == "__main__":
    command.start(main)
