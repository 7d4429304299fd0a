"""Dense U-Net after Cai et al. 2020.

    python -m bcss_jax.main --config=configs/dense_unet.py                the built-in sample; minutes on two cores
    python -m bcss_jax.main --config=configs/dense_unet.py:kaggle224 --config.data.dir=FOLDER

The argument after the colon is a layout (sample, kaggle224, kaggle512, roi). Append `,few` for a few hundred tiles,
and `,kaggle_t4` to compute in float16 on two T4s. `kaggle224,report` trains the network of the report's own code by its
recipe (docs/reproducing_the_report.md).
With `,few`, the network is narrower too.
"""

from bcss_jax.config import apply_data_preset, default, is_report, report_recipe


def get_config(argument: str = "sample"):
    """Returns the recipe for a layout.

    The sample and the recipe for few tiles use a smaller network and batch so that a laptop's CPU is enough.
    """
    if is_report(argument):
        return report_recipe("dense_unet", argument, growth=32, layers=(4, 4, 4, 4, 4), init_width=64)
    config = default("dense_unet", growth=32, layers=(4, 4, 4, 4), bottleneck_layers=4, init_width=64, compression=0.5)
    layout = apply_data_preset(config, "dense_unet", argument, few_rate=1e-3, t4_parts=4)
    if layout == "sample":
        config.epochs = 4
        config.optimizer.learning_rate = 1e-3
    if layout == "sample" or "few" in argument.split(","):
        config.model.update(growth=12, init_width=24)  # about an eighth of the computation
    return config
