"""Views depend on the key of their tile alone."""

import jax
import numpy as np
import pytest

from bcss_jax.errors import ConfigError
from bcss_jax.pretraining.views.make_views import make_views
from bcss_jax.pretraining.views.settings import ViewSettings

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8)
KEYS = jax.random.split(jax.random.key(3), 4)
SMALL = {"global_size": 24, "local_size": 12, "local_views": 3}


@pytest.mark.parametrize("style", ["pathology", "dino", "dinov2"])
def test_views_of_a_tile_depend_on_its_key_alone(style):
    settings = ViewSettings(**SMALL, style=style)
    views = make_views(IMAGES, KEYS, settings)
    assert views.global_views.shape == (2, 4, 24, 24, 3) and views.local_views.shape == (3, 4, 12, 12, 3)
    order = np.array([2, 0, 3, 1])
    for one, other in zip(views, make_views(IMAGES[order], KEYS[order], settings), strict=True):
        assert np.array_equal(one[:, order], other)
        assert one.min() >= 0 and one.max() <= 255 and np.array_equal(one, np.rint(one))
    for one, other in zip(views, make_views(IMAGES[1:2], KEYS[1:2], settings), strict=True):
        assert np.array_equal(one[:, 1:2], other)
    every = [np.asarray(view)[:, :12, :12] for views_of_kind in views for view in views_of_kind]
    assert all(not np.array_equal(a, b) for i, a in enumerate(every) for b in every[:i])


def test_without_local_views():
    views = make_views(IMAGES, KEYS, ViewSettings(24, 12, 0))
    assert views.local_views.shape == (0, 4, 12, 12, 3)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"style": "imagenet"}, "expected a style of pathology, dino, dinov2, found 'imagenet'"),
        ({"global_size": 0}, "expected global_size of at least 2, found 0"),
        ({"local_scale": (0.4, 0.1)}, "expected local_scale as two rising shares"),
        ({"global_scale": (0.4, 1.5)}, "expected global_scale as two rising shares"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, found):
    with pytest.raises(ConfigError, match=found):
        ViewSettings(**settings)


def test_global_views_larger_than_the_tiles_are_refused():
    with pytest.raises(ConfigError, match="found views of 41 and tiles of 40 pixels; use larger tiles or smaller"):
        make_views(IMAGES, KEYS, ViewSettings(global_size=41, local_size=12))
