"""A prepared data set divided into folds by patient: the same files, with other examples in train and val.

The images for training and validation are pooled and divided into folds (`folds.by_patient`). The fold that is held out
is "val", all others are "train". Test images stay apart. Nothing is written again.
"""

import collections
import dataclasses
import functools
import hashlib
import json

import numpy as np

from bcss_jax import labels
from bcss_jax.data.checks import CheckReport
from bcss_jax.data.host_tensorflow import tf
from bcss_jax.data.sampling.code_counts import CODES
from bcss_jax.data.sampling.folds import by_patient
from bcss_jax.data.tfrecords import PreparedData
from bcss_jax.errors import ConfigError

POOLED = ("train", "val")


@dataclasses.dataclass(frozen=True)
class FoldedData(PreparedData):
    """Prepared data of which one fold is held out as "val".

    Attributes:
      folds: number of folds.
      fold: the one that is held out.
      whole: the data set as it was prepared.
    """

    folds: int
    fold: int
    whole: PreparedData

    @property
    def slide_weights(self) -> dict[str, float]:
        """As of `whole`."""
        return self.whole.slide_weights

    def describe(self) -> dict:
        """Returns what `PreparedData.describe` returns, and the fold."""
        of = self.whole.report.content_sha256
        return super().describe() | {"folds": {"count": self.folds, "held_out": self.fold, "content_sha256": of}}

    @functools.cached_property
    def _tables(self) -> dict[str, list[dict]]:
        return _divided(self.whole, self.folds, self.fold)[0]

    def code_counts(self, split: str) -> np.ndarray:
        """Returns what `PreparedData.code_counts` returns."""
        if split not in POOLED:
            return self.whole.code_counts(split)
        counts = np.zeros((self.splits[split], CODES), np.int32)
        for old, new_index in _divided(self.whole, self.folds, self.fold)[1][split].items():
            counts[new_index[new_index >= 0]] = self.whole.code_counts(old)[new_index >= 0]
        return counts

    def load(self, split: str) -> tf.data.Dataset:
        """Returns the tiles of a split as `PreparedData.load` does, in an order that is always the same."""
        if split not in POOLED:
            return self.whole.load(split)
        return _chosen(self.whole, _divided(self.whole, self.folds, self.fold)[1][split])


def hold_out(whole: PreparedData, folds: int, fold: int, scheme: labels.LabelScheme) -> FoldedData:
    """Returns a prepared data set with one fold held out.

    Args:
      whole: the data set.
      folds: number of folds, 2 or more.
      fold: the one to hold out, from 0.
      scheme: the label scheme; it decides which warnings are logged.

    Raises:
      ConfigError: there is no such fold.
      DataError: there are fewer patients than folds.
    """
    if not 0 <= fold < folds:
        raise ConfigError(f"fold {fold} of {folds}: must be from 0 to {folds - 1}")
    tables, chosen = _divided(whole, folds, fold)
    if whole.codes == labels.SCHEME_CODES:
        code_names = labels.names_of_codes(scheme)
    else:
        code_names = dict(enumerate(labels.CODE_BOOKS[whole.codes]))
    report = _report(whole, tables, chosen, code_names, f"{folds} {fold}")
    report.log(scheme, whole.codes)
    fields = {field.name: getattr(whole, field.name) for field in dataclasses.fields(PreparedData)}
    return FoldedData(**(fields | {"report": report, "split_by": "folds"}), folds=folds, fold=fold, whole=whole)


def _divided(whole: PreparedData, folds: int, fold: int) -> tuple[dict[str, list[dict]], dict[str, dict]]:
    """Returns the table of each split; and for train and val, the new index by the old one of each old split."""
    origin = {}
    for split in POOLED:
        for index, row in enumerate(whole.table(split)) if split in whole.splits else ():
            origin[row["key"]] = split, index, row
    held_out = by_patient(
        list(origin),
        [row["patient"] for _, _, row in origin.values()],
        folds,
        remedy="lower --config.data.folds, or add data",
    )[fold]
    tables = {split: whole.table(split) for split in whole.splits}
    chosen = {}
    for split in POOLED:
        places = [origin[key] for key in held_out[split]]
        tables[split] = [row for _, _, row in places]
        chosen[split] = {old: np.full(count, -1, np.int64) for old, count in whole.splits.items() if old in POOLED}
        for new, (old, index, _) in enumerate(places):
            chosen[split][old][index] = new
    return tables, chosen


def _chosen(whole: PreparedData, new_index: dict[str, np.ndarray]) -> tf.data.Dataset:
    """Returns the examples with a new index that is not negative, mixed evenly from the splits that they come from."""
    parts, counts = [], []
    for split, numbers in new_index.items():
        count = int((numbers >= 0).sum())
        if not count:
            continue
        table = tf.constant(numbers)

        def renumbered(example, table=table):
            return example | {"index": tf.gather(table, example["index"])}

        kept = whole.load(split).map(renumbered).filter(lambda example: example["index"] >= 0)
        parts.append(kept.apply(tf.data.experimental.assert_cardinality(count)))
        counts.append(count)
    if len(parts) == 1:
        return parts[0]
    turns = np.repeat(np.arange(len(parts), dtype=np.int64), counts)
    turns = np.random.default_rng(0).permutation(turns)
    return tf.data.Dataset.choose_from_datasets(parts, tf.data.Dataset.from_tensor_slices(turns))


def _report(whole: PreparedData, tables: dict, chosen: dict, code_names: dict[int, str], fold: str) -> CheckReport:
    """Returns the report on the new splits."""
    old_counts = {split: whole.code_counts(split) for split in whole.splits}
    pixels = {split: counts.sum(0) for split, counts in old_counts.items() if split not in POOLED}
    for split, new_index in chosen.items():
        pixels[split] = sum(old_counts[old][numbers >= 0].sum(0) for old, numbers in new_index.items())
    splits_of = collections.defaultdict(set)
    for split, rows in tables.items():
        for row in rows:
            splits_of[row["patient"]].add(split)
    content = hashlib.sha256(json.dumps([whole.report.content_sha256, fold]).encode()).hexdigest()
    return dataclasses.replace(
        whole.report,
        tiles={split: len(rows) for split, rows in tables.items()},
        patients={split: len({row["patient"] for row in rows}) for split, rows in tables.items()},
        patients_in_two_parts=sorted(patient for patient, splits in splits_of.items() if len(splits) > 1),
        code_pixels={
            split: {code_names[code]: int(counts[code]) for code in np.flatnonzero(counts).tolist()}
            for split, counts in pixels.items()
        },
        all_ignored={},
        absent={},
        content_sha256=content,
    )
