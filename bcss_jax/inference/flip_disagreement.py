"""How much the flips and turns of an image disagree when a network predicts each of them.

The measure at a pixel is the share of the pairs of flips whose most probable classes differ: one minus the agreement by
which Fleiss' kappa rates an item (Fleiss 1971). It is 0 where all agree.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bcss_jax.inference.predict import log_probabilities_from_logits, over_views, views
from bcss_jax.labels import LabelScheme
from bcss_jax.models.apply import ModelFunction


@functools.partial(jax.jit, static_argnums=(0, 1))
def log_probabilities_and_disagreement(
    function: ModelFunction, scheme: LabelScheme, params: dict, model_state: dict, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean over the flips and turns of images, and how much these disagree.

    Args:
      function: the model.
      scheme: its label scheme.
      params: parameters of the model.
      model_state: other state of the model, such as batch statistics.
      images: uint8 [N, H, W, 3].

    Returns:
      `predict.log_probabilities` with test-time augmentation, float32 [N, H, W, C], and the share of the pairs of flips
      that disagree, float32 [N, H, W].
    """

    def predict(images):
        return log_probabilities_from_logits(scheme, function(params, model_state, images, train=False)[0])

    def add(carry, one):
        total, votes = carry
        return jnp.logaddexp(total, one), votes + jax.nn.one_hot(jnp.argmax(one, -1), scheme.num_classes)

    shape = (*images.shape[:3], scheme.num_classes)
    nothing = jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.float32)
    total, votes = over_views(predict, images, add, nothing)
    count = len(views(*images.shape[1:3], tta=True))
    agreeing = (votes * (votes - 1)).sum(-1) / (count * (count - 1))
    return total - np.float32(np.log(count)), 1 - agreeing
