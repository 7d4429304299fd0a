"""A SAM with a token for each class goes through training, resumption, evaluation, a slide and export."""

import pytest
from helpers.every_command import TILES, every_command
from helpers.sam_small import use_small_sams
from helpers.small_networks import SAM_DECODER

import bcss_jax
from bcss_jax.models import sam_segmenter
from bcss_jax.models.sam_segmenter import SamSegmenter


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"encoder": "tiny"}, {"encoder": "tiny2", "freeze_encoder": True}])
def test_class_tokens(tmp_path, monkeypatch, how):
    use_small_sams(monkeypatch)
    monkeypatch.setattr(sam_segmenter, "DECODER", SAM_DECODER)
    config = {
        "data.dir": str(TILES), "data.prepared_dir": str(tmp_path / "prepared"), "epochs": 2, "batch_size": 8,
        "eval_batch_size": 8,
    }  # fmt: skip
    (model, metadata), _ = every_command(tmp_path, bcss_jax.load_config("sam:kaggle224,few", config | how))
    assert isinstance(model, SamSegmenter) and metadata["config"]["model"]["name"] == "sam"
