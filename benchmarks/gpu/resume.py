"""Kills a training with SIGKILL and resumes it: its result equals that of a run that was not stopped."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.gpu.child import Report
from benchmarks.gpu.scheduler import ROOT

# GPUs add up in any order unless they are told not to; tuning may choose other kernels in another process.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def run(report: Report, *, width: int, depth: int, side: int, steps: int) -> None:
    """Trains three times: twice unbroken, whose difference is what chance explains, and once killed and resumed."""
    settings = json.dumps({"width": width, "depth": depth, "side": side, "steps": steps})
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in ("unbroken", "again", "killed")}
        runs = {name: _start(folder, settings) for name, folder in folders.items()}
        killed_after = _kill(runs["killed"], steps // 2 + 2)
        resumed = _start(folders["killed"], settings)
        resumed_from = _next(resumed, "from ")
        for process in (runs["unbroken"], runs["again"], resumed):
            _wait(process)
        states = {name: dict(np.load(folder / "state.npz")) for name, folder in folders.items()}
    noise, differ = (_difference(states[name], states["unbroken"]) for name in ("again", "killed"))
    report.add(
        steps=steps, killed_after_step=killed_after, resumed_from_step=resumed_from, resumed_differs=differ,
        unbroken_twice_differs=noise, fine=differ <= noise and resumed_from > 0,
    )  # fmt: skip


def _start(folder: Path, settings: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}"
    command = [sys.executable, "-m", "benchmarks.gpu.resume_run", str(folder), settings]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, text=True)


def _kill(process: subprocess.Popen[str], after: int) -> int:
    """Kills a run after a step. Returns the number of the last step that it has reported."""
    while _next(process, "step ") < after:
        pass
    process.kill()
    assert process.stdout
    return max([after, *(int(line.split()[1]) for line in process.stdout if line.startswith("step "))])


def _next(process: subprocess.Popen[str], prefix: str) -> int:
    """Returns the number in the next line with a prefix. Raises RuntimeError if the run ends before."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(prefix):
            return int(line.removeprefix(prefix))
    raise RuntimeError(f"the run ended with {process.wait()} before a line {prefix!r}")


def _wait(process: subprocess.Popen[str]) -> None:
    process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run ended with {process.returncode}")


def _difference(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Returns the largest difference of a number, relative to the largest of its array."""
    differences = [
        np.abs(actual[name].astype(np.float64) - value).max() / (np.abs(value).max() or 1)
        for name, value in expected.items()
    ]
    return float(max(differences))
