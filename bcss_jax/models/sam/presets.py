"""The published networks by name. None of the files is shipped."""

import dataclasses
import difflib

from flax.typing import Dtype
from jax import numpy as jnp

from bcss_jax.errors import ConfigError
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS as PLAIN
from bcss_jax.models.sam.architecture import HieraForm, ViTForm
from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.sam.sam2 import Sam2
from bcss_jax.models.sam.weights.plain_vit import form_of_preset

PRESETS: dict[str, ViTForm | HieraForm] = {
    "sam_vit_b": ViTForm(768, 12, 12, (2, 5, 8, 11), hidden=3072),
    "sam_vit_l": ViTForm(1024, 24, 16, (5, 11, 17, 23), hidden=4096),
    "sam_vit_h": ViTForm(1280, 32, 16, (7, 15, 23, 31), hidden=5120),
    "sam2.1_hiera_t": HieraForm(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "sam2.1_hiera_s": HieraForm(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "sam2.1_hiera_b+": HieraForm(112, 2, (2, 3, 16, 3), (12, 16, 20), table=14),
    "sam2.1_hiera_l": HieraForm(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)),
}


def create(name: str, *, image_size: int = 1024, dtype: Dtype = jnp.float32, seed: int = 0) -> Sam | Sam2:
    """Builds a published network with random weights.

    Args:
      name: a key of `PRESETS`.
      image_size: height and width of the network's input, pixels.
      dtype: type of the computation.
      seed: of the weights.

    Raises:
      ConfigError: there is no such network, or it has no such size.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"there is no SAM {name!r}; there are {', '.join(PRESETS)}{hint}")
    form = PRESETS[name]
    if isinstance(form, ViTForm):
        return Sam(form, image_size=image_size, dtype=dtype, seed=seed)
    return Sam2(form, image_size=image_size, dtype=dtype, seed=seed)


def form_of_encoder(name: str, image_size: int = 0) -> ViTForm | HieraForm:
    """Returns the form of SAM's encoder for a published SAM, or for a plain vision transformer.

    Args:
      name: of the published network.
      image_size: height and width of the images that the table of positions of a plain one is for; 0: as published.

    Raises:
      ConfigError: there is no such network, or SAM's encoder has no place for what it has.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name in PLAIN:
        form = form_of_preset(name, PLAIN[name])
        return dataclasses.replace(form, table=max(image_size // form.patch, 1)) if image_size else form
    near = difflib.get_close_matches(str(name), [*PRESETS, *PLAIN], n=3, cutoff=0.3)
    raise ConfigError(
        f"sam: there is no encoder {name!r}; "
        + (f"did you mean {' or '.join(near)}? " if near else "")
        + f"The encoders are {', '.join(PRESETS)}, and plain vision transformers such as vit_tiny16 and vit_small16"
    )
