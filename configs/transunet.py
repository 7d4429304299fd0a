"""TransUNet (R50-ViT-B/16).

    python -m bcss_jax.main --config=configs/transunet.py                the built-in sample; minutes on two cores
    python -m bcss_jax.main --config=configs/transunet.py:kaggle224 --config.data.dir=FOLDER

The argument after the colon is a layout (sample, kaggle224, kaggle512, roi). Append `,few` for a few hundred tiles,
and `,kaggle_t4` to compute in float16 on two T4s. `kaggle224,report` trains the network of the report's own code by its
recipe (docs/reproducing_the_report.md).
The network is built for one image size: 512 with the layout kaggle512, otherwise 224. For other sizes, set
--config.model.image_size. Pretrained weights are optional: --config.pretrained=R50+ViT-B_16.npz. Images are centered on
0.5, as the weights of Google's ViT expect. The published recipe for CT used SGD. This recipe uses AdamW like the other
networks, with a lower learning rate because 5e-3 is far too high for transformers.
"""

from bcss_jax.config import apply_data_preset, default, is_report, report_recipe


def get_config(argument: str = "sample"):
    """Returns the recipe for a layout.

    The sample uses a smaller network and batch so that a laptop's CPU is enough.
    """
    if is_report(argument):
        return report_recipe(
            "transunet", argument, image_size=224, hidden_size=768, num_heads=12, num_layers=12, dropout=0.1
        )
    config = default(
        "transunet",
        image_size=224,
        width_factor=1.0,
        resnet_layers=(3, 4, 9),
        hidden_size=768,
        mlp_size=3072,
        num_heads=12,
        num_layers=12,
        decoder_channels=(256, 128, 64, 16),
        skip_channels=(512, 256, 64, 0),
        dropout=0.1,
        compat="transunet",
    )
    config.image_mean = config.image_std = (0.5, 0.5, 0.5)
    config.optimizer.learning_rate = 3e-4
    layout = apply_data_preset(config, "transunet", argument)
    if layout == "kaggle512":
        config.model.image_size = 512
    if layout == "sample":
        config.model.update(width_factor=0.5, resnet_layers=(2, 2, 2))
        config.model.update(hidden_size=192, mlp_size=768, num_heads=6, num_layers=4)
        config.model.update(decoder_channels=(128, 64, 32, 16), skip_channels=(256, 128, 32, 0))
        config.epochs = 12
    return config
