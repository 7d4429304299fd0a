"""A vision transformer with a decoder: from random weights, or from a published encoder.

    python -m bcss_jax.main --config=configs/vit.py                  the built-in sample; minutes on two cores
    python -m bcss_jax.main --config=configs/vit.py:kaggle224,few --config.data.dir=FOLDER \
        --config.encoder=gigapath_flash --config.pretrained=gigapath_flash.safetensors

--config.encoder names the form of the network, one of bcss_jax/models/encoders/vision_transformer/presets.py. It also
sets the mean and the deviation of the images. The file of its weights is the user's own and may have the names of DINO,
timm or Hugging Face. The encoder is trained whole, or not at all (--config.freeze_encoder=True), or it stays as it is
and low-rank matrices beside its own are trained (LoRA, --config.lora.rank=8). The argument after the colon is a layout
(sample, kaggle224, kaggle512, roi, slides). Append `,few` for a few hundred tiles.
"""

from bcss_jax.config import apply_data_preset, default


def get_config(argument: str = "sample"):
    """Returns the recipe for a layout.

    The sample uses a smaller network and batch so that a laptop's CPU is enough.
    """
    config = default(
        "vit", table=0, decoder="convolutional", decoded_blocks=1, queries=100, query_blocks=3, drop_path=0.0
    )
    config.encoder = "gigapath_flash"  # name of the encoder, bcss_jax/models/encoders/vision_transformer/presets.py
    config.image_mean = config.image_std = ()  # those of the encoder
    config.optimizer.learning_rate = 3e-4
    if apply_data_preset(config, "vit", argument) == "sample":
        config.encoder = "vit_tiny16"
        config.epochs = 12
    config.model.encoder = config.get_ref("encoder")
    for name in config.lora:
        config.model[f"lora_{name}"] = config.lora.get_ref(name)
    return config
