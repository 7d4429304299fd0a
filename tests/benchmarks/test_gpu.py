"""The measurements for a GPU: parts that fail or take too long leave the others, and a host needs few packages."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.absent_modules import without_modules
from helpers.paths import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.gpu import results  # noqa: E402
from benchmarks.gpu.parts import NETWORKS, TITLES, Part, parts  # noqa: E402
from benchmarks.gpu.scheduler import Outcome, Scheduler, family_of  # noqa: E402

# Everything that the package needs, without what comes with jax, flax, optax, orbax, torch, timm and transformers.
ABSENT_ON_A_GPU_HOST = (
    "albumentations", "clu", "cv2", "matplotlib", "ml_collections", "openslide", "pydantic", "rasterio", "shapely",
    "skimage", "starlette", "tensorboard", "tensorflow", "tensorflow_datasets", "tifffile", "tiffslide", "uvicorn",
    "zarr",
)  # fmt: skip
FAKES = """
import os, signal, time
from pathlib import Path

def run(report, *, do, log=None):
    report.add(begun=True)
    if do == "fail":
        raise ValueError("no such thing\\nmore")
    if do == "abort":
        print("the compiler gives up", flush=True)
        os.abort()
    if do == "hang":
        time.sleep(600)
    if do == "count":  # says ten times a second that it runs
        for _ in range(15):
            with open(log, "a") as file:
                file.write(f"{time.time()} counts\\n")
            time.sleep(0.1)
    if do == "measure":
        with report.quiet(), open(log, "a") as file:
            file.write(f"{time.time()} begins\\n")
            time.sleep(0.5)
            file.write(f"{time.time()} ends\\n")
"""


@pytest.fixture
def run_parts(tmp_path, monkeypatch):
    """Returns a function that runs fake parts: (name, settings, seconds) -> outcomes by name."""
    folder = tmp_path / "fakes/benchmarks/gpu"  # beside the folder of that name in the repository
    folder.mkdir(parents=True)
    (folder / "fake.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"))

    def run(*described, minutes=1.0, at_once=2):
        found = {}
        made = [Part(name, "fake", settings, seconds) for name, settings, seconds in described]
        scheduler = Scheduler(
            tmp_path, time.monotonic() + 60 * minutes, at_once, lambda outcome: found.update({outcome.name: outcome})
        )
        scheduler.run(made)
        return found

    return run


def test_parts_that_fail_or_take_too_long_leave_the_others_and_say_why(run_parts):
    found = run_parts(
        ("fails", {"do": "fail"}, 30),
        ("aborts", {"do": "abort"}, 30),
        ("hangs", {"do": "hang"}, 1.5),
        ("works", {"do": "nothing"}, 30),
    )
    assert {name: outcome.state for name, outcome in found.items()} == {
        "fails": "failed", "aborts": "failed", "hangs": "too long", "works": "done",
    }  # fmt: skip
    assert found["fails"].reason == "ValueError: no such thing"
    assert found["aborts"].reason.startswith("SIGABRT: ")
    assert found["hangs"].reason == "ended after 2 s"
    assert all(outcome.rows == [{"begun": True}] for outcome in found.values())


def test_what_does_not_fit_into_the_time_is_named(run_parts):
    started = time.monotonic()
    found = run_parts(("hangs", {"do": "hang"}, 60), ("waits", {"do": "nothing"}, 60), minutes=1 / 60, at_once=1)
    assert time.monotonic() - started < 10
    assert (found["hangs"].state, found["hangs"].reason) == ("too long", "the time was over")
    assert (found["waits"].state, found["waits"].rows) == ("skipped", [])


def test_other_parts_stand_still_while_one_measures(run_parts, tmp_path):
    log = tmp_path / "log"
    found = run_parts(
        ("counts", {"do": "count", "log": str(log)}, 30), ("measures", {"do": "measure", "log": str(log)}, 30)
    )
    assert {outcome.state for outcome in found.values()} == {"done"}
    lines = [line.split() for line in log.read_text().splitlines()]
    begins, ends = (float(next(at for at, what in lines if what == word)) for word in ("begins", "ends"))
    counted = [float(at) for at, what in lines if what == "counts"]
    assert ends - begins >= 0.5
    assert not [at for at in counted if begins < at < ends]
    assert len(counted) == 15


def test_no_process_is_left_when_the_command_is_ended(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--only=training", f"--out={tmp_path / 'out'}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while len(family := family_of(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(family) >= 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    deadline = time.monotonic() + 10  # the system takes a moment to end a process that was killed
    while left := [number for number in family if os.path.exists(f"/proc/{number}/cmdline") and _command_of(number)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _command_of(process):
    with open(f"/proc/{process}/cmdline", "rb") as file:
        return b"benchmarks.gpu" in file.read()


def test_without_a_gpu_one_line_says_what_to_do(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", f"--out={tmp_path}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "finds no GPU" in line and "jax[cuda" in line and "--dry" in line


def test_every_network_is_measured_in_every_type_and_the_most_valuable_parts_come_first():
    for dry in (False, True):
        found = parts(dry, None)
        assert len({part.name for part in found}) == len(found)
        assert {part.module for part in found} == TITLES.keys() - {"environment"}
        assert {part.settings["network"] for part in found if part.module == "speed"} == set(NETWORKS)
        assert found[0].module == "parity"
    measured = [
        (part.settings["network"], *part.settings["dtypes"]) for part in parts(False, None) if part.module == "speed"
    ]
    assert len(measured) == 3 * len(NETWORKS) == len(set(measured))


def test_networks_are_those_of_the_package():
    from bcss_jax.models import MODELS

    assert set(NETWORKS) == set(MODELS)


def test_a_table_has_all_columns_and_marks_what_is_missing():
    rows = [
        {"network": "unet", "here_images_per_s": 1676.4, "fine": True},
        {"network": "a|b", "fine": False, "x": None},
    ]
    assert results.table(rows) == [
        "| network | here images per s | fine | x |",
        "| --- | --- | --- | --- |",
        "| unet | 1676 | yes | – |",
        "| a\\|b | – | NO | – |",
    ]


def test_results_are_read_as_they_were_written(tmp_path):
    outcomes = [
        Outcome("speed-unet", "speed", "done", "", 3.0, [{"ratio": 1.5}]),
        Outcome("x", "slide", "failed", "a", 1.0, []),
    ]
    results.write(tmp_path, outcomes, {"minutes": 8})
    assert results.read(tmp_path) == outcomes
    assert json.loads((tmp_path / results.JSON).read_text())["minutes"] == 8
    page = (tmp_path / results.MARKDOWN).read_text()
    assert "| x | failed | 1 | a |" in page and TITLES["speed"] in page and TITLES["slide"] not in page


def test_all_modules_import_on_a_host_that_has_only_jax_and_pytorch():
    modules = [f"benchmarks.gpu.{path.stem}" for path in sorted((ROOT / "benchmarks/gpu").glob("*.py"))]
    code = without_modules((*ABSENT_ON_A_GPU_HOST, "torch")) + (
        "import importlib\nfrom benchmarks.gpu.stand_ins import stand_in_for_pydantic\nstand_in_for_pydantic()\n"
        "for name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    )
    modules.remove("benchmarks.gpu.__main__")
    result = subprocess.run(
        [sys.executable, "-c", code, "benchmarks.gpu.__main__", *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


DRY = "environment,parity,training,resume,kernels,slide"  # all networks would take more than twenty minutes


@pytest.mark.slow
def test_a_dry_run_on_such_a_host_does_the_parts(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(without_modules(ABSENT_ON_A_GPU_HOST))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHON": sys.executable}
    del environment["XLA_FLAGS"]  # one device, as on that host
    command = [ROOT / "benchmarks/gpu.sh", "--dry", f"--only={DRY}", f"--out={tmp_path / 'out'}"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1300)
    outcomes = results.read(tmp_path / "out")
    assert result.returncode == 0, result.stdout
    states = {each.name: each.state for each in outcomes if each.name.startswith(tuple(DRY.split(",")))}
    assert len(states) >= len(DRY.split(",")) and set(states.values()) == {"done"}
    assert not [row for each in outcomes for row in each.rows if row.get("fine") is False]
