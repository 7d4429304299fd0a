"""The settings of a training with simulated prompts beside those of `bcss_jax.config`, and their check."""

from typing import Any

from ml_collections import ConfigDict

from bcss_jax import config as training_config
from bcss_jax.common.ranges import Range
from bcss_jax.config import check_ranges
from bcss_jax.errors import ConfigError
from bcss_jax.labels import LabelScheme
from bcss_jax.models.sam.architecture import HieraForm
from bcss_jax.models.sam.hiera import MULTIPLE
from bcss_jax.models.sam.presets import form_of_encoder

METHOD = "prompts"
RANGES = {
    "image_size": Range(16, 4096, whole=True),
    "prompts.objects": Range(1, 256, whole=True),
    "prompts.clicks": Range(0, 64, whole=True),
}
# Settings of a semantic network that have no meaning here.
_WITHOUT_EFFECT = (
    "loss.dice_batch", "loss.smooth", "loss.suppress_ignored_logit", "deep_supervision", "validation_loss", "remat",
    "sync_batch_norm", "freeze_encoder_epochs",
)  # fmt: skip


def default() -> ConfigDict:
    """Returns the settings of a training with prompts, without a data set."""
    config: Any = training_config.default("sam", enlarge=1)
    add_prompts(config)
    return config


def add_prompts(config: Any) -> None:
    """Makes the settings of `configs/sam.py` those of a training with prompts."""
    config.method = METHOD  # what distinguishes these settings from those of a semantic network
    config.image_size = 1024  # height and width of the network's input in pixels, to which tiles are resized
    config.batch_size = config.eval_batch_size = 8  # images are large, and each has several objects
    config.prompts = ConfigDict()  # what a user would do, simulated
    config.prompts.objects = 4  # connected regions of a tile that are segmented in a step
    config.prompts.clicks = 7  # points after the first point or box, each where the prediction before is wrong
    del config.model["enlarge"]


def validate(config: Any, scheme: LabelScheme) -> None:
    """Checks names, ranges and combinations.

    Raises:
      ConfigError: one line with the field, what it is and what it may be.
    """
    training_config.validate(config, scheme)
    check_ranges(config, RANGES)
    defaults: Any = training_config.default("sam")
    for name in _WITHOUT_EFFECT:
        value, default = (_get(each, name) for each in (config, defaults))
        if value != default:
            raise ConfigError(f"config.{name}={value}: has no effect on a training with prompts; leave it at {default}")
    form = form_of_encoder(config.encoder, config.image_size)
    multiple = MULTIPLE if isinstance(form, HieraForm) else form.patch
    if config.image_size % multiple:
        near = max(round(config.image_size / multiple), 1) * multiple
        raise ConfigError(
            f"config.image_size={config.image_size}: must be a multiple of {multiple} for {config.encoder}; try {near}"
        )
    if config.augment_on != "host":
        raise ConfigError(f"config.augment_on={config.augment_on}: a training with prompts augments on the host")


def _get(config: Any, field: str) -> Any:
    for part in field.split("."):
        config = config[part]
    return config
