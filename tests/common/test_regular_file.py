import os
import socket

import pytest

from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.errors import ConfigError, DataError


def check(path):
    check_regular_file(path, "a list", "name another")


def test_a_file_and_a_link_to_it_pass(tmp_path):
    (tmp_path / "list.csv").write_text("slide\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "list.csv")
    check(tmp_path / "list.csv")
    check(tmp_path / "link.csv")


@pytest.mark.parametrize("kind", ["a folder", "a FIFO", "a socket", "a device", "no such file"])
def test_anything_else_is_one_line(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = tmp_path / "input"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        socket.socket(socket.AF_UNIX).bind("input")
    elif kind == "a device":
        path = "/dev/zero"
    with pytest.raises(DataError, match=rf"(input|zero): expected a list, found {kind}; name another"):
        check(path)


def test_names_that_the_system_does_not_take(tmp_path):
    for name in ("a\0b", "n" * 300):
        with pytest.raises(ConfigError, match="expected a list, found"):
            check_regular_file(tmp_path / name, "a list", "name another", error_type=ConfigError)
