"""Table of the networks' sizes: `python -m bcss_jax.models`.

Per network: parameters; multiplications and additions of a forward pass over one 224x224 image, as XLA counts them; what
a training step at batch 128 keeps for the way back; and the largest part of that batch (`--config.micro_batches=128/part`)
with which a step fits 16 GB. Kept are the arrays that JAX's differentiation saves, before XLA fuses or frees any, plus
parameters, gradients and AdamW's two moments. Nothing is run: the networks are only traced.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from bcss_jax import losses, models
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.models.cost import forward_flops

SIZE, BATCH, NUM_CLASSES = 224, 128, 3
MEMORY = 16e9
SPARE = 0.9  # the share of it that a framework leaves to a program


def main() -> None:
    """Prints the table."""
    print(f"{'network':<16}{'parameters':>13}{'GFLOPs':>9}{'activations at batch 128':>26}{'part that fits 16 GB':>22}")
    for name in sorted(models.MODELS):
        parameters, gflops, per_image = measure(name)
        part = fitting_part(parameters, per_image)
        print(
            f"{name:<16}{parameters:>13,}{gflops:>9.1f}{BATCH * per_image / 1e9:>23.1f} GB"
            f"{f'{part} (x {BATCH // part})' if part else 'none':>22}"
        )


def measure(name: str) -> tuple[int, float, float]:
    """Parameters, GFLOPs of a forward pass over one image, and bytes that training keeps per image."""
    model = nnx.eval_shape(lambda: models.create(name, num_classes=NUM_CLASSES))
    _, params, model_state = split_model(model)
    run = ModelFunction(model)
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.uint8)
    flops = forward_flops(run, params, model_state, images)

    def saved(batch):
        """Bytes of all arrays that the way back through a batch needs, parameters and input apart."""
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
        given = jax.ShapeDtypeStruct((batch, SIZE, SIZE, 3), jnp.uint8)
        labels = jax.ShapeDtypeStruct((batch, SIZE, SIZE), jnp.uint8)

        def pullback(params, model_state, images, labels, keys):
            def loss(params):
                logits, rest_after = run(params, model_state, images, train=True, dropout_keys=keys)
                return losses.ce_dice(logits, labels, losses.Objective(NUM_CLASSES, ignore_index=0)), rest_after

            return jax.vjp(loss, params, has_aux=True)[1]

        kept = jax.eval_shape(pullback, params, model_state, given, labels, keys)
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(kept))

    # What two images need more than one: what does not grow with the batch (parameters) drops out.
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params)), flops / 1e9, float(saved(2) - saved(1))


def fitting_part(parameters: int, bytes_per_image: float) -> int:
    """The largest divisor of the batch whose activations fit beside the state; 0 if not even one image does."""
    free = SPARE * MEMORY - 4 * 4 * parameters
    return max(
        (part for part in range(1, BATCH + 1) if BATCH % part == 0 and part * bytes_per_image <= free), default=0
    )


if __name__ == "__main__":
    main()
