"""SAM and SAM 2.1 of Hugging Face's transformers with the weights of this project's networks."""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from helpers.hugging_face_sam import hugging_face_names  # noqa: E402

from bcss_jax.models.sam.architecture import HieraForm, ViTForm  # noqa: E402

# Names that transformers computes or ties, so that files do not hold them.
_NOT_STORED = {"prompt_encoder.shared_embedding.positional_embedding"}


class Twin:
    """The network of transformers in float32, with attention as it chooses it (`sdpa`)."""

    def __init__(self, form: ViTForm | HieraForm, image_size: int, state: dict[str, np.ndarray]):
        """Builds the network and loads weights under Meta's names."""
        self.finer = isinstance(form, HieraForm)
        if isinstance(form, HieraForm):
            model = transformers.Sam2Model(_sam2_config(form, image_size))
        else:
            model = transformers.SamModel(_sam_config(form, image_size))
        named = {name: torch.from_numpy(array.copy()) for name, array in hugging_face_names(state, self.finer).items()}
        found = model.load_state_dict(named, strict=False)
        left = {*found.unexpected_keys, *found.missing_keys} - _NOT_STORED
        if left:
            raise ValueError(f"weights that only one of the two networks has: {', '.join(sorted(left))}")
        model.tie_weights()
        self.model = model.eval()

    @torch.inference_mode()
    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns the maps (N, C, h, w) of normalized images (N, 3, H, W), the embedding last."""
        found = self.model.get_image_embeddings(images)
        return list(found) if self.finer else [found]

    @torch.inference_mode()
    def decode(self, maps: list[torch.Tensor], points: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits (P, 3, h, w) and scores (P, 3) of points (P, 2) inside, each a prompt by itself."""
        found = self.model(
            image_embeddings=maps if self.finer else maps[0],
            input_points=points[None, :, None],
            input_labels=torch.ones((1, len(points), 1), dtype=torch.int),
            multimask_output=True,
        )
        return found.pred_masks[0].numpy(), found.iou_scores[0].numpy()


def _sam_config(form: ViTForm, image_size: int) -> transformers.SamConfig:
    size = {"image_size": image_size, "patch_size": form.patch}
    return transformers.SamConfig(
        vision_config={
            "hidden_size": form.width, "num_hidden_layers": form.depth, "num_attention_heads": form.heads,
            "mlp_dim": form.hidden, "window_size": form.window, "global_attn_indexes": list(form.global_blocks), **size,
        },
        prompt_encoder_config=size,
        mask_decoder_config={"layer_norm_eps": 1e-5},  # as in Meta's code; the default of transformers is 1e-6
    )  # fmt: skip


def _sam2_config(form: HieraForm, image_size: int) -> transformers.Sam2Config:
    widths = [form.width * 2**stage for stage in range(4)]
    return transformers.Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": form.width, "num_attention_heads": form.heads,
                "image_size": [image_size, image_size], "blocks_per_stage": list(form.stages),
                "embed_dim_per_stage": widths, "window_size_per_stage": list(form.windows),
                "num_attention_heads_per_stage": [form.heads * 2**stage for stage in range(4)],
                "window_positional_embedding_background_size": [form.table, form.table],
                "global_attention_blocks": list(form.global_blocks),
            },
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[image_size // stride] * 2 for stride in (4, 8, 16)],
        },
        prompt_encoder_config={"image_size": image_size},
        mask_decoder_config={},
    )  # fmt: skip
