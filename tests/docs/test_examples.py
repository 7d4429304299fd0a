"""The examples of docs/extending.md work as the page says."""

import runpy

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tile_files
from helpers.paths import ROOT
from helpers.slide_files import own_grid, picture

from bcss_jax import labels, models
from bcss_jax.data import discovery
from bcss_jax.data.discovery import DataSettings
from bcss_jax.errors import DataError
from bcss_jax.models.weights import pretrained
from bcss_jax.slides.reading import open_slide as opening
from bcss_jax.slides.reading.read_block import read_block

EXAMPLES = ROOT / "docs" / "examples"


def _example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_new_encoder_makes_a_network_whose_weights_can_be_saved_and_loaded(monkeypatch):
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    _example("new_encoder")
    model = models.create("unet_strided", num_classes=3)
    images = jnp.asarray(np.random.default_rng(0).random((1, 65, 70, 3)), jnp.float32)
    assert [feature.shape[1:3] for feature in model.encoder(images)] == [(33, 35), (17, 18), (9, 9), (5, 5), (3, 3)]
    logits = model(images)
    assert logits.shape == (1, 65, 70, 3) and logits.dtype == jnp.float32
    other = pretrained.load_torch_state(
        models.create("unet_strided", num_classes=3, seed=1), pretrained.to_torch_state(model)
    )
    np.testing.assert_array_equal(other(images), logits)


def test_new_slide_format_opens_and_gives_blocks_at_the_resolution_of_the_model(tmp_path, monkeypatch):
    numpy_slide = _example("new_slide_format")["NumpySlide"]

    def other_backend(magic, with_openslide):  # the two lines that the page adds
        if magic.startswith(b"\x93NUMPY"):
            return numpy_slide

    monkeypatch.setattr(opening, "_other_backend", other_backend)
    pixels = picture(120, 90)
    np.save(tmp_path / "case.npy", pixels)
    (tmp_path / "case.mpp").write_text("0.25")
    slide = opening.open_slide(tmp_path / "case.npy")
    assert slide.mpp == (0.25, 0.25) and slide.levels[0][:2] == (120, 90)
    block, unreadable = read_block(slide, own_grid(slide), 7, 5, 40, 30)
    np.testing.assert_array_equal(block, pixels[5:35, 7:47])
    assert unreadable is None
    halved, _ = read_block(slide, own_grid(slide, model_mpp=0.5), 0, 0, 60, 45)
    assert halved.shape == (45, 60, 3)
    slide.close()


def test_new_slide_format_refuses_other_pixels(tmp_path):
    np.save(tmp_path / "case.npy", np.zeros((9, 9), np.uint16))
    with pytest.raises(DataError, match="8-bit RGB"):
        _example("new_slide_format")["NumpySlide"](tmp_path / "case.npy")


def test_new_data_layout_is_found(tmp_path, monkeypatch):
    for name in ("FOLDERS", "SUBFOLDER", "CODES"):
        monkeypatch.setattr(discovery, name, dict(getattr(discovery, name)))
    _example("new_data_layout")
    for folder, patient in (("training", "TCGA-A2-A0D2"), ("validation", "TCGA-OL-A5D6")):
        name = tile_files.name(patient)
        tile_files.save(tmp_path / folder / "images" / f"{name}.png", tile_files.image())
        tile_files.save(tmp_path / folder / "masks" / f"{name}.png", tile_files.mask())
    tiles = discovery.find_tiles(DataSettings("own", tmp_path))
    assert [(tile.patient, tile.split, tile.codes) for tile in tiles] == [
        ("TCGA-A2-A0D2", "train", "bcss22"),
        ("TCGA-OL-A5D6", "val", "bcss22"),
    ]


def test_new_label_scheme_has_its_names_colors_and_codes():
    scheme = labels.find_scheme(str(EXAMPLES / "my_labels.toml"))
    assert scheme.evaluated_names == ("tumor", "stroma", "immune", "other")
    assert scheme.colors[3] == (0x00, 0x9E, 0x73)
    table = labels.lookup_table(scheme, "bcss22")
    assert table[[0, 1, 2, 3, 4, 7, 10, 15, 19, 20]].tolist() == [0, 1, 2, 3, 4, 0, 3, 0, 1, 1]
    with pytest.raises(ValueError, match="kaggle3"):
        labels.lookup_table(scheme, "kaggle3")
