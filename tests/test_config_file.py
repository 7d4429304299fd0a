"""Config files of the package are found by name."""

import pytest
from helpers.paths import ROOT

from bcss_jax.config_file import find_config_file, shipped_configs
from bcss_jax.errors import ConfigError


def test_every_config_file_has_a_name():
    assert shipped_configs() == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("name", ["unet", "nnunet"])
@pytest.mark.parametrize("argument", ["", ":kaggle224", ":kaggle224,few"])
def test_a_name_becomes_the_file(name, argument):
    assert find_config_file(name + argument) == f"{ROOT / 'configs' / name}.py{argument}"


@pytest.mark.parametrize("path", ["configs/unet.py:roi", "mine.py", "/a/b", "a/b.py:x:y", ""])
def test_a_path_stays(path):
    assert find_config_file(path) == path


def test_a_file_comes_before_a_name_but_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unet").mkdir()
    assert find_config_file("unet") == f"{ROOT / 'configs' / 'unet.py'}"
    (tmp_path / "transunet").touch()
    assert find_config_file("transunet:roi") == "transunet:roi"


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="--config=transnet: .* did you mean transunet"):
        find_config_file("transnet:roi")
    with pytest.raises(ConfigError, match="choose one of .*unet"):
        find_config_file("zzz")
