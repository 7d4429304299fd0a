"""Files of weights: all types give the same arrays; damaged and malicious files are refused and never run."""

import hashlib
import importlib.metadata
import importlib.util
import os
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import save_file

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.models.weights.files import read_weights

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.float32([0.5, -1.25]),
    "n": np.array(3, np.int64),
}


class Canary:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def assert_arrays(arrays, expected=ARRAYS):
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value)
        assert arrays[name].dtype == value.dtype


def test_npz_and_its_digest(tmp_path):
    np.savez(tmp_path / "w.npz", **ARRAYS)
    file = read_weights(tmp_path / "w.npz")
    assert_arrays(file.arrays)
    assert file.sha256 == hashlib.sha256((tmp_path / "w.npz").read_bytes()).hexdigest()


def test_safetensors_with_bfloat16(tmp_path):
    floats = {name: value for name, value in ARRAYS.items() if value.dtype == np.float32}
    save_file({name: jnp.asarray(value, jnp.bfloat16) for name, value in floats.items()}, tmp_path / "w.safetensors")
    assert_arrays(read_weights(tmp_path / "w.safetensors").arrays, floats)


@needs_torch
@pytest.mark.parametrize("wrapper", (None, "state_dict", "network_weights"))
def test_pth_bare_and_wrapped(tmp_path, wrapper):
    import torch

    state = {name: torch.from_numpy(value.copy()) for name, value in ARRAYS.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    assert_arrays(read_weights(tmp_path / "w.pth").arrays)


@needs_torch
def test_half_precision_pth_becomes_float32(tmp_path):
    import torch

    torch.save({"w": torch.tensor([1.5, 2.0], dtype=torch.float16)}, tmp_path / "w.pt")
    assert_arrays(read_weights(tmp_path / "w.pt").arrays, {"w": np.float32([1.5, 2.0])})


@needs_torch
@pytest.mark.parametrize("name", ("w.pth", "w.bin", "w.pt", "w.tar"))
def test_a_malicious_pickle_is_refused_without_being_run(tmp_path, name):
    import torch

    canary = tmp_path / "canary"
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        save({"w": torch.zeros(2), "trap": Canary(canary)}, tmp_path / name)
        with pytest.raises(DataError, match="weights-only") as error:
            read_weights(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
        assert not canary.exists()


@pytest.mark.parametrize("name", ("w.npz", "w.safetensors"))
def test_a_pickle_under_another_name_is_refused_without_being_run(tmp_path, name):
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(DataError, match="refused by"):
        read_weights(tmp_path / name)
    assert not canary.exists()


def test_an_npz_of_objects_is_refused_without_being_run(tmp_path):
    canary = tmp_path / "canary"
    np.savez(tmp_path / "w.npz", trap=np.array([Canary(canary)], object))
    assert not canary.exists()  # written without being read
    with pytest.raises(DataError, match="objects are never unpickled"):
        read_weights(tmp_path / "w.npz")
    assert not canary.exists()


def test_the_canary_file_is_written_when_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary"))).close()
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("share", (0.1, 0.3, 0.9))
def test_truncated_files_are_refused(tmp_path, share):
    np.savez(tmp_path / "w.npz", **ARRAYS)
    save_file({"w": jnp.zeros(100)}, tmp_path / "w.safetensors")
    for name in ("w.npz", "w.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
        with pytest.raises(DataError, match="refused by"):
            read_weights(tmp_path / name)


@needs_torch
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.npz"])
@pytest.mark.parametrize(
    "content, found",
    [
        (b"", "an empty file"),
        (b"\n <!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "a pointer of Git LFS"),
    ],
)
def test_what_a_failed_download_leaves_is_named(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: expected a file of weights, found {found}.*; download it again"):
        read_weights(tmp_path / name)


def test_other_content_than_a_dictionary_of_tensors_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(DataError, match="found list"):
        read_weights(tmp_path / "list.pth")
    torch.save({"w": torch.zeros(2), "lr": 0.1}, tmp_path / "more.pth")
    with pytest.raises(DataError, match="others under lr"):
        read_weights(tmp_path / "more.pth")


def test_missing_and_unknown_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected a file of weights, found no such file"):
        read_weights(tmp_path / "w.npz")
    (tmp_path / "w.h5").touch()
    with pytest.raises(ConfigError, match="expected .safetensors, .npz or .pth"):
        read_weights(tmp_path / "w.h5")


@pytest.mark.parametrize("version, said", ((None, "needs PyTorch"), ("2.9.1", "found 2.9.1")))
def test_pth_without_a_safe_pytorch_is_refused(tmp_path, monkeypatch, version, said):
    (tmp_path / "w.pth").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: version)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(ConfigError, match=said):
        read_weights(tmp_path / "w.pth")


def test_pth_without_pytorch_is_not_opened(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Canary(canary)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs PyTorch"):
        read_weights(tmp_path / "w.pth")
    assert not canary.exists()


@needs_torch
def test_a_checkpoint_of_nnunet_may_hold_numpy_scalars(tmp_path):
    import torch

    state = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in ARRAYS.items() if value.ndim}
    scores = {"_best_ema": np.float64(0.5), "logging": {"dice": [np.float32(0.1), np.int64(3), float("nan")]}}
    torch.save({"network_weights": state, **scores, "trainer_name": "nnUNetTrainer"}, tmp_path / "checkpoint_final.pth")
    arrays = read_weights(tmp_path / "checkpoint_final.pth").arrays
    assert_arrays(arrays, {name: value for name, value in ARRAYS.items() if value.ndim})


@needs_torch
def test_the_label_values_in_milesials_files_are_ignored(tmp_path):
    import torch

    torch.save({"w": torch.ones(2), "mask_values": [0, 1]}, tmp_path / "w.pth")
    assert_arrays(read_weights(tmp_path / "w.pth").arrays, {"w": np.ones(2, np.float32)})


@pytest.mark.parametrize(
    "array", (np.array(["a"]), np.array([1j]), np.array(["2020-01-01"], "M8[D]"), np.array([np.nan]))
)
def test_values_that_are_not_finite_numbers_are_refused(tmp_path, array):
    np.savez(tmp_path / "w.npz", w=array)
    with pytest.raises(DataError, match="w.npz: w holds"):
        read_weights(tmp_path / "w.npz")


@pytest.mark.parametrize("kind", ("npz", "compressed npz", "safetensors", "pth"))
def test_a_file_damaged_anywhere_is_read_or_refused(tmp_path, kind):
    path = tmp_path / f"w.{kind.split()[-1]}"
    if kind == "pth":
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        torch.save({"w": torch.arange(50.0)}, path)
    elif kind == "safetensors":
        save_file({"w": jnp.arange(50.0)}, path)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(path, w=np.arange(50.0))
    content, random, refused = path.read_bytes(), np.random.RandomState(0), 0
    for _ in range(150):
        damaged = bytearray(content)
        for place in random.randint(0, len(content), 3):
            damaged[place] ^= 1 << random.randint(8)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10


@pytest.mark.parametrize("kind", ("fifo", "folder"))
def test_what_is_no_regular_file_is_refused_without_being_opened(tmp_path, kind):
    path = tmp_path / "w.npz"
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(DataError, match="expected a file of weights, found a"):
        read_weights(path)


def test_a_header_of_safetensors_with_a_name_twice_is_refused(tmp_path):
    entry = b'"w": {"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'
    header = b"{" + entry % (0, 4) + b", " + entry % (4, 8) + b"}"
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(DataError, match="the key 'w' twice"):
        read_weights(tmp_path / "w.safetensors")


def test_a_header_of_safetensors_longer_than_the_file_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="a header of 4611686018427387904 bytes"):
        read_weights(tmp_path / "w.safetensors")
