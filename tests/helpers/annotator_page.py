"""The annotation page in a browser."""

from helpers.chromium import Watched


class Annotator(Watched):
    """The page."""

    def __init__(self, browser, served, size, url=None):
        super().__init__(browser, size)
        self.served = served
        self.page.goto(url or served.url)
        self.page.wait_for_selector("html[data-started]")

    def at(self, x, y):
        """Returns where a pixel of level 0 is on the screen."""
        box = self.page.locator("#view").bounding_box()
        found = self.page.evaluate("async () => (await import('/static/annotator/slide.js')).transform()")
        return box["x"] + found["x"] + x * found["scale"], box["y"] + found["y"] + y * found["scale"]

    def click(self, x, y, **options):
        self.page.mouse.click(*self.at(x, y), **options)

    def drag(self, *points):
        self.page.mouse.move(*self.at(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(*point), steps=4)
        self.page.mouse.up()

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def proposals(self):
        """Waits until a prompt is answered, and returns what the buttons say."""
        self.page.wait_for_selector("#accept:not([disabled])")
        return self.page.locator("#choices button").all_inner_texts()

    def annotations(self, count):
        """Waits until there are so many annotations, and returns them as the file has them."""
        self.page.wait_for_function(
            "count => document.getElementById('count').textContent === String(count)", arg=count
        )
        return self.served.features

    def quiet(self):
        outside = [url for url in self.asked if not url.startswith(self.served.address)]
        return outside == [] and self.said == []
