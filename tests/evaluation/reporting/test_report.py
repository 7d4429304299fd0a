"""The text of report.html: its content, names that are escaped, and that it needs no network."""

import base64
import copy
import hashlib
import html.parser
import io
import re

import numpy as np
import pytest
from helpers.evaluation_small import COUNT, SIZE, data, differences, evaluation, results
from PIL import Image

from bcss_jax.common.figures import CLASS_COLORS
from bcss_jax.errors import DataError, StorageError
from bcss_jax.evaluation.reporting import report
from bcss_jax.labels import SCHEMES, LabelScheme

SECTIONS = ("summary", "scores", "curves", "confusion", "calibration", "gallery", "data", "settings")
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
VOID = ("meta", "link", "img", "input", "br", "wbr", "source", "rect", "path")


class Page(html.parser.HTMLParser):
    """Elements with their attributes, text per element, and whether every element is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.text, self._open = [], {}, "", []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, text):
        where = self._open[-1] if self._open else ""
        self.texts.setdefault(where, []).append(text)
        if where not in ("style", "script"):
            self.text += text

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self):
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def small():
    found, gallery = evaluation()
    other, of_other = evaluation("dense_unet", noise=2.0, seed=1)
    return results(found, other, paired=[differences("unet", "dense_unet")]), {"unet": gallery, "dense_unet": of_other}


@pytest.fixture(scope="module")
def page(small):
    return Page(report.html(*small))


def changed(small, **changes):
    """Returns the results with fields of the first evaluation replaced."""
    found = copy.deepcopy(small[0])
    found["evaluations"][0] |= changes
    return found


def test_all_sections_are_there_and_linked(page):
    assert [attributes["id"] for attributes in page.all("section")] == list(SECTIONS)
    assert [attributes["href"] for attributes in page.all("a")] == [f"#{name}" for name in SECTIONS]
    assert "not for diagnosis" in page.text


def test_the_scores_and_their_intervals(small, page):
    for each in small[0]["evaluations"]:
        found = each["scores"]
        for name in ("tumor", "stroma", "macro"):
            low, high = found["intervals"]["dice_global"][name]
            assert f"{found['scores']['dice_global'][name]:.3f}" in page.texts["td"]
            assert f"{low:.3f} to {high:.3f}" in page.texts["span"]
        assert f"{found['surface']['hd95_um']['macro']:.1f}" in page.texts["td"]
        assert f"{found['calibration']['ece']:.3f}" in page.texts["td"]
    assert f"{COUNT} images, 9 patients, 2 institutes; intervals over 9 patients" in page.words()
    assert {"+0.012", "-0.004 to +0.031"} <= set(page.texts["td"])
    assert (
        "temperature 1.50, fitted on 2,000 pixels of train. ECE of these pixels: 0.040 before, 0.010 after scaling."
        in (page.words())
    )
    assert "Every pixel is predicted as tumor or stroma" in page.text
    assert "Not comparable with the report's Table 1" in page.text


def test_it_needs_no_network(small):
    text = report.html(*small)
    page = Page(text)
    for tag, attributes in page.elements:
        assert not {"onclick", "onerror", "onload", "style", "background", "action"} & attributes.keys()
        for name in ("src", "srcset", "href"):
            if name in attributes:
                assert attributes[name].startswith("data:" if tag != "a" else "#")
    assert not re.search(r"url\(|@import|https?://|//[a-z]", "".join(page.texts["style"] + page.texts["script"]))
    assert not re.search(r"https?:", text)


def test_the_policy_allows_this_style_and_this_script_only(page):
    (policy,) = [each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = page.texts[tag]
        assert len(page.all(tag)) == 1
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    order = [each.get("http-equiv") or each.get("charset") for each in page.all("meta")]
    assert order[:2] == ["utf-8", "Content-Security-Policy"]  # before anything that it restricts


def test_names_from_data_are_text(small):
    scheme = LabelScheme("tumor_stroma", ("ignored", EVIL, "stroma"), 0, (1, 2))
    found, gallery = evaluation("unet", scheme)
    about = data(
        layout=EVIL, split=EVIL, codes=EVIL, code_pixels={EVIL: {EVIL: 3}}, tiles={EVIL: 3}, patients={EVIL: 1}
    )
    found |= {
        "name": EVIL, "model": EVIL, "data": about, "trained_on": about, "part": EVIL, "config": {EVIL: EVIL},
        "versions": {EVIL: EVIL}, "pretrained": {"file": EVIL, "sha256": EVIL}, "params_sha256": EVIL,
        "checkpoint": {"folder": EVIL}, "temperature": found["temperature"] | {"fitted_on": EVIL},
    }  # fmt: skip
    gallery = [entry | {"key": EVIL} for entry in gallery]
    whole = results(found, paired=[differences(EVIL, EVIL, (EVIL,))]) | {"settings": {EVIL: EVIL}}
    text = report.html(whole, {"unet": gallery})
    assert "<script>alert" not in text and "<img src=x" not in text
    page = Page(text)
    assert len(page.all("script")) == 1
    assert not any("onerror" in attributes for attributes in page.all("img"))
    assert page.text.count(EVIL) > 20
    assert [each["aria-label"] for each in page.all("input")] == [f"View of image {EVIL}"] * len(gallery)


def test_the_gallery_holds_the_pictures(small):
    page = Page(report.html(small[0], {"unet": small[1]["unet"][:1]}))
    layers = [each["src"] for each in page.all("img") if each.get("class") == "layer" or "width" in each]
    image, truth, prediction, errors = (Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) for uri in layers)
    entry = small[1]["unet"][0]
    assert image.size == (SIZE, SIZE) and image.format == "JPEG"
    assert np.abs(np.asarray(image, int) - entry["image"]).mean() < 2
    for layer, labels in ((truth, entry["truth"]), (prediction, entry["prediction"])):
        pixels = np.asarray(layer)
        assert pixels.shape == (SIZE, SIZE, 4) and 0 < pixels[0, 0, 3] < 255 and len(np.unique(pixels[..., 3])) == 1
        for label, name in ((1, "tumor"), (2, "stroma")):
            assert (pixels[labels == label][:, :3] == CLASS_COLORS[name]).all()
    right = (entry["truth"] == entry["prediction"])[..., None]
    assert (np.asarray(errors)[right[..., 0]] == 255).all()
    assert {"#e69f00", "#0072b2"} <= {each["fill"] for each in page.all("rect")}
    assert "No images." in page.text  # of the other model


def test_the_gallery_is_read_from_its_files(tmp_path, small):
    entries = small[1]["unet"][:2]
    chosen = []
    for number, entry in enumerate(entries):
        files = {kind: f"gallery/{number}_{kind}.png" for kind in ("image", "truth", "prediction")}
        chosen.append({"rank": entry["rank"], "key": entry["key"], "files": files})
        for kind, file in files.items():
            (tmp_path / "gallery").mkdir(exist_ok=True)
            Image.fromarray(entry[kind]).save(tmp_path / file)
    found = report.read_gallery(tmp_path, {"gallery": chosen})
    for entry, wanted in zip(found, entries, strict=True):
        assert entry.keys() == wanted.keys()
        for kind in ("image", "truth", "prediction"):
            np.testing.assert_array_equal(entry[kind], wanted[kind])
    for content in (b"\x89PNG\r\n\x1a\ncut", None):
        (tmp_path / files["truth"]).unlink()
        if content:
            (tmp_path / files["truth"]).write_bytes(content)
        with pytest.raises(DataError, match="1_truth.png"):
            report.read_gallery(tmp_path, {"gallery": chosen})


def test_only_comparable_evaluations_share_a_table(small):
    wide, _ = evaluation("wide", SCHEMES["tumor_stroma_other"])
    elsewhere = small[0]["evaluations"][0] | {"name": "elsewhere", "folder": "elsewhere", "part": "test"}
    page = Page(report.html(results(*small[0]["evaluations"], wide, elsewhere), {}))
    labels = [each["aria-label"] for each in page.all("div") if each.get("aria-label", "").startswith("Scores")]
    assert labels == [
        "Scores, kaggle224, institute split, val; label scheme tumor_stroma",
        "Scores, kaggle224, institute split, val; label scheme tumor_stroma_other",
        "Scores, kaggle224, institute split, test; label scheme tumor_stroma",
    ]


def test_unknown_facts_are_named_or_left_out(small):
    found = changed(
        small, name="pair", model="ensemble", trained_on=None, config=None, versions=None, history=[], temperature=None,
        checkpoint={"members": [{"name": "a", "folder": "f", "which": "best", "step": 1, "epoch": None}]},
    )  # fmt: skip
    macro = {"dice_global": {"macro": None, "tumor": None}, "dice_image": {"macro": None}}
    for name, values in macro.items():
        found["evaluations"][0]["scores"]["scores"][name] |= values
    found["evaluations"][0]["scores"]["intervals"]["dice_global"]["macro"] = [None, None]
    page = Page(report.html(found | {"differences": []}, {}))
    assert "The training data of pair are not known." in page.text
    assert "–" in page.texts["td"] and "pair: mean Dice –" in page.words()
    found["evaluations"] = found["evaluations"][:1]
    assert "The evaluated checkpoints contain no training history." in report.html(found, {})


def test_a_report_needs_an_evaluation():
    with pytest.raises(DataError, match="found none"):
        report.html(results(), {})


def test_the_file(tmp_path, small):
    report.write(tmp_path / "report.html", *small)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report.html(*small)
    with pytest.raises(StorageError, match="none: cannot be written"):
        report.write(tmp_path / "none" / "report.html", *small)
