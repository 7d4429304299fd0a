"""Exported networks in place of runs: the same predictions on all devices, and errors for damaged files."""

import dataclasses
import io
import json
import struct
import zipfile

import jax
import numpy as np
import pytest
from helpers.slides_small import tissue_picture
from helpers.trained_small import WINDOW, write_run
from PIL import Image

from bcss_jax.api import segmentation
from bcss_jax.commands import export, segment
from bcss_jax.common.digests import sha256_of, sha256_of_json
from bcss_jax.errors import ConfigError, DataError, Preempted
from bcss_jax.inference import exported_model, trained_run
from bcss_jax.inference.exported_model import model_of_artifact
from bcss_jax.inference.slide_model import WindowPredictor, model_of_run
from bcss_jax.training.sharding import make_mesh, split_over_data

WEIGHTS = np.linspace(0.5, 1, WINDOW * WINDOW, dtype=np.float32).reshape(WINDOW, WINDOW)


def mesh_of(devices):
    return make_mesh(jax.devices()[:devices])


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, WINDOW, WINDOW, 3), np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def artifact(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "unet.jaxexport"
    assert export.main([f"--checkpoint={run}", f"--output={path}"]) == 0
    return path


@pytest.fixture(scope="module")
def of_run(run):
    """The predictions of the checkpoint for eleven windows on one device."""
    mesh = mesh_of(1)
    model = model_of_run(trained_run.read_trained_run(run, mesh, "best"), mesh, tta=False)
    return np.stack(list(WindowPredictor(model, WEIGHTS, 4, mesh)(pictures(11))()))


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 11), (4, 8), (4, 5)])
def test_predictions_equal_those_of_the_checkpoint_to_the_bit_on_all_devices(artifact, of_run, devices, batch_size):
    mesh = mesh_of(devices)
    predictor = WindowPredictor(model_of_artifact(artifact, mesh, tta=False), WEIGHTS, batch_size, mesh)
    images = pictures(11)
    windows = [each for first in range(0, 11, batch_size) for each in predictor(images[first : first + batch_size])()]
    np.testing.assert_array_equal(np.stack(windows), of_run)
    assert of_run.std() > 1e-3


def test_each_device_computes_its_share(artifact):
    mesh = mesh_of(4)
    model = model_of_artifact(artifact, mesh, tta=False)
    placed = jax.device_put(pictures(8), split_over_data(mesh))
    compiled = jax.jit(model.probabilities).lower(model.arrays, placed).compile()
    assert f"f32[2,{WINDOW},{WINDOW},2]" in compiled.as_text()  # two of the eight
    assert "all-gather" not in compiled.as_text() and "all-reduce" not in compiled.as_text()
    result = compiled(model.arrays, placed)
    assert [shard.data.shape[0] for shard in result.addressable_shards] == [2] * 4


def test_the_metadata_of_the_model(artifact, run):
    mesh = mesh_of(2)
    model, original = model_of_artifact(artifact, mesh, tta=False), trained_run.read_trained_run(run, mesh, "best")
    assert (model.name, model.mpp, model.window, model.any_window) == ("unet", 0.5, WINDOW, False)
    assert model.scheme == original.scheme
    assert model.metadata["params_sha256"] == original.sha256["params"] and model.metadata["network"] == "unet"
    assert model.metadata["checkpoint"] == {
        "artefact": str(artifact), "exported_from": "small", "which": "best", "step": 7, "epoch": 2,
    }  # fmt: skip
    json.dumps([model.metadata, model.identity], allow_nan=False)


def test_test_time_augmentation_has_to_be_in_the_file(artifact, run, tmp_path, caplog):
    with pytest.raises(ConfigError, match="exported without it; export the checkpoint again with --tta"):
        model_of_artifact(artifact, mesh_of(1), tta=True)
    path = tmp_path / "tta.jaxexport"
    assert export.main([f"--checkpoint={run}", f"--output={path}", "--tta"]) == 0
    asked, unasked = (model_of_artifact(path, mesh_of(1), tta=tta) for tta in (True, False))
    assert asked.metadata["tta"] and asked.identity == unasked.identity
    assert asked.identity != model_of_artifact(artifact, mesh_of(1), tta=False).identity


# What the command line makes of them.


def models(*arguments):
    args = segment._parser().parse_args(["--slide=a.svs", "--output=out", *arguments])
    args.checkpoints = args.checkpoint
    return segmentation._models(args, mesh_of(1))


def test_files_and_runs_in_the_order_of_the_command_line(artifact, run):
    assert [model.name for model in models(f"--checkpoint={artifact},{run}")] == ["unet", "small"]
    assert [model.name for model in models(f"--checkpoint={run},{artifact}")] == ["small", "unet"]


def test_a_run_and_a_file_of_the_same_name_get_two_folders(artifact, tmp_path):
    run = write_run(tmp_path / "unet")
    assert [model.name for model in models(f"--checkpoint={run},{artifact}")] == ["unet-2", "unet"]
    with pytest.raises(ConfigError, match="two files unet"):
        models(f"--checkpoint={artifact},{artifact}")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--window=64"], 2, f"--window=64: unet was exported for windows of {WINDOW}"),
        (["--tta"], 2, "was exported without it"),
    ],
)
def test_options_that_a_file_does_not_support_are_refused(artifact, tmp_path, capsys, arguments, code, said):
    arguments = [f"--checkpoint={artifact}", "--slide=a.svs", f"--output={tmp_path / 'out'}", *arguments]
    assert segment.main(arguments) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_slide_segmented_with_either_has_the_same_labels(artifact, run, tmp_path, capsys):
    Image.fromarray(tissue_picture(120, 150)[0]).save(tmp_path / "slide.png")
    arguments = [f"--slide={tmp_path / 'slide.png'}", "--mpp=0.5", "--tissue=all", "--readers=1"]
    assert segment.main([f"--checkpoint={run},{artifact}", f"--output={tmp_path / 'both'}", *arguments]) == 0
    labels = [(tmp_path / "both" / "slide" / name / "labels.ome.tif").read_bytes() for name in ("small", "unet")]
    assert labels[0] == labels[1]
    assert (tmp_path / "both" / "slide" / "comparison.png").exists()
    alone = [f"--checkpoint={artifact}", f"--output={tmp_path / 'one'}", *arguments]
    assert segment.main(alone) == 0
    summary = json.loads((tmp_path / "one" / "slide" / "summary.json").read_text())
    assert summary["model"]["name"] == "unet" and summary["model"]["checkpoint"]["artefact"] == str(artifact)
    capsys.readouterr()
    assert segment.main(alone) == 0 and "done before" in capsys.readouterr().out
    # Another network has another identity.
    assert segment.main([f"--checkpoint={run}", *alone[1:]]) == 2
    assert "holds results of other settings" in capsys.readouterr().err


# Damage.


def parts(path):
    with zipfile.ZipFile(path) as file:
        return json.loads(file.read("model.json")), file.read("model.stablehlo")


def archive(metadata, program, compression=zipfile.ZIP_STORED, signed=True, **others):
    """Returns an archive, as export writes it: with the digests of its content, unless `signed` is False."""
    if isinstance(metadata, dict) and signed:
        metadata = {name: value for name, value in metadata.items() if name != "sha256"}
        sha256 = {"model.stablehlo": sha256_of(program), "model.json": sha256_of_json(metadata)}
        metadata |= {"sha256": sha256}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        file.writestr("model.json", metadata if isinstance(metadata, str) else json.dumps(metadata))
        file.writestr("model.stablehlo", program)
        for name, text in others.items():
            file.writestr(name, text)
    return content.getvalue()


def refused(path, content, capsys):
    """Returns the error of one line that segment prints for a file; it is a DataError."""
    path.write_bytes(content)
    assert segment.main([f"--checkpoint={path}", "--slide=a.svs", f"--output={path.parent / 'out'}"]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and error.count("\n") == 1 and len(error) < 700
    return error


def test_other_files_are_refused(artifact, tmp_path, capsys):
    path, content = tmp_path / "a.jaxexport", artifact.read_bytes()
    for damaged in (b"", b"weights", content[: len(content) // 2], content[:-30]):
        assert "a file that is not a ZIP archive, or is incomplete" in refused(path, damaged, capsys)
    metadata, program = parts(artifact)
    assert "an archive of 'model.json', 'model.stablehlo', 'more'" in refused(
        path, archive(metadata, program, more=""), capsys
    )
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("../../weights.npy", b"")
    assert "an archive of '../../weights.npy'" in refused(path, other.getvalue(), capsys)


def test_a_changed_byte_is_detected(artifact, tmp_path, capsys):
    content = bytearray(artifact.read_bytes())
    content[len(content) // 2] ^= 1
    assert "Bad CRC-32 for file 'model.stablehlo'" in refused(tmp_path / "a", bytes(content), capsys)


def test_an_edited_description_is_detected_and_a_file_of_before_is_used_with_a_line(artifact, tmp_path, capsys, caplog):
    metadata, program = parts(artifact)
    path, others = tmp_path / "a", {name: value for name, value in metadata.items() if name != "sha256"}
    for edited in ({"mpp": 2 * metadata["mpp"]}, {"name": "other"}, {"sha256": {}}, {"more": 1}):
        content = archive(metadata | edited, program, signed=False)
        assert "another content than was written (SHA-256)" in refused(path, content, capsys)
    path.write_bytes(archive(others, program, signed=False))
    caplog.clear()
    assert model_of_artifact(path, mesh_of(1), tta=False).mpp == metadata["mpp"]
    assert "exported by an earlier version, without digests" in caplog.text


def test_sizes_are_checked_before_anything_is_read(artifact, tmp_path, capsys, monkeypatch):
    metadata, program = parts(artifact)
    bomb = archive(metadata, bytes(50_000_000), zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("was read"))
    assert "model.json is compressed" in refused(tmp_path / "a", bomb, capsys)
    content = archive(metadata, program)
    # Both sizes in the last entry of the directory, the program, are set to 2 GB - 1.
    last = content.rindex(b"PK\x01\x02")
    claims = content[: last + 20] + struct.pack("<II", (1 << 31) - 1, (1 << 31) - 1) + content[last + 28 :]
    assert "model.stablehlo claims 2147483647 bytes" in refused(tmp_path / "a", claims, capsys)
    large = archive(json.dumps(metadata) + " " * exported_model.MAX_METADATA, program)
    assert "model.json claims" in refused(tmp_path / "a", large, capsys)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2 of model.json, which a newer bcss_jax reads; this program reads 1"),
        ({"format": None}, "format None of model.json; this program reads 1"),
        ({"format": True}, "format True of model.json"),
        ({"label_scheme": None}, "a label scheme has the fields"),
        ({"label_scheme": {"name": "cells"}}, "a label scheme has the fields"),
        ({"classes": ["stroma", "tumor"]}, "classes in model.json is ['stroma', 'tumor']"),
        ({"mpp": -1}, "mpp in model.json is -1"),
        ({"mpp": "0.25"}, "mpp in model.json is '0.25'"),
        ({"mpp": 1e400}, "inf, which is not a finite number"),
        ({"mpp": 10**400}, "an integer of more than 64 bits"),
        ({"window": 0}, "window in model.json is 0"),
        ({"window": 64}, "model.json says uint8[N,64,64,3] -> float32[N,64,64,2]"),
        ({"tta": 1}, "tta in model.json is 1"),
        ({"name": "a\nb"}, r"name in model.json is 'a\nb'"),
        ({"network": ["unet"]}, "network in model.json is ['unet']"),
        ({"params_sha256": "../.."}, "params_sha256 in model.json is '../..'"),
        ({"checkpoint": {"step": 7}}, "checkpoint in model.json is {'step': 7}"),
        ({"checkpoint": None}, "checkpoint in model.json is None"),
    ],
)
def test_changed_metadata_is_refused(artifact, tmp_path, capsys, change, said):
    metadata, program = parts(artifact)
    assert said in refused(tmp_path / "a", archive({**metadata, **change}, program), capsys)


def test_an_unknown_label_scheme_is_refused(artifact, tmp_path, capsys):
    metadata, program = parts(artifact)
    scheme = {**metadata["label_scheme"], "class_names": ["ignored", "stroma", "tumor"]}
    assert "its classes are not those of tumor_stroma" in refused(
        tmp_path / "a", archive({**metadata, "label_scheme": scheme}, program), capsys
    )


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 100_000, "\xff\xfe", '{"format": NaN}'])
def test_missing_metadata_is_refused(artifact, tmp_path, capsys, text):
    assert "model.json" in refused(tmp_path / "a", archive(text, parts(artifact)[1]), capsys)


def test_content_that_is_not_a_program_is_refused(artifact, tmp_path, capsys):
    metadata, program = parts(artifact)
    for damaged in (b"", b"program" * 50, program[: len(program) // 2]):
        said = refused(tmp_path / "a", archive(metadata, damaged), capsys)
        assert "found: a model.stablehlo that cannot be read (" in said


def test_a_program_of_a_newer_jax_is_refused(artifact, tmp_path, capsys):
    metadata, content = parts(artifact)
    program = jax.export.deserialize(bytearray(content))
    code = program.mlir_module_serialized
    start = code.index(b"StableHLO_v")
    end = code.index(b"\0", start)
    newer = code[:start] + b"StableHLO_v9.99.0".ljust(end - start, b"0")[: end - start] + code[end:]
    for changed in ({"mlir_module_serialized": newer}, {"calling_convention_version": 99}):
        content = dataclasses.replace(program, **changed).serialize()
        assert "written by a newer JAX than the" in refused(tmp_path / "a", archive(metadata, content), capsys)


def test_a_program_for_other_devices_or_with_other_inputs_is_refused(artifact, tmp_path, capsys):
    metadata, content = parts(artifact)
    program = jax.export.deserialize(bytearray(content))
    elsewhere = dataclasses.replace(program, platforms=("cuda", "tpu")).serialize()
    said = refused(tmp_path / "a", archive(metadata, elsewhere), capsys)
    assert "made for cuda, tpu, the devices here are cpu" in said
    fixed = jax.ShapeDtypeStruct((3, WINDOW, WINDOW, 3), np.uint8)
    one_batch_size = jax.export.export(jax.jit(program.call))(fixed).serialize()
    assert f"a program of uint8[3,{WINDOW},{WINDOW},3]" in refused(
        tmp_path / "a", archive(metadata, one_batch_size), capsys
    )


def test_a_request_to_stop_is_not_reported_as_damage(artifact, monkeypatch):
    def stop(_):
        raise Preempted("stopped")

    monkeypatch.setattr(exported_model.export, "deserialize", stop)
    with pytest.raises(Preempted):
        model_of_artifact(artifact, mesh_of(1), tta=False)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read|not a ZIP"):
        model_of_artifact(tmp_path / "missing", mesh_of(1), tta=False)
