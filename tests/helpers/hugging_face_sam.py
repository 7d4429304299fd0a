"""The names that transformers' conversion scripts give to the weights of SAM and SAM 2.1 (transformers 5.23)."""

import re

import numpy as np

COMMON = (
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    ("mask_downscaling.0", "mask_embed.conv1"),
    ("mask_downscaling.1", "mask_embed.layer_norm1"),
    ("mask_downscaling.3", "mask_embed.conv2"),
    ("mask_downscaling.4", "mask_embed.layer_norm2"),
    ("mask_downscaling.6", "mask_embed.conv3"),
    ("point_embeddings", "point_embed"),
    ("output_upscaling.0", "upscale_conv1"),
    ("output_upscaling.1", "upscale_layer_norm"),
    ("output_upscaling.3", "upscale_conv2"),
    ("patch_embed.proj.", "patch_embed.projection."),
    (".norm", ".layer_norm"),
)
SAM = (
    ("image_encoder.blocks", "vision_encoder.layers"),
    ("neck.0.", "neck.conv1."),
    ("neck.1.", "neck.layer_norm1."),
    ("neck.2.", "neck.conv2."),
    ("neck.3.", "neck.layer_norm2."),
    ("image_encoder", "vision_encoder"),
)
SAM2 = (
    ("image_encoder.trunk", "vision_encoder.backbone"),
    ("image_encoder", "vision_encoder"),
    (".conv.", "."),
    ("sam_prompt_encoder", "prompt_encoder"),
    ("sam_mask_decoder", "mask_decoder"),
    (".mlp.layers.0.", ".mlp.proj_in."),
    (".mlp.layers.1.", ".mlp.proj_out."),
    (".out_proj.", ".o_proj."),
    ("no_mem_embed", "no_memory_embedding"),
)
HEADS = re.compile(r"(hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.layers\.(\d)")


def hugging_face_names(state, sam2=False):
    """Returns weights under Meta's names as Hugging Face's files hold them."""
    renamed = {}
    for name, array in state.items():
        for old, new in (SAM2 if sam2 else SAM) + COMMON:
            name = name.replace(old, new)
        name = HEADS.sub(lambda found: f"{found[1]}.{('proj_in', 'layers.0', 'proj_out')[int(found[2])]}", name)
        renamed[name] = array
    matrix = "prompt_encoder.shared_embedding.positional_embedding"
    renamed["shared_image_embedding.positional_embedding"] = renamed[matrix]
    if sam2:
        rows = [renamed.pop(f"prompt_encoder.point_embed.{i}.weight") for i in range(4)]
        renamed["prompt_encoder.point_embed.weight"] = np.concatenate(rows)
    else:
        del renamed[matrix]  # tied weights are stored once
    return renamed
