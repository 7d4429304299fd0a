"""Segment Anything, tuned on labeled tiles: with a token for each class in place of prompts (SAM-Path), or to prompts.

    python -m bcss_jax.main --config=configs/sam.py                  the built-in sample; minutes on two cores
    python -m bcss_jax.main --config=configs/sam.py:kaggle224,few --config.data.dir=FOLDER \
        --config.encoder=sam_vit_b --config.pretrained=sam_vit_b_01ec64.pth
    python -m bcss_jax.main --config=configs/sam.py:kaggle224,prompts ...                tuned to simulated prompts

--config.encoder names the form of the encoder: a published SAM (bcss_jax/models/sam/presets.py), or a plain vision
transformer such as vit_tiny16, of which SAM's form is made; its file may come from bcss_jax.pretrain. The encoder is
trained whole, or not at all (--config.freeze_encoder=True), or it stays as it is and low-rank matrices beside its own
are trained (LoRA, --config.lora.rank=8). The argument after the colon is a layout (sample, kaggle224, kaggle512, roi,
slides). Append `,few` for a few hundred tiles, and `,prompts` for a SAM that points and boxes prompt: random ones on
the regions of the masks, and points where the prediction is wrong. It is written as sam.safetensors.
"""

from bcss_jax.config import apply_data_preset, default
from bcss_jax.tuning.config import METHOD, add_prompts


def get_config(argument: str = "sample"):
    """Returns the recipe for a layout.

    The sample uses a smaller network and batch so that a laptop's CPU is enough.
    """
    layout, *recipes = argument.split(",")
    prompts = METHOD in recipes
    recipes = [recipe for i, recipe in enumerate(recipes) if recipe != METHOD or METHOD in recipes[:i]]
    config = default("sam", enlarge=1)
    config.encoder = "sam_vit_b"  # name of the encoder, bcss_jax/models/sam/presets.py
    config.optimizer.learning_rate = 3e-4
    if prompts:
        add_prompts(config)
    system = f"sam_{METHOD}" if prompts else "sam"
    others = f"',{METHOD}' (points and boxes instead of classes)"
    if apply_data_preset(config, system, ",".join([layout, *recipes]), others=others) == "sample":
        config.encoder = "vit_tiny16"
        config.epochs = 12
        if prompts:
            config.image_size = 224
            config.prompts.update(objects=2, clicks=3)
    if prompts and "kaggle_t4" in recipes:
        config.micro_batches = 4  # one image at a time on each of the two
    config.model.encoder = config.get_ref("encoder")
    for name in config.lora:
        config.model[f"lora_{name}"] = config.lora.get_ref(name)
    return config
