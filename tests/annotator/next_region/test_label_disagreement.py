"""The share of the pairs of models that disagree, and its map of a slide."""

import itertools

import numpy as np
import pytest
from helpers.viewer_small import pyramid, write_labels

from bcss_jax.annotator.next_region import label_disagreement as tested
from bcss_jax.annotator.next_region.label_disagreement import label_disagreement, pairs_that_disagree
from bcss_jax.errors import DataError
from bcss_jax.slides.grid import Grid


@pytest.mark.parametrize("members", [2, 3, 5])
def test_it_is_the_share_of_the_pairs_counted_one_by_one(members):
    labels = np.random.default_rng(0).choice([0, 1, 2, 3, 255], (members, 9, 11), p=[0.05, 0.3, 0.3, 0.3, 0.05])
    pairs = list(itertools.combinations(labels, 2))
    wanted = sum((one != other).astype(float) for one, other in pairs) / len(pairs)
    wanted[~np.isin(labels, (1, 2, 3)).all(0)] = 0
    np.testing.assert_allclose(pairs_that_disagree(labels.astype(np.uint8), (1, 2, 3)), wanted, atol=1e-6)


def label_files(folder, *all_labels):
    found = []
    for number, labels in enumerate(all_labels):
        path = folder / f"{number}.tif"
        write_labels(path, pyramid(labels))
        height, width = labels.shape
        found.append((path, Grid(width, height, 0.5, (2100 / width, 1500 / height))))
    return found


@pytest.mark.parametrize("band", [64, 3])
def test_cells_have_the_share_of_their_area(tmp_path, monkeypatch, band):
    monkeypatch.setattr(tested, "BAND", band)
    one = np.full((1500 // 4 + 6, 525), 2, np.uint8)
    other = one.copy()
    other[32:64, 64:80] = 1  # half of a cell
    other[96:128, 128:160] = 0  # glass for one of them
    other[-6:, :] = 1  # of the last row of cells, which has 29 rows of pixels
    files = label_files(tmp_path, one, other)
    cells = label_disagreement(files, files[0][1], (1, 2))
    assert cells.shape == (12, 17) and cells.dtype == np.float32
    assert cells[1, 2] == 0.5 and cells[3, 4] == 0
    np.testing.assert_allclose(cells[-1, :-1], 8 * 2 / 64, atol=0.13)
    cells[-1], cells[1, 2] = 0, 0
    assert not cells.any()


def test_models_of_other_resolutions_are_compared_at_the_same_places(tmp_path):
    fine = np.full((600, 840), 1, np.uint8)
    coarse = np.full((300, 420), 1, np.uint8)
    fine[128:256, 512:640] = 2
    files = label_files(tmp_path, fine, coarse)
    cells = label_disagreement(files, files[0][1], (1, 2))
    wanted = np.zeros((19, 27))
    wanted[4:8, 16:20] = 1
    np.testing.assert_array_equal(cells, wanted)
    coarse[64:128, 256:320] = 2
    files = label_files(tmp_path, fine, coarse)
    assert not label_disagreement(files, files[0][1], (1, 2)).any()


def test_damaged_labels_are_one_line(tmp_path):
    files = label_files(tmp_path, np.ones((64, 64), np.uint8), np.ones((64, 64), np.uint8))
    files[1][0].write_bytes(files[1][0].read_bytes()[:100])
    with pytest.raises(DataError, match=r"1\.tif: expected the labels"):
        label_disagreement(files, files[0][1], (1, 2))
