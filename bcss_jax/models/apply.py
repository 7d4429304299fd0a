"""A model as a pure function of its arrays, as the compiled steps need it.

Parameters and other state (BatchNorm statistics) are passed as plain dicts, and the module is rebuilt inside the
compiled function. This costs less per step than passing the module.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bcss_jax.models.image_normalization import IMAGENET, ImageStatistics


def normalize(images: jax.Array, statistics: ImageStatistics = IMAGENET) -> jax.Array:
    """Normalizes uint8 RGB images [N, H, W, 3] by the statistics. Returns float32 of the same shape."""
    mean, std = np.asarray(statistics.mean, np.float32), np.asarray(statistics.std, np.float32)
    return (images.astype(jnp.float32) - 255.0 * mean) / (255.0 * std)


def split_model(model: nnx.Module) -> tuple[Any, dict, dict]:
    """Splits a module into graph definition, parameters and other state, the last two as plain dicts of arrays."""
    graphdef, params, model_state = nnx.split(model, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)


class ModelFunction:
    """A module as a pure function of (params, model_state, images).

    The functions of two modules with the same structure are equal, so code compiled for one is used for the other.
    """

    def __init__(self, model: nnx.Module, statistics: ImageStatistics | None = IMAGENET):
        """Stores the structure of the module; arrays are passed to each call. No statistics: images come normalized."""
        self._graphdef, self._params, self._model_state = nnx.split(model, nnx.Param, ...)
        # Only the structure is needed. Shapes in place of arrays, so that the arrays of the model can be freed.
        self._params, self._model_state = jax.eval_shape(lambda: (self._params, self._model_state))
        self._statistics = statistics
        self._drops_out = "dropout_keys" in inspect.signature(type(model).__call__).parameters

    def _structure(self):
        return self._graphdef, self._statistics, self._params, self._model_state

    def __eq__(self, other):
        """Returns whether structure, shapes and statistics are the same."""
        return isinstance(other, ModelFunction) and self._structure() == other._structure()

    def __hash__(self):
        """Returns the hash of structure and statistics."""
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
        method: str = "",
        features: Sequence[jax.Array] = (),
    ) -> tuple[Any, dict]:
        """Runs the model.

        Args:
          params: as from `split_model`.
          model_state: as from `split_model`.
          images: [N, H, W, 3] uint8 RGB, which are normalized; without statistics floats, which are not.
          train: use and update batch statistics; otherwise use the running statistics.
          dropout_keys: a random key per example [N]; needed to train a model with dropout, ignored by others.
          frozen: attributes of the model that run in evaluation mode even in training.
          method: name of the method that computes the result, if it is to be another than the logits: "all_logits" of
            every head, for deep supervision, "queries", or "encode", the features that the decoder takes.
          features: result of "encode" for the images, if it is known.

        Returns:
          float32 logits [N, H, W, C], or the result of `method`, and the new `model_state`. A model whose own logits
          have another size provides them by its method `full_size_logits`.
        """
        param_variables, state_variables = jax.tree.map(lambda x: x, (self._params, self._model_state))
        nnx.replace_by_pure_dict(param_variables, params)
        nnx.replace_by_pure_dict(state_variables, model_state)
        model: Any = nnx.merge(self._graphdef, param_variables, state_variables)
        model.train() if train else model.eval()
        for name in frozen:
            getattr(model, name).eval()
        keys = {"dropout_keys": dropout_keys} if self._drops_out else {}
        known = {"encoded": list(features)} if features else {}
        images = images if self._statistics is None else normalize(images, self._statistics)
        forward = getattr(model, method) if method else getattr(model, "full_size_logits", model)
        logits = forward(images, **keys, **known)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
