"""Batches for training and evaluation: tf.data from encoded PNGs to uint8 NumPy arrays.

Every function takes a data set of *encoded* examples in a fixed order. An example is a dict with `image` (PNG bytes,
RGB), `mask` (PNG bytes, one channel of codes), `index` (int64, number of the example in its split) and any other
description, such as a file name, which is used in error messages. Examples are decoded, labeled and augmented after
shuffling and skipping, so that these handle compressed bytes only. Where memory suffices, the examples of the training
are decoded once (`decode_tiles`); their batches are the same.

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
from bcss_jax.data.decoded_tiles import DecodedTiles
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
    examples: tf.data.Dataset | DecodedTiles,
    num_examples: int,
    *,
    table: np.ndarray,
    ignore_index: int,
    batch_size: int,
    seed: int,
    epoch: int,
    augmentation: Augmentation | None,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    shuffle_buffer: int = 4096,
    threads: int | None = None,
    draws: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Returns the batches of one training epoch: every example once, shuffled and augmented.

    The examples are shuffled by a buffer, not by a permutation in memory: TFRecords have no random access, and the
    encoded 224-pixel tiles alone take about 3 GB. The order is uniformly random if the buffer holds the whole split;
    otherwise it mixes neighbors (about 80 kB per 224-pixel tile). tf.data shuffles in one thread, so the order does not
    depend on the number of threads and processes. Every process reads all encoded examples and decodes its share.

    Args:
      examples: encoded ones (see the docstring of the module), or decoded ones.
      num_examples: their number.
      table: uint8 [256], code -> label (`labels.lookup_table`); decoded examples have their labels already.
      ignore_index: label of pixels without ground truth: those that augmentation adds, and those of the examples that
        fill the last batch.
      batch_size: examples per step over all processes.
      seed: of the run; not negative.
      epoch: number of the epoch, from 0.
      augmentation: the recipe; None: the images stay as they are, because the device augments them.
      start_step: number of batches of this epoch to skip because they are done; they are not decoded.
      process_index: which of the `process_count` equal shares of each batch to return.
      process_count: number of processes that share a batch.
      shuffle_buffer: number of encoded examples in memory to draw from.
      threads: number of threads that decode and augment; None: the number of CPUs.
      draws: int64 [num_examples] with that sum, how often each example occurs in the epoch (`sampling.balance.draws`);
        None: once. The k-th copy of example i has the index i + k * num_examples, and an augmentation of its own.

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

    def augmented(image, label, index):
        assert augmentation is not None
        return augment(image, label, (seed, epoch, int(index)), augmentation, ignore_index)

    change = augmented if augmentation is not None else None
    source = _Decoded(examples, change) if isinstance(examples, DecodedTiles) else _Encoded(examples, table, change)
    dataset = source.dataset if draws is None else _drawn(source.dataset, draws)
    ordered = dataset.apply(tf.data.experimental.assert_cardinality(num_examples)).shuffle(
        min(num_examples, shuffle_buffer) or 1, seed=order, reshuffle_each_iteration=False
    )
    batching = _Batching(ignore_index, batch_size, process_index, process_count, threads)
    return _batches(source, ordered, num_examples, batching, start_step)


def _drawn(dataset: tf.data.Dataset, draws: np.ndarray) -> tf.data.Dataset:
    """Returns each example as often as it is drawn; see `train_batches`."""
    counts = tf.constant(draws, tf.int64)

    def copies(example):
        numbers = tf.data.Dataset.range(tf.gather(counts, example["index"]))
        return numbers.map(lambda copy: example | {"index": example["index"] + copy * len(draws)})

    return dataset.flat_map(copies)


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
    source = _Encoded(encoded, table)
    ordered = encoded.apply(tf.data.experimental.assert_cardinality(num_examples))
    batching = _Batching(ignore_index, batch_size, process_index, process_count, threads)
    return _batches(source, ordered, num_examples, batching)


def decode_tiles(
    encoded: tf.data.Dataset,
    num_examples: int,
    *,
    table: np.ndarray,
    threads: int | None = None,
    between_batches: Callable[[], None] = lambda: None,
) -> DecodedTiles:
    """Decodes all examples.

    Args:
      encoded: see the docstring of the module.
      num_examples: their number.
      table: as in `train_batches`.
      threads: as in `train_batches`.
      between_batches: called after every 64 examples.

    Raises:
      DataError: as `train_batches`.
    """
    height, width = image_size(encoded)
    tiles = DecodedTiles(
        np.empty((num_examples, height, width, 3), np.uint8),
        np.empty((num_examples, height, width), np.uint8),
        np.empty(num_examples, np.int64),
    )
    batches = eval_batches(encoded, num_examples, table=table, ignore_index=0, batch_size=64, threads=threads)
    for number, batch in enumerate(batches):
        first = 64 * number
        valid = int(batch["valid"].sum())  # the examples that fill the last batch are at its end
        for name, array in (("image", tiles.images), ("label", tiles.labels), ("index", tiles.indices)):
            array[first : first + valid] = batch[name][:valid]
        between_batches()
    return tiles


class _Encoded:
    """Examples that are decoded, labeled and changed for each batch.

    Attributes:
      dataset: the encoded examples.
      size: height and width of the first image; all others must have the same.
    """

    def __init__(self, dataset: tf.data.Dataset, table: np.ndarray, change: Callable | None = None):
        """Stores the arguments; `change(image, label, index)` is the augmentation."""
        self.dataset, self._table, self._change = dataset, np.asarray(table, np.uint8), change
        self.size = image_size(dataset)

    def arrays(self, example: dict) -> tuple:
        """Returns image and label of an example, as operations of TensorFlow."""
        image = tf.ensure_shape(tf.io.decode_png(example["image"], channels=3), (*self.size, 3))
        mask = tf.ensure_shape(tf.io.decode_png(example["mask"], channels=1), (*self.size, 1))[..., 0]
        label = tf.gather(tf.constant(self._table), tf.cast(mask, tf.int32))
        with tf.control_dependencies([tf.debugging.assert_none_equal(label, np.uint8(UNMAPPED))]):
            label = tf.identity(label)
        if self._change is not None:
            image, label = tf.numpy_function(self._change, (image, label, example["index"]), (tf.uint8, tf.uint8))
        return image, label

    def check(self, example: dict) -> None:
        """Makes an example again. Raises DataError, or what the augmentation raises, if that fails."""
        image, mask = _decoded(example, "image"), _decoded(example, "mask")
        for name, array in (("image", image), ("mask", mask)):
            if array.shape[:2] != self.size:
                raise DataError(
                    f"{_name(example)}: {name} of {array.shape[0]}x{array.shape[1]} pixels, but the first image"
                    f" has {self.size[0]}x{self.size[1]}; all must have the same size"
                )
        label = self._table[mask[..., 0]]
        if (label == UNMAPPED).any():
            codes = np.unique(mask[..., 0][label == UNMAPPED]).tolist()
            shown = ", ".join(map(str, codes[:5])) + (", ..." if len(codes) > 5 else "")
            raise DataError(f"{_name(example)}: the mask has {shown}, not in this data set's code book")
        if self._change is not None:
            self._change(image, label, example["index"].numpy())


class _Decoded:
    """Examples that are decoded already, and changed for each batch. Attributes and methods as of `_Encoded`."""

    def __init__(self, tiles: DecodedTiles, change: Callable | None = None):
        """Stores the arguments."""
        self._tiles, self._change = tiles, change
        self.size = tiles.labels.shape[1], tiles.labels.shape[2]
        rows = np.arange(len(tiles.indices))
        numbers = tf.data.Dataset.from_tensor_slices((rows, tiles.indices))
        self.dataset = numbers.map(lambda row, index: {"row": row, "index": index})

    def _pair(self, row, index):
        image, label = self._tiles.images[row], self._tiles.labels[row]
        return (image, label) if self._change is None else self._change(image, label, index)

    def arrays(self, example: dict) -> tuple:
        return tf.numpy_function(self._pair, (example["row"], example["index"]), (tf.uint8, tf.uint8))

    def check(self, example: dict) -> None:
        self._pair(example["row"].numpy(), example["index"].numpy())


@dataclasses.dataclass(frozen=True)
class _Batching:
    """How batches are shared; the attributes are arguments of `train_batches`."""

    ignore_index: int
    batch_size: int
    process_index: int
    process_count: int
    threads: int | None


def _batches(
    source: _Encoded | _Decoded, ordered: tf.data.Dataset, num_examples: int, batching: _Batching, start_step: int = 0
) -> Iterator[Batch]:
    batch_size, process_count = batching.batch_size, batching.process_count
    if batch_size % process_count:
        raise ConfigError(f"batch_size {batch_size} must be a multiple of the number of processes, {process_count}")
    rows = batch_size // process_count
    threads = batching.threads or os.cpu_count() or 1

    def example_arrays(position, example):
        image, label = source.arrays(example)
        image.set_shape((*source.size, 3))
        label.set_shape(source.size)
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
                failed = mine.skip(done * rows).take(rows).map(lambda _, example: example)
                raise _explained(error, failed, source) from error
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


def image_size(encoded: tf.data.Dataset) -> tuple[int, int]:
    """Returns height and width of the first image; all others must have the same size."""
    try:
        first = next(iter(encoded.take(1)), None)
    except tf.errors.OpError as error:
        raise _unreadable(error) from error
    if first is None:
        raise DataError("the data set has no examples")
    image = _decoded(first, "image")
    return image.shape[0], image.shape[1]


def _explained(error: Exception, failed: tf.data.Dataset, source: _Encoded | _Decoded) -> UserError:
    """Returns the reason why a batch could not be made, with the name of the example.

    Errors inside tf.data name an operation, not an example. To keep good batches fast, the failed batch is made again
    here, one example at a time.

    Args:
      error: as tf.data raised it.
      failed: the examples of the batch.
      source: of the examples.
    """
    try:
        for example in failed:
            try:
                source.check(example)
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
