"""The code blocks of README and docs, each with the mark above it that says how it is tested.

A mark is an HTML comment on the line above the block, so that it is not shown:

    <!-- test: run -->                    the test runs the block as it stands
    <!-- test: run with --flag=1 -->      the same, with these options added to the first command
    <!-- test: run slow -->               the same, in a test that is marked slow; `run slow with ...` is possible too
    <!-- test: not run: REASON -->        only the names of files, modules and options are checked
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from helpers.paths import ROOT

PAGES = sorted(
    path
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs" / "qupath").glob("*.md"),
    )
    if path.name != "index.md"
)
LANGUAGES = ("bash", "python")
MARK = re.compile(r"<!-- test: (?:(run)( slow)?(?: with (.+))?|not run: (.+)) -->")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A code block.

    Attributes:
      page: the file.
      line: of its fence, from 1.
      language: "bash" or "python".
      code: its text.
      runs: whether it is run.
      slow: whether by a test that is marked slow.
      options: added to the first command.
      reason: why it is not run; None if it is, or if there is no mark.
    """

    page: Path
    line: int
    language: str
    code: str
    runs: bool
    slow: bool
    options: list[str]
    reason: str | None

    @property
    def name(self) -> str:
        """Page and line, for messages and test names."""
        return f"{self.page.name}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The words of each shell command, comments and line breaks removed."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def blocks() -> list[Block]:
    """Returns the shell and Python blocks of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for fence in FENCE.finditer(text):
            if fence[1] not in LANGUAGES:
                continue
            above = text[: fence.start()].rstrip("\n").rpartition("\n")[2]
            mark = MARK.fullmatch(above)
            run, slow, options, reason = mark.groups() if mark else (None,) * 4
            line = text.count("\n", 0, fence.start()) + 1
            found.append(
                Block(page, line, fence[1], fence[2], bool(run), bool(slow), shlex.split(options or ""), reason)
            )
    return found
