"""Writes the tiles of a data set as TFRecords, once, and reads them as a `tf.data.Dataset`.

`prepare` finds the tiles, checks every one of them, and writes them with TensorFlow Datasets. The prepared data are in
a folder that is named after a fingerprint of all input files and options: another call with the same input finds the
folder and reads no pixel, changed input is prepared again in another folder, and two data sets never mix. The folder
gets its name by one rename at the end, so an incomplete folder never has that name.

The masks keep their codes; `labels.lookup_table` converts them to the labels of a scheme later.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from pydantic import Field
from tensorflow_datasets.core import shuffle
from typing_extensions import TypedDict

from bcss_jax import labels
from bcss_jax.common import digests
from bcss_jax.common.files import refuse_wrong_kind, sync, sync_tree, wait_for_lock
from bcss_jax.common.interruption import safe_point
from bcss_jax.common.json_files import read_json
from bcss_jax.common.progress import ProgressLine
from bcss_jax.data import checks, discovery, synthetic, tile_reader
from bcss_jax.data.cache import digest_of_files, is_decoded_as_today, mark_decoder
from bcss_jax.data.host_tensorflow import tf
from bcss_jax.data.image_files import read_pair
from bcss_jax.data.image_folder import LeftOut
from bcss_jax.data.sampling.code_counts import FILE as COUNTS
from bcss_jax.data.sampling.code_counts import CodeCounter, count_stored_masks, read_counts, write_counts
from bcss_jax.errors import ConfigError, DataError, StorageError, UserError, printable

log = logging.getLogger(__name__)

DATA_VERSION = "1.0.1"  # raise it if the written data change: everything is then prepared again
SAMPLE_SEED = 0
SORTED_IN_MEMORY = 1 << 26  # bytes of examples that are sorted in memory; more are sorted in files
SORTED_FILES = 256  # the largest split divided by this number is in memory at a time
WEIGHTS = "weights.json"  # how often the patches of each slide are drawn, unless all are equal
_REMEDY = "delete that folder, or choose another one with --config.data.prepared_dir"


@dataclasses.dataclass(frozen=True)
class Example(discovery.TileOrigin):
    """One tile as it is stored.

    Attributes:
      index: position in its split when sorted by key, from 0. The stored order is different.
      image: uint8 [H, W, 3].
      mask: uint8 [H, W], codes.
    """

    index: int
    image: np.ndarray
    mask: np.ndarray

    def features(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class BcssTiles(tfds.core.GeneratorBasedBuilder):
    """BCSS tiles with their masks, with one config for each layout. Use `prepare`, which also checks the data.

    Examples are stored in the order of a hash of their key: shuffled once, and in the same order every time.
    """

    VERSION = tfds.core.Version(DATA_VERSION)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=layout) for layout in discovery.LAYOUTS]
    # tfds looks for checksums of downloads there. There are none, and looking needs importlib_resources, which tfds
    # does not install (4.9.10).
    code_path = None

    def __init__(self, *, examples: Mapping[str, Iterable[Example]] | None = None, **kwargs):
        """Takes the examples of each split, which are needed only for writing; their codes are counted then."""
        self._examples = examples or {}
        self.code_counters = {split: CodeCounter() for split in self._examples}
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Tiles of H&E stained breast cancer with the tissue code of every pixel.",
            homepage="https://github.com/PathologyDataScience/BCSS",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "index": tfds.features.Scalar(np.int64),
                    "key": tfds.features.Text(),
                    "barcode": tfds.features.Text(),
                    "patient": tfds.features.Text(),
                    "institute": tfds.features.Text(),
                    "x": tfds.features.Scalar(np.int64),
                    "y": tfds.features.Scalar(np.int64),
                    "mpp": tfds.features.Scalar(np.float32),
                    "codes": tfds.features.Text(),
                }
            ),
        )

    def _log_download_bytes(self) -> None:
        """Does nothing; tfds would announce a download here."""

    def _log_download_done(self) -> None:
        """Does nothing, like `_log_download_bytes`."""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing is ever downloaded
        return {split: self._generate_examples(split, examples) for split, examples in self._examples.items()}

    def _generate_examples(self, split: str, examples: Iterable[Example]) -> Iterator[tuple[str, dict]]:
        for example in examples:
            self.code_counters[split].add(example.index, example.mask)
            features = example.features()
            features["image"] = _png(cv2.cvtColor(example.image, cv2.COLOR_RGB2BGR))
            features["mask"] = _png(example.mask)
            yield example.key, features


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """A data set that is written and checked.

    Attributes:
      folder: where the prepared data are.
      layout: as in `discovery.DataSettings`.
      split_by: how the tiles are split: "published", "institute", or "built-in" for the sample.
      codes: code book of the masks.
      mpp: nominal micrometers per pixel.
      fingerprint: of all input files and options.
      report: what the checks found.
    """

    folder: Path
    layout: str
    split_by: str
    codes: str
    mpp: float
    fingerprint: str
    report: checks.CheckReport

    @property
    def splits(self) -> dict[str, int]:
        """The number of tiles of each split."""
        return dict(self.report.tiles)

    def describe(self) -> dict:
        """Returns a plain dict for checkpoints and metric files: which data, how they are split, and their counts.

        Lists of files and patients are replaced by their length; `report` has them in full.
        """
        return {
            "layout": self.layout,
            "split": self.split_by,
            "codes": self.codes,
            "mpp": self.mpp,
            "fingerprint": self.fingerprint,
            "data_version": DATA_VERSION,
            **self.report.counted(),
        }

    def table(self, split: str) -> list[dict]:
        """Returns the fields of `discovery.TileOrigin` of each tile of a split; entry i is the tile with index i."""
        return self._tables[split]

    @functools.cached_property
    def _tables(self) -> dict[str, list[dict]]:
        path = self.folder / "tables.json"
        tables = _read_prepared(path, dict[str, list[_TileRow]])
        found = {split: len({row["key"] for row in rows}) for split, rows in tables.items()}
        if found != self.splits:
            raise StorageError(f"{printable(path)}: expected the tiles {self.splits}, found {found}; {_REMEDY}")
        return tables

    @functools.cached_property
    def slide_weights(self) -> dict[str, float]:
        """The weight of each slide, by its barcode in `table`; empty if all are equal."""
        path = self.folder / WEIGHTS
        return _read_prepared(path, dict[str, Annotated[float, Field(gt=0)]]) if path.exists() else {}

    def code_counts(self, split: str) -> np.ndarray:
        """Returns the number of pixels of each code in each tile of a split: int32 [tiles, 256].

        Raises:
          StorageError: the file of counts is damaged.
        """
        path, count = self.folder / COUNTS, self.splits[split]
        if not path.exists():  # prepared by an earlier version
            return count_stored_masks(self.load(split), count)
        return read_counts(path, split, count, _REMEDY)

    def load(self, split: str) -> tf.data.Dataset:
        """Returns the tiles of a split, not decoded, in stored order: shuffled by a hash of the key, always the same.

        Args:
          split: a key of `splits`.

        Returns:
          A data set of dicts of scalars: image and mask (PNG bytes: uint8 [H, W, 3] and [H, W, 1]), index (int64), key,
          barcode, patient, institute, codes (strings), x and y (int64, pixels), mpp (float32).

        Raises:
          DataError: the data set has no such split, or its files are damaged.
        """
        if split not in self.splits:
            raise DataError(
                f"{self.folder}: expected a split {split}, found only {', '.join(self.splits)}; choose one of them"
            )
        _check_records(self.folder, split)
        builder = BcssTiles(config=self.layout, data_dir=self.folder)
        skip = {"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}
        one_by_one = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        return builder.as_dataset(
            split=split,  # pyright: ignore[reportCallIssue]  # tfds wraps the method in a decorator
            shuffle_files=False,
            decoders=skip,
            read_config=one_by_one,
        )


def prepare(
    settings: discovery.DataSettings,
    *,
    prepared_dir: str | os.PathLike,
    scheme: labels.LabelScheme,
    log_report: bool = True,
) -> PreparedData:
    """Finds, checks and writes the tiles of a data set, unless they have been prepared before.

    Several processes may call it at the same time: one works, the others wait for it.

    Args:
      settings: which data set.
      prepared_dir: where prepared data sets are kept, a folder of a local or shared file system.
      scheme: the label scheme; it decides which warnings are logged, and what is written for slides alone.
      log_report: whether to log what the checks found; a fold of the data set (`folded_data`) logs its own.

    Raises:
      ConfigError: a setting is invalid, or the masks cannot express the scheme's classes.
      DataError: the data are missing or unusable, or the prepared data are damaged.
      StorageError: `prepared_dir` cannot be written or read.
    """
    layout = settings.layout
    if layout not in discovery.LAYOUTS:
        raise ConfigError(f"layout {layout!r} is none of {', '.join(discovery.LAYOUTS)}")
    if not prepared_dir or re.match(r"\w+:/", os.fspath(prepared_dir)):  # one slash: pathlib's spelling of gs://
        raise ConfigError(f"prepared_dir must be a folder of this machine's file systems; found {str(prepared_dir)!r}")
    try:
        labels.lookup_table(scheme, settings.codes)
    except ValueError as error:
        raise ConfigError(f"scheme {scheme.name} with layout {layout}: {error}") from error

    left_out = LeftOut()
    source = _source(settings, scheme, left_out)
    folder = Path(prepared_dir).expanduser() / f"{layout}-{source.fingerprint[:16]}"
    with _as_storage_error(prepared_dir):
        if not folder.is_dir() or not is_decoded_as_today(folder, source.files):
            with wait_for_lock(folder):
                # Another process may have made it during the wait.
                if folder.is_dir() and not is_decoded_as_today(folder, source.files):
                    shutil.rmtree(folder)
                if not folder.is_dir():
                    _make(folder, layout, source.read)
    _check_descriptions(folder)
    stored = _read_prepared(folder / "report.json", checks.CheckReportJson)
    report = checks.CheckReport.from_json(stored | {"left_out": stored.get("left_out", {}) | left_out.counts()})
    log.info("prepared data: %s", folder)
    if line := left_out.line():
        log.info("%s: left out: %s", printable(settings.folder or ""), line)
    if log_report:
        report.log(scheme, settings.codes)
    return PreparedData(folder, layout, source.split_by, settings.codes, source.mpp, source.fingerprint, report)


class _Source(NamedTuple):
    """Where the examples of a data set come from.

    Attributes:
      fingerprint: of all input files and options.
      files: all input files.
      mpp: nominal um per pixel.
      split_by: how the examples are split.
      read: checks the files and returns the examples; it is called only if the data have not been prepared before.
    """

    fingerprint: str
    files: list[Path]
    mpp: float
    split_by: str
    read: Callable[[], "_Content"]


class _Content(NamedTuple):
    """What is written.

    Attributes:
      examples: of each split.
      count: number of examples; None if it is known only after they are read.
      report: returns what the checks found; called after all examples are read, as the next two.
      tables: returns the entries of `PreparedData.table` of each split.
      weights: returns the weights of slides.
    """

    examples: Mapping[str, Iterable]
    count: int | None
    report: Callable[[], checks.CheckReport]
    tables: Callable[[], dict[str, list[dict]]]
    weights: Callable[[], dict[str, float]] = dict


def _source(settings: discovery.DataSettings, scheme: labels.LabelScheme, left_out: LeftOut) -> _Source:
    """Finds the files of a data set. Raises ConfigError or DataError if they are not a data set."""
    if settings.layout == "sample":
        options = {"layout": settings.layout, "data_version": DATA_VERSION, "drawn_by": synthetic.VERSION}
        fingerprint = digest_of_files(options, [], None)
        return _Source(fingerprint, [], synthetic.MPP, settings.effective_split_by, _sample_content)
    if settings.layout == discovery.SLIDES:
        return _slides_source(settings, scheme, left_out)
    tiles = discovery.find_tiles(settings, left_out=left_out)
    files = [path for tile in tiles for path in (tile.image, tile.mask) if path]
    fingerprint = digest_of_files(_options(settings), files, settings.folder)
    read = functools.partial(_tile_content, settings, tiles)
    return _Source(fingerprint, files, settings.mpp, settings.effective_split_by, read)


def _slides_source(settings: discovery.DataSettings, scheme: labels.LabelScheme, left_out: LeftOut) -> _Source:
    from bcss_jax.data.slides.annotated_slides import find_slides  # the readers of slides are needed for slides alone
    from bcss_jax.data.slides.slide_examples import PatchSettings, SlideExamples

    list_file = settings.list_file
    found = find_slides(settings.folder, list_file, allow_missing=settings.allow_missing, left_out=left_out)
    files = [path for slide in found.slides for path in (slide.slide, slide.annotations)]
    of_slides = [[slide.name, slide.patient, slide.split, slide.mpp, slide.weight] for slide in found.slides]
    label_scheme = {name: value for name, value in scheme.to_json().items() if name != "colors"}
    options = _options(settings) | {"split": found.split_by, "slides": of_slides, "label_scheme": label_scheme}
    fingerprint = digest_of_files(options, files, list_file.parent if list_file else settings.folder)
    assert settings.patch_size is not None, "the settings are checked"
    patches = PatchSettings(settings.mpp, settings.patch_size, settings.stride, settings.region, settings.max_bad)

    def read():
        examples = SlideExamples(found, patches, scheme)
        of_split = {split: examples.of_split(split) for split in examples.splits}
        return _Content(of_split, None, examples.finish, examples.tables, examples.weights)

    return _Source(fingerprint, files, settings.mpp, found.split_by, read)


def _options(settings: discovery.DataSettings) -> dict:
    """Returns the options that the prepared data depend on, apart from the files. Other options give another folder."""
    options = {
        "layout": settings.layout,
        "data_version": DATA_VERSION,
        "split": settings.effective_split_by,
        "mpp": float(settings.mpp),
        "allow_missing": settings.allow_missing,
        "max_bad": settings.max_bad,
    }
    if settings.layout in ("roi", discovery.SLIDES):
        options |= {"patch_size": settings.patch_size, "stride": settings.stride}
    return options | ({"region": settings.region} if settings.region else {})


def _sample_content() -> _Content:
    examples = _sample_examples()
    checked = [
        checks.CheckedTile(example.key, split, example.patient, tile_reader.tile_stats(example.image, example.mask))
        for split, group in examples.items()
        for example in group
    ]
    report = checks.report_on(checked, "bcss22")
    tables = {split: [_table_row(example) for example in group] for split, group in examples.items()}
    return _Content(examples, sum(report.tiles.values()), lambda: report, lambda: tables)


def _tile_content(settings: discovery.DataSettings, tiles: list[discovery.Tile]) -> _Content:
    with contextlib.closing(ProgressLine("checking", len(tiles))) as line:
        tiles, report = checks.check_tiles(
            tiles,
            allow_missing=settings.allow_missing,
            max_bad=settings.max_bad,
            patients_may_recur=settings.layout == "kaggle224" and settings.split_by == "published",
            progress=line.update,
        )
    by_split = {
        split: sorted((tile for tile in tiles if tile.split == split), key=lambda tile: tile.key)
        for split in report.tiles
    }
    examples = {split: _tile_examples(group) for split, group in by_split.items()}
    tables = {split: [_table_row(tile) for tile in group] for split, group in by_split.items()}
    return _Content(examples, sum(report.tiles.values()), lambda: report, lambda: tables)


def _make(folder: Path, layout: str, read: Callable[[], _Content]) -> None:
    """Checks and writes everything under another name, then renames it. The caller holds the lock."""
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        log.info("%s: left over from a run that was stopped; starting again", partial)
        shutil.rmtree(partial)
    log.info("checking the data set and writing it to %s; this is done once", folder)
    content = read()
    try:
        partial.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_no_bars_of_tfds())
            stack.enter_context(_little_memory_of_tfds())
            examples = content.examples
            if content.count is not None:
                line = stack.enter_context(contextlib.closing(ProgressLine("writing", content.count)))
                done = itertools.count(1)
                examples = {
                    split: _counted(group, lambda: line.update(next(done))) for split, group in examples.items()
                }
            builder = BcssTiles(config=layout, data_dir=partial, examples=examples)
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False), file_format="tfrecord"
            )
        report = content.report()
        shutil.rmtree(partial / "downloads")  # tfds makes it even if there is nothing to download
        write_counts(partial / COUNTS, builder.code_counters)
        (partial / "tables.json").write_text(json.dumps(content.tables()))
        (partial / "report.json").write_text(json.dumps(report.to_json(), indent=1))
        if weights := content.weights():
            (partial / WEIGHTS).write_text(json.dumps(weights))
        digests.write_digests(partial, digests.sha256_of_files(partial, digests.files_in(partial)))
        mark_decoder(partial)
        sync_tree(partial)
        partial.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def _little_memory_of_tfds() -> Iterator[None]:
    """Lets tfds hold less than a gigabyte while it sorts the examples; the order of the examples stays the same."""
    names = {"MAX_MEM_BUFFER_SIZE": SORTED_IN_MEMORY, "BUCKETS_NUMBER": SORTED_FILES}
    before = {name: getattr(shuffle, name) for name in names}
    try:
        for name, value in names.items():
            setattr(shuffle, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(shuffle, name, value)


@contextlib.contextmanager
def _no_bars_of_tfds() -> Iterator[None]:
    """Stops tfds from drawing its own progress bars, which would also go to log files."""
    tfds.display_progress_bar(False)
    try:
        yield
    finally:
        tfds.display_progress_bar(True)


def _counted(examples: Iterable[Example], taken: Callable[[], None]) -> Iterator[Example]:
    for example in examples:
        safe_point()
        taken()
        yield example


def _sample_examples() -> dict[str, list[Example]]:
    """Returns the drawn patches of each split, sorted by key."""
    patches = collections.defaultdict(list)
    for patch in sorted(synthetic.draw(SAMPLE_SEED), key=lambda patch: patch.key):
        examples = patches[patch.split]
        examples.append(Example(index=len(examples), **patch.origin(), image=patch.image, mask=patch.mask))
    return dict(patches)


def _tile_examples(tiles: list[discovery.Tile]) -> Iterator[Example]:
    """Reads the tiles of one split, sorted by key.

    Each file is read once, because the patches of a region are neighbors.
    """
    index = itertools.count()
    for (image_path, mask_path), group in itertools.groupby(tiles, key=lambda tile: (tile.image, tile.mask)):
        group = list(group)
        assert mask_path is not None, "images without masks are not listed"
        image, mask = read_pair(image_path, mask_path, group[0].codes, warn=_ignore)
        for tile in group:
            tile_image, tile_mask = tile_reader.crop(image, mask, tile)
            assert tile_mask is not None
            yield Example(index=next(index), **_table_row(tile), image=tile_image, mask=tile_mask)


def _ignore(warning: str) -> None:
    """Drops a warning that the check has already given."""


def _table_row(tile: discovery.TileOrigin) -> dict:
    """Returns a tile's entry in `PreparedData.table`."""
    return {field.name: getattr(tile, field.name) for field in dataclasses.fields(discovery.TileOrigin)}


def _png(pixels: np.ndarray) -> bytes:
    done, encoded = cv2.imencode(".png", pixels)
    if not done:
        raise RuntimeError(f"OpenCV cannot encode an array of shape {pixels.shape} and type {pixels.dtype}")
    return encoded.tobytes()


class _TileRow(TypedDict):
    """`discovery.TileOrigin` in tables.json."""

    key: str
    barcode: str
    patient: str
    institute: str
    x: int
    y: int
    mpp: Annotated[float, Field(gt=0)]
    codes: str


def _check_descriptions(folder: Path) -> None:
    """Compares the files of prepared data with their digests, except for the content of the tiles.

    Raises:
      DataError: they differ.
    """
    expected = digests.read_digests(folder)
    if expected is None:
        log.info("%s: prepared by an earlier version, without digests: used, but not verified", folder)
        return
    found = [name for name in digests.files_in(folder) if name != digests.NAME]
    small = [name for name in found if not _is_record(name)]
    sha256 = digests.sha256_of_files(folder, small) | {n: expected.get(n, "") for n in found if _is_record(n)}
    _raise_if(folder, digests.differing(expected, sha256))


@functools.cache  # once in a process; errors are not kept
def _check_records(folder: Path, split: str) -> None:
    """Compares the tiles of a split with their digests. Raises DataError if they differ."""
    expected = {n: each for n, each in (digests.read_digests(folder) or {}).items() if _is_record(n, split)}
    _raise_if(folder, digests.differing(expected, digests.sha256_of_files(folder, expected)))


def _is_record(name: str, split: str = "") -> bool:
    return f"-{split}.tfrecord-" in name if split else ".tfrecord-" in name


def _raise_if(folder: Path, problem: str | None) -> None:
    if problem:
        raise DataError(
            f"{printable(folder)}: the prepared data are damaged ({problem}); delete that folder, so that they are "
            "prepared again"
        )


def _read_prepared(path: Path, kind: Any) -> Any:
    return read_json(path, "a file of prepared data", _REMEDY, kind=kind, error_type=StorageError)


@contextlib.contextmanager
def _as_storage_error(folder: str | os.PathLike) -> Iterator[None]:
    """Turns an error of Python or TensorFlow in writing or reading prepared data into a StorageError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        failure = error
        while not isinstance(failure, (OSError, tf.errors.OpError, json.JSONDecodeError)):
            failure = failure.__cause__  # tfds wraps the errors of others
            if failure is None:
                raise
        if isinstance(failure, OSError):
            refuse_wrong_kind(Path(failure.filename) if isinstance(failure.filename, str) else Path(folder), failure)
        found = " ".join(str(failure).split())
        raise StorageError(
            f"{printable(folder)}: expected to write and read prepared data there, found: {found}; "
            "free space, check the permissions, delete damaged files, or choose another --config.data.prepared_dir"
        ) from error
