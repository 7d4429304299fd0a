"""Folders of images to predict: what is found, left out, and refused before a model is loaded."""

import numpy as np
import pytest
from PIL import Image

from bcss_jax.common import files
from bcss_jax.nnunet.__main__ import main


def predict(capsys, images, tmp_path):
    code = main(["predict", f"--model={tmp_path / 'none'}", f"--images={images}", f"--out={tmp_path / 'out'}"])
    printed = capsys.readouterr()
    assert code == 3 and "Traceback" not in printed.err
    return printed.out, printed.err.strip()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for name in ("a.png", "b.PNG", "c d.tiff", "._a.png", "Thumbs.db", "notes.txt"):
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "more").mkdir()
    return folder


def test_images_are_counted_and_what_is_left_out_is_said(capsys, images, tmp_path):
    out, _ = predict(capsys, images, tmp_path)
    assert f"{images}: 3 image(s); left out: 2 hidden (first images/._a.png), 1 folder that is not looked into" in out
    assert "1 entry that is no image (first images/notes.txt)" in out


@pytest.mark.parametrize("name", ("a.jpg", "A.PNG", "a.tif"))
def test_two_images_of_one_name_are_refused(capsys, images, tmp_path, name):
    (images / name).touch()
    assert "expected one image of that name, found" in predict(capsys, images, tmp_path)[1]


def test_a_folder_without_images_names_what_it_holds(capsys, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / ".a.png").touch()
    error = predict(capsys, folder, tmp_path)[1]
    assert "found none (left out: 1 hidden (first images/.a.png))" in error
    assert "found no such file" in predict(capsys, tmp_path / "absent", tmp_path)[1]


def test_two_commands_do_not_write_into_one_folder(tmp_path, capsys):
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    with files.locked(tmp_path / "out"):
        assert main(["predict", f"--model={tmp_path / 'run'}", f"--images={image}", f"--out={tmp_path / 'out'}"]) == 5
    assert "out: in use by process" in capsys.readouterr().err
