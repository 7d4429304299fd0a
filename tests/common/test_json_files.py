import os

import pytest

from bcss_jax.common.json_files import as_json, describe_differences, differences, read_json
from bcss_jax.errors import ConfigError, DataError


def test_a_json_file_is_read(tmp_path):
    (tmp_path / "a.json").write_text('\ufeff{"a": [1, "é"]}', encoding="utf-8")  # a byte order mark is allowed
    assert read_json(tmp_path / "a.json", "a test file", "fix it", kind=dict) == {"a": [1, "é"]}


@pytest.mark.parametrize(
    "content, found",
    [
        (None, "No such file or directory"),
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
        assert message.startswith(f"{path}: expected a test file, found: {found}") and message.endswith("; fix it")
        assert len(message.splitlines()) == 1


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
