"""python -m bcss_jax.import_model: runs of weights from other programs, which all commands take."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import nnunet_small, segment_command, tile_files
from helpers.segment_command import one_line, summary_of
from helpers.slide_files import svs
from helpers.slides_small import tissue_picture

from bcss_jax import models
from bcss_jax.commands import evaluate, export, import_model
from bcss_jax.errors import DataError
from bcss_jax.inference.slide_model import model_of_run
from bcss_jax.inference.trained_run import read_trained_run
from bcss_jax.labels import SCHEMES
from bcss_jax.models.encoder_unet import EncoderUNet
from bcss_jax.models.encoders.resnet import ResNet
from bcss_jax.models.tiatoolbox_unet import TIAToolboxUNet
from bcss_jax.models.weights.pretrained import to_torch_state
from bcss_jax.training import checkpoint
from bcss_jax.training.sharding import make_mesh

SMALL = functools.partial(ResNet, (1, 1, 1, 1), False)
WINDOW = 64
OTHER_ORDER = """
class_names = ["other", "stroma", "tumor"]
[colors]
other = "#000000"
stroma = "#0072B2"
tumor = "#E69F00"
[bcss22]
tumor = ["tumor"]
stroma = ["stroma"]
other = "rest"
"""


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    """Gives the networks a ResNet of four blocks, which is built and compiled faster."""
    with pytest.MonkeyPatch.context() as patch:
        for name, network in (("tiatoolbox_unet", TIAToolboxUNet), ("unet_resnet34", EncoderUNet)):
            patch.setitem(models.MODELS, name, functools.partial(network, encoder=SMALL))
        yield


def published_state(num_classes=5, seed=1, **arguments):
    """The weights of TIAToolbox's network as its files hold them."""
    model = models.create("tiatoolbox_unet", num_classes=num_classes, seed=seed, **arguments)
    return to_torch_state(model) | {
        "backbone.fc.weight": np.zeros((1000, 512), np.float32),
        "backbone.fc.bias": np.zeros(1000, np.float32),
        "backbone.bn1.num_batches_tracked": np.int64(0),
        "upsample2x.unpool_mat": np.ones((2, 2), np.float32),
    }


def save(path, state):
    np.savez(path, **state)
    return path


def call(*options):
    return import_model.main([*map(str, options)])


@pytest.fixture(scope="module")
def state():
    return published_state()


@pytest.fixture(scope="module")
def run(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    file = save(folder / "fcn_resnet50_unet-bcss.npz", state)
    output = folder / "runs" / "tiatoolbox_bcss"
    assert call("--format=tiatoolbox", f"--weights={file}", f"--output={output}", f"--window={WINDOW}") == 0
    return output


def test_all_weights_are_in_the_run_and_its_card_names_license_and_source(run, state):
    model, metadata = checkpoint.load_model(run / "checkpoints")
    for name, array in to_torch_state(model).items():
        np.testing.assert_array_equal(array, state[name])
    pretrained = metadata["pretrained"]
    assert pretrained["passed_over"] == [
        "backbone.fc.weight", "backbone.fc.bias", "upsample2x.unpool_mat", "1 counters (num_batches_tracked)",
    ]  # fmt: skip
    assert pretrained["tensors"] == len(state) - 4
    card = (run / "MODEL_CARD.md").read_text()
    for text in ("CC0 1.0", "TIAToolbox", pretrained["sha256"], "backbone.fc.weight", "0.25 µm", "BCSS"):
        assert text in card
    assert "CC0 1.0" in pretrained["license"] and "TIAToolbox" in pretrained["source"]


def test_the_published_network_has_its_classes_resolution_and_windows(tmp_path, state, capsys):
    file = save(tmp_path / "weights.npz", {f"module.{name}": array for name, array in state.items()})
    assert call("--format=tiatoolbox", f"--weights={file}", f"--output={tmp_path / 'run'}") == 0
    shown = capsys.readouterr().out
    assert "values from 0 to 255" in shown and "backbone.fc.weight, backbone.fc.bias" in shown
    assert "license:   CC0 1.0" in shown
    mesh = make_mesh(jax.devices()[:1])
    model = model_of_run(read_trained_run(tmp_path / "run", mesh, "best"), mesh, tta=False)
    assert (model.mpp, model.window, model.overlap, model.blend) == (0.25, 1024, 0.5, "centre")
    assert model.scheme.evaluated_names == ("tumor", "stroma", "inflammatory", "necrosis", "other")
    assert call("--format=tiatoolbox", f"--weights={file}", f"--output={tmp_path / 'run'}") == 2
    assert "holds a run already" in one_line(capsys)
    assert call("--format=tiatoolbox", f"--weights={file}", f"--output={tmp_path / 'run'}", "--overwrite") == 0


def test_slides_tiles_and_exported_files_get_the_same_probabilities(run, tmp_path, capsys):
    """The middle of each window counts, with the run and with its exported file."""
    slide = svs(tmp_path / "case.svs", tissue_picture(3 * WINDOW, 4 * WINDOW)[0], compression="deflate")
    artifact = tmp_path / "model.jaxexport"
    assert export.main([f"--checkpoint={run}", f"--output={artifact}"]) == 0
    for name, model in (("run", run), ("artifact", artifact)):
        assert segment_command.command(model, slide, tmp_path / name, "--probabilities") == 0, capsys.readouterr().err
    first, second = (summary_of(tmp_path / name / "case") for name in ("run", "artifact"))
    assert first["classes"] == second["classes"] and len(first["classes"]) == 5
    settings = first["identity"]["settings"]
    assert (settings["overlap"], settings["blend"], settings["window"]) == (0.5, "centre", WINDOW)
    assert settings == second["identity"]["settings"]
    # The window of the middle cell, computed by hand.
    mesh = make_mesh(jax.devices()[:1])
    model = model_of_run(read_trained_run(run, mesh, "best"), mesh, tta=False)
    pixels = tissue_picture(3 * WINDOW, 4 * WINDOW)[0]
    y, x = WINDOW, WINDOW
    cell = pixels[y - WINDOW // 4 : y + 3 * WINDOW // 4, x - WINDOW // 4 : x + 3 * WINDOW // 4]
    wanted = np.asarray(model.probabilities(model.arrays, jnp.asarray(cell[None])))[0]
    zarr = pytest.importorskip("zarr")
    found = zarr.open(str(tmp_path / "run" / "case" / "probabilities.zarr"), mode="r")["0"]
    middle = slice(WINDOW // 4, 3 * WINDOW // 4)
    got = np.asarray(found[:, y : y + WINDOW // 2, x : x + WINDOW // 2]) / 255
    np.testing.assert_allclose(got, wanted[middle, middle].transpose(2, 0, 1), atol=0.6 / 255)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Tiles with the 22 codes."""
    root = tmp_path_factory.mktemp("tiles")
    for first, split, patient in ((0, "train", "TCGA-A2-A0D2"), (4, "val", "TCGA-OL-A5D6")):
        for number in range(first, first + 4):
            stem = tile_files.name(patient, x=WINDOW * number, size=WINDOW)
            tile_files.save(root / f"{split}_512" / f"{stem}.png", tile_files.image(number, size=WINDOW))
            codes = tile_files.mask(number, size=WINDOW, codes=(1, 2, 3, 4, 9))
            tile_files.save(root / f"{split}_mask_512" / f"{stem}.png", codes)
    return root


def test_evaluation_needs_images_and_says_what_the_weights_were_trained_on(run, tiles, tmp_path, capsys):
    options = [f"--checkpoints={run}", f"--output={tmp_path / 'results'}", f"--prepared_dir={tmp_path / 'prepared'}"]
    assert evaluate.main(options) == 2
    assert "tiatoolbox_bcss: its weights were imported" in one_line(capsys)
    code = evaluate.main([*options, "--data.layout=kaggle512", f"--data.dir={tiles}"])
    assert code == 0, capsys.readouterr().err
    card = (tmp_path / "results" / "tiatoolbox_bcss" / "MODEL_CARD.md").read_text()
    assert "CC0 1.0" in card and "were not trained further" in card
    assert "The publisher of the weights trained them on BCSS" in card
    assert (tmp_path / "results" / "report.html").is_file()


def fine_tune(tiles, tmp_path, run, *options):
    """Trains for one epoch in this process and returns the run, or raises the error."""
    from bcss_jax.common.interruption import Interruption
    from bcss_jax.config import default
    from bcss_jax.training.loop import train

    config = default("tiatoolbox_unet", decoder_kernels=(3, 3))
    config.data.update(layout="kaggle512", dir=str(tiles), prepared_dir=str(tmp_path / "prepared"), threads=1)
    config.update(name="tuned", epochs=1, batch_size=8, eval_batch_size=8, pretrained=str(run))
    config.update(dict(option.split("=") for option in options))
    workdir = tmp_path / "tuned"
    workdir.mkdir()
    with Interruption() as interruption:
        train(config, workdir, interruption)
    return checkpoint.load_model(workdir / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["tiatoolbox_bcss", "tumor_stroma"])
def test_training_goes_on_from_an_imported_run_with_a_new_head_for_other_classes(run, tiles, tmp_path, labels, capsys):
    model, metadata = fine_tune(tiles, tmp_path, run, f"labels={labels}")
    shown = capsys.readouterr().out
    assert ("start from random weights: head/bias, head/kernel" in shown) == (labels == "tumor_stroma")
    assert "CC0 1.0" in metadata["pretrained"]["license"] and metadata["pretrained"]["trained_on"] == "BCSS"
    assert model.head.kernel.shape[-1] == SCHEMES[labels].num_classes


def test_weights_of_a_run_with_other_classes_are_taken_over_except_for_the_head(run, tmp_path, caplog):
    from bcss_jax.config import default
    from bcss_jax.training.start.from_run import load_from_run

    config = default("tiatoolbox_unet", decoder_kernels=(3, 3))
    trained, _ = checkpoint.load_model(run / "checkpoints")
    theirs = to_torch_state(trained)
    for labels, mpp in (("tiatoolbox_bcss", 0.25), ("tumor_stroma", 0.5)):
        config.data.mpp = mpp
        model = models.create("tiatoolbox_unet", num_classes=SCHEMES[labels].num_classes, seed=9)
        before = to_torch_state(model)
        found = load_from_run(model, run, config, SCHEMES[labels])
        same = labels == "tiatoolbox_bcss"
        assert found["new"] == ([] if same else ["head/bias", "head/kernel"])
        for name, array in to_torch_state(model).items():
            is_new = name.startswith("clf.") and not same
            np.testing.assert_array_equal(array, before[name] if is_new else theirs[name])
        assert ("was trained at 0.25 um per pixel, this run has 0.5" in caplog.text) == (mpp == 0.5)
    config.model.decoder_kernels = (3,)
    other = models.create("tiatoolbox_unet", num_classes=3, decoder_kernels=(3,))
    with pytest.raises(DataError, match=r"expected a run of tiatoolbox_unet \(decoder_kernels=\(3,\)\), found one of"):
        load_from_run(other, run, config, SCHEMES["tumor_stroma"])
    with pytest.raises(DataError, match="found a folder without checkpoints"):
        load_from_run(other, tmp_path, config, SCHEMES["tumor_stroma"])


def test_another_variant_needs_labels_and_resolution(tmp_path, capsys):
    file = save(tmp_path / "mask.npz", published_state(2, decoder_kernels=(3,)))
    options = ("--format=tiatoolbox", f"--weights={file}", f"--output={tmp_path / 'run'}")
    assert call(*options) == 2
    assert "has 2 outputs and 1 convolution(s)" in one_line(capsys)
    labels = tmp_path / "tissue.toml"
    labels.write_text(
        'class_names = ["glass", "tissue"]\n[colors]\nglass = "#000000"\ntissue = "#0072B2"\n'
        '[bcss22]\ntissue = "rest"\nglass = ["outside_roi"]\n'
    )
    assert call(*options, f"--labels={labels}", "--mpp=2") == 0
    _, metadata = checkpoint.load_model(tmp_path / "run" / "checkpoints")
    assert metadata["config"]["model"]["decoder_kernels"] == [3] and metadata["config"]["data"]["mpp"] == 2
    assert not metadata["pretrained"]["license"]  # of the published five-class network only


def encoder_unet_state(num_classes=3):
    return to_torch_state(models.create("unet_resnet34", num_classes=num_classes, seed=2))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("smp", "--format=smp"),
        ("resnet", "a ResNet without a decoder"),
        ("cut", "uplist.0.2.weight is (128, 3, 3, 3), expected (128, 256, 3, 3); missing clf.bias (5,)"),
        ("more", "unknown extra.weight (3,)"),
        ("constant", "unknown upsample2x.unpool_mat (2, 2)"),
        ("empty", "no tensors and so on (0 names)"),
    ],
)
def test_weights_of_another_network_are_one_line(name, expected, state, tmp_path, capsys):
    cut = {key: array for key, array in state.items() if key != "clf.bias"}
    cut["uplist.0.2.weight"] = cut["uplist.0.2.weight"][:, :3]
    states = {
        "smp": encoder_unet_state(),
        "resnet": {key.removeprefix("backbone."): a for key, a in state.items() if key.startswith("backbone.")},
        "cut": cut,
        "more": state | {"extra.weight": np.zeros(3, np.float32)},
        "constant": state | {"upsample2x.unpool_mat": np.zeros((2, 2), np.float32)},
        "empty": {},
    }
    file = save(tmp_path / "weights.npz", states[name])
    assert call("--format=tiatoolbox", f"--weights={file}", f"--output={tmp_path / 'run'}") == 3
    line = one_line(capsys)
    assert str(file) in line and expected in line
    assert not (tmp_path / "run").exists()


def test_a_file_of_smp_names_its_encoder(tmp_path, capsys, monkeypatch):
    from bcss_jax.inference.imported import smp

    monkeypatch.setitem(smp._RESNETS, ((1, 1, 1, 1), False), "unet_resnet34")
    file = save(tmp_path / "unet.npz", encoder_unet_state())
    options = ["--format=smp", f"--weights={file}", f"--output={tmp_path / 'run'}"]
    assert call(*options, "--mpp=0.5") == 2
    assert "--labels is needed" in one_line(capsys)
    assert call(*options, "--mpp=0.5", "--labels=five_classes") == 2
    assert "has 3 outputs, the label scheme five_classes has 6" in one_line(capsys)
    assert call(*options, "--mpp=0.5", "--labels=tumor_stroma", "--fold=1") == 2
    assert "--format=smp does not take it" in one_line(capsys)
    assert call(*options, "--mpp=0.5", "--labels=tumor_stroma") == 0
    model, metadata = checkpoint.load_model(tmp_path / "run" / "checkpoints")
    assert metadata["config"]["model"]["name"] == "unet_resnet34" and metadata["config"]["data"]["mpp"] == 0.5
    assert np.array_equal(to_torch_state(model)["encoder.conv1.weight"], encoder_unet_state()["encoder.conv1.weight"])
    one_output = save(tmp_path / "one.npz", encoder_unet_state(1))
    assert call(*options[:1], f"--weights={one_output}", *options[2:], "--mpp=0.5", "--labels=tumor_stroma") == 2


def test_the_encoders_of_smp_are_recognized_by_their_names():
    from bcss_jax.inference.imported import smp

    def resnet(blocks, *convs):
        stages = [(stage, i, conv) for stage, count in enumerate(blocks, 1) for i in range(count) for conv in convs]
        return {f"encoder.layer{stage}.{i}.conv{conv}.weight": 0 for stage, i, conv in stages}

    layers = [(block, i) for block, count in enumerate((6, 12, 24, 16), 1) for i in range(1, count + 1)]
    dense = {f"encoder.features.denseblock{block}.denselayer{i}.conv1.weight": 0 for block, i in layers}
    assert smp._network_of("file", resnet((3, 4, 6, 3), 1, 2)) == "unet_resnet34"
    assert smp._network_of("file", resnet((3, 4, 6, 3), 1, 2, 3)) == "unet_resnet50"
    assert smp._network_of("file", resnet((3, 4, 23, 3), 1, 2, 3)) == "unet_resnet101"
    assert smp._network_of("file", dense) == "dense_unet_121"
    with pytest.raises(DataError, match=r"found blocks \(2, 2, 2, 2\); other encoders cannot be imported"):
        smp._network_of("file", resnet((2, 2, 2, 2), 1, 2))


def test_a_file_of_this_projects_names(tmp_path, capsys):
    model = models.create("unet", num_classes=3, width=4, depth=1)
    file = save(tmp_path / "unet.npz", to_torch_state(model))
    options = ["--format=torch", f"--weights={file}", f"--output={tmp_path / 'run'}", "--labels=tumor_stroma"]
    options += ["--mpp=0.25", "--model=unet"]
    assert call(*options) == 3
    assert "the weights do not fit UNet" in one_line(capsys)
    for text in ("[1]", "{", '{"seed": 1}'):
        assert call(*options, f"--arguments={text}") == 2
        assert "--arguments" in one_line(capsys)
    assert call(*options, '--arguments={"width": 4, "deepness": 1}') == 2
    assert "has no argument deepness" in one_line(capsys)
    assert call(*options, '--arguments={"width": 4, "depth": 1}') == 0
    read_trained_run(tmp_path / "run", make_mesh(jax.devices()[:1]), "best")


def test_a_fold_of_nnunet_whose_plan_divides_by_255(tmp_path, capsys):
    pytest.importorskip("torch")
    from bcss_jax.nnunet.network import network_from_plan
    from bcss_jax.nnunet.result_folder import write_result_folder

    plan = json.loads(json.dumps(nnunet_small.PLAN))
    folds = {fold: to_torch_state(network_from_plan(plan, 3, seed=fold)) for fold in (0, 1)}
    write_result_folder(tmp_path / "zscore", plan, nnunet_small.DATASET, {0: folds[0]})
    plan["configurations"]["2d"]["normalization_schemes"] = ["RGBTo01Normalization"] * 3
    dataset = nnunet_small.DATASET | {"channel_names": {str(i): "rgb_to_0_1" for i in range(3)}}
    write_result_folder(tmp_path / "folder", plan, dataset, folds)
    common = ["--format=nnunet", "--mpp=0.25", "--labels=tumor_stroma"]
    assert call(*common, f"--weights={tmp_path / 'zscore'}", f"--output={tmp_path / 'run'}") == 3
    assert re.search("found ZScoreNormalization, which .* bcss_jax.nnunet predict", one_line(capsys))
    common.append(f"--weights={tmp_path / 'folder'}")
    assert call(*common, f"--output={tmp_path / 'run'}") == 2
    assert "holds the folds 0, 1" in one_line(capsys)
    (tmp_path / "other.toml").write_text(OTHER_ORDER)
    assert call(*common, f"--output={tmp_path / 'run'}", "--fold=1", f"--labels={tmp_path / 'other.toml'}") == 2
    assert "has the classes background, tumor, stroma, the label scheme other has" in one_line(capsys)
    assert call(*common, f"--output={tmp_path / 'run'}", "--fold=1") == 0
    model, metadata = checkpoint.load_model(tmp_path / "run" / "checkpoints")
    for name, array in to_torch_state(model).items():
        np.testing.assert_array_equal(array, folds[1][name])
    assert metadata["config"]["image_std"] == [1.0, 1.0, 1.0] and metadata["config"]["data"]["patch_size"] == 64


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--format=tiatoolbox", "--weights=nowhere.pth"], "nowhere.pth: expected a file of weights, found no such"),
        (["--format=tiatoolbox", "--weights=a.txt"], "a.txt"),
        (["--format=nnunet", "--weights=nowhere", "--labels=tumor_stroma", "--mpp=1"], "nowhere"),
        (["--format=smp", "--weights=a.npz", "--labels=tumour", "--mpp=1"], "--labels=tumour: must be one of"),
        (["--format=smp", "--weights=a.npz", "--labels=tumor_stroma", "--mpp=0"], "--mpp=0: expected um per pixel"),
        (["--format=keras", "--weights=a"], "invalid choice: 'keras'"),
        (["--format=torch", "--weights=a", "--labels=tumor_stroma", "--mpp=1", "--model=u"], "there is no model 'u'"),
    ],
)
def test_a_wrong_command_line_is_one_line(options, expected, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("x")
    assert call(*options, f"--output={tmp_path / 'run'}") in (2, 3)
    assert expected in one_line(capsys)
