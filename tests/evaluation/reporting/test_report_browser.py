"""report.html in a real browser: opened from disk, without network, with mouse and keyboard, wide and narrow."""

import numpy as np
import pytest
from helpers.chromium import DESKTOP, PHONE, Watched, refused, screenshot
from helpers.evaluation_small import differences, evaluation, results

from bcss_jax.evaluation.reporting import report
from bcss_jax.labels import SCHEMES

EVIL = "run_<script>window.hacked=1</script>_of_a_name_that_is_much_longer_than_any_screen_of_a_phone_is_wide"
OPACITIES = "card => [...card.querySelectorAll('.layer')].map(layer => Number(getComputedStyle(layer).opacity))"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    evil, gallery = evaluation(EVIL)
    evil["folder"] = "evil"
    gallery = [entry | {"key": EVIL.replace("_", "")} for entry in gallery]  # no place for a line break
    five, of_five = evaluation("five", SCHEMES["five_classes"], seed=2)
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(path, results(evil, five, paired=[differences(EVIL, "five")]), {"evil": gallery, "five": of_five})
    return path


class Report(Watched):
    """A page with the report."""

    def __init__(self, browser, file, size):
        super().__init__(browser, size)
        self.page.goto(file.as_uri())

    def outside(self):
        """Returns the requests for anything outside the page."""
        return [url for url in self.asked if not url.startswith("data:")]


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def watched(browser, file, request):
    found = Report(browser, file, request.param)
    yield found
    found.page.close()


def test_it_is_complete_and_makes_no_requests_or_errors(watched, file):
    page = watched.page
    for summary in page.locator("summary").all():
        summary.click()
    sizes = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert len(sizes) > 30 and all(complete and min(natural, shown) > 0 for complete, natural, shown in sizes)
    assert page.locator("h2").all_inner_texts()[0] == "Summary" and page.locator("h2").count() == 8
    assert EVIL in page.locator("#summary").inner_text()
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert watched.outside() == [file.as_uri()]
    assert watched.said == []


def test_the_policy_is_in_force(browser, file):
    watched = Report(browser, file, DESKTOP)
    assert refused(watched.page) == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
    watched.page.close()


def test_the_slider_shows_the_pictures_by_keyboard(watched):
    page = watched.page
    card = page.locator(".card").first
    slider, stack = card.locator("input"), card.locator(".stack")
    slider.focus()
    shown, at = [], [0, 1, 2, 3]
    for stop in at:
        assert float(slider.input_value()) == stop
        assert card.evaluate(OPACITIES) == [float(stop == i) for i in (1, 2, 3)]
        assert slider.get_attribute("aria-valuetext") == ("image", "truth", "prediction", "errors")[stop]
        assert card.locator(".stops .now").inner_text() == slider.get_attribute("aria-valuetext")
        shown.append(screenshot(stack))
        for _ in range(4):
            page.keyboard.press("ArrowRight")
    for one in at:
        for other in at[:one]:
            assert np.abs(shown[one] - shown[other]).max(-1).mean() > 2
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    assert card.evaluate(OPACITIES) == [0, 0.5, 0.5]
    assert slider.get_attribute("aria-valuetext") == "between prediction and errors"
    page.keyboard.press("Home")
    np.testing.assert_array_equal(screenshot(stack), shown[0])
    others = page.locator(".card").nth(1)
    assert others.evaluate(OPACITIES) == [0, 0, 0]
    assert watched.said == []


def test_the_slider_and_its_stops_by_mouse(watched):
    card = watched.page.locator(".card").nth(1)
    slider = card.locator("input")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    watched.page.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert slider.input_value() == "3" and card.evaluate(OPACITIES) == [0, 0, 1]
    card.get_by_text("truth", exact=True).click()
    assert slider.input_value() == "1" and card.evaluate(OPACITIES) == [1, 0, 0]


def test_nothing_is_wider_than_the_screen(watched):
    page, width = watched.page, watched.page.viewport_size["width"]
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [width, width]
    outside = page.evaluate("""() => [...document.querySelectorAll("body *")]
        .filter(each => !each.closest(".scroll, pre") || each.matches(".scroll, pre"))
        .filter(each => each.getBoundingClientRect().right > innerWidth + 0.5)
        .map(each => each.outerHTML.slice(0, 80))""")
    assert outside == []
    if width == PHONE["width"]:
        tables = page.locator("#scores .scroll").first
        assert tables.evaluate("each => each.scrollWidth > each.clientWidth")
        tables.evaluate("each => { each.scrollLeft = 1000 }")
        # The names stay visible.
        assert 0 <= tables.locator("tbody th").first.bounding_box()["x"] < 30


def test_narrow_screens_get_narrow_curves(browser, file):
    shapes = []
    for size in (DESKTOP, PHONE):
        watched = Report(browser, file, size)
        shapes.append(watched.page.locator(".curves img").evaluate("i => i.clientWidth / i.clientHeight"))
        watched.page.close()
    assert shapes[0] > 1.5 and shapes[1] < 1
