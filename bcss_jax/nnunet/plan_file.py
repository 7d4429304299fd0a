"""Reads, checks and writes plan files, and prints plans as a table.

A plan may have been written by this program, by nnU-Net, or edited by hand, so `read_plan` checks every field that
training uses.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from bcss_jax.common.files import write_text
from bcss_jax.common.json_files import check_shape, read_json
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.models.arguments import is_count
from bcss_jax.nnunet.network import class_and_arguments
from bcss_jax.nnunet.plan import PRESETS, channel_names, make_plan, reasons
from bcss_jax.nnunet.preprocess import NORMALIZATIONS
from bcss_jax.nnunet.topology import total_stride

_FIELDS = ("plans_name", "transpose_forward", "configurations", "foreground_intensity_properties_per_channel")
_FIELDS_2D = (
    "preprocessor_name", "batch_size", "patch_size", "median_image_size_in_voxels", "spacing", "normalization_schemes",
    "use_mask_for_norm", "architecture", "batch_dice",
)  # fmt: skip
_FIELDS_V1 = {"plans_per_stage", "num_stages", "base_num_features"}
_TOLERANCE = 1e-4  # of statistics, relative to their standard deviation


class _ArchitectureArguments(TypedDict):
    norm_op_kwargs: NotRequired[dict[str, Any] | None]
    nonlin_kwargs: NotRequired[dict[str, Any] | None]


class _Architecture(TypedDict):
    network_class_name: str
    arch_kwargs: NotRequired[_ArchitectureArguments]


class _Configuration2d(TypedDict):
    preprocessor_name: str
    batch_size: int
    patch_size: list[int]
    median_image_size_in_voxels: list[float]
    spacing: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool]
    architecture: _Architecture
    batch_dice: bool


_Configurations = TypedDict("_Configurations", {"2d": _Configuration2d})


class _Plan(TypedDict):
    plans_name: str
    dataset_name: NotRequired[str]
    experiment_planner_used: NotRequired[str]
    transpose_forward: list[int]
    configurations: _Configurations
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]]


def read_plan(path: Path | str) -> dict:
    """Reads a plan.

    Args:
      path: JSON as written by nnU-Net 2.4 or newer, with a configuration `2d`.

    Raises:
      DataError: it is not such a file, or the plan is not supported; the message says why.
    """
    path = Path(path)
    if path.is_file() and _is_pickle(path):
        raise DataError(f"{path}: expected JSON, found a pickle, as nnU-Net v1 wrote its plans; plan again")
    plan = read_json(path, "an nnU-Net plan such as nnUNetPlans.json", "plan again, or name another file")
    try:
        _check_plan(plan)
    except (ConfigError, DataError) as error:
        text = str(error)  # it may quote a value of any length
        raise DataError(f"{path}: {text if len(text) <= 600 else f'{text[:300]} ... {text[-200:]}'}") from error
    return plan


def _is_pickle(path):
    with open(path, "rb") as file:
        return file.read(1) == b"\x80"


def write_plan(path: Path | str, plan: dict) -> None:
    """Writes a plan as nnU-Net does; the file is complete or does not exist.

    Raises:
      StorageError: it cannot be written.
    """
    write_text(Path(path), json.dumps(plan, indent=4) + "\n", private=True)


def check_plan(plan: dict, dataset: dict, fingerprint: dict | None = None) -> None:
    """Raises DataError if a plan was made for another data set.

    Args:
      plan: from `read_plan` or `plan.make_plan`.
      dataset: nnU-Net's dataset.json of the current data.
      fingerprint: of the current data; if given, sizes and intensities are compared as well.

    Raises:
      DataError: channels, sizes or intensities differ.
    """
    names, schemes = channel_names(dataset), plan["configurations"]["2d"]["normalization_schemes"]
    if len(names) != len(schemes):
        raise DataError(
            f"the plan ({_name(plan)}) is for {len(schemes)} channels, the data have {len(names)} "
            f"({', '.join(map(str, names))}); make a plan for these data"
        )
    if fingerprint is None:
        return
    try:
        expected = make_plan(fingerprint, dataset, dataset_name="these")
    except DataError:
        return  # these data cannot be planned for, so the user decided to use this plan
    theirs, ours = (each["configurations"]["2d"]["median_image_size_in_voxels"] for each in (plan, expected))
    if list(theirs) != ours:
        raise DataError(
            f"the plan ({_name(plan)}) is for another data set: its median image has {_size(theirs)} pixels, "
            f"that of these data {_size(ours)}; make a plan for these data"
        )
    key = "foreground_intensity_properties_per_channel"
    for channel, ours in expected[key].items():
        theirs = plan[key].get(channel, {})
        allowed = _TOLERANCE * max(ours["std"], 1)
        differing = [name for name in ours if not abs(theirs.get(name, math.inf) - ours[name]) <= allowed]
        if differing:
            name = differing[0]
            raise DataError(
                f"the plan ({_name(plan)}) is for another data set or other labels: {name} of channel {channel} over "
                f"the foreground is {theirs.get(name, 'missing')}, in these data {ours[name]:g}; make a plan for them"
            )


def plan_table(plan: dict, fingerprint: dict, dataset: dict, *, rule_before_2_3_1: bool = False) -> str:
    """Returns a plan's decisions and their reasons as text.

    Args:
      plan: from `plan.make_plan` or `read_plan`. Edited decisions are marked.
      fingerprint: the fingerprint for which the plan was made.
      dataset: the dataset.json for which the plan was made.
      rule_before_2_3_1: whether that rule was used.

    Returns:
      One line per decision.
    """
    chosen = [preset for preset in PRESETS.values() if preset.planner == plan.get("experiment_planner_used")]
    preset = (chosen or [PRESETS["nnUNetPlans"]])[0]
    rows, marked = [], False
    planned = _decisions(make_plan(fingerprint, dataset, preset.plans_name))
    why = _explanations(reasons(fingerprint, dataset, preset.plans_name), preset, fingerprint, dataset)
    for name, decided in _decisions(plan).items():
        edited = decided != planned[name]
        marked |= edited
        rows.append((name, decided + (f" (*, rule: {planned[name]})" if edited else ""), why[name]))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:{widths[0]}}  {decided:{widths[1]}} | {reason}" for name, decided, reason in rows]
    cases = len(fingerprint["shapes_after_crop"])
    heading = f"{_name(plan)}: {cases} cases, channels {', '.join(map(str, channel_names(dataset)))}"
    return "\n".join([heading, *lines, *(["* differs from the rules of nnU-Net 2.8.1"] if marked else [])])


def _decisions(plan):
    configuration = plan["configurations"]["2d"]
    network = configuration["architecture"]
    kwargs = network["arch_kwargs"]
    schemes = zip(configuration["normalization_schemes"], configuration["use_mask_for_norm"], strict=True)
    schemes = [scheme.removesuffix("Normalization") + (" in mask" if masked else "") for scheme, masked in schemes]
    steps = [by[0] if by[0] == by[1] else f"{by[0]}x{by[1]}" for by in kwargs["strides"]]
    depth = kwargs.get("n_conv_per_stage") or kwargs.get("n_blocks_per_stage")
    return {
        "patch size": _size(configuration["patch_size"]),
        "stages": f"{kwargs['n_stages']} (strides {_brief(steps)})",
        "network": f"{network['network_class_name'].rpartition('.')[2]} ({_brief(depth)})",
        "features": _brief(kwargs["features_per_stage"]),
        "batch size": str(configuration["batch_size"]),
        "normalization": _brief(schemes),
        "spacing": _size(configuration["spacing"]),
    }


def _explanations(why, preset, fingerprint, dataset):
    network, estimate = why.steps[-1]
    lowest = _size([size // by for size, by in zip(network.patch_size, network.divisor, strict=True)])
    start, steps = _size(why.steps[0].network.patch_size), len(why.steps) - 1
    tried = f"; shrunk {steps} times from {start} to fit the memory" if steps else ""
    share = f"{100 * preset.share:g} % of the pixels are {why.batch_by_share}"
    kept = 100 * fingerprint["median_relative_size_after_cropping"]
    unit = "blocks" if preset.residual else "convolutions"
    return {
        "patch size": f"median image {_size(why.median)}, rounded up to multiples of {_size(network.divisor)}{tried}",
        "stages": f"halved down to {lowest}",
        "network": f"preset {preset.plans_name}; {unit} per stage",
        "features": "doubled at each stage up to 512",
        "batch size": f"memory allows {why.batch_by_memory} ({why.memory / 1e6:g} M values for 12 images, one needs "
        f"{estimate / 1e6:.3g} M); {share}; at least 2",
        "normalization": f"channel names; cropping keeps {kept:.3g} % of the images (mask below 75 %)",
        "spacing": f"median of {len(fingerprint['spacings'])} cases",
    }


def _check_plan(plan):
    """Raises an error for a plan with which training is not possible."""
    if not isinstance(plan, dict):
        raise DataError(f"holds {type(plan).__name__}, not an nnU-Net plan (a JSON object)")
    if _FIELDS_V1 & set(plan):
        raise DataError("a plan of nnU-Net v1; expected one of nnU-Net 2.4 or newer; make a new plan")
    _need(plan, _FIELDS, "the plan")
    configurations = plan["configurations"]
    if not isinstance(configurations, dict) or not isinstance(configurations.get("2d"), dict):
        found = ", ".join(configurations) if isinstance(configurations, dict) else repr(configurations)
        raise DataError(f"no configuration 2d; found: {found or 'none'}; make a plan with 2D images")
    configuration = configurations["2d"]
    if "UNet_class_name" in configuration:
        raise DataError("a plan of nnU-Net before 2.4, which has no `architecture`; make a new plan")
    _need(configuration, _FIELDS_2D, "configuration 2d")
    try:
        check_shape(plan, _Plan)
    except ValueError as error:
        raise DataError(f"expected an nnU-Net plan, found: {error}; make a new plan") from error
    class_and_arguments(plan)
    _check_numbers(configuration)
    if configuration["preprocessor_name"] != "DefaultPreprocessor":
        raise DataError(f"preprocessor {configuration['preprocessor_name']!r}; only DefaultPreprocessor is supported")
    schemes, masked = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    for scheme in schemes:
        if scheme not in NORMALIZATIONS:
            raise DataError(f"unknown normalization scheme {scheme!r}; known are {', '.join(NORMALIZATIONS)}")
    if not schemes or len(schemes) != len(masked):
        raise DataError(
            f"{len(schemes)} normalization_schemes and {len(masked)} use_mask_for_norm; expected one per channel"
        )


def _check_numbers(configuration):
    """Raises DataError for patch and batch sizes that do not fit the network."""
    patch, batch = configuration["patch_size"], configuration["batch_size"]
    if not _counts(patch) or len(patch) != 2:
        raise DataError(f"patch_size is {patch!r}; expected height and width, two positive integers")
    if not _counts([batch]):
        raise DataError(f"batch_size is {batch!r}; expected a positive integer")
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    if not isinstance(strides, list) or not all(_counts(stride) and len(stride) == 2 for stride in strides):
        raise DataError(f"strides are {strides!r}; expected pairs of positive integers")
    multiple = total_stride(strides)
    if any(size % by for size, by in zip(patch, multiple, strict=True)) or tuple(patch) == multiple:
        raise DataError(
            f"patch_size {_size(patch)} does not fit the strides: height and width must be multiples of "
            f"{multiple[0]} and {multiple[1]}, and larger than {_size(multiple)}"
        )


def _counts(values):
    return isinstance(values, list) and bool(values) and all(map(is_count, values))


def _need(content, fields, what):
    missing = [field for field in fields if field not in content]
    if missing:
        raise DataError(f"{what} lacks {', '.join(missing)}; expected a plan of nnU-Net 2.4 or newer; make a new plan")


def _name(plan):
    return f"{plan['plans_name']} of {plan.get('dataset_name', 'an unnamed data set')}"


def _size(sizes):
    return "x".join(f"{size:g}" for size in sizes)


def _brief(values):
    """Returns values as text, such as `1, 2 (5 times)` for 1, 2, 2, 2, 2, 2."""
    values = values if isinstance(values, list) else [values]  # one number stands for all stages
    runs = [(value, len(list(run))) for value, run in itertools.groupby(values)]
    return ", ".join(
        f"{value} ({count} times)" if count > 2 else ", ".join([str(value)] * count) for value, count in runs
    )
