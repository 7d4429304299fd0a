"""A folder of results may hold anything: the viewer gives a reason, in time, and never an internal error."""

import copy
import json
import os
import socket
import time
import zlib

import numpy as np
import pytest
import tifffile
from helpers.viewer_small import TILE, Served, blobs, pyramid, write_labels, write_result
from PIL import Image

WIDTH, HEIGHT = 300, 200
KEYS = ("/", "/result/out/a", "/result/out/a/thumbnail.jpg", "/result/out/a/slide/9/0_0.jpg")
PATHS = (*KEYS, "/result/out/a/labels/9/0_0.labels", "/result/out/a/labels/0/0_0.labels")
ANSWERS = (200, 307, 404, 503)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_result(folder / "out/a", folder / "a.png", WIDTH, HEIGHT, blobs(HEIGHT, WIDTH))
    write_result(folder / "out/b", folder / "b.png", WIDTH, HEIGHT, blobs(HEIGHT, WIDTH))
    with Served(folder / "out") as served:
        yield served, folder / "out/a"


@pytest.fixture
def result(out):
    """The server, and the folder of a result, whose files are put back after the test."""
    served, folder = out
    saved = {path: path.read_bytes() for path in folder.iterdir()}
    yield served, folder
    for path in folder.iterdir():
        path.unlink()
    for path, content in saved.items():
        path.write_bytes(content)


def statuses(served, paths=PATHS):
    found = {}
    for path in paths:
        start = time.perf_counter()
        found[path] = served.get(path).status
        assert time.perf_counter() - start < 10, path
    assert set(found.values()) <= set(ANSWERS), found
    return found


def scalars(content, path=()):
    """Yields the place of each value in JSON."""
    yield path
    for key, value in content.items() if isinstance(content, dict) else ():
        yield from scalars(value, (*path, key))


ODD = (None, "", "x\0", "../../etc/passwd", -1, 0, 10**400, 1e-300, 1e300, float("nan"), [], {}, [[[]]], True)


def test_no_value_in_a_summary_is_an_internal_error(result):
    served, folder = result
    file = folder / "summary.json"
    content = json.loads(file.read_text())
    random = np.random.default_rng(0)
    for place in [each for each in scalars(content) if each]:
        for value in random.permutation(len(ODD))[:1]:
            changed = copy.deepcopy(content)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = ODD[value]
            file.write_text(json.dumps(changed))
            statuses(served, KEYS[:3])


@pytest.mark.parametrize("scale", [(1e-9, 1e-9), (1e9, 1e9), (1.0, 1e9), (1e-300, 1.0), (5e-324, 5e-324)])
def test_a_scale_that_does_not_fit_the_slide_is_refused(result, scale):
    served, folder = result
    content = json.loads((folder / "summary.json").read_text())
    content["grid"]["scale"] = scale
    (folder / "summary.json").write_text(json.dumps(content))
    found = served.get("/result/out/a")
    assert found.status == 200 and "which does not fit" in found.text
    assert statuses(served)["/result/out/a/labels/0/0_0.labels"] == 404


@pytest.mark.parametrize("level", ["99999999", "-1", "nan", "1e9", "9" * 1000, "%00", "..", "9.0", "٣"])
def test_levels_and_coordinates_that_are_none_are_not_found(out, level):
    served, _ = out
    for kind, end in (("slide", "jpg"), ("labels", "labels")):
        for path in (f"{level}/0_0.{end}", f"9/{level}_0.{end}", f"9/0_{level}.{end}"):
            path = f"/result/out/a/{kind}/{path}".encode().decode("latin-1")
            assert served.get(path.replace("\xd9\xa3", "%D9%A3")).status == 404


@pytest.mark.parametrize("name", ["summary.json", "labels.ome.tif", "overlay.png"])
@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder", "link to a device", "link out", "empty", "noise"])
def test_special_and_damaged_files(result, kind, name):
    served, folder = result
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(name)
        os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    elif kind.startswith("link"):
        path.symlink_to("/dev/zero" if kind == "link to a device" else "/etc/passwd")
    else:
        path.write_bytes(b"" if kind == "empty" else np.random.default_rng(0).bytes(5000))
    found = statuses(served)
    if name != "overlay.png":
        assert found["/result/out/a/labels/0/0_0.labels"] == 404
    if kind == "folder":
        path.rmdir()


def png_of(side):
    """Returns the head of a PNG that says it has `side` pixels along both sides, and no pixels."""
    chunk = b"IHDR" + side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")


def test_an_overlay_that_unpacks_to_too_much_is_passed_over(result):
    served, folder = result
    for side in (7000, 20_000, 100_000, 2**31 - 1):
        (folder / "overlay.png").write_bytes(png_of(side))
        answer = served.get("/result/out/a/thumbnail.jpg")
        assert answer.status == 200 and max(answer.image.size) <= 256  # of the labels
    Image.new("RGB", (2000, 1500)).save(folder / "overlay.png")
    assert served.get("/result/out/a/thumbnail.jpg").status == 200


def tiles_of(path):
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        return page.dataoffsets, page.databytecounts


def test_a_tile_that_unpacks_to_too_much_or_too_little_is_an_error_of_one_line(result):
    served, folder = result
    path = folder / "labels.ome.tif"
    write_labels(path, pyramid(np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH), np.uint8)))
    content, (offsets, counts) = path.read_bytes(), tiles_of(path)
    for bomb in (zlib.compress(bytes(TILE * TILE * 200)), zlib.compress(bytes(10)), b"no deflate"):
        assert len(bomb) <= counts[0]
        changed = bytearray(content)
        changed[offsets[0] : offsets[0] + len(bomb)] = bomb
        path.write_bytes(changed)
        answer = served.get("/result/out/a/labels/9/0_0.labels")
        assert answer.status == 503 and "\n" not in answer.text, answer.text


def test_labels_of_another_compression_are_refused(result):
    served, folder = result
    tifffile.imwrite(
        folder / "labels.ome.tif", blobs(HEIGHT, WIDTH), tile=(TILE, TILE), compression="lzma", photometric="minisblack"
    )
    assert served.get("/result/out/a/labels/9/0_0.labels").status == 404
    assert "compression" in served.get("/result/out/a").text


def test_a_shortened_file_is_no_internal_error(result):
    served, folder = result
    for name in ("labels.ome.tif", "summary.json"):
        content = (folder / name).read_bytes()
        for length in np.linspace(0, len(content) - 1, 12).astype(int):
            (folder / name).write_bytes(content[:length])
            statuses(served)
        (folder / name).write_bytes(content)
