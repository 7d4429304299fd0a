"""Loads a file of SAM or SAM 2.1, of Meta or Hugging Face."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from bcss_jax.common.digests import sha256_of_file
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.models.sam.architecture import ViTForm
from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.sam.sam2 import Sam2
from bcss_jax.models.sam.weights.description import description_of
from bcss_jax.models.sam.weights.fitting import decoder_form_of, form_of, preset_of
from bcss_jax.models.sam.weights.names import canonical
from bcss_jax.models.weights.files import PTH, read_torch_checkpoint, read_weights
from bcss_jax.models.weights.pretrained import load_torch_state


@dataclasses.dataclass(frozen=True)
class LoadedSam:
    """A network with the weights of a file.

    Attributes:
      model: the network.
      name: of the published network that has its form; None: no published one has.
      file: name of the file.
      sha256: of the file.
      unused: names in the file that are not needed to segment images, such as SAM 2.1's memory for videos.
    """

    model: Sam | Sam2
    name: str | None
    file: str
    sha256: str
    unused: tuple[str, ...]


def load(path: Path, *, name: str = "", image_size: int = 0, dtype: Dtype = jnp.float32) -> LoadedSam:
    """Builds the network that a file of weights belongs to, and loads it.

    Args:
      path: .safetensors, .npz, or .pth, .pt, .bin, .tar of PyTorch. A .pth may hold the weights under `model` (SAM
        2.1), `state_dict`, `model_state` (micro_sam) and the others of `files.read_weights`.
      name: a published network (`presets.PRESETS`) that the file has to be; empty: the file decides.
      image_size: height and width of the network's input, pixels; 0: as the weights were trained, which a file that was
        tuned here says. Positions are resized to another size.
      dtype: type of the computation.

    Raises:
      DataError: the file cannot be read, or does not hold the whole weights of such a network.
      ConfigError: the size fits no network, or the file type is unknown.
    """
    path = Path(path).expanduser()
    state, others = _read(path)
    try:
        arrays, unused = canonical(state)
        form = form_of(arrays)
        found = preset_of(form)
        if name and found != name:
            raise DataError(f"expected the weights of {name}, found those of {found or 'no published SAM'}")
        described = None if image_size else description_of(path)
        size = image_size if described is None else described["image_size"]
        common = dict[str, Any](image_size=size, dtype=dtype)
        decoder = decoder_form_of(arrays)
        model = Sam(form, decoder, **common) if isinstance(form, ViTForm) else Sam2(form, decoder, **common)
        load_torch_state(model, arrays)
    except (DataError, ConfigError) as error:
        raise type(error)(f"{printable(path)}: {error}") from error
    model.eval()
    return LoadedSam(model, found, path.name, sha256_of_file(path), tuple([*unused, *others]))


def _read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the weights of a file, and the names of what a checkpoint holds beside them."""
    if path.suffix.lower() not in PTH:
        return read_weights(path).arrays, []
    arrays, others = read_torch_checkpoint(path)
    return arrays, [str(name) for name in others]
