"""One fold of a result folder of nnU-Net v2.

Only plans that divide the pixels by 255 (`rgb_to_0_1`) are imported. Others normalize each image by its own mean and
deviation, so a slide's windows would have to be normalized one by one; `python -m bcss_jax.nnunet predict` follows such
plans for whole images.
"""

from pathlib import Path

from bcss_jax.common.digests import sha256_of_file
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.inference.imported.network import ImportedNetwork, check_number_of_classes, load_all
from bcss_jax.labels import LabelScheme
from bcss_jax.models import MODELS
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.nnunet.network import class_and_arguments
from bcss_jax.nnunet.result_folder import CHECKPOINT, read_result_folder

_NORMALIZATION = "RGBTo01Normalization"
_STATISTICS = ImageStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # of RGB values from 0 to 1


def read(
    folder: Path, *, scheme: LabelScheme, mpp: float, window: int | None = None, fold: str | None = None
) -> ImportedNetwork:
    """Reads a fold.

    Args:
      folder: the folder with plans.json.
      scheme: what the outputs mean; names other than that of the background must be those of dataset.json.
      mpp: um per pixel of the images that it was trained on.
      window: side of the windows in pixels; None: the longer side of the plan's patches.
      fold: number of the fold, or "all"; None: the only one.

    Raises:
      DataError: the folder cannot be read, or its network or normalization is not supported.
      ConfigError: there are several folds and none is chosen, or the classes are others.
    """
    folds = None if fold is None else [int(fold) if fold.isdecimal() else fold]
    found = read_result_folder(folder, folds)
    if len(found.folds) > 1:
        raise ConfigError(
            f"{printable(folder)}: holds the folds {', '.join(map(str, found.folds))}, a run has one network; choose "
            "one, as in --fold=0"
        )
    normalizations = found.plan["configurations"]["2d"]["normalization_schemes"]
    if set(normalizations) != {_NORMALIZATION}:
        raise DataError(
            f"{printable(folder)}: expected a plan with {_NORMALIZATION} (channel names rgb_to_0_1), found "
            f"{', '.join(sorted(set(normalizations)))}, which looks at whole images; use python -m bcss_jax.nnunet "
            "predict --model"
        )
    _check_classes(folder, found.dataset["labels"], found.num_classes, scheme)
    ((chosen, state),) = found.folds.items()
    network, arguments = class_and_arguments(found.plan)
    name = next(name for name, model in MODELS.items() if model is network)
    checkpoint = Path(folder).expanduser() / f"fold_{chosen}" / CHECKPOINT
    model, tensors, passed_over = load_all(checkpoint, name, arguments, found.num_classes, state)
    return ImportedNetwork(
        format="nnunet",
        name=name,
        arguments=arguments,
        model=model,
        scheme=scheme,
        statistics=_STATISTICS,
        mpp=mpp,
        window=window or max(found.patch_size),
        file=f"{Path(folder).name}/fold_{chosen}/{CHECKPOINT}",
        sha256=sha256_of_file(checkpoint),
        tensors=tensors,
        passed_over=passed_over,
    )


def _check_classes(folder: Path, labels: dict, num_classes: int, scheme: LabelScheme) -> None:
    """Raises ConfigError unless the classes of a scheme are those of dataset.json, in the same order."""
    check_number_of_classes(folder, num_classes, scheme)
    names = [name for name, label in sorted(labels.items(), key=lambda item: item[1]) if label < num_classes]
    others = [
        (theirs, ours)
        for theirs, ours in zip(names[1:], scheme.class_names[1:], strict=True)
        if theirs.casefold() != ours.casefold()
    ]
    if others:
        raise ConfigError(
            f"--labels: {printable(folder)} has the classes {', '.join(names)}, the label scheme {scheme.name} has "
            f"{', '.join(scheme.class_names)}; name a scheme with the same classes in the same order (the background's "
            "name may differ)"
        )
