import json
import os
from typing import Annotated, NotRequired

import pytest
from pydantic import Field
from typing_extensions import TypedDict

from bcss_jax.common.json_files import as_json, describe_differences, differences, read_json
from bcss_jax.errors import ConfigError, DataError


def test_a_json_file_is_read(tmp_path):
    (tmp_path / "a.json").write_text('\ufeff{"a": [1, "é"]}', encoding="utf-8")  # a byte order mark is allowed
    assert read_json(tmp_path / "a.json", "a test file", "fix it", kind=dict) == {"a": [1, "é"]}


@pytest.mark.parametrize(
    "content, found",
    [
        (None, "no such file"),
        (b"", "no JSON"),
        (b"{'a': 1}", "no JSON"),
        (b"\x89PNG", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", "a JSON value of type list"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_file_expectation_and_remedy(tmp_path, content, found):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    for error_type in (DataError, ConfigError):
        with pytest.raises(error_type) as error:
            read_json(path, "a test file", "fix it", kind=dict, error_type=error_type)
        message = str(error.value)
        assert message.replace("found: ", "found ").startswith(
            f"{path}: expected a test file, found {found}"
        ) and message.endswith("; fix it")
        assert len(message.splitlines()) == 1


class Example(TypedDict):
    count: Annotated[int, Field(ge=1)]
    scores: list[float]
    name: NotRequired[str | None]


def test_content_of_the_described_shape_comes_back_whole(tmp_path):
    content = {"count": 2, "scores": [1, 0.5], "more": {"a": [None, True]}}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "a.json", "a test file", "fix it", kind=Example) == content


@pytest.mark.parametrize(
    "content, found",
    [
        ("null", "a JSON value of type NoneType"),
        ('{"scores": []}', "no field count"),
        ('{"count": 0, "scores": []}', "count = 0: input should be greater than or equal to 1"),
        ('{"count": true, "scores": []}', "count = True: input should be a valid integer"),
        ('{"count": 1.5, "scores": []}', "count = 1.5: input should be a valid integer"),
        ('{"count": 1, "scores": [1, "2"]}', "scores.1 = '2': input should be a valid number"),
        ('{"count": 1, "scores": {}}', "scores = {}: input should be a valid list"),
        ('{"count": 1, "scores": [], "name": 3}', "name = 3: input should be a valid string"),
        ('{"count": 1, "scores": [NaN]}', "nan, which is not a finite number"),
        ('{"count": 1, "scores": [1e400]}', "inf, which is not a finite number"),
        ('{"count": 1, "scores": [], "x": 1' + "0" * 30 + "}", "an integer of more than 64 bits"),
        ('{"count": 1, "count": 2, "scores": []}', "no JSON (the key 'count' twice in one object)"),
        ('{"count": 1, "scores": [], "x": ' + "[" * 99 + "]" * 99 + "}", "values nested more than 64 deep"),
        ('{"count": 1, "scores": "' + "x\\n" * 999 + '"}', "scores = '" + "x\\n" * 9),
    ],
)
def test_another_shape_is_one_line_that_names_the_field(tmp_path, content, found):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        read_json(path, "a test file", "fix it", kind=Example)
    message = str(error.value)
    assert message.startswith(f"{path}: expected a test file, found: {found}") and len(message.splitlines()) == 1


def test_a_fifo_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(DataError, match="found a FIFO"):
        read_json(tmp_path / "a.json", "a test file", "fix it")


def test_files_of_others_may_hold_nan(tmp_path):
    (tmp_path / "a.json").write_text('{"a": NaN}')
    assert read_json(tmp_path / "a.json", "a test file", "fix it", finite=False)["a"] != 0


def test_a_value_comes_back_as_from_a_file():
    assert as_json({"a": (1, 2), 3: None}) == {"a": [1, 2], "3": None}
    assert as_json([os], lambda value: value.__name__) == ["os"]
    with pytest.raises(TypeError):
        as_json([os])


def test_differences_are_found_field_by_field():
    old = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "gone": 4, "none": None}
    new = {"a": 1, "b": {"c": 5, "d": {"e": 6}}, "added": 7}
    found = {"added": (None, 7), "b.c": (2, 5), "b.d.e": (3, 6), "gone": (4, None)}
    assert differences(old, new) == found and differences(new, new) == {}
    assert describe_differences(found) == "added: None -> 7; b.c: 2 -> 5; b.d.e: 3 -> 6; gone: 4 -> None"
    assert describe_differences({"a": ("x" * 64, "y" * 64), "b": (1, 2)}) == "a; b: 1 -> 2"


def test_a_field_that_the_old_value_lacks_has_its_default():
    assert differences({}, {"a": 1, "b": {"c": 2}}, defaults={"a": 1, "b": {"c": 2}}) == {}
    assert differences({"b": {}}, {"b": {"c": 3}}, defaults={"b": {"c": 2}}) == {"b.c": (2, 3)}
    assert differences({"a": None}, {}, missing="(none)") == {"a": (None, "(none)")}
