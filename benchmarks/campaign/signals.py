"""Asks every command to stop at random moments: `python benchmarks/campaign/signals.py [ROUNDS] [SEED]`.

A command must end within 30 s with 75, or with the code of its finished work, and without a traceback; run again, it
must finish with the same result as without a stop. The moments spread over the whole time of the command, from its
first import on: start, preparation of data, fingerprint, compilation, loop, evaluation, report, slide and export.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
LIMIT_S = 30.0
# From the start of the interpreter to its first import of the package, a signal has the effect that Python gives it.
FIRST_MOMENT_S = 0.3


class Row(NamedTuple):
    """What came of one request to stop.

    Attributes:
      what: the command.
      moment: seconds after its start at which it was asked.
      signal: name of the signal.
      code: exit code; None if it had to be killed.
      seconds: from the request to the end.
      traceback: it printed one.
      survived: it ended in time, with an allowed code and without a traceback, and could be finished afterward.
      note: last line of its errors, or what was wrong.
    """

    what: str
    moment: float
    signal: str
    code: int | None
    seconds: float
    traceback: bool
    survived: bool
    note: str


class Command(NamedTuple):
    """A command of the campaign.

    Attributes:
      arguments: of Python.
      result: returns what two finished commands must agree on.
    """

    arguments: list[str]
    result: Callable[[], object]


def run(rounds: int, seed: int) -> list[Row]:
    """Asks commands to stop, one after the other.

    Args:
      rounds: number of requests; the commands take turns.
      seed: of the moments and signals.
    """
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        whole, stopped = commands(Path(name) / "whole", Path(name)), commands(Path(name) / "stopped", Path(name))
        seconds, expected = {}, {}
        for what, command in whole.items():
            begin = time.monotonic()
            ended = start(command).wait()
            seconds[what] = time.monotonic() - begin
            if ended:
                raise RuntimeError(f"{what}: exit code {ended} without any request to stop")
            expected[what] = command.result()
        rows: list[Row] = []
        for number in range(rounds):
            what = list(stopped)[number % len(stopped)]
            moment = moments.uniform(FIRST_MOMENT_S, seconds[what])
            rows.append(ask(what, stopped[what], moment, moments.choice(SIGNALS)))
        for what in dict.fromkeys(row.what for row in rows):
            code = start(stopped[what]).wait()
            if code or stopped[what].result() != expected[what]:
                found = f"exit code {code}" if code else "another result than without a stop"
                rows = [row._replace(survived=False, note=found) if row.what == what else row for row in rows]
    return rows


def ask(what: str, command: Command, moment: float, name: str) -> Row:
    """Starts a command, asks it to stop, and returns what came of it."""
    process = start(command, stderr=subprocess.PIPE)
    time.sleep(moment)
    process.send_signal(getattr(signal, name))
    begin = time.monotonic()
    try:
        _, errors = process.communicate(timeout=2 * LIMIT_S)
        code = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        code = None
    seconds = time.monotonic() - begin
    traceback = "Traceback" in errors
    survived = code in (0, 75) and seconds <= LIMIT_S and not traceback
    return Row(what, moment, name, code, seconds, traceback, survived, (errors.splitlines() or [""])[-1])


def start(command: Command, stderr: int = subprocess.DEVNULL) -> subprocess.Popen:
    """Starts a command."""
    arguments = [sys.executable, *command.arguments]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr, text=True)


def commands(folder: Path, shared: Path) -> dict[str, Command]:
    """Returns the commands by name.

    Args:
      folder: of their results.
      shared: of a run and a slide that they read, which the first call makes.
    """
    slide, raw, trained = shared / "slide.png", shared / "raw", shared / "whole" / "run"
    if not slide.exists():
        random_pixels = np.random.default_rng(0)
        Image.fromarray(random_pixels.integers(120, 240, (1200, 1500, 3), np.uint8)).save(slide)
        write_raw(raw, random_pixels)
    options = ["--config.model.width=4", "--config.epochs=2", f"--config.data.prepared_dir={folder / 'prepared'}"]
    plan = [f"--raw={raw}", f"--out={folder / 'plans.json'}", f"--prepared_dir={folder / 'prepared'}"]
    segment = ["--tissue=all", "--readers=1", "--mpp=0.25", f"--slide={slide}", f"--output={folder / 'slides'}"]
    module = ["-m"]
    return {
        "train": Command(
            [*module, "bcss_jax.main", "--config=configs/unet.py", f"--workdir={folder / 'run'}", *options],
            lambda: json.loads((folder / "run" / "summary.json").read_text())["params_sha256"],
        ),
        "segment": Command(
            [*module, "bcss_jax.segment", f"--checkpoint={trained}", *segment],
            lambda: (folder / "slides" / "slide" / "regions.geojson").read_bytes(),
        ),
        "evaluate": Command(
            [
                *[*module, "bcss_jax.evaluate", f"--checkpoints={trained}", f"--output={folder / 'scores'}"],
                f"--prepared_dir={folder / 'prepared'}",
            ],
            lambda: json.loads((folder / "scores" / "evaluation.json").read_text())["evaluations"][0]["scores"],
        ),
        "export": Command(
            [*module, "bcss_jax.export", f"--checkpoint={trained}", f"--output={folder / 'unet.jaxexport'}"],
            lambda: (folder / "unet.jaxexport").exists(),
        ),
        "plan": Command(
            [*module, "bcss_jax.nnunet", "plan", *plan],
            lambda: json.loads((folder / "plans.json").read_text())["configurations"],
        ),
        "inspect": Command(
            [*module, "bcss_jax.data", "inspect", "--data.layout=sample", f"--output={folder / 'inspect'}"],
            lambda: json.loads((folder / "inspect" / "inspect.json").read_text())["examples"],
        ),
    }


def write_raw(folder: Path, random_pixels: np.random.Generator) -> None:
    """Writes a raw data folder of nnU-Net with ten small cases."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(10):
        pixels = random_pixels.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "imagesTr" / f"case{number}_0000.png")
        Image.fromarray((pixels[..., 0] > 128).astype(np.uint8)).save(folder / "labelsTr" / f"case{number}.png")
    labels = {"background": 0, "tumor": 1}
    content = {"channel_names": {"0": "rgb"}, "labels": labels, "numTraining": 10, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(content))


def main() -> int:
    """Prints a line for each request. Returns 1 if a command did not survive one."""
    rounds, seed = (int(text) for text in (*sys.argv[1:3], *("20", "0")[len(sys.argv) - 1 :]))
    rows = run(rounds, seed)
    for row in rows:
        print(
            f"{'ok' if row.survived else 'FAILED':6} {row.what:10} {row.moment:6.1f} s {row.signal:8} exit {row.code} "
            f"after {row.seconds:.1f} s  {row.note}"
        )
    return 0 if all(row.survived for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
