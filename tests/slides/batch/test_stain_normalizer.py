"""Slides that do not show both stains are left alone, with the reason."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.slides_small import ArrayPool, color_model
from helpers.stained_pixels import amounts, stained

from bcss_jax.data.stain.measured_stain import measure
from bcss_jax.errors import ConfigError
from bcss_jax.slides.batch.stain_normalizer import StainNormalizer
from bcss_jax.slides.grid import grid_of
from bcss_jax.slides.tissue.tissue_mask import Tissue
from bcss_jax.training.sharding import make_mesh

AMOUNTS = amounts(128, 128)
TISSUE = Tissue(np.ones((1, 1), bool), grid_of(128, 128, (0.25, 0.25), 0.25))
GLASS = np.full(3, 240.0)
STAIN = measure(stained(AMOUNTS).reshape(-1, 3), GLASS)


def normalized(pixels, problem=None, target=STAIN):
    mesh = make_mesh(jax.local_devices()[:1])
    model = dataclasses.replace(color_model(), stain=target)
    normalizer = StainNormalizer(model, np.ones((16, 16), np.float32), 4, mesh)
    return normalizer.of_slide(ArrayPool(pixels), TISSUE, GLASS, problem)


@pytest.mark.parametrize(
    "pixels, problem, reason",
    [
        (np.full((128, 128, 3), 244, np.uint8), None, "hardly any stained tissue"),
        (stained(AMOUNTS * (1, 0)), None, "a single stain, or shades of gray"),
        (stained(AMOUNTS * (0.1, 1)), None, "a single stain, or shades of gray"),
        (stained(AMOUNTS), "brown stain on 9 % of its tissue", "brown stain on 9 % of its tissue"),
    ],
)
def test_a_slide_without_the_two_stains_is_left_alone(pixels, problem, reason):
    found = normalized(pixels, problem)
    assert found.predictor is None and found.left_alone == reason and found.description == {"left_alone": reason}


def test_a_stain_that_is_far_too_weak_is_left_alone():
    strong = dataclasses.replace(STAIN, strengths=tuple(4.5 * each for each in STAIN.strengths))
    assert normalized(stained(AMOUNTS), target=strong).left_alone == "a stain that factors of 4.5 and 4.5 would change"


def test_a_slide_with_both_is_changed():
    found = normalized(stained(AMOUNTS * (0.5, 0.8)))
    assert found.predictor is not None and found.left_alone is None
    np.testing.assert_allclose(list(found.description["factors"].values()), (2, 1.25), rtol=0.05)


def test_a_model_that_states_no_stain_is_refused():
    mesh = make_mesh(jax.local_devices()[:1])
    with pytest.raises(ConfigError, match="does not state the stain of its training images"):
        StainNormalizer(color_model(), np.ones((16, 16), np.float32), 4, mesh)
