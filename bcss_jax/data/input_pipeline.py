"""Batches for training and evaluation: tf.data from encoded PNGs to uint8 NumPy arrays.

Every function takes a data set of *encoded* examples in a fixed order. An example is a dict with `image` (PNG bytes,
RGB), `mask` (PNG bytes, one channel of codes), `index` (int64, number of the example in its split) and any other
description, such as a file name, which is used in error messages. Examples are decoded, labeled and augmented after
shuffling and skipping, so that these handle compressed bytes only.

The pixels of an example depend on (seed, epoch, index), and the order on (seed, epoch), never on the number of threads,
processes or resumptions. No example is dropped: the last batch is filled up with further examples whose labels are all
ignored and whose `valid` is False (real images rather than blank ones, because of batch statistics).
"""

import atexit
import contextlib
import dataclasses
import os
import re
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import cast

import numpy as np

from bcss_jax.data.augmentation.on_host import augment
from bcss_jax.data.augmentation.settings import Augmentation
from bcss_jax.data.host_tensorflow import tf
from bcss_jax.errors import ConfigError, DataError, UserError
from bcss_jax.labels import UNMAPPED

Batch = dict[str, np.ndarray]

PREFETCHED_BATCHES = 2  # one being transferred, one ready


def encoded_from_png(image_paths: Sequence[str | os.PathLike], mask_paths: Sequence[str | os.PathLike]):
    """Returns encoded examples directly from PNG files, without preparation.

    Args:
      image_paths: RGB images, all of one size.
      mask_paths: their masks, one channel of codes, in the same order.

    Returns:
      tf.data.Dataset of dicts `image`, `mask` (bytes), `index` (int64, position in the lists), `name` (image path).

    Raises:
      DataError: there are no files, or the numbers of images and masks differ.
    """
    if not image_paths or len(image_paths) != len(mask_paths):
        raise DataError(
            f"expected as many masks as images and at least one, found {len(mask_paths)} masks and {len(image_paths)} "
            "images"
        )

    def read(index, image_path, mask_path):
        image, mask = tf.io.read_file(image_path), tf.io.read_file(mask_path)
        return {"image": image, "mask": mask, "index": index, "name": image_path}

    paths = [os.fspath(path) for path in image_paths], [os.fspath(path) for path in mask_paths]
    files = tf.data.Dataset.from_tensor_slices((np.arange(len(image_paths), dtype=np.int64), *paths))
    return files.map(read, num_parallel_calls=2, deterministic=True)


def train_batches(
    encoded: tf.data.Dataset,
    num_examples: int,
    *,
    table: np.ndarray,
    ignore_index: int,
    batch_size: int,
    seed: int,
    epoch: int,
    augmentation: Augmentation,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    shuffle_buffer: int = 4096,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Returns the batches of one training epoch: every example once, shuffled and augmented.

    The examples are shuffled by a buffer, not by a permutation in memory: TFRecords have no random access, and the
    encoded 224-pixel tiles alone take about 3 GB. The order is uniformly random if the buffer holds the whole split;
    otherwise it mixes neighbors (about 80 kB per 224-pixel tile). tf.data shuffles in one thread, so the order does not
    depend on the number of threads and processes. Every process reads all encoded examples and decodes its share.

    Args:
      encoded: see the docstring of the module.
      num_examples: their number.
      table: uint8 [256], code -> label (`labels.lookup_table`).
      ignore_index: label of pixels without ground truth: those that augmentation adds, and those of the examples that
        fill the last batch.
      batch_size: examples per step over all processes.
      seed: of the run; not negative.
      epoch: number of the epoch, from 0.
      augmentation: the recipe.
      start_step: number of batches of this epoch to skip because they are done; they are not decoded.
      process_index: which of the `process_count` equal shares of each batch to return.
      process_count: number of processes that share a batch.
      shuffle_buffer: number of encoded examples in memory to draw from.
      threads: number of threads that decode and augment; None: the number of CPUs.

    Returns:
      Iterator of dicts with b = batch_size // process_count: `image` uint8 [b, H, W, 3], `label` uint8 [b, H, W],
      `index` int64 [b], `valid` bool [b]. Examples that fill the last batch have labels `ignore_index`, index -1 and
      valid False.

    Raises:
      ConfigError: the batch cannot be shared equally, or images are not square and rotations by 90 degrees are on.
      DataError: there are no examples; while iterating: an example cannot be read or differs in size (the message names
        it).
    """
    order = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    ordered = encoded.apply(tf.data.experimental.assert_cardinality(num_examples)).shuffle(
        min(num_examples, shuffle_buffer) or 1, seed=order, reshuffle_each_iteration=False
    )

    def change(image, label, index):
        return augment(image, label, (seed, epoch, int(index)), augmentation, ignore_index)

    batching = _Batching(table, ignore_index, batch_size, process_index, process_count, threads)
    return _batches(ordered, num_examples, _image_size(encoded), batching, change, start_step)


def eval_batches(
    encoded: tf.data.Dataset,
    num_examples: int,
    *,
    table: np.ndarray,
    ignore_index: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Returns every example once, in the order of `encoded`, without augmentation.

    Arguments, result and errors are as in `train_batches`. All processes get the same number of batches.
    """
    ordered = encoded.apply(tf.data.experimental.assert_cardinality(num_examples))
    batching = _Batching(table, ignore_index, batch_size, process_index, process_count, threads)
    return _batches(ordered, num_examples, _image_size(encoded), batching)


@dataclasses.dataclass(frozen=True)
class _Batching:
    """How labels are made and how batches are shared; the attributes are arguments of `train_batches`."""

    table: np.ndarray
    ignore_index: int
    batch_size: int
    process_index: int
    process_count: int
    threads: int | None


def _batches(
    ordered: tf.data.Dataset,
    num_examples: int,
    size: tuple[int, int],
    batching: _Batching,
    change: Callable | None = None,
    start_step: int = 0,
) -> Iterator[Batch]:
    batch_size, process_count = batching.batch_size, batching.process_count
    if batch_size % process_count:
        raise ConfigError(f"batch_size {batch_size} must be a multiple of the number of processes, {process_count}")
    rows = batch_size // process_count
    threads = batching.threads or os.cpu_count() or 1
    table = np.asarray(batching.table, np.uint8)

    def example_arrays(position, example):
        image = tf.ensure_shape(tf.io.decode_png(example["image"], channels=3), (*size, 3))
        mask = tf.ensure_shape(tf.io.decode_png(example["mask"], channels=1), (*size, 1))[..., 0]
        label = tf.gather(tf.constant(table), tf.cast(mask, tf.int32))
        with tf.control_dependencies([tf.debugging.assert_none_equal(label, np.uint8(UNMAPPED))]):
            label = tf.identity(label)
        if change is not None:
            image, label = tf.numpy_function(change, (image, label, example["index"]), (tf.uint8, tf.uint8))
            image.set_shape((*size, 3))
            label.set_shape(size)
        valid = position < num_examples
        label = tf.where(valid, label, np.uint8(batching.ignore_index))
        return {"image": image, "label": label, "index": tf.where(valid, example["index"], -1), "valid": valid}

    # Step s consists of the positions [s * batch_size, (s + 1) * batch_size); each process has `rows` of them in turn.
    # The last batch is filled up from the start of the order.
    num_positions = -(-num_examples // batch_size) * batch_size
    positioned = tf.data.Dataset.zip(tf.data.Dataset.range(num_positions), ordered.repeat())
    mine = positioned.skip(start_step * batch_size)
    if process_count > 1:
        mine = mine.filter(lambda position, _: position % batch_size // rows == batching.process_index)  # pyright: ignore[reportArgumentType, reportOperatorIssue]

    options = tf.data.Options()
    options.deterministic = True
    # Everything is set, and the end of an epoch would sometimes wait seconds for the tuning thread.
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    mine = mine.with_options(options)
    batches = (
        mine.map(example_arrays, num_parallel_calls=threads)
        .batch(rows, drop_remainder=True)
        .prefetch(PREFETCHED_BATCHES)
    )

    def iterate() -> Generator[Batch, None, None]:
        arrays = batches.as_numpy_iterator()
        done = 0
        while True:
            try:
                batch = next(arrays)
            except StopIteration:
                return
            except tf.errors.OpError as error:
                raise _explained(
                    error, mine.skip(done * rows).take(rows).map(lambda _, example: example), size, table, change
                ) from error
            yield cast(Batch, batch)
            done += 1

    iterator = iterate()
    _unfinished.add(iterator)
    return iterator


_unfinished: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_unfinished() -> None:
    """Ends the threads of epochs that were not finished.

    They call into Python for the augmentation. If they still run while the interpreter shuts down, it hangs or aborts
    instead of returning its exit code (TensorFlow 2.21).
    """
    for iterator in list(_unfinished):
        with contextlib.suppress(ValueError):  # another thread is inside it
            iterator.close()


def _image_size(encoded: tf.data.Dataset) -> tuple[int, int]:
    """Returns height and width of the first image; all others must have the same size."""
    try:
        first = next(iter(encoded.take(1)), None)
    except tf.errors.OpError as error:
        raise _unreadable(error) from error
    if first is None:
        raise DataError("the data set has no examples")
    image = _decoded(first, "image")
    return image.shape[0], image.shape[1]


def _explained(error: Exception, failed: tf.data.Dataset, size, table, change) -> UserError:
    """Returns the reason why a batch could not be made, with the name of the example.

    Errors inside tf.data name an operation, not an example. To keep good batches fast, the failed batch is made again
    here, one example at a time.

    Args:
      error: as tf.data raised it.
      failed: the encoded examples of the batch.
      size: height and width of the first image.
      table: as in `train_batches`.
      change: the augmentation, or None.
    """
    try:
        for example in failed:
            try:
                image, mask = _decoded(example, "image"), _decoded(example, "mask")
                for name, array in (("image", image), ("mask", mask)):
                    if array.shape[:2] != size:
                        return DataError(
                            f"{_name(example)}: {name} of {array.shape[0]}x{array.shape[1]} pixels, but the first image"
                            f" has {size[0]}x{size[1]}; all must have the same size"
                        )
                label = table[mask[..., 0]]
                if (label == UNMAPPED).any():
                    codes = np.unique(mask[..., 0][label == UNMAPPED]).tolist()
                    shown = ", ".join(map(str, codes[:5])) + (", ..." if len(codes) > 5 else "")
                    return DataError(f"{_name(example)}: the mask has {shown}, not in this data set's code book")
                if change is not None:
                    change(image, label, example["index"].numpy())
            except UserError as cause:
                return cause
            except Exception as cause:
                return DataError(f"{_name(example)}: {type(cause).__name__}: {_one_line(cause)}")
    except tf.errors.OpError as cause:
        return _unreadable(cause)
    return _unreadable(error)


def _decoded(example: dict, name: str) -> np.ndarray:
    encoded = example[name]
    try:
        return tf.io.decode_png(encoded, channels=3 if name == "image" else 1).numpy()
    except tf.errors.InvalidArgumentError as error:
        size = len(encoded.numpy())
        raise DataError(f"{_name(example)}: {name} is not a readable PNG ({size} bytes); replace the file") from error


def _unreadable(error: Exception) -> DataError:
    return DataError(f"the data set cannot be read: {_one_line(error)}; repair the files or prepare the data again")


def _name(example: dict) -> str:
    """Returns the number of the example, and every short text that describes it."""
    texts = {key: value.numpy() for key, value in example.items() if key not in ("image", "mask", "index")}
    texts = [f"{key} {value.decode(errors='replace')}" for key, value in texts.items() if isinstance(value, bytes)]
    return ", ".join([f"example {int(example['index'])}", *texts])


def _one_line(error: Exception) -> str:
    text = " ".join(str(getattr(error, "message", error)).split())
    # Removes the place in TensorFlow's graph, which does not help the user.
    return re.sub(r"\{\{.*?\}\} |\[\[.*?\]\]|\[Op:.*|Error in user-defined .*? with iterator: \S+: ", "", text).strip()
