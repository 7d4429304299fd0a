"""AdamW and SGD, gradient clipping, and the learning-rate scale that changes from epoch to epoch.

The scale is not part of the optimizer chain: it changes once per epoch, and the plateau rule needs the validation loss,
which only the loop knows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


def adamw(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """Returns AdamW on all parameters, as torch.optim.AdamW(params, lr, weight_decay=...) with its defaults.

    Args:
      learning_rate: before it is multiplied by the scale.
      weight_decay: decoupled; multiplied by the learning rate.
    """
    return optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)


def sgd(learning_rate: float, weight_decay: float, momentum: float) -> optax.GradientTransformation:
    """Returns SGD with Nesterov momentum on all parameters, as torch.optim.SGD(params, lr, momentum, nesterov=True).

    Args:
      learning_rate: before it is multiplied by the scale.
      weight_decay: times the parameter, added to the gradient, as in PyTorch.
      momentum: weight of the previous update.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum, nesterov=True)
    )


def separate_encoder_optimizer(
    encoder: optax.GradientTransformation, others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Returns an optimizer with separate states for params["encoder"] and for all other parameters."""

    def groups(params):
        return {
            name: jax.tree.map(lambda _, name=name: "encoder" if name == "encoder" else "others", tree)
            for name, tree in params.items()
        }

    return optax.partition({"encoder": encoder, "others": others}, groups)


def clipped(tx: optax.GradientTransformation, norm: float | None) -> optax.GradientTransformation:
    """Returns `tx` with gradients clipped to a global norm first, as clip_grad_norm_; None: `tx` itself."""
    return tx if norm is None else optax.chain(optax.clip_by_global_norm(norm), tx)


class Plateau:
    """Learning-rate scale, multiplied by `factor` when the watched value stops falling.

    `patience` has PyTorch's meaning (torch.optim.lr_scheduler.ReduceLROnPlateau with its default relative threshold
    1e-4): the scale is reduced after `patience` + 1 epochs without improvement.
    """

    def __init__(self, factor: float, patience: int, min_scale: float = 0.0):
        """Stores the rule; the scale never falls below `min_scale`."""
        # optax acts when the count of bad epochs reaches its patience, PyTorch when it exceeds it.
        self._tx = optax.contrib.reduce_on_plateau(
            factor=factor, patience=patience + 1, rtol=1e-4, atol=0.0, min_scale=min_scale
        )

    def init(self):
        """Returns the state before the first epoch: a pytree of arrays whose `scale` multiplies the updates."""
        return self._tx.init({"unused": jnp.zeros(())})

    def update(self, state, value: float):
        """Returns the state after an epoch that ended with the watched value `value`."""
        _, state = self._tx.update({}, state, value=jnp.asarray(value, jnp.float32))
        return jax.tree.map(jnp.asarray, state)


class PolyState(NamedTuple):
    """State of `Poly`."""

    scale: jax.Array
    epochs_done: jax.Array


class Poly:
    """Learning-rate scale (1 - epoch / epochs)^power, nnU-Net's and DeepLab's schedule, one value per epoch."""

    def __init__(self, epochs: int, power: float = 0.9):
        """Stores the total number of epochs and the exponent."""
        self._epochs, self._power = epochs, power

    def init(self) -> PolyState:
        """Returns the state before the first epoch; its `scale` is 1."""
        return PolyState(jnp.float32(1), jnp.int32(0))

    def update(self, state: PolyState, value: float) -> PolyState:
        """Returns the state after one more epoch; the value is not used."""
        del value
        done = int(state.epochs_done) + 1
        return PolyState(jnp.float32(max(1 - done / self._epochs, 0) ** self._power), jnp.int32(done))
