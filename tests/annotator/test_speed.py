"""A click on a view that is computed is answered within 300 ms, with a decoder of the size of the published ones."""

import time

import pytest
from helpers.annotator_small import STROMA, TUMOR, ServedAnnotator, slide_of_discs

from bcss_jax.annotator.proposals.segmenter import SamSegmenter
from bcss_jax.models.sam.architecture import ViTForm
from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.sam.weights.loading import LoadedSam

SECONDS = 0.3
ENCODER = ViTForm(48, 1, 3, (), hidden=96)  # small, because it has no part in a click


@pytest.mark.slow
def test_a_click_is_answered_in_300_ms_once_its_view_is_computed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    discs = [(700, 600, 250, TUMOR), (1400, 1000, 150, STROMA)]
    slide = slide_of_discs(tmp_path / "case.png", 2000, 1500, discs)
    model = Sam(ENCODER, image_size=1024)
    model.eval()
    segmenter = SamSegmenter(LoadedSam(model, None, "drawn", "0" * 64, ()))
    with ServedAnnotator(slide, segmenter, mpp=0.5) as served:
        prompt = {"points": [], "box": None, "um_per_pixel": 0.5, "previous": None}
        click = [{"at": [700, 600], "inside": True}]
        while served.post("prompt", prompt | {"points": click})["computing"]:
            pass
        seconds = {}
        for kind, given in (
            ("first click", {"points": click}),
            ("second click", {"points": [*click, {"at": [760, 640], "inside": False}]}),
            ("box", {"box": [450, 350, 950, 850]}),
        ):
            times = []
            for _ in range(7):
                begin = time.perf_counter()
                answer = served.post("prompt", prompt | given)
                times.append(time.perf_counter() - begin)
                assert not answer["computing"]
            seconds[kind] = min(times)  # other work on the machine makes single ones slower
        print({kind: round(value, 3) for kind, value in seconds.items()})
        assert max(seconds.values()) < SECONDS, seconds
