"""A slide of colored discs, a network that finds them by their color, and a server of both, for tests of annotating."""

import contextlib
import http.client
import json

import numpy as np
from PIL import Image
from scipy.ndimage import label as connected

from bcss_jax.annotator.opened_slide import AnnotateSettings, open_annotator
from bcss_jax.prompting import Prediction
from bcss_jax.slides.prompts.object_prompt import INSIDE
from helpers.served_app import served_app

TOKEN = "a-token-of-tests"
GLASS = (240, 238, 242)
TUMOR, STROMA = (150, 60, 150), (230, 150, 180)


def slide_of_discs(path, width, height, discs):
    """Writes an image with discs (x, y, radius, color) on glass."""
    ys, xs = np.mgrid[0:height, 0:width] + 0.5
    pixels = np.full((height, width, 3), GLASS, np.uint8)
    for x, y, radius, color in discs:
        pixels[(xs - x) ** 2 + (ys - y) ** 2 <= radius**2] = color
    Image.fromarray(pixels).save(path)
    return path


class DiscSegmenter:
    """Stands in for a network: a mask is the disc under each point inside, or in the middle of the box.

    The three masks are that, the same without its left half, and everything that is not glass.
    """

    def __init__(self, side=128):
        self.side, self.identity, self.encoded = side, "discs", 0
        self.masks_given = []

    def encode(self, image):
        self.encoded += 1
        return {"embedding": image.astype(np.float32)}

    def predict(self, embedding, view, prompt, mask):
        self.masks_given.append(mask is not None)
        image = embedding["embedding"]
        height, width = image.shape[:2]
        found = np.zeros((height, width), bool)
        points, labels = prompt.points, prompt.labels
        if points is None:
            points, labels = np.reshape(prompt.box, (2, 2)).mean(0, keepdims=True), np.array([INSIDE])
        columns, rows = np.floor(view.from_level0(points)).astype(int).clip(0, (width - 1, height - 1)).T
        for row, column, label in zip(rows, columns, labels, strict=True):
            off = np.abs(image - image[row, column]).sum(-1)
            alike = (off < np.abs(image - GLASS).sum(-1)) & (
                off < np.abs(np.subtract(GLASS, image[row, column])).sum() / 2
            )
            disc = connected(alike)[0]
            disc = alike & (disc == disc[row, column])
            found = found | disc if label == INSIDE else found & ~disc
        if prompt.box is not None:
            ys, xs = np.mgrid[0:height, 0:width] + 0.5
            x0, y0, x1, y1 = view.from_level0(np.reshape(prompt.box, (2, 2))).ravel()
            found &= (xs > x0) & (xs < x1) & (ys > y0) & (ys < y1)
        half = found.copy()
        if found.any():
            half[:, : int(np.nonzero(found)[1].mean())] = False
        tissue = np.abs(image - GLASS).sum(-1) > 60
        logits = np.where(np.stack([found, half, tissue]), 5, -5).astype(np.float32)
        scores = np.array([0.9, 0.6, 0.3], np.float32)
        several = Prediction(logits, scores, logits[:, ::4, ::4])
        return several, Prediction(*(array[:1] for array in several))

    def prepare(self, embedding, view):
        self.prepared = True


class ServedAnnotator:
    """A slide that is annotated on a free port; `settings` are those of `AnnotateSettings` but the model."""

    def __init__(self, slide, segmenter=None, **settings):
        self.lines = []
        self.segmenter = segmenter or DiscSegmenter()
        self._settings = AnnotateSettings(
            slide=slide, model=slide.with_name("no model"), **{"labels": "five_classes"} | settings
        )
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        opened = open_annotator(self._settings, lambda: (self.segmenter, "a stand-in"), self.lines.append)
        self.opened = self._stack.enter_context(opened)
        self.port = self._stack.enter_context(served_app(self.opened.application(TOKEN, ("127.0.0.1",))))
        self.address = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *exception):
        self._stack.close()

    @property
    def url(self):
        return f"{self.address}/#token={TOKEN}"

    @property
    def features(self):
        """The annotations in the file."""
        path = self.opened.path
        return json.loads(path.read_bytes())["features"] if path.exists() else []

    def request(self, method, path, body=None, headers=None):
        """Returns status, headers and content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found

    def post(self, name, values, status=200, **headers):
        """Returns the content of the answer."""
        headers = {"content-type": "application/json", "x-annotate-token": TOKEN} | headers
        found, _, content = self.request("POST", f"/{name}", json.dumps(values), headers)
        assert found == status, content
        return json.loads(content) if content.startswith(b"{") else content.decode()

    def edit(self, name, values, status=200):
        """Posts an edit with some work."""
        return self.post(name, {"clicks": 1, "seconds": 2.0, "since": -1} | values, status)

    def state(self, since=-1):
        return json.loads(self.request("GET", f"/state/{since + 1}")[2])
