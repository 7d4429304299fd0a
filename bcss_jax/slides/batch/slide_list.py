"""The slides of a batch: a CSV file with a row for each slide, which may be split into shards."""

import csv
import difflib
import io
import logging
import os
from pathlib import Path
from typing import NamedTuple

from bcss_jax.common.files import portable_name, portable_stem
from bcss_jax.common.regular_file import read_regular_file
from bcss_jax.data.image_folder import comparable
from bcss_jax.data.resolution.check import check_mpp
from bcss_jax.errors import ConfigError, DataError, printable

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 26  # of a list: a million slides
COLUMNS = ("slide", "mpp", "tissue", "truth", "name")


class Entry(NamedTuple):
    """A slide to segment.

    Attributes:
      slide: the file.
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
    raw = read_regular_file(path, "a CSV list of slides", "check the path", max_bytes=MAX_BYTES)
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: expected UTF-8 text, found another encoding at byte {error.start}; save it as CSV UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{where}, line {line}: expected text, found a NUL character; save it as CSV UTF-8")
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        header, entries, blank, next_line = None, [], 0, 1
        for row in rows:
            line, next_line = next_line, rows.line_num + 1
            if not any(cell.strip() for cell in row):
                blank += 1
            elif header is None:
                header = _header(row, where)
            else:
                entries.append((line, _entry(row, header, f"{where}, line {line}", Path(path).parent)))
    except csv.Error as error:
        raise DataError(f"{where}, line {rows.line_num}: expected CSV, found: {error}; correct that line") from error
    if not entries:
        raise DataError(f"{where}: expected a line with a slide below the header, found none; add one")
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


def check_name(name: str | None) -> None:
    """Raises ValueError unless a name given for a slide's folder of results is allowed on every file system."""
    if name is not None and name != portable_name(name):
        raise ValueError(
            f"expected the name of a folder, for example {ascii(portable_name(name))}, found {ascii(name)[:200]}"
        )


def _delimiter(text):
    """Returns the separator: a comma, or the one that Excel writes if the comma is the decimal sign."""
    header = text.lstrip().partition("\n")[0]
    return next((sign for sign in (",", ";", "\t") if sign in header), ",")


def _header(row, where):
    names = [cell.strip().lower() for cell in row]
    if "slide" not in names:
        raise DataError(
            f"{where}, line 1: expected a header with the column slide (and optionally {', '.join(COLUMNS[1:])}), "
            f"found {', '.join(map(ascii, row))[:200]}; add the header"
        )
    unknown = [name for name in names if name not in COLUMNS]
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if unknown or twice:
        near = difflib.get_close_matches(unknown[0], COLUMNS, n=1) if unknown else []
        raise DataError(
            f"{where}, line 1: expected the columns {', '.join(COLUMNS)}, found {ascii((unknown or twice)[0])[:80]}"
            f"{'' if unknown else ' twice'}; {f'did you mean {near[0]}?' if near else 'remove it'}"
        )
    return names


def _entry(row, header, where, folder):
    may_be_comment = row[0].lstrip().startswith("#") and (len(row) != len(header) or header[0] == "slide")
    if may_be_comment and not os.path.lexists(folder / row[0].strip()):
        raise DataError(
            f"{where}: expected a slide, found a line that starts with #; lists have no comments, remove it"
        )
    if len(row) != len(header):
        raise DataError(
            f"{where}: expected {len(header)} fields as in the header, found {len(row)}; put names with commas in "
            "quotes"
        )
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    if not cells["slide"]:
        raise DataError(f"{where}: expected a slide, found an empty field; fill it or remove the line")
    mpp = None
    if cells.get("mpp"):
        try:
            mpp = float(cells["mpp"].replace(",", "."))
        except ValueError as error:
            raise DataError(f"{where}: expected um per pixel, found {ascii(cells['mpp'])[:80]}; correct it") from error
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
