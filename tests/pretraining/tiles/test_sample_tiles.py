"""Tiles of the built-in data set for pretraining are of patients that the labeled one does not have."""

import numpy as np

from bcss_jax.data import synthetic
from bcss_jax.pretraining.tiles.sample_tiles import sample_tiles


def test_tiles_are_of_other_patients_and_the_same_every_time():
    tiles = sample_tiles(2)
    assert tiles.images.shape == (2, 224, 224, 3) and tiles.size == 224
    assert tiles.notes == ("2 synthetic tiles of 1 patients that have no labels",)
    assert np.array_equal(tiles.images, sample_tiles(2).images)
    assert not np.array_equal(tiles.images[0], sample_tiles(1, seed=1).images[0])
    assert not np.array_equal(tiles.images[0], synthetic.draw_patch(0, 0).image)
    patients = [synthetic.draw_unlabeled(number)[0].split("_")[0] for number in (0, 8)]
    assert patients == ["SAMPLE-B2-0017", "SAMPLE-C3-0018"]
