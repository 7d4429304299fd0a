"""Small results of segmented slides, and a reader of slides without processes, for tests of the viewer."""

import dataclasses
import http.client
import io
import json
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import tifffile
from PIL import Image

from bcss_jax.slides.batch.slide_folder import fingerprints
from bcss_jax.slides.grid import Grid
from bcss_jax.viewer import server
from bcss_jax.viewer.slide_files import SlideFiles
from helpers.served_app import served_app
from helpers.slide_summaries import slide_summary

TILE = 64


def blobs(height, width, values=(0, 1, 2, 255), cell=23, seed=0):
    """Returns labels in patches of `cell` pixels with rough edges: uint8 [height, width]."""
    random = np.random.default_rng(seed)
    coarse = random.choice(values, (height // cell + 2, width // cell + 2)).astype(np.uint8)
    rows, columns = np.indices((height, width)) + random.integers(0, 6, (2, height, width))
    return coarse[rows // cell, columns // cell]


def pyramid(labels, smallest=TILE):
    """Returns levels of half the size (rounded up), which take the upper left of four pixels."""
    levels = [labels]
    while max(levels[-1].shape) > smallest:
        levels.append(levels[-1][::2, ::2])
    return levels


def write_labels(path, levels):
    with tifffile.TiffWriter(path, ome=True) as file:
        for number, level in enumerate(levels):
            file.write(
                level,
                tile=(TILE, TILE),
                compression="zlib",
                photometric="minisblack",
                subifds=len(levels) - 1 if number == 0 else None,
                subfiletype=1 if number else 0,
                metadata={"axes": "YX"} if number == 0 else None,
            )


def summary(slide, width, height, grid_shape, mpp=0.25, **more):
    """Returns the content of a summary.json; `more` is as in `slide_summary`."""
    rows, columns = grid_shape
    grid = Grid(columns, rows, mpp, (width / columns, height / rows))
    pixels = (12_000_000, 24_000_000)  # 0.75 and 1.5 mm2 at 0.25 um per pixel
    return slide_summary(slide, width, height, grid, **{"pixels": pixels} | more).to_json()


def tissue(height, width, seed=0):
    """Returns a pink picture with structure: uint8 [height, width, 3]."""
    texture = blobs(height, width, np.arange(20, 120), 9, seed)
    return np.stack([235 - texture // 3, 170 - texture, 205 - texture // 2], -1).astype(np.uint8)


def write_result(folder, slide, width, height, labels, **options):
    """Writes a folder with the result of one slide, and the slide if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    if not slide.exists():
        Image.fromarray(tissue(height, width)).save(slide)
    write_labels(folder / "labels.ome.tif", pyramid(labels))
    options["identity"] = {"files": fingerprints(slide)}
    (folder / "summary.json").write_text(json.dumps(summary(slide, width, height, labels.shape, **options)))


@dataclasses.dataclass(frozen=True)
class Block:
    pixels: np.ndarray
    unreadable: np.ndarray | None


class Pool:
    """Stands in for `ReaderPool`: reads an image whole and returns means of squares of its pixels."""

    def __init__(self, path, processes):
        self.pixels = np.asarray(Image.open(path).convert("RGB"))
        self.info = SimpleNamespace(width=self.pixels.shape[1], height=self.pixels.shape[0])
        self.closed = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.closed = True

    def submit(self, grid, x, y, width, height):
        step = int(grid.scale[0])
        assert grid.scale == (step, step) and grid.width == -(-self.info.width // step)
        future = Future()
        future.set_result(Block(means(self.pixels, step)[y : y + height, x : x + width], None))
        return future


def means(pixels, step):
    """Returns means over squares of `step` pixels; the last pixels are repeated at the right and lower edge."""
    height, width = pixels.shape[:2]
    pixels = np.pad(pixels, ((0, -height % step), (0, -width % step), (0, 0)), mode="edge").astype(float)
    rows, columns = pixels.shape[0] // step, pixels.shape[1] // step
    return np.round(pixels.reshape(rows, step, columns, step, 3).mean((1, 3))).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    content: bytes

    @property
    def text(self):
        return self.content.decode()

    @property
    def image(self):
        return Image.open(io.BytesIO(self.content))


class Served:
    """Serves a folder on a free port, and requests paths without normalizing them."""

    def __init__(self, folder, open_pool=Pool, allowed_hosts=("127.0.0.1",), slides=None):
        self._served = served_app(server.application(folder, open_pool, SlideFiles(slides), allowed_hosts))

    def __enter__(self):
        self.port = self._served.__enter__()
        return self

    def __exit__(self, *exception):
        self._served.__exit__(*exception)

    def get(self, path, headers=None, method="GET"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        found = Answer(answer.status, answer.headers, answer.read())
        connection.close()
        return found
