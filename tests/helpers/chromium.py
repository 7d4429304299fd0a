"""Pages in a real browser, headless Chromium, with their console messages and requests.

Needs Chromium on the system (Debian: `apt-get install chromium`) and `pip install -e '.[test,browser]'`; tests that
import this are skipped without.
"""

import contextlib
import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="no driver for a browser: pip install -e '.[browser]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium on this system", allow_module_level=True)

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextlib.contextmanager
def chromium():
    """Yields the browser."""
    # In a container the browser is often started by root, for whom it offers no sandbox.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


class Watched:
    """A page with its console messages and requests."""

    def __init__(self, browser, size):
        self.said, self.asked = [], []
        self.page = browser.new_page(viewport=size)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))


def refused(page):
    """Returns what the policy of the page blocks: loading from other sites, running scripts that are added later."""
    page.evaluate("""() => {
        window.refused = [];
        document.addEventListener("securitypolicyviolation", event => refused.push(event.effectiveDirective));
        document.body.append(Object.assign(new Image(), {src: "http://127.0.0.1:9/x.png"}));
        document.body.append(Object.assign(document.createElement("script"), {textContent: "window.hacked = 1"}));
        document.body.append(Object.assign(document.createElement("link"), {rel: "stylesheet", href: "http://127.0.0.1:9/x.css"}));
        fetch("http://127.0.0.1:9/").catch(() => {});
    }""")
    page.wait_for_function("() => refused.length >= 4")
    assert page.evaluate("typeof window.hacked") == "undefined"
    return page.evaluate("refused.sort()")


def screenshot(source, **options):
    """Returns the picture of a page or an element: int [h, w, 3]."""
    return np.asarray(Image.open(io.BytesIO(source.screenshot(**options))).convert("RGB"), int)
