"""Patches for training, compared with nnU-Net's data loader."""

import types

import numpy as np
import pytest
from helpers.nnunet_small import CaseInMemory

from bcss_jax.nnunet.patches import (
    choose_patch,
    corner_around,
    corner_bounds,
    cut_patch,
    forced_foreground,
    initial_patch_size,
    rotation_range,
)

ANNOTATED = (-1, 0, 1, 2)
SHAPES = [  # of the case, the patch, and what is cut
    ((60, 70), (24, 20), (31, 27)),
    ((60, 70), (24, 20), (24, 20)),
    ((23, 18), (24, 20), (31, 27)),
    ((10, 90), (24, 20), (30, 28)),
    ((25, 30), (24, 20), (24, 41)),
]


def loader(patch_size, cut_size, has_ignore=False):
    """Returns an object with the attributes that `nnUNetDataLoader.get_bbox` reads."""
    module = pytest.importorskip("nnunetv2.training.dataloading.data_loader", reason="compares with nnU-Net")
    stub = types.SimpleNamespace(
        patch_size=cut_size,
        need_to_pad=np.array(cut_size) - np.array(patch_size),
        has_ignore=has_ignore,
        annotated_classes_key=ANNOTATED,
    )
    return types.MethodType(module.nnUNetDataLoader.get_bbox, stub)


def case(shape=(60, 70), *, ignore=False, seed=0):
    """Returns random data with labels 1 and 2 in two corners and, optionally, an ignored lower half."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int16)
    labels[:4, :4], labels[8:10, 30:40] = 1, 2
    if ignore:
        labels[shape[0] // 2 :] = 3
    locations = {1: np.argwhere(labels == 1), 2: np.argwhere(labels == 2)}
    if ignore:
        locations[ANNOTATED] = np.argwhere(labels != 3)
    return CaseInMemory(rng.standard_normal((*shape, 3)).astype(np.float32), labels, locations)


def drawn(cases, count=400, seed=5, index=0, **kwargs):
    given = {"batch_size": 3, "patch_size": (24, 20), "cut_size": (31, 27)} | kwargs
    return [choose_patch(cases, seed, step, index, **given) for step in range(count)]


@pytest.mark.parametrize(
    "patch_size, expected",
    [((224, 224), (263, 263)), ((512, 512), (602, 602)), ((320, 512), (519, 602)), ((512, 320), (679, 376))],
)
def test_initial_patch_size(patch_size, expected):
    assert initial_patch_size(patch_size) == expected


def test_initial_patch_size_and_rotation_equal_nnunet():
    module = pytest.importorskip(
        "nnunetv2.training.data_augmentation.compute_initial_patch_size", reason="compares with nnU-Net"
    )
    trainer = pytest.importorskip("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
    for height in range(16, 1200, 112):
        for width in range(32, 1400, 96):
            angles, _, size, mirrors = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(
                types.SimpleNamespace(
                    configuration_manager=types.SimpleNamespace(patch_size=[height, width]),
                    print_to_log_file=lambda *_: None,
                )
            )
            np.testing.assert_allclose(rotation_range((height, width)), angles)
            assert initial_patch_size((height, width)) == tuple(size) and mirrors == (0, 1)
    assert tuple(module.get_patch_size((224, 224), 1, 1, 1, (0.85, 1.25))) != (263, 263)  # angles matter


def test_forced_foreground():
    counts = {size: int(forced_foreground(size).sum()) for size in (1, 2, 3, 12, 20, 65, 185)}
    assert counts == {1: 0, 2: 1, 3: 1, 12: 4, 20: 7, 65: 21, 185: 61}
    assert forced_foreground(5).tolist() == [False, False, False, True, True]
    assert not forced_foreground(8, 0).any() and forced_foreground(8, 1).all()


def test_forced_foreground_equals_nnunet():
    module = pytest.importorskip("nnunetv2.training.dataloading.data_loader", reason="compares with nnU-Net")
    for size in range(1, 300):
        stub = types.SimpleNamespace(batch_size=size, oversample_foreground_percent=0.33)
        theirs = [module.nnUNetDataLoader._oversample_last_XX_percent(stub, i) for i in range(size)]
        assert forced_foreground(size).tolist() == theirs


@pytest.mark.parametrize("shape, patch_size, cut_size", SHAPES)
def test_bounds_and_corners_equal_nnunet(shape, patch_size, cut_size, monkeypatch):
    boxes = loader(patch_size, cut_size)
    monkeypatch.setattr(np.random, "randint", lambda low, high: low)
    lowest = boxes(np.array(shape), False, None)[0]
    monkeypatch.setattr(np.random, "randint", lambda low, high: high - 1)
    highest = boxes(np.array(shape), False, None)[0]
    assert corner_bounds(shape, patch_size, cut_size) == (tuple(lowest), tuple(highest))

    for pixel in [(0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, 3), (5, shape[1] // 2)]:
        (low, high) = boxes(np.array(shape), True, {1: np.array([[0, *pixel]])})
        corner = corner_around(pixel, shape, patch_size, cut_size)
        assert corner == tuple(low)
        assert tuple(np.add(corner, cut_size)) == tuple(high)


@pytest.mark.parametrize("shape, patch_size, cut_size", SHAPES)
def test_random_corners_are_uniform_within_the_bounds(shape, patch_size, cut_size):
    one = case((max(shape[0], 10), max(shape[1], 40)))._replace(labels=np.zeros(shape, np.int16))
    corners = np.array([p.corner for p in drawn([one], 1500, patch_size=patch_size, cut_size=cut_size)])
    lowest, highest = corner_bounds(shape, patch_size, cut_size)
    assert tuple(corners.min(0)) == lowest and tuple(corners.max(0)) == highest
    np.testing.assert_allclose(corners.mean(0), np.add(lowest, highest) / 2, atol=2)


def test_forced_patches_show_each_label_equally_often():
    one = case()
    labels = []
    for patch in drawn([one], index=2):
        assert patch.forced and patch.corner[0] >= -4 and patch.corner[1] >= -4
        at = np.add(patch.corner, (31 // 2, 27 // 2))
        labels.append(2 if at[1] >= 30 else 1)
        shown = cut_patch(one.data, one.labels, patch.corner, (31, 27))[1]
        assert (shown == labels[-1]).any()
    assert abs(np.mean(np.array(labels) == 1) - 0.5) < 0.1  # though label 2 has more pixels
    assert not any(patch.forced for patch in drawn([one], 10, index=1))


def test_forced_pixels_are_uniform():
    pixels = np.argwhere(np.ones((5, 5), bool)) + 25
    one = case()._replace(class_locations={1: pixels, 2: np.zeros((0, 2), int)})
    centers = [np.add(patch.corner, (31 // 2, 27 // 2)) for patch in drawn([one], 1000, index=2)]
    _, counts = np.unique(centers, axis=0, return_counts=True)
    assert len(counts) == 25 and counts.min() > 15 and counts.max() < 70


def test_with_an_ignore_label_patches_are_centered_on_annotated_pixels():
    one = case(ignore=True)
    centers = np.array([np.add(patch.corner, (31 // 2, 27 // 2)) for patch in drawn([one])])
    assert centers[:, 0].max() < 30 and centers[:, 0].max() > 25 and centers[:, 1].max() > 60
    forced = np.array([np.add(patch.corner, (31 // 2, 27 // 2)) for patch in drawn([one], index=2)])
    assert forced[:, 0].max() < 12 and forced[:, 1].max() < 40  # of the labels, not of all that is annotated


def test_cases_without_eligible_pixels():
    none = np.zeros((0, 2), int)
    lowest, highest = corner_bounds((60, 70), (24, 20), (31, 27))
    empty = case()._replace(class_locations={1: none, 2: none})
    for one in (empty, empty._replace(class_locations={1: none, 2: none, ANNOTATED: none})):
        for index in (0, 2):
            corners = np.array([patch.corner for patch in drawn([one], 300, index=index)])
            assert (corners.min(0) <= np.add(lowest, 3)).all() and (corners.max(0) >= np.subtract(highest, 3)).all()
    background = case()._replace(class_locations={1: none, 2: none, ANNOTATED: np.array([[30, 33]])})
    assert {patch.corner for patch in drawn([background], 9, index=2)} == {(15, 20)}


def test_the_eligible_pixels_equal_nnunet(monkeypatch):
    """Compares the pixels on which patches can be centered, for all kinds of cases."""
    pixels = {1: [[20, 30], [21, 30]], 2: [[40, 50]], ANNOTATED: [[30, 20], [20, 30], [40, 50]]}
    for present in ([1], [2], [1, 2], [1, ANNOTATED], [1, 2, ANNOTATED], [ANNOTATED], []):
        has_ignore = True in [isinstance(label, tuple) for label in present]
        ours = {label: np.array(pixels[label] if label in present else []).reshape(-1, 2) for label in (1, 2)}
        if has_ignore:
            ours[ANNOTATED] = np.array(pixels[ANNOTATED])
        theirs = {label: np.insert(each, 0, 0, axis=1) for label, each in ours.items()}
        boxes = loader((24, 20), (31, 27), has_ignore)
        one = case()._replace(class_locations=ours)
        for index in (0, 2):
            random = np.random.RandomState(index)
            monkeypatch.setattr(np.random, "choice", random.choice)
            monkeypatch.setattr(np.random, "randint", lambda low, high: -99)
            expected = {tuple(boxes(np.array((60, 70)), index == 2, theirs)[0]) for _ in range(100)}
            found = {patch.corner for patch in drawn([one], 100, index=index)}
            assert expected == {(-99, -99)} or expected == found


def test_draws_depend_only_on_seed_step_and_index():
    cases = [case(seed=seed) for seed in range(7)]
    arguments = {"batch_size": 4, "patch_size": (24, 20), "cut_size": (31, 27)}
    places = [(seed, step, index) for seed in (0, 9) for step in (0, 1, 250) for index in range(4)]
    first = {place: choose_patch(cases, *place, **arguments) for place in places}
    np.random.seed(1)
    for place in reversed(places):
        assert choose_patch(cases, *place, **arguments) == first[place]
    assert len(set(first.values())) > 20
    numbers = np.bincount([patch.case for patch in drawn(cases, 1400)], minlength=7)
    assert numbers.min() > 140 and numbers.max() < 260
    assert choose_patch(cases, 0, 0, 3, batch_size=4, patch_size=(24, 20)).forced


class OnlyCut:
    """An array that records how much of it is read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, 0

    def __getitem__(self, key):
        part = self.array[key]
        self.read += part.size
        return part


@pytest.mark.parametrize("corner", [(10, 20), (-4, -3), (50, 60), (-4, 66), (-7, 0)])
def test_cut(corner, tmp_path):
    one = case()
    size = (31, 27)
    image, label = cut_patch(one.data, one.labels, corner, size)
    assert image.shape == (31, 27, 3) and label.shape == size
    assert image.dtype == np.float32 and label.dtype == np.int16
    for y, x in [(0, 0), (30, 26), (15, 13), (0, 26)]:
        there = np.add(corner, (y, x))
        if (there >= 0).all() and (there < one.labels.shape).all():
            assert (image[y, x] == one.data[tuple(there)]).all() and label[y, x] == one.labels[tuple(there)]
        else:
            assert (image[y, x] == 0).all() and label[y, x] == -1

    arrays = OnlyCut(one.data), OnlyCut(one.labels)
    np.testing.assert_array_equal(cut_patch(*arrays, corner, size)[0], image)
    assert arrays[0].read <= 31 * 27 * 3 and arrays[1].read <= 31 * 27
    np.save(tmp_path / "data.npy", one.data)
    mapped = np.load(tmp_path / "data.npy", mmap_mode="r")
    found = cut_patch(mapped, one.labels, corner, size)[0]
    np.testing.assert_array_equal(found, image)
    assert type(found) is np.ndarray and found.flags.writeable


@pytest.mark.parametrize("corner", [(10, 20), (-4, -3), (50, 60)])
def test_cut_equals_nnunet(corner):
    boxes = pytest.importorskip("acvl_utils.cropping_and_padding.bounding_boxes", reason="compares with nnU-Net")
    one = case()
    image, label = cut_patch(one.data, one.labels, corner, (31, 27))
    box = [[start, start + length] for start, length in zip(corner, (31, 27), strict=True)]
    expected = boxes.crop_and_pad_nd(np.moveaxis(one.data, -1, 0), box, 0)
    np.testing.assert_array_equal(np.moveaxis(image, -1, 0), expected)
    np.testing.assert_array_equal(label, boxes.crop_and_pad_nd(one.labels[None], box, -1)[0])
