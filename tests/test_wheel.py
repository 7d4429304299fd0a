"""A wheel holds every file of the package that Git holds, and the config files."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers.paths import ROOT

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def test_a_wheel_holds_the_package_and_the_configs(tmp_path):
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("bcss_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = subprocess.run(
        [sys.executable, "-c", BUILD, tmp_path], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        packed = set(file.namelist())
        entry_points = next(name for name in packed if name.endswith("entry_points.txt"))
        assert "bcss-jax = bcss_jax.cli:main" in file.read(entry_points).decode()
    wanted = {path.relative_to(source).as_posix() for path in (source / "bcss_jax").rglob("*") if path.is_file()}
    wanted |= {f"bcss_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert len(wanted) > 200
    assert not wanted - packed
