"""What the program advises when memory runs out."""

import dataclasses

import jax
import pytest

from bcss_jax import config as configs
from bcss_jax.accelerators import step_memory
from bcss_jax.accelerators.computed_steps import REMAT, Line
from bcss_jax.accelerators.remedies import remedy_for_evaluation, remedy_for_slides, remedy_for_training
from bcss_jax.accelerators.step_memory import images_that_fit, memory_line
from bcss_jax.nnunet import config as nnunet_config

LINES = {
    ("train", "unet", "float32"): [(Line(0.5e9, 0.25e9), 224)],
    ("train", "unet", "bfloat16"): [(Line(0.5e9, 0.125e9), 224), (Line(0.5e9, 0.12e9), 224)],
    (REMAT, "unet", "bfloat16"): [(Line(0.5e9, 0.08e9), 224)],
    ("evaluate", "unet", "float32"): [(Line(0.1e9, 0.1e9), 224)],
    ("slide", "unet", "float32"): [(Line(0.1e9, 0.1e9), 224)],
}


@dataclasses.dataclass
class Device:
    memory: float | None
    compute_capability: str = "7.5"
    process_index: int = 0

    def memory_stats(self):
        return {"bytes_limit": int(self.memory)} if self.memory else None


T4, H100 = Device(11.7e9), Device(63.7e9, "9.0")


@pytest.fixture(autouse=True)
def computed(monkeypatch):
    monkeypatch.setattr(step_memory, "_computed", lambda: LINES)


def config(**settings):
    changed = configs.default("unet")
    changed.data.layout = "kaggle224"
    changed.update(settings)
    return changed


def test_the_fewest_micro_batches_that_fit_are_named():
    assert remedy_for_training(config(), [T4]) == (
        "--config.micro_batches=4 (needs 8.5 of 11.7 GB a device: computed, not measured), or "
        "--config.remat=True, or "
        "--config.eval_batch_size=64 (needs 6.5 of 11.7 GB a device: computed, not measured), or "
        "--config.dtype=float16 in a new run"
    )
    two = remedy_for_training(config(dtype="float16"), [T4, T4])
    assert two.startswith("--config.micro_batches=2 (needs 4.5 of 11.7 GB") and "dtype" not in two


def test_what_fits_by_the_table_and_yet_did_not_gets_more_micro_batches():
    remedy = remedy_for_training(config(micro_batches=4), [T4])
    assert remedy.startswith("--config.micro_batches=8 (needs 4.5 of 11.7 GB")


def test_rematerialization_is_named_where_the_images_fit_with_it():
    fits = remedy_for_training(config(dtype="bfloat16"), [T4, T4])  # 64 images each
    assert "or --config.remat=True (needs 5.6 of 11.7 GB a device: computed, not measured)" in fits
    assert "remat" not in remedy_for_training(config(dtype="bfloat16", batch_size=512), [T4])  # 41 GB
    assert "remat=True (needs 10.7 of" in remedy_for_training(
        config(dtype="float16", micro_batches=2, batch_size=256), [T4]
    )


def test_with_rematerialization_the_figures_are_those_with_it():
    remedy = remedy_for_training(config(dtype="bfloat16", remat=True, batch_size=256), [T4])
    assert remedy.startswith("--config.micro_batches=2 (needs 10.7 of 11.7 GB") and "remat" not in remedy
    unknown = remedy_for_training(config(remat=True), [T4])
    assert unknown.startswith("--config.micro_batches=2, or --config.eval_batch_size=64")


def test_bfloat16_is_advised_where_the_card_has_it_and_only_if_it_is_not_set():
    assert "--config.dtype=bfloat16 in a new run" in remedy_for_training(config(), [H100])
    assert "dtype" not in remedy_for_training(config(dtype="bfloat16"), [H100])
    assert "bfloat16" not in remedy_for_training(config(), [H100, T4])


def test_larger_images_need_more():
    small, large = (memory_line("train", {"name": "unet"}, "float32", side) for side in (224, 448))
    assert large == Line(small.fixed, 4 * small.per_image)
    assert images_that_fit(large, 11.7e9) == 10 and images_that_fit(small, 0.1e9) == 0


@pytest.mark.parametrize(
    "settings, devices",
    [({}, jax.devices()[:1]), ({}, [Device(None)]), ({"model": {"width": 32}}, [T4]), ({"labels": "x"}, [])],
    ids=["cpu", "no memory known", "other network", "no device"],
)
def test_what_is_not_known_is_not_claimed(settings, devices):
    remedy = remedy_for_training(config(**settings), devices or [Device(None)])
    assert remedy.startswith(
        "--config.micro_batches=2, or --config.remat=True, or a smaller --config.eval_batch_size, or --config.dtype="
    )
    assert "computed" not in remedy


def test_no_number_of_parts_that_does_not_divide_the_batch():
    assert remedy_for_training(config(batch_size=9), [Device(None)]).startswith("--config.micro_batches=3, or")
    assert "micro_batches" not in remedy_for_training(config(batch_size=8, micro_batches=8), [Device(None)])


def test_the_plan_of_nnunet_has_the_batch():
    remedy = remedy_for_training(nnunet_config.default(), [T4])
    assert remedy == "--config.micro_batches=2, or --config.remat=True, or --config.dtype=float16 in a new run"


def test_batches_of_predictions():
    run = config().to_dict()
    assert remedy_for_evaluation(128, run, [T4]) == (
        "--batch_size=64 (needs 6.5 of 11.7 GB a device: computed, not measured)"
    )
    assert remedy_for_evaluation(8, run, [T4]) == "a smaller --batch_size"
    model = {"model": {"name": "unet"}, "dtype": "float32"}
    assert remedy_for_slides(512, model, 224, [T4, T4]).startswith("--batch_size=128 (needs 6.5 of")
    assert remedy_for_slides(512, {"sha256": "of an exported model"}, 224, [T4]) == "a smaller --batch_size"
