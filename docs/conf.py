"""Settings of Sphinx: `sphinx-build -W --keep-going -b html docs docs/_build`."""

import os
import re
from pathlib import Path

# Importing the modules for their docstrings must not search for accelerators or print TensorFlow's greetings.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import bcss_jax

project = "bcss_jax"
author = "the bcss_jax authors"
release = "0.1.0"
language = "en"

extensions = ["myst_nb", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "examples"]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}

nb_execution_mode = "off"  # the code of the pages is run by tests/docs
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

PACKAGE = Path(bcss_jax.__file__).parent
STARTED = [str(path) for path in PACKAGE.glob("*.py") if "cli.start(" in path.read_text()]  # by `python -m`, alone
apidoc_modules = [{"path": str(PACKAGE), "destination": "api", "max_depth": 2, "exclude_patterns": STARTED}]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
suppress_warnings = ["ref.python"]  # attributes such as `size` that several classes have
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "bcss_jax"
html_theme_options = {"show_navbar_depth": 1, "navbar_persistent": [], "use_download_button": False}
html_copy_source = False

CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)(\w?)")


def as_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Turns a docstring, which is plain text with `code`, into the markup that Sphinx reads; changes `lines`."""
    pieces = CODE.split("\n".join(lines))
    for i in range(0, len(pieces), 3):  # text between code
        pieces[i] = re.sub(r"(\||(?<=\w)_(?!\w))", r"\\\1", pieces[i])
    for i in range(1, len(pieces), 3):  # code, and the letter that follows it
        pieces[i] = f"``{' '.join(pieces[i].split())}``"
        pieces[i + 1] = pieces[i + 1] and f"\\ {pieces[i + 1]}"
    lines[:] = "".join(pieces).split("\n")
    lines[:] = _with_literal_blocks(lines) if what == "module" else _without_hanging_returns(lines)


def _without_hanging_returns(lines: list[str]) -> list[str]:
    """Returns the lines with one indentation in the section Returns, where it is a text and not a list."""
    if "Returns:" not in lines:
        return lines
    start = lines.index("Returns:") + 1
    stop = next((i for i in range(start, len(lines)) if lines[i] and not lines[i].startswith(" ")), len(lines))
    section = lines[start:stop]
    if not any(line.lstrip().startswith(("* ", "- ")) for line in section):
        section = ["  " + line.strip() if line.strip() else "" for line in section]
    return lines[:start] + section + lines[stop:]


def _with_literal_blocks(lines: list[str]) -> list[str]:
    """Returns the lines with indented ones, such as commands and lists of files, shown as they are."""
    result, inside, item = [], False, False
    for line in lines:
        if line.startswith(("* ", "- ")):
            item = True
        elif line and not line.startswith(" "):
            item = False
        indented = line.startswith(" ") and not item
        if indented and not inside:
            result += ["", "::", ""]
        elif line and not indented and inside:
            result.append("")
        inside = indented or (inside and not line)
        # Code and escapes are for text only.
        result.append(line.replace("``", "").replace("\\", "") if indented else line)
    return result


def setup(app) -> None:
    """Connects the hook; before napoleon's, which has the priority 500."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
