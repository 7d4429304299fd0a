"""Tests that every config file is valid, that errors name the setting, and that changed settings of a run are found."""

import dataclasses
import importlib.util
import json

import jax
import pytest
from flax import nnx
from helpers.paths import ROOT

from bcss_jax import config, labels, models
from bcss_jax import config as configs
from bcss_jax.data.augmentation.settings import FULL, Augmentation
from bcss_jax.errors import ConfigError
from bcss_jax.nnunet import config as nnunet_config


def load(name, layout):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(layout)


# The complete method of nnU-Net has different settings; tests/nnunet/test_config.py tests them.
SYSTEMS = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - {"nnunet", "dino"})


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_valid_settings_and_a_network(system):
    for argument in ("sample", "kaggle224", "kaggle224,few" if system != "unet_w32" else "roi"):
        config = load(system, argument)
        config.data.dir = "" if argument == "sample" else "somewhere"
        configs.set_image_statistics(config)
        configs.validate(config)
        assert config.name.startswith(system)
    given = json.loads(config.to_json())["model"]  # as read from a checkpoint: tuples are lists
    model = nnx.eval_shape(lambda: models.create(**given, num_classes=3))
    assert jax.tree.leaves(nnx.state(model, nnx.Param))


def test_recipe_for_few_tiles():
    config = load("unet", "kaggle224,few")
    assert (config.name, config.batch_size, config.optimizer.learning_rate) == ("unet_kaggle224_few", 8, 1e-3)
    assert config.augment.rotate == 0 and config.augment.horizontal_flip > 0
    for wrong in ("small", "few,few", "few,small", ""):
        with pytest.raises(ConfigError, match=f"found ',{wrong}'"):
            load("unet", f"kaggle224,{wrong}")


def test_recipe_for_t4s():
    config, plain = load("unet", "kaggle224,kaggle_t4"), load("unet", "kaggle224")
    assert (config.name, config.dtype) == ("unet_kaggle224_kaggle_t4", "float16")
    assert (config.batch_size, config.optimizer, config.augment) == (128, plain.optimizer, plain.augment)
    assert load("dense_unet", "kaggle224,kaggle_t4").micro_batches > 1
    for argument in ("kaggle224,few,kaggle_t4", "kaggle224,kaggle_t4,few"):
        config, few = load("dense_unet", argument), load("dense_unet", "kaggle224,few")
        assert (config.dtype, config.batch_size, config.micro_batches) == ("float16", 8, 1)
        assert config.model == few.model and config.optimizer == few.optimizer
    assert load("unet_w32", "kaggle224,kaggle_t4").name == "unet_w32_kaggle224_kaggle_t4"
    assert load("unet", "sample,kaggle_t4").name != load("unet", "sample").name == "unet"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"folds": 5, "fold": "5"}, "config.data.fold=5: must be all, or a fold from 0 to 4"),
        ({"folds": 5, "fold": "-1"}, "must be all, or a fold from 0 to 4"),
        ({"dir": "d", "list": "l"}, "expected --config.data.dir=FOLDER .* or --config.data.list=FILE.csv, found both"),
        ({"dir": ""}, "found neither"),
        ({"split": "institute"}, "slides are split by patient"),
    ],
)
def test_folds_and_slides_that_cannot_be_are_refused(values, message):
    config = load("unet", "slides")
    config.data.update({"dir": "d"} | values)
    with pytest.raises(ConfigError, match=message):
        configs.validate(config)
    config.data.update({"dir": "d", "list": "", "folds": 5, "fold": "4", "split": "published", "balance": "classes"})
    configs.validate(config)
    for name in ("list", "region", "folds", "fold", "balance"):  # as in runs of before these settings
        del config.data[name]
    configs.validate(config)


@pytest.mark.parametrize("layout", configs.LAYOUTS)
def test_every_layout_has_a_valid_config(layout):
    config = load("unet", layout)
    config.data.dir = "" if layout == "sample" else "somewhere"
    configs.validate(config)
    assert config.data.layout == layout
    assert set(config.augment) == {field.name for field in dataclasses.fields(Augmentation)}


def test_recipe_is_the_published_one():
    config = load("unet", "kaggle224")
    assert (config.batch_size, config.epochs) == (128, 15)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (5e-3, 1e-4)
    assert (config.model.width, config.labels) == (64, "tumor_stroma")
    for change in ("rotate90", "horizontal_flip", "vertical_flip", "rotate", "elastic", "color_jitter", "blur"):
        assert config.augment[change] > 0


@pytest.mark.parametrize(
    "field, value, message",
    (
        ("data.layout", "kagle224", "did you mean kaggle224"),
        ("data.split", "random", "must be one of published, institute"),
        ("data.folds", 1, r"must be 0 \(no cross-validation\), or 2 or more"),
        ("data.folds", 101, "must be a whole number from 0 to 100"),
        ("data.fold", "2", "needs the number of folds|must be all unless --config.data.folds is given"),
        ("data.list", "slides.csv", "is for slides with annotations, as in --config=configs/unet.py:slides"),
        ("data.region", "ROI", "is for slides with annotations"),
        ("data.balance", "clases", "must be one of none, classes; did you mean classes"),
        ("augment_on", "gpu", "must be one of host, device"),
        ("data.memory_share", 1.5, "must be"),
        ("dtype", "float64", "must be one of float32, bfloat16, float16; did you mean float"),
        ("batch_size", 0, "must be a whole number from 1 to"),
        ("epochs", -1, "must be a whole number from 1 to"),
        ("early_stopping", -1, "must be a whole number from 0 to"),
        ("optimizer.learning_rate", 0.0, "must be above 0"),
        ("optimizer.weight_decay", float("nan"), "must be from 0 to"),
        ("plateau.factor", 1.0, "to below 1"),
        ("data.mpp", float("inf"), "expected um per pixel such as 0.25, found inf"),
        ("data.mpp", 0.0, "found 0"),
        ("data.mpp", 40.0, r"found 40 \(a magnification\? 40x scans have about 0.25\)"),
        ("data.mpp", 250, r"found 250 \(nanometers\?"),
        ("data.mpp", 0.5, "the built-in sample has 0.25 um per pixel"),
        ("augment.blur_sigma", 1e6, "must be from 0.5 to 100"),
        ("augment.elastic_pixels", float("inf"), "must be from 0 to 1000"),
        ("augment.rotate", 1.5, "must be from 0 to 1"),
        ("seed", 2**32, "must be a whole number from 0 to 4294967295"),
        ("seed", -1, "must be a whole number from 0 to 4294967295"),
        ("data.threads", 10**9, "must be a whole number from 0 to 1024"),
        ("data.patch_size", 10**9, "must be a whole number from 1 to"),
        ("epochs", 10**30, "must be a whole number from 1 to"),
        ("epochs", True, "must be a whole number from 1 to"),
        ("batch_size", 10**9, "must be a whole number from 1 to"),
        ("optimizer.learning_rate", float("inf"), "must be above 0 to"),
        ("log_seconds", float("inf"), "must be from 0 to"),
        ("optimizer.name", "adam", "did you mean adamw"),
        ("optimizer.momentum", 1.0, "below 1"),
        ("optimizer.encoder_scale", -0.1, "must be from 0 to"),
        ("freeze_encoder_epochs", -1, "must be a whole number from 0 to"),
        ("schedule", "cosine", "must be one of plateau, poly"),
        ("image_std", (1.0, 0.0, 1.0), "three numbers"),
        ("image_mean", ("a", 1.0, 1.0), "three numbers"),
    ),
)
def test_invalid_value_is_refused_with_its_field_name(field, value, message):
    config = load("unet", "sample")
    with config.unlocked():
        parent = config
        *path, last = field.split(".")
        for part in path:
            parent = parent[part]
        parent[last] = value
    with pytest.raises(ConfigError, match=message) as error:
        configs.validate(config)
    assert f"config.{field}=" in str(error.value)


def test_statistics_that_a_network_applies_itself_are_refused():
    config = load("unet", "sample")
    config.model = {"name": "tiatoolbox_unet"}
    with pytest.raises(
        ConfigError, match=r"tiatoolbox_unet was trained with others; start from --config=configs/tiatoolbox_unet"
    ):
        configs.validate(config)
    configs.validate(load("tiatoolbox_unet", "sample"))


def test_incompatible_scheme_and_layout_are_refused():
    config = load("unet", "kaggle224")
    config.data.dir = "somewhere"
    config.labels = "five_classes"
    with pytest.raises(ConfigError, match="0 other_or_outside, 1 tumor, 2 stroma.*use kaggle512 or roi data"):
        configs.validate(config)
    config = load("unet", "roi")
    with pytest.raises(ConfigError, match="--config.data.dir=FOLDER"):
        configs.validate(config)


def test_only_relevant_differences_are_listed():
    old, new = load("unet", "sample").to_dict(), load("unet", "sample").to_dict()
    new["seed"], new["model"]["width"], new["data"]["threads"] = 5, 32, 7
    assert config.differences(old, new) == ["config.model.width: 16 -> 32", "config.seed: 0 -> 5"]


def test_setting_missing_in_an_older_run_counts_as_its_default():
    old, new = load("unet", "sample").to_dict(), load("unet", "sample").to_dict()
    old = json.loads(json.dumps(old))  # as stored in a run folder
    del old["model"]["bilinear"], old["seed"], old["image_mean"]
    assert config.differences(old, new) == []
    new["model"]["bilinear"] = True
    assert config.differences(old, new) == ["config.model.bilinear: False -> True"]


def test_default_augmentation_is_full():
    assert Augmentation(**configs.default().augment) == FULL


def test_data_folder_with_the_built_in_sample_is_refused():
    config = load("unet", "sample")
    config.data.dir = "somewhere"
    with pytest.raises(ConfigError, match="configs/unet.py:kaggle224"):
        configs.validate(config)


def test_unknown_setting_suggests_the_nearest_name():
    assert "did you mean config.optimizer.learning_rate" in configs.unknown_field(
        configs.default(), "optimizer.learning_rat"
    )


def numbers_of(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from numbers_of(value, f"{prefix}{key}.")
        elif type(value) in (int, float) and not prefix.startswith("model."):
            yield prefix + key


@pytest.mark.parametrize("settings", [configs, nnunet_config], ids=["default", "nnunet"])
def test_every_number_has_a_range(settings):
    assert sorted(set(numbers_of(settings.default().to_dict())) - set(settings.RANGES)) == [
        "data.mpp"
    ]  # `data.resolution.check`


@pytest.mark.parametrize("system", configs.REPORT_SYSTEMS)
def test_recipe_of_the_report(system):
    config = load(system, "kaggle224,report")
    config.data.dir = "somewhere"
    configs.validate(config)
    assert (config.name, config.model.name) == (f"{system}_kaggle224_report", f"report_{system}")
    scheme = labels.find_scheme(config.labels)
    assert scheme.report_classes == (1, 2) and scheme.ignore_index == 255  # class 0 is trained
    assert (config.batch_size, config.micro_batches, config.eval_batch_size) == (128, 1, 128)
    assert (config.optimizer.weight_decay, config.optimizer.clip_norm) == (1e-5, 1.0)
    assert (config.plateau.factor, config.plateau.patience, config.early_stopping) == (0.85, 3, 0)
    assert (config.loss.smooth, config.validation_loss, config.dtype) == (1e-6, "batches", "float16")
    assert Augmentation(**config.augment).displacement_factor() == pytest.approx(1)


@pytest.mark.parametrize(
    ("system", "argument", "message"),
    [
        ("unet", "roi,report", "roi,report: expected kaggle224,report"),
        ("unet", "kaggle224,report,few", "goes with no other"),
        (
            "unet_resnet101",
            "kaggle224,report",
            "the report's own code has no unet_resnet101; ',report' is for",
        ),
    ],
)
def test_the_recipe_of_the_report_is_refused_elsewhere(system, argument, message):
    with pytest.raises(ConfigError, match=message):
        load(system, argument)


def test_images_are_normalized_as_the_encoder_expects():
    config = load("vit", "sample")
    config.encoder = "h_optimus_0"
    configs.set_image_statistics(config)
    assert config.model.encoder == "h_optimus_0" and config.image_mean == (0.707223, 0.578729, 0.703617)
    configs.validate(config)
    config.image_mean = (0.5, 0.5, 0.5)
    configs.set_image_statistics(config)  # a value that is given stays, and is refused
    with pytest.raises(ConfigError, match="vit was trained with others"):
        configs.validate(config)
