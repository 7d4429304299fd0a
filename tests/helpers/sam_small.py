"""Trainings of SAM with prompts in the smallest form."""

import bcss_jax
from bcss_jax.models.sam import presets, promptable
from helpers.paths import ROOT
from helpers.small_networks import SAM_DECODER, SAM_FORMS

TILES = ROOT / "tests" / "data" / "written_before" / "tiles"


def use_small_sams(monkeypatch):
    """Makes the names `tiny` and `tiny2` those of the smallest encoders, with a small decoder."""
    for name, form in SAM_FORMS.items():
        monkeypatch.setitem(presets.PRESETS, name, form)
    monkeypatch.setattr(promptable, "DECODER", SAM_DECODER)


def prompt_settings(tmp_path, **changes):
    """Returns the settings of a training on four tiles of 64 pixels."""
    config = {
        "data.dir": str(TILES), "data.prepared_dir": str(tmp_path / "prepared"), "encoder": "tiny", "image_size": 32,
        "epochs": 2, "batch_size": 8, "eval_batch_size": 8, "prompts.objects": 2, "prompts.clicks": 2,
    }  # fmt: skip
    return bcss_jax.load_config("sam:kaggle224,few,prompts", config | changes)
