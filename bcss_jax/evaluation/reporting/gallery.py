"""Images to look at: those in which a model was worst, average and best, as PNG files.

`gallery/worst_1_image.png`, `..._truth.png` and `..._prediction.png`, likewise `median_` and `best_`: the image, and two
label images (one channel, uint8, the label of each pixel as the label scheme numbers them).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcss_jax.common.files import storage_errors, write_png

EACH = 4  # images of each kind
KINDS = ("image", "truth", "prediction")


class Chosen(NamedTuple):
    """An image of the gallery.

    Attributes:
      rank: "worst", "median" or "best".
      place: 1 is the worst or the best; those in the middle rise.
      position: of the image in the order of evaluation.
    """

    rank: str
    place: int
    position: int

    @property
    def files(self) -> dict[str, str]:
        """Names of its three files in the run's folder."""
        return {kind: f"gallery/{self.rank}_{self.place}_{kind}.png" for kind in KINDS}


def choose(dice: np.ndarray) -> list[Chosen]:
    """Chooses by the Dice of each image [N]; images without a score (NaN) are left out, and none appears twice."""
    order = [int(position) for position in np.argsort(dice, kind="stable") if not np.isnan(dice[position])]
    each = min(EACH, max(1, len(order) // 3))
    worst, rest = order[:each], order[each:]
    best, between = rest[-each:][::-1], rest[:-each]
    first = (len(between) - each + 1) // 2
    median = between[max(first, 0) : max(first, 0) + each]
    groups = {"worst": worst, "median": median, "best": best}
    return [Chosen(rank, place, n) for rank, group in groups.items() for place, n in enumerate(group, 1)]


def write(
    folder: Path, chosen: Sequence[Chosen], pictures: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> None:
    """Writes the gallery of a run.

    Args:
      folder: of the run; gets `gallery/`.
      chosen: what `choose` gave.
      pictures: by position: image uint8 [H, W, 3], truth and prediction uint8 [H, W].

    Raises:
      StorageError: a file cannot be written.
    """
    with storage_errors(folder):
        (folder / "gallery").mkdir(parents=True, exist_ok=True)
    for each in chosen:
        for name, pixels in zip(each.files.values(), pictures[each.position], strict=True):
            write_png(folder / name, pixels)
