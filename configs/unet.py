"""U-Net.

    python -m bcss_jax.main --config=configs/unet.py                  the built-in sample; minutes on two cores
    python -m bcss_jax.main --config=configs/unet.py:kaggle224 --config.data.dir=FOLDER       the published recipe

The argument after the colon is a layout (sample, kaggle224, kaggle512, roi). Append `,few` for a few hundred tiles,
`,kaggle_t4` to compute in float16 on two T4s, and `,robust` to change the strength of the stains.
`kaggle224,report` trains the network of the report's own code by its recipe (docs/reproducing_the_report.md).
Any setting of bcss_jax/config.py can be changed on the command line, for example `--config.batch_size=32`.
"""

from bcss_jax.config import apply_data_preset, default, is_report, report_recipe


def get_config(argument: str = "sample"):
    """Returns the recipe for a layout.

    The sample uses a smaller network and batch so that a laptop's CPU is enough.
    """
    if is_report(argument):
        return report_recipe("unet", argument, width=32, dropout=0.5)
    config = default("unet", width=64, depth=4, bilinear=False)
    if apply_data_preset(config, "unet", argument, few_rate=1e-3) == "sample":
        config.model.width = 16
        config.epochs = 12
        config.optimizer.learning_rate = 1e-3
    return config
