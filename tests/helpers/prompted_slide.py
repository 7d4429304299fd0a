"""A slide of discs with known outlines, prompts on it, and a stand-in for SAM that answers with what has one color."""

import json

import cv2
import numpy as np
import shapely
from safetensors.numpy import save_file

from bcss_jax.models.sam.architecture import DecoderForm, ViTForm
from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.weights.pretrained import to_torch_state
from bcss_jax.prompting.predictor import Prediction
from helpers import slide_files

SIZE, MPP = (800, 600), 0.25
BLUE, RED = (60, 60, 200), (200, 60, 60)
DISCS = {  # by name: center, radius, color; all apart from each other
    "left": ((150, 150), 60, BLUE),
    "right": ((420, 180), 90, RED),
    "low": ((250, 430), 110, BLUE),
    "tiny": ((640, 480), 9, RED),
}
# With the decoder of the published networks, whose sizes the files are told by.
FORM = ViTForm(24, 2, 2, (1,), window=4, hidden=48, table=8)


def disc(name):
    (x, y), radius, _ = DISCS[name]
    return shapely.Point(x, y).buffer(radius, quad_segs=64)


def prompted_slide(path, **options):
    """Writes the slide; its discs are drawn with their pixels' centers."""
    pixels = np.full((SIZE[1], SIZE[0], 3), 240, np.uint8)
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    for (x, y), radius, color in DISCS.values():
        pixels[np.hypot(columns - x, rows - y) < radius] = color
    return slide_files.tiled(path, pixels, **{"mpp": MPP, **options})


def sam_file(path, seed=0):
    """Writes the weights of a SAM with an input of 128 pixels and random weights."""
    save_file(to_torch_state(Sam(FORM, DecoderForm(), seed=seed)), path)
    return path


def feature(geometry, name):
    kind = None if name is None else {"name": name, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"objectType": "annotation", "classification": kind},
    }


def points(name, *places):
    return feature({"type": "MultiPoint", "coordinates": [list(place) for place in places]}, name)


def point(name, x, y):
    return feature({"type": "Point", "coordinates": [x, y]}, name)


def polygon(name, area):
    return feature(json.loads(shapely.to_geojson(area)), name)


def rectangle(name, x0, y0, x1, y1):
    return polygon(name, shapely.box(x0, y0, x1, y1))


def write_prompts(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


class ColorPredictor:
    """Answers with all connected pixels of the color at the first point inside, or at the center of the box.

    The logit is `strength` less the square of the distance from the color, so it is above 0 up to the edge.
    """

    strength = 9.0

    def __init__(self, model):
        self.model, self.images, self.calls = model, [], []

    def set_image(self, image):
        self.images.append(image)

    def predict(self, points=None, labels=None, box=None, mask=None, *, multimask=True, logits=False):
        self.calls.append({"points": points, "labels": labels, "box": box, "mask": mask, "multimask": multimask})
        count = len(next(each for each in (points, box, mask) if each is not None))
        found = [
            self._one(*(None if each is None else each[n] for each in (points, labels, box))) for n in range(count)
        ]
        masks = np.stack(found)[:, None]
        scores = np.full((count, 1), 0.9, np.float32)
        return Prediction(masks if logits else masks > 0, scores, masks)

    def _one(self, points, labels, box):
        image = self.images[-1].astype(np.float32)
        if points is not None and (np.asarray(labels) == 1).any():
            x, y = np.round(points[np.asarray(labels) == 1][0]).astype(int)
        else:
            x, y = np.round((box[:2] + box[2:]) / 2).astype(int)
        distance = np.abs(image - image[y, x]).max(-1) / 30
        logits = self.strength - distance**2
        components = cv2.connectedComponents((logits > 0).astype(np.uint8))[1]
        return np.where(components == components[y, x], logits, np.minimum(logits, -1)).astype(np.float32)
