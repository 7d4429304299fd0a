"""Reads lists in CSV files, as spreadsheets write them: a header with known columns, and a row for each entry."""

import csv
import difflib
import io
import os
from collections.abc import Sequence
from pathlib import Path

from bcss_jax.common.regular_file import read_regular_file
from bcss_jax.errors import DataError, printable

MAX_BYTES = 1 << 26  # of a list: a million rows


def read_rows(path: Path, required: Sequence[str], optional: Sequence[str]) -> tuple[list[tuple[int, dict]], int]:
    """Reads the rows of a list of slides.

    Args:
      path: CSV as UTF-8 (with or without byte order mark, any line ends) or UTF-16 as Excel writes it, with a header.
      required: columns that the header must have; the first one is the path of a slide, which no row may lack.
      optional: further columns that it may have.

    Returns:
      For each row its line in the file and its fields by column, stripped; and the number of blank lines.

    Raises:
      DataError: it cannot be read, lacks a column, has an unknown one, or a line is wrong; the message names the line.
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
                header = _header(row, where, required, optional)
            else:
                entries.append((line, _fields(row, header, f"{where}, line {line}", Path(path).parent)))
    except csv.Error as error:
        raise DataError(f"{where}, line {rows.line_num}: expected CSV, found: {error}; correct that line") from error
    if not entries:
        raise DataError(f"{where}: expected a line with a slide below the header, found none; add one")
    return entries, blank


def number_of(text: str, where: str, what: str) -> float:
    """Returns the number that a field holds, with a point or a comma.

    Args:
      text: the field.
      where: file, line and column, for messages.
      what: the number is, for messages.

    Raises:
      DataError: it is not a number.
    """
    try:
        return float(text.replace(",", "."))
    except ValueError as error:
        raise DataError(f"{where}: expected {what}, found {ascii(text)[:80]}; correct it") from error


def _delimiter(text):
    """Returns the separator: a comma, or the one that Excel writes if the comma is the decimal sign."""
    header = text.lstrip().partition("\n")[0]
    return next((sign for sign in (",", ";", "\t") if sign in header), ",")


def _header(row, where, required, optional):
    names, known = [cell.strip().lower() for cell in row], (*required, *optional)
    missing = next((name for name in required if name not in names), None)
    if missing is not None:
        columns = f"the column {required[0]}" if len(required) == 1 else f"the columns {' and '.join(required)}"
        raise DataError(
            f"{where}, line 1: expected a header with {columns} (and optionally {', '.join(optional)}), "
            f"found {', '.join(map(ascii, row))[:200]}; add the "
            f"{'header' if missing == required[0] else f'column {missing}'}"
        )
    unknown = [name for name in names if name not in known]
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if unknown or twice:
        near = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []
        raise DataError(
            f"{where}, line 1: expected the columns {', '.join(known)}, found {ascii((unknown or twice)[0])[:80]}"
            f"{'' if unknown else ' twice'}; {f'did you mean {near[0]}?' if near else 'remove it'}"
        )
    return names


def _fields(row, header, where, folder):
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
    return cells
