"""python -m bcss_jax.export: one file that needs only JAX, and predicts the same as the checkpoint."""

import json
import os
import re
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.absent_modules import without_modules
from helpers.small_networks import LONG_TO_COMPILE, SMALL
from helpers.trained_small import WINDOW, write_run

from bcss_jax.commands import export
from bcss_jax.inference import exported_model, trained_run
from bcss_jax.inference.predict import log_probabilities
from bcss_jax.inference.slide_model import SlideModel, model_of_run
from bcss_jax.labels import SCHEMES
from bcss_jax.models import MODELS
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.training.sharding import make_mesh
from bcss_jax.training.summary import params_sha256

SCHEME = SCHEMES["tumor_stroma"]
ABSENT = ("bcss_jax", "flax", "orbax", "optax", "tensorflow", "PIL")
BLOCK = without_modules(ABSENT)


def pictures(count, seed=0, size=WINDOW):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def in_memory(network):
    """An untrained network in the form that `model_of_run` returns."""
    function, (_, params, model_state) = ModelFunction(network), split_model(network)

    def probabilities(arrays, images):
        return jnp.exp(log_probabilities(function, SCHEME, False, *arrays, images))[..., np.asarray(SCHEME.evaluated)]

    return SlideModel("small", SCHEME, 0.25, WINDOW, {}, {}, (params, model_state), probabilities)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def artifact(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "in a new folder" / "unet.jaxexport"
    assert export.main([f"--checkpoint={run}", f"--output={path}"]) == 0
    return path


@pytest.fixture(scope="module")
def model(run):
    mesh = make_mesh(jax.devices()[:1])
    return model_of_run(trained_run.read_trained_run(run, mesh, "best"), mesh, tta=False)


def loaded(path):
    with zipfile.ZipFile(path) as file:
        return json.loads(file.read("model.json")), jax.export.deserialize(bytearray(file.read("model.stablehlo")))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_program_predicts_the_same_as_the_checkpoint_for_all_batch_sizes(artifact, model, count):
    _, program = loaded(artifact)
    images = pictures(count)
    got = np.asarray(jax.jit(program.call)(images))
    want = np.asarray(jax.jit(model.probabilities)(model.arrays, images))
    assert got.shape == (count, WINDOW, WINDOW, 2) and got.dtype == np.float32
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-6)
    assert got.std() > 1e-3  # not constant


def test_the_small_networks_are_all_networks():
    assert {*SMALL, "unet_resnet50"} == set(MODELS)  # which is unet_resnet101 with fewer of the same blocks


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG_TO_COMPILE else ()) for name in SMALL]
)
def test_every_network_is_exported(name):
    model, images = in_memory(SMALL[name](num_classes=3, dtype=jnp.float32)), pictures(2)
    program = jax.export.deserialize(export.exported(model).serialize())
    assert program.platforms == ("cpu", "cuda", "tpu")
    want = np.asarray(jax.jit(model.probabilities)(model.arrays, images))
    np.testing.assert_array_equal(np.asarray(jax.jit(program.call)(images)), want)
    # No operation that exists on one platform only.
    assert set(re.findall(r"custom_call @(\w+)", program.mlir_module())) <= {"shape_assertion"}


def test_the_program_does_not_depend_on_where_it_was_written(monkeypatch):
    """Nothing may ask for the platform of this machine while it is traced."""
    model = in_memory(SMALL["unet_resnet34"](num_classes=3, dtype=jnp.float32))
    on_cpu = export.exported(model).serialize()
    jax.clear_caches()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    on_gpu = export.exported(model).serialize()
    jax.clear_caches()
    assert on_cpu == on_gpu


def test_the_content_of_model_json(artifact, run, model):
    metadata, program = loaded(artifact)
    assert metadata["format"] == 1 and metadata["name"] == "small" and metadata["network"] == "unet"
    assert metadata["label_scheme"] == json.loads(json.dumps(SCHEME.to_json())) and metadata["classes"] == [
        "tumor",
        "stroma",
    ]
    assert (
        metadata["mpp"] == 0.5 and metadata["window"] == WINDOW and metadata["image_shape"] == [None, WINDOW, WINDOW, 3]
    )
    assert metadata["params_sha256"] == params_sha256(jax.tree.map(np.asarray, model.arrays[0]))
    assert metadata["checkpoint"] == {"which": "best", "step": 7, "epoch": 2} and metadata["tta"] is False
    assert metadata["versions"]["jax"] == jax.__version__ and "Research use only" in metadata["use"]
    assert [str(each) for each in program.in_avals] == [f"uint8[N,{WINDOW},{WINDOW},3]"]


def test_the_file_has_no_local_paths_and_always_the_same_bytes(artifact, run, tmp_path):
    content = artifact.read_bytes()
    for path in (os.path.dirname(export.__file__), os.path.dirname(jax.__file__), str(run.parent), os.getcwd()):
        assert path.encode() not in content
    again = tmp_path / "again.jaxexport"
    assert export.main([f"--checkpoint={run}", f"--output={again}"]) == 0
    assert again.read_bytes() == content


def test_the_example_runs_with_jax_only(artifact, model, tmp_path):
    """The example of the documentation runs in a process without this package and its other libraries."""
    example = re.search(r"\n\n((?:    .*\n|\n)+)\nA file of this kind", exported_model.__doc__).group(1)
    lines = [line.removeprefix("    ") for line in example.splitlines() if line]
    assert len(lines) <= 10
    images = pictures(2)
    np.save(tmp_path / "images.npy", images)
    (zeros,) = [line for line in lines if "np.zeros" in line]
    lines.insert(lines.index(zeros) + 1, "images = np.load('images.npy')")
    lines += ["np.save('probabilities.npy', probabilities)", "print(metadata['classes'])"]
    (tmp_path / "example.py").write_text(BLOCK + "\n".join(lines))
    os.symlink(artifact, tmp_path / "unet.jaxexport")
    result = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['tumor', 'stroma']"
    want = np.asarray(jax.jit(model.probabilities)(model.arrays, images))
    np.testing.assert_array_equal(np.load(tmp_path / "probabilities.npy"), want)
    blocked = subprocess.run([sys.executable, "-c", BLOCK + "import bcss_jax"], capture_output=True, text=True)
    assert "No module named 'bcss_jax'" in blocked.stderr


def test_export_with_test_time_augmentation(run, tmp_path):
    path = tmp_path / "tta.jaxexport"
    assert export.main([f"--checkpoint={run}", f"--output={path}", "--tta"]) == 0
    metadata, program = loaded(path)
    assert metadata["tta"] is True
    images = pictures(2)
    got = np.asarray(jax.jit(program.call)(images))
    mesh = make_mesh(jax.devices()[:1])
    model = model_of_run(trained_run.read_trained_run(run, mesh, "best"), mesh, tta=True)
    np.testing.assert_array_equal(got, np.asarray(jax.jit(model.probabilities)(model.arrays, images)))
    turned = np.asarray(jax.jit(program.call)(np.rot90(images, axes=(1, 2))))
    np.testing.assert_allclose(turned, np.rot90(got, axes=(1, 2)), atol=1e-6)


def test_the_file_is_written_whole_or_not_at_all(artifact, run, tmp_path, monkeypatch, capsys):
    path = tmp_path / "unet.jaxexport"
    path.write_bytes(artifact.read_bytes())  # only an exported network is replaced
    before = path.stat().st_ino, path.stat().st_mtime_ns

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert export.main([f"--checkpoint={run}", f"--output={path}"]) == 5
    assert "unet.jaxexport: cannot be written (No space left on device)" in capsys.readouterr().err
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before and [entry.name for entry in tmp_path.iterdir()] == [
        path.name
    ]
    monkeypatch.undo()
    assert export.main([f"--checkpoint={run}", f"--output={path}"]) == 0
    assert path.read_bytes() == artifact.read_bytes() and path.stat().st_ino != before[0]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--checkpoint=/nowhere", "--output={tmp}/a"], 3, "/nowhere: no such folder"),
        (["--checkpoint={run}", "--output={tmp}"], 2, "is a folder; name a file"),
        (["--checkpoint={run}", "--output={tmp}/fifo"], 2, "expected a new file or an exported network"),
        (["--checkpoint={run}", "--output={tmp}/file/below"], 2, "expected a folder for what is written, found a file"),
    ],
)
def test_bad_input(run, tmp_path, capsys, arguments, code, said):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    assert export.main([each.format(run=run, tmp=tmp_path) for each in arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_a_run_of_nnunet_is_not_exported(tmp_path, capsys):
    (tmp_path / "fold_0" / "checkpoints").mkdir(parents=True)
    assert export.main([f"--checkpoint={tmp_path}", f"--output={tmp_path / 'a'}"]) == 2
    assert "nnU-Net's method" in capsys.readouterr().err


def test_a_network_that_is_too_large_is_refused_before_it_is_traced(model):
    huge = np.broadcast_to(np.zeros(1, np.float32), (1 << 29,))  # takes no memory
    with pytest.raises(export.ConfigError, match="at most 2 GB"):
        export.artifact_of(SlideModel("x", SCHEME, 1, 32, {}, {}, huge, None))
