"""The check of the installation: what it finds, what it names, its exit code."""

import json

import openslide
import pytest

from bcss_jax.commands import doctor
from bcss_jax.errors import StorageError


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(doctor, "SIDE", 64)
    monkeypatch.setattr(doctor, "_rates", lambda device: (1.0, 1.0))
    monkeypatch.chdir(tmp_path)


def test_a_good_machine(capsys, tmp_path):
    assert doctor.main(["--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    found = {each["name"]: each for each in findings}
    assert {"python", "packages", "jax", "cpu 0", "tensorflow", "openslide", "disk", "compiled", "locks"} <= set(found)
    assert found["openslide"]["found"].endswith("reads Deflate, JPEG, JPEG 2000")
    assert not [each for each in findings if each["remedy"] and each["needed"]]
    assert list(tmp_path.iterdir()) == []


def test_each_fault_is_one_line_with_a_remedy_and_exit_code_2(capsys, monkeypatch):
    def broken(*arguments):
        raise openslide.OpenSlideError("no such codec")

    def unlocked(folder):
        raise StorageError(f"{folder}: cannot be locked")

    monkeypatch.setattr(openslide, "OpenSlide", broken)
    monkeypatch.setattr(doctor.files, "locked", unlocked)
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: ["absent-package>=1", "numpy<1", "jax"])
    assert doctor.main([]) == 2
    lines = capsys.readouterr().out.splitlines()
    bad = {line.split()[1]: (line, lines[i + 1]) for i, line in enumerate(lines) if line.startswith("BAD")}
    assert set(bad) == {"packages", "openslide", "locks"}
    assert "absent-package is missing" in bad["packages"][0] and "is not <1" in bad["packages"][0]
    assert "JPEG (no such codec)" in bad["openslide"][0]
    assert "cannot be locked" in bad["locks"][0]
    assert all("->" in remedy for _, remedy in bad.values())


def test_a_check_that_fails_is_a_finding(capsys, monkeypatch):
    def fails():
        raise RuntimeError("driver is gone\nmore")

    monkeypatch.setattr(doctor, "CHECKS", {"jax": fails, "disk": doctor._disk})
    assert doctor.main([]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("BAD jax") and "driver is gone" in lines[0]
    assert any(" disk " in line for line in lines)


def test_little_space_and_no_tensorflow_do_not_fail(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "DISK_WANTED", float("inf"))
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "--  disk" in out and "--  tensorflow" in out and "bcss_jax[train]" in out


def test_rates_are_counted(monkeypatch):
    import jax

    monkeypatch.undo()
    monkeypatch.setattr(doctor, "MEASURED_SECONDS", 0.01)
    monkeypatch.setattr(doctor, "SIDE", 64)
    assert all(rate > 0 for rate in doctor._rates(jax.local_devices()[0]))
