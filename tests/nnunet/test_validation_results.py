"""Results of the validation cases that are damaged are noticed, and predicted again by their fold."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bcss_jax import labels
from bcss_jax.common import files
from bcss_jax.errors import DataError
from bcss_jax.nnunet.cross_validation import decide_postprocessing
from bcss_jax.nnunet.validate import is_validated

CASES: list[Any] = [SimpleNamespace(name=name, read=lambda: (None, np.ones((8, 8), np.uint8))) for name in "ab"]
SCHEME = labels.LabelScheme("nnunet", ("background", "tumor", "stroma"), 3, (1, 2))


def write_fold(folder):
    folder.mkdir(parents=True)
    assert not is_validated(folder, CASES)
    for case in CASES:
        files.write_png(folder / f"{case.name}.png", np.ones((8, 8), np.uint8))
    files.write_text(folder / "summary.json", "{}\n")
    assert is_validated(folder, CASES)


@pytest.mark.parametrize("name", ["summary.json", "a.png"])
def test_changed_results_do_not_count(tmp_path, caplog, name):
    write_fold(tmp_path / "fold")
    (tmp_path / "fold" / name).write_bytes(b"half")
    assert not is_validated(tmp_path / "fold", CASES)
    assert f"{name}: is missing or has changed since it was written; the cases are predicted again" in caplog.text
    (tmp_path / "fold" / ".lock").unlink()  # as in runs before there were records
    assert is_validated(tmp_path / "fold", CASES)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("content", [b"half", None])
def test_post_processing_is_not_decided_by_damaged_labels(tmp_path, recorded, content):
    folder = tmp_path / "fold_0" / "validation"
    write_fold(folder)
    by_name, splits = {case.name: case for case in CASES}, [{"train": [], "val": ["a", "b"]}]
    assert decide_postprocessing(tmp_path, by_name, splits, SCHEME)["keep_largest"] is not None
    if not recorded:
        (folder / ".lock").unlink()
    (folder / "b.png").unlink()
    if content is not None:
        (folder / "b.png").write_bytes(content)
    with pytest.raises(DataError, match="b.png: expected the labels of a validation case, found.*; run its fold again"):
        decide_postprocessing(tmp_path, by_name, splits, SCHEME)
