"""The documentation builds without warnings, and without a network."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers.paths import ROOT

for package in ("sphinx", "myst_nb", "sphinx_book_theme"):
    pytest.importorskip(package, reason="needs pip install -e '.[docs]'")


@pytest.mark.slow
def test_documentation_builds_without_warnings(tmp_path):
    # A copy: the build writes the API pages beside the others.
    docs = shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "api"))
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(docs),
        str(tmp_path / "html"),
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-5000:]
    pages = {page.stem for page in (tmp_path / "html").rglob("*.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= pages
    packages = {".".join(init.parent.relative_to(ROOT).parts) for init in (ROOT / "bcss_jax").rglob("__init__.py")}
    assert packages <= pages, "packages without an API page"
