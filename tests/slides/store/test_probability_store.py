import json

import numpy as np
import pytest
import zarr

from bcss_jax.errors import ConfigError
from bcss_jax.slides.classes import SlideClass
from bcss_jax.slides.store.probability_store import CHUNK, ProbabilityStore

CLASSES = (SlideClass(1, "tumor", (230, 159, 0)), SlideClass(2, "stroma", (0, 114, 178)))


def probabilities(height=1100, width=1300):
    values = np.random.default_rng(0).integers(0, 256, (2, height, width), np.uint8)
    values[:, :CHUNK, CHUNK : 2 * CHUNK] = 0
    values[1, CHUNK : 2 * CHUNK] = 0
    values[:, CHUNK : 2 * CHUNK, :CHUNK] = values[:, CHUNK : 2 * CHUNK, 2 * CHUNK :] = 0
    values[0, 600, 100] = 1
    return values


def opened(folder, values, mpp=0.25):
    return ProbabilityStore(folder, values.shape[2], values.shape[1], mpp=mpp, classes=CLASSES, name="case.svs")


def write(store, values, rows):
    for row in rows:
        for column in range(-(-values.shape[2] // CHUNK)):
            rows, columns = (slice(at * CHUNK, (at + 1) * CHUNK) for at in (row, column))
            store.write_tile(row, column, values[:, rows, columns])


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_probabilities_are_read_as_written(tmp_path):
    values = probabilities()
    write(opened(tmp_path / "p.zarr", values), values, range(3))
    array = zarr.open_group(tmp_path / "p.zarr", mode="r")["0"]
    assert array.metadata.zarr_format == 3 and array.chunks == (1, CHUNK, CHUNK)
    np.testing.assert_array_equal(array[:], values)


def test_chunks_of_zeros_are_not_stored(tmp_path):
    values = probabilities()
    write(opened(tmp_path / "p.zarr", values), values, range(3))
    chunks = {name[4:] for name in files(tmp_path / "p.zarr") if name.startswith("0/c/")}
    every = {f"{c}/{y}/{x}" for c in range(2) for y in range(3) for x in range(3)}
    assert every - chunks == {"0/0/1", "0/1/2", "1/0/1", "1/1/0", "1/1/1", "1/1/2"}


def test_the_metadata_follow_ome_zarr(tmp_path):
    opened(tmp_path / "p.zarr", probabilities())
    group = json.loads((tmp_path / "p.zarr" / "zarr.json").read_text())
    assert (group["zarr_format"], group["node_type"]) == (3, "group")
    ome = group["attributes"]["ome"]
    assert ome["version"] == "0.5"
    (image,) = ome["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == ["c", "y", "x"]
    assert [axis.get("unit") for axis in image["axes"]] == [None, "micrometer", "micrometer"]
    assert image["datasets"] == [
        {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 0.25, 0.25]}]}
    ]
    assert [channel["label"] for channel in ome["omero"]["channels"]] == ["tumor", "stroma"]
    assert ome["omero"]["channels"][0]["color"] == "E69F00"
    array = json.loads((tmp_path / "p.zarr" / "0" / "zarr.json").read_text())
    assert array["dimension_names"] == ["c", "y", "x"] and array["shape"] == [2, 1100, 1300]


def test_a_run_that_was_killed_ends_with_the_same_bytes(tmp_path):
    values = probabilities()
    write(opened(tmp_path / "a.zarr", values), values, range(3))
    store = opened(tmp_path / "b.zarr", values)
    write(store, values, [2])
    store.write_tile(0, 1, np.full((2, CHUNK, CHUNK), 9, np.uint8))  # chunks of zeros replace it later
    damaged = tmp_path / "b.zarr" / "0" / "c" / "0" / "2" / "0"
    damaged.write_bytes(damaged.read_bytes()[:10])
    reopened = opened(tmp_path / "b.zarr", values)
    assert (tmp_path / "b.zarr" / "0" / "c" / "0" / "2" / "1").exists()  # the existing array was kept
    write(reopened, values, [1, 0, 2])
    assert files(tmp_path / "a.zarr") == files(tmp_path / "b.zarr")


@pytest.mark.parametrize("change", ["shape", "mpp", "damage"])
def test_an_array_of_another_slide_or_a_damaged_one_is_replaced(tmp_path, change):
    values = probabilities()
    write(opened(tmp_path / "p.zarr", values), values, range(3))
    if change == "damage":
        (tmp_path / "p.zarr" / "0" / "zarr.json").write_text('{"zarr_fo')
    other = values[:, :600] if change == "shape" else values
    mpp = 0.5 if change == "mpp" else 0.25
    store = opened(tmp_path / "p.zarr", other, mpp)
    assert not any(name.startswith("0/c/") for name in files(tmp_path / "p.zarr"))
    write(store, other, [0])
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "p.zarr", mode="r")["0"][:, :CHUNK], other[:, :CHUNK])


def test_wrong_tiles_are_refused(tmp_path):
    store = opened(tmp_path / "p.zarr", probabilities())
    for tile in (
        np.zeros((2, 100, CHUNK), np.uint8),
        np.zeros((2, CHUNK, CHUNK), np.float32),
        np.zeros((CHUNK, CHUNK), np.uint8),
    ):
        with pytest.raises(ValueError, match="tile 0, 1"):
            store.write_tile(0, 1, tile)


def test_a_folder_that_cannot_be_created_gives_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="expected a folder for what is written, found a file"):
        opened(tmp_path / "file" / "p.zarr", probabilities())
