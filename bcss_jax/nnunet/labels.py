"""Conversion between the project's label schemes and the labels of nnU-Net.

nnU-Net numbers its labels without gaps: 0 is the background, the classes follow, and `ignore` is last and has no logit.
The project's schemes (`bcss_jax.labels`) give pixels without ground truth the label 0 or 255; `remap_table` converts
them.
"""

import numbers
from collections.abc import Sequence

import numpy as np

from bcss_jax.errors import DataError
from bcss_jax.labels import UNMAPPED, LabelScheme

OTHER = "other"  # the class that becomes nnU-Net's background
_RGB = 3


def labels_of_outputs(scheme: LabelScheme) -> tuple[int | None, ...]:
    """Returns the scheme's label of each output of nnU-Net's network, the background first.

    If the first class is called "other", it is the background. Otherwise no pixel is background, and the first entry is
    None.
    """
    classes = [label for label in range(scheme.num_classes) if label != scheme.ignore_index]
    return tuple(classes) if scheme.class_names[classes[0]] == OTHER else (None, *classes)


def outputs_of_labels(scheme: LabelScheme) -> list[int]:
    """Returns the output index for each label of the scheme. The ignored label gets the background's index."""
    labels = labels_of_outputs(scheme)
    return [labels.index(label) if label in labels else 0 for label in range(scheme.num_classes)]


def dataset_of(scheme: LabelScheme, num_training: int, channel_names: Sequence[str] = ("R", "G", "B")) -> dict:
    """Returns the content of nnU-Net's dataset.json for a label scheme.

    nnU-Net requires a background label. No pixel has it unless the first class of the scheme is called "other".

    Args:
      scheme: label scheme of the masks before `remap_table` is applied.
      num_training: number of training cases.
      channel_names: name of each channel. The names decide the normalization: `R`, `G`, `B` select z-scores,
        `rgb_to_0_1` for all three channels selects division by 255.
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
    """Returns the table that converts the scheme's labels to nnU-Net's.

    Returns:
      uint8 array of 256 entries. `table[mask]` holds the labels that `dataset_of` lists. Values that are not labels of
      the scheme become `bcss_jax.labels.UNMAPPED`.
    """
    table = np.full(256, UNMAPPED, np.uint8)
    labels = labels_of_outputs(scheme)
    for number, label in enumerate(labels):
        if label is not None:
            table[label] = number
    table[scheme.ignore_index] = len(labels)
    return table


def check_dataset(dataset: dict) -> None:
    """Raises an error if nnU-Net cannot train on the data set or if its images are not RGB.

    Args:
      dataset: content of dataset.json.

    Raises:
      DataError: the labels or the channel names are invalid.
    """
    found = dataset.get("labels") if isinstance(dataset, dict) else None
    if not isinstance(found, dict) or not found:
        raise DataError(
            f"nnU-Net dataset.json: labels are {_short(found)}; expected names and numbers, background 0 first"
        )
    for name, label in found.items():
        if isinstance(label, list | tuple):
            raise DataError(
                f"nnU-Net dataset.json: label {_short(name)} is the region {_short(list(label))}; "
                "regions are not supported, give each class one number"
            )
        if not isinstance(label, numbers.Integral) or isinstance(label, bool):
            raise DataError(f"nnU-Net dataset.json: label {_short(name)} is {_short(label)}; expected an integer")
    for name in found:
        if str(name).casefold() in ("background", "ignore") and name not in ("background", "ignore"):
            raise DataError(
                f"nnU-Net dataset.json: the label {_short(name)} would be a class of its own; expected "
                f"{str(name).casefold()}, in lower case; rename it"
            )
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
            f"nnU-Net dataset.json: labels must be 0 to {len(found) - 1} without gaps or duplicates; found {listed}; "
            "renumber masks and labels"
        )
    if num_outputs(dataset) < 2:
        raise DataError(f"nnU-Net dataset.json: there is no class except background and ignore; found {listed}")
    channels = dataset.get("channel_names") or dataset.get("modality")
    if not isinstance(channels, dict) or len(channels) != _RGB:
        raise DataError(f"nnU-Net dataset.json: channel_names are {_short(channels)}; expected three, for RGB images")


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}.."


def ignore_label(dataset: dict) -> int | None:
    """Returns the label of pixels without ground truth, or None if the data set has no such label."""
    return dataset["labels"].get("ignore")


def num_outputs(dataset: dict) -> int:
    """Returns the number of logits of the network: one for the background and one for each class."""
    return len(dataset["labels"]) - ("ignore" in dataset["labels"])
