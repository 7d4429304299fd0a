"""What a network with SAM's encoder starts from: a file of SAM, of a plain transformer, or of its own kind."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bcss_jax.errors import DataError
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS as PLAIN
from bcss_jax.models.sam.architecture import HieraForm, ViTForm
from bcss_jax.models.sam.image_encoder import resized_distances, resized_positions
from bcss_jax.models.sam.weights.fitting import form_of, preset_of
from bcss_jax.models.sam.weights.names import canonical
from bcss_jax.models.sam.weights.plain_vit import sam_state

LICENSE = "Apache-2.0"  # of Meta's weights of SAM and SAM 2.1
_CLASSES = ("mask_decoder.mask_tokens.", "mask_decoder.output_hypernetworks_mlps.")
_PROMPTS = (
    "prompt_encoder.point_embeddings.", "prompt_encoder.not_a_point_embed.", "prompt_encoder.mask_downscaling.",
    "mask_decoder.iou_prediction_head.", "mask_decoder.pred_obj_score_head.",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Start:
    """Weights to start from.

    Attributes:
      arrays: under Meta's names, in PyTorch's layout.
      part: "encoder" if they are of the encoder alone, else "model".
      complete: whether nothing may be missing. If not, the network keeps its own weights of what `of_masks` names, and
        of all but the encoder if they are of the encoder alone.
      unused: names of the file that have no place.
      license: of the weights; None: unknown.
      notes: what was changed, for the user.
    """

    arrays: dict[str, np.ndarray]
    part: str
    complete: bool
    unused: tuple[str, ...]
    license: str | None
    notes: tuple[str, ...]


def of_classes(name: str) -> bool:
    """Returns whether weights belong to single masks, of which a semantic network has one for each class."""
    return name.removeprefix("sam_").startswith(_CLASSES)


def of_masks(name: str) -> bool:
    """Returns whether weights belong to prompts or to single masks."""
    return of_classes(name) or _of_prompts(name)


def _of_prompts(name: str) -> bool:
    return name.removeprefix("sam_").startswith(_PROMPTS)


def start_of(state: Mapping[str, np.ndarray], form: ViTForm | HieraForm, encoder: str, *, prompts: bool) -> Start:
    """Returns the weights of a file for a network with SAM's encoder.

    Args:
      state: name -> array in PyTorch's layout, as in the file.
      form: of the network's encoder. Tables of positions and distances of a SAM of another size are resized.
      encoder: name of the form.
      prompts: whether the network takes prompts. If not, weights for prompts are left out. Those of masks are left out
        unless both networks take prompts, or neither does: masks that prompts mean have no meaning for classes.

    Raises:
      DataError: the weights are not of a network with such an encoder.
    """
    arrays, unused = canonical(state)
    if not any(name.startswith("image_encoder.") for name in arrays):
        if encoder not in PLAIN:
            raise DataError(f"expected the weights of {encoder}, found names such as {', '.join(sorted(state)[:3])}")
        trunk, unused = sam_state(state, PLAIN[encoder])
        arrays = {f"image_encoder.{name}": array for name, array in trunk.items()}
        arrays, notes = _resized(arrays, form)
        return Start(arrays, "encoder", False, tuple(unused), PLAIN[encoder].license, notes)
    found = form_of(arrays)
    if dataclasses.replace(found, table=form.table) != form:
        raise DataError(_other(found, form, encoder))
    arrays, notes = _resized(arrays, form)
    for_prompts = list(filter(_of_prompts, arrays))
    left_out = [] if prompts else list(for_prompts)
    if bool(for_prompts) != prompts:  # masks that prompts mean are no classes, and classes no answers to prompts
        left_out += filter(of_classes, arrays)
    arrays = {name: array for name, array in arrays.items() if name not in left_out}
    complete = prompts and bool(for_prompts)
    if prompts and not complete:
        notes += ("it has classes: what prompts and masks need starts from random weights",)
    license = LICENSE if preset_of(found) else None
    return Start(arrays, "model", complete, (*unused, *left_out), license, notes)


def _other(found: ViTForm | HieraForm, form: ViTForm | HieraForm, encoder: str) -> str:
    """Returns the message on weights of another encoder."""
    name = preset_of(found)
    if name:
        return f"expected the weights of {encoder}, found those of {name}; use --config.encoder={name}"
    if isinstance(found, HieraForm) != isinstance(form, HieraForm):
        family = "SAM 2.1" if isinstance(found, HieraForm) else "SAM"
        return f"expected the weights of {encoder}, found those of {family}"
    differences = [
        f"{field.name} is {getattr(found, field.name)}, expected {getattr(form, field.name)}"
        for field in dataclasses.fields(form)
        if field.name != "table" and getattr(found, field.name) != getattr(form, field.name)
    ]
    return f"expected the weights of {encoder}, found those of another SAM: {'; '.join(differences)}"


def _resized(arrays: dict[str, np.ndarray], form: ViTForm | HieraForm) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns SAM's weights with tables of the size of the form, and a note if they were resized."""
    table: Any = arrays.get("image_encoder.pos_embed")
    if isinstance(form, HieraForm) or table is None or table.ndim != 4 or table.shape[1] == form.table:
        return arrays, ()
    size, changed = table.shape[1], dict(arrays)
    changed["image_encoder.pos_embed"] = np.asarray(resized_positions(jnp.asarray(table), form.table, form.table))
    for block in form.global_blocks:
        for axis in "hw":
            name = f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"
            changed[name] = np.asarray(resized_distances(jnp.asarray(arrays[name]), form.table))
    return changed, (f"positions were resized from {size}x{size} to {form.table}x{form.table}",)
