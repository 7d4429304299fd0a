"""The slides of a batch: a CSV file with a row for each slide, which may be split into shards."""

import logging
import os
from pathlib import Path
from typing import NamedTuple

from bcss_jax.common.files import portable_name, portable_stem
from bcss_jax.data.csv_list import number_of, read_rows
from bcss_jax.data.image_folder import comparable
from bcss_jax.data.resolution.check import check_mpp
from bcss_jax.errors import ConfigError, DataError, printable

log = logging.getLogger(__name__)

COLUMNS = ("slide", "mpp", "tissue", "truth", "name")


class Entry(NamedTuple):
    """A slide to segment.

    Attributes:
      slide: the file, or a folder with the instances of one DICOM slide.
      mpp: um per pixel; None: the resolution that the slide states.
      tissue: file of a tissue mask or of regions; None: tissue is found by color.
      truth: ground truth mask to score against, if there is one.
      name: of the folder of its results; None: the name of the file.
    """

    slide: Path
    mpp: float | None = None
    tissue: str | None = None
    truth: str | None = None
    name: str | None = None

    @property
    def folder(self) -> str:
        """Name of the folder of the slide's results."""
        return self.name or portable_stem(self.slide)


def read_list(path: Path) -> list[Entry]:
    """Reads a list of slides. The log says how many slides it has, and which of them are the same file.

    Args:
      path: CSV as UTF-8 (with or without byte order mark, any line ends) or UTF-16 as Excel writes it, with a header:
        `slide`, and optionally `mpp`, `tissue`, `truth`, `name`. Paths are relative to the folder of the CSV file.

    Raises:
      DataError: it cannot be read, lacks the column `slide`, or a line is wrong; the message names the line.
    """
    where = printable(path)
    rows, blank = read_rows(path, COLUMNS[:1], COLUMNS[1:])
    entries = [(line, _entry(cells, f"{where}, line {line}", Path(path).parent)) for line, cells in rows]
    _refuse_shared_folders(entries, where)
    log.info("%s: %d slides%s", where, len(entries), f" ({blank} blank lines)" if blank else "")
    _warn_of_same_files(entries, where)
    return [entry for _, entry in entries]


def shard_of(entries: list[Entry], shard: str | None) -> list[Entry]:
    """Returns every n-th entry.

    Args:
      entries: the whole list.
      shard: "i/n" with i from 0 to n - 1; None: all entries.

    Raises:
      ConfigError: `shard` has another form.
    """
    if shard is None:
        return entries
    number, slash, count = shard.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ConfigError(f"--shard={shard}: must be i/n with i from 0 to n-1, as in --shard=0/4")
    return entries[int(number) :: int(count)]


def single_entry(
    slide: Path, *, mpp: float | None, tissue: str | None = None, truth: str | None = None, name: str | None
) -> Entry:
    """Returns the entry of a slide that the options of a command name; the arguments are those of `Entry`.

    Raises:
      ConfigError: the name is that of no folder, or the resolution is none of a slide.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"--name: {error}") from error
    if mpp is not None:
        check_mpp(mpp, f"--mpp={mpp:g}", remedy="give the um per pixel of the slide's level 0")
    return Entry(slide, mpp, tissue, truth, name or None)


def check_name(name: str | None) -> None:
    """Raises ValueError unless a name given for a slide's folder of results is allowed on every file system."""
    if name is not None and name != portable_name(name):
        raise ValueError(
            f"expected the name of a folder, for example {ascii(portable_name(name))}, found {ascii(name)[:200]}"
        )


def _entry(cells, where, folder):
    mpp = None
    if cells.get("mpp"):
        mpp = number_of(cells["mpp"], where, "um per pixel")
        check_mpp(mpp, f"{where}, mpp", error_type=DataError)
    tissue, truth = (str(folder / cells[name]) if cells.get(name) else None for name in ("tissue", "truth"))
    name = cells.get("name") or None
    try:
        check_name(name)
    except ValueError as error:
        raise DataError(f"{where}: {error}; correct it") from error
    return Entry(folder / cells["slide"], mpp, tissue, truth, name)


def _refuse_shared_folders(entries, where):
    """Raises DataError if the results of two slides would go into one folder."""
    seen = {}
    for line, entry in entries:
        name = entry.folder
        if comparable(name) in seen:
            raise DataError(
                f"{where}, line {line}: {ascii(entry.slide.name)} would have the same folder of results, "
                f"{ascii(name)}, as line {seen[comparable(name)]}; give each slide a different name in a column "
                "called name"
            )
        seen[comparable(name)] = line


def _warn_of_same_files(entries, where):
    """Logs which lines name the same file: it is segmented once for each of them."""
    seen = {}
    for line, entry in entries:
        file = os.path.realpath(entry.slide)
        if file in seen:
            log.warning("%s, line %d: %s is also in line %d", where, line, ascii(entry.slide.name), seen[file])
        seen.setdefault(file, line)
