import numpy as np
import pytest

from bcss_jax import labels

SHARED_CODES = {  # scheme: label of each of the 22 codes, written out by hand
    "tumor_stroma": [0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0],
    "tumor_stroma_other": [255, 1, 2, 0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 1, 1, 0],
    "five_classes": [0, 1, 2, 3, 4, 5, 5, 0, 5, 5, 3, 3, 5, 5, 5, 0, 5, 5, 5, 1, 1, 5],
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


def test_three_codes_cannot_give_five_classes():
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
        pytest.skip(f"{book} is not there")
    rows = [line.split("\t") for line in book.read_text().splitlines()[1:]]
    assert [name for name, _ in rows] == list(labels.BCSS22_NAMES)
    assert [int(code) for _, code in rows] == list(range(22))
