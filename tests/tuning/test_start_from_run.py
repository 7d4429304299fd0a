"""Trainings of SAM start from the run of a SAM with classes, or from one tuned to prompts."""

import json

import numpy as np
import pytest
from helpers.sam_small import TILES, prompt_settings, use_small_sams
from helpers.small_networks import SAM_DECODER, small_sam

import bcss_jax
from bcss_jax.errors import DataError
from bcss_jax.models import sam_segmenter
from bcss_jax.models.sam.promptable import PromptableSam
from bcss_jax.models.weights.pretrained import to_torch_state
from bcss_jax.tuning.start_from_run import start_from_run

MASKS = ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head", "prompt_encoder.point", "mask_downscaling")


@pytest.fixture(autouse=True)
def small_sams(monkeypatch):
    use_small_sams(monkeypatch)
    monkeypatch.setattr(sam_segmenter, "DECODER", SAM_DECODER)


@pytest.mark.parametrize("encoder", ["tiny", "tiny2"])
def test_all_but_prompts_and_masks_comes_from_a_sam_with_classes(encoder):
    network = PromptableSam(encoder, image_size=32, seed=1)
    begun = to_torch_state(network)
    state = to_torch_state(small_sam(3, encoder, seed=2))
    start = network.load_start(state)
    assert "prompts and masks need starts from random weights" in start.notes[0]
    taken = 0
    for name, array in to_torch_state(network).items():
        of_masks = any(part in name for part in (*MASKS, "not_a_point", "pred_obj_score_head"))
        np.testing.assert_array_equal(array, (begun if of_masks else state)[name], err_msg=name)
        taken += not of_masks
    assert taken == len(start.arrays) and set(start.unused) == state.keys() - start.arrays.keys()
    del state[next(name for name in state if "image_encoder" in name)]
    with pytest.raises(DataError, match="image_encoder"):
        network.load_start(state)


def test_a_sam_for_prompts_without_its_scores_is_no_sam_with_classes():
    state = to_torch_state(PromptableSam("tiny", image_size=32))
    cut = {name: array for name, array in state.items() if "iou_prediction_head" not in name}
    with pytest.raises(DataError, match="iou_prediction_head"):
        PromptableSam("tiny", image_size=32).load_start(cut)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="the folder of a run of configs/sam.py, found a folder without checkpoints"):
        start_from_run(PromptableSam("tiny", image_size=32), tmp_path)


@pytest.mark.slow
def test_a_run_starts_from_runs(tmp_path):
    settings = {
        "data.dir": str(TILES), "data.prepared_dir": str(tmp_path / "prepared"), "encoder": "tiny", "epochs": 1,
        "batch_size": 8, "eval_batch_size": 8, "lora.rank": 2,
    }  # fmt: skip
    classes = bcss_jax.train(bcss_jax.load_config("sam:kaggle224,few", settings), tmp_path / "classes")
    network = PromptableSam("tiny", image_size=32, seed=1)
    start_from_run(network, classes.folder)
    before = to_torch_state(PromptableSam("tiny", image_size=32))
    learned = to_torch_state(network)
    assert any(np.abs(learned[name] - before[name]).max() > 0 for name in before if name.endswith("attn.qkv.weight"))
    tuned = bcss_jax.train(prompt_settings(tmp_path, pretrained=str(classes.folder), epochs=1), tmp_path / "prompts")
    again = bcss_jax.train(prompt_settings(tmp_path, pretrained=str(tuned.folder), epochs=1), tmp_path / "again")
    back = bcss_jax.load_config("sam:kaggle224,few", settings | {"pretrained": str(tuned.folder)})
    back = bcss_jax.train(back, tmp_path / "back")
    for run, file in ((tuned, "classes"), (again, "sam.safetensors"), (back, "sam.safetensors")):
        assert json.loads((run.folder / "summary.json").read_text())["pretrained"]["file"] == file
