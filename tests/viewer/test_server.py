"""The responses of the viewer to valid and invalid requests."""

import gzip
import json
import os
import shutil
from concurrent.futures import Future

import numpy as np
import pytest
from helpers.viewer_small import Pool, Served, blobs, means, pyramid, write_labels, write_result
from PIL import Image

from bcss_jax.errors import DataError
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.viewer import server
from bcss_jax.viewer.label_tiles import MARGIN

WIDTH, HEIGHT = 600, 410
EVIL = "<script>alert(1)</script> & \"'#?%2e"


class Watched(Pool):
    opened = []

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.reads = 0
        Watched.opened.append(self)

    def submit(self, *arguments):
        self.reads += 1
        return super().submit(*arguments)


def write(folder):
    """Slide a, segmented by two models, and slide b."""
    labels = blobs(HEIGHT, WIDTH)
    for model in ("unet", "transunet"):
        write_result(folder / "out/a" / model, folder / "a.png", WIDTH, HEIGHT, labels, model=model)
    write_result(folder / "out/b", folder / "b.png", WIDTH, HEIGHT, labels, unreadable_area_mm2=0.125)
    return folder / "out"


@pytest.fixture
def out(tmp_path):
    Watched.opened = []
    return write(tmp_path)


@pytest.fixture
def client(out):
    with Served(out, Watched) as found:
        yield found


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """For tests that write nothing."""
    with Served(write(tmp_path_factory.mktemp("results")), Watched) as found:
        yield found


def test_the_list_names_every_slide_once(unchanged):
    answer = unchanged.get("/")
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/html")
    assert answer.text.count("a.png</a>") == 1 and answer.text.count("b.png</a>") == 1
    for key in ("out/a/unet", "out/a/transunet", "out/b"):
        assert f'href="/result/{key}"' in answer.text and unchanged.get(f"/result/{key}").status == 200
    assert "0.750&nbsp;mm²" in answer.text and "2 segmented slides" in answer.text


def test_results_that_are_added_later_are_in_the_list(client, out):
    write_result(out / "c", out.parent / "c.png", WIDTH, HEIGHT, blobs(HEIGHT, WIDTH))
    assert client.get("/result/out/c").status == 404
    assert "c.png" in client.get("/").text
    assert client.get("/result/out/c").status == 200


def test_a_single_result_is_shown_without_a_list(out):
    with Served(out / "b", Watched) as client:
        answer = client.get("/")
        assert answer.status == 307 and answer.headers["location"] == "/result/b"
        assert "All slides" not in client.get("/result/b").text


def labels_of(answer, height, width):
    labels = np.frombuffer(gzip.decompress(answer.content), np.uint8).reshape(height + 2 * MARGIN, width + 2 * MARGIN)
    return labels[MARGIN:-MARGIN, MARGIN:-MARGIN]


def data(client, key):
    text = client.get(f"/result/{key}").text
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_the_page_has_geometry_classes_and_areas(unchanged):
    page, found = unchanged.get("/result/out/b").text, data(unchanged, "out/b")
    assert found["slide"] == found["labels"] == {"width": WIDTH, "height": HEIGHT, "maxLevel": 10}
    assert found["colors"] == {"1": [230, 159, 0], "2": [0, 114, 178], "255": [150, 150, 150]} and found["mpp"] == 0.25
    for text in ("b.png", "unet", "0.25 µm/px", "0.750", "1.50", "33.3 %", "0.125", "2.25 mm²", "Research use only"):
        assert text in page
    assert 'fill="#e69f00"' in page and page.count('class="shown"') == 3 and "<select" not in page
    page = unchanged.get("/result/out/a/unet").text
    assert '<option value="/result/out/a/unet" selected>unet</option>' in page and page.count("<option") == 2


def test_tiles(unchanged):
    slide = unchanged.get("/result/out/b/slide/10/2_1.jpg")
    assert slide.headers["content-type"] == "image/jpeg"
    assert slide.image.size == (WIDTH - 512, HEIGHT - 256)
    truth = blobs(HEIGHT, WIDTH)[256:, 512:]
    answer = unchanged.get("/result/out/b/labels/10/2_1.labels")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-encoding"] == "gzip"
    np.testing.assert_array_equal(labels_of(answer, HEIGHT - 256, WIDTH - 512), truth)


def test_a_tile_that_the_browser_has_is_not_read_again(client):
    url = "/result/out/b/slide/10/0_0.jpg"
    first = client.get(url)
    assert first.headers["cache-control"] == "private, no-cache" and Watched.opened[0].reads == 1
    again = client.get(url, headers={"if-none-match": f'"x", W/{first.headers["etag"]}'})
    assert again.status == 304 and again.content == b"" and again.headers["etag"] == first.headers["etag"]
    assert client.get(url).content == first.content and Watched.opened[0].reads == 1
    assert client.get("/result/out/b/slide/10/1_0.jpg").headers["etag"] != first.headers["etag"]


def test_a_new_result_in_the_same_place_is_shown(client, out):
    url = "/result/out/b/labels/10/0_0.labels"
    before = client.get(url)
    write_labels(out / "b/new.tif", pyramid(np.ones((HEIGHT, WIDTH), np.uint8)))
    os.replace(out / "b/new.tif", out / "b/labels.ome.tif")
    after = client.get(url, headers={"if-none-match": before.headers["etag"]})
    assert after.status == 200
    assert (labels_of(after, 256, 256) == 1).all()


def test_a_reloaded_page_shows_the_current_result(client, out):
    values = json.loads((out / "b/summary.json").read_text())
    values["classes"][0]["area_mm2"] = 7.77
    (out / "b/summary.json").write_text(json.dumps(values))
    assert "7.77" in client.get("/result/out/b").text
    (out / "b/summary.json").unlink()
    assert "expected the summary" in note(client.get("/result/out/b"))
    assert "b.png" not in client.get("/").text
    shutil.rmtree(out)
    answer = client.get("/")
    assert answer.status == 200 and "There are no results in this folder any more" in answer.text


def test_two_models_of_a_slide_share_its_readers_and_few_slides_are_open(client, out):
    client.get("/result/out/a/unet"), client.get("/result/out/a/transunet")
    assert len(Watched.opened) == 1
    for name in "cdef":
        write_result(out / name, out.parent / f"{name}.png", 30, 20, blobs(20, 30))
    client.get("/")
    for name in "cdef":
        client.get(f"/result/out/{name}")
    assert [each.closed for each in Watched.opened] == [True, True, False, False, False]
    assert client.get("/result/out/c").status == 200 and len(Watched.opened) == 6


def test_readers_end_with_the_server(out):
    with Served(out, Watched) as client:
        client.get("/result/out/b")
    assert [each.closed for each in Watched.opened] == [True]


def test_thumbnails(client, out):
    answer = client.get("/result/out/b/thumbnail.jpg")
    picture = np.asarray(answer.image)
    assert answer.headers["content-type"] == "image/jpeg" and picture.shape == (103, 150, 3)
    values = json.loads((out / "b/summary.json").read_text())
    values["files"]["overlay"] = "overlay.png"
    (out / "b/summary.json").write_text(json.dumps(values))
    Image.new("RGB", (1024, 700), (200, 30, 30)).save(out / "b/overlay.png")
    client.get("/")
    picture = np.asarray(client.get("/result/out/b/thumbnail.jpg").image)
    assert picture.shape == (175, 256, 3) and np.abs(picture.mean((0, 1)) - (200, 30, 30)).max() < 3
    (out / "b/overlay.png").write_bytes(b"\x89PNG damaged")
    assert client.get("/result/out/b/thumbnail.jpg").image.size == (150, 103)
    (out / "b/overlay.png").unlink()
    (out / "b/labels.ome.tif").unlink()
    assert client.get("/result/out/b/thumbnail.jpg").status == 404


TILES = "/result/out/b/slide"
NOT_THERE = [
    "/tile/../../etc/passwd", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/static/../server.py",
    "/static/%2e%2e/server.py", "/static/..%2fserver.py", "/static//etc/passwd", "/static/", "/static", "/etc/passwd",
    "//etc/passwd", "/result", "/result/", "/result//etc", "/result/out", "/result/out/", "/result/out/b/", "/result/b",
    "/result/out/b/summary.json", "/result/out/b/../b", "/result/out/%2e%2e/b", "/result/out/b%00",
    "/result/out/b%20", "/result/out%2f%2e%2e%2fb", "/result/%252e%252e/b",
    "/result/out/a", "/result/out/nothing", "/result/out/b/labels.ome.tif", "/result/out/b/slide", f"{TILES}/10",
    f"{TILES}/1000000000/0_0.jpg", f"{TILES}/{'9' * 5000}/0_0.jpg", f"{TILES}/-1/0_0.jpg", f"{TILES}/1e9/0_0.jpg",
    f"{TILES}/11/0_0.jpg", f"{TILES}/ten/0_0.jpg", f"{TILES}/%31%30/3_0.jpg", f"{TILES}/%D9%A1%D9%A0/0_0.jpg",
    f"{TILES}/10/3_0.jpg", f"{TILES}/10/0_2.jpg", f"{TILES}/10/-1_0.jpg", f"{TILES}/10/0_-1.jpg",
    f"{TILES}/10/99999999_0.jpg", f"{TILES}/10/{'9' * 5000}_0.jpg", f"{TILES}/10/0_0", f"{TILES}/10/0_0.png",
    f"{TILES}/10/0.5_0.jpg", f"{TILES}/10/0_0.jpg/", f"{TILES}/10/0_0.jpg%0a", f"{TILES}/10/..%2f0_0.jpg",
    f"{TILES}/10/a_b.jpg", "/result/out/b/labels/10/0_0.png", "/result/out/b/labels/10/0_0.jpg",
    f"{TILES}/10/0_0.labels", "/result/out/b/labels/99/0_0.labels", "/result/out/b/labels/10/-1_0.labels",
    "/result/out/b/labels/1000000000/0_0.labels", "/result/out/b/__class__/10/0_0.labels",
    "/result/out/b/filled/1/10/0_0.png",
    "/result/out/../../../etc/passwd/slide/10/0_0.jpg", "/result/nothing/thumbnail.jpg", "/favicon.ico", "/docs",
]  # fmt: skip


@pytest.mark.parametrize("path", NOT_THERE, ids=lambda path: path[:60])
def test_unknown_paths_are_404_and_nothing_is_read(unchanged, path, monkeypatch):
    unchanged.get("/result/out/b/slide/10/0_0.jpg")  # the slide is open
    before, read = [each.reads for each in Watched.opened], []
    monkeypatch.setattr(server.LabelTiles, "labels", lambda *arguments: read.append(arguments))
    answer = unchanged.get(path)
    assert answer.status == 404, answer.text
    assert "root:" not in answer.text and read == [] and [each.reads for each in Watched.opened] == before


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/result/out/b", "/result/out/b/slide/10/0_0.jpg", "/static/viewer.js"])
def test_only_get_and_head(unchanged, method, path):
    assert unchanged.get(path, method=method).status == 405


def test_head(unchanged):
    answer = unchanged.get("/result/out/b/slide/10/0_0.jpg", method="HEAD")
    assert answer.status == 200 and answer.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize("path", ["/", "/result/out/b", "/result/out/b/slide/10/0_0.jpg", "/static/viewer.js", "/no"])
def test_every_response_forbids_requests_to_other_sites(unchanged, path):
    headers = unchanged.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "unsafe" not in headers["content-security-policy"] and "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


NAMES = [
        ("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:8000", 200),
        ("evil.example", 400), ("127.0.0.1.evil.example", 400), ("", 400), ("0.0.0.0:8000", 400),
    ]  # fmt: skip


def test_a_request_with_another_host_name_is_refused(out):
    with Served(out, Watched, ("127.0.0.1", "localhost", "[::1]")) as client:
        assert [client.get("/", headers={"host": name}).status for name, _ in NAMES] == [status for _, status in NAMES]


def test_names_are_escaped(out):
    slide = out.parent / f"{EVIL.replace('/', '')}.png"
    write_result(out / EVIL.replace("/", ""), slide, 30, 20, blobs(20, 30), model=EVIL, names=(EVIL, "stroma"))
    with Served(out, Watched) as client:
        start = client.get("/").text
        assert "<script>alert" not in start and "&lt;script&gt;" in start
        link = next(part.split('"')[0] for part in start.split('href="')[1:] if "script" in part.split('"')[0])
        page = client.get(link)
        assert page.status == 200 and "<script>alert" not in page.text and page.text.count("&lt;script&gt;") > 2
        found = json.loads(page.text.split('id="data">')[1].split("</script>")[0])
        assert client.get(f"{found['url']}/slide/5/0_0.jpg").status == 200


def note(page):
    return page.text.split('class="note">')[1].split("</p>")[0]


def test_without_the_slide_the_labels_are_shown_on_white(client, out):
    os.rename(out.parent / "b.png", out.parent / "moved.png")
    page = client.get("/result/out/b")
    assert (
        page.status == 200
        and "b.png: the slide is not there any more (if it was moved, start the viewer with --slides=FOLDER"
        in note(page)
    )
    assert note(page).endswith("the result is shown on white")
    found = data(client, "out/b")
    assert found["slide"] is None and found["labels"]["width"] == WIDTH
    assert client.get("/result/out/b/slide/10/0_0.jpg").status == 404
    assert client.get("/result/out/b/labels/10/0_0.labels").status == 200
    (out / "b/labels.ome.tif").rename(out / "b/moved.tif")
    assert "on white" not in client.get("/result/out/b").text and 'id="data"' not in client.get("/result/out/b").text
    (out / "b/moved.tif").rename(out / "b/labels.ome.tif")
    os.rename(out.parent / "moved.png", out.parent / "b.png")
    assert data(client, "out/b")["slide"] is not None


def test_a_slide_that_was_moved_is_found_and_the_page_says_where(out):
    elsewhere = out.parent / "elsewhere"
    (elsewhere / "case").mkdir(parents=True)
    with Served(out, Watched, slides=elsewhere) as client:
        assert "Shown from" not in client.get("/result/out/b").text
        before = client.get("/result/out/b/slide/10/0_0.jpg")
        os.rename(out.parent / "b.png", elsewhere / "case/b.png")
        assert client.get("/result/out/b/slide/10/0_0.jpg").status == 404  # requests for tiles do not search
        page = client.get("/result/out/b")
        shown = page.text.split('id="moved">')[1].split("</p>")[0]
        assert shown.startswith(
            f"Shown from {elsewhere}/case/b.png. Its name, its size and both ends of the file match"
        )
        assert 'class="note">' not in page.text and data(client, "out/b")["slide"] is not None
        tile = client.get("/result/out/b/slide/10/0_0.jpg")
        assert tile.status == 200 and tile.content == before.content and tile.headers["etag"] != before.headers["etag"]
        (elsewhere / "case/b.png").write_bytes((elsewhere / "case/b.png").read_bytes() + b"more")
        assert client.get("/result/out/b/slide/10/0_0.jpg").status == 404
        page = client.get("/result/out/b")
        assert "b.png is a different file (its size or content differs); the result is shown on white" in note(page)


def test_no_request_reaches_a_file_of_the_folder_with_slides(out):
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir()
    os.rename(out.parent / "b.png", elsewhere / "b.png")
    (elsewhere / "secret.txt").write_text("secret")
    with Served(out, Watched, slides=elsewhere) as client:
        assert data(client, "out/b")["slide"] is not None
        for path in (
            "/elsewhere/secret.txt", "/result/elsewhere", "/result/elsewhere/b.png",
            "/result/out/../elsewhere/secret.txt", f"/result/{elsewhere}/secret.txt",
            f"/result/out/b/slide/{elsewhere}/b.png", "/result/out/b/slide/10/../b.png",
            "/result/out/b?slides=/etc", "/slides/b.png", "/?slides=/etc",
        ):  # fmt: skip
            answer = client.get(path)
            assert "secret" not in answer.text and "/etc" not in answer.text
            assert answer.status == (200 if "?" in path else 404)


def test_scores_are_shown_if_there_are_any(client, out):
    assert "Dice" not in client.get("/result/out/b").text
    values = json.loads((out / "b/summary.json").read_text())
    values["scores"] = {"dice": {"tumor": 0.91234, "stroma": None, "macro": 0.91234}}
    (out / "b/summary.json").write_text(json.dumps(values))
    page = client.get("/result/out/b").text
    rows = page.split("<tbody>")[1].split("</tbody>")[0].split("</tr>")
    assert [row.split("<td>")[-1].removesuffix("</td>") for row in rows[:3]] == ["0.912", "–", "–"]  # one is unreadable
    assert "<dt>Mean Dice</dt><dd>0.912</dd>" in page and "in the region" not in page
    values["scores_of_region"] = {"dice": {"tumor": 0.5, "stroma": 0.25, "macro": 0.375}}
    (out / "b/summary.json").write_text(json.dumps(values))
    assert "<dt>Mean Dice in the region</dt><dd>0.375</dd>" in client.get("/result/out/b").text


@pytest.mark.parametrize("content", [b"", b"II*\0damaged", None])
def test_damaged_labels_are_one_line_and_the_slide_is_shown(client, out, content):
    path = out / "b/labels.ome.tif"
    path.unlink() if content is None else path.write_bytes(content)
    page = client.get("/result/out/b")
    assert page.status == 200 and "expected the labels of" in note(page) and "\n" not in note(page)
    assert data(client, "out/b")["labels"] is None and 'type="range"' not in page.text
    assert client.get("/result/out/b/labels/10/0_0.labels").status == 404
    assert client.get("/result/out/b/slide/10/0_0.jpg").status == 200


def test_a_damaged_summary_is_one_line_in_the_list_and_on_its_page(client, out):
    (out / "b/summary.json").write_text("{")
    assert "b/summary.json: expected the summary" in client.get("/").text
    page = client.get("/result/out/b")
    assert page.status == 200 and "expected the summary" in note(page) and "openseadragon" not in page.text
    assert client.get("/result/out/b/slide/10/0_0.jpg").status == 404
    assert client.get("/result/out/a/unet").status == 200


@pytest.mark.parametrize("name", ["labels.ome.tif", "../../secret.tif", "{top}/secret.tif"])
def test_files_outside_the_folder_are_not_read(client, out, name):
    write_labels(out.parent / "secret.tif", pyramid(blobs(HEIGHT, WIDTH)))
    if name == "labels.ome.tif":
        (out / "b" / name).unlink()
        os.symlink(out.parent / "secret.tif", out / "b" / name)
    values = json.loads((out / "b/summary.json").read_text())
    values["files"]["labels"] = values["files"]["overlay"] = name.format(top=out.parent)
    (out / "b/summary.json").write_text(json.dumps(values))
    client.get("/")
    assert data(client, "out/b")["labels"] is None
    for url in ("/result/out/b/labels/10/0_0.labels", "/result/out/b/thumbnail.jpg"):
        assert client.get(url).status == 404


def fails(error):
    failed = Future()
    failed.set_exception(error)
    return lambda *arguments: failed


def test_a_tile_that_cannot_be_read_is_503(client):
    client.get("/result/out/b/slide/10/0_0.jpg")
    Watched.opened[0].submit = fails(DataError("b.png: (3, 4) cannot be read"))
    answer = client.get("/result/out/b/slide/10/1_0.jpg")
    assert answer.status == 503 and answer.text == "b.png: (3, 4) cannot be read" and not Watched.opened[0].closed
    assert "etag" not in answer.headers


def test_readers_that_have_ended_are_restarted(client):
    client.get("/result/out/b/slide/10/0_0.jpg")
    Watched.opened[0].submit = fails(RuntimeError("the pool is closed"))
    answer = client.get("/result/out/b/slide/10/1_0.jpg")
    assert answer.status == 503 and "the slide cannot be read now" in answer.text and Watched.opened[0].closed
    assert client.get("/result/out/b/slide/10/1_0.jpg").status == 200 and len(Watched.opened) == 2


def test_the_viewer_with_real_reader_processes(out):
    with Served(out, ReaderPool) as client:
        for level in (10, 9, 8):
            shown = np.asarray(client.get(f"/result/out/b/slide/{level}/0_0.jpg").image, int)
            truth = means(np.asarray(Image.open(out.parent / "b.png")), 1 << (10 - level))[:256, :256]
            assert shown.shape == truth.shape and np.abs(shown - truth).mean() < 12
        (out.parent / "c.png").write_bytes(b"\x89PNG damaged")
        write_result(out / "c", out.parent / "c.png", WIDTH, HEIGHT, blobs(HEIGHT, WIDTH))
        client.get("/")
        page = client.get("/result/out/c")
        assert page.status == 200 and "c.png: expected a" in note(page)
