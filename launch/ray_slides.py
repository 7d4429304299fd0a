"""Segments a list of slides with Ray: one task a slide, tried again on another worker when its own dies.

    python launch/ray_slides.py --slides=list.csv --workers=2 -- --checkpoint=runs/unet --output=out
    RAY_ADDRESS=auto python launch/ray_slides.py --slides=list.csv --gpus=1 -- --checkpoint=runs/unet --output=out

What stands behind `--` goes to `python -m bcss_jax.segment`, which each task runs in a process of its own, in this folder:
on a cluster all hosts share it, the slides and the results. With --workers a cluster of that many workers is started on
this machine, reachable from it alone, and ended again; without it RAY_ADDRESS says where one is. Ray's reports of usage are
switched off. `pip install -e '.[ray]'` installs it.

The same command goes on where it was stopped, and computes no slide twice, with --overwrite too. Exit codes: 0 done, 2 settings, 3 the list, 5
storage, 6 some slides failed (summary.csv in the output says why), 75 stopped on request. Linux.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Read when ray is imported.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
if "RAY_ADDRESS" not in os.environ:
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # it listens on the loopback interface alone, on Linux too

try:
    import ray
except ModuleNotFoundError:
    print("error: needs Ray; install it with pip install -e '.[ray]'", file=sys.stderr)
    sys.exit(2)

from bcss_jax.common import command
from bcss_jax.common.files import storage_errors
from bcss_jax.common.interruption import Interruption
from bcss_jax.errors import ConfigError, DataError, PartialError, Preempted, StorageError, first_line, printable
from bcss_jax.slides.batch import batch_summary
from bcss_jax.slides.batch.overwrite_journal import OverwriteJournal
from bcss_jax.slides.batch.slide_folder import models_in, note_failure, status_of
from bcss_jax.slides.batch.slide_list import Entry, read_list

RETRIES = 5  # of a slide whose worker died, or was asked to stop
STORE = 100 << 20  # bytes of Ray's object store; what tasks return is a few lines
# Ends the process with its parent, however that ends: its successor on another worker needs the slide's lock. Ray 2.60
# does so itself, 2.50 leaves it running. 1 is PR_SET_PDEATHSIG, which exec keeps; the parent may have died before.
WITH_ITS_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.getppid() == int(sys.argv[1]) or sys.exit(75); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)


class Outcome(NamedTuple):
    """What became of a slide: exit code of segment, and what it said."""

    code: int
    said: str


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and segments. Returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    own, others = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args = _parser().parse_args(own)
    return command.run(lambda: _run(args, others))


def _parser():
    parser = command.parser(
        "python launch/ray_slides.py",
        __doc__,
        usage="%(prog)s --slides=list.csv [--workers=N] [--gpus=N] [--cpus=N] -- [options of bcss_jax.segment]",
    )
    add = parser.add_argument
    add("--slides", required=True, type=Path, help="CSV with a column slide, as of bcss_jax.segment")
    add("--workers", type=int, help="start a cluster on this machine that works on so many slides at a time")
    add("--gpus", type=float, default=0, help="GPUs that a slide takes (default 0: it is computed on the CPU)")
    add("--cpus", type=float, default=1, help="likewise cores, as Ray counts them (default 1)")
    return parser


def _run(args: argparse.Namespace, others: list[str]) -> None:
    output, several, region, others = _parted(others)
    entries = read_list(args.slides)
    if (args.workers is None) == ("RAY_ADDRESS" not in os.environ):
        raise ConfigError(
            "which cluster? either --workers=2, to start one on this machine, or RAY_ADDRESS=auto, for one that runs"
        )
    for name, value, least in (("workers", args.workers, 1), ("gpus", args.gpus, 0), ("cpus", args.cpus, 0)):
        if value is not None and not value >= least:
            raise ConfigError(f"--{name}={value}: must be {least} or more")
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    overwriting = {entry: OverwriteJournal.of_slide(output, entry.folder) for entry in entries}
    # Within, because Ray takes the signals for itself when it starts; and signals are noted, not raised into Ray's waiting.
    with _cluster(args), Interruption() as interruption:
        interruption.begin()
        try:
            tasks = [[*others, *_of_slide(entry, region)] for entry in entries]
            for entry, outcome in _outcomes(entries, tasks, args, interruption):
                outcomes[entry] = outcome
                if (
                    "--overwrite" in others and outcome.code == 0
                ):  # segment has forgotten that it overwrote it: it came to its end
                    for path in models_in(output / entry.folder) if several else [output / entry.folder]:
                        overwriting[entry].note(path)
                _report(entry, outcome, f"{len(outcomes)}/{len(entries)}", output, several)
        finally:
            batch_summary.write(output, entries, several)
    codes = [outcome.code for outcome in outcomes.values()]
    if Preempted.exit_code not in codes:
        for each in overwriting.values():
            each.end()
    failed = [code for code in codes if code not in (0, Preempted.exit_code)]
    print(f"\n{codes.count(0)} of {len(entries)} slides done; {output / 'summary.csv'} lists them")
    if failed == [ConfigError.exit_code] * len(entries):
        raise ConfigError("the settings fit no slide; correct them as said above")
    if failed:
        raise PartialError(f"{len(failed)} of {len(entries)} slides failed; the same command tries them again")
    if any(codes):
        raise Preempted("some slides were stopped again and again; the same command goes on")


def _parted(others: list[str]) -> tuple[Path, bool, str | None, list[str]]:
    """From the options of segment: output, whether several networks write into it, the region to score, and all but that."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    of_one = ("slide", "slides", "shard", "mpp", "truth", "name")
    for name in ("output", "checkpoint", "tissue", *of_one):
        parser.add_argument(f"--{name}")
    scored = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scored.add_argument("--truth_region")
    try:
        found, _ = parser.parse_known_args(others)
        of_truth, rest = scored.parse_known_args(others)
    except argparse.ArgumentError as error:
        raise ConfigError(f"behind --: {error}") from error
    for name in ("output", "checkpoint"):
        if not getattr(found, name):
            raise ConfigError(f"behind -- there must be --{name}, as of python -m bcss_jax.segment")
    for name in of_one:
        if getattr(found, name) is not None:
            raise ConfigError(f"behind --: --{name} is of one slide; the slides come from --slides in front of it")
    if found.tissue not in (None, "colour", "all"):
        raise ConfigError(
            f"behind --: --tissue={found.tissue}: is of one slide; in a list it is the column tissue, beside the words "
            "color and all for every slide"
        )
    return Path(found.output), "," in found.checkpoint, of_truth.truth_region, rest


@contextlib.contextmanager
def _cluster(args: argparse.Namespace) -> Iterator[None]:
    """Connects to Ray; a cluster that is started here listens on the loopback interface alone, and ends with this."""
    settings = {"logging_level": "ERROR", "log_to_driver": False}
    if args.workers is not None:
        settings |= {"address": "local", "num_cpus": args.workers * args.cpus, "object_store_memory": STORE}
        settings |= {"include_dashboard": False}
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ConfigError(f"no connection to Ray ({first_line(error)}); check RAY_ADDRESS or give --workers") from error
    try:
        yield
    finally:
        ray.shutdown()


def _outcomes(
    entries: list[Entry], tasks: list[list[str]], args: argparse.Namespace, interruption: Interruption
) -> Iterator[tuple[Entry, Outcome]]:
    """Each slide with what became of its task, as they end. Raises Preempted when asked to stop."""
    task = ray.remote(
        num_cpus=args.cpus,
        num_gpus=args.gpus,
        max_retries=RETRIES,
        retry_exceptions=[InterruptedError],
        scheduling_strategy="SPREAD",
    )(_segment)
    running = {
        task.remote(options, os.getcwd(), args.gpus > 0): entry for entry, options in zip(entries, tasks, strict=True)
    }
    while running:
        if interruption.requested:
            raise Preempted(f"stopped with {len(running)} slides not done; the same command goes on from there")
        for result in ray.wait(list(running), timeout=1)[0]:
            entry = running.pop(result)
            try:
                yield entry, Outcome(*ray.get(result))
            except InterruptedError as error:
                yield entry, Outcome(Preempted.exit_code, first_line(error))
            except ray.exceptions.RayError as error:
                yield entry, Outcome(1, f"its worker failed ({type(error).__name__}: {first_line(error)})")


def _of_slide(entry: Entry, region: str | None) -> list[str]:
    """Options of one slide; a region of the truth only where there is one, as in a list of segment."""
    values = entry._asdict()
    values["truth_region"] = None if entry.truth is None else region
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def _segment(arguments: list[str], folder: str, on_gpu: bool) -> tuple[int, str]:
    """On a worker: segments one slide in a process of its own. Returns its exit code and what it said.

    Raises:
      InterruptedError: it was stopped, or another process is not yet through with the slide; to be tried again.
    """
    segment = [sys.executable, "-c", WITH_ITS_PARENT, str(os.getpid()), "-m", "bcss_jax.segment", *arguments]
    environment = os.environ if on_gpu else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # else all share all of them
    result = subprocess.run(
        segment, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    errors = result.stderr.strip().splitlines() or [""]
    if result.returncode in (75, -signal.SIGTERM):
        raise InterruptedError(f"stopped: {errors[-1]}")
    if result.returncode == 5 and ": in use by " in errors[-1]:
        time.sleep(5)
        raise InterruptedError(errors[-1])
    if result.returncode < 0:
        return result.returncode, f"ended by {signal.Signals(-result.returncode).name}"
    return result.returncode, errors[-1] if result.returncode else result.stdout.strip()


def _report(entry: Entry, outcome: Outcome, place: str, output: Path, several: bool) -> None:
    name = printable(entry.slide.name)
    if outcome.code == 0:
        print(f"{place} {outcome.said}", flush=True)
        return
    reason = outcome.said.removeprefix("error: ") or f"ended with exit code {outcome.code}"
    print(f"{place} {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr, flush=True)
    folder = output / entry.folder
    # A crash wrote nothing down. What another try with better settings may find is left as it is.
    noted = several or status_of(folder)[0] != "pending" or outcome.code == Preempted.exit_code
    if not noted:
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
        kinds = {kind.exit_code: kind for kind in (ConfigError, DataError, StorageError)}
        note_failure(folder, kinds.get(outcome.code, DataError)(reason))


if __name__ == "__main__":
    sys.exit(main())
