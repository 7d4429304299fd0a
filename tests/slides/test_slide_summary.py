"""The content of a slide's summary.json: written and read by one schema, as by versions before."""

import json
from pathlib import Path

import pytest
from helpers.slide_summaries import slide_summary

from bcss_jax.errors import DataError
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.slide_summary import SlideSummary, read_summary

RECORDED = Path(__file__).parent / "recorded_summary.json"  # written before the schema was one dataclass


@pytest.fixture
def values():
    return slide_summary(Path("b.png"), 80, 60, Grid(80, 60, 0.25, (1.0, 1.0))).to_json()


def test_a_summary_of_an_earlier_version_is_read_and_written_to_the_byte():
    summary = read_summary(RECORDED)
    assert json.dumps(summary.to_json(), indent=1) + "\n" == RECORDED.read_text()
    assert summary.slide.name == "case.tif" and (summary.slide.width, summary.slide.height) == (900, 700)
    assert summary.grid == Grid(900, 700, 0.25, (1.0, 1.0)) and summary.model["name"] == "one"
    assert [(each.value, each.name, each.color) for each in summary.classes] == [
        (1, "tumor", (230, 159, 0)),
        (2, "stroma", (0, 114, 178)),
    ]
    assert summary.labels_file == "labels.ome.tif" and summary.files["overlay"] == "overlay.png"
    assert summary.dice == {"tumor": 0.06239649598498279, "stroma": 0.5698362726428906, "macro": 0.3161163843139367}
    assert summary.dice_of_region is None and summary.resumed is False
    assert summary.fingerprint["bytes"] == 578522


def test_fields_that_a_version_did_not_write_are_not_added():
    values = json.loads(RECORDED.read_text())
    del values["resumed"], values["scores"]
    summary = SlideSummary.from_json(values)
    assert summary.resumed is None and summary.dice is None and summary.to_json() == values


DAMAGES = [
    lambda values: values.pop("grid"),
    lambda values: values.update(format=2),
    lambda values: values.update(classes=[]),
    lambda values: values.update(slide=None),
    lambda values: values.update(tissue_area_mm2=float("nan")),
    lambda values: values.update(tissue_area_mm2="<script>"),
    lambda values: values.update(tumor_stroma_ratio=-1),
    lambda values: values["grid"].update(scale=[0, 1]),
    lambda values: values["grid"].update(scale=[1]),
    lambda values: values["grid"].update(width=True),
    lambda values: values["grid"].update(width=10**9),
    lambda values: values["slide"].update(height=-1),
    lambda values: values["slide"].update(path="a\0b"),
    lambda values: values["slide"].update(bounds=[1, 2, 3]),
    lambda values: values["classes"][0].update(colour=[1, 2]),
    lambda values: values["classes"][0].update(colour=[1, 2, 256]),
    lambda values: values["classes"][0].update(value=2),
    lambda values: values["classes"][0].update(value=255),
    lambda values: values["files"].update(labels=None),
    lambda values: values.pop("identity"),
    lambda values: values["identity"]["files"]["slide"].update(bytes=-1),
    lambda values: values.update(scores={}),
    lambda values: values.update(scores={"dice": {"tumor": "<script>"}}),
    lambda values: values.update(scores_of_region={"dice": [0.5]}),
    lambda values: values["model"].pop("name"),
    lambda values: values["seconds"].pop("total"),
    lambda values: values["classes"][0].update(pixels=0.5),
    lambda values: values.update(resumed="yes"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_summary_is_refused_in_one_line(values, tmp_path, damage):
    damage(values)
    (tmp_path / "summary.json").write_text(json.dumps(values))
    with pytest.raises(DataError) as error:
        read_summary(tmp_path / "summary.json")
    line = str(error.value)
    assert line.startswith(f"{tmp_path}/summary.json: expected the summary of a segmented slide, found: ")
    assert line.endswith("; segment the slide again") and "\n" not in line
