"""Tiles with one label each, for the accuracy of nearest neighbors: the class that most of a tile's pixels have."""

from typing import NamedTuple

import numpy as np

from bcss_jax.common.interruption import safe_point
from bcss_jax.data.discovery import SLIDES, DataSettings
from bcss_jax.data.inspection.source import Source
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.labels import LabelScheme, lookup_table

SPLITS = ("train", "val")  # test tiles take no part in training, not even by a score that is looked at


class LabeledTiles(NamedTuple):
    """Tiles with one label each.

    Attributes:
      images: uint8 [M, S, S, 3].
      labels: int32 [M], labels of the scheme.
      groups: int32 [M], number of the patient; of the tile if all tiles are of one patient. Neighbors of a tile are
        looked for in other groups.
      notes: what a user should know, a line each.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    notes: tuple[str, ...]

    @property
    def chance(self) -> float:
        """Share of the most frequent label: the accuracy of who always says it."""
        return float(np.unique(self.labels, return_counts=True)[1].max() / len(self.labels))


def labeled_tiles(settings: DataSettings, scheme: LabelScheme) -> LabeledTiles:
    """Reads the training and validation tiles of a data set; those with ground truth on less than half are left out.

    Args:
      settings: which data set; not slides.
      scheme: the labels. The label of a tile is that of most of its pixels among the evaluated labels.

    Raises:
      ConfigError: the data set is one of slides.
      DataError: it cannot be read, the tiles have different sizes or are not square, or fewer than two classes occur.
    """
    if settings.layout == SLIDES:
        raise ConfigError("labeled tiles: expected tiles or regions with masks, found slides; leave them out")
    source = Source(settings)
    images, labels, patients, without, other_split = [], [], [], 0, 0
    for tile in source.tiles:
        safe_point()
        if tile.split not in SPLITS or tile.mask is None:
            other_split += 1
            continue
        image, mask = source.pixels(tile)
        if mask is None or image.shape[0] != image.shape[1] or (images and image.shape != images[0].shape):
            raise DataError(
                f"{printable(tile.image)}: expected square tiles of one size with masks, found "
                f"{image.shape[1]}x{image.shape[0]} pixels; leave out the labeled tiles, or cut them to one size"
            )
        counts = np.bincount(lookup_table(scheme, tile.codes)[mask].ravel(), minlength=256)[list(scheme.evaluated)]
        if 2 * counts.sum() < mask.size:
            without += 1
            continue
        images.append(image)
        labels.append(scheme.evaluated[int(counts.argmax())])
        patients.append(tile.patient)
    if len(set(labels)) < 2:
        raise DataError(f"labeled tiles: expected two or more classes, found {len(set(labels))}; leave out these tiles")
    numbers = np.unique(patients, return_inverse=True)[1]
    one_patient = numbers.max() == 0
    sizes = ", ".join(f"{labels.count(label)} {scheme.class_names[label]}" for label in scheme.evaluated)
    notes = [f"{len(labels)} labeled tiles of {numbers.max() + 1} patients: {sizes}"]
    notes += ["they are of one patient: neighbors may lie side by side, and scores are too high"] if one_patient else []
    notes += [f"left out: {without} labeled tiles with ground truth on less than half"] if without else []
    notes += [f"left out: {other_split} tiles of the test set or without masks"] if other_split else []
    groups = np.arange(len(labels)) if one_patient else numbers
    return LabeledTiles(np.stack(images), np.array(labels, np.int32), groups.astype(np.int32), tuple(notes))
