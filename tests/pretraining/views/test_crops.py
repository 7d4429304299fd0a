"""Crops are drawn as torchvision draws them, and resized as Pillow resizes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bcss_jax.pretraining.views.crops import draw_box, draw_window, resized_crop

RNG = np.random.default_rng(0)
# Noise, which has the largest differences, and a picture with edges.
NOISE = RNG.integers(0, 256, (90, 70, 3), np.uint8)
EDGES = np.repeat(np.repeat(RNG.integers(0, 2, (9, 7, 3), np.uint8) * 255, 10, 0), 10, 1)


def ours(image, box, size, flips=(False, False)):
    planes = jnp.moveaxis(jnp.asarray(image, jnp.float32), -1, 0)
    return np.asarray(resized_crop(planes, jnp.asarray(box, jnp.float32), jnp.asarray(flips), size))


def pillow(image, box, size):
    top, left, height, width = box
    crop = Image.fromarray(image).crop((left, top, left + width, top + height))
    # Rows first, as every version did when DINO was trained; new versions take the order that is faster.
    rows = crop.resize((size, height), Image.Resampling.BICUBIC)
    return np.asarray(rows.resize((size, size), Image.Resampling.BICUBIC)).astype(int)


@pytest.mark.parametrize("box", [(0, 0, 90, 70), (3, 5, 80, 60), (40, 10, 23, 31), (88, 0, 2, 9), (10, 69, 1, 1)])
@pytest.mark.parametrize("size", [64, 24])
@pytest.mark.parametrize("image", [NOISE, EDGES], ids=["noise", "edges"])
def test_crops_are_resized_as_pillow_does(image, box, size):
    difference = np.abs(ours(image, box, size) - pillow(image, box, size))
    # Pillow's weights are rounded to whole numbers, so that a value between two may be rounded the other way.
    assert difference.max() <= 1 and np.mean(difference > 0) < 0.01


def test_flips():
    box = (3, 5, 80, 60)
    plain = ours(NOISE, box, 24)
    assert np.array_equal(ours(NOISE, box, 24, (True, False)), plain[::-1])
    assert np.array_equal(ours(NOISE, box, 24, (False, True)), plain[:, ::-1])


def test_an_area_as_a_whole_is_not_resized():
    square = NOISE[:64, :64]
    assert np.array_equal(ours(square, (0, 0, 64, 64), 64), square)


def reference_boxes(height, width, scale, number):
    """Boxes of torchvision's RandomResizedCrop.get_params, written after its documentation."""
    rng = np.random.default_rng(1)
    boxes = []
    for _ in range(number):
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            columns, rows = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < columns <= width and 0 < rows <= height:
                boxes.append((rng.integers(height - rows + 1), rng.integers(width - columns + 1), rows, columns))
                break
        else:
            rows, columns = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
            boxes.append(((height - rows) // 2, (width - columns) // 2, rows, columns))
    return np.array(boxes, float)


@pytest.mark.parametrize(
    ("shape", "scale"),
    [((224, 224), (0.4, 1.0)), ((96, 96), (0.05, 0.4)), ((40, 200), (0.4, 1.0)), ((90, 30), (0.9, 1.0))],
)
def test_boxes_have_the_distribution_of_torchvision(shape, scale):
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(lambda key: draw_box(key, *shape, scale))(keys))
    expected = reference_boxes(*shape, scale, 4000)
    assert np.array_equal(drawn, np.rint(drawn)) and (drawn >= 0).all()
    assert (drawn[:, 0] + drawn[:, 2] <= shape[0]).all() and (drawn[:, 1] + drawn[:, 3] <= shape[1]).all()
    levels = np.linspace(0, 100, 11)
    for one, other, length in zip(drawn.T, expected.T, (*shape, *shape), strict=True):
        # 4000 draws: the quantiles have a standard deviation of about 0.01 of the range.
        difference = np.percentile(one, levels[1:-1]) - np.percentile(other, levels[1:-1])
        assert np.abs(difference).max() <= 0.05 * length
        assert abs(one.mean() - other.mean()) <= 0.015 * length
    area = drawn[:, 2] * drawn[:, 3] / np.prod(shape)
    expected_area = expected[:, 2] * expected[:, 3] / np.prod(shape)
    assert abs(area.mean() - expected_area.mean()) < 0.01


@pytest.mark.parametrize(("shape", "size"), [((20, 24), 18), ((20, 20), 20)])
def test_windows_reach_every_corner_alike(shape, size):
    keys = jax.random.split(jax.random.key(0), 1000)
    drawn = np.asarray(jax.vmap(lambda key: draw_window(key, *shape, size))(keys))
    assert (drawn[:, 2:] == size).all()
    places, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    rows, columns = shape[0] - size + 1, shape[1] - size + 1
    assert places.tolist() == [[y, x] for y in range(rows) for x in range(columns)]
    assert counts.min() > 0.5 * 1000 / len(places)
