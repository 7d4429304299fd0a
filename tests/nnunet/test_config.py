import importlib.util

import pytest
from helpers.paths import ROOT

from bcss_jax.errors import ConfigError
from bcss_jax.nnunet import config as configs


def load(argument="sample"):
    spec = importlib.util.spec_from_file_location("nnunet", ROOT / "configs" / "nnunet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


@pytest.mark.parametrize("layout", ["sample", "kaggle224", "kaggle512", "roi", "nnunet", "kaggle224,recipe"])
def test_every_layout_has_valid_settings(layout):
    config = load(layout)
    config.data.dir = "" if layout == "sample" else "somewhere"
    configs.validate(config)
    assert config.epochs == {"sample": 4, "kaggle224,recipe": 15}.get(layout, 1000)


def test_fold_names_of_each_setting():
    config = load("kaggle224")
    assert configs.fold_names(config) == ["0", "1", "2", "3", "4"]
    config.fold = "2"
    assert configs.fold_names(config) == ["2"]
    config.fold, config.folds = "each", "published"
    assert configs.fold_names(config) == ["0"]


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("preset", "ResEncS", "config.preset=ResEncS: must be one of nnUNetPlans, .*did you mean ResEnc"),
        ("fold", "5", "config.fold=5: must be one of each, all, 0, 1, 2, 3, 4"),
        ("folds", "random", "config.folds=random: must be one of patient, case, published"),
        ("iterations", 0, "config.iterations=0: must be a whole number from 1 to"),
        ("data.layout", "nnunt", "did you mean nnunet"),
        ("data.layout", "slides", "reads whole images, no slides; train its network .*configs/nnunet_plain.py:slides"),
        ("data.dir", "", "needs the folder of the data set"),
        ("labels", "two", "config.labels=two"),
        ("data.mpp", 0, "config.data.mpp=0.0: expected um per pixel such as 0.25"),
        ("data.mpp", 40.0, "a magnification"),
    ],
)
def test_invalid_settings_are_refused(field, value, message):
    config = load("kaggle224")
    config.data.dir = "somewhere"
    *path, last = field.split(".")
    group = config
    for name in path:
        group = group[name]
    group[last] = value
    with pytest.raises(ConfigError, match=message):
        configs.validate(config)


def test_invalid_combinations_are_refused():
    config = load("nnunet")
    config.data.dir, config.folds, config.fold = "somewhere", "published", "0"
    with pytest.raises(ConfigError, match="has no validation split"):
        configs.validate(config)
    config.folds, config.plan, config.rule_before_2_3_1 = "patient", "plans.json", True
    with pytest.raises(ConfigError, match="leave one of them out"):
        configs.validate(config)
    for field, value in (("split", "institute"), ("max_bad", 0.1)):
        config = load("nnunet")
        config.data.dir, config.data[field] = "somewhere", value
        with pytest.raises(ConfigError, match=f"config.data.{field}={value}: has no effect on a raw data folder"):
            configs.validate(config)
    with pytest.raises(ConfigError, match="reads whole images, no slides"):
        load("slides")
    with pytest.raises(ConfigError, match="not ',few'"):
        load("kaggle224,few")


def test_float16_by_the_name_of_the_config():
    config = load("kaggle224,recipe,kaggle_t4")
    assert (config.name, config.dtype, config.epochs) == ("nnunet_kaggle224_recipe_kaggle_t4", "float16", 15)
    assert load("kaggle224,recipe").dtype == "float32"
