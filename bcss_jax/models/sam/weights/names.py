"""The names under which SAM and SAM 2.1 are published: those of Meta and of Hugging Face, in the files.

All become the names of Meta's `Sam` and `SAM2Base`.
"""

import re
from collections.abc import Mapping

import numpy as np

from bcss_jax.errors import DataError

_WRAPPER = re.compile(r"^(?:(?:module|_orig_mod|model|sam|sam_model|network)\.)+")
_HEADS = r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.)"
_MATRIX = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_HUGGING_FACE = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
        (r"^vision_encoder\.layers\.(\d+)\.", r"image_encoder.blocks.\1."),
        (r"^vision_encoder\.neck\.(convs\.\d+)\.", r"image_encoder.neck.\1.conv."),
        (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
        (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
        (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
        (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
        (r"^vision_encoder\.", "image_encoder."),
        (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
        (r"\.layer_norm(\d|_final_attn)\.", r".norm\1."),
        (_HEADS + r"layers\.0\.", r"\1layers.1."),
        (_HEADS + r"proj_in\.", r"\1layers.0."),
        (_HEADS + r"proj_out\.", r"\1layers.2."),
        (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
        (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
        (r"^(mask_decoder\.transformer\..*)\.o_proj\.", r"\1.out_proj."),
        (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
        (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
        (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
        (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
        (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
        (r"^prompt_encoder\.mask_embed\.norm1\.", "prompt_encoder.mask_downscaling.1."),
        (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
        (r"^prompt_encoder\.mask_embed\.norm2\.", "prompt_encoder.mask_downscaling.4."),
        (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
        (r"^(?:shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$", _MATRIX),
        (r"^no_memory_embedding$", "no_mem_embed"),
    )
)
# What SAM 2's files hold for videos, under names of both.
_VIDEO = re.compile(
    r"^(?:memory_attention\.|memory_encoder\.|maskmem_tpos_enc$|no_mem_pos_enc$|no_obj_ptr$|no_obj_embed_spatial$"
    r"|mask_downsample\.|obj_ptr_proj\.|obj_ptr_tpos_proj\.|memory_temporal_positional_encoding$"
    r"|no_memory_positional_encoding$|no_object_pointer$|object_pointer_proj\.|occlusion_spatial_embedding_parameter$"
    r"|temporal_positional_encoding_projection_layer\.)"
)
# Of the pixels, 0 to 255; some programs save them with the weights.
_STATISTICS = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}


def is_sam2(arrays: Mapping[str, np.ndarray]) -> bool:
    """Returns whether weights under Meta's names are those of SAM 2 or 2.1."""
    return any(name.startswith(("image_encoder.trunk.", "sam_mask_decoder.")) for name in arrays)


def canonical(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the weights of SAM or SAM 2.1 under the names of Meta.

    Args:
      state: name -> array in PyTorch's layout, as in the file.

    Returns:
      The weights, and the names of the file that are not needed for images: those for videos, and statistics of pixels
      after they have been compared.

    Raises:
      DataError: two names of the file mean the same weights and differ, or the statistics are not those of SAM.
    """
    stripped = {name: _WRAPPER.sub("", name) for name in state}
    hugging_face = any(name.startswith(("vision_encoder.", "shared_image_embedding.")) for name in stripped.values())
    arrays: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    others: list[str] = []
    for original, name in stripped.items():
        array = np.asarray(state[original])
        if _VIDEO.match(name):
            others.append(original)
            continue
        if name in _STATISTICS:
            _compare_statistics(original, array, _STATISTICS[name])
            others.append(original)
            continue
        if hugging_face:
            for pattern, replacement in _HUGGING_FACE:
                name = pattern.sub(replacement, name)
        if name in arrays and not np.array_equal(arrays[name], array):
            raise DataError(f"{sources[name]} and {original} are both {name} and differ; keep one of them")
        arrays[name], sources[name] = array, original
    points = arrays.pop("prompt_encoder.point_embeddings.weight", None)
    if points is not None:  # Hugging Face's SAM 2 has the four vectors in one
        arrays |= {f"prompt_encoder.point_embeddings.{i}.weight": row[None] for i, row in enumerate(points)}
    if is_sam2(arrays):
        arrays = {re.sub(r"^(prompt_encoder|mask_decoder)\.", r"sam_\1.", name): a for name, a in arrays.items()}
    return arrays, others


def _compare_statistics(name: str, found: np.ndarray, expected: tuple[float, ...]) -> None:
    if found.size != 3 or not np.allclose(found.ravel(), expected, rtol=1e-3):
        raise DataError(
            f"{name} is {np.round(found.ravel()[:3], 3).tolist()}, expected {list(expected)}; another normalization "
            "of images is not supported"
        )
