"""From a slide through clicks in the browser to a U-Net that segments the same slide."""

import csv
import json

import numpy as np
import pytest
from helpers.annotator_page import Annotator
from helpers.annotator_small import GLASS, STROMA, TUMOR, DiscSegmenter, ServedAnnotator, slide_of_discs
from helpers.chromium import DESKTOP
from PIL import Image

import bcss_jax

SIDE = 640
DISCS = {
    "a": [(150, 150, 90, TUMOR), (450, 180, 110, STROMA), (180, 470, 100, STROMA), (480, 480, 90, TUMOR)],
    "b": [(170, 430, 100, TUMOR), (470, 150, 100, TUMOR), (150, 140, 90, STROMA), (460, 470, 110, STROMA)],
}
SETTINGS = {
    "labels": "tumor_stroma", "data.mpp": 0.5, "data.patch_size": 64, "data.stride": 32, "data.threads": 1,
    "model.width": 8, "model.depth": 2, "batch_size": 8, "eval_batch_size": 8, "epochs": 6,
    "optimizer.learning_rate": 2e-3,
}  # fmt: skip


@pytest.mark.slow
def test_clicks_in_the_browser_train_a_network_that_segments_the_slide(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = []
    for name, split in (("a", "train"), ("b", "val")):
        slide = slide_of_discs(tmp_path / f"{name}.png", SIDE, SIDE, DISCS[name])
        with ServedAnnotator(slide, DiscSegmenter(512), mpp=0.5) as served:
            page = Annotator(browser, served, DESKTOP)
            for count, (x, y, _, color) in enumerate(DISCS[name], 1):
                page.press("Shift+Digit1" if color == TUMOR else "Shift+Digit2")
                page.click(x + 20, y - 15)
                page.proposals()
                page.press("Enter")
                page.annotations(count)
            page.page.close()
        content = json.loads((tmp_path / f"{name}.geojson").read_bytes())
        assert content["bcss_jax"]["clicks"] == 4 and content["bcss_jax"]["minutes"] > 0
        rows.append([f"{name}.png", f"{name}.geojson", 0.5, name, split])
    with open(tmp_path / "slides.csv", "w", newline="") as file:
        csv.writer(file).writerows([["slide", "annotations", "mpp", "patient", "split"], *rows])
    changes = SETTINGS | {"data.list": str(tmp_path / "slides.csv"), "data.prepared_dir": str(tmp_path / "prepared")}
    run = bcss_jax.train(bcss_jax.load_config("unet:slides", changes), tmp_path / "run")
    assert run.summary["dice_global"]["macro"] > 0.9  # over what is annotated; the glass around has no truth
    bcss_jax.segment(run.folder, tmp_path / "a.png", output=tmp_path / "out", mpp=0.5, tissue="all")
    (labels,) = (tmp_path / "out").glob("**/labels.ome.tif")
    import tifffile

    found = tifffile.imread(labels)
    found = np.asarray(Image.fromarray(found).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    for value, color in ((1, TUMOR), (2, STROMA)):
        assert (found[(pixels == color).all(-1)] == value).mean() > 0.9
    assert (pixels == GLASS).all(-1).any()
