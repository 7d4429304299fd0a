"""Cross-entropy and soft Dice over the pixels that carry truth.

Both losses are built from sums over pixels (`loss_sums`), turned into a number by `loss_from_sums`. Sums of parts add
up, so a batch computed in micro-batches, on many devices, or a whole validation split gives exactly the loss of the
whole. Pixels of the ignored label are masked before the softmax: whatever stands in their logits, loss and gradients
keep every bit.

Source: cross-entropy as torch.nn.functional.cross_entropy(ignore_index), Dice as monai.losses.DiceLoss(softmax=True)
with p + g denominators and the ignored pixels masked out, their sum as nnU-Net's DC_and_CE_loss (which counts -Dice,
so this sum is 1 larger).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

LossSums = dict[str, jax.Array]

# Far below any logit, yet finite: exp() of it is 0 and 0 times it is 0, where -inf would give NaN.
_SUPPRESSED = -1e30


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_index: int | None = None,
    classes: Sequence[int] | None = None,
    batch: bool = True,
    smooth: float = 1e-5,
    suppress_ignored_logit: bool = False,
) -> jax.Array:
    """Mean cross-entropy over the pixels that are not ignored.

    Args:
      logits: [N, H, W, C] floats.
      labels: [N, H, W] integers.
      ignore_index: label without truth; None: every pixel counts.
      classes: taken so that all three losses are called alike; concerns the Dice only.
      batch: as `classes`.
      smooth: as `classes`.
      suppress_ignored_logit: leave the ignored class out of the softmax (only where 0 <= ignore_index < C).

    Returns:
      Scalar float32; 0 where no pixel counts.
    """
    del classes, batch, smooth
    return ce_dice_parts(
        loss_sums(logits, labels, ignore_index=ignore_index, suppress_ignored_logit=suppress_ignored_logit)
    )[0]


def soft_dice(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_index: int | None = None,
    classes: Sequence[int] | None = None,
    batch: bool = True,
    smooth: float = 1e-5,
    suppress_ignored_logit: bool = False,
) -> jax.Array:
    """Mean over classes of 1 - (2 |p g| + smooth) / (|p| + |g| + smooth), p the softmax and g the truth.

    Args:
      logits: [N, H, W, C] floats.
      labels: [N, H, W] integers.
      ignore_index: label without truth; None: every pixel counts.
      classes: those that count in the mean; None: all but class 0, the background.
      batch: one Dice per class over the whole batch, else one per image and class. Images that are ignored as a whole
        have no part in the mean.
      smooth: added to numerator and denominator.
      suppress_ignored_logit: leave the ignored class out of the softmax (only where 0 <= ignore_index < C).

    Returns:
      Scalar float32; 0 where no pixel counts.
    """
    sums = loss_sums(
        logits,
        labels,
        ignore_index=ignore_index,
        classes=classes,
        batch=batch,
        smooth=smooth,
        suppress_ignored_logit=suppress_ignored_logit,
    )
    return ce_dice_parts(sums, smooth=smooth)[1]


def ce_dice(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_index: int | None = None,
    classes: Sequence[int] | None = None,
    batch: bool = True,
    smooth: float = 1e-5,
    suppress_ignored_logit: bool = False,
) -> jax.Array:
    """`cross_entropy` + `soft_dice`; arguments as there. Returns a scalar float32."""
    sums = loss_sums(
        logits,
        labels,
        ignore_index=ignore_index,
        classes=classes,
        batch=batch,
        smooth=smooth,
        suppress_ignored_logit=suppress_ignored_logit,
    )
    return loss_from_sums(sums, smooth=smooth)


def loss_sums(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_index: int | None = None,
    classes: Sequence[int] | None = None,
    batch: bool = True,
    smooth: float = 1e-5,
    suppress_ignored_logit: bool = False,
) -> LossSums:
    """What `loss_from_sums` needs of some images; the sums of two sets of images add up. Arguments as `soft_dice`.

    Returns:
      `cross_entropy` (sum over pixels), `pixels` (how many count), and for the Dice either `overlap`, `predicted` and
      `truth` (one entry per class; `batch=True`) or `dice` and `images` (sum over images; `batch=False`).

    Raises:
      ValueError: shapes that do not belong together, or a class that is no logit.
    """
    num_classes = logits.shape[-1]
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} do not cover the same pixels")
    classes = tuple(range(1, num_classes)) if classes is None else tuple(classes)
    if not classes or not all(0 <= c < num_classes for c in classes):
        raise ValueError(f"classes {classes} must name some of the {num_classes} logits")

    logits = logits.astype(jnp.float32)
    labels = labels.astype(jnp.int32)
    counts = jnp.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    logits = jnp.where(counts[..., None], logits, 0.0)
    if suppress_ignored_logit and ignore_index is not None and 0 <= ignore_index < num_classes:
        logits = jnp.where(jnp.arange(num_classes) == ignore_index, _SUPPRESSED, logits)

    log_p = jax.nn.log_softmax(logits)
    truth = (labels[..., None] == jnp.arange(num_classes)) & counts[..., None]
    sums = {
        "cross_entropy": -jnp.sum(jnp.where(truth, log_p, 0.0)),
        "pixels": jnp.sum(counts, dtype=jnp.float32),
    }

    p = jnp.where(counts[..., None], jnp.exp(log_p), 0.0)[..., classes]
    g = truth[..., classes].astype(jnp.float32)
    axes = (0, 1, 2) if batch else (1, 2)
    overlap, predicted, true = jnp.sum(p * g, axes), jnp.sum(p, axes), jnp.sum(g, axes)
    if batch:
        return sums | {"overlap": overlap, "predicted": predicted, "truth": true}
    dice = jnp.mean(_dice_loss(overlap, predicted, true, smooth), axis=-1)
    has_truth = jnp.any(counts, axis=(1, 2))
    return sums | {
        "dice": jnp.sum(jnp.where(has_truth, dice, 0.0)),
        "images": jnp.sum(has_truth, dtype=jnp.float32),
    }


def loss_from_sums(sums: LossSums, *, smooth: float = 1e-5) -> jax.Array:
    """Cross-entropy + Dice of the pixels summed up in `sums`. Works on jax and NumPy arrays. Returns a scalar."""
    ce, dice = ce_dice_parts(sums, smooth=smooth)
    return ce + dice


def ce_dice_parts(sums: LossSums, *, smooth: float = 1e-5) -> tuple[jax.Array, jax.Array]:
    """The two terms of `loss_from_sums`: (cross-entropy, Dice loss), scalars."""
    ce = sums["cross_entropy"] / jnp.maximum(sums["pixels"], 1.0)
    if "overlap" in sums:
        return ce, jnp.mean(_dice_loss(sums["overlap"], sums["predicted"], sums["truth"], smooth))
    return ce, sums["dice"] / jnp.maximum(sums["images"], 1.0)


def _dice_loss(overlap, predicted, truth, smooth):
    # Without smoothing and without pixels it is 0 / 0: nothing to lose. The inner `where` keeps NaN out of the gradient.
    total = predicted + truth + smooth
    return jnp.where(total > 0, 1.0 - (2.0 * overlap + smooth) / jnp.where(total > 0, total, 1.0), 0.0)


def deep_supervision_weights(heads: int) -> tuple[float, ...]:
    """nnU-Net's weights of the losses at all resolutions, full resolution first: halved each time, the last 0, sum 1."""
    weights = [0.0 if heads > 1 and head == heads - 1 else 0.5**head for head in range(heads)]
    return tuple(weight / sum(weights) for weight in weights)


def deep_supervision_sums(
    all_logits: Sequence[jax.Array], labels: jax.Array, *, weights: Sequence[float], **kwargs
) -> tuple[LossSums, ...]:
    """`loss_sums` at every head whose weight is not 0.

    Args:
      all_logits: [N, H, W, C], then the same at falling resolutions.
      labels: [N, H, W]; taken at the pixels nearest to the centers of the smaller maps' (PyTorch's "nearest-exact").
      weights: one per head.
      **kwargs: as `loss_sums`.
    """
    return tuple(
        loss_sums(logits, _resized(labels, logits.shape[1:3]), **kwargs)
        for logits, weight in zip(all_logits, weights, strict=True)
        if weight
    )


def deep_supervision_loss(sums: Sequence[LossSums], *, weights: Sequence[float], smooth: float = 1e-5) -> jax.Array:
    """Weighted sum of `loss_from_sums` over the heads, as nnU-Net's DeepSupervisionWrapper. Returns a scalar."""
    counted = [weight for weight in weights if weight]
    return sum(weight * loss_from_sums(each, smooth=smooth) for weight, each in zip(counted, sums, strict=True))


def _resized(labels, shape):
    rows, columns = (
        ((np.arange(to) + 0.5) * (size / to)).astype(int) for to, size in zip(shape, labels.shape[1:3], strict=True)
    )
    return labels if tuple(shape) == labels.shape[1:3] else labels[:, rows][:, :, columns]
