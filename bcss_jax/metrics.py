"""Dice and IoU from integer confusion counts.

Counts are made on the device per image (`confusion`), added up on the host in int64, and turned into scores there.
Three ways to average, because published figures use all of them and they differ:

* `dice_global`: counts of the whole split, then Dice per class.
* `dice_image`: Dice per image and class, mean over the images where the class occurs (in truth or prediction).
* `dice_batch`: the same with batches in place of images. Depends on the batch size; kept to compare with papers.

A class that is neither in the truth nor in the prediction has no score (NaN, `null` in files). A class that is in the
truth and never predicted was missed and scores 0; so does one that is predicted and not there.
Source of the definitions: nnU-Net's compute_metrics (NaN where TP + FP + FN = 0), MONAI's DiceMetric.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def predict(logits: jax.Array, classes: Sequence[int] | None = None) -> jax.Array:
    """Most likely class of each pixel.

    Args:
      logits: [..., C] floats.
      classes: the labels to choose from; None: all C. With the ignored class left out, a model that hedges into it
        is still asked which tissue it sees.

    Returns:
      int32 labels [...].
    """
    if classes is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    classes = np.asarray(classes, np.int32)
    return jnp.asarray(classes)[jnp.argmax(logits[..., classes], axis=-1)]


def confusion(predictions: jax.Array, labels: jax.Array, num_classes: int, ignore_index: int | None) -> jax.Array:
    """Counts of (truth, prediction) pairs per image, ignored pixels left out.

    Args:
      predictions: [N, H, W] integer labels.
      labels: [N, H, W] integer labels.
      num_classes: C.
      ignore_index: label without truth; None: every pixel counts.

    Returns:
      int32 [N, C, C]; rows are truth, columns prediction.
    """
    labels, predictions = labels.astype(jnp.int32), predictions.astype(jnp.int32)
    pair = labels * num_classes + predictions
    if ignore_index is not None:
        pair = jnp.where(labels == ignore_index, -1, pair)
    counts = [jnp.sum(pair == k, axis=(1, 2), dtype=jnp.int32) for k in range(num_classes * num_classes)]
    return jnp.stack(counts, axis=-1).reshape(-1, num_classes, num_classes)


def dice(counts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) per class; counts [..., C, C] -> float64 [..., len(classes)]; NaN where 0/0."""
    tp, fp, fn = tp_fp_fn(counts, classes)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def iou(counts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """TP / (TP + FP + FN) per class; counts [..., C, C] -> float64 [..., len(classes)]; NaN where 0/0."""
    tp, fp, fn = tp_fp_fn(counts, classes)
    return _ratio(tp, tp + fp + fn)


def precision(counts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """TP / (TP + FP) per class; counts [..., C, C] -> float64 [..., len(classes)]; NaN where 0/0."""
    tp, fp, _ = tp_fp_fn(counts, classes)
    return _ratio(tp, tp + fp)


def recall(counts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """TP / (TP + FN) per class; counts [..., C, C] -> float64 [..., len(classes)]; NaN where 0/0."""
    tp, _, fn = tp_fp_fn(counts, classes)
    return _ratio(tp, tp + fn)


def scores(per_image: np.ndarray, batch_size: int, class_names: Sequence[str], classes: Sequence[int]) -> dict:
    """All named scores of a split.

    Args:
      per_image: integer counts [N, C, C], in evaluation order.
      batch_size: images in a batch, for the `_batch` scores.
      class_names: names of all C labels.
      classes: labels to score; counts of true pixels of other labels must be 0.

    Returns:
      `{"dice_global": {class name: value, ..., "macro": value}, "dice_image", "dice_batch", "iou_global", ...}` with
      None for a class that has no score, and `"images": {class name: {"present", "missed", "absent", "false"}}`: in
      how many images the class is in the truth, in the truth but not predicted, in neither, only in the prediction.
    """
    per_image = np.asarray(per_image, np.int64)
    batches = [per_image[i : i + batch_size].sum(0) for i in range(0, len(per_image), batch_size)]
    groups = {"global": per_image.sum(0, keepdims=True), "image": per_image, "batch": np.stack(batches)}
    names = [class_names[c] for c in classes]
    result = {}
    for measure in (dice, iou):
        for group, counts in groups.items():
            per_class = mean_of_known(measure(counts, classes), axis=0)
            values = [*per_class, mean_of_known(per_class, axis=0)]
            result[f"{measure.__name__}_{group}"] = {
                name: None if np.isnan(value) else float(value)
                for name, value in zip([*names, "macro"], values, strict=True)
            }
    tp, fp, fn = tp_fp_fn(per_image, classes)
    in_truth, predicted = tp + fn > 0, tp + fp > 0
    result["images"] = {
        name: {
            "present": int(in_truth[:, i].sum()),
            "missed": int((in_truth & ~predicted)[:, i].sum()),
            "absent": int((~in_truth & ~predicted)[:, i].sum()),
            "false": int((~in_truth & predicted)[:, i].sum()),
        }
        for i, name in enumerate(names)
    }
    return result


def tp_fp_fn(counts: np.ndarray, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, false positives, false negatives; counts [..., C, C] -> three int64 [..., len(classes)]."""
    counts, classes = np.asarray(counts, np.int64), list(classes)
    tp = np.diagonal(counts, axis1=-2, axis2=-1)[..., classes]
    return tp, counts.sum(-2)[..., classes] - tp, counts.sum(-1)[..., classes] - tp


def _ratio(numerator, denominator):
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)


def mean_of_known(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is not NaN along an axis; NaN (without a warning) where nothing is."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis), known.sum(axis))
