"""Fingerprints: comparison with nnU-Net's extractor, memory, errors."""

import json

import numpy as np
import pytest
from helpers.nnunet_small import real_region

from bcss_jax.errors import DataError
from bcss_jax.nnunet import extract_fingerprint, make_plan

SAMPLES = 30_000  # of the whole data set, in place of nnU-Net's 100 million


def images_and_masks(count=5, border=0, seed=0):
    """Returns images of several sizes with some black pixels, and masks with an ignore label.

    One mask has no foreground.
    """
    random, images, masks = np.random.RandomState(seed), [], []
    for index in range(count):
        height, width = random.randint(30, 60, 2)
        image = np.clip(random.normal((170, 90, 140), (50, 60, 20), (height, width, 3)), 0, 255).astype(np.uint8)
        mask = random.randint(0, 4, (height, width)).astype(np.uint8)
        image[10:14, 5:9] = 0
        if border:
            image[:border] = image[:, -2 * border :] = 0
        if index == 1:
            mask[:] = 0
        images.append(image)
        masks.append(mask)
    return images, masks


def nnunets(images, masks, samples, monkeypatch, tmp_path):
    """Returns the fingerprint that nnU-Net's extractor computes from arrays."""
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor as module

    class Reader:
        def read_images(self, files):
            image = images[int(files[0])].transpose(2, 0, 1)[:, None]
            return image.astype(np.float32), {"spacing": (999, 1, 1)}

        def read_seg(self, file):
            return masks[int(file)][None, None].astype(np.float32), {"spacing": (999, 1, 1)}

    class Pool:  # nnU-Net would start processes, which do not know these arrays
        def __init__(self, number):
            self._pool = []

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def starmap_async(self, function, arguments):
            return Result([function(*each) for each in arguments])

    class Result(list):
        def ready(self):
            return True

        def get(self):
            return self

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setattr(module.multiprocessing, "get_context", lambda kind: type("Context", (), {"Pool": Pool}))
    monkeypatch.setattr(module, "determine_reader_writer_from_dataset_json", lambda *args: Reader)
    monkeypatch.setattr(module, "sleep", lambda seconds: None)
    extractor = object.__new__(module.DatasetFingerprintExtractor)
    extractor.dataset_name, extractor.num_processes, extractor.verbose = "Dataset001_Test", 1, False
    extractor.show_progress_bar = False
    extractor.dataset_json = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    extractor.dataset = {str(i): {"images": [str(i)], "label": str(i)} for i in range(len(images))}
    extractor.num_foreground_voxels_for_intensitystats = samples
    extractor.run()
    return json.loads((tmp_path / "Dataset001_Test" / "dataset_fingerprint.json").read_text())


def assert_equal(found, expected):
    key = "foreground_intensity_properties_per_channel"
    assert {k: v for k, v in found.items() if k != key} == {k: v for k, v in expected.items() if k != key}
    assert found[key].keys() == expected[key].keys()
    for channel, statistics in expected[key].items():
        assert found[key][channel].keys() == statistics.keys()
        for name, value in statistics.items():
            assert found[key][channel][name] == pytest.approx(value, rel=1e-6), (channel, name)


@pytest.mark.parametrize("border", [0, 6])
@pytest.mark.parametrize("count, samples", [(5, SAMPLES), (1, 4_001), (3, 1_000)])
def test_equals_nnunet(monkeypatch, tmp_path, border, count, samples):
    images, masks = images_and_masks(count, border, seed=count)
    expected = nnunets(images, masks, samples, monkeypatch, tmp_path)
    found = extract_fingerprint(images, masks, samples=samples)
    assert_equal(found, expected)
    assert (found["median_relative_size_after_cropping"] < 1) == bool(border)
    assert json.loads(json.dumps(found)) == found


def test_equals_nnunet_when_pixels_are_drawn_in_several_parts(monkeypatch, tmp_path):
    images, masks = images_and_masks(2)
    masks[1][3, 4] = 1
    samples = 2 * 1_100_000
    assert_equal(
        extract_fingerprint(images, masks, samples=samples), nnunets(images, masks, samples, monkeypatch, tmp_path)
    )  # fmt: skip


def test_equals_nnunet_on_real_tissue(shared, monkeypatch, tmp_path):
    image, mask = real_region(shared)
    images, masks = [image[:300, :200], image[300:500, 100:400]], [mask[:300, :200], mask[300:500, 100:400]]
    expected = nnunets(images, masks, SAMPLES, monkeypatch, tmp_path)
    assert_equal(extract_fingerprint(images, masks, samples=SAMPLES), expected)


class Lazy:
    """A sequence whose cases are computed on access, and which counts the accesses."""

    def __init__(self, arrays):
        self.arrays, self.asked = arrays, []

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.arrays[index]


def test_lazy_sequences_are_read_once():
    images, masks = images_and_masks(4)
    lazy = Lazy(images), Lazy(masks)
    assert extract_fingerprint(*lazy, samples=100) == extract_fingerprint(images, masks, samples=100)
    assert all(each.asked == [0, 1, 2, 3] for each in lazy)


@pytest.mark.parametrize("case", ["rgb224_n40", "rgbmixed1500x2000_n12"])
def test_has_the_format_of_nnunets_files(shared, case):
    expected = json.loads((shared / "nnunet_plans" / case / "dataset_fingerprint.json").read_text())
    found = extract_fingerprint(*images_and_masks(3), samples=100)

    def form(value):
        if isinstance(value, dict):
            return {key: form(each) for key, each in value.items()}
        return form(value[0]) if isinstance(value, list) else type(value)

    assert form(found) == form(expected)
    dataset = json.loads((shared / "nnunet_plans" / case / "dataset.json").read_text())
    assert make_plan(found, dataset)["configurations"]["2d"]["patch_size"]


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda images, masks: (images[:0], masks[:0]), "no case"),
        (lambda images, masks: (images, masks[:1]), "2 images and 1 masks"),
        (lambda images, masks: ([images[0], images[1][..., 0]], masks), "case 2 of 2: the image is uint8"),
        (lambda images, masks: ([i[..., [0, 1, 2, 2]] for i in images], masks), "not RGB (uint8 [H, W, 3])"),
        (lambda images, masks: ([i / 255 for i in images], masks), "case 1 of 2: the image is float64"),
        (lambda images, masks: (images, [masks[0], masks[1][1:]]), "case 2 of 2: the mask is uint8"),
        (lambda images, masks: (images, [m * 1.0 for m in masks]), "expected integers"),
        (lambda images, masks: (images, [m * 0 for m in masks]), "none of the 2 masks has a label above 0"),
    ],
)
def test_data_without_a_fingerprint_are_refused(change, part):
    with pytest.raises(DataError) as error:
        extract_fingerprint(*change(*images_and_masks(2)), samples=10)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_messages_name_the_case():
    images, masks = images_and_masks(2)
    with pytest.raises(DataError, match="^slide B: "):
        extract_fingerprint([images[0], images[1][1:]], masks, names=["slide A", "slide B"], samples=10)
