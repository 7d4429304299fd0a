"""Prompts on a slide: outlines stand where the thing is, at every zoom; views are kept and computed once."""

import threading

import numpy as np
import pytest
import shapely
from helpers.annotator_small import STROMA, TUMOR, DiscSegmenter, slide_of_discs

from bcss_jax.annotator.drawing.geojson_file import SlideFacts
from bcss_jax.annotator.proposals import embeddings
from bcss_jax.annotator.proposals.engine import Engine
from bcss_jax.annotator.proposals.view_grid import Key, ViewGrid
from bcss_jax.errors import DataError
from bcss_jax.prompting import Prediction
from bcss_jax.slides.prompts.object_prompt import ObjectPrompt
from bcss_jax.slides.reading.reader_pool import Block, ReaderPool

WIDTH, HEIGHT = 1500, 1130
DISCS = [(201, 303.5, 40, TUMOR), (640, 560, 130, STROMA), (1460, 1100, 60, TUMOR), (1000, 300, 9, TUMOR)]
SECONDS = 60


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    path = slide_of_discs(tmp_path_factory.mktemp("discs") / "case.png", WIDTH, HEIGHT, DISCS)
    with ReaderPool(path, 1) as found:
        yield found


def engine(pool, root=None, mpp=(0.5, 0.5), side=128):
    return Engine(pool, SlideFacts("case.png", (WIDTH, HEIGHT), mpp, (0, 0)), DiscSegmenter(side), root, "digest")


def clicked(*points):
    return ObjectPrompt(np.array(points, float), np.ones(len(points), int))


def overlap(area, other):
    return shapely.intersection(area, other).area / shapely.union(area, other).area


def disc(number):
    x, y, radius, _ = DISCS[number]
    return shapely.Point(x, y).buffer(radius, quad_segs=64).intersection(shapely.box(0, 0, WIDTH, HEIGHT))


@pytest.mark.parametrize("mpp", [(0.5, 0.5), (0.25, 0.3), (0.31, 0.25)])
def test_the_outline_stands_on_the_disc_at_every_zoom(pool, mpp):
    found = engine(pool, mpp=mpp, side=256)
    for number, zooms in ((0, (1, 2)), (1, (3, 6)), (2, (1, 2)), (3, (0.25, 0.5))):
        x, y, radius, _ = DISCS[number]
        for zoom in zooms:
            answer = found.prompt(clicked((x - radius / 4, y - radius / 3)), zoom * min(mpp), None, SECONDS)
            best = answer.proposals[0]
            coarse = zoom * max(mpp) / min(mpp) / radius  # pixels of the view, compared with the disc
            assert overlap(best.area, disc(number)) > 1 - max(0.01, 1.2 * coarse), (number, zoom)
            center = shapely.centroid(best.area)
            assert shapely.distance(center, shapely.centroid(disc(number))) < 0.25 * zoom * max(mpp) / min(mpp)
    found.close()


def test_the_best_proposal_comes_first_and_all_are_different(pool):
    found = engine(pool)
    answer = found.prompt(clicked((640, 560)), 2.0, None, SECONDS)
    assert [round(each.score, 2) for each in answer.proposals] == [0.9, 0.6, 0.3]
    assert overlap(answer.proposals[1].area, answer.proposals[0].area) < 0.6
    assert found.proposal(answer.number, 1).area.equals(answer.proposals[1].area)
    assert found.proposal(answer.number, 3) is None and found.proposal(99, 0) is None
    found.close()


def test_points_and_boxes_choose_a_view_that_holds_them_all(pool):
    found = engine(pool)
    both = found.prompt(clicked((201, 303), (1440, 1080)), 0.5, None, SECONDS)
    assert overlap(both.proposals[0].area, shapely.union(disc(0), disc(2))) > 0.85
    box = found.prompt(ObjectPrompt(None, None, (500, 420, 780, 700)), 0.5, None, SECONDS)
    assert overlap(box.proposals[0].area, disc(1)) > 0.95
    outside = ObjectPrompt(np.array([[640, 560], [201, 303.0]]), np.array([1, 0]))
    assert overlap(found.prompt(outside, 2.0, None, SECONDS).proposals[0].area, disc(1)) > 0.96
    found.close()


class MarkedSegmenter(DiscSegmenter):
    """Its mask is a rectangle of the view with a hole of one pixel, and a part of four pixels beside it."""

    def predict(self, embedding, view, prompt, mask):
        logits = np.full((1, view.height, view.width), -4, np.float32)
        logits[0, 20:60, 30:90] = 3
        logits[0, 40, 50] = -2
        logits[0, 100:102, 10:12] = 1
        found = Prediction(logits, np.array([0.9], np.float32), logits)
        return found, found


def test_specks_are_left_out_but_where_a_point_was_set(pool):
    found = Engine(pool, SlideFacts("case.png", (WIDTH, HEIGHT), (0.5, 0.5), (0, 0)), MarkedSegmenter(), None, "digest")
    key = found._views.key_for((640, 560, 640, 560), found._views.level(0.5))
    view = found._views.view(key)
    whole, hole, speck = view.to_level0(np.array([[40.5, 30.5], [50.5, 40.5], [10.5, 100.5]]))

    def parts_and_holes(*labeled):
        points, labels = zip(*labeled, strict=True)
        answer = found._answered(key, {}, ObjectPrompt(np.array(points), np.array(labels)), None)
        parts = shapely.get_parts(answer.proposals[0].area)
        return len(parts), shapely.get_num_interior_rings(parts).sum()

    assert parts_and_holes((whole, 1)) == (1, 0)
    assert parts_and_holes((whole, 1), (hole, 0)) == (1, 1)
    assert parts_and_holes((whole, 1), (speck, 1)) == (2, 0)
    assert parts_and_holes((whole, 1), (speck, 0)) == (1, 0)
    found.close()


def test_the_mask_of_the_answer_before_is_given_back_in_the_same_view(pool):
    found = engine(pool)
    first = found.prompt(clicked((640, 560)), 2.0, None, SECONDS)
    given = found._segmenter.masks_given
    found.prompt(clicked((640, 560), (650, 560)), 2.0, (first.number, 0), SECONDS)
    assert given == [False, True]
    found.prompt(clicked((640, 560), (201, 303)), 2.0, (first.number, 0), SECONDS)  # needs another view
    assert given[2:] == [False]
    found.close()


def test_views_are_computed_once_and_kept_on_the_disk(pool, tmp_path):
    found = engine(pool, tmp_path)
    for _ in range(3):
        found.prompt(clicked((201, 303)), 0.5, None, SECONDS)
    assert found._segmenter.encoded == 1
    found.look((100, 200, 400, 500), 0.5)
    pause = threading.Event()
    for _ in range(200):
        ready, of = found.look((100, 200, 400, 500), 0.5)
        if ready == of:
            break
        pause.wait(0.05)
    assert ready == of == 9
    count = found._segmenter.encoded
    for _ in range(100):
        if len(list(tmp_path.glob("digest/discs_*/*.npz"))) == count:
            break
        pause.wait(0.05)
    found.close()
    again = engine(pool, tmp_path)
    first = again.prompt(clicked((201, 303)), 0.5, None, SECONDS)
    assert again._segmenter.encoded == 0 and overlap(first.proposals[0].area, disc(0)) > 0.97
    for path in tmp_path.glob("digest/discs_*/*.npz"):
        path.write_bytes(path.read_bytes()[:100])  # damaged
    again.close()
    last = engine(pool, tmp_path)
    last.prompt(clicked((201, 303)), 0.5, None, SECONDS)
    assert last._segmenter.encoded == 1
    last.close()


def test_what_was_kept_for_other_views_is_not_used(pool, tmp_path):
    for options in ({"side": 128}, {"side": 256}, {"side": 128, "mpp": (0.5, 0.7)}):
        found = engine(pool, tmp_path, **options)
        first = found.prompt(clicked((640, 560)), 2.0, None, SECONDS)
        assert found._segmenter.encoded == 1 and overlap(first.proposals[0].area, disc(1)) > 0.95
        found.close()
        found._embeddings._thread.join(SECONDS)  # it has written


def test_a_view_that_cannot_be_read_is_said(pool, tmp_path, monkeypatch):
    unreadable = Block(np.full((128, 128, 3), 255, np.uint8), np.ones((128, 128), bool))
    monkeypatch.setattr("bcss_jax.annotator.proposals.engine.read_view", lambda pool, view: unreadable)
    found = engine(pool, tmp_path)
    with pytest.raises(DataError, match="damaged here"):
        found.prompt(clicked((201, 303)), 0.5, None, SECONDS)
    found.close()
    assert not list(tmp_path.glob("**/*.npz"))


def test_the_newest_request_is_computed_first_and_memory_and_disk_are_bounded(tmp_path, monkeypatch):
    computed, begun, go_on = [], threading.Event(), threading.Event()

    def compute(key):
        begun.set()
        go_on.wait(20)
        computed.append(key.column)
        return {"embedding": np.zeros(1000, np.float32)}

    monkeypatch.setattr(embeddings, "MEMORY_BYTES", 8000)
    monkeypatch.setattr(embeddings, "DISK_BYTES", 16_000)
    monkeypatch.setattr(embeddings, "CHECKED_AFTER_BYTES", 4000)
    found = embeddings.Embeddings(compute, tmp_path)
    found.look([Key(0, column, 0) for column in range(3)])
    begun.wait(20)
    assert found.get(Key(0, 7, 0), 0.01) is None and found.get(Key(0, 8, 0), 0.01) is None
    found.look([Key(0, column, 0) for column in (4, 5)])
    go_on.set()
    assert found.get(Key(0, 5, 0), 20) is not None
    assert 1 not in computed and 2 not in computed  # they are not looked at any more
    for column in range(10, 20):
        assert found.get(Key(0, column, 0), 20) is not None
    assert len(found._memory) == 2 and not found.is_ready(Key(0, 10, 0))
    found.close()
    found._thread.join(20)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npz")) < 20_000


def test_every_place_lies_in_its_view_at_every_level():
    for size, mpp, side in (
        ((1500, 1130), (0.5, 0.5), 128),
        ((90, 4000), (0.25, 0.31), 128),
        ((50, 40), (1.0, 1.0), 64),
    ):
        grid = ViewGrid(size, mpp, side)
        random = np.random.default_rng(0)
        for _ in range(300):
            x, y = random.uniform(0, 1, 2) * size
            for level in range(grid.level(1e-3), grid.level(1e3) + 1):
                key = grid.key_for((x, y, x, y), level)
                view = grid.view(key)
                assert key.level == level and view.holds((x, y, x, y))
                assert view.width <= side and view.height <= side
                inside = view.from_level0(np.array([x, y]))
                axes = ((view.width, view.left, view.grid.width), (view.height, view.top, view.grid.height))
                for at, (length, first, whole) in zip(inside, axes, strict=True):
                    middle = length / 4 - 1 <= at <= 3 * length / 4 + 1
                    assert middle or first == 0 or first + length == whole  # context on all sides but at the edge
        (x0, y0, x1, y1) = grid.view(grid.key_for((0, 0, *size), grid.level(1e-3))).box
        assert (round(x0), round(y0), round(x1), round(y1)) == (0, 0, *size)
