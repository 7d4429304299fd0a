"""Evaluation of runs of nnU-Net's method: scores against plain NumPy, images that no fold has seen, invalid input."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest
from helpers.nnunet_small import PLAN
from helpers.tile_files import image, mask, name, save
from helpers.trained_small import save_checkpoint
from PIL import Image

from bcss_jax import config, models
from bcss_jax.commands import evaluate
from bcss_jax.data import tfrecords
from bcss_jax.data.discovery import DataSettings
from bcss_jax.evaluation import nnunet_run
from bcss_jax.labels import SCHEMES
from bcss_jax.models.apply import split_model
from bcss_jax.nnunet import cases, folds
from bcss_jax.nnunet.config import default
from bcss_jax.nnunet.network import class_and_arguments
from bcss_jax.nnunet.predict import make_predictor
from bcss_jax.nnunet.preprocess import preprocess
from bcss_jax.training import checkpoint, sharding, step_folder

PATIENTS = {"train": "TCGA-A2-A0D2", "val": "TCGA-OL-A5D6", "test": "TCGA-BH-A0B1"}
TILES, SIDE = 3, 16


def plan(patch=(SIDE, SIDE)):
    content = copy.deepcopy(PLAN)
    content["configurations"]["2d"]["patch_size"] = list(patch)
    return content


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Returns a kaggle224 folder with smaller tiles and masks of the test tiles. One tile has a black border."""
    root, seed = tmp_path_factory.mktemp("tiles"), 0
    for part, patient in PATIENTS.items():
        for number in range(TILES):
            seed += 1
            stem, pixels = name(patient, x=224 * number, size=224), np.maximum(image(seed), 1)
            pixels[:3] = 0 if (part, number) == ("val", 0) else pixels[:3]
            save(root / part / f"{stem}.png", pixels)
            save(root / f"{part}_mask" / f"{stem}.png", mask(seed, codes=(0, 1, 2)))
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def new_run(tiles, prepared):
    """Returns a function that writes the folder of a run as training does. The folds have random weights."""

    def write(folder, how="published", labels="tumor_stroma", patch=(SIDE, SIDE), **settings):
        saved, the_plan = default(), plan(patch)
        saved.update(labels=labels, folds=how if how != "all" else "patient", fold="all" if how == "all" else "each")
        saved.data.update(layout="kaggle224", dir=str(tiles), prepared_dir=str(prepared), **settings)
        found = cases.find(
            DataSettings("kaggle224", tiles, saved.data.split), prepared_dir=prepared, scheme=SCHEMES[labels]
        )
        by_split = {split: [c.name for c in found.train if c.split == split] for split in ("train", "val")}
        both = sorted(by_split["train"] + by_split["val"])
        splits = {
            "published": [by_split],
            "case": [{"train": both[n:], "val": both[:n]} for n in (1, 2)],
            "all": [],
        }[how]
        class_, arguments = class_and_arguments(the_plan)
        saved = saved.to_dict() | {"model": {"name": "nnunet", **arguments}}
        about = {"config": saved, "label_scheme": found.scheme.to_json(), "plan": the_plan, "dataset": found.dataset}
        about |= {"data": found.description}
        fingerprint = {"shapes_after_crop": [[1, SIDE, SIDE]], "spacings": [[999.0, 1.0, 1.0]]}
        folder.mkdir()
        (folder / "splits_final.json").write_text(json.dumps(splits))
        (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint, indent=1))
        for number, split in enumerate(splits or [{"train": both, "val": both}]):
            fold = str(number) if splits else "all"
            model = models.create(**saved["model"], num_classes=found.scheme.num_classes, seed=number)
            _, params, model_state = split_model(model)
            of_fold = about | {"fold": fold, "data_sha256": folds.fold_sha256(fingerprint, split, the_plan)}
            where = folder / f"fold_{fold}" / "checkpoints"
            save_checkpoint(where, params, model_state, of_fold, step_number=4, progress={"epoch": 2})
        return folder

    return write


@pytest.fixture(scope="module")
def runs(new_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {how: new_run(folder / how, how) for how in ("published", "case", "all")}


@pytest.fixture(scope="module")
def command(prepared):
    def call(run, output, *options):
        return evaluate.main(
            [f"--checkpoints={run}", f"--output={output}", f"--prepared_dir={prepared}", "--batch_size=8", *options]
        )

    return call


def one_line(capsys):
    """Returns the error message, which is one line."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
    assert line.startswith("error: ")
    return line


def document(output):
    return json.loads((output / "evaluation.json").read_text())


def expected_confusion(run, tiles, part, names):
    """Counts ground truth against the likelier of tumor and stroma by the mean logits of the folds, tile by tile."""
    trained = [checkpoint.load_model(run / f"fold_{fold}" / "checkpoints", "latest") for fold in names]
    predict, about = make_predictor([model for model, _ in trained], (SIDE, SIDE)), trained[0][1]
    total = np.zeros((2, 2), int)
    for path in sorted((tiles / part).iterdir()):
        case = preprocess(np.asarray(Image.open(path)), None, about["plan"], about["dataset"])
        (y0, y1), (x0, x1) = case.properties["bbox_used_for_cropping"]
        guess = np.ones((SIDE, SIDE), int)  # in a black border all classes are equal, so the first one is predicted
        guess[y0:y1, x0:x1] = predict(case.data)[..., 1:].argmax(-1) + 1
        truth = np.asarray(Image.open(tiles / f"{part}_mask" / path.name))
        total += [[int(((truth == t) & (guess == p)).sum()) for p in (1, 2)] for t in (1, 2)]
    return total


def test_val_is_scored_where_the_fold_is_the_published_split(command, runs, tiles, tmp_path):
    assert command(runs["published"], tmp_path / "here", "--tta") == 0
    (found,) = document(tmp_path / "here")["evaluations"]
    np.testing.assert_array_equal(
        found["scores"]["confusion"]["pixels"], expected_confusion(runs["published"], tiles, "val", "0")
    )
    assert found["scores"]["number"]["images"] == TILES and found["part"] == "val"
    assert found["model"] == "nnunet" and found["label_scheme"]["name"] == "tumor_stroma"
    assert found["trained_on"]["content_sha256"] == found["data"]["content_sha256"]
    assert found["trained_on"]["tiles"] == {"train": TILES, "val": TILES, "test": TILES}
    assert found["checkpoint"]["which"] == "latest" and found["checkpoint"]["folds"] == {"0": {"step": 4, "epoch": 2}}
    mirrored = [(0, False), (0, True), (2, True), (2, False)]  # with and without --tta
    assert [(view["quarter_turns"], view["flipped"]) for view in found["augmentation"]] == mirrored
    card = (tmp_path / "here" / "published" / "MODEL_CARD.md").read_text()
    assert f"python -m bcss_jax.nnunet predict --model={runs['published']} " in card and "load_model" not in card
    assert "0.809" not in (tmp_path / "here" / "table.md").read_text()  # Table 1 is of a task with three classes


def test_folds_of_a_cross_validation_are_scored_together_on_the_test_split_only(command, runs, tiles, tmp_path, capsys):
    assert command(runs["case"], tmp_path / "val") == 2
    line = one_line(capsys)
    assert "folds 0, 1 trained on 3 of the 3 images of val" in line and "--split=test" in line
    assert not (tmp_path / "val" / "evaluation.json").exists()
    assert command(runs["case"], tmp_path / "here", "--split=test") == 0
    (found,) = document(tmp_path / "here")["evaluations"]
    np.testing.assert_array_equal(
        found["scores"]["confusion"]["pixels"], expected_confusion(runs["case"], tiles, "test", "01")
    )
    assert found["temperature"]["fitted_on"] == "test" and found["temperature"]["in_sample"]  # val was trained on
    assert sorted(found["checkpoint"]["folds"]) == ["0", "1"]


def test_a_network_trained_on_all_images_is_scored_on_the_test_split_only(runs):
    run = nnunet_run.read_nnunet_run(runs["all"], sharding.make_mesh(jax.devices()[:1]))
    assert [run.count_seen(part, ["a", "b"], "kaggle224") for part in ("train", "val", "test")] == [2, 2, 0]
    assert run.count_seen("val", ["a", "b"], "sample") == 0  # other images


def test_it_is_part_of_an_ensemble_with_other_runs(command, runs, tiles, prepared, tmp_path):
    scheme, settings = SCHEMES["tumor_stroma"], config.default("unet", width=4, depth=1)
    settings.update(eval_batch_size=8)
    settings.data.update(layout="kaggle224", dir=str(tiles))
    about = {"config": settings.to_dict(), "label_scheme": scheme.to_json(), "pretrained": None}
    about["data"] = tfrecords.prepare(DataSettings("kaggle224", tiles), prepared_dir=prepared, scheme=scheme).describe()
    _, params, model_state = split_model(models.create(**settings.model, num_classes=3, seed=1))
    progress = {"epoch": 1, "history": []}
    save_checkpoint(tmp_path / "unet" / "checkpoints", params, model_state, about, step_number=1, progress=progress)
    both = f"{tmp_path / 'unet'},{runs['case']}"
    assert command(both, tmp_path / "here", "--split=test", "--ensemble") == 0
    content = document(tmp_path / "here")
    unet, nnunet, ensemble = content["evaluations"]
    assert len(content["differences"]) == 3 and unet["data"] == nnunet["data"]
    assert not unet["temperature"]["in_sample"] and ensemble["temperature"]["in_sample"]
    assert [member["name"] for member in ensemble["checkpoint"]["members"]] == ["unet", "case"]
    assert len(unet["augmentation"]) == 1 and len(ensemble["augmentation"]) == 4
    card = (tmp_path / "here" / "ensemble_of_2" / "MODEL_CARD.md").read_text()
    assert "python -m bcss_jax.nnunet predict" in card and "checkpoint.load_model" in card


def test_a_black_border_is_background(new_run, tiles, tmp_path):
    mesh = sharding.make_mesh(jax.devices()[:1])
    member = nnunet_run.read_nnunet_run(new_run(tmp_path / "other", labels="tumor_stroma_other"), mesh).member(
        mesh, False
    )
    pixels = np.asarray(Image.open(sorted((tiles / "val").iterdir())[0]))[None]
    found = np.exp(member(pixels))
    assert not pixels[0, :3].any() and (found[0, :3, :, 0] > 0.999).all()  # the class "other" is nnU-Net's background
    assert (found[0, 3:, :, 0] < 0.999).any()
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


def test_a_single_fold_is_refused(command, runs, tmp_path, capsys):
    assert command(runs["case"] / "fold_0", tmp_path / "here") == 2
    assert "name the folder of the run" in one_line(capsys)


def changed(run, tmp_path, change):
    """Returns a copy of a run with changed metadata in the checkpoint of its first fold."""
    folder = tmp_path / "changed"
    shutil.copytree(run, folder)
    path = folder / "fold_0" / "checkpoints" / "4" / "about" / "metadata"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    step_folder.write_digests(path.parents[1])  # as if it had been saved so
    return folder


@pytest.mark.parametrize(
    ("change", "code", "text"),
    (
        (lambda about: about.update(format_version=99), 3, "checkpoint format 99"),
        (
            lambda about: about["config"].update(labels="five_classes"),
            3,
            "cannot express the label scheme five_classes",
        ),
        (lambda about: about.update(project_scheme=SCHEMES["tumor_stroma_other"].to_json()), 3, "says something else"),
        (lambda about: about["config"].update(labels="mine"), 3, "labels"),
        (
            lambda about: about["label_scheme"].update(class_names=["background", "stroma", "tumor"]),
            3,
            "something else",
        ),
        (lambda about: about["dataset"]["labels"].update(tumor=2, stroma=1), 3, "says something else"),
        (lambda about: about["config"]["data"].update(layout="nnunet"), 2, "a raw data folder of nnU-Net"),
        (lambda about: about["config"]["model"].update(features_per_stage=[4, 8, 16]), 3, "expected float32["),
        (lambda about: about["plan"]["configurations"]["2d"].update(patch_size="large"), 3, "was changed"),
        (lambda about: about["plan"]["configurations"]["2d"].pop("normalization_schemes"), 3, "was changed"),
        (
            lambda about: about["plan"]["configurations"]["2d"].update(patch_size=[32, 32]),
            3,
            "with another split, plan",
        ),
        (lambda about: about.update(data={}), 3, "was changed"),
        (lambda about: about.pop("plan"), 3, "was changed"),
        (lambda about: about.update(config={"method": "nnunet"}), 3, "was changed"),
    ),
)
def test_a_checkpoint_that_contradicts_itself_is_refused(command, runs, tmp_path, capsys, change, code, text):
    assert command(changed(runs["published"], tmp_path, change), tmp_path / "here") == code
    assert text in one_line(capsys)
    assert not (tmp_path / "here" / "evaluation.json").exists()


def test_folds_that_do_not_belong_together_are_refused(command, runs, new_run, tmp_path, capsys):
    folder = tmp_path / "mixed"
    shutil.copytree(runs["case"], folder)
    other = new_run(tmp_path / "other", how="case", patch=(32, 32))
    shutil.rmtree(folder / "fold_1")
    shutil.copytree(other / "fold_1", folder / "fold_1")
    assert command(folder, tmp_path / "here") == 3
    assert "expected folds of one plan" in one_line(capsys)


def without_splits(folder):
    (folder / "splits_final.json").unlink()


def with_other_splits(folder):
    splits = json.loads((folder / "splits_final.json").read_text())
    splits[0]["train"].pop()
    (folder / "splits_final.json").write_text(json.dumps(splits))


def with_fewer_splits(folder):
    (folder / "splits_final.json").write_text("[]")


def with_postprocessing(folder):
    (folder / "postprocessing.json").write_text('{"keep_largest": [[1, 2]]}')


@pytest.mark.parametrize(
    ("change", "code", "text"),
    (
        (without_splits, 3, "expected the split that the folds were trained with"),
        (with_other_splits, 3, "fold 0 was trained with another split"),
        (with_fewer_splits, 3, "expected the split that the folds were trained with"),
        (with_postprocessing, 2, "largest components only"),
    ),
)
def test_files_of_the_run_that_do_not_belong_to_it_are_refused(command, runs, tmp_path, capsys, change, code, text):
    folder = tmp_path / "changed"
    shutil.copytree(runs["published"], folder)
    change(folder)
    assert command(folder, tmp_path / "here") == code
    assert text in one_line(capsys)


def test_regions_are_refused(runs):
    run = nnunet_run.read_nnunet_run(runs["published"], sharding.make_mesh(jax.devices()[:1]))
    with pytest.raises(Exception, match="predicts whole regions") as caught:
        run.check_unseen("test", ["a"], "roi")
    assert caught.value.exit_code == 2
