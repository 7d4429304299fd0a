"""Files, sections and pictures that README, CONTRIBUTING and docs name exist."""

import re

import pytest
from helpers.doc_blocks import PAGES
from helpers.paths import ROOT

ALL = [*PAGES, ROOT / "docs" / "index.md"]
FILE = re.compile(r"`((?:bcss_jax|tests|configs|launch|benchmarks|docs)/[\w/.-]*\w)/?`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def _sections(text):
    """Names of a page's sections as GitHub and MyST make them from headings, and those that are set by hand."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    named = FILE.findall(page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if link.startswith("https://"):
            continue
        file, _, section = link.partition("#")
        target = page.parent / file if file else page
        assert target.is_file(), f"{page.name}: {link}"
        assert not section or section in _sections(target.read_text()), f"{page.name}: no section {link}"


def test_readme_is_short_and_shows_a_slide_near_the_top():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert any("docs/slide.jpg" in line for line in lines[:12])


def test_files_in_the_figures_exist():
    source = (ROOT / "docs" / "draw_figures.py").read_text()
    named = re.findall(r'"((?:data|models|training|inference|slides|losses)[\w/]*(?:\.py|/\w+))"', source)
    assert len(named) >= 16
    assert [name for name in named if not (ROOT / "bcss_jax" / name).exists()] == []
    layers = re.findall(r'^    \("(\w+)/", "', source, re.M)
    folders = {path.name for path in (ROOT / "bcss_jax").iterdir() if (path / "__init__.py").exists()}
    assert set(layers) == folders
