"""The viewer in a real browser: tiles appear, the controls change the picture, and there are no other requests."""

import numpy as np
import pytest
from helpers.chromium import DESKTOP, PHONE, Watched, refused, screenshot
from helpers.slide_summaries import COLORS
from helpers.viewer_small import Served, blobs, write_result

WIDTH, HEIGHT = 900, 640
EVIL = "<img src=x onerror=window.hacked=1>_of_a_name_that_is_much_longer_than_any_screen_of_a_phone_is_wide"
LOADED = """() => {
    if (typeof viewer === "undefined") return false;
    const items = [...Array(viewer.world.getItemCount()).keys()].map(i => viewer.world.getItemAt(i));
    return items.length && items.length === images.length
        && items.every(item => item.getOpacity() === 0 || item.getFullyLoaded());
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewer")
    labels = blobs(HEIGHT, WIDTH, (0, 1, 2), cell=90)
    write_result(folder / "out/a/unet", folder / "a.png", WIDTH, HEIGHT, labels)
    write_result(folder / "out/a/other", folder / "a.png", WIDTH, HEIGHT, 2 - labels % 3, model="other")
    write_result(folder / "out/evil", folder / f"{EVIL}.png", WIDTH, HEIGHT, labels, model=EVIL, names=(EVIL, "stroma"))
    write_result(folder / "out/gone", folder / "gone.png", WIDTH, HEIGHT, labels)
    (folder / "gone.png").unlink()
    moved = dict(zip(("tumor", "stroma", "macro"), (0.9123, 0.8, 0.8562), strict=True))
    write_result(folder / "out/moved", folder / "moved.png", WIDTH, HEIGHT, labels, scores={"dice": moved})
    (folder / "slides/somewhere").mkdir(parents=True)
    (folder / "moved.png").rename(folder / "slides/somewhere/moved.png")
    (folder / "out/damaged").mkdir()
    (folder / "out/damaged/summary.json").write_text("{")
    with Served(folder / "out", slides=folder / "slides") as found:
        yield found


class Viewer(Watched):
    """A page of the viewer."""

    def __init__(self, browser, served, size):
        super().__init__(browser, size)
        self.address = f"http://127.0.0.1:{served.port}"

    def open(self, path):
        self.page.goto(self.address + path)
        return self.page

    def slide(self, path):
        self.open(path)
        self.settle()
        return self.page

    def settle(self):
        self.page.wait_for_function(LOADED)
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def seen(self):
        """Returns the pixels in the middle of the slide on the screen, away from buttons and map: int [h, w, 3]."""
        self.settle()
        box = self.page.locator("#view").bounding_box()
        clip = {"x": box["x"] + box["width"] * 0.3, "y": box["y"] + box["height"] * 0.35,
                "width": box["width"] * 0.4, "height": box["height"] * 0.3}  # fmt: skip
        return screenshot(self.page, clip=clip)

    def quiet(self):
        outside = [url for url in self.asked if not url.startswith(self.address)]
        return outside == [] and self.said == []


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def watched(browser, served, request):
    found = Viewer(browser, served, request.param)
    yield found
    found.page.close()


@pytest.fixture
def wide(browser, served):
    found = Viewer(browser, served, DESKTOP)
    yield found
    found.page.close()


def opacity(page, value):
    page.locator("#opacity").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def alike(seen, color):
    """Returns the share of the pixels that have about this color."""
    return (np.abs(seen - color).max(-1) < 40).mean()


def test_the_slide_appears_and_the_slider_fades_the_result_over_it(watched):
    page = watched.slide("/result/out/a/unet")
    at_40 = watched.seen()
    assert page.locator("#loading").is_hidden()
    assert page.locator("#percent").inner_text() == "40 %"
    opacity(page, 0)
    slide = watched.seen()
    assert slide.std((0, 1)).min() > 5 and abs(slide.mean() - 160) < 40  # tissue, not blank
    assert alike(slide, COLORS["tumor"]) < 0.01
    opacity(page, 100)
    result = watched.seen()
    shares = [alike(result, color) for color in COLORS.values()]
    assert min(shares) > 0.1 and sum(shares) > 0.5
    assert np.abs(at_40 - slide).mean() > 5 and np.abs(at_40 - result).mean() > 5
    mixed = 0.6 * slide + 0.4 * result
    assert np.abs(at_40 - mixed).mean() < 3
    assert watched.quiet()


def test_a_class_is_hidden_and_shown_without_a_request(watched):
    page = watched.slide("/result/out/a/unet")
    opacity(page, 100)
    both, asked = watched.seen(), len(watched.asked)
    page.get_by_label("tumor").uncheck()
    without = watched.seen()
    assert alike(both, COLORS["tumor"]) > 0.1 and alike(without, COLORS["tumor"]) < 0.01
    assert abs(alike(without, COLORS["stroma"]) - alike(both, COLORS["stroma"])) < 0.01
    page.get_by_label("stroma").uncheck()
    assert alike(watched.seen(), COLORS["stroma"]) < 0.01
    page.get_by_label("tumor").check()
    page.get_by_label("stroma").check()
    np.testing.assert_array_equal(watched.seen(), both)
    assert len(watched.asked) == asked and watched.quiet()


def test_outlines_leave_the_tissue_visible(wide):
    page = wide.slide("/result/out/a/unet")
    opacity(page, 0)
    slide, asked = wide.seen(), len(wide.asked)
    page.get_by_label("Outlines").check()
    assert page.locator("#percent").inner_text() == "100 %"
    outlined = wide.seen()
    changed = (np.abs(outlined - slide).max(-1) > 20).mean()
    assert 0.005 < changed < 0.4
    assert len(wide.asked) == asked
    page.get_by_label("Areas").check()
    assert page.locator("#opacity").input_value() == "0"
    np.testing.assert_array_equal(wide.seen(), slide)
    assert wide.quiet()


def test_areas_and_outlines_are_painted_pixel_for_pixel(wide):
    page = wide.slide("/result/out/a/unet")
    labels = blobs(60 + 4, 80 + 4, cell=25)
    inner = labels[2:-2, 2:-2]
    for shown in ([1, 2], [2], []):
        for kind in ("areas", "outlines"):
            painted = page.evaluate(
                f"""([labels, shown]) => {{
                    const colors = palette(value => shown.includes(Number(value)));
                    const pixels = {kind}(Uint8Array.from(labels), 80, 60, colors);
                    return [...new Uint8Array(pixels.buffer)];
                }}""",
                [labels.ravel().tolist(), shown],
            )
            truth = np.zeros((60, 80, 4), np.uint8)
            for value, color in enumerate(COLORS.values(), 1):
                if value in shown:
                    truth[inner == value] = (*color, 255)
            if kind == "outlines":
                for row, column in np.ndindex(inner.shape):
                    if (labels[row : row + 5, column : column + 5] == inner[row, column]).all():
                        truth[row, column] = 0
                assert truth.any(-1).mean() < 0.5
            np.testing.assert_array_equal(np.reshape(painted, truth.shape), truth)


def test_the_page_shows_that_tiles_are_loading(wide):
    wide.page.route("**/*.labels", lambda route: None)  # they never arrive
    page = wide.open("/result/out/a/unet")
    page.wait_for_function("() => typeof viewer !== 'undefined' && viewer.world.getItemCount() === 2")
    page.wait_for_function("() => viewer.world.getItemAt(0).getFullyLoaded()")
    assert page.locator("#loading").is_visible() and page.locator("#failed").is_hidden()
    wide.page.unroute("**/*.labels")


def test_the_page_shows_that_tiles_cannot_be_read(wide):
    wide.page.route("**/*.labels", lambda route: route.fulfill(status=503, body="damaged"))
    page = wide.open("/result/out/a/unet")
    page.locator("#failed").wait_for(state="visible")
    assert "cannot be read" in page.locator("#failed").inner_text()


def test_keyboard_and_buttons(wide):
    page = wide.slide("/result/out/a/unet")
    page.locator("#opacity").focus()
    page.keyboard.press("Home")
    assert page.locator("#percent").inner_text() == "0 %"
    before, length = wide.seen(), page.locator("#length").inner_text()
    page.get_by_label("Zoom in").click()
    page.wait_for_function("before => document.getElementById('length').textContent !== before", arg=length)
    page.wait_for_timeout(800)  # the animation
    assert np.abs(wide.seen() - before).mean() > 2
    page.get_by_label("Whole slide").click()
    page.wait_for_function("before => document.getElementById('length').textContent === before", arg=length)
    page.wait_for_timeout(800)
    assert np.abs(wide.seen() - before).mean() < 3
    assert wide.quiet()


def test_the_length_of_the_scale_bar_is_correct(wide):
    page = wide.slide("/result/out/a/unet")
    zoom = page.evaluate("viewer.viewport.getZoom(true) * viewer.viewport.getContainerSize().x")
    per_pixel = 0.25 * WIDTH / zoom  # um of a screen pixel
    number, unit = page.locator("#length").inner_text().split()
    length = page.locator("#bar").evaluate("bar => bar.style.width")
    assert unit == "µm" and abs(float(length.removesuffix("px")) * per_pixel - float(number)) < 0.1
    assert 40 < float(length.removesuffix("px")) <= 140


def test_the_other_model_is_shown_at_the_same_place(wide):
    page = wide.slide("/result/out/a/unet")
    page.get_by_label("Zoom in").click()
    page.wait_for_function("() => location.hash.length > 1")
    page.wait_for_timeout(900)
    place = page.evaluate("location.hash")
    opacity(page, 100)
    first = wide.seen()
    page.get_by_label("Model").select_option("other")
    page.wait_for_url("**/out/a/other**")
    wide.settle()
    assert page.evaluate("location.hash") == place
    opacity(page, 100)
    assert np.abs(wide.seen() - first).mean() > 20
    opacity(page, 0)
    without = wide.seen()
    page.go_back()
    wide.settle()
    opacity(page, 0)
    assert np.abs(wide.seen() - without).mean() < 2 and wide.quiet()


def test_the_list_links_to_the_slides(watched):
    page = watched.open("/")
    assert page.locator(".card").count() == 5 and "5 segmented slides" in page.locator("h1").inner_text()
    assert "damaged/summary.json: expected the summary" in page.locator(".note").inner_text()
    page.locator("img").first.scroll_into_view_if_needed()
    page.wait_for_function("() => document.images[0].complete && document.images[0].naturalWidth > 100")
    page.get_by_role("link", name="a.png").click()
    watched.settle()
    assert page.title() == "a.png"
    page.get_by_text("All slides").click()
    page.get_by_role("link", name="out/damaged").click()
    assert "expected the summary" in page.locator(".note").first.inner_text() and watched.quiet()


def test_the_result_of_a_missing_slide_is_shown_on_white(wide):
    page = wide.slide("/result/out/gone")
    assert "the slide is not there any more" in page.locator(".note").first.inner_text()
    opacity(page, 100)
    seen = wide.seen()
    shares = [alike(seen, color) for color in (*COLORS.values(), (255, 255, 255))]
    assert min(shares) > 0.05 and sum(shares) > 0.9 and wide.quiet()


def test_a_slide_that_was_moved_is_shown_with_its_scores(wide):
    page = wide.slide("/result/out/moved")
    opacity(page, 0)
    slide = wide.seen()
    assert slide.std((0, 1)).min() > 5 and abs(slide.mean() - 160) < 40  # tissue, not blank
    assert page.locator(".note:visible").count() == 0
    assert "slides/somewhere/moved.png" in page.locator("#moved").inner_text()
    assert [text.split()[-1] for text in page.locator("tbody tr").all_inner_texts()] == ["0.912", "0.800"]
    assert "0.856" in page.locator("dl").inner_text() and wide.quiet()


def test_names_from_files_are_plain_text_and_pages_do_not_scroll_sideways(watched):
    width = watched.page.viewport_size["width"]
    for path in ("/", "/result/out/evil", "/result/out/gone", "/result/out/moved", "/result/out/damaged"):
        page = watched.open(path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [width, width]
    page = watched.slide("/result/out/evil")
    assert EVIL in page.locator("h1").inner_text() and EVIL in page.locator("tbody").inner_text()
    assert page.evaluate("typeof window.hacked") == "undefined" and watched.quiet()


def test_the_content_security_policy_is_enforced(wide):
    page = wide.slide("/result/out/a/unet")
    assert refused(page) == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
