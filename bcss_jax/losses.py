"""Cross-entropy and soft Dice over the pixels that have a ground truth.

Both losses are computed from sums over pixels (`loss_sums`), which `loss_from_sums` turns into a number. Sums can be
added: the loss of a batch that is computed in micro-batches or on several devices, and the loss of a whole validation
split, are exactly the loss of all pixels together. Pixels with the ignored label are masked before the softmax, so
their logits do not change a bit of the loss or its gradient.

Source: cross-entropy as torch.nn.functional.cross_entropy(ignore_index), Dice as monai.losses.DiceLoss(softmax=True)
with p + g denominators and the ignored pixels masked out, their sum as nnU-Net's DC_and_CE_loss (which counts -Dice,
so this sum is 1 larger).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

LossSums = dict[str, jax.Array]

# Far below any logit, yet finite: exp() of it is 0 and 0 times it is 0, where -inf would give NaN.
_SUPPRESSED = -1e30


@dataclasses.dataclass(frozen=True)
class Objective:
    """What training minimizes and evaluation counts: the labels, and the settings of cross-entropy and Dice.

    It describes the output of the network alone. How images are normalized before they enter the network is part of
    `models.apply.ModelFunction`.

    Attributes:
      num_classes: number of logits.
      ignore_index: label of the pixels without ground truth; None: every pixel counts.
      classes: evaluated labels: the Dice is their mean, and predictions are chosen among them. Empty: all but class
        0, the background.
      dice_batch: one Dice per class over the whole batch; otherwise one per image and class. Images that are ignored
        as a whole are left out of the mean.
      smooth: added to numerator and denominator of the Dice.
      suppress_ignored_logit: leave the ignored class out of the softmax (only where 0 <= ignore_index < num_classes).
      deep_supervision: weights of the losses at all heads of the network, full resolution first
        (`deep_supervision_weights`); empty: the network has one head.
      queries: training minimizes the loss of `models.decoders.query_loss` instead of cross-entropy and Dice, which are
        then only reported.
    """

    num_classes: int
    ignore_index: int | None = None
    classes: tuple[int, ...] = ()
    dice_batch: bool = True
    smooth: float = 1e-5
    suppress_ignored_logit: bool = False
    deep_supervision: tuple[float, ...] = ()
    queries: bool = False

    def __post_init__(self):
        """Fills in the default classes.

        Raises:
          ValueError: a class is not one of the logits.
        """
        if not self.classes:
            object.__setattr__(self, "classes", tuple(range(1, self.num_classes)))
        if not self.classes or not all(0 <= label < self.num_classes for label in self.classes):
            raise ValueError(f"classes {self.classes} must name some of the {self.num_classes} logits")

    @property
    def head_weights(self) -> tuple[float, ...]:
        """Weight of the loss at each head; one head without deep supervision."""
        return self.deep_supervision or (1.0,)


def cross_entropy(logits: jax.Array, labels: jax.Array, objective: Objective) -> jax.Array:
    """Returns the mean cross-entropy over the pixels that are not ignored.

    Args:
      logits: [N, H, W, C] floats.
      labels: [N, H, W] integers.
      objective: says which pixels and logits count.

    Returns:
      Scalar float32; 0 where no pixel counts.
    """
    return ce_dice_parts(loss_sums(logits, labels, objective), objective)[0]


def soft_dice(logits: jax.Array, labels: jax.Array, objective: Objective) -> jax.Array:
    """Returns the mean over classes of 1 - (2 |p g| + smooth) / (|p| + |g| + smooth), p the softmax and g the truth.

    Args:
      logits: [N, H, W, C] floats.
      labels: [N, H, W] integers.
      objective: says which pixels, logits and classes count.

    Returns:
      Scalar float32; 0 where no pixel counts.
    """
    return ce_dice_parts(loss_sums(logits, labels, objective), objective)[1]


def ce_dice(logits: jax.Array, labels: jax.Array, objective: Objective) -> jax.Array:
    """Returns `cross_entropy` + `soft_dice`, a scalar float32."""
    return loss_from_sums(loss_sums(logits, labels, objective), objective)


def loss_sums(logits: jax.Array, labels: jax.Array, objective: Objective) -> LossSums:
    """Returns the sums over pixels that `loss_from_sums` needs. The sums of two sets of images can be added.

    Args:
      logits: [N, H, W, C] floats.
      labels: [N, H, W] integers.
      objective: says which pixels, logits and classes count.

    Returns:
      `cross_entropy` (sum over pixels), `pixels` (number of pixels that count), and for the Dice either `overlap`,
      `predicted` and `truth` (one entry per class; `dice_batch=True`) or `dice` and `images` (sum over images;
      `dice_batch=False`).

    Raises:
      ValueError: the shapes do not fit together.
    """
    num_classes, ignore_index = logits.shape[-1], objective.ignore_index
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} do not cover the same pixels")
    if num_classes != objective.num_classes:
        raise ValueError(f"logits {logits.shape} do not have the {objective.num_classes} classes of the objective")

    logits = logits.astype(jnp.float32)
    labels = labels.astype(jnp.int32)
    counts = jnp.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    logits = jnp.where(counts[..., None], logits, 0.0)
    if objective.suppress_ignored_logit and ignore_index is not None and 0 <= ignore_index < num_classes:
        logits = jnp.where(jnp.arange(num_classes) == ignore_index, _SUPPRESSED, logits)

    log_p = jax.nn.log_softmax(logits)
    truth = (labels[..., None] == jnp.arange(num_classes)) & counts[..., None]
    sums = {
        "cross_entropy": -jnp.sum(jnp.where(truth, log_p, 0.0)),
        "pixels": jnp.sum(counts, dtype=jnp.float32),
    }

    p = jnp.where(counts[..., None], jnp.exp(log_p), 0.0)[..., objective.classes]
    g = truth[..., objective.classes].astype(jnp.float32)
    axes = (0, 1, 2) if objective.dice_batch else (1, 2)
    overlap, predicted, true = jnp.sum(p * g, axes), jnp.sum(p, axes), jnp.sum(g, axes)
    if objective.dice_batch:
        return sums | {"overlap": overlap, "predicted": predicted, "truth": true}
    dice = jnp.mean(_dice_loss(overlap, predicted, true, objective.smooth), axis=-1)
    has_truth = jnp.any(counts, axis=(1, 2))
    return sums | {
        "dice": jnp.sum(jnp.where(has_truth, dice, 0.0)),
        "images": jnp.sum(has_truth, dtype=jnp.float32),
    }


def loss_from_sums(sums: Mapping[str, Any], objective: Objective) -> jax.Array:
    """Returns cross-entropy + Dice of the pixels in `sums`, a scalar. Works on jax and NumPy arrays."""
    ce, dice = ce_dice_parts(sums, objective)
    return ce + dice


def ce_dice_parts(sums: Mapping[str, Any], objective: Objective) -> tuple[jax.Array, jax.Array]:
    """Returns the two terms of `loss_from_sums`: (cross-entropy, Dice loss), scalars."""
    ce = sums["cross_entropy"] / jnp.maximum(sums["pixels"], 1.0)
    if "overlap" in sums:
        return ce, jnp.mean(_dice_loss(sums["overlap"], sums["predicted"], sums["truth"], objective.smooth))
    return ce, sums["dice"] / jnp.maximum(sums["images"], 1.0)


def _dice_loss(overlap, predicted, truth, smooth):
    # Without smoothing and without pixels it is 0 / 0; the loss is 0 then. The inner `where` keeps NaN out of the
    # gradient.
    total = predicted + truth + smooth
    return jnp.where(total > 0, 1.0 - (2.0 * overlap + smooth) / jnp.where(total > 0, total, 1.0), 0.0)


def deep_supervision_weights(heads: int) -> tuple[float, ...]:
    """Returns nnU-Net's weights of the losses at all resolutions.

    Full resolution comes first. Each weight is half of the one before, the last is 0, and their sum is 1.
    """
    weights = [0.0 if heads > 1 and head == heads - 1 else 0.5**head for head in range(heads)]
    return tuple(weight / sum(weights) for weight in weights)


def deep_supervision_sums(
    all_logits: Sequence[jax.Array], labels: jax.Array, objective: Objective
) -> tuple[LossSums, ...]:
    """Returns the `loss_sums` at every head whose weight is not 0.

    Args:
      all_logits: [N, H, W, C], then the same at decreasing resolutions.
      labels: [N, H, W]. A smaller map takes the labels nearest to its pixel centers (PyTorch's "nearest-exact").
      objective: with one weight per head.
    """
    return tuple(
        loss_sums(logits, _resized(labels, logits.shape[1:3]), objective)
        for logits, weight in zip(all_logits, objective.head_weights, strict=True)
        if weight
    )


def deep_supervision_loss(sums: Sequence[LossSums], objective: Objective) -> jax.Array:
    """Returns the weighted sum of `loss_from_sums` over the heads, as nnU-Net's DeepSupervisionWrapper; a scalar."""
    counted = [weight for weight in objective.head_weights if weight]
    losses = (weight * loss_from_sums(each, objective) for weight, each in zip(counted, sums, strict=True))
    return cast(jax.Array, sum(losses))


def _resized(labels, shape):
    rows, columns = (
        ((np.arange(to) + 0.5) * (size / to)).astype(int) for to, size in zip(shape, labels.shape[1:3], strict=True)
    )
    return labels if tuple(shape) == labels.shape[1:3] else labels[:, rows][:, :, columns]
