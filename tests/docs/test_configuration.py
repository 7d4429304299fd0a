"""The page of settings is what the script writes from the code."""

import importlib.util

from helpers.paths import ROOT

from bcss_jax import config
from bcss_jax.nnunet import config as nnunet_config
from bcss_jax.pretraining import config as pretraining_config
from bcss_jax.tuning import config as tuning_config

SCRIPT = ROOT / "docs" / "generate_configuration.py"


def _script():
    spec = importlib.util.spec_from_file_location("generate_configuration", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_of_settings_is_current():
    assert _script().PAGE.read_text() == _script().page(), "run python docs/generate_configuration.py"


def test_page_lists_every_setting():
    page = _script().page()
    training, others = page.split("## nnU-Net")
    nnunet, others = others.split("## Prompts")
    tuning, pretraining = others.split("## Pretraining")
    assert all(f"| `{name}` |" in tuning for name in (*tuning_config.RANGES, "method"))
    for text, module in ((training, config), (nnunet, nnunet_config), (pretraining, pretraining_config)):
        names = [name for name in config.field_names(module.default()) if not name.startswith("model.")]
        assert [name for name in names if f"| `{name}` |" not in text] == []
