"""Commands that are killed, run out of space or run twice at once; the same command then gives the right result."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import inputs
import isolated
import numpy as np
import results
import trials
from inputs import Inputs
from trials import Outcome

LIMIT = 180  # seconds of a command


def _commands(source: Inputs) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns the commands that are disturbed: a name, the command, its arguments."""
    slide = ("--slide={work}/slide.tif", "--output={out}", "--readers=1", "--min_area_um2=0", "--probabilities")
    return {
        "training": ("train", inputs.TRAIN),
        "a slide": ("segment", (f"--checkpoint={source.run}", *slide)),
    }


def _work(source: Inputs) -> Path:
    work = Path(tempfile.mkdtemp(prefix="campaign-"))
    source.copier("tiles", "slide.tif")(work)
    return work


def _start(command: str, arguments: tuple[str, ...], work: Path) -> trials.Running:
    places = {"{work}": str(work), "{out}": str(work / "out")}
    return trials.start(command, [trials.filled(argument, places) for argument in arguments], work)


def _digest(command: str, out: Path) -> dict:
    if command == "segment":
        return results.of_segmentation(out)
    (returned,) = isolated.call_all([lambda: results.of_training(out)], limit=60)
    if returned.code:
        raise RuntimeError(returned.line)
    return dict(returned.value)


def _undisturbed(source: Inputs) -> dict[str, tuple[dict, float]]:
    """Returns each command's result, and the seconds that it takes."""
    found = {}
    for name, (command, arguments) in _commands(source).items():
        work = _work(source)
        ended = trials.finish(_start(command, arguments, work), LIMIT)
        if ended.code:
            raise RuntimeError(f"{name} fails undisturbed: {ended.text}")
        found[name] = _digest(command, work / "out"), ended.seconds
        shutil.rmtree(work)
    return found


def outcomes(source: Inputs, rounds: int, seed: int, keep: Path, only: str) -> Iterator[Outcome]:
    """Disturbs each command `rounds` times: kills at random moments, full disks of random sizes, and two at once."""
    expected = _undisturbed(source)
    for name, (command, arguments) in _commands(source).items():
        sound, seconds = expected[name]
        rng = np.random.default_rng((seed, 2))
        for disturb in (_killed, _full_disk, _twice):
            if only not in f"{disturb.__name__} {name}":
                continue
            for _ in range(rounds):
                work = _work(source)
                with contextlib.ExitStack() as stack:
                    what, faults, printed, spent = disturb(stack, command, arguments, work, seconds, rng)
                    ended = trials.finish(_start(command, arguments, work), LIMIT)
                    faults += [f"afterward: {fault}" for fault in trials.faults_of(ended, (0,))]
                    if not faults and (wrong := results.different(_digest(command, work / "out"), sound)):
                        faults.append(f"afterward: {wrong}")
                    if faults:
                        (work / "printed.txt").write_text(f"{printed}\n--- afterward ---\n{ended.text}")
                        shutil.copytree(work, keep / f"{what}_{name}_{work.name}".replace(" ", "_"), symlinks=True)
                shutil.rmtree(work, ignore_errors=True)
                yield Outcome(f"{name}, {what.split(':')[0]}", what, ended.code, ended.line, spent, tuple(faults))


def _killed(stack, command, arguments, work, seconds, rng) -> tuple[str, list[str], str, float]:
    """Kills the command at a random moment."""
    moment = float(rng.uniform(0, seconds))
    running = _start(command, arguments, work)
    time.sleep(moment)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.process, signal.SIGKILL)
    ended = trials.finish(running, LIMIT)
    return f"killed: after {moment:.1f} of {seconds:.1f} s", [], ended.text, ended.seconds


def _full_disk(stack, command, arguments, work, seconds, rng) -> tuple[str, list[str], str, float]:
    """Runs the command on a small disk, which is made larger afterward."""
    size = int(rng.integers(4, 600)) * 1024
    (work / "out").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "campaign", str(work / "out")]
    if subprocess.run(mount, capture_output=True).returncode:
        return "full disk: not tried, since no disk can be mounted here", [], "", 0.0
    stack.callback(subprocess.run, ["umount", "-l", str(work / "out")], check=True)
    ended = trials.finish(_start(command, arguments, work), LIMIT)
    subprocess.run(["mount", "-o", "remount,size=64m", str(work / "out")], check=True)
    return f"full disk: of {size} bytes", list(trials.faults_of(ended, (0, 5))), ended.text, ended.seconds


def _twice(stack, command, arguments, work, seconds, rng) -> tuple[str, list[str], str, float]:
    """Starts the command twice, the second at a random moment."""
    first = _start(command, arguments, work)
    time.sleep(float(rng.uniform(0, seconds / 2)))
    second = _start(command, arguments, work)
    ended = [trials.finish(running, LIMIT) for running in (first, second)]
    faults = [fault for each in ended for fault in trials.faults_of(each, (0, 5))]
    if all(each.code for each in ended):
        faults.append("neither of the two finished")
    text = "\n--- second ---\n".join(each.text for each in ended)
    return f"two at once: {ended[0].code} and {ended[1].code}", faults, text, max(each.seconds for each in ended)
