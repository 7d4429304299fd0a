"""Every message that docs/troubleshooting.md explains is one that the package can print."""

import ast
import re

import pytest
from helpers.paths import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
MESSAGES = re.findall(r"^### `(.+)`$", PAGE, re.M)
GAP = "…"


def text_of(node):
    """The text of a string in the source, with a gap for each value that is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[sdr]", GAP, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) or GAP for value in node.values)
    return None


@pytest.fixture(scope="module")
def source():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "bcss_jax").rglob("*.py")]
    return [text for tree in trees for node in ast.walk(tree) if (text := text_of(node))]


def is_printed(message, source):
    """Whether one string of the source has the parts of the message in their order."""

    def has_parts(text):
        start = 0
        for part in message.split(GAP):
            start = text.find(part, start)
            if start < 0:
                return False
            start += len(part)
        return True

    return any(has_parts(text) for text in source)


def test_the_page_has_the_messages_that_users_meet():
    assert len(MESSAGES) >= 20 and len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_the_message_is_in_the_code(message, source):
    assert is_printed(message, source), message


def test_a_message_that_nobody_prints_would_be_found(source):
    assert not is_printed("…: the flux capacitor is empty; fill it", source)
