"""Asks every command to stop at random moments.

A command must end within 30 s with 75, or with the code of its finished work, and without a traceback; run again, it
must finish with the same result as without a stop. The moments spread over the whole time of the command, from its
first import on: start, preparation of data, fingerprint, compilation, loop, evaluation, report, slide and export.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from inputs import Inputs
from PIL import Image
from trials import Outcome

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
LIMIT_S = 30.0
# From the start of the interpreter to its first import of the package, a signal has the effect that Python gives it.
FIRST_MOMENT_S = 0.3
SERVED_S = 6.0  # moments at which the viewer is asked lie within these seconds after its start


class Row(NamedTuple):
    """What came of one request to stop.

    Attributes:
      what: the command.
      moment: seconds after its start at which it was asked.
      signal: name of the signal.
      code: exit code; None if it had to be killed.
      seconds: from the request to the end.
      traceback: it printed one.
      survived: it ended in time, with an allowed code, said so, without a traceback, and could be finished afterward.
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
      output: file or folder of its results; None for a server, which ends only when it is asked to.
      result: returns what two finished commands must agree on.
    """

    arguments: list[str]
    output: Path | None
    result: Callable[[], object]


def outcomes(source: Inputs, rounds: int, seed: int, keep: Path, only: str) -> Iterator[Outcome]:
    """Asks commands to stop; each request is a trial."""
    for row in requests(rounds, seed, only):
        what = f"{row.what}: {row.signal} after {row.moment:.1f} s"
        code = -signal.SIGKILL if row.code is None else row.code
        faults = () if row.survived else (row.note or "does not end in time",)
        yield Outcome("signals", what, code, row.note, row.seconds, faults)


def requests(rounds: int, seed: int, only: str = "") -> Iterator[Row]:
    """Asks commands to stop, one after the other.

    Args:
      rounds: number of requests; the commands take turns.
      seed: of the moments and signals.
      only: text that the names of the commands must contain.
    """
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, stopped = (
            commands(Path(folder) / "whole", Path(folder)),
            commands(Path(folder) / "stopped", Path(folder)),
        )
        names = [name for name in stopped if only in name]
        # Undisturbed first; later commands read what earlier ones wrote.
        seconds = {what: _seconds(whole[what], what) for what in list(stopped)[: list(stopped).index(names[-1]) + 1]}
        for number in range(rounds):
            what = names[number % len(names)]
            row = ask(what, stopped[what], moments.uniform(FIRST_MOMENT_S, seconds[what]), moments.choice(SIGNALS))
            is_last = number + len(names) >= rounds
            finish = stopped[what].output is not None and (is_last or row.code == 0)
            yield finished(row, stopped[what], whole[what].result()) if finish else row


def _seconds(command: Command, what: str) -> float:
    """Runs a command without any request to stop. Returns the seconds within which it may be asked."""
    if command.output is None:
        return SERVED_S
    begin = time.monotonic()
    if code := start(command).wait():
        raise RuntimeError(f"{what}: exit code {code} without any request to stop")
    return time.monotonic() - begin


def finished(row: Row, command: Command, expected: object) -> Row:
    """Finishes a command, checks and deletes its result, and returns the row with what was found."""
    code = start(command).wait() if row.code else 0
    if code or command.result() != expected:
        found = f"exit code {code}" if code else "another result than without a stop"
        row = row._replace(survived=False, note=f"afterward: {found}")
    shutil.rmtree(command.output) if command.output.is_dir() else command.output.unlink(missing_ok=True)
    return row


def ask(what: str, command: Command, moment: float, name: str) -> Row:
    """Starts a command, asks it to stop, and returns what came of it."""
    process = start(command, stderr=subprocess.PIPE)
    time.sleep(moment)
    # A terminal sends Ctrl-C to the whole group, with the processes that read slides.
    (os.killpg if name == "SIGINT" else os.kill)(process.pid, getattr(signal, name))
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
    lines = [line for line in errors.splitlines() if line.strip()]
    note = lines[-1] if lines else ""
    said = code != 75 or any(line.startswith("note: ") for line in lines)
    survived = code in (0, 75) and seconds <= LIMIT_S and not traceback and said
    if not group_ends(process.pid):
        survived, note = False, "processes are left over"
    return Row(what, moment, name, code, seconds, traceback, survived, note)


def group_ends(group: int) -> bool:
    """Returns whether all processes of a group end within five seconds."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return False


def start(command: Command, stderr: int = subprocess.DEVNULL) -> subprocess.Popen:
    """Starts a command."""
    arguments = [sys.executable, *command.arguments]
    return subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr, text=True, start_new_session=True
    )


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
        write_tiles(shared / "tiles", random_pixels)
    options = [*("--config.model.width=4", "--config.epochs=3", "--config.batch_size=4", "--config.eval_batch_size=4")]
    options += [f"--config.data.dir={shared / 'tiles'}", f"--config.data.prepared_dir={folder / 'prepared'}"]
    plan = [f"--raw={raw}", f"--out={folder / 'plans.json'}", f"--prepared_dir={folder / 'prepared'}"]
    segment = ["--tissue=all", "--readers=1", "--mpp=0.25", f"--slide={slide}", f"--output={folder / 'slides'}"]
    nnunet = ["--config.fold=0", "--config.epochs=2", "--config.iterations=2", "--config.val_iterations=1"]
    nnunet += [f"--config.data.dir={raw}", f"--config.data.prepared_dir={folder / 'prepared'}"]
    predict = ["--no-mirror", f"--images={raw / 'imagesTr'}", f"--out={folder / 'predicted'}"]
    module = ["-m"]
    return {
        "train": Command(
            [*module, "bcss_jax.main", "--config=configs/unet.py:kaggle512", f"--workdir={folder / 'run'}", *options],
            folder / "run",
            lambda: json.loads((folder / "run" / "summary.json").read_text())["params_sha256"],
        ),
        "segment": Command(
            [*module, "bcss_jax.segment", f"--checkpoint={trained}", *segment],
            folder / "slides",
            lambda: (folder / "slides" / "slide" / "regions.geojson").read_bytes(),
        ),
        "evaluate": Command(
            [
                *[*module, "bcss_jax.evaluate", f"--checkpoints={trained}", f"--output={folder / 'scores'}"],
                f"--prepared_dir={folder / 'prepared'}",
            ],
            folder / "scores",
            lambda: json.loads((folder / "scores" / "evaluation.json").read_text())["evaluations"][0]["scores"],
        ),
        "export": Command(
            [*module, "bcss_jax.export", f"--checkpoint={trained}", f"--output={folder / 'unet.jaxexport'}"],
            folder / "unet.jaxexport",
            lambda: (folder / "unet.jaxexport").stat().st_size,
        ),
        "plan": Command(
            [*module, "bcss_jax.nnunet", "plan", *plan],
            folder / "plans.json",
            lambda: json.loads((folder / "plans.json").read_text())["configurations"],
        ),
        "nnunet": Command(
            [*module, "bcss_jax.main", "--config=configs/nnunet.py:nnunet", f"--workdir={folder / 'folds'}", *nnunet],
            folder / "folds",
            lambda: [path.read_bytes() for path in sorted((folder / "folds" / "fold_0" / "validation").glob("*.png"))],
        ),
        "predict": Command(
            [*module, "bcss_jax.nnunet", "predict", f"--model={shared / 'whole' / 'folds'}", *predict],
            folder / "predicted",
            lambda: [path.read_bytes() for path in sorted((folder / "predicted").glob("*.png"))],
        ),
        "view": Command([*module, "bcss_jax.view", f"{shared / 'whole' / 'slides'}", "--port=0"], None, lambda: None),
        "inspect": Command(
            [*module, "bcss_jax.data", "inspect", "--data.layout=sample", f"--output={folder / 'inspect'}"],
            folder / "inspect",
            lambda: json.loads((folder / "inspect" / "inspect.json").read_text())["examples"],
        ),
    }


def write_tiles(folder: Path, random_pixels: np.random.Generator) -> None:
    """Writes a data set of 32 small tiles of four patients, in the layout kaggle512."""
    for number in range(32):
        split = "val" if number >= 24 else "train"
        name = f"TCGA-A{number // 8}-A0D2-DX1_xmin100_ymin200_MPP-0_{512 * number}_0_size512.png"
        for kind, shape, top in (("512", (32, 32, 3), 256), ("mask_512", (32, 32), 4)):
            path = folder / f"{split}_{kind}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random_pixels.integers(0, top, shape, np.uint8)).save(path)


def write_raw(folder: Path, random_pixels: np.random.Generator) -> None:
    """Writes a raw data folder of nnU-Net with ten small cases."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(10):
        pixels = random_pixels.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "imagesTr" / f"case{number}_0000.png")
        Image.fromarray((pixels[..., 0] > 128).astype(np.uint8)).save(folder / "labelsTr" / f"case{number}.png")
    labels = {"background": 0, "tumor": 1}
    content = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": labels,
        "numTraining": 10,
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
