"""AdamW with a schedule in every value, as DINO and DINOv2 use it.

Sources: `get_params_groups`, `clip_gradients` and `cancel_gradients_last_layer` of github.com/facebookresearch/dino;
`get_params_groups_with_decay` of github.com/facebookresearch/dinov2.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

LAST_LAYER = ("directions", "lengths")  # parameters of `ProjectionHead`
HEADS = ("head", "patch_head")
PATCH_EMBEDDING = ("patch_kernel", "patch_bias")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """What does not change from step to step.

    Attributes:
      clip_norm: largest norm of gradients; 0: no clipping.
      clip: norms are those of each tensor (DINO), or of the encoder and each head (DINOv2).
      layer_decay: factor on the learning rate from each block to the one before it.
      patch_embedding_scale: further factor on the learning rate of the patch embedding.
    """

    clip_norm: float = 3.0
    clip: Literal["tensor", "part"] = "tensor"
    layer_decay: float = 1.0
    patch_embedding_scale: float = 1.0


class PretrainingOptimizer:
    """AdamW on the parameters of a `PretrainedNetwork`, with PyTorch's defaults.

    Vectors, which are biases, scales and norms, do not decay. The last layer of the heads has a state of its own, which
    stays as it is while that layer is passed over.
    """

    def __init__(self, settings: OptimizerSettings, params: dict):
        """Builds the optimizer for parameters of these names and shapes."""
        self._settings = settings
        self._tx = optax.partition(
            {name: optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8) for name in ("last_layer", "others")},
            jax.tree.map_with_path(lambda path, _: "last_layer" if _is_last_layer(path) else "others", params),
        )
        self._scales = jax.tree.map_with_path(
            lambda path, _: self._scale(path, len(params["encoder"]["blocks"])), params
        )

    def init(self, params: dict) -> Any:
        """Returns the state before the first step."""
        return self._tx.init(params)

    def update(self, gradients: dict, state: Any, params: dict, values: dict) -> tuple[dict, Any]:
        """Takes a step.

        Args:
          gradients: of the loss, float32.
          state: of the optimizer.
          params: before the step.
          values: of `Schedules.at`.

        Returns:
          The new parameters and the new state.
        """
        new_state: Any
        updates, new_state = self._tx.update(self._clipped(gradients), state, params)

        def moved(path, param, update, scale):
            last = _is_last_layer(path)
            rate = scale * (values["last_layer_learning_rate"] if last else values["learning_rate"])
            decay = values["weight_decay"] if param.ndim > 1 else 0.0
            new = param - rate * (update + decay * param)
            return jnp.where(values["trains_last_layer"] > 0, new, param) if last else new

        new_params = jax.tree.map_with_path(moved, params, updates, self._scales)
        inner = dict(new_state.inner_states)
        inner["last_layer"] = jax.tree.map(
            lambda new, old: jnp.where(values["trains_last_layer"] > 0, new, old),
            new_state.inner_states["last_layer"],
            state.inner_states["last_layer"],
        )
        return new_params, new_state._replace(inner_states=inner)

    def _clipped(self, gradients: dict) -> dict:
        largest = self._settings.clip_norm
        if not largest:
            return gradients

        def clipped(part):
            factor = jnp.minimum(largest / (optax.tree.norm(part) + 1e-6), 1)
            return jax.tree.map(lambda g: g * factor, part)

        if self._settings.clip == "tensor":
            return jax.tree.map(clipped, gradients)
        return {name: clipped(part) for name, part in gradients.items()}

    def _scale(self, path: tuple, depth: int) -> float:
        names = [getattr(key, "key", None) for key in path]
        if names[0] != "encoder":
            return 1.0
        if names[1] == "blocks":
            layer = int(str(names[2])) + 1
        else:
            layer = depth + 1 if names[1] == "norm" else 0
        embedding = self._settings.patch_embedding_scale if names[1] in PATCH_EMBEDDING else 1.0
        return self._settings.layer_decay ** (depth + 1 - layer) * embedding


def _is_last_layer(path: tuple) -> bool:
    names = [getattr(key, "key", None) for key in path]
    return names[0] in HEADS and names[1] in LAST_LAYER
