"""AdamW, gradient clipping, and the learning-rate scale that is reduced when the validation loss stalls.

The plateau scale stands outside the optimizer chain: it changes once per epoch, from a value that only the loop knows.
"""

import jax
import jax.numpy as jnp
import optax


def adamw(learning_rate: float, weight_decay: float, clip_norm: float | None = None) -> optax.GradientTransformation:
    """AdamW on all parameters, as torch.optim.AdamW(params, lr, weight_decay=...) with its defaults.

    Args:
      learning_rate: before the plateau scale.
      weight_decay: decoupled; multiplied by the learning rate.
      clip_norm: the gradients' global norm is clipped at this; None: not clipped.
    """
    chain = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    chain.append(optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay))
    return optax.chain(*chain)


class Plateau:
    """Learning-rate scale, multiplied by `factor` when the watched value stops falling.

    `patience` has PyTorch's meaning (torch.optim.lr_scheduler.ReduceLROnPlateau with its default relative threshold
    1e-4): so many epochs without improvement are borne, the next one reduces.
    """

    def __init__(self, factor: float, patience: int, min_scale: float = 0.0):
        """See the class; `min_scale`: the scale never falls below this."""
        # optax acts when the count of bad epochs reaches its patience, PyTorch when it exceeds it.
        self._tx = optax.contrib.reduce_on_plateau(
            factor=factor, patience=patience + 1, rtol=1e-4, atol=0.0, min_scale=min_scale
        )

    def init(self):
        """State before the first epoch; a pytree of arrays whose `scale` multiplies the updates."""
        return self._tx.init({"unused": jnp.zeros(())})

    def update(self, state, value: float):
        """State after an epoch that ended with the watched value `value`."""
        _, state = self._tx.update({}, state, value=jnp.asarray(value, jnp.float32))
        return jax.tree.map(jnp.asarray, state)
