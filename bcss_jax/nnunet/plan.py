"""The plan: patch, batch, network and normalization, decided from the fingerprint.

The network starts with the median image as its patch. While that takes more memory than the preset allows, the patch
shrinks; memory that is left goes into the batch, which sees at most a share of the data set at once.

Source: `ExperimentPlanner`, `ResEncUNetPlanner` and `nnUNetPlannerResEnc{M,L,XL}` of nnU-Net 2.8.1, whose `2d`
configuration comes out the same to the last digit.
"""

import math
from typing import NamedTuple

import numpy as np

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.nnunet import topology
from bcss_jax.nnunet.topology import Topology

_MAX_PATCH = 2048  # edge of the first patch, for pixels that are square
_REFERENCE_BATCH, _MIN_BATCH = 12, 2
_ANISOTROPIC = 3  # an axis is coarse if its pixels are this much longer than the others'
_MASKED_BELOW = 3 / 4  # share of the images that cropping leaves


class Preset(NamedTuple):
    """What distinguishes nnU-Net's planners in two dimensions.

    Attributes:
      plans_name: name of the plan and of nnU-Net's file.
      planner: nnU-Net's class.
      residual: residual blocks in the encoder.
      memory: `topology.memory_estimate` that a batch of twelve may have.
      share: part of the data set that a batch covers at most.
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
    """A patch that was tried, with its network and `topology.memory_estimate`."""

    network: Topology
    estimate: int


class Reasons(NamedTuple):
    """What a plan was decided from.

    Attributes:
      transpose: order of the axes in the plan.
      median: height and width of the median image at the target spacing, not necessarily whole.
      spacing: target spacing of both.
      steps: the patches that were tried, largest first; the last is taken.
      memory: estimate that a batch of twelve may have.
      batch_by_memory: images for which the memory is enough.
      batch_by_share: images that make up the largest share of the data set.
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
    """nnU-Net's plan for a data set.

    Args:
      fingerprint: of `fingerprint.extract_fingerprint`, or nnU-Net's dataset_fingerprint.json.
      dataset: nnU-Net's dataset.json; `channel_names`, `labels`, `numTraining` and `file_ending` are read.
      preset: a key of `PRESETS`, or nnU-Net's name for its plan.
      rule_before_2_3_1: limit the patch of `nnUNetPlans` as nnU-Net did before 2.3.1: by the memory of a batch of
        twelve in place of two, which keeps it at about 512x512.
      dataset_name: what nnU-Net calls the data set, `Dataset` and three digits first.

    Returns:
      The contents of the plan's JSON file, with the configuration `2d`.

    Raises:
      ConfigError: there is no such preset.
      DataError: fingerprint or dataset lack something, the images are not two-dimensional, or so small that there is
        no network for them.
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
    """The way to a plan. Arguments and errors as of `make_plan`."""
    chosen = _preset(preset)
    _check(fingerprint, dataset)
    transpose, median, spacing = _geometry(fingerprint)
    per_unit = [1 / s for s in spacing]
    edge = (_MAX_PATCH**2 / math.prod(per_unit)) ** 0.5  # of the first patch, in the spacing's unit
    start = [min(round(pixels * edge), m) for pixels, m in zip(per_unit, median, strict=True)]
    network, steps = topology.make_topology(start, spacing), []
    while True:
        if len(network.strides) < 2:
            raise DataError(
                f"the median image has {' x '.join(f'{m:g}' for m in median)} pixels, too few for a U-Net: both axes "
                f"must have {2 * topology.MIN_EDGE}, or one of them {3 * topology.MIN_EDGE}; use larger images or tiles"
            )
        estimate = topology.memory_estimate(network, chosen.residual, len(dataset["labels"]))
        steps.append(Step(network, estimate))
        # The plain planner only asks that its smallest batch fits, the others, and it formerly, that twelve images do.
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
    """Refuses dicts that lack what planning reads."""
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
            "expected one of both for each case, and at least one case"
        )
    if any(len(each) != 3 for key in ("spacings", "shapes_after_crop") for each in fingerprint[key]):
        raise DataError("nnU-Net fingerprint: spacings and shapes_after_crop must be three numbers for each case")
    if not channel_names(dataset):
        raise DataError("nnU-Net dataset.json: lacks channel_names; expected something like R, G, B")


def channel_names(dataset: dict) -> list[str]:
    """The names of the images' channels in a dataset.json (`modality` in old ones)."""
    return list((dataset.get("channel_names") or dataset.get("modality") or {}).values())


def _geometry(fingerprint):
    """Order of the axes (coarsest first, of which there must be one layer), median size and spacing of the other two."""
    spacings, shapes = np.array(fingerprint["spacings"], float), np.array(fingerprint["shapes_after_crop"], float)
    target, size = np.percentile(spacings, 50, 0), np.percentile(shapes, 50, 0)
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
            f"nnU-Net fingerprint: the images have {layers:g} layers; only 2D images, [1, H, W], are planned"
        )
    return transpose, tuple(median), tuple(float(target[axis]) for axis in others)


def _normalization(fingerprint, dataset):
    schemes = [_NORMALIZATIONS.get(str(name).casefold(), "ZScoreNormalization") for name in channel_names(dataset)]
    masked = fingerprint["median_relative_size_after_cropping"] < _MASKED_BELOW
    return {
        "normalization_schemes": schemes,
        "use_mask_for_norm": [masked and scheme == "ZScoreNormalization" for scheme in schemes],
    }


def _reader(dataset):
    """nnU-Net's class that reads such images."""
    if dataset.get("overwrite_image_reader_writer") in _READERS:
        return dataset["overwrite_image_reader_writer"]
    ending = dataset.get("file_ending")
    if not isinstance(ending, str) or ending.lower() not in (".png", ".bmp", ".tif"):
        raise DataError(f"nnU-Net dataset.json: file_ending is {ending!r}; expected .png, .bmp or .tif")
    return "NaturalImage2DIO"


def _resampling():
    """Constant in nnU-Net; without effect where all images have the target spacing."""
    name, rest = "resample_data_or_seg_to_shape", {"order_z": 0, "force_separate_z": None}
    return {
        "resampling_fn_data": name,
        "resampling_fn_seg": name,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **rest},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **rest},
        "resampling_fn_probabilities": name,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **rest},
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
