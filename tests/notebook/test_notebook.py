"""What the notebook needs of its host: found folders, precision, sessions that continue each other, publication."""

import hashlib
import re
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from helpers.tile_files import kaggle512
from PIL import Image

import bcss_jax
from bcss_jax import notebook
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.inference.trained_run import read_trained_run
from bcss_jax.notebook import host as hosts
from bcss_jax.notebook import session
from bcss_jax.training.sharding import make_mesh

PATIENTS = ("TCGA-A2-A0D2", "TCGA-BH-A0B1", "TCGA-A1-A0SK", "TCGA-A7-A0DA")


@pytest.mark.parametrize("mount", ["breast-cancer-semantic-segmentation-bcss", "datasets/whats2000/bcss", "."])
@pytest.mark.parametrize(
    "inside, folders, layout",
    [
        ("BCSS", ("train", "train_mask", "val", "val_mask", "test"), "kaggle224"),
        ("BCSS_512", ("train_512", "train_mask_512", "val_512", "val_mask_512"), "kaggle512"),
        (".", ("train_512", "train_mask_512", "val_512", "val_mask_512"), "kaggle512"),
    ],
)
def test_bcss_is_found_where_it_is_mounted(tmp_path, mount, inside, folders, layout):
    (tmp_path / "other" / "train").mkdir(parents=True)
    for folder in folders:
        (tmp_path / mount / inside / folder).mkdir(parents=True)
    assert notebook.find_bcss(tmp_path) == (layout, tmp_path / mount)


def test_tiles_of_224_pixels_come_first_and_nothing_is_no_data_set(tmp_path):
    assert notebook.find_bcss(None) is None and notebook.find_bcss(tmp_path / "input") is None
    assert notebook.find_bcss(tmp_path) is None
    for layout in ("kaggle512", "kaggle224"):
        for images, masks, _ in hosts.FOLDERS[layout]:
            for name in (images, masks):
                (tmp_path / "bcss" / hosts.SUBFOLDER[layout] / name).mkdir(parents=True)
    assert notebook.find_bcss(tmp_path) == ("kaggle224", tmp_path / "bcss")


def test_kaggle_and_colab_are_known_by_their_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    local = notebook.find_host(tmp_path)
    assert local.name == "local" and local.hours is None and hosts.hours_left(local) is None
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_2026")
    assert notebook.find_host(tmp_path).output == tmp_path / "content"
    (tmp_path / "content" / "drive" / "MyDrive").mkdir(parents=True)
    assert notebook.find_host(tmp_path).inputs == tmp_path / "content" / "drive" / "MyDrive"
    (tmp_path / "kaggle" / "working").mkdir(parents=True)
    kaggle = notebook.find_host(tmp_path)
    assert (kaggle.name, kaggle.output) == ("kaggle", tmp_path / "kaggle" / "working")
    assert 10 < hosts.hours_left(kaggle) < 11.5
    monkeypatch.setattr(hosts.time, "monotonic", lambda: hosts._STARTED + 13 * 3600)
    assert hosts.hours_left(kaggle) == 0


def device(kind, platform="gpu", **capability):
    return SimpleNamespace(device_kind=kind, platform=platform, **capability)


@pytest.mark.parametrize(
    "devices, dtype, line",
    [
        (
            [device("Tesla T4", compute_capability="7.5")] * 2,
            "float16",
            "2 x Tesla T4: all of them .* float16 is",
        ),
        ([device("NVIDIA A100", compute_capability="8.0")], "bfloat16", "1 x NVIDIA A100: .*; bfloat16 is"),
        ([device("TPU v5 lite", "tpu")] * 8, "bfloat16", "8 x TPU v5 lite: "),
        ([device("cpu", "cpu")], "float32", "no GPU or TPU"),
    ],
)
def test_the_recipe_has_the_precision_of_the_devices(devices, dtype, line, tmp_path):
    config = notebook.published_recipe("unet", "kaggle224", tmp_path, devices)
    assert config.dtype == dtype and config.data.dir == str(tmp_path)
    assert config.batch_size == 128 and config.epochs == 15
    assert re.search(line, notebook.describe_devices(devices))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    changes = {
        "data.dir": str(kaggle512(folder / "tiles", train=PATIENTS, tiles_each=4)), "data.threads": 1,
        "data.prepared_dir": str(folder / "prepared"), "model.width": 4, "model.depth": 1,
        "batch_size": 8, "eval_batch_size": 8, "epochs": 2,
    }  # fmt: skip
    return bcss_jax.load_config("unet:kaggle512", changes)


@pytest.fixture(scope="module")
def sessions(config, tmp_path_factory):
    """The output of two sessions, of which the second one went on with what the first one had saved."""
    top = tmp_path_factory.mktemp("kaggle")
    first = notebook.train_in_sessions(config, hosts.Host("kaggle", None, top / "first", 12.0), hours=0)
    assert not first.finished
    saved = top / "input" / "quickstart"
    saved.parent.mkdir()
    (top / "first").rename(saved)
    for path in [saved, *saved.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    host = hosts.Host("kaggle", top / "input", top / "working", 12.0)
    return notebook.train_in_sessions(config, host), host, saved


def test_a_session_goes_on_from_the_output_of_the_last_one(sessions, config):
    run, host, saved = sessions
    assert run.finished and run.folder == host.output / "runs" / config.name
    assert session._last_step(saved / "runs" / config.name) == 1
    assert session.restore(run.folder, host.inputs) is None  # it is further
    assert not run.folder.with_name(f".{config.name}.copy").exists()


def test_a_run_that_is_not_as_far_is_not_replaced(sessions, config, tmp_path):
    _, host, saved = sessions
    behind = tmp_path / "runs" / config.name
    behind.mkdir(parents=True)
    with pytest.raises(ConfigError, match="is further; move or delete the folder"):
        session.restore(behind, host.inputs)
    assert behind.is_dir()


def test_a_publication_is_a_run_with_card_and_hashes(sessions, tmp_path):
    run, _, _ = sessions
    report = bcss_jax.evaluate(run.folder, output=tmp_path / "results", batch_size=8)
    folder = notebook.gather(run, report, tmp_path / "zoo" / "unet")
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert {line.partition("  ")[2] for line in lines} >= {"MODEL_CARD.md", "config.json", "evaluation/report.html"}
    for line in lines:
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    published, original = (read_trained_run(path, make_mesh(), "best") for path in (folder, run.folder))
    assert published.describe_checkpoint()["step"] == original.describe_checkpoint()["step"]
    with pytest.raises(ConfigError, match="expected a folder that is not there yet"):
        notebook.gather(run, report, folder)
    report.content["evaluations"][0]["name"] = "other"
    with pytest.raises(DataError, match="expected an evaluation of"):
        notebook.gather(run, report, tmp_path / "again")


def test_the_sample_slide_states_its_resolution_and_has_its_truth(tmp_path):
    slide, truth = notebook.write_sample_slide(tmp_path / "slide")
    with tifffile.TiffFile(slide) as file:
        assert file.pages[0].resolution == (40000, 40000) and file.pages[0].shape == (672, 1120, 3)
    codes = np.asarray(Image.open(truth))
    assert codes.shape == (672, 1120) and {0, 1, 2} <= set(np.unique(codes)) and not codes[:112].any()
