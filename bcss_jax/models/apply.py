"""A model as a pure function of its arrays, the form in which the compiled steps use it.

Parameters and other state (BatchNorm statistics) travel as plain dicts, and the module is put together again inside the
compiled function, which costs less per step than passing the module.
"""

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


@dataclasses.dataclass(frozen=True)
class ImageStatistics:
    """Mean and standard deviation of RGB values between 0 and 1 that a network expects to be taken out."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# Of the ImageNet training set, as all torchvision, timm and smp weights for ImageNet expect.
IMAGENET = ImageStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def normalize(images: jax.Array, statistics: ImageStatistics = IMAGENET) -> jax.Array:
    """uint8 RGB [N, H, W, 3] -> float32 with mean 0 and standard deviation 1 by the statistics."""
    mean, std = np.asarray(statistics.mean, np.float32), np.asarray(statistics.std, np.float32)
    return (images.astype(jnp.float32) - 255.0 * mean) / (255.0 * std)


def split_model(model: nnx.Module) -> tuple[Any, dict, dict]:
    """Takes a module apart: (graph definition, parameters, other state), the last two as plain dicts of arrays."""
    graphdef, params, model_state = nnx.split(model, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)


class ModelFunction:
    """A module as a pure function of (params, model_state, images).

    Those of two modules of one structure are equal, so that what is compiled for one serves the other.
    """

    def __init__(self, model: nnx.Module, statistics: ImageStatistics | None = IMAGENET):
        """Keeps the module's structure; its arrays are given at each call. No statistics: images come normalized."""
        self._graphdef, self._params, self._rest = nnx.split(model, nnx.Param, ...)
        # Only the structure is needed; shapes in place of arrays, so that no second copy of the model stays alive.
        self._params, self._rest = jax.eval_shape(lambda: (self._params, self._rest))
        self._statistics = statistics
        self._drops_out = "dropout_keys" in inspect.signature(type(model).__call__).parameters

    def _structure(self):
        return self._graphdef, self._statistics, self._params, self._rest

    def __eq__(self, other):
        """Same structure, shapes and statistics."""
        return isinstance(other, ModelFunction) and self._structure() == other._structure()

    def __hash__(self):
        """Of structure and statistics."""
        return hash((self._graphdef, self._statistics))

    def __call__(
        self,
        params: dict,
        model_state: dict,
        images: jax.Array,
        *,
        train: bool,
        dropout_keys: jax.Array | None = None,
        frozen: tuple[str, ...] = (),
        all_logits: bool = False,
    ) -> tuple[jax.Array, dict]:
        """Runs the model.

        Args:
          params: as from `split_model`.
          model_state: as from `split_model`.
          images: [N, H, W, 3] uint8 RGB, normalized here; without statistics floats, taken as they are.
          train: batch statistics are used and updated, else the running ones.
          dropout_keys: a random key per example [N]; needed to train a model with dropout, others pass it over.
          frozen: parts of the model (attributes) that run as in evaluation even in training.
          all_logits: deep supervision: the logits of every head instead of the first alone.

        Returns:
          float32 logits [N, H, W, C], or a tuple of them at falling resolution, and the new `model_state`.
        """
        p, r = jax.tree.map(lambda x: x, self._params), jax.tree.map(lambda x: x, self._rest)
        nnx.replace_by_pure_dict(p, params)
        nnx.replace_by_pure_dict(r, model_state)
        model = nnx.merge(self._graphdef, p, r)
        model.train() if train else model.eval()
        for part in frozen:
            getattr(model, part).eval()
        keys = {"dropout_keys": dropout_keys} if self._drops_out else {}
        images = images if self._statistics is None else normalize(images, self._statistics)
        logits = (model.all_logits if all_logits else model)(images, **keys)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
