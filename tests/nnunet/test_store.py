"""Preprocessed cases and fingerprints are as they were written, or they are made again."""

import json
import random

import numpy as np
import pytest
from helpers.nnunet_small import DATASET, PLAN

from bcss_jax.common import digests
from bcss_jax.nnunet import store
from bcss_jax.nnunet.cases import Case, Cases, scheme_of


def drawn(number):
    rng = np.random.default_rng(number)
    image, mask = rng.integers(1, 255, (20, 24, 3), np.uint8), rng.integers(0, 4, (20, 24)).astype(np.uint8)
    return Case(f"case_{number}", f"P{number}", "train", lambda: (image, mask))


CASES = tuple(map(drawn, range(2)))


def preprocessed(folder):
    return store.preprocessed(CASES, DATASET, PLAN, folder)


def content(case):
    return {ending: case.file(ending).read_bytes() for ending in ("data.npy", "labels.npy", "locations.npz", "json")}


def flip(path, place):
    changed = bytearray(path.read_bytes())
    changed[place // 8 % len(changed)] ^= 1 << place % 8
    path.write_bytes(changed)


def test_every_flipped_bit_is_found_and_the_case_is_preprocessed_again(tmp_path, caplog):
    rng, cases = random.Random(0), preprocessed(tmp_path)
    before, untouched = content(cases[0]), cases[1].file("json").stat().st_mtime_ns
    for ending in before:
        for _ in range(5):
            caplog.clear()
            flip(cases[0].file(ending), rng.randrange(10**6))
            preprocessed(tmp_path)
            assert content(cases[0])["data.npy"] == before["data.npy"]
            assert caplog.text.count("case_0: the preprocessed case is damaged") == 1
    assert cases[1].file("json").stat().st_mtime_ns == untouched
    caplog.clear()
    preprocessed(tmp_path)
    assert not caplog.records


@pytest.mark.parametrize("ending", ("data.npy", "labels.npy", "locations.npz"))
def test_a_missing_file_is_made_again(tmp_path, ending, caplog):
    case = preprocessed(tmp_path)[0]
    case.file(ending).unlink()
    preprocessed(tmp_path)
    assert case.file(ending).exists() and "is damaged" in caplog.text


def test_cases_of_an_earlier_version_are_used_with_a_line(tmp_path, caplog):
    for case in preprocessed(tmp_path):
        record = json.loads(case.file("json").read_text())
        del record["sha256"]
        case.file("json").write_text(json.dumps(record))
    before = [content(case) for case in preprocessed(tmp_path)]
    assert [content(case) for case in preprocessed(tmp_path)] == before
    assert "2 cases were preprocessed by an earlier version, without digests" in caplog.text


def test_a_damaged_fingerprint_is_taken_again(tmp_path, caplog):
    cases = Cases(CASES, (), DATASET, scheme_of(DATASET), None, tmp_path, None)
    found, file = store.fingerprint_of(cases), tmp_path / "dataset_fingerprint.json"
    for place in (33, 1000, 4321):
        flip(file, place)
        assert not digests.is_as_written(file)
        assert store.fingerprint_of(cases) == found
    assert caplog.text.count("it is taken again") == 3
    file.with_name(f"{file.name}.sha256").unlink()  # as earlier versions left it
    assert store.fingerprint_of(cases) == found
