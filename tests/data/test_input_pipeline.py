import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers.paths import ROOT
from PIL import Image

from bcss_jax import labels
from bcss_jax.data import input_pipeline
from bcss_jax.data.augmentation.settings import FLIPS_AND_QUARTER_TURNS, FULL, NONE
from bcss_jax.data.input_pipeline import decode_tiles, encoded_from_png, eval_batches, train_batches
from bcss_jax.errors import ConfigError, DataError

SIZE, COUNT = 32, 11
TABLE = labels.lookup_table(labels.SCHEMES["tumor_stroma_other"], "kaggle3")
IGNORED = 255


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(count=COUNT, size=SIZE):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    return images, rng.integers(0, 3, (count, size, size), np.uint8)


def encoded(replaced=None):
    """Returns the data set; `replaced` maps the number of an example to PNG bytes {"image": ..., "mask": ...}."""
    images, masks = pictures()
    examples = [{"image": png(image), "mask": png(mask)} for image, mask in zip(images, masks, strict=True)]
    for i, parts in (replaced or {}).items():
        examples[i] |= parts
    return tf.data.Dataset.from_tensor_slices(
        {
            "image": [example["image"] for example in examples],
            "mask": [example["mask"] for example in examples],
            "index": np.arange(COUNT, dtype=np.int64),
            "key": [f"tile_{i}" for i in range(COUNT)],
        }
    )


def train(dataset=None, **changed):
    arguments = dict(table=TABLE, ignore_index=IGNORED, batch_size=4, seed=5, epoch=0, augmentation=FULL, threads=2)
    return list(train_batches(dataset or encoded(), COUNT, **(arguments | changed)))


def evaluate(dataset=None, **changed):
    arguments = dict(table=TABLE, ignore_index=IGNORED, batch_size=4, threads=2)
    return list(eval_batches(dataset or encoded(), COUNT, **(arguments | changed)))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def order(batches):
    return [int(i) for batch in batches for i in batch["index"][batch["valid"]]]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_example_once_with_any_number_of_threads(threads):
    batches = train(threads=threads)
    assert sorted(order(batches)) == list(range(COUNT))
    assert_same(batches, train(threads=3))


def test_shapes_types_and_padding():
    for batches in (train(), evaluate()):
        assert len(batches) == 3
        for batch in batches:
            assert batch["image"].shape == (4, SIZE, SIZE, 3) and batch["image"].dtype == np.uint8
            assert batch["label"].shape == (4, SIZE, SIZE) and batch["label"].dtype == np.uint8
            assert batch["index"].dtype == np.int64 and batch["valid"].dtype == bool
            assert set(np.unique(batch["label"])) <= {0, 1, 2, IGNORED}
        np.testing.assert_array_equal(batches[-1]["valid"], [True, True, True, False])
        assert batches[-1]["index"][-1] == -1
        np.testing.assert_array_equal(batches[-1]["image"][-1], batches[0]["image"][0])  # an image, not a blank
        assert (batches[-1]["label"][-1] == IGNORED).all()


def test_no_padding_when_the_batches_are_full():
    assert all(batch["valid"].all() for batch in train(batch_size=COUNT))


def test_pure_function_of_seed_and_epoch():
    first = train()
    assert_same(first, train())
    for other in (train(epoch=1), train(seed=6)):
        assert order(other) != order(first)
    # the same example is changed differently in another epoch
    plain, other = train(augmentation=NONE), train(epoch=1)
    images = [{int(i): im for b in run for i, im in zip(b["index"], b["image"], strict=True)} for run in (first, other)]
    assert sum((images[0][i] != images[1][i]).any() for i in range(COUNT)) > COUNT // 2
    assert order(plain) == order(first)  # the order does not depend on the recipe


@pytest.mark.parametrize("start_step", [1, 2, 3])
def test_resumption_continues_with_the_same_batches(start_step):
    assert_same(train(start_step=start_step), train()[start_step:])
    shuffled_in_parts = train(start_step=start_step, shuffle_buffer=4)
    assert_same(shuffled_in_parts, train(shuffle_buffer=4)[start_step:])


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("run", [train, evaluate])
def test_processes_share_each_batch(run, processes):
    start = {"start_step": 1} if run is train else {}
    parts = [run(process_index=i, process_count=processes, **start) for i in range(processes)]
    joined = [
        {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        for batches in zip(*parts, strict=True)
    ]
    assert_same(joined, run(**start))


def test_batch_must_be_shared_equally():
    with pytest.raises(ConfigError, match="multiple of the number of processes"):
        train(process_count=3)


def test_evaluation_is_unchanged_and_in_order():
    images, masks = pictures()
    batches = evaluate()
    assert order(batches) == list(range(COUNT))
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in batches])[:COUNT], images)
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches])[:COUNT], TABLE[masks])


def test_without_augmentation_training_gets_the_same_images():
    images, masks = pictures()
    for batch in train(augmentation=NONE):
        for index, image, label in zip(batch["index"], batch["image"], batch["label"], strict=True):
            if index >= 0:
                np.testing.assert_array_equal(image, images[index])
                np.testing.assert_array_equal(label, TABLE[masks[index]])


@pytest.mark.parametrize("augmentation", [FULL, None])
@pytest.mark.parametrize("changed", [{}, {"start_step": 2}, {"process_index": 1, "process_count": 2}])
def test_decoded_tiles_give_the_same_batches(augmentation, changed):
    tiles = decode_tiles(encoded(), COUNT, table=TABLE, threads=2)
    changed = {"augmentation": augmentation, "shuffle_buffer": 4, **changed}
    assert_same(train(tiles, **changed), train(**changed))


def test_a_recipe_of_none_leaves_the_images_to_the_device():
    assert_same(train(augmentation=None), train(augmentation=NONE))


def test_decoded_tiles_are_complete_and_in_order():
    images, masks = pictures()
    calls = []
    tiles = decode_tiles(encoded(), COUNT, table=TABLE, between_batches=lambda: calls.append(1))
    np.testing.assert_array_equal(tiles.images, images)
    np.testing.assert_array_equal(tiles.labels, TABLE[masks])
    np.testing.assert_array_equal(tiles.indices, np.arange(COUNT))
    assert calls


def test_png_files_give_the_same_batches(tmp_path):
    images, masks = pictures()
    paths = {part: [tmp_path / f"{part}_{i}.png" for i in range(COUNT)] for part in ("image", "mask")}
    for i in range(COUNT):
        paths["image"][i].write_bytes(png(images[i]))
        paths["mask"][i].write_bytes(png(masks[i]))
    assert_same(train(encoded_from_png(paths["image"], paths["mask"])), train())
    with pytest.raises(DataError, match="as many masks"):
        encoded_from_png(paths["image"], paths["mask"][1:])
    paths["mask"][7].unlink()
    with pytest.raises(DataError, match="mask_7.png"):
        train(encoded_from_png(paths["image"], paths["mask"]))


BLACK = np.zeros((SIZE, SIZE), np.uint8)


@pytest.mark.parametrize(
    "replaced, message",
    [
        ({"image": b"no PNG"}, "image is not a readable PNG"),
        ({"image": png(np.zeros((SIZE, SIZE, 3), np.uint8))[:60]}, "image is not a readable PNG"),
        ({"mask": png(BLACK[1:])}, "mask of 31x32 pixels, but the first image has 32x32"),
        ({"image": png(np.zeros((SIZE, SIZE + 2, 3), np.uint8))}, "image of 32x34 pixels"),
        ({"mask": png(BLACK + 77)}, "the mask has 77"),
    ],
    ids=["no_png", "truncated", "mask_size", "image_size", "code"],
)
@pytest.mark.parametrize("run", [train, evaluate, lambda dataset: decode_tiles(dataset, COUNT, table=TABLE)])
def test_bad_examples_are_named(run, replaced, message):
    with pytest.raises(DataError, match=f"example 9, key tile_9: {message}") as caught:
        run(encoded({9: replaced}))
    assert "\n" not in str(caught.value)


def test_bad_first_example_is_named():
    with pytest.raises(DataError, match="example 0, key tile_0: image"):
        train(encoded({0: {"image": b""}}))


@pytest.mark.parametrize("process_index", [0, 1])
@pytest.mark.parametrize("decoded", [False, True])
def test_failures_in_augmentation_are_named(monkeypatch, process_index, decoded):
    bad = train(process_index=process_index, process_count=2)[1]["index"][0]

    def failing(image, label, seed, settings, ignore_index):
        if seed[2] == bad:
            raise RuntimeError("out of\npaint")
        return image, label

    monkeypatch.setattr(input_pipeline, "augment", failing)
    examples = decode_tiles(encoded(), COUNT, table=TABLE) if decoded else encoded()
    name = f"example {bad}" if decoded else f"example {bad}, key tile_{bad}"
    with pytest.raises(DataError, match=f"{name}: RuntimeError: out of paint"):
        train(examples, process_index=process_index, process_count=2)


def test_quarter_turns_of_oblongs(tmp_path):
    for part, shape in (("image", (8, 6, 3)), ("mask", (8, 6))):
        (tmp_path / part).write_bytes(png(np.zeros(shape, np.uint8)))
    dataset = encoded_from_png([tmp_path / "image"], [tmp_path / "mask"])
    arguments = dict(table=TABLE, ignore_index=IGNORED, batch_size=1, seed=0, epoch=0)
    with pytest.raises(ConfigError, match="8x6"):
        next(train_batches(dataset, 1, augmentation=FLIPS_AND_QUARTER_TURNS, **arguments))


@pytest.mark.parametrize("claimed", [COUNT - 1, COUNT + 2])
def test_wrong_number_of_examples(claimed):
    generated = tf.data.Dataset.from_generator(  # unlike slices it does not know its length
        lambda: iter(encoded().as_numpy_iterator()), output_signature=encoded().element_spec
    )
    with pytest.raises(DataError, match="cannot be read"):
        list(eval_batches(generated, claimed, table=TABLE, ignore_index=IGNORED, batch_size=4, threads=2))


def test_no_examples():
    with pytest.raises(DataError, match="no examples"):
        eval_batches(encoded().take(0), 0, table=TABLE, ignore_index=IGNORED, batch_size=4)


def test_process_can_exit_in_the_middle_of_an_epoch():
    """While threads of tf.data run, the interpreter usually hangs or aborts at its end."""
    code = """if True:
        import test_input_pipeline as t
        many = t.encoded().repeat(40)
        batches = t.train_batches(many, 40 * t.COUNT, table=t.TABLE, ignore_index=t.IGNORED, batch_size=4, seed=0,
                                  epoch=0, augmentation=t.FULL, threads=4)
        next(batches)
        raise SystemExit(75)
        """
    folders = [pathlib.Path(__file__).parent, ROOT / "tests", ROOT]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 75
