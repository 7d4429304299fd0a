"""Tiles of the built-in data set for pretraining are of patients that the labeled one does not have."""

import numpy as np

from bcss_jax.data import synthetic
from bcss_jax.pretraining.tiles.sample_tiles import sample_tiles


def test_tiles_are_of_other_patients_and_the_same_every_time():
    tiles = sample_tiles(9)
    assert tiles.images.shape == (9, 224, 224, 3) and tiles.size == 224
    assert {name.split("_")[0] for name in tiles.names} == {"SAMPLE-B2-0017", "SAMPLE-C3-0018"}
    assert tiles.notes == ("9 synthetic tiles of 2 patients that have no labels",)
    assert np.array_equal(tiles.images, sample_tiles(9).images)
    assert not np.array_equal(tiles.images[0], sample_tiles(1, seed=1).images[0])
    assert not np.array_equal(tiles.images[0], synthetic.draw_patch(0, 0).image)
