"""What the server answers: who may change something, and what is refused."""

import json

import pytest
import shapely
from helpers.annotator_small import STROMA, TUMOR, ServedAnnotator, slide_of_discs

from bcss_jax.annotator import actions

WIDTH, HEIGHT = 1000, 700
DISCS = [(201, 303, 40, TUMOR), (640, 350, 130, STROMA)]
PROMPT = {"points": [{"at": [201, 303], "inside": True}], "box": None, "um_per_pixel": 0.5, "previous": None}


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ServedAnnotator(slide_of_discs(tmp_path / "case.png", WIDTH, HEIGHT, DISCS), mpp=0.5) as found:
        yield found


def accepted(served, at=(201, 303), name="Tumor"):
    answer = served.post("prompt", PROMPT | {"points": [{"at": at, "inside": True}]})
    return served.edit("add", {"answer": answer["answer"], "choice": 0, "class_name": name, "to": None})


def polygon(feature):
    return shapely.Polygon(feature["geometry"]["coordinates"][0])


def test_the_page_and_its_files_are_there_with_the_headers_of_the_viewer(served):
    status, headers, content = served.request("GET", "/")
    assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
    assert b"a-token-of-tests" not in content and b"case.png" in content
    for part in content.decode().split('"'):
        if part.startswith("/static/"):
            assert served.request("GET", part)[0] == 200, part
    for name in ("panel", "prompts", "strokes", "keyboard", "overlay", "slide", "state", "server"):
        status, headers, _ = served.request("GET", f"/static/annotator/{name}.js")
        assert status == 200 and headers["content-type"].startswith("text/javascript")
    assert served.request("GET", "/slide/10/0_0.jpg")[0] == 200
    for path in ("/slide/99/0_0.jpg", "/slide/10/9_9.jpg", "/static/annotator/../server.py", "/state/-5", "/state/x"):
        assert served.request("GET", path)[0] == 404, path


def test_a_click_becomes_an_annotation_in_the_file(served):
    answer = served.post("prompt", PROMPT)
    assert answer["computing"] is False and [each["score"] for each in answer["proposals"]] == [0.9, 0.6]
    added = served.edit("add", {"answer": answer["answer"], "choice": 0, "class_name": "Tumor", "to": None})
    (feature,) = served.features
    assert feature["id"] == added["made"] and feature["properties"]["classification"]["name"] == "Tumor"
    disc = shapely.Point(201, 303).buffer(40)
    assert shapely.intersection(polygon(feature), disc).area / shapely.union(polygon(feature), disc).area > 0.97
    assert added["clicks"] == 1 and added["seconds"] == 2.0
    assert added["changed"][0]["color"] == "#e69f00" and added["problem"] is None
    served.edit("undo", {"transaction": added["transaction"]})
    assert served.features == []
    served.edit("redo", {"transaction": added["transaction"]})
    assert len(served.features) == 1


def test_all_edits(served):
    first = accepted(served)
    target = {"id": first["made"], "revision": first["revision"]}
    stroke = {"points": [[201, 303], [300, 303]], "radius": 10, "class_name": "Tumor", "to": target}
    brushed = served.edit("brush", stroke)
    assert brushed["made"] == target["id"] and polygon(served.features[0]).bounds[2] == 310
    target["revision"] = brushed["revision"]
    erased = served.edit("erase", {"points": [[305, 303]], "radius": 50, "of": target})
    assert polygon(served.features[0]).bounds[2] < 260
    target["revision"] = erased["revision"]
    served.edit("set_class", {"targets": [target], "class_name": "Stroma"})
    assert served.features[0]["properties"]["classification"]["name"] == "Stroma"
    served.edit("delete", {"targets": [target]}, 409)  # it was changed since
    target["revision"] = served.state()["revision"]
    served.edit("delete", {"targets": [target]})
    assert served.features == [] and served.state()["changed"] == []


def test_two_browsers_get_the_changes_of_each_other(served):
    first = accepted(served)
    seen = served.state()["revision"]
    second = accepted(served, (640, 350), "Stroma")
    news = served.state(seen)
    assert [each["id"] for each in news["changed"]] == [second["made"]] and news["removed"] == []
    stale = {"id": first["made"], "revision": first["revision"]}
    served.edit("set_class", {"targets": [stale], "class_name": "Necrosis"})
    conflict = served.edit("set_class", {"targets": [stale], "class_name": "Other"}, 409)
    assert "changed in another window" in conflict["error"]
    assert {each["name"] for each in served.state()["changed"]} == {"Necrosis", "Stroma"}


def test_nothing_changes_without_the_token(served):
    added = accepted(served)
    before = served.opened.path.read_bytes()
    body = json.dumps({"clicks": 0, "seconds": 0, "since": -1, "transaction": added["transaction"]})
    plain = {"content-type": "application/json"}
    for headers in (
        plain,
        plain | {"x-annotate-token": ""},
        plain | {"x-annotate-token": "a-token-of-test"},
        plain | {"x-annotate-token": "a-token-of-tests", "origin": "http://evil.example"},
        plain | {"x-annotate-token": "a-token-of-tests", "origin": "null"},
        plain | {"cookie": "token=a-token-of-tests"},
    ):
        assert served.request("POST", "/undo", body, headers)[0] == 403, headers
    assert served.request("POST", "/undo?token=a-token-of-tests", body, plain)[0] == 403
    assert served.request("POST", "/prompt", json.dumps(PROMPT), plain)[0] == 403
    assert served.request("POST", "/look", "{}", plain)[0] == 403
    assert served.request("GET", "/undo")[0] == 405
    headers = plain | {"x-annotate-token": "a-token-of-tests", "host": "evil.example"}
    assert served.request("POST", "/undo", body, headers)[0] == 400
    assert served.opened.path.read_bytes() == before
    right = plain | {"x-annotate-token": "a-token-of-tests", "origin": served.address}
    assert served.request("POST", "/undo", body, right)[0] == 200


@pytest.mark.parametrize(
    "name,values,status",
    [
        ("prompt", PROMPT | {"points": [{"at": [float("nan"), 3], "inside": True}]}, 400),
        ("prompt", PROMPT | {"points": [{"at": ["1", 3], "inside": True}]}, 400),
        ("prompt", PROMPT | {"points": [{"at": [-1, 3], "inside": True}]}, 400),
        ("prompt", PROMPT | {"points": [{"at": [5, HEIGHT + 1], "inside": True}]}, 400),
        ("prompt", PROMPT | {"points": []}, 400),
        ("prompt", PROMPT | {"box": [0, 0, 1e300, 5]}, 400),
        ("prompt", PROMPT | {"um_per_pixel": 0}, 400),
        ("prompt", PROMPT | {"points": PROMPT["points"] * 2000}, 400),
        ("prompt", [], 400),
        ("add", {"answer": 7, "choice": 0, "class_name": "Tumor", "to": None}, 400),
        ("brush", {"points": [[5, 5]], "radius": 3, "class_name": "no class", "to": None}, 400),
        ("brush", {"points": [[5, 5]], "radius": -3, "class_name": "Tumor", "to": None}, 400),
        ("brush", {"points": [[-500, 5]], "radius": 3, "class_name": "Tumor", "to": None}, 400),
        ("brush", {"points": [[5, 5]], "radius": 3, "class_name": "Tumor", "to": {"id": "x", "revision": 9}}, 409),
        ("brush", {"points": [[5, 5]] * 200_000, "radius": 3, "class_name": "Tumor", "to": None}, 413),
        ("delete", {"targets": []}, 400),
        ("undo", {"transaction": 5}, 409),
    ],
)
def test_bad_requests_are_refused_in_one_line(served, name, values, status):
    if isinstance(values, dict) and name != "prompt":
        values = {"clicks": 0, "seconds": 0, "since": -1} | values
    answer = served.post(name, values, status)
    text = answer["error"] if isinstance(answer, dict) else answer
    assert text and "\n" not in text and len(text) < 400
    assert not served.opened.path.exists()


def test_other_content_is_refused(served):
    token = {"x-annotate-token": "a-token-of-tests"}
    assert served.request("POST", "/undo", "{}", token | {"content-type": "text/plain"})[0] == 415
    assert served.request("POST", "/undo", "{", token | {"content-type": "application/json"})[0] == 400


def test_a_view_that_takes_long_is_asked_for_again(served, monkeypatch):
    monkeypatch.setattr(actions, "WAIT_SECONDS", 0.0)
    assert served.post("prompt", PROMPT | {"um_per_pixel": 0.1}) == {"computing": True}


def test_a_copy_can_be_downloaded(served):
    accepted(served)
    status, headers, content = served.request("GET", "/annotations.geojson")
    assert status == 200 and "attachment" in headers["content-disposition"]
    assert content == served.opened.path.read_bytes()
