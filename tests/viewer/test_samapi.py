"""The server answers what QuPath's extension for SAM sends, with outlines at their place in the picture."""

import base64
import http.client
import io
import json

import numpy as np
import pytest
import shapely
from helpers.prompted_slide import ColorPredictor, sam_file
from helpers.served_app import served_app
from PIL import Image

from bcss_jax.models.sam.weights.loading import load
from bcss_jax.prompting import Predictor
from bcss_jax.viewer.samapi import application

HEADERS = {"accept": "application/json", "Content-Type": "application/json; charset=utf-8"}  # of the extension


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(sam_file(tmp_path_factory.mktemp("models") / "tiny.safetensors"))


class Running:
    """Serves on a free port."""

    def __init__(self, loaded, predictor):
        self._served = served_app(application(loaded, predictor, ("127.0.0.1", "localhost")))

    def __enter__(self):
        self.port = self._served.__enter__()
        return self

    def __exit__(self, *exception):
        self._served.__exit__(*exception)

    def call(self, path, body=None, method=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if isinstance(body, bytes | None) else json.dumps(body)
        sent = (HEADERS if body is not None else {}) | {key.replace("_", "-"): text for key, text in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, content, sent)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def features(self, path, body):
        status, text = self.call(path, body)
        assert status == 200, text
        return json.loads(text)


@pytest.fixture
def by_color(loaded):
    predictor = ColorPredictor(loaded.model)
    # As `Predictor`, it takes a single prompt without the axis of prompts too.
    several = predictor.predict

    def predict(points=None, labels=None, box=None, mask=None, **options):
        given = [None if each is None else np.asarray(each)[None] for each in (points, labels, box, mask)]
        return type(found := several(*given, **options))(*(each[0] for each in found))

    predictor.predict = predict
    with Running(loaded, predictor) as server:
        yield server, predictor


def png(pixels, mode=None):
    content = io.BytesIO()
    Image.fromarray(pixels, mode).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def scene(height=150, width=211):
    pixels = np.full((height, width, 3), 235, np.uint8)
    pixels[30:71, 40:121] = (60, 60, 200)
    pixels[45:55, 60:100] = 235  # a hole
    return pixels


def body(pixels, **fields):
    """What SAMPromptParameters holds; Gson leaves null out."""
    return {"type": "vit_l", "b64img": png(pixels), "multimask_output": False, **fields}


def test_a_point_gives_the_outline_in_pixels_of_the_picture(by_color):
    server, _ = by_color
    (found,) = server.features("/sam/", body(scene(), point_coords=[[5, 5], [42, 33]], point_labels=[0, 1]))
    assert found["type"] == "Feature"
    assert found["properties"] == {
        "object_idx": 0,
        "label": "object",
        "quality": pytest.approx(0.9),
        "sam_model": "vit_l",
    }
    wanted = shapely.box(40, 30, 121, 71).difference(shapely.box(60, 45, 100, 55))
    area = shapely.geometry.shape(found["geometry"])
    assert area.is_valid and area.intersection(wanted).area / area.union(wanted).area > 0.97
    assert area.exterior.is_ccw and len(area.interiors) == 1


def test_a_box_and_the_picture_that_is_kept(by_color):
    server, predictor = by_color
    given = body(scene(), bbox=[30, 20, 130, 60], checkpoint_url=None, point_coords=None, b64mask=None)
    server.features("/sam/", given)
    server.features("/sam/", given | {"multimask_output": True, "type": "sam2_t"})
    assert len(predictor.images) == 1
    server.features("/sam/", body(scene(160), bbox=[30, 20, 130, 60]))
    assert len(predictor.images) == 2


def test_gray_pictures_and_those_with_alpha_are_taken(by_color):
    server, predictor = by_color
    transparent = np.dstack([scene(), np.zeros((150, 211), np.uint8)])
    for pixels in (scene()[..., 0], transparent):
        server.features("/sam/", body(pixels, bbox=[30, 20, 130, 60]))
    assert all(image.shape == (150, 211, 3) and image.dtype == np.uint8 for image in predictor.images)
    assert (predictor.images[1] == 255).all()


def test_the_network_itself_answers_every_prompt_of_the_extension(loaded):
    mask = np.zeros((150, 211), np.uint8)
    mask[30:70, 40:120] = 255
    with Running(loaded, Predictor(loaded.model)) as server:
        for fields in (
            {"point_coords": [[50, 40]], "point_labels": [1], "multimask_output": True},
            {"bbox": [0, 0, 211, 150]},
            {"bbox": [30, 20, 130, 80], "point_coords": [[50, 40], [0, 149]], "point_labels": [1, 0]},
            {"b64mask": png(mask), "bbox": [40, 30, 120, 70]},
        ):
            for found in server.features("/sam/", body(scene(), **fields)):
                assert shapely.geometry.shape(found["geometry"]).is_valid
        everything = {
            "type": "vit_b",
            "b64img": png(scene()),
            "points_per_side": 3,
            "points_per_batch": 64,
            "pred_iou_thresh": 0.0,
            "stability_score_thresh": 0.0,
            "stability_score_offset": 1.0,
            "box_nms_thresh": 0.2,
            "crop_n_layers": 0,
            "crop_nms_thresh": 0.7,
            "crop_overlap_ratio": 0.3413333333333333,
            "crop_n_points_downscale_factor": 1,
            "min_mask_region_area": 0,
            "output_type": "Single Mask",
            "include_image_edge": False,
        }
        found = server.features("/sam/automask/", everything)
        assert all(shapely.geometry.shape(each["geometry"]).is_valid for each in found)
        for name, number in (("points_per_side", 0), ("points_per_side", 10**6), ("points_per_batch", 10**9)):
            assert server.call("/sam/automask/", everything | {name: number})[0] == 422


def test_weights_progress_and_version(by_color, loaded):
    server, _ = by_color
    ((weights,),) = [json.loads(server.call("/sam/weights/?type=vit_h")[1])]
    assert weights == {"type": "vit_h", "name": loaded.file, "url": f"file:{loaded.file}"}
    chosen = body(scene(), bbox=[30, 20, 130, 60], checkpoint_url=weights["url"])
    assert server.call("/sam/", chosen)[0] == 200
    status, said = server.call("/sam/", chosen | {"checkpoint_url": "https://example.org/other.pth"})
    assert status == 422 and loaded.file in said
    assert json.loads(server.call("/sam/progress/")[1]) == {"message": None, "percent": -1}
    assert server.call("/sam/version/")[1].startswith("bcss_jax ")
    assert server.call("/sam/weights/cancel/")[0] == 200
    assert server.call("/sam/weights/", {"type": "vit_b", "name": "mine", "url": "http://x"})[0] == 501


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bbox": None}, "no prompt"),
        ({"bbox": [1, 2, 3]}, "bbox"),
        ({"bbox": [50, 50, 10, 10]}, "the box"),
        ({"point_coords": [[500, 5]], "point_labels": [1]}, "the point (500, 5) lies outside of the image of 211x150"),
        ({"point_coords": [[5, 5]], "point_labels": [7]}, "labels are 1 (inside), 0 (outside)"),
        ({"point_coords": [[5, 5]], "point_labels": [1, 1]}, "expected labels"),
        ({"point_coords": [[5, 5]]}, "a label for each point"),
        ({"b64img": "no base64"}, "expected a PNG or JPEG in base64"),
        ({"b64img": base64.b64encode(b"no picture").decode()}, "expected a PNG or JPEG in base64"),
        ({"b64img": 5}, "b64img"),
        ({"b64mask": "A"}, "expected a PNG or JPEG in base64"),
    ],
)
def test_what_cannot_be_used_is_answered_in_one_line(loaded, change, said):
    with Running(loaded, Predictor(loaded.model)) as server:
        status, text = server.call("/sam/", body(scene(), bbox=[30, 20, 130, 60]) | change)
        assert status == 422 and said in json.loads(text)["detail"] and "\n" not in json.loads(text)["detail"]


def test_other_sites_other_types_and_large_requests_are_refused(by_color, monkeypatch):
    server, _ = by_color
    given = body(scene(), bbox=[30, 20, 130, 60])
    assert server.call("/sam/", given, Host="evil.example")[0] == 400
    assert server.call("/sam/", given, Content_Type="text/plain")[0] == 415
    assert server.call("/sam/", b"{")[0] == 422
    assert server.call("/sam/", None, "GET")[0] == 405
    assert server.call("/sam/video/", {})[0] == 404
    large = np.random.default_rng(0).integers(0, 255, (600, 800, 3), dtype=np.uint8)  # of more than a megabyte
    assert server.call("/sam/", body(large, bbox=[30, 20, 130, 60]))[0] == 200
    monkeypatch.setattr("bcss_jax.viewer.samapi.MAX_BYTES", 100)
    assert server.call("/sam/", given)[0] == 413
