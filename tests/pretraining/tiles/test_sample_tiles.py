"""Tiles of the built-in data set for pretraining are of patients that the labeled one does not have."""

import numpy as np

from bcss_jax.data import synthetic
from bcss_jax.pretraining.tiles.sample_tiles import SampleTiles


def test_tiles_are_of_other_patients_and_the_same_every_time(monkeypatch):
    tiles = SampleTiles(9)
    assert len(tiles) == 9 and tiles.size == 224
    assert tiles.names[::8] == ["SAMPLE-B2-0017_0_0", "SAMPLE-C3-0018_0_0"]
    assert tiles.notes == ("9 synthetic tiles of 2 patients that have no labels",)
    images = tiles.read(np.array([8, 0, 8]))
    assert images.shape == (3, 224, 224, 3) and np.array_equal(images[0], images[2])
    assert np.array_equal(images[1], synthetic.draw_unlabeled(0))
    assert not np.array_equal(images[1], SampleTiles(1, seed=1).read(np.array([0]))[0])
    assert not np.array_equal(images[1], synthetic.draw_patch(0, 0).image)
    monkeypatch.setattr(synthetic, "draw_unlabeled", None)
    assert np.array_equal(tiles.read(np.array([0, 8])), images[[1, 0]])  # not drawn again
