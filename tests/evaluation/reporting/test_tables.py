"""table.md and table.tex: their content, what is refused, and what is escaped."""

import copy
import json
import re

import pytest

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.evaluation.reporting import tables
from bcss_jax.labels import SCHEMES


def evaluation(
    name="unet", model="unet", scheme="tumor_stroma_other", layout="kaggle224", split="published", images=5429
):
    labels = SCHEMES[scheme].to_json()
    names = [labels["class_names"][label] for label in labels["evaluated"]]
    return {
        "name": name,
        "model": model,
        "label_scheme": labels,
        "trained_on": {"layout": "kaggle224", "split": "published", "tiles": {"train": 30760, "val": 5429}},
        "data": {"layout": layout, "split": split, "tiles": {"train": 30760, "val": images}},
        "part": "val",
        "scores": {
            "number": {"images": images, "patients": 151, "institutes": 20, "pixels": 1000},
            "scores": {
                "dice_global": {n: 0.8512 + 0.01 * i for i, n in enumerate(names)} | {"macro": 0.8562},
                "dice_image": {"macro": 0.7},
                "dice_batch": {"macro": 0.75},
                **({"dice_report": {"macro": 0.8}} if SCHEMES[scheme].report_classes else {}),
            },
            "intervals": {
                "over": "patients", "n": 151, "resamples": 2000, "dice_global": {"macro": [0.8401, 0.8699]},
            },
        },
    }  # fmt: skip


def rows(text):
    """Returns the cells of the header and of the rows of the models."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert len({len(cells) for cells in lines}) == 1
    return [lines[0], *lines[2:]]


def test_table_1_stands_beside_the_dice_of_the_report_alone():
    text = tables.markdown([evaluation("of its code", "report_unet"), evaluation(), evaluation("r", "unet_resnet101")])
    header, *models = rows(text)
    assert header[-3:] == ["dice_batch", "dice_report", "report's Table 1"]
    assert models[0] == [
        "of its code", "kaggle224 published split, val, 5429 images", "0.851", "0.861", "0.871", "0.856",
        "0.840 to 0.870 (151 patients)", "0.700", "0.750", "0.800", "0.834",
    ]  # fmt: skip
    assert models[1][-2:] == ["0.800", "0.834"] and models[2][-2:] == ["0.800", "–"]  # it has no such network
    assert "label scheme tumor_stroma_other" in text and "dice_global" in text
    assert "can be compared with it alone: U-Net 0.834, Dense U-Net 0.812, TransUNet 0.823, nnU-Net 0.809" in text
    assert "Other networks than those of the report's own code" in text and "report_transunet: unet." in text


@pytest.mark.parametrize("scheme", ["tumor_stroma", "five_classes"])
def test_table_1_is_not_in_tables_of_another_task(scheme):
    text = tables.markdown([evaluation(scheme=scheme)])
    assert rows(text)[0][-1] == "dice_batch" and "0.834" not in text and "dice_report" not in text
    assert "0.834" not in tables.latex([evaluation(scheme=scheme)])
    assert f"the label scheme is {scheme}; Table 1 is of three classes" in text


def test_results_of_before_the_score_are_marked():
    before = evaluation()
    del before["scores"]["scores"]["dice_report"]
    check_reason(before, "an earlier version evaluated it without dice_report")
    assert rows(tables.markdown([before]))[1][-2:] == ["–", "0.834"]


@pytest.mark.parametrize(
    ("change", "reason"),
    (
        ({"scheme": "tumor_stroma"}, "the label scheme is tumor_stroma;"),
        ({"split": "institute"}, "evaluated on kaggle224 institute split, val, 5429 images"),
        ({"layout": "roi"}, "evaluated on roi published split"),
        ({"images": 30}, "evaluated on 30 of the 5429"),
    ),
)
def test_scores_that_are_not_comparable_are_marked(change, reason):
    check_reason(evaluation(**change), reason)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    (
        ("part", "train", "evaluated on kaggle224 published split, train"),
        ("trained_on", None, "not known"),
        (
            "trained_on",
            {"layout": "kaggle224", "split": "institute", "tiles": {}},
            "trained on the kaggle224 institute",
        ),
        (
            "trained_on",
            {"layout": "kaggle224", "split": "published", "tiles": {"train": 90}},
            "trained on 90 of the 30760",
        ),
    ),
)
def test_models_with_other_training_data_or_splits_are_marked(field, value, reason):
    check_reason(evaluation() | {field: value}, reason)


def check_reason(other, reason):
    (found,) = tables.not_comparable(other)
    assert reason in found
    text = tables.markdown([other])
    assert f"Not comparable with the report's Table 1 ({found}): unet." in text and tables.COMPARABLE not in text


def test_one_line_lists_the_comparable_models_and_one_line_each_kind_of_others():
    assert tables.not_comparable(evaluation()) == []
    text = tables.markdown([evaluation("a"), evaluation("b", images=30), evaluation("c"), evaluation("d", images=30)])
    assert "- dice_report is comparable with the report's Table 1 by task, split and tiles: a, c.\n" in text
    assert re.search(r"- Not comparable with the report's Table 1 \(.*\): b, d\.\n", text)


def test_different_label_schemes_are_refused_in_one_table():
    with pytest.raises(ConfigError) as error:
        tables.markdown([evaluation("one"), evaluation("two", scheme="five_classes")])
    for name in ("one", "two", "tumor_stroma", "five_classes"):
        assert name in str(error.value)
    with pytest.raises(ConfigError):
        tables.latex([evaluation("one"), evaluation("two", scheme="five_classes")])
    with pytest.raises(DataError, match="found none"):
        tables.markdown([])


def test_evaluations_from_files_and_new_ones_share_a_table():
    assert tables.markdown([evaluation(), json.loads(json.dumps(evaluation()))]).count("| unet |") == 2


def test_a_missing_score_is_a_dash():
    missing = evaluation()
    missing["scores"]["scores"]["dice_global"]["stroma"] = None
    missing["scores"]["intervals"]["dice_global"]["macro"] = [None, None]
    assert tables.markdown([missing]).splitlines()[2].count("| – |") == 2
    assert tables.latex([missing]).count("& -- &") == 2


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "*": "{*}",
}  # fmt: skip


@pytest.mark.parametrize("character", TEX)
def test_every_special_character_of_tex_is_escaped(character):
    text = tables.latex([evaluation(f"a{character}b")])
    assert f"\na{TEX[character]}b & " in text
    assert f"a{character}b" not in text.replace(f"a{TEX[character]}b", "")


def test_tex_is_well_formed_whatever_the_name():
    name = "".join(TEX) + "\n\t\r\x00 zu § 95 %"
    text = tables.latex([evaluation(name), evaluation("plain")])
    body = re.sub(r"\\[&%$#_{}]", "", text)  # the remaining ones have their special meaning in TeX
    assert body.count("{") == body.count("}")
    assert not re.search(r"[%$#_~^]", body)
    lines = body.split(r"\hline")
    table_rows = [line for part in lines[1:3] for line in part.strip().splitlines()]
    assert len(table_rows) == 3 and {row.count("&") for row in table_rows} == {10}
    assert all(row.endswith(r"\\") for row in table_rows)
    assert r"\begin{tabular}{llrrrrrrrrr}" in text


def test_markdown_is_well_formed_whatever_the_name():
    text = tables.markdown([evaluation("a|b\n# c `d` <i> \\ [x](y) *z* _w_ a_b")])
    row = text.splitlines()[2]
    assert row.startswith(r"| a\|b \# c \`d\` \<i\> \\ \[x\](y) \*z\* \_w\_ a_b | ")
    assert len(re.findall(r"(?<!\\)\|", row)) == 12


def test_files_are_written_whole(tmp_path):
    evaluations = [evaluation()]
    before = copy.deepcopy(evaluations)
    tables.write(tmp_path, evaluations)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "table.md", "table.tex"]
    assert (tmp_path / "table.md").read_text() == tables.markdown(evaluations)
    assert (tmp_path / "table.tex").read_text() == tables.latex(evaluations)
    assert evaluations == before
