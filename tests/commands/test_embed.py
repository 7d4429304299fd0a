"""The command that embeds slides: from weights and slides to HDF5 in TRIDENT's layout, and errors for bad input."""

import csv
import dataclasses
import json
import resource
import signal

import h5py
import numpy as np
import openslide
import pytest
from helpers import evaluation_small, slide_files
from helpers.segment_command import one_line
from helpers.slides_small import tissue_picture, write_run
from helpers.small_encoders import MEAN, STD, encoder_file
from helpers.small_networks import TINY_FORM, small_vit
from helpers.trained_small import save_checkpoint
from safetensors.numpy import save_file

from bcss_jax import config
from bcss_jax.commands import embed
from bcss_jax.inference import frozen_encoder
from bcss_jax.labels import SCHEMES
from bcss_jax.models.apply import normalize, split_model
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS, Preset
from bcss_jax.models.image_normalization import IMAGENET, ImageStatistics
from bcss_jax.slides.features import embed_slide

OPTIONS = ("--tile=32", "--readers=1", "--batch_size=8", "--tissue=all")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights that describes itself, and its network."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    return path, encoder_file(path)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A tiled TIFF of 200 x 150 pixels at 0.25 um."""
    return slide_files.tiled(tmp_path_factory.mktemp("slides") / "case.tif", tissue_picture(150, 200)[0])


def call(*options):
    return embed.main([*map(str, options), *OPTIONS])


def read(path):
    with h5py.File(path) as file:
        return file["features"][:], file["coords"][:], dict(file["features"].attrs), dict(file["coords"].attrs)


def test_features_equal_the_networks_on_tiles_that_openslide_reads(weights, slide, tmp_path):
    path, network = weights
    assert call(f"--weights={path}", f"--slide={slide}", f"--output={tmp_path}") == 0
    features, coords, about, layout = read(tmp_path / "case.h5")
    assert features.shape == (4 * 6, TINY_FORM.width) and features.dtype == np.float32 and coords.dtype == np.int64
    assert sorted(map(tuple, coords)) == [(x, y) for x in range(0, 192, 32) for y in range(0, 128, 32)]
    opened = openslide.OpenSlide(slide)
    tiles = np.stack([np.asarray(opened.read_region(tuple(each), 0, (32, 32)).convert("RGB")) for each in coords])
    expected = network(normalize(tiles, ImageStatistics(MEAN, STD))).cls
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert np.std(features, axis=0).max() > 0.1
    assert (about["name"], about["encoder"], about["feature"], about["mpp"]) == ("case", "tiny", "class", 0.25)
    wanted = {"patch_size": 32, "patch_size_level0": 32, "level0_magnification": 40, "target_magnification": 40}
    wanted |= {"overlap": 0, "name": "case", "level0_width": 200, "level0_height": 150}
    assert {name: layout[name] for name in wanted} == wanted


def test_other_features_and_resolutions(weights, slide, tmp_path):
    path, network = weights
    options = (f"--weights={path}", f"--slide={slide}", "--target_mpp=0.5", "--feature=class+mean")
    assert call(*options, f"--output={tmp_path}") == 0
    features, coords, about, layout = read(tmp_path / "case.h5")
    assert features.shape == (2 * 3, 2 * TINY_FORM.width) and about["feature"] == "class+mean"
    assert sorted(map(tuple, coords)) == [(x, y) for x in (0, 64, 128) for y in (0, 64)]
    assert (layout["patch_size"], layout["patch_size_level0"], layout["target_magnification"]) == (32, 64, 20)
    pixels = np.asarray(openslide.OpenSlide(slide).read_region((0, 0), 0, (192, 128)).convert("RGB"), np.float32)
    halved = pixels.reshape(64, 2, 96, 2, 3).mean((1, 3)).round().astype(np.uint8)
    x, y = coords[0] // 2
    found = network(normalize(halved[None, y : y + 32, x : x + 32], ImageStatistics(MEAN, STD)))
    expected = np.concatenate([found.cls[0], found.patches[0].mean((0, 1))])
    np.testing.assert_allclose(features[0], expected, atol=0.05)  # rounding of gray levels


def test_a_published_encoder_needs_its_name_and_its_license_is_kept(slide, tmp_path, monkeypatch, caplog, capsys):
    form = dataclasses.replace(TINY_FORM, table=5)  # as a file for larger images
    encoder_file(tmp_path / "a.safetensors", form=form, described=False)
    monkeypatch.setitem(PRESETS, "tiny", Preset(TINY_FORM, IMAGENET, "for research only", 0.25, "class+mean"))
    options = (f"--weights={tmp_path / 'a.safetensors'}", f"--slide={slide}", f"--output={tmp_path / 'out'}")
    assert call(*options) == 2
    assert "which encoder is this? Name it with --encoder=NAME" in one_line(capsys)
    assert call(*options, "--encoder=tiny") == 0
    assert "the license of these weights: for research only" in caplog.text and "5x5 instead of" in caplog.text
    features, _, about, _ = read(tmp_path / "out" / "case.h5")
    assert about["license"] == "for research only" and features.shape[1] == 2 * TINY_FORM.width
    other = dataclasses.replace(TINY_FORM, registers=0)
    monkeypatch.setitem(PRESETS, "other", Preset(other, IMAGENET, "MIT", 0.25))
    encoder_file(tmp_path / "b.safetensors", described=False)
    assert call(*options, f"--weights={tmp_path / 'b.safetensors'}", "--encoder=other") == 3
    said = one_line(capsys)
    assert "registers is 1, expected 0" in said and "it fits --encoder=tiny" in said


def test_a_trained_run_gives_its_encoder(slide, tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "unet")
    assert call(f"--checkpoint={tmp_path / 'unet'}", f"--slide={slide}", f"--output={tmp_path / 'out'}") == 2
    assert "expected a run whose network is vit, found unet" in one_line(capsys)
    monkeypatch.setitem(PRESETS, "tiny", Preset(TINY_FORM, IMAGENET, "", 0.25))
    run = write_vit(tmp_path / "vit")
    assert call(f"--checkpoint={run}", f"--slide={slide}", f"--output={tmp_path / 'out'}") == 0
    features, coords, about, _ = read(tmp_path / "out" / "case.h5")
    assert about["encoder"] == "vit"
    x, y = coords[7]
    tile = tissue_picture(150, 200)[0][None, y : y + 32, x : x + 32]
    expected = small_vit(3).encoder(normalize(tile, IMAGENET)).cls[0]
    np.testing.assert_allclose(features[7], expected, atol=1e-5)


def write_vit(folder):
    settings = config.default("vit", encoder="tiny", table=0, decoder="convolutional", decoded_blocks=1, drop_path=0.0)
    settings.update(name="vit", labels="tumor_stroma")
    settings.data.update(layout="roi", dir="nowhere", patch_size=32)
    _, params, model_state = split_model(small_vit(3))
    described = {"config": settings.to_dict(), "label_scheme": SCHEMES["tumor_stroma"].to_json()}
    described |= {"data": evaluation_small.data(), "pretrained": None}
    save_checkpoint(folder / "checkpoints", params, model_state, described)
    return folder


def test_a_slide_that_is_done_is_skipped_and_other_settings_are_refused(weights, slide, tmp_path, capsys, monkeypatch):
    options = (f"--weights={weights[0]}", f"--slide={slide}", f"--output={tmp_path}")
    assert call(*options) == 0
    before = (tmp_path / "case.h5").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(embed_slide, "ReaderPool", None)  # the slide is not even opened
        assert call(*options) == 0
    assert "24 tiles; done before" in capsys.readouterr().out
    assert call(*options, "--feature=mean") == 2
    assert "features of other settings (settings.feature" in one_line(capsys)
    assert call(*options, "--overwrite") == 0
    assert (tmp_path / "case.h5").read_bytes() == before
    assert call(*options, "--feature=mean", "--overwrite") == 0
    assert read(tmp_path / "case.h5")[2]["feature"] == "mean"


def test_a_list_goes_on_after_slides_that_fail(weights, slide, tmp_path, capsys):
    pixels, _ = tissue_picture(60, 60)
    slide_files.tiled(tmp_path / "no_mpp.tif", pixels, mpp=None)
    slide_files.tiled(tmp_path / "small.tif", pixels[:20])
    (tmp_path / "list.csv").write_text(f"slide\n{slide}\nno_mpp.tif\nsmall.tif\ngone.tif\n")
    options = (f"--weights={weights[0]}", f"--slides={tmp_path / 'list.csv'}", f"--output={tmp_path / 'out'}")
    assert call(*options) == 6
    assert "3 of 4 slides failed (no_mpp.tif, small.tif, gone.tif)" in one_line(capsys)
    with open(tmp_path / "out" / "features.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done", "failed", "failed", "failed"]
    assert rows[0]["tiles"] == "24" and "--mpp" in rows[1]["reason"]
    assert "no tile of 32 pixels with tissue" in rows[2]["reason"]
    assert call(*options, "--shard=0/4") == 0
    assert "done before" in capsys.readouterr().out and (tmp_path / "out" / "features-0of4.csv").exists()


def test_glass_has_no_tiles(weights, tmp_path, capsys):
    pixels = np.full((400, 400, 3), 243, np.uint8)
    slide_files.tiled(tmp_path / "glass.tif", pixels, mpp=1.0)
    options = (f"--weights={weights[0]}", f"--slide={tmp_path / 'glass.tif'}", f"--output={tmp_path / 'out'}")
    assert embed.main([*options, "--tile=32", "--readers=1"]) == 3
    assert "glass.tif: expected tissue, found no tile" in one_line(capsys)
    assert not list((tmp_path / "out").glob("*.h5"))
    pixels[100:300, 100:300] = tissue_picture(200, 200)[0].clip(0, 150)
    slide_files.tiled(tmp_path / "half.tif", pixels, mpp=1.0)
    options = (f"--weights={weights[0]}", f"--slide={tmp_path / 'half.tif'}", f"--output={tmp_path / 'out'}")
    assert embed.main([*options, "--tile=32", "--target_mpp=1", "--readers=1"]) == 0
    coords = read(tmp_path / "out" / "half.h5")[1]
    assert 36 <= len(coords) <= 81 and coords.min() >= 64 and coords.max() < 320


def test_tiles_that_cannot_be_decoded_are_left_out_or_refused(weights, tmp_path, capsys, monkeypatch):
    pixels, _ = tissue_picture(256, 256)
    path = slide_files.spoil(slide_files.tiled(tmp_path / "spoiled.tif", pixels), [5])
    options = (f"--weights={weights[0]}", f"--slide={path}", f"--output={tmp_path / 'out'}")
    assert call(*options) == 3
    assert "over 1% of the tissue cannot be decoded" in one_line(capsys)
    assert not list((tmp_path / "out").glob("*.h5*"))
    monkeypatch.setattr(embed_slide, "MAX_UNREADABLE", 0.1)
    assert call(*options) == 0
    coords = read(tmp_path / "out" / "spoiled.h5")[1]
    assert len(coords) == 64 - 4 and not any(64 <= x < 128 and 64 <= y < 128 for x, y in coords)


def test_memory_and_batches_do_not_change_the_features(weights, slide, tmp_path):
    for size in (8, 16):
        options = (f"--weights={weights[0]}", f"--slide={slide}", f"--output={tmp_path / str(size)}")
        assert call(*options, f"--batch_size={size}") == 0
    a, b = (read(tmp_path / size / "case.h5") for size in ("8", "16"))
    np.testing.assert_allclose(a[0], b[0], atol=1e-5)
    np.testing.assert_array_equal(a[1], b[1])


def test_a_slide_that_was_stopped_is_begun_again(weights, slide, tmp_path, capsys, monkeypatch):
    options = (f"--weights={weights[0]}", f"--slide={slide}", f"--output={tmp_path}")
    batches = embed_slide._Tiles.batches

    def stopped(tiles, size):
        for number, batch in enumerate(batches(tiles, size)):
            if number:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(embed_slide._Tiles, "batches", stopped)
        assert call(*options) == 75
    assert "stopped after 8 of 24 tiles" in one_line(capsys)
    assert not [path for path in tmp_path.iterdir() if path.name != ".lock"]
    assert call(*options) == 0


def test_a_full_disk_is_said_in_one_line(weights, slide, tmp_path, capsys):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
        assert call(f"--weights={weights[0]}", f"--slide={slide}", f"--output={tmp_path}") == 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large" in one_line(capsys)
    assert not [path for path in tmp_path.iterdir() if path.name != ".lock"]


def test_files_of_others_are_never_touched(weights, slide, tmp_path, capsys):
    options = (f"--weights={weights[0]}", f"--slide={slide}", f"--output={tmp_path}", "--overwrite")
    (tmp_path / "case.h5").write_text("years of work")
    assert call(*options) == 2
    assert "case.h5: expected a file that this program wrote" in one_line(capsys)
    assert (tmp_path / "case.h5").read_text() == "years of work"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tile=30",), "takes tiles of a multiple of 8 pixels, for example 24"),
        (("--encoder=uni",), "describes its encoder itself; leave --encoder=uni out"),
        (("--checkpoint=run",), "give one of --weights and --checkpoint"),
        (("--shard=0/2",), "--shard selects a part of a list"),
        (("--mpp=40",), "--mpp=40: expected um per pixel"),
        (("--feature=patches",), "--feature"),
    ],
)
def test_wrong_options_are_named(weights, slide, tmp_path, capsys, options, said):
    given = (f"--weights={weights[0]}", f"--slide={slide}", f"--output={tmp_path / 'out'}")
    assert embed.main([*given, *OPTIONS, *options]) == 2
    assert said in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_an_encoder_of_photographs_needs_a_resolution(slide, tmp_path, capsys):
    encoder_file(tmp_path / "a.safetensors", mpp=None)
    options = (f"--weights={tmp_path / 'a.safetensors'}", f"--slide={slide}", f"--output={tmp_path / 'out'}")
    assert call(*options) == 2
    assert "says no um per pixel" in one_line(capsys)


@pytest.mark.parametrize(
    "change", [{"architecture": {"width": "a"}}, {"image_std": [0, 1, 1]}, {"mpp": 40}, {"encoder": 1}]
)
def test_a_damaged_description_is_said(tmp_path, slide, capsys, change):
    path = tmp_path / "a.safetensors"
    encoder_file(path)
    with frozen_encoder.safe_open(path, framework="numpy") as file:
        described = json.loads(file.metadata()["bcss_jax"]) | change
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    save_file(arrays, path, metadata={"bcss_jax": json.dumps(described)})
    assert call(f"--weights={path}", f"--slide={slide}", f"--output={tmp_path / 'out'}") == 3
    assert "its description of the encoder is damaged" in one_line(capsys)
