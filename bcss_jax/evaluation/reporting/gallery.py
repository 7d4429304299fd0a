"""The gallery: the images with the lowest, median and highest Dice of a model, as PNG files.

`gallery/worst_1_image.png` is the image. `gallery/worst_1_truth.png` and `gallery/worst_1_prediction.png` are label
images (one channel, uint8, with the labels of the label scheme). `median_` and `best_` have the same files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcss_jax.common.files import storage_errors, write_png

PER_RANK = 4  # images of each rank, at most
KINDS = ("image", "truth", "prediction")


class Chosen(NamedTuple):
    """An image of the gallery.

    Attributes:
      rank: "worst", "median" or "best".
      place: position within the rank. 1 is the worst or the best image; median images are in rising order.
      position: position of the image in the order of evaluation.
    """

    rank: str
    place: int
    position: int

    @property
    def files(self) -> dict[str, str]:
        """Names of its three files in the model's folder."""
        return {kind: f"gallery/{self.rank}_{self.place}_{kind}.png" for kind in KINDS}


def choose(dice: np.ndarray) -> list[Chosen]:
    """Chooses images by their Dice [N]. Images without a score (NaN) are left out, and no image is chosen twice."""
    order = [int(position) for position in np.argsort(dice, kind="stable") if not np.isnan(dice[position])]
    per_rank = min(PER_RANK, max(1, len(order) // 3))
    worst, others = order[:per_rank], order[per_rank:]
    best, between = others[-per_rank:][::-1], others[:-per_rank]
    first = max((len(between) - per_rank + 1) // 2, 0)
    median = between[first : first + per_rank]
    groups = {"worst": worst, "median": median, "best": best}
    return [Chosen(rank, place, n) for rank, group in groups.items() for place, n in enumerate(group, 1)]


def write(
    folder: Path, chosen: Sequence[Chosen], pictures: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> None:
    """Writes the gallery of a model.

    Args:
      folder: folder of the model, where `gallery/` is made.
      chosen: images that `choose` returned.
      pictures: image uint8 [H, W, 3], ground truth and prediction uint8 [H, W], by position.

    Raises:
      StorageError: A file cannot be written.
    """
    with storage_errors(folder):
        (folder / "gallery").mkdir(parents=True, exist_ok=True)
    for each in chosen:
        for name, pixels in zip(each.files.values(), pictures[each.position], strict=True):
            write_png(folder / name, pixels)
