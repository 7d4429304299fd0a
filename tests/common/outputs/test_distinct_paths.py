"""Outputs that are inputs are refused, by whatever name."""

import os

import pytest

from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.errors import ConfigError


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    return tmp_path / "images"


@pytest.mark.parametrize("name", ["images", "images/", "./x/../images", "linked", "linked/../images"])
def test_the_folder_of_the_images_is_no_output(tmp_path, images, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / name, os.path.relpath(name)):
        with pytest.raises(ConfigError, match="is --images, an input of this command; choose another place"):
            refuse_inputs("--out", type(images)(root), [("--images", images)])


@pytest.mark.parametrize("name", ["images/new", "images/new/deep", "linked/new"])
def test_no_output_lies_in_a_folder_of_data(tmp_path, images, name):
    with pytest.raises(ConfigError, match="lies in --images, whose files are read"):
        refuse_inputs("--out", tmp_path / name, [], data_folders=[("--images", images)])


def test_no_input_is_replaced_by_a_part_of_the_output(tmp_path, images):
    os.link(images / "a.png", tmp_path / "same.png")
    for part, given in ((images / "a.png", images / "a.png"), (tmp_path / "same.png", images / "a.png"),
                        (images, images / "a.png"), (tmp_path / "linked", images / "a.png")):  # fmt: skip
        with pytest.raises(ConfigError, match="would replace .*, which is the slide"):
            refuse_inputs("--output", tmp_path, [("the slide", given)], parts=[part])


def test_neighbors_are_allowed(tmp_path, images):
    refuse_inputs("--out", tmp_path, [("--images", images)], data_folders=[("--images", images)])
    refuse_inputs("--out", tmp_path / "images2", [("--images", images)], data_folders=[("--images", images)])
    refuse_inputs("--output", tmp_path / "out", [("slide", images / "a.png")], parts=[tmp_path / "out" / "a"])


def test_a_link_to_itself_is_left_to_those_who_read_it(tmp_path, images):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refuse_inputs("--output", tmp_path / "out", [("slide", tmp_path / "loop")])
    refuse_inputs("--output", tmp_path / "loop", [("slide", images / "a.png")])
