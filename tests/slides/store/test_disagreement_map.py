"""disagreement.png: means over cells, whatever pieces the pixels come in."""

import numpy as np
import pytest
from PIL import Image

from bcss_jax.errors import DataError
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.store.disagreement_map import CellSums, read_map, write_map

TILE, WIDTH, HEIGHT = 64, 210, 150


def rows_of(steps, pieces):
    sums = CellSums(TILE, WIDTH)
    for top, bottom, left, right in pieces:
        for row in range(-(-HEIGHT // TILE)):
            start, end = max(top, row * TILE), min(bottom, (row + 1) * TILE)
            if start < end:
                sums.add(row, start - row * TILE, left, steps[start:end, left:right])
    return [sums.take(row) for row in range(-(-HEIGHT // TILE))]


def test_cells_are_means_over_their_area(tmp_path):
    steps = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    grid = Grid(WIDTH, HEIGHT, 0.5, (1.0, 1.0))
    whole = rows_of(steps, [(0, HEIGHT, 0, WIDTH)])
    pieces = [(0, 5, 0, 33), (0, 5, 33, WIDTH), (5, 97, 0, 31), (5, 97, 31, WIDTH), (97, HEIGHT, 0, WIDTH)]
    assert rows_of(steps, pieces) == rows_of(steps, pieces[::-1]) == whole
    write_map(tmp_path / "disagreement.png", whole, grid)
    found = read_map(tmp_path / "disagreement.png", grid)
    padded = np.pad(steps, ((0, -HEIGHT % 32), (0, -WIDTH % 32))).astype(float)
    wanted = padded.reshape(5, 32, 7, 32).mean((1, 3)) / 255
    assert found.shape == wanted.shape and np.abs(found - wanted).max() <= 0.5 / 255 + 1e-6
    assert Image.open(tmp_path / "disagreement.png").mode == "L"


def test_rows_without_pixels_are_zero():
    assert np.array(CellSums(TILE, WIDTH).take(3)).tolist() == [[0] * 7] * 2


@pytest.mark.parametrize("change", ["missing", "short", "size", "color", "text"])
def test_what_is_no_map_of_the_slide_is_one_line(tmp_path, change):
    path, grid = tmp_path / "disagreement.png", Grid(WIDTH, HEIGHT, 0.5, (1.0, 1.0))
    noise = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    assert read_map(path, grid).shape == (5, 7)
    if change == "missing":
        path.unlink()
    elif change == "short":
        path.write_bytes(path.read_bytes()[:-30])
    elif change == "size":
        Image.fromarray(noise[:4]).save(path)
    elif change == "color":
        Image.fromarray(np.stack([noise] * 3, -1)).save(path)
    else:
        path.write_text("no picture")
    with pytest.raises(DataError, match="disagreement.png") as raised:
        read_map(path, grid)
    assert "\n" not in str(raised.value)
