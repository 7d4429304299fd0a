"""Batches for training and evaluation: tf.data from encoded PNGs to uint8 NumPy arrays.

Every function takes a data set of *encoded* examples, in a fixed order, one dict each: `image` (PNG bytes, RGB), `mask`
(PNG bytes, one channel of codes), `index` (int64, the example's number within its split) and whatever else describes
it (a file name: it appears in error messages). Decoding, labels and augmentation come after shuffling and skipping, so
both handle compressed bytes only.

What an example looks like depends on (seed, epoch, index), and the order on (seed, epoch), never on the number of
threads, processes or resumptions. No example is dropped: the last batch is filled up with further examples whose labels
are all ignored and whose `valid` is False (pictures, not blanks, for the sake of batch statistics).
"""

import atexit
import contextlib
import os
import re
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bcss_jax.data.augment import Augmentation, augment
from bcss_jax.data.host_tensorflow import tf
from bcss_jax.errors import ConfigError, DataError, UserError
from bcss_jax.labels import UNMAPPED

Batch = dict[str, np.ndarray]

PREFETCHED_BATCHES = 2  # one being transferred, one ready


def encoded_from_png(image_paths: Sequence[str | os.PathLike], mask_paths: Sequence[str | os.PathLike]):
    """Encoded examples straight from PNG files, without preparation.

    Args:
      image_paths: RGB pictures, all of one size.
      mask_paths: their masks, one channel of codes, in the same order.

    Returns:
      tf.data.Dataset of dicts `image`, `mask` (bytes), `index` (int64, position in the lists), `name` (image path).

    Raises:
      DataError: no files, or unequal numbers of pictures and masks.
    """
    if not image_paths or len(image_paths) != len(mask_paths):
        raise DataError(
            f"need as many masks as pictures and at least one: got {len(mask_paths)} and {len(image_paths)}"
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
    """One epoch of training: every example once, shuffled and augmented.

    A buffer shuffles, rather than a permutation of all examples in memory: TFRecords have no random access, and the
    encoded 224-pixel tiles alone take about 3 GB. The order is uniformly random when the buffer holds the whole split,
    and mixes neighbors otherwise (about 80 kB per 224-pixel tile). tf.data shuffles in one thread, hence in the same
    order whatever the threads and processes; every process reads all encoded examples and decodes its own.

    Args:
      encoded: see the module.
      num_examples: how many there are.
      table: uint8 [256], code to label (`labels.lookup_table`).
      ignore_index: label of pixels without truth: brought in by augmentation, or in what fills the last batch.
      batch_size: examples per step over all processes.
      seed: of the run; non-negative.
      epoch: which epoch of the run, from 0.
      augmentation: the recipe.
      start_step: batches of this epoch to leave out because they are done already; they are not decoded.
      process_index: which part of each batch to return, of `process_count` equal parts.
      process_count: how many processes share a batch.
      shuffle_buffer: encoded examples kept in memory to draw from.
      threads: that decode and augment; the number of CPUs if None.

    Returns:
      Iterator of dicts with b = batch_size // process_count: `image` uint8 [b, H, W, 3], `label` uint8 [b, H, W],
      `index` int64 [b], `valid` bool [b]. What fills the last batch has labels `ignore_index`, index -1, valid False.

    Raises:
      ConfigError: the batch cannot be shared equally; pictures that are not square, with quarter turns.
      DataError: no examples; while iterating: an example that cannot be read or differs in size, named.
    """
    order = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    ordered = encoded.apply(tf.data.experimental.assert_cardinality(num_examples)).shuffle(
        min(num_examples, shuffle_buffer) or 1, seed=order, reshuffle_each_iteration=False
    )
    return _batches(
        ordered,
        num_examples,
        _picture_size(encoded),
        lambda image, label, index: augment(image, label, (seed, epoch, int(index)), augmentation, ignore_index),
        table=table,
        ignore_index=ignore_index,
        batch_size=batch_size,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
        threads=threads,
    )


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
    """Every example once, in the order of `encoded`, unchanged.

    Arguments, result and errors are those of `train_batches`. All processes get the same number of batches.
    """
    return _batches(
        encoded.apply(tf.data.experimental.assert_cardinality(num_examples)),
        num_examples,
        _picture_size(encoded),
        None,
        table=table,
        ignore_index=ignore_index,
        batch_size=batch_size,
        start_step=0,
        process_index=process_index,
        process_count=process_count,
        threads=threads,
    )


def _batches(
    ordered: tf.data.Dataset,
    num_examples: int,
    size: tuple[int, int],
    change: Callable | None,
    *,
    table: np.ndarray,
    ignore_index: int,
    batch_size: int,
    start_step: int,
    process_index: int,
    process_count: int,
    threads: int | None,
) -> Iterator[Batch]:
    if batch_size % process_count:
        raise ConfigError(f"batch_size {batch_size} must be a multiple of the number of processes, {process_count}")
    rows = batch_size // process_count
    threads = threads or os.cpu_count() or 1
    table = np.asarray(table, np.uint8)

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
        label = tf.where(valid, label, np.uint8(ignore_index))
        return {"image": image, "label": label, "index": tf.where(valid, example["index"], -1), "valid": valid}

    # Step s consists of the positions [s * batch_size, (s + 1) * batch_size); each process owns `rows` of them in turn.
    # What the last batch lacks is filled from the start of the order.
    num_positions = -(-num_examples // batch_size) * batch_size
    positioned = tf.data.Dataset.zip(tf.data.Dataset.range(num_positions), ordered.repeat())
    mine = positioned.skip(start_step * batch_size)
    if process_count > 1:
        mine = mine.filter(lambda position, _: position % batch_size // rows == process_index)

    options = tf.data.Options()
    options.deterministic = True
    # Nothing is left to tune, and the end of an epoch would wait for the tuning thread, seconds at times.
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    mine = mine.with_options(options)
    batches = (
        mine.map(example_arrays, num_parallel_calls=threads)
        .batch(rows, drop_remainder=True)
        .prefetch(PREFETCHED_BATCHES)
    )

    def iterate():
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
            yield batch
            done += 1

    iterator = iterate()
    _unfinished.add(iterator)
    return iterator


_unfinished: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_unfinished() -> None:
    """Ends the threads of epochs that were left midway.

    They call into Python for the augmentation: left running while the interpreter shuts down, they make it hang or
    abort instead of giving its exit code (TensorFlow 2.21).
    """
    for iterator in list(_unfinished):
        with contextlib.suppress(ValueError):  # another thread is inside it
            iterator.close()


def _picture_size(encoded: tf.data.Dataset) -> tuple[int, int]:
    """Height and width of the first picture; all others must have the same."""
    try:
        first = next(iter(encoded.take(1)), None)
    except tf.errors.OpError as error:
        raise _unreadable(error) from error
    if first is None:
        raise DataError("the data set holds no examples")
    image = _decoded(first, "image")
    return image.shape[0], image.shape[1]


def _explained(error: Exception, failed: tf.data.Dataset, size, table, change) -> UserError:
    """Why the batch of the encoded examples `failed` could not be made, with the name of the example.

    Errors inside tf.data name an operation, not an example. So that good batches pay nothing for good messages, the
    failed one is made again here, one example at a time.
    """
    try:
        for example in failed:
            try:
                image, mask = _decoded(example, "image"), _decoded(example, "mask")
                for part, array in (("image", image), ("mask", mask)):
                    if array.shape[:2] != size:
                        return DataError(
                            f"{_name(example)}: {part} of {array.shape[0]}x{array.shape[1]} pixels, but the first image"
                            f" has {size[0]}x{size[1]}; all must have the same size"
                        )
                label = table[mask[..., 0]]
                if (label == UNMAPPED).any():
                    codes = np.unique(mask[..., 0][label == UNMAPPED]).tolist()
                    shown = ", ".join(map(str, codes[:5])) + (", ..." if len(codes) > 5 else "")
                    return DataError(f"{_name(example)}: the mask holds {shown}, no code of this data set's code book")
                if change is not None:
                    change(image, label, example["index"].numpy())
            except UserError as cause:
                return cause
            except Exception as cause:
                return DataError(f"{_name(example)}: {type(cause).__name__}: {_one_line(cause)}")
    except tf.errors.OpError as cause:
        return _unreadable(cause)
    return _unreadable(error)


def _decoded(example: dict, part: str) -> np.ndarray:
    encoded = example[part]
    try:
        return tf.io.decode_png(encoded, channels=3 if part == "image" else 1).numpy()
    except tf.errors.InvalidArgumentError as error:
        size = len(encoded.numpy())
        raise DataError(f"{_name(example)}: {part} is not a readable PNG ({size} bytes); replace the file") from error


def _unreadable(error: Exception) -> DataError:
    return DataError(f"the data set cannot be read: {_one_line(error)}; repair the files or prepare the data again")


def _name(example: dict) -> str:
    """The example's number, and every short text that came with it."""
    texts = {key: value.numpy() for key, value in example.items() if key not in ("image", "mask", "index")}
    texts = [f"{key} {value.decode(errors='replace')}" for key, value in texts.items() if isinstance(value, bytes)]
    return ", ".join([f"example {int(example['index'])}", *texts])


def _one_line(error: Exception) -> str:
    text = " ".join(str(getattr(error, "message", error)).split())
    # TensorFlow's account of where in its graph it happened is of no use to the reader.
    return re.sub(r"\{\{.*?\}\} |\[\[.*?\]\]|\[Op:.*|Error in user-defined .*? with iterator: \S+: ", "", text).strip()
