"""nnU-Net's labels: 0 background, then the classes without gaps, then `ignore`, which has no logit.

The project's schemes put what carries no truth at 0 or 255 (`bcss_jax.labels`); `remap_table` moves it.
"""

import numbers
from collections.abc import Sequence

import numpy as np

from bcss_jax.errors import DataError
from bcss_jax.labels import UNMAPPED, LabelScheme

OTHER = "other"  # the class that is nnU-Net's background
_RGB = 3


def labels_of_outputs(scheme: LabelScheme) -> tuple[int | None, ...]:
    """Returns the scheme's label of each output of nnU-Net's network, the background first.

    A first class called "other" is the background. Otherwise no pixel is background, which is written as None.
    """
    classes = [label for label in range(scheme.num_classes) if label != scheme.ignore_index]
    return tuple(classes) if scheme.class_names[classes[0]] == OTHER else (None, *classes)


def outputs_of_labels(scheme: LabelScheme) -> list[int]:
    """Returns the output of nnU-Net's network for each label of the scheme; the background's for the ignored label."""
    labels = labels_of_outputs(scheme)
    return [labels.index(label) if label in labels else 0 for label in range(scheme.num_classes)]


def dataset_of(scheme: LabelScheme, num_training: int, channel_names: Sequence[str] = ("R", "G", "B")) -> dict:
    """nnU-Net's dataset.json for a label scheme.

    Unless the first class is called "other", nothing is background; the background that nnU-Net asks for stays empty.

    Args:
      scheme: what the masks hold before `remap_table`.
      num_training: number of cases.
      channel_names: they decide the normalization: `R`, `G`, `B` mean z-scores, three times `rgb_to_0_1` division by
        255.
    """
    labels = labels_of_outputs(scheme)
    classes = {scheme.class_names[label]: number for number, label in enumerate(labels) if number and label is not None}
    return {
        "channel_names": {str(index): name for index, name in enumerate(channel_names)},
        "labels": {"background": 0, **classes, "ignore": len(labels)},
        "numTraining": num_training,
        "file_ending": ".png",
    }


def remap_table(scheme: LabelScheme) -> np.ndarray:
    """Table from the scheme's labels to nnU-Net's.

    Returns:
      uint8 array of 256 entries; `table[mask]` gives labels of `dataset_of`. Numbers that are no label give
      `bcss_jax.labels.UNMAPPED`.
    """
    table = np.full(256, UNMAPPED, np.uint8)
    labels = labels_of_outputs(scheme)
    for number, label in enumerate(labels):
        if label is not None:
            table[label] = number
    table[scheme.ignore_index] = len(labels)
    return table


def check_dataset(dataset: dict) -> None:
    """Refuses a dataset.json that nnU-Net could not train on, or whose images are not RGB.

    Raises:
      DataError: what is wrong with labels or channel names.
    """
    found = dataset.get("labels") if isinstance(dataset, dict) else None
    if not isinstance(found, dict) or not found:
        raise DataError(f"nnU-Net dataset.json: labels are {found!r}; expected names and numbers, background 0 first")
    for name, label in found.items():
        if isinstance(label, list | tuple):
            raise DataError(
                f"nnU-Net dataset.json: label {name!r} is the region {list(label)}; regions are not supported, "
                "give each class one number"
            )
        if not isinstance(label, numbers.Integral) or isinstance(label, bool):
            raise DataError(f"nnU-Net dataset.json: label {name!r} is {label!r}; expected an integer")
    if found.get("background") != 0:
        raise DataError(
            f"nnU-Net dataset.json: background is {found.get('background', 'missing')}; "
            "expected the label background with the number 0, even if no pixel has it"
        )
    numbered, listed = sorted(found.values()), ", ".join(f"{name} {label}" for name, label in found.items())
    if "ignore" in found and (found["ignore"] != numbered[-1] or numbered.count(numbered[-1]) > 1):
        raise DataError(
            f"nnU-Net dataset.json: ignore is {found['ignore']}, but must be the highest label ({listed}); "
            f"renumber masks and labels so that ignore is {len(found) - 1}"
        )
    if numbered != list(range(len(found))):
        raise DataError(
            f"nnU-Net dataset.json: labels must be 0 to {len(found) - 1} without gaps or doubles; found {listed}; "
            "renumber masks and labels"
        )
    if num_outputs(dataset) < 2:
        raise DataError(f"nnU-Net dataset.json: there is no class beside background and ignore; found {listed}")
    channels = dataset.get("channel_names") or dataset.get("modality")
    if not isinstance(channels, dict) or len(channels) != _RGB:
        raise DataError(f"nnU-Net dataset.json: channel_names are {channels!r}; expected three, for RGB images")


def ignore_label(dataset: dict) -> int | None:
    """The label without truth, if the data set has one."""
    return dataset["labels"].get("ignore")


def num_outputs(dataset: dict) -> int:
    """Logits of the network: background and classes."""
    return len(dataset["labels"]) - ("ignore" in dataset["labels"])
