"""Views depend on the key of their tile alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcss_jax.errors import ConfigError
from bcss_jax.pretraining.views.make_views import make_view, make_views
from bcss_jax.pretraining.views.settings import STYLES, Changes, ViewSettings

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
    every = [np.asarray(view)[:, :12, :12] for views_of_kind in views for view in views_of_kind]
    assert all(not np.array_equal(a, b) for i, a in enumerate(every) for b in every[:i])


def test_without_local_views_and_with_another_batch():
    settings = ViewSettings(24, 12, 0)
    views = make_views(IMAGES, KEYS, settings)
    assert views.local_views.shape == (0, 4, 12, 12, 3)
    difference = abs(make_views(IMAGES[1:2], KEYS[1:2], settings).global_views - views.global_views[:, 1:2])
    assert difference.max() <= 1 and np.mean(difference > 0) < 1e-3


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
    with pytest.raises(ConfigError, match="views of 41 and tiles of 40 pixels; raise --config.data.tile_size or"):
        make_views(IMAGES, KEYS, ViewSettings(global_size=41, local_size=12))


def test_local_views_larger_than_the_tiles_are_refused_if_they_are_not_resized():
    settings = ViewSettings(global_size=24, local_size=41, local_views=1, resize=False)
    with pytest.raises(ConfigError, match="views of 41 and tiles of 40 pixels.*or set --config.views.resize=True"):
        make_views(IMAGES, KEYS, settings)
    with pytest.raises(ConfigError, match="views of 41 and tiles of 40 pixels; raise --config.data.tile_size or"):
        ViewSettings(global_size=41, local_size=12, resize=False).check_tiles(40)
    settings.check_tiles(41)
    dataclasses.replace(settings, resize=True).check_tiles(40)
    dataclasses.replace(settings, local_views=0).check_tiles(40)


def test_changes_are_as_frequent_as_their_probabilities():
    """Views of a whole tile with colors below 128 in the upper half, bright ones below, and a mark in one corner."""
    tile = np.full((8, 8, 3), (90, 60, 30), np.float32)
    tile[4:] += 100
    tile[0, 0] = 0
    changes = Changes(scale=(1.0, 1.0), flip=0.3, jitter=0.0, gray=0.2, solarize=0.4)
    one = functools.partial(make_view, jnp.moveaxis(jnp.asarray(tile), -1, 0), changes=changes, size=8)
    views = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 1000)))
    shares = {
        "gray": np.mean((views[:, 2, 3] == views[:, 2, 3, :1]).all(-1)),
        "solarize": np.mean(views[:, 6, 3].max(-1) < 128),
        "flip": np.mean((views[:, 0, 7] == 0).all(-1)),
    }
    for name, share in shares.items():
        assert abs(share - getattr(changes, name)) < 0.05, name  # three standard deviations


def test_turns_are_all_eight():
    tile = np.zeros((8, 8, 3), np.float32)
    tile[0, 1] = 255
    changes = Changes(scale=(1.0, 1.0), turns=True, jitter=0.0, gray=0.0)
    one = functools.partial(make_view, jnp.moveaxis(jnp.asarray(tile), -1, 0), changes=changes, size=8)
    views = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 800)))
    places, counts = np.unique(views[..., 0].reshape(800, 64).argmax(1), return_counts=True)
    near_corners = [8 * y + x for y, x in ((0, 1), (1, 0), (0, 6), (6, 0), (1, 7), (7, 1), (6, 7), (7, 6))]
    assert sorted(places.tolist()) == sorted(near_corners)
    assert counts.min() > 60


@pytest.mark.parametrize("size", [40, 39, 36])
def test_views_that_are_not_resized_are_windows_of_every_place(size):
    changes = Changes(scale=None, flip=0.0, jitter=0.0, gray=0.0)
    one = functools.partial(make_view, jnp.moveaxis(jnp.asarray(IMAGES[0], jnp.float32), -1, 0))
    views = jax.jit(jax.vmap(functools.partial(one, changes=changes, size=size)))(
        jax.random.split(jax.random.key(0), 200)
    )
    places = [(y, x) for y in range(41 - size) for x in range(41 - size)]
    windows = np.stack([IMAGES[0][y : y + size, x : x + size] for y, x in places])
    equal = (np.asarray(views)[:, None] == windows).all((2, 3, 4))
    assert (equal.sum(1) == 1).all()
    # Of 200 views, 8 are expected of each of 25 places.
    assert equal.sum(0).min() > 0 and equal.sum(0).max() < 3 * 200 / len(places)


def test_without_resizing_no_view_of_a_style_is_resized():
    settings = ViewSettings(24, 12, 2, global_scale=(0.4, 1.0), style="pathology", resize=False)
    assert [each.scale for each in settings.changes.__dict__.values()] == [None] * 3
    assert settings.changes.local.stain == STYLES["pathology"].local.stain
    # A pattern of single columns stays as sharp as it is only if its pixels are those of the view.
    stripes = np.zeros((4, 40, 40, 3), np.uint8)
    stripes[:, :, ::2] = 255
    plain = {
        kind: dataclasses.replace(each, stain=0, jitter=0, blur=0) for kind, each in vars(settings.changes).items()
    }
    for changes, size in ((plain["first"], 24), (plain["second"], 24), (plain["local"], 12)):
        view = np.asarray(make_view(jnp.moveaxis(jnp.asarray(stripes[0], jnp.float32), -1, 0), KEYS[0], changes, size))
        assert set(np.unique(view)) == {0, 255}


def test_published_recipes():
    first, second, local = STYLES["dino"].first, STYLES["dino"].second, STYLES["dino"].local
    assert [each.blur for each in (first, second, local)] == [1.0, 0.1, 0.5]
    assert [each.solarize for each in (first, second, local)] == [0.0, 0.2, 0.0]
    # DINOv2's blur hands 1 - p to RandomApply.
    assert [each.blur for each in STYLES["dinov2"].__dict__.values()] == [0.0, 0.9, 0.5]
    assert ViewSettings(style="dinov2").changes.first.scale == (0.32, 1.0)
    assert ViewSettings(style="dinov2", local_scale=(0.1, 0.2)).changes.local.scale == (0.1, 0.2)
    assert all(each.solarize == each.gray == 0 and each.stain for each in STYLES["pathology"].__dict__.values())
