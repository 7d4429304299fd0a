"""Measures how long the annotation page waits for an answer to a click on a view that is computed.

    python benchmarks/annotate_clicks.py

The decoder has the size of all published SAM networks, at 1024 pixels, with drawn weights; the encoder is small, as it
has no part in a click. What drawn weights answer is noise, so masks are replaced by a disc after they were computed.
The time is that of the HTTP request: decoding, resizing, tracing, JSON. Prints JSON: seconds by kind of click, the
median of seven.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np

REPEATS = 7
SIDE = 1024


def main() -> None:
    """Serves a slide, and clicks."""
    from helpers.annotator_small import STROMA, TUMOR, ServedAnnotator, slide_of_discs

    from bcss_jax.annotator.proposals.segmenter import SamSegmenter
    from bcss_jax.models.sam.architecture import ViTForm
    from bcss_jax.models.sam.sam import Sam
    from bcss_jax.models.sam.weights.loading import LoadedSam

    ys, xs = np.mgrid[0:SIDE, 0:SIDE]
    disc = (230 - np.hypot(xs - 500, ys - 480) + 8 * np.sin(xs / 9)).astype(np.float32)

    class Discs(SamSegmenter):
        """Computes masks, and returns discs of three sizes."""

        def predict(self, embedding, view, prompt, mask):
            """See `Segmenter`."""
            return tuple(
                each._replace(masks=np.stack([disc - 20 * number for number in range(len(each.masks))]))
                for each in super().predict(embedding, view, prompt, mask)
            )

    model = Sam(ViTForm(48, 1, 3, (), hidden=96), image_size=SIDE)
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        discs = [(700, 600, 250, TUMOR), (1400, 1000, 150, STROMA)]
        slide = slide_of_discs(Path(folder) / "case.png", 2000, 1500, discs)
        with ServedAnnotator(slide, Discs(LoadedSam(model, None, "drawn", "0" * 64, ())), mpp=0.5) as served:
            print(json.dumps(clicks(served)))


def clicks(served) -> dict[str, float]:
    """Returns the seconds that answers take."""
    prompt = {"points": [], "box": None, "um_per_pixel": 0.5, "previous": None}
    click = [{"at": [700, 600], "inside": True}]
    while (first := served.post("prompt", prompt | {"points": click}))["computing"]:
        pass
    seconds = {}
    for kind, given in (
        ("first click", {"points": click}),
        ("second click", {"points": [*click, {"at": [760, 640], "inside": False}], "previous": [first["answer"], 0]}),
        ("box", {"box": [450, 350, 950, 850]}),
    ):
        times = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            served.post("prompt", prompt | given)
            times.append(time.perf_counter() - begin)
        seconds[kind] = round(statistics.median(times), 3)
    return seconds


if __name__ == "__main__":
    main()
