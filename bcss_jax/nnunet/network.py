"""The network that a plan describes.

Source: nnU-Net 2.8.1, which names a class of dynamic_network_architectures in the plan and calls it with the
`arch_kwargs` there. `bcss_jax.models.nnunet` has two of them in two dimensions; a plan with any other is refused.
"""

from typing import Any

import jax.numpy as jnp
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.nnunet import SLOPE, PlainConvUNet, ResidualEncoderUNet

# Of each class, the argument that says how deep a stage of the encoder is.
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
    """The network that an nnU-Net plan describes.

    Args:
      plan: contents of a file nnUNetPlans.json, as parsed by `json`; nnU-Net 2.4 or newer.
      num_classes: channels of the logits.
      configuration: key in the plan's `configurations`.
      in_channels: channels of the images.
      dtype: type of the arithmetic.
      seed: of the initial weights.

    Raises:
      ConfigError: the plan lacks something, or describes a network that neither class can be.
    """
    network, kwargs = class_and_arguments(plan, configuration)
    return network(num_classes, in_channels=in_channels, dtype=dtype, seed=seed, **kwargs)


def class_and_arguments(plan: dict[str, Any], configuration: str = "2d") -> tuple[type, dict[str, Any]]:
    """What `network_from_plan` builds: the class and what the plan has to say of its arguments. Errors as there."""
    part, path = plan, []
    for key in ("configurations", configuration, "architecture"):
        path.append(key)
        if not isinstance(part.get(key), dict):
            raise ConfigError(f"nnU-Net plan: no {' / '.join(path)}; found there: {', '.join(map(str, part))}")
        part = part[key]
    name = _class_name(part.get("network_class_name"))
    if name not in _NETWORKS:
        raise ConfigError(f"nnU-Net plan: network {name!r} is not supported; these are: {', '.join(_NETWORKS)}")
    network, blocks = _NETWORKS[name]
    kwargs = part.get("arch_kwargs") or {}
    taken = {"n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder", "conv_bias"}
    taken.add(blocks)
    _check_fixed(kwargs, taken)
    return network, {key: kwargs[key] for key in taken}


def _check_fixed(kwargs, taken):
    """Refuses `arch_kwargs` of a plan unless they have the keys `taken`, and those that are fixed here say the same."""
    missing = sorted({*taken, "conv_op", "norm_op", "norm_op_kwargs", "nonlin"} - set(kwargs))
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
    without_use = {"nonlin_kwargs", "dropout_op_kwargs"}
    refused = [f"{key} is {value!r}, not {fixed!r}" for key, (value, fixed) in found.items() if value != fixed]
    refused += [f"unknown {key}" for key in sorted(set(kwargs) - taken - set(found) - without_use)]
    if refused:
        raise ConfigError(f"nnU-Net plan: not supported: {'; '.join(refused)}")


def _class_name(path):
    """`Conv2d` for "torch.nn.modules.conv.Conv2d"."""
    return path.rpartition(".")[2] if isinstance(path, str) else path
