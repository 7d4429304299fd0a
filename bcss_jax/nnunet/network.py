"""Builds the network that a plan describes.

Source: nnU-Net 2.8.1, whose plan names a class of dynamic_network_architectures and its arguments (`arch_kwargs`).
`bcss_jax.models.nnunet` has two of these classes in two dimensions; plans with other classes are refused.
"""

from typing import Any

import jax.numpy as jnp
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.nnunet import SLOPE, PlainConvUNet, ResidualEncoderUNet

# Class name in a plan -> our class, and the name of the argument with the depth of the encoder's stages.
_NETWORKS = {
    "PlainConvUNet": (PlainConvUNet, "n_conv_per_stage"),
    "ResidualEncoderUNet": (ResidualEncoderUNet, "n_blocks_per_stage"),
}


def network_from_plan(
    plan: dict[str, Any],
    num_classes: int,
    *,
    configuration: str = "2d",
    in_channels: int = 3,
    dtype: Dtype = jnp.float32,
    seed: int = 0,
) -> PlainConvUNet | ResidualEncoderUNet:
    """Builds the network that an nnU-Net plan describes.

    Args:
      plan: contents of nnUNetPlans.json, as parsed by `json`; nnU-Net 2.4 or newer.
      num_classes: channels of the logits.
      configuration: key in the plan's `configurations`.
      in_channels: channels of the images.
      dtype: type of the computation.
      seed: of the initial weights.

    Raises:
      ConfigError: the plan is incomplete, or describes a network that neither class supports.
    """
    network, kwargs = class_and_arguments(plan, configuration)
    return network(num_classes, in_channels=in_channels, dtype=dtype, seed=seed, **kwargs)


def class_and_arguments(
    plan: dict[str, Any], configuration: str = "2d"
) -> tuple[type[PlainConvUNet] | type[ResidualEncoderUNet], dict[str, Any]]:
    """Returns the class that `network_from_plan` builds, and its arguments from the plan; raises the same errors."""
    section, path = plan, []
    for key in ("configurations", configuration, "architecture"):
        path.append(key)
        if not isinstance(section.get(key), dict):
            raise ConfigError(f"nnU-Net plan: no {' / '.join(path)}; found there: {', '.join(map(str, section))}")
        section = section[key]
    name = _class_name(section.get("network_class_name"))
    if name not in _NETWORKS:
        raise ConfigError(f"nnU-Net plan: network {name!r} is not supported; supported are {', '.join(_NETWORKS)}")
    network, depth = _NETWORKS[name]
    kwargs = section.get("arch_kwargs") or {}
    used = {"n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder", "conv_bias", depth}
    _check_fixed(kwargs, used)
    return network, {key: kwargs[key] for key in used}


def _check_fixed(kwargs, used):
    """Raises ConfigError if `arch_kwargs` lack a key of `used`, or differ from what is fixed in our networks."""
    missing = sorted({*used, "conv_op", "norm_op", "norm_op_kwargs", "nonlin"} - set(kwargs))
    if missing:
        raise ConfigError(f"nnU-Net plan: arch_kwargs lacks {', '.join(missing)}")
    norm, slope = kwargs["norm_op_kwargs"] or {}, (kwargs.get("nonlin_kwargs") or {}).get("negative_slope", SLOPE)
    found = {
        "conv_op": (_class_name(kwargs["conv_op"]), "Conv2d"),
        "norm_op": (_class_name(kwargs["norm_op"]), "InstanceNorm2d"),
        "norm_op_kwargs": ({"eps": 1e-5} | norm, {"eps": 1e-5, "affine": True}),
        "dropout_op": (kwargs.get("dropout_op"), None),
        "nonlin": (_class_name(kwargs["nonlin"]), "LeakyReLU"),
        "nonlin_kwargs.negative_slope": (slope, SLOPE),
    }
    ignored = {"nonlin_kwargs", "dropout_op_kwargs"}
    refused = [f"{key} is {value!r}, not {fixed!r}" for key, (value, fixed) in found.items() if value != fixed]
    refused += [f"unknown {key}" for key in sorted(set(kwargs) - used - set(found) - ignored)]
    if refused:
        raise ConfigError(f"nnU-Net plan: not supported: {'; '.join(refused)}")


def _class_name(path):
    """Returns the last word of a dotted path: `Conv2d` for "torch.nn.modules.conv.Conv2d"."""
    return path.rpartition(".")[2] if isinstance(path, str) else path
