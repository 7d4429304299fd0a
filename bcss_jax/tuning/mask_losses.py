"""The losses of SAM: focal and Dice loss of masks, squared error of scores; only pixels with ground truth count.

Source: Kirillov et al. 2023 (arXiv:2304.02643), appendix A: focal 20 to Dice 1, and 1 for the scores; of several masks
for an ambiguous prompt only the one with the lowest loss is trained. Scores are trained for all masks, as SAM 2 does
(Ravi et al. 2024, arXiv:2408.00714).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

FOCAL_WEIGHT, DICE_WEIGHT, SCORE_WEIGHT = 20.0, 1.0, 1.0
GAMMA = 2.0  # Lin et al. 2017, arXiv:1708.02002
ALPHA = 0.5  # weight of the object's pixels; their 0.25, for rare objects, keeps an untrained decoder at empty masks


class MaskLosses(NamedTuple):
    """What masks lack, each float32 (P, M).

    Attributes:
      focal: mean over the pixels with ground truth.
      dice: 1 - (2 |p t| + 1) / (|p| + |t| + 1), with p the probabilities.
      iou: intersection over union of the mask with the object, without a gradient; 1 if both are empty.
    """

    focal: jax.Array
    dice: jax.Array
    iou: jax.Array

    @property
    def total(self) -> jax.Array:
        """Sum of focal and Dice loss with their weights."""
        return FOCAL_WEIGHT * self.focal + DICE_WEIGHT * self.dice


def mask_losses(logits: jax.Array, mask: jax.Array, known: jax.Array) -> MaskLosses:
    """Returns the losses of masks.

    Args:
      logits: float32 (P, M, H, W).
      mask: bool (P, H, W), the object.
      known: bool (P, H, W), pixels with ground truth. What stands elsewhere changes neither loss nor gradient.
    """
    known = known[:, None]
    target = (mask[:, None] & known).astype(jnp.float32)
    x = jnp.where(known, logits, 0)
    weight = known.astype(jnp.float32)
    probability = jax.nn.sigmoid(x)
    cross_entropy = jax.nn.softplus(x) - x * target
    wrong = jnp.where(target > 0, 1 - probability, probability)
    focal = jnp.where(target > 0, ALPHA, 1 - ALPHA) * wrong**GAMMA * cross_entropy * weight
    focal = focal.sum((2, 3)) / jnp.maximum(weight.sum((2, 3)), 1)
    p, t = probability * weight, target
    dice = 1 - (2 * (p * t).sum((2, 3)) + 1) / (p.sum((2, 3)) + t.sum((2, 3)) + 1)
    found = (x > 0) & known
    both = (found & (t > 0)).sum((2, 3))
    either = (found | (t > 0)).sum((2, 3))
    iou = jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)
    return MaskLosses(focal, dice, jax.lax.stop_gradient(iou))


def prompt_loss(losses: MaskLosses, scores: jax.Array, ambiguous: jax.Array) -> jax.Array:
    """Returns the loss of P prompts, float32 (P,).

    Args:
      losses: of all masks, the one for clear prompts first.
      scores: float32 (P, M), the intersection over union that the network expects.
      ambiguous: bool (P,). Of the masks for ambiguous prompts, the one with the lowest loss is trained, and all their
        scores; a clear prompt trains its one mask and score.
    """
    errors = jnp.square(scores - losses.iou)
    # Not `min`: its gradient compares the losses with the lowest again, and is NaN where a compiler rounds differently.
    totals = losses.total[:, 1:]
    lowest = jnp.take_along_axis(totals, jax.lax.stop_gradient(totals).argmin(1)[:, None], axis=1)[:, 0]
    several = lowest + SCORE_WEIGHT * errors[:, 1:].mean(1)
    return jnp.where(ambiguous, several, losses.total[:, 0] + SCORE_WEIGHT * errors[:, 0])
