import io
import warnings
import zipfile

import numpy as np
import pytest

from bcss_jax.common.npz_files import SMALL, read_npz
from bcss_jax.errors import DataError


def refused(path):
    with pytest.raises(DataError) as error:
        read_npz(path, "a test file", "write it again")
    message = str(error.value)
    assert message.startswith(f"{path}: expected a test file, found") and message.endswith("; write it again")
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path, save):
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.float64(1.5), "empty": np.zeros((0, 3))}
    save(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz", "a test file", "write it again")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def archive(path, entries, compression=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as file:
        warnings.simplefilter("ignore", UserWarning)  # zipfile's, of a name that occurs twice
        for name, content in entries:
            with file.open(name, "w", force_zip64=True) as entry:
                for piece in content:
                    entry.write(piece)


def npy(array):
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return [content.getvalue()]


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    archive(tmp_path / "a.npz", [("a.npy", [bytes(1 << 24)] * (SMALL // (1 << 24) + 1))], zipfile.ZIP_DEFLATED)
    assert (tmp_path / "a.npz").stat().st_size < 1 << 20
    assert "that unpacks to" in refused(tmp_path / "a.npz")


def test_an_array_that_claims_another_size_than_it_has_is_refused(tmp_path):
    content = npy(np.zeros(4))[0].replace(b"(4,)", b"(9999999999,)").replace(b" " * 9, b"", 1)
    archive(tmp_path / "a.npz", [("a.npy", [content])])
    assert "another size than its header states" in refused(tmp_path / "a.npz")


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    archive(tmp_path / "a.npz", [("a.npy", npy(np.zeros(2))), ("a.npy", npy(np.ones(2)))])
    assert "two entries 'a.npy'" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize("array", [np.array([{}], object), np.array([("a", 1)], [("x", "O"), ("y", int)])])
def test_objects_are_refused(tmp_path, array):
    archive(tmp_path / "a.npz", [("a.npy", npy(array))])
    assert "objects" in refused(tmp_path / "a.npz")


def test_other_files_are_refused(tmp_path):
    for content in (b"", b"PK", b"\x93NUMPY"):
        (tmp_path / "a.npz").write_bytes(content)
        refused(tmp_path / "a.npz")
    archive(tmp_path / "a.npz", [("a.txt", [b"text"])])
    assert "with the entry 'a.txt'" in refused(tmp_path / "a.npz")
    (tmp_path / "b.npz").mkdir()
    assert "a folder" in refused(tmp_path / "b.npz")
