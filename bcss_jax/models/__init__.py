"""The networks by name, and a function that builds them."""

import functools
import inspect
import math
from typing import Any

import jax
from flax import nnx

from bcss_jax.errors import ConfigError
from bcss_jax.models.dense_unet import DenseUNet
from bcss_jax.models.encoder_unet import EncoderUNet
from bcss_jax.models.encoders.densenet import densenet121
from bcss_jax.models.encoders.resnet import resnet34, resnet50, resnet101
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.models.nnunet import PlainConvUNet, ResidualEncoderUNet
from bcss_jax.models.report.dense_unet import ReportDenseUNet
from bcss_jax.models.report.transunet import ReportTransUNet
from bcss_jax.models.report.unet import ReportUNet
from bcss_jax.models.sam_segmenter import SamSegmenter
from bcss_jax.models.tiatoolbox_unet import TIAToolboxUNet
from bcss_jax.models.transunet import TransUNet
from bcss_jax.models.unet import UNet
from bcss_jax.models.vit_segmenter import ViTSegmenter

MODELS = {
    "dense_unet": DenseUNet,
    "dense_unet_121": functools.partial(EncoderUNet, encoder=densenet121),
    "nnunet": PlainConvUNet,
    "nnunet_resenc": ResidualEncoderUNet,
    "report_dense_unet": ReportDenseUNet,
    "report_transunet": ReportTransUNet,
    "report_unet": ReportUNet,
    "sam": SamSegmenter,
    "tiatoolbox_unet": functools.partial(TIAToolboxUNet, encoder=resnet50),
    "transunet": TransUNet,
    "unet": UNet,
    "unet_resnet34": functools.partial(EncoderUNet, encoder=resnet34),
    "unet_resnet50": functools.partial(EncoderUNet, encoder=resnet50),
    "unet_resnet101": functools.partial(EncoderUNet, encoder=resnet101),
    "vit": ViTSegmenter,
}
MAX_PARAMETERS = 2e9  # with gradients and the two moments of AdamW, 32 GB


def create(name: str, **kwargs) -> nnx.Module:
    """Builds a model that maps float32 images (N, H, W, C) to float32 logits (N, H, W, num_classes).

    The logits of a model with `full_size_logits` have another size; that method returns those of every pixel.
    The model is in evaluation mode; `model.train()` changes that.

    Args:
      name: a key of `MODELS`.
      **kwargs: arguments of the model's class.

    Raises:
      ConfigError: there is no such model, an argument is unknown, or a required argument is missing.
    """
    if name not in MODELS:
        raise ConfigError(f"there is no model {name!r}; the models are {', '.join(sorted(MODELS))}")
    parameters = _parameters(name)
    unknown = sorted(set(kwargs) - set(parameters))
    if unknown:
        raise ConfigError(f"model {name!r} has no argument {', '.join(unknown)}; it takes {', '.join(parameters)}")
    missing = [key for key, value in parameters.items() if value.default is value.empty and key not in kwargs]
    if missing:
        raise ConfigError(f"model {name!r} needs the argument {', '.join(missing)}")
    model = MODELS[name](**kwargs)
    model.eval()  # models are built to predict; training switches the mode itself
    return model


def check_size(name: str, **kwargs) -> None:
    """Raises ConfigError for a network of more parameters than can be trained, before any of them is allocated.

    Args:
      name: as the others, of `create`.
      **kwargs: arguments of the model's class.
    """
    model = nnx.eval_shape(lambda: create(name, **kwargs))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    if count > MAX_PARAMETERS:
        raise ConfigError(
            f"model {name!r} has {count:.3g} parameters with these arguments; at most {MAX_PARAMETERS:.3g} can be "
            "trained; choose fewer channels or layers"
        )


def default_arguments(name: str) -> dict:
    """Returns the arguments of a model that have a default value, with these values."""
    return {key: value.default for key, value in _parameters(name).items() if value.default is not value.empty}


def image_statistics(name: str, **arguments) -> ImageStatistics | None:
    """Returns what images must be normalized with for a network that accepts no other statistics, or None.

    Args:
      name: of the network; None is returned for one that does not exist.
      **arguments: of the network.

    Raises:
      ConfigError: the arguments name an encoder that does not exist.
    """
    model = MODELS.get(name)
    model = model.func if isinstance(model, functools.partial) else model
    found: Any = getattr(model, "image_statistics", None)
    return found if isinstance(found, ImageStatistics | None) else found(**arguments)


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """Returns the arguments that `create` takes for a model."""
    model, fixed = MODELS[name], {"self"}
    if isinstance(model, functools.partial):
        model, fixed = model.func, fixed | model.keywords.keys()
    # The signature of __init__ is used because calling the class goes through nnx's metaclass, which accepts anything.
    parameters = inspect.signature(model.__init__ if inspect.isclass(model) else model).parameters
    return {key: value for key, value in parameters.items() if key not in fixed}
