"""The annotation page in a real browser: from clicks to the file, by mouse, by keyboard and by touch."""

import errno
import json
import os
import uuid

import numpy as np
import pytest
import shapely
from helpers.annotator_page import Annotator
from helpers.annotator_small import STROMA, TUMOR, DiscSegmenter, ServedAnnotator, slide_of_discs
from helpers.chromium import DESKTOP, PHONE, refused, screenshot
from helpers.disagreeing_models import boxes, write_models

from bcss_jax.common import files

WIDTH, HEIGHT = 1600, 1200
DISCS = [(400, 400, 150, TUMOR), (900, 500, 220, STROMA), (1200, 900, 100, TUMOR)]


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    slide = slide_of_discs(tmp_path / "case.png", WIDTH, HEIGHT, DISCS)
    with ServedAnnotator(slide, DiscSegmenter(512), mpp=0.5) as found:
        yield found


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def watched(browser, served, request):
    found = Annotator(browser, served, request.param)
    yield found
    found.page.close()


@pytest.fixture
def wide(browser, served):
    found = Annotator(browser, served, DESKTOP)
    yield found
    found.page.close()


def area(feature):
    return shapely.from_geojson(json.dumps(feature["geometry"]))


def overlap(feature, number):
    x, y, radius, _ = DISCS[number]
    disc = shapely.Point(x, y).buffer(radius, quad_segs=64)
    return shapely.intersection(area(feature), disc).area / shapely.union(area(feature), disc).area


def name(feature):
    return feature["properties"]["classification"]["name"]


def test_from_clicks_to_the_file(watched):
    watched.click(400, 400)
    assert watched.proposals() == ["1: 90 %", "2: 60 %", "3: 30 %"]
    watched.press("2")
    assert watched.page.locator("#choices [aria-pressed=true]").inner_text() == "2: 60 %"
    watched.press("1")
    watched.page.get_by_role("button", name="Accept", exact=True).click()
    watched.annotations(1)
    watched.press("Shift+Digit2")
    watched.click(900, 500)
    watched.proposals()
    watched.press("Enter")
    first, second = watched.annotations(2)
    assert (name(first), name(second)) == ("Tumor", "Stroma")
    assert overlap(first, 0) > 0.97 and overlap(second, 1) > 0.97
    assert first["properties"]["measurements"]["clicks"] == 1
    assert watched.page.locator("#saved").inner_text() == "yes" and watched.quiet()
    assert watched.page.evaluate("location.hash.includes('token')") is False


@pytest.mark.slow
def test_outlines_stand_where_the_click_was_at_every_zoom(wide):
    for zoom in (1, 1, 1, -1, -1, -1, -1):
        wide.click(400, 400)
        wide.proposals()
        wide.press("Enter")
        (found,) = wide.annotations(1)
        center = area(found).centroid
        assert abs(center.x - 400) < 4 and abs(center.y - 400) < 4 and overlap(found, 0) > 0.93
        drawn = screenshot(wide.page)
        x, y = (round(each) for each in wide.at(400 - 150, 400))
        if 0 < x < 900:
            here = drawn[y - 2 : y + 3, max(0, x - 6) : x + 7]
            assert (np.abs(here - (0xE6, 0x9F, 0)).sum(-1) < 60).any()  # the outline is on the edge of the disc
        wide.press("Control+z")
        wide.annotations(0)
        wide.page.mouse.move(*wide.at(400, 400))
        wide.page.mouse.wheel(0, -120 * zoom)
        wide.page.wait_for_timeout(600)
    assert wide.quiet()


@pytest.mark.slow
def test_a_click_outside_and_taking_it_back(wide):
    wide.press("b")
    wide.drag((200, 200), (1200, 760))
    wide.proposals()
    wide.page.keyboard.down("Alt")
    wide.click(1010, 400)
    wide.page.keyboard.up("Alt")
    wide.page.wait_for_function(
        "async () => (await import('/static/annotator/state.js')).state.prompt.points.length === 1"
    )
    points = "async () => (await import('/static/annotator/state.js')).state.prompt.points.map(each => each.inside)"
    assert wide.page.evaluate(points) == [False]
    wide.press("Backspace")
    assert wide.page.evaluate(points) == []
    wide.press("Backspace")
    assert wide.page.locator("#answer").is_hidden()
    wide.press("c", "x")
    wide.click(400, 400)
    assert wide.page.evaluate(points) == [False]
    wide.press("Escape")
    assert wide.page.locator("#answer").is_hidden() and wide.served.features == [] and wide.quiet()


@pytest.mark.slow
def test_brush_and_eraser(watched):
    watched.press("p")
    watched.drag((400, 900), (700, 900))
    (found,) = watched.annotations(1)
    left, top, right, bottom = area(found).bounds
    radius = (bottom - top) / 2
    assert abs(left + radius - 400) < 3 and abs(right - radius - 700) < 3 and abs(top + radius - 900) < 3
    watched.drag((690, 900), (690, 1050))  # extends it
    (extended,) = watched.annotations(1)
    watched.page.wait_for_function("() => document.getElementById('clicks').textContent === '2'")
    assert area(watched.served.features[0]).bounds[3] > bottom + 100
    watched.press("e", "]", "]", "]")
    watched.drag((550, 850), (550, 950))
    watched.page.wait_for_function("() => document.getElementById('clicks').textContent === '3'")
    assert area(watched.served.features[0]).geom_type == "MultiPolygon"
    watched.press("Control+z", "Control+z")
    watched.page.wait_for_function("() => !document.getElementById('redo').disabled")
    watched.press("Control+z")
    watched.annotations(0)
    watched.press("Control+y", "Control+Shift+z", "Control+y")
    watched.annotations(1)
    watched.page.wait_for_function("() => document.getElementById('redo').disabled")
    assert area(watched.served.features[0]).geom_type == "MultiPolygon" and watched.quiet()


@pytest.mark.slow
def test_everything_by_keyboard(wide):
    wide.page.locator("#view").focus()
    wide.press("0")
    wide.page.wait_for_timeout(600)
    wide.press("c", "Space")  # the middle of the slide lies in the large disc: (800, 600)
    wide.proposals()
    wide.press("Enter")
    (found,) = wide.annotations(1)
    assert overlap(found, 1) > 0.95
    wide.press("p", "Space", "ArrowDown", "ArrowDown", "ArrowDown", "Space")
    wide.annotations(1)
    wide.page.wait_for_function("() => document.getElementById('clicks').textContent === '2'")
    assert area(wide.served.features[0]).bounds[3] > 760
    wide.press("v", "Escape", "n", "Shift+Digit4")
    wide.page.wait_for_function("() => document.getElementById('selected-text').textContent.startsWith('Necrosis')")
    wide.press("Delete")
    wide.annotations(0)
    wide.press("Shift+?")
    assert wide.page.locator("#help").is_visible()
    wide.press("Escape")
    assert wide.page.locator("#help").is_hidden() and wide.quiet()


@pytest.mark.slow
def test_touch(browser, served):
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(served.url)
    page.wait_for_selector("html[data-started]")
    found = Annotator.__new__(Annotator)
    found.page, found.served = page, served
    page.touchscreen.tap(*found.at(400, 400))
    found.proposals()
    page.get_by_role("button", name="outside").tap()
    page.touchscreen.tap(*found.at(420, 700))
    page.wait_for_function("async () => (await import('/static/annotator/state.js')).state.prompt.points.length === 2")
    found.proposals()
    page.get_by_role("button", name="Accept", exact=True).tap()
    (annotation,) = found.annotations(1)
    assert overlap(annotation, 0) > 0.97
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    context.close()


@pytest.mark.slow
def test_two_browsers_show_the_work_of_both(browser, served):
    one, two = (Annotator(browser, served, DESKTOP) for _ in range(2))
    one.click(400, 400)
    one.proposals()
    one.press("Enter")
    two.annotations(1)
    two.click(1200, 900)
    two.proposals()
    two.press("Enter")
    assert len(one.annotations(2)) == 2
    one.press("Control+z")
    assert len(two.annotations(1)) == 1 and overlap(served.features[0], 2) > 0.95
    for each in (one, two):
        assert each.quiet()
        each.page.close()


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_work_is_saved_later(wide, monkeypatch):
    write = files.write_bytes

    def full(path, *arguments, **options):
        with files.storage_errors(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "write_bytes", full)
    wide.click(400, 400)
    wide.proposals()
    wide.press("Enter")
    wide.page.locator("#problem").wait_for(state="visible")
    text = wide.page.locator("#problem").inner_text()
    assert "Not saved" in text and "No space left on device" in text and "Download a copy" in text
    assert wide.page.locator("#saved").inner_text() == "no" and wide.served.features == []
    monkeypatch.setattr(files, "write_bytes", write)
    wide.page.locator("#problem").wait_for(state="hidden")
    assert len(wide.annotations(1)) == 1 and wide.quiet()


@pytest.mark.slow
def test_a_file_that_qupath_changed_is_taken_or_kept(wide):
    wide.click(400, 400)
    wide.proposals()
    wide.press("Enter")
    wide.annotations(1)
    path = wide.served.opened.path
    theirs = {
        "type": "Feature",
        "id": str(uuid.uuid4()),
        "geometry": {"type": "Polygon", "coordinates": [[[9, 9], [9, 99], [99, 99], [9, 9]]]},
        "properties": {"objectType": "annotation", "classification": {"name": "Stroma"}},
    }
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [theirs]}))
    wide.click(1200, 900)
    wide.proposals()
    wide.press("Enter")
    wide.page.get_by_role("button", name="Take the file's annotations").click()
    (found,) = wide.annotations(1)
    assert name(found) == "Stroma"
    wide.page.locator("#problem").wait_for(state="hidden")
    wide.press("Control+z")  # mine are there again
    assert len(wide.annotations(2)) == 2 and wide.quiet()


@pytest.mark.slow
def test_without_the_token_one_can_only_look(browser, served):
    found = Annotator(browser, served, DESKTOP, served.address + "/")
    assert found.page.locator("#readonly").is_visible()
    found.click(400, 400)
    found.page.wait_for_function("() => document.getElementById('message').textContent.includes('address')")
    assert served.features == []
    found.page.close()


def test_the_content_security_policy_is_enforced(wide):
    assert refused(wide.page) == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]


def test_from_one_region_in_dispute_to_the_next(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    slide = slide_of_discs(tmp_path / "case.png", WIDTH, HEIGHT, DISCS)
    shape = (2 * HEIGHT, 2 * WIDTH)  # labels of 0.25 um, so that a region is 512 pixels of the slide wide
    other = boxes(shape, (2200, 1600, 400, 400, 1), (640, 640, 320, 320, 1))  # around the third and the first disc
    results = write_models(tmp_path / "out/case", slide, {"a": boxes(shape), "b": other})
    with ServedAnnotator(slide, DiscSegmenter(512), mpp=0.5, start_from=results, next_region=True) as served:
        found = Annotator(browser, served, DESKTOP)
        text = found.page.locator("#region-text")
        assert text.inner_text().startswith("Region 1 of 2: 15 % of its area is in dispute. The models a and b dis")
        said = "said => document.getElementById('region-text').textContent.startsWith(said)"

        def seen():
            found.page.wait_for_timeout(700)  # the view moves
            return found.page.evaluate("async () => (await import('/static/annotator/slide.js')).seen()")

        x0, y0, x1, y1 = seen()
        assert x0 < 1100 and x1 > 1300 and y0 < 800 and y1 > 1000 and y1 - y0 < 700
        found.click(1200, 900)
        found.proposals()
        found.press("Enter")
        found.annotations(1)
        found.press("g")
        found.page.wait_for_function(said, arg="Region 2 of 2")
        assert "1 left to annotate" in text.inner_text()
        x0, y0, x1, y1 = seen()
        assert x0 < 320 and x1 > 480 and y0 < 320 and y1 > 480 and y1 - y0 < 700
        found.click(400, 400)
        found.proposals()
        found.press("Enter")
        found.annotations(2)
        found.page.get_by_role("button", name="Next region").click()
        found.page.wait_for_function(said, arg="All 2 regions")
        assert found.quiet()
        found.page.close()
