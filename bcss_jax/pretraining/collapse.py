"""Tells whether a pretraining has collapsed: student and teacher agree because all images look alike to them."""

import math
from collections.abc import Sequence

EPOCHS = 3  # one after the other
UNIFORM = 0.995  # of the largest entropy
AGREED = 0.01  # KL divergence of teacher and student, in nats
ONE_PROTOTYPE = 0.02  # of the largest entropy
SMALL_DEVIATION = 0.02  # of 1 / sqrt(features), what evenly spread features have


def collapse(
    history: Sequence[dict], *, after_epoch: int, prototypes: int, features: int, words: bool = False
) -> str | None:
    """Returns what has collapsed, or None.

    Args:
      history: rows with the columns of `record.COLUMNS`.
      after_epoch: the epochs up to this one do not count: at first all images do look alike.
      prototypes: number of prototypes.
      features: of the encoder.
      words: visual words are learned too. Then images may differ by these though no prototype tells them apart.
    """
    rows = [row for row in history if row["epoch"] > after_epoch][-EPOCHS:]
    if len(rows) < EPOCHS:
        return None
    most = math.log(prototypes)

    def all_rows(name: str, test) -> bool:
        return all(row[name] is not None and test(row[name]) for row in rows)

    last = rows[-1]
    if not words:
        if all_rows("teacher_entropy", lambda x: x > UNIFORM * most) and all_rows("kl", lambda x: x < AGREED):
            entropy = last["teacher_entropy"]
            return f"the teacher finds all prototypes equally likely (entropy {entropy:.3f} of {most:.3f})"
        if all_rows("prototype_entropy", lambda x: x < ONE_PROTOTYPE * most):
            entropy = last["prototype_entropy"]
            return f"the teacher gives all images the same prototype (entropy {entropy:.3f} of {most:.3f})"
    healthy = 1 / math.sqrt(features)
    if all_rows("feature_deviation", lambda x: x < SMALL_DEVIATION * healthy):
        return (
            f"all images have the same features (deviation {last['feature_deviation']:.2g}; {healthy:.2g} is healthy)"
        )
    return None
