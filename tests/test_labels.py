import json

import numpy as np
import pytest

from bcss_jax import labels
from bcss_jax.errors import ConfigError

SHARED_CODES = {  # for each scheme, the label of each of the 22 codes, written by hand
    "tumor_stroma": [0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0],
    "tumor_stroma_other": [255, 1, 2, 0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 1, 1, 0],
    "five_classes": [0, 1, 2, 3, 4, 5, 5, 0, 5, 5, 3, 3, 5, 5, 5, 0, 5, 5, 5, 1, 1, 5],
    "tiatoolbox_bcss": [255, 0, 1, 2, 3, 4, 4, 255, 4, 4, 2, 2, 4, 4, 4, 255, 4, 4, 4, 0, 0, 4],
}


@pytest.mark.parametrize("scheme", SHARED_CODES)
def test_every_code_of_the_original_masks(scheme):
    table = labels.lookup_table(labels.SCHEMES[scheme], "bcss22")
    assert table.dtype == np.uint8
    assert table[:22].tolist() == SHARED_CODES[scheme]
    assert (table[22:] == labels.UNMAPPED).all()


@pytest.mark.parametrize("scheme", ["tumor_stroma", "tumor_stroma_other"])
def test_every_code_of_the_kaggle_tiles(scheme):
    table = labels.lookup_table(labels.SCHEMES[scheme], "kaggle3")
    assert table[:3].tolist() == [0, 1, 2]
    assert (table[3:] == labels.UNMAPPED).all()


def test_three_codes_cannot_express_five_classes():
    with pytest.raises(ValueError, match="kaggle3.* cannot express .* five_classes; use kaggle512 or roi"):
        labels.lookup_table(labels.SCHEMES["five_classes"], "kaggle3")


@pytest.mark.parametrize("scheme", labels.SCHEMES.values(), ids=str)
def test_schemes_are_consistent(scheme):
    assert set(scheme.evaluated) == set(range(scheme.num_classes)) - {scheme.ignore_index}
    assert len(scheme.evaluated_names) == len(scheme.evaluated)
    assert scheme.to_json()["class_names"] == scheme.class_names
    table = labels.lookup_table(scheme, "bcss22")
    assert set(table[:22].tolist()) == {*scheme.evaluated, scheme.ignore_index}


def test_code_names_agree_with_the_data_set():
    from helpers.paths import DATA

    book = DATA / "meta" / "gtruth_codes.tsv"
    if not book.exists():
        pytest.skip(f"{book} does not exist")
    rows = [line.split("\t") for line in book.read_text().splitlines()[1:]]
    assert [name for name, _ in rows] == list(labels.BCSS22_NAMES)
    assert [int(code) for _, code in rows] == list(range(22))


CUSTOM = """
class_names = ["ignored", "tumor", "benign"]
evaluated = ["tumor", "benign"]

[colors]
ignored = "#808080"
tumor = "#E69F00"
benign = "#0072B2"

[bcss22]
tumor = ["tumor", 19, "dcis"]
benign = ["normal_acinus_or_duct", 14]
ignored = "rest"
"""


def write_and_load(tmp_path, text, name="own.toml"):
    (tmp_path / name).write_text(text)
    return labels.find_scheme(str(tmp_path / name))


def test_file_maps_codes_by_name_and_by_number(tmp_path):
    scheme = write_and_load(tmp_path, CUSTOM)
    assert scheme.name == "own" and (scheme.ignore_index, scheme.evaluated) == (0, (1, 2))
    table = labels.lookup_table(scheme, "bcss22")[:22]
    assert np.flatnonzero(table == 1).tolist() == [1, 19, 20] and np.flatnonzero(table == 2).tolist() == [13, 14]
    assert scheme.colors[1] == (0xE6, 0x9F, 0x00)
    with pytest.raises(ValueError, match=r"cannot express the label scheme own; use kaggle512 or roi data"):
        labels.lookup_table(scheme, "kaggle3")


def test_the_task_of_the_report_has_a_class_for_each_code_of_the_tiles(tmp_path):
    found = {name: scheme.report_classes for name, scheme in labels.SCHEMES.items() if scheme.report_classes}
    assert found == {"tumor_stroma_other": (1, 2)}
    names = 'class_names = ["t", "s", "o"]\n[colors]\nt = "#E69F00"\ns = "#0072B2"\no = "#CC79A7"\n[kaggle3]\n'
    for order, classes in (("ts", (0, 1)), ("st", (1, 0))):
        codes = f'{order[0]} = ["tumor"]\n{order[1]} = ["stroma"]\no = "rest"'
        assert write_and_load(tmp_path, names + codes, f"{order}.toml").report_classes == classes


def test_ignored_pixels_without_a_class_have_no_output(tmp_path):
    text = CUSTOM.replace('["ignored", "tumor"', '["tumor"').replace('ignored = "#808080"\n', "")
    scheme = write_and_load(tmp_path, text)
    assert scheme.class_names == ("tumor", "benign") and scheme.ignore_index == 255 and scheme.evaluated == (0, 1)
    assert labels.lookup_table(scheme, "bcss22")[:2].tolist() == [255, 0]


def test_a_scheme_defines_codes_of_its_own(tmp_path):
    own = CUSTOM.replace("[bcss22]", "[own_codes]").replace('["tumor", 19, "dcis"]', "[1, 40]")
    own = own.replace('["normal_acinus_or_duct", 14]', "[7]")
    scheme = write_and_load(tmp_path, own.replace('ignored = "rest"', "ignored = [0]"))
    table = labels.lookup_table(scheme, labels.OWN_CODES)
    assert {code: table[code] for code in np.flatnonzero(table != labels.UNMAPPED)} == {0: 0, 1: 1, 7: 2, 40: 1}
    assert labels.codes_of_slide_masks(scheme) == labels.OWN_CODES
    assert labels.readable_codes(scheme, labels.OWN_CODES) == 41 and scheme.ignores_tissue
    values = json.loads(json.dumps(scheme.to_json()))
    assert labels.scheme_from_json(values) == scheme == labels.unchecked_scheme(values)
    with pytest.raises(ValueError, match="bcss22 .* cannot express the label scheme own; use slides data"):
        labels.lookup_table(scheme, "bcss22")
    rest = write_and_load(tmp_path, own, "rest.toml")
    assert (labels.lookup_table(rest, labels.OWN_CODES) == 0).sum() == 253
    both = write_and_load(tmp_path, own + CUSTOM[CUSTOM.index("[bcss22]") :], "both.toml")
    assert labels.codes_of_slide_masks(both) == labels.OWN_CODES
    assert "dcis" in labels.annotation_labels(both) and "7" not in labels.annotation_labels(both)
    with pytest.raises(ValueError, match=r"has no table \[own_codes\]"):
        labels.lookup_table(labels.SCHEMES["tumor_stroma"], labels.OWN_CODES)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    (
        ("evaluated =", "evaluate =", "expected class_names, evaluated, .*, found 'evaluate'; did you mean evaluated"),
        ('["tumor", "benign"]\n\n', '["tumor", "bening"]\n\n', "evaluated: .* found 'bening'; did you mean benign"),
        ('evaluated = ["tumor", "benign"]', "evaluated = []", "expected two or more evaluated classes"),
        ('evaluated = ["tumor", "benign"]', 'evaluated = ["tumor"]', "'benign' is neither evaluated nor ignored"),
        ('evaluated = ["tumor",', 'evaluated = ["ignored", "tumor",', "'ignored' has no truth and cannot be evaluated"),
        ('evaluated = ["tumor",', 'evaluated = ["tumor", "tumor",', "'tumor' occurs twice"),
        ('["ignored", "tumor", "benign"]', "3", "class_names: expected a list of names, found 3"),
        ('["ignored", "tumor"', '["ignored", "Benign", "tumor"', "the class name 'benign' occurs twice"),
        (
            '"tumor", "benign"]\n\n',
            '"tumor", "a", "b", "c"]\n\n',
            "evaluated: expected ignored, tumor, benign, found 'a'",
        ),
        ('["ignored", "tumor", "benign"]', '["ignored", "<b>"]', "the class name '<b>' is not made of letters"),
        ('["ignored", "tumor", "benign"]', '["ignored", "two\\nlines"]', "is not made of letters"),
        ("ignored", "Ignored", "expected 'ignored' for pixels without truth, found 'Ignored'"),
        ("benign", "macro", "'macro' means something else in results"),
        ("#0072B2", "#E69F00", "expected different colors, found #E69F00 for tumor and for benign"),
        ("#0072B2", "#FFFFFF", "expected a color that nothing else has, found #FFFFFF for benign"),
        ("#0072B2", "blue", "expected \"#RRGGBB\" with hexadecimal digits, found 'blue'"),
        ('benign = "#0072B2"\n', "", "expected a color for benign, found none"),
        ('"dcis"', '"dcsi"', "expected codes from 0 to 21 or names .*, found 'dcsi'; did you mean dcis"),
        ("19,", "22,", "expected codes from 0 to 21 or names .*, found 22"),
        ("19,", "true,", "expected codes from 0 to 21 or names .*, found True"),
        ("14]", "14, 1]", r"each code in one class, found 1 \(tumor\) in tumor and benign"),
        ('"rest"', '["rest"]', """ignored: expected "rest" without a list, found .'rest'"""),
        ('ignored = "rest"\n', "", "expected a class for every code, found none for outside_roi, .* and 12 more"),
        ('["normal_acinus_or_duct", 14]', '"rest"', '"rest" for one class, found it for benign and ignored'),
        ('["normal_acinus_or_duct", 14]', "[]", "expected codes for every evaluated class, found none for benign"),
        ('["normal_acinus_or_duct", 14]', "13", 'expected a list of codes or "rest", found 13'),
        ("[bcss22]", "[bcss]", "found 'bcss'; did you mean bcss22"),
        ("[colors]", "[colors", "expected a label scheme as TOML, found"),
        (CUSTOM[CUSTOM.index("[bcss22]") :], "", r"expected a table \[bcss22\] or \[kaggle3\] .*, found none"),
        ("[bcss22]", "[own_codes]\nbenign = [300]\n[bcss22]", r"\[own_codes\] benign: .* from 0 to 255, found 300"),
        ("[bcss22]", "[own_codes]\nbenign = ['x']\n[bcss22]", r"\[own_codes\] benign: .* from 0 to 255, found 'x'"),
        ("[bcss22]", "[own_codes]\nbenign = [3]\ntumor = [3]\n[bcss22]", "in one class, found 3 in benign and tumor"),
        ("[bcss22]", "[own_codes]\nbenign = [3]\n[bcss22]", r"\[own_codes\]: .* class, found none for tumor"),
        ("[bcss22]", "[own_codes]\n[bcss22]", r"\[own_codes\]: expected codes, found none"),
    ),
)
def test_invalid_scheme_file_is_refused_with_a_message_of_one_line(tmp_path, old, new, message):
    assert old in CUSTOM
    with pytest.raises(ConfigError, match=message) as error:
        write_and_load(tmp_path, CUSTOM.replace(old, new))
    assert str(error.value).startswith(str(tmp_path / "own.toml")) and "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_missing_files_and_names_of_the_package_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"config.labels=.*five_clases.toml: there is no such file; .* did you mean five_classes"
    ):
        labels.find_scheme(str(tmp_path / "five_clases.toml"))
    with pytest.raises(
        ConfigError, match="--labels=five: must be one of .* or a TOML file .*; did you mean five_classes"
    ):
        labels.find_scheme("five", "--labels")
    with pytest.raises(ConfigError, match="which is a scheme of the package with other content; rename the file"):
        write_and_load(tmp_path, CUSTOM, "tumor_stroma.toml")
    with pytest.raises(ConfigError, match="label scheme name .* is not made of letters"):
        write_and_load(tmp_path, CUSTOM, "<b>.toml")


def test_schemes_come_back_from_json(tmp_path):
    for scheme in (*labels.SCHEMES.values(), write_and_load(tmp_path, CUSTOM)):
        values = json.loads(json.dumps(scheme.to_json()))
        assert labels.scheme_from_json(values) == scheme and labels.unchecked_scheme(values) == scheme
        assert labels.complete_json(values) == values


@pytest.mark.parametrize("scheme", labels.SCHEMES.values(), ids=str)
def test_files_of_older_versions_have_four_fields(scheme):
    old = {
        name: json.loads(json.dumps(scheme.to_json()))[name]
        for name in ("name", "class_names", "ignore_index", "evaluated")
    }
    assert labels.scheme_from_json(old) == scheme == labels.unchecked_scheme(old)
    assert json.loads(json.dumps(scheme.identity())) == old  # identifies results of older versions
    with pytest.raises(ValueError, match="'mine' is none of tumor_stroma"):
        labels.scheme_from_json(old | {"name": "mine"})


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"colors": [[0, 0, 0]]}, "expected 3 colors"),
        ({"colors": [[0, 0, 256]] * 3}, "three integers from 0 to 255"),
        ({"colors": "red"}, "three integers"),
        ({"code_labels": {"bcss22": [0, 1]}}, "one integer for every code"),
        ({"code_labels": {"other": [0]}}, "one integer for every code"),
        ({"code_labels": {"bcss22": [1, 2, 7] + [0] * 19}}, "expected labels of the classes, found 7"),
        ({"code_labels": {}}, "expected a table"),
        ({"ignore_index": 255}, "the ignored label is 255, expected 0"),
        ({"evaluated": [1, 9]}, "9 is not one of the 3 classes"),
        ({"evaluated": [True, 2]}, "must be integers"),
        ({"class_names": ["ignored", "tumor", 3]}, "must be text"),
        ({"name": "tumor_stroma"}, "its classes are not those of tumor_stroma"),
    ),
)
def test_invalid_json_is_refused(tmp_path, change, message):
    values = json.loads(json.dumps(write_and_load(tmp_path, CUSTOM).to_json()))
    with pytest.raises(ValueError, match=message):
        labels.scheme_from_json(values | change)


def test_absent_classes_and_tissue_without_a_class(tmp_path):
    scheme = write_and_load(tmp_path, CUSTOM)
    assert labels.absent_classes(scheme, "bcss22", {"dcis": 3, "fat": 9}) == ["benign"]
    assert scheme.ignores_tissue
    assert [each.ignores_tissue for each in labels.SCHEMES.values()] == [True, False, False, False]
    annotated = CUSTOM[: CUSTOM.index("[bcss22]")] + '[annotations]\ntumor = ["DCIS"]'
    assert write_and_load(tmp_path, annotated).ignores_tissue
    everywhere = annotated.replace("\n\n[colors]", '\nunannotated = "benign"\n[colors]')
    assert not write_and_load(tmp_path, everywhere).ignores_tissue
    assert not write_and_load(tmp_path, annotated.replace("benign", "Other")).ignores_tissue


ANNOTATED = """
class_names = ["ignored", "tumor", "stroma", "fat tissue"]
unannotated = "stroma"

[colors]
ignored = "#969696"
tumor = "#E69F00"
stroma = "#0072B2"
"fat tissue" = "#009E73"

[annotations]
"fat tissue" = ["Adipose"]
tumor = ["invasive tumor", "DCIS"]
ignored = ["Artifact"]
"""


def test_annotations_have_names_of_the_scheme_in_its_order(tmp_path):
    scheme = write_and_load(tmp_path, ANNOTATED)
    found = labels.annotation_labels(scheme)
    assert list(dict.fromkeys(found.values())) == [3, 1, 0, 2]  # as in the file, then the classes that it leaves out
    assert found == {"adipose": 3, "fat tissue": 3, "invasive tumor": 1, "dcis": 1, "tumor": 1, "artifact": 0,
                     "ignored": 0, "ignore*": 0, "stroma": 2}  # fmt: skip
    assert scheme.unannotated == 2 and labels.comparable("Invasive__TUMOR ") == "invasive tumor"
    assert not scheme.code_labels


@pytest.mark.parametrize("name", labels.SCHEMES)
def test_shipped_schemes_know_the_names_of_qupath_and_of_the_codes(name):
    found = labels.annotation_labels(labels.SCHEMES[name])
    table = labels.lookup_table(labels.SCHEMES[name], "bcss22")
    expected = {
        "tumor": table[1],
        "stroma": table[2],
        "immune cells": table[3],
        "necrosis": table[4],
        "other": table[21],
    }
    expected |= {"ignore*": labels.SCHEMES[name].ignore_index, "dcis": table[20], "plasma cells": table[10]}
    assert {key: found[key] for key in expected} == expected
    assert next(iter(found.values())) == labels.SCHEMES[name].ignore_index


def test_every_name_that_regions_have_is_read_as_its_class():
    scheme = labels.SCHEMES["five_classes"]
    found = labels.annotation_labels(scheme)
    for class_name, name in labels.QUPATH_NAMES.items():
        assert found[labels.comparable(name)] == scheme.class_names.index(class_name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    (
        ('"DCIS"', '"Adipose"', "each name in one class, found 'Adipose' in fat tissue and tumor; remove one"),
        ('"DCIS"', '"ADIPOSE "', "each name in one class, found 'Adipose' in fat tissue and tumor; remove one"),
        ('"DCIS"', '"Stroma"', "found 'Stroma', which is the class stroma: the names run in a circle"),
        ('["Adipose"]', '["tumor"]', "found 'tumor', which is the class tumor: the names run in a circle"),
        ('["Adipose"]', "[]", "fat tissue: expected names of annotations, found none"),
        ('["Adipose"]', '"Adipose"', "fat tissue: expected a list of names, found 'Adipose'"),
        ('["Adipose"]', '[""]', "fat tissue: expected a name, found ''"),
        ('["Adipose"]', '["a\\nb"]', r"fat tissue: expected a name, found 'a\\nb'"),
        ('"fat tissue" = ["', '"fat tisue" = ["', "annotations.*found 'fat tisue'; did you mean fat tissue"),
        ('unannotated = "stroma"', 'unannotated = "stoma"', "unannotated: .* found 'stoma'; did you mean stroma"),
        ('unannotated = "stroma"', "unannotated = 3", "unannotated: expected the name of a class, found 3"),
        ('"fat tissue" = "#009E73"\n', "", "expected a color for fat tissue, found none"),
    ),
)
def test_invalid_names_of_annotations_are_refused(tmp_path, old, new, message):
    assert old in ANNOTATED
    with pytest.raises(ConfigError, match=message) as error:
        write_and_load(tmp_path, ANNOTATED.replace(old, new))
    assert "\n" not in str(error.value)


def test_names_of_annotations_come_back_from_json_and_others_are_not_written(tmp_path):
    scheme = write_and_load(tmp_path, ANNOTATED)
    values = json.loads(json.dumps(scheme.to_json()))
    assert labels.scheme_from_json(values) == scheme == labels.unchecked_scheme(values)
    plain = write_and_load(tmp_path, CUSTOM)
    assert not {"annotations", "unannotated"} & plain.to_json().keys()
    for change, message in (
        ({"annotations": [["a", 9]]}, "expected labels of the classes, found 9"),
        ({"annotations": {"a": 1}}, "must be pairs of a name and an integer"),
        ({"unannotated": "stroma"}, "unannotated of a label scheme must be an integer"),
        ({"unannotated": 9}, "expected labels of the classes, found 9"),
    ):
        with pytest.raises(ValueError, match=message):
            labels.scheme_from_json(values | change)
