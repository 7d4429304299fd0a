"""Damages files systematically: what a crash, an editor, or another program may have left in place of a file.

`of_bytes` damages any file, `of_json` a JSON file, `of_csv` a table. Each yields the name of the damage and the damaged
content; `sample` draws some of them.
"""

import csv
import io
import itertools
import json
import random
from collections.abc import Iterable, Iterator

Damage = tuple[str, bytes]

_RAW = "\ue000raw:"  # marks text that goes into JSON as it is
VALUES = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "negative": -1,
    "fraction": 0.5,
    "large": 10**9,
    "70 bits": 2**70,
    "1e300": 1e300,
    "NaN": _RAW + "NaN",
    "Infinity": _RAW + "-Infinity",
    "1e400": _RAW + "1e400",
    "5000 digits": _RAW + "9" * 5000,
    "empty text": "",
    "text": "x",
    "number as text": "1",
    "line break": "a\nb\r\x00\x1b[31m",
    "lone surrogate": "\ud800",
    "long text": "x" * 100_000,
    "list": [],
    "list of lists": [[], [1]],
    "object": {},
    "object of objects": {"a": {"b": 1}},
    "nested lists": _RAW + "[" * 300 + "]" * 300,
    "nested objects": _RAW + '{"a":' * 300 + "1" + "}" * 300,
}


def of_bytes(content: bytes) -> Iterator[Damage]:
    """Damages a file without regard to its format."""
    for share in (0.0, 0.1, 0.5, 0.9):
        yield f"truncated at {share:.0%}", content[: int(share * len(content))]
    yield "last byte missing", content[:-1]
    middle = len(content) // 2
    yield "zeros in the middle", content[:middle] + bytes(min(512, len(content) - middle)) + content[middle + 512 :]
    yield "no UTF-8", content[:middle] + b"\xff\xfe\x80" + content[middle:]
    yield "NUL", content[:middle] + b"\0" + content[middle:]
    yield "twice", content * 2
    yield "byte order mark", b"\xef\xbb\xbf" + content
    yield "UTF-16", content.decode("latin-1").encode("utf-16")
    yield "other file", b"\x89PNG\r\n\x1a\n" + bytes(64)
    yield "only zeros", bytes(len(content))


def of_json(value) -> Iterator[Damage]:
    """Damages a JSON file: its bytes, and each of its values in every way of `VALUES`."""
    content = json.dumps(value).encode()
    yield from of_bytes(content)
    for name, text in {"null": "null", "list": "[]", "object": "{}", "text": '"a"', "number": "1"}.items():
        yield f"only {name}", text.encode()
    for opening in ("[", '{"a":'):
        yield f"100,000 times {opening}", opening.encode() * 100_000
    for path in _paths(value):
        where = ".".join(map(str, path))
        for name, other in VALUES.items():
            yield f"{where}: {name}", _dumps(_with(value, path, other))
        yield f"{where}: dropped", _dumps(_with(value, path, _Dropped))
        if isinstance(path[-1], str):
            yield f"{where}: renamed", _dumps(_with(value, path, _Renamed))
            yield f"{where}: twice", _dumps(_with(value, path, _Twice)).replace(b"\\ue001", b"")
        found = _at(value, path)
        if isinstance(found, list) and found:
            yield f"{where}: one more", _dumps(_with(value, path, [*found, found[0]]))
            yield f"{where}: one less", _dumps(_with(value, path, found[:-1]))


def of_csv(text: str) -> Iterator[Damage]:
    """Damages a table: its bytes, its rows and columns, and single cells."""
    yield from of_bytes(text.encode())
    header, *rows = csv.reader(io.StringIO(text))
    yield "no rows", _csv([header])
    yield "no header", _csv(rows)
    yield "row twice", _csv([header, *rows, rows[0]])
    yield "row short", _csv([header, *rows, rows[0][:-1]])
    yield "row long", _csv([header, *rows, [*rows[0], "1"]])
    yield "quote open", text.encode() + b'"'
    yield "10 MB field", _csv([header, *rows, ["x" * 10_000_000, *rows[0][1:]]])
    for number, name in enumerate(header):
        without = lambda row, number=number: row[:number] + row[number + 1 :]  # noqa: E731
        yield f"{name}: dropped", _csv(map(without, [header, *rows]))
        yield f"{name}: renamed", _csv([[*header[:number], "other", *header[number + 1 :]], *rows])
        if number + 1 < len(header):
            swapped = lambda row, n=number: [*row[:n], row[n + 1], row[n], *row[n + 2 :]]  # noqa: E731
            yield f"{name}: cells swapped with the next", _csv([header, *map(swapped, rows)])
        for cell in ("", "x", "-1", "nan", "inf", "1e400", "True", "9" * 5000, "0.5", "a\nb", "\0", "x" * 300, "٣"):
            changed = [*rows[0][:number], cell, *rows[0][number + 1 :]]
            yield f"{name}: {cell[:8]!r}", _csv([header, changed, *rows[1:]])


def sample(damages: Iterable[Damage], count: int, seed: int = 0) -> list[Damage]:
    """Returns `count` of the damages, drawn without replacement; all if there are fewer."""
    damages = list(damages)
    return random.Random(seed).sample(damages, min(count, len(damages)))


class _Dropped: ...


class _Renamed: ...


class _Twice: ...


def _paths(value, path=()) -> Iterator[tuple]:
    """Yields the paths of all values in JSON, of long lists only the first two."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in itertools.islice(items, 40):
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def _at(value, path):
    for key in path:
        value = value[key]
    return value


def _with(value, path, other):
    """Returns a copy of JSON in which one value is another."""
    key, *rest = path
    if isinstance(value, list):
        changed = list(value)
        if not rest and other is _Dropped:
            del changed[key]
        else:
            changed[key] = _with(value[key], rest, other) if rest else other
        return changed
    changed = {}
    for name, inner in value.items():
        if name != key:
            changed[name] = inner
        elif rest:
            changed[name] = _with(inner, rest, other)
        elif other is _Renamed:
            changed[f"{name}s"] = inner
        elif other is _Twice:
            changed |= {name: inner, f"{name}\ue001": None}
        elif other is not _Dropped:
            changed[name] = other
    return changed


def _dumps(value) -> bytes:
    text = json.dumps(value)
    marker = json.dumps(_RAW)[1:-1]
    parts = text.split(f'"{marker}')
    # The raw text holds no unescaped quotes, or escaped ones that are its own.
    return (parts[0] + "".join(_raw(part) for part in parts[1:])).encode()


def _raw(part: str) -> str:
    end = 0
    while part[end] != '"' or part[end - 1] == "\\":
        end += 1
    return part[:end].replace('\\"', '"') + part[end + 1 :]


def _csv(rows) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
