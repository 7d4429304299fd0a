"""Settings of an encoder that is not trained, and of adapters, are checked together."""

import jax
import pytest

from bcss_jax.api.training import check_config
from bcss_jax.config import validate
from bcss_jax.config_file import load_config
from bcss_jax.errors import ConfigError
from bcss_jax.labels import find_scheme
from bcss_jax.models import create
from bcss_jax.training import build
from bcss_jax.training.sharding import make_mesh


@pytest.mark.parametrize(
    ("system", "changes", "message"),
    [
        ("unet", {"freeze_encoder": True}, "config.freeze_encoder: unet has no encoder of its own"),
        ("vit", {"freeze_encoder": True, "freeze_encoder_epochs": 1}, "leave config.freeze_encoder_epochs at 0"),
        ("vit", {"lora.rank": 2, "optimizer.encoder_scale": 0.1}, "config.lora.rank: the encoder is never trained"),
        ("vit", {"lora.rank": 2, "model.drop_path": 0.1}, "config.lora.rank: drop path has no effect"),
    ],
)
def test_contradictions_are_named(system, changes, message):
    config = load_config(system, changes).copy_and_resolve_references()
    scheme = check_config(config)
    model = create(**config.model, num_classes=scheme.num_classes)
    with pytest.raises(ConfigError, match=message):
        build.make_steps(config, scheme, model, make_mesh(jax.devices()[:1]))


def test_adapters_are_refused_for_other_networks():
    config = load_config("unet", {"lora.rank": 2})
    with pytest.raises(ConfigError, match="config.lora.rank=2: unet has no adapters"):
        validate(config, find_scheme(config.labels))
