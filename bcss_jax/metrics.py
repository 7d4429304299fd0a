"""Dice and IoU from integer confusion counts.

Pixels are counted per image on the device (`confusion`). The counts are added on the host in int64 and turned into
scores there. Published scores are averaged in three ways, which give different numbers:

* `dice_global`: counts of the whole split, then Dice per class.
* `dice_image`: Dice per image and class, mean over the images where the class occurs (in the ground truth or the
  prediction).
* `dice_batch`: the same with batches in place of images. It depends on the batch size; it is there to compare with
  papers.

A class that is neither in the ground truth nor in the prediction has no score (NaN, `null` in files). A class that is
only in one of the two scores 0.

`dice_report` and `iou_report` (`report_scores`) are what the report's own code prints: batches of 128, and 1 for a
class that is neither in the ground truth nor in the prediction of a batch. Its Table 1 can be compared with these
alone.
Source of the definitions: nnU-Net's compute_metrics (NaN where TP + FP + FN = 0), MONAI's DiceMetric.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

REPORT_BATCH = 128  # images in a batch of `report_scores`; the last batch may have fewer


def predict(logits: jax.Array, classes: Sequence[int] | None = None) -> jax.Array:
    """Returns the most likely class of each pixel.

    Args:
      logits: [..., C] floats.
      classes: the labels to choose from; None: all C. Without the ignored class, a model that prefers it in a pixel
        still predicts a tissue there.

    Returns:
      int32 labels [...].
    """
    if classes is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    chosen = np.asarray(classes, np.int32)
    return jnp.asarray(chosen)[jnp.argmax(logits[..., chosen], axis=-1)]


def confusion(predictions: jax.Array, labels: jax.Array, num_classes: int, ignore_index: int | None) -> jax.Array:
    """Counts (truth, prediction) pairs per image, without the ignored pixels.

    Args:
      predictions: [N, H, W] integer labels.
      labels: [N, H, W] integer labels.
      num_classes: C.
      ignore_index: label of the pixels without ground truth; None: every pixel counts.

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
    """Returns 2 TP / (2 TP + FP + FN) per class; counts [..., C, C] -> float64 [..., len(classes)]; NaN where 0/0."""
    tp, fp, fn = tp_fp_fn(counts, classes)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def iou(counts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Returns TP / (TP + FP + FN) per class; counts [..., C, C] -> float64 [..., len(classes)]; NaN where 0/0."""
    tp, fp, fn = tp_fp_fn(counts, classes)
    return _ratio(tp, tp + fp + fn)


def precision(counts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Returns TP / (TP + FP) per class; counts [..., C, C] -> float64 [..., len(classes)]; NaN where 0/0."""
    tp, fp, _ = tp_fp_fn(counts, classes)
    return _ratio(tp, tp + fp)


def recall(counts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Returns TP / (TP + FN) per class; counts [..., C, C] -> float64 [..., len(classes)]; NaN where 0/0."""
    tp, _, fn = tp_fp_fn(counts, classes)
    return _ratio(tp, tp + fn)


def scores(per_image: np.ndarray, batch_size: int, class_names: Sequence[str], classes: Sequence[int]) -> dict:
    """Returns all scores of a split.

    Args:
      per_image: integer counts [N, C, C], in evaluation order.
      batch_size: number of images in a batch, for the `_batch` scores.
      class_names: names of all C labels.
      classes: labels to score; there must be no true pixels of other labels.

    Returns:
      `{"dice_global": {class name: value, ..., "macro": value}, "dice_image", "dice_batch", "iou_global", ...}` with
      None for a class that has no score, and `"images": {class name: {"present", "missed", "absent", "false"}}`: the
      number of images in which the class is in the truth, in the truth but not predicted, in neither, and only in the
      prediction.
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


def report_scores(per_image: np.ndarray, class_names: Sequence[str], classes: Sequence[int]) -> dict:
    """Returns the Dice and the IoU of the report's own code.

    They are computed for each class of each batch of `REPORT_BATCH` images, and are 1 where neither the truth nor the
    prediction of the batch has the class. The class of other tissue is left out of the mean, but not of the task:
    predictions are chosen among all classes, and other tissue that is predicted as tumor counts against tumor.

    Args:
      per_image: integer counts [N, C, C], in evaluation order, which decides the images that share a batch.
      class_names: names of all C labels.
      classes: labels of tumor and stroma (`LabelScheme.report_classes`).

    Returns:
      `{"dice_report": {class name: mean over batches, ..., "macro": mean over classes and batches}, "iou_report"}`.
    """
    per_image = np.asarray(per_image, np.int64)
    batches = np.stack([per_image[i : i + REPORT_BATCH].sum(0) for i in range(0, len(per_image), REPORT_BATCH)])
    result = {}
    for measure in (dice, iou):
        found = measure(batches, classes)
        per_class = np.where(np.isnan(found), 1.0, found).mean(0)
        values = [*per_class, per_class.mean()]
        names = [*(class_names[label] for label in classes), "macro"]
        result[f"{measure.__name__}_report"] = dict(zip(names, map(float, values), strict=True))
    return result


def tp_fp_fn(counts: np.ndarray, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns true positives, false positives and false negatives.

    Takes counts [..., C, C]; each of the three is int64 [..., len(classes)].
    """
    counts, classes = np.asarray(counts, np.int64), list(classes)
    tp = np.diagonal(counts, axis1=-2, axis2=-1)[..., classes]
    return tp, counts.sum(-2)[..., classes] - tp, counts.sum(-1)[..., classes] - tp


def _ratio(numerator, denominator):
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)


def mean_of_known(values: np.ndarray, axis: int) -> np.ndarray:
    """Returns the mean along an axis of the values that are not NaN; NaN, without a warning, where all are."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis), known.sum(axis))
