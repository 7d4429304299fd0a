"""Plans patch size, batch size, network and normalization from the fingerprint.

The patch is initially the median image. It shrinks until the network needs no more memory than the preset allows.
Memory that is left is used for a larger batch, which covers at most a fixed share of the data set.

Source: `ExperimentPlanner`, `ResEncUNetPlanner` and `nnUNetPlannerResEnc{M,L,XL}` of nnU-Net 2.8.1. The `2d`
configuration is the same in every digit.
"""

import math
from typing import NamedTuple

import numpy as np

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.nnunet import topology
from bcss_jax.nnunet.topology import Topology

_MAX_PATCH = 2048  # largest edge of the first patch, for square pixels
_REFERENCE_BATCH, _MIN_BATCH = 12, 2
_ANISOTROPIC = 3  # an axis is coarse if its spacing is larger than the others' by this factor
_MASKED_BELOW = 3 / 4  # normalization uses a mask if cropping keeps a smaller share of the images


class Preset(NamedTuple):
    """The settings in which nnU-Net's planners differ in two dimensions.

    Attributes:
      plans_name: name of the plan and of nnU-Net's file.
      planner: name of nnU-Net's class.
      residual: whether the encoder has residual blocks.
      memory: largest `topology.memory_estimate` of a batch of twelve.
      share: largest share of the data set's pixels that a batch may cover.
    """

    plans_name: str
    planner: str
    residual: bool
    memory: int
    share: float


PRESETS = {
    "nnUNetPlans": Preset("nnUNetPlans", "ExperimentPlanner", False, 85_000_000, 0.05),
    "ResEnc": Preset("nnUNetResEncUNetPlans", "ResEncUNetPlanner", True, 135_000_000, 0.05),
    "ResEncM": Preset("nnUNetResEncUNetMPlans", "nnUNetPlannerResEncM", True, 135_000_000, 1),
    "ResEncL": Preset("nnUNetResEncUNetLPlans", "nnUNetPlannerResEncL", True, 380_000_000, 1),
    "ResEncXL": Preset("nnUNetResEncUNetXLPlans", "nnUNetPlannerResEncXL", True, 560_000_000, 1),
}

_NORMALIZATIONS = {
    "ct": "CTNormalization",
    "nonorm": "NoNormalization",
    "zscore": "ZScoreNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
_READERS = ("NaturalImage2DIO", "SimpleITKIO", "Tiff3DIO", "NibabelIO", "NibabelIOWithReorient")


class Step(NamedTuple):
    """A patch size that was tried, with its network and its `topology.memory_estimate`."""

    network: Topology
    estimate: int


class Reasons(NamedTuple):
    """The intermediate results from which a plan is decided.

    Attributes:
      transpose: order of the axes in the plan.
      median: height and width of the median image at the target spacing, not necessarily integers.
      spacing: target spacing along height and width.
      steps: the patch sizes that were tried, largest first; the last one is used.
      memory: largest memory estimate of a batch of twelve.
      batch_by_memory: largest batch size that the memory allows.
      batch_by_share: largest batch size that the share of the data set allows.
    """

    transpose: list[int]
    median: tuple[float, float]
    spacing: tuple[float, float]
    steps: list[Step]
    memory: int
    batch_by_memory: int
    batch_by_share: int


def make_plan(
    fingerprint: dict,
    dataset: dict,
    preset: str = "nnUNetPlans",
    *,
    rule_before_2_3_1: bool = False,
    dataset_name: str | None = None,
) -> dict:
    """Returns nnU-Net's plan for a data set.

    Args:
      fingerprint: from `fingerprint.extract_fingerprint`, or nnU-Net's dataset_fingerprint.json.
      dataset: nnU-Net's dataset.json; `channel_names`, `labels`, `numTraining` and `file_ending` are read.
      preset: a key of `PRESETS`, or nnU-Net's name of the plan.
      rule_before_2_3_1: limit the patch of `nnUNetPlans` as nnU-Net did before 2.3.1, by the memory of a batch of
        twelve instead of two, which keeps it at about 512x512.
      dataset_name: nnU-Net's name of the data set, which starts with `Dataset` and three digits.

    Returns:
      The contents of the plan's JSON file, with the configuration `2d`.

    Raises:
      ConfigError: there is no such preset.
      DataError: fingerprint or dataset are incomplete, the images are not two-dimensional, or they are too small for a
        network.
    """
    chosen, why = _preset(preset), reasons(fingerprint, dataset, preset, rule_before_2_3_1=rule_before_2_3_1)
    spacings, shapes = np.array(fingerprint["spacings"]), np.array(fingerprint["shapes_after_crop"])
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": max(min(why.batch_by_memory, why.batch_by_share), _MIN_BATCH),
        "patch_size": list(why.steps[-1].network.patch_size),
        "median_image_size_in_voxels": list(why.median),
        "spacing": list(why.spacing),
        **_normalization(fingerprint, dataset),
        **_resampling(),
        "architecture": _architecture(why.steps[-1].network, chosen.residual),
        "batch_dice": True,
    }
    return {
        "dataset_name": dataset_name or "Dataset001_BCSS",
        "plans_name": chosen.plans_name,
        "original_median_spacing_after_transp": [float(s) for s in np.median(spacings, 0)[why.transpose]],
        "original_median_shape_after_transp": [round(float(s)) for s in np.median(shapes, 0)[why.transpose]],
        "image_reader_writer": _reader(dataset),
        "transpose_forward": why.transpose,
        "transpose_backward": [why.transpose.index(axis) for axis in range(3)],
        "configurations": {"2d": configuration},
        "experiment_planner_used": chosen.planner,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): dict(values)
            for channel, values in fingerprint["foreground_intensity_properties_per_channel"].items()
        },
    }


def reasons(
    fingerprint: dict, dataset: dict, preset: str = "nnUNetPlans", *, rule_before_2_3_1: bool = False
) -> Reasons:
    """Returns the intermediate results of a plan; for arguments and errors see `make_plan`."""
    chosen = _preset(preset)
    _check(fingerprint, dataset)
    transpose, median, spacing = _geometry(fingerprint)
    per_unit = [1 / s for s in spacing]
    edge = (_MAX_PATCH**2 / math.prod(per_unit)) ** 0.5  # of the first patch, in the unit of the spacing
    start = [min(round(pixels * edge), m) for pixels, m in zip(per_unit, median, strict=True)]
    network, steps = topology.make_topology(start, spacing), []
    while True:
        if len(network.strides) < 2:
            raise DataError(
                f"the median image has {' x '.join(f'{m:g}' for m in median)} pixels, too few for a U-Net; both axes "
                f"must have {2 * topology.MIN_EDGE}, or one of them {3 * topology.MIN_EDGE}; use larger images or tiles"
            )
        estimate = topology.memory_estimate(network, chosen.residual, len(dataset["labels"]))
        steps.append(Step(network, estimate))
        # The plain planner requires only that its smallest batch fits. The others, and formerly this one too, require
        # that twelve images fit.
        fitting = _MIN_BATCH if not chosen.residual and not rule_before_2_3_1 else _REFERENCE_BATCH
        if estimate * fitting <= chosen.memory * _REFERENCE_BATCH:
            break
        network = topology.shrink(network, median, spacing)
    pixels = math.prod(median) * dataset["numTraining"]
    by_memory = round(chosen.memory / estimate * _REFERENCE_BATCH)
    by_share = round(pixels * chosen.share / math.prod(network.patch_size))
    return Reasons(transpose, median, spacing, steps, chosen.memory, by_memory, by_share)


def _preset(name):
    by_name = PRESETS | {preset.plans_name: preset for preset in PRESETS.values()}
    if name not in by_name:
        raise ConfigError(f"there is no nnU-Net preset {name!r}; the presets are {', '.join(PRESETS)}")
    return by_name[name]


def _check(fingerprint, dataset):
    """Raises DataError if the dicts lack entries that planning reads."""
    needed = {
        "fingerprint": (
            fingerprint,
            ("spacings", "shapes_after_crop", "median_relative_size_after_cropping",
             "foreground_intensity_properties_per_channel"),
        ),
        "dataset.json": (dataset, ("labels", "numTraining")),
    }  # fmt: skip
    for what, (content, keys) in needed.items():
        missing = [key for key in keys if key not in content]
        if missing:
            raise DataError(f"nnU-Net {what}: lacks {', '.join(missing)}; it has {', '.join(map(str, content))}")
    count = len(fingerprint["shapes_after_crop"])
    if not count or count != len(fingerprint["spacings"]):
        raise DataError(
            f"nnU-Net fingerprint: {count} shapes_after_crop and {len(fingerprint['spacings'])} spacings; "
            "expected one of each per case, and at least one case"
        )
    if any(len(each) != 3 for key in ("spacings", "shapes_after_crop") for each in fingerprint[key]):
        raise DataError("nnU-Net fingerprint: spacings and shapes_after_crop must have three numbers for each case")
    if not channel_names(dataset):
        raise DataError("nnU-Net dataset.json: lacks channel_names; expected something like R, G, B")


def channel_names(dataset: dict) -> list[str]:
    """Returns the channel names of the images in a dataset.json (called `modality` in old ones)."""
    return list((dataset.get("channel_names") or dataset.get("modality") or {}).values())


def _geometry(fingerprint):
    """Returns the order of the axes (coarsest first), and median size and spacing of the other two.

    Raises:
      DataError: there is more than one layer along the coarsest axis.
    """
    spacings, shapes = np.array(fingerprint["spacings"], float), np.array(fingerprint["shapes_after_crop"], float)
    target, size = np.percentile(spacings, 50, axis=0), np.percentile(shapes, 50, axis=0)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarse]
    widest = max(target[others])
    if target[coarse] > _ANISOTROPIC * widest and size[coarse] * _ANISOTROPIC < min(size[others]):
        tenth = np.percentile(spacings[:, coarse], 10)
        target[coarse] = tenth if tenth >= widest else widest + 1e-5
    transpose = [coarse, *others]
    resampled = [
        [round(float(old / new * n)) for old, new, n in zip(spacing, target, shape, strict=True)]
        for spacing, shape in zip(spacings, shapes, strict=True)
    ]
    layers, *median = (float(m) for m in np.median(resampled, 0)[transpose])
    if layers != 1:
        raise DataError(
            f"nnU-Net fingerprint: the images have {layers:g} layers; only 2D images, [1, H, W], are supported"
        )
    height, width = median
    return transpose, (height, width), (float(target[others[0]]), float(target[others[1]]))


def _normalization(fingerprint, dataset):
    schemes = [_NORMALIZATIONS.get(str(name).casefold(), "ZScoreNormalization") for name in channel_names(dataset)]
    masked = fingerprint["median_relative_size_after_cropping"] < _MASKED_BELOW
    return {
        "normalization_schemes": schemes,
        "use_mask_for_norm": [masked and scheme == "ZScoreNormalization" for scheme in schemes],
    }


def _reader(dataset):
    """Returns the name of nnU-Net's class that reads the images."""
    if dataset.get("overwrite_image_reader_writer") in _READERS:
        return dataset["overwrite_image_reader_writer"]
    ending = dataset.get("file_ending")
    if not isinstance(ending, str) or ending.lower() not in (".png", ".bmp", ".tif"):
        raise DataError(f"nnU-Net dataset.json: file_ending is {repr(ending)[:40]}; expected .png, .bmp or .tif")
    return "NaturalImage2DIO"


def _resampling():
    """Returns the settings of resampling. They are constant in nnU-Net and have no effect at the target spacing."""
    name, common = "resample_data_or_seg_to_shape", {"order_z": 0, "force_separate_z": None}
    return {
        "resampling_fn_data": name,
        "resampling_fn_seg": name,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **common},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **common},
        "resampling_fn_probabilities": name,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **common},
    }


def _architecture(network, residual):
    encoder, decoder = topology.blocks_per_stage(len(network.strides), residual)
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": len(network.strides),
            "features_per_stage": network.features,
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [list(size) for size in network.kernel_sizes],
            "strides": [list(stride) for stride in network.strides],
            "n_blocks_per_stage" if residual else "n_conv_per_stage": encoder,
            "n_conv_per_stage_decoder": decoder,
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
