"""Segments a list of slides with Ray: one task for each slide, retried on another worker when its worker dies.

    python launch/ray_slides.py --slides=list.csv --workers=2 -- --checkpoint=runs/unet --output=out
    RAY_ADDRESS=auto python launch/ray_slides.py --slides=list.csv --gpus=1 -- --checkpoint=runs/unet --output=out

The options after `--` are passed to `python -m bcss_jax.segment`, which each task runs in a separate process in this
folder. On a cluster, all hosts share this folder, the slides and the results. With --workers a cluster of that many
workers is started on this machine, which only this machine can reach, and stopped at the end; without it RAY_ADDRESS
names a running cluster. Ray's usage reports are switched off. `pip install -e '.[ray]'` installs Ray.

The same command resumes where it was stopped and computes no slide twice, with --overwrite too. Exit codes: 0 done, 2
settings, 3 the list, 5 storage, 6 some slides failed (summary.csv in the output lists the reasons), 75 stopped on
request. Runs on Linux.
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
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = (
        "0"  # makes it listen on the loopback interface only, on Linux too
    )

from bcss_jax.common import interruption  # noqa: E402  # before Ray, whose import takes seconds

if __name__ == "__main__":
    interruption.install()

try:
    import ray
except ModuleNotFoundError:
    print("error: needs Ray; install it with pip install -e '.[ray]'", file=sys.stderr)
    sys.exit(2)

from bcss_jax.common import command
from bcss_jax.common.files import storage_errors
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.ranges import PROCESSES, Range
from bcss_jax.errors import ConfigError, DataError, PartialError, Preempted, StorageError, first_line, printable
from bcss_jax.slides.batch import batch_summary
from bcss_jax.slides.batch.overwrite_journal import OverwriteJournal
from bcss_jax.slides.batch.slide_folder import model_folders, status_of, write_failure
from bcss_jax.slides.batch.slide_list import Entry, read_list

RETRIES = 5  # of a slide whose worker died, or was asked to stop
OBJECT_STORE_BYTES = 100 << 20  # tasks return a few lines only
# Ends the process when its parent ends, because the next try on another worker needs the slide's lock. Ray 2.60 does
# this itself, Ray 2.50 leaves the process running. 1 is PR_SET_PDEATHSIG, which exec keeps; the parent may have died
# before.
END_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.getppid() == int(sys.argv[1]) or sys.exit(75); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)


class Outcome(NamedTuple):
    """How a slide ended: the exit code of segment, and what it printed."""

    code: int
    output: str


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and segments. Returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    own, others = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    return command.run(lambda: _run(_parser().parse_args(own), others))


def _parser():
    parser = command.parser(
        "python launch/ray_slides.py",
        __doc__,
        usage="%(prog)s --slides=list.csv [--workers=N] [--gpus=N] [--cpus=N] -- [options of bcss_jax.segment]",
    )
    add = parser.add_argument
    add("--slides", required=True, type=Path, help="CSV with a column slide, as for bcss_jax.segment")
    add(
        "--workers",
        type=PROCESSES.parse,
        help="start a cluster on this machine that segments this many slides at a time",
    )
    add(
        "--gpus",
        type=Range(0, 1024).parse,
        default=0,
        help="GPUs for each slide (default 0: slides are computed on the CPU)",
    )
    add("--cpus", type=Range(0, 4096).parse, default=1, help="CPUs for each slide, as Ray counts them (default 1)")
    return parser


def _run(args: argparse.Namespace, others: list[str]) -> None:
    output, several, region, others = _split_options(others)
    entries = read_list(args.slides)
    if (args.workers is None) == ("RAY_ADDRESS" not in os.environ):
        raise ConfigError(
            "no cluster is given; start one on this machine with --workers=2, or use a running one with "
            "RAY_ADDRESS=auto"
        )
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    journals = {entry: OverwriteJournal.of_slide(output, entry.folder) for entry in entries}
    with _cluster(args), Interruption() as interruption:
        interruption.begin()  # Ray has installed its own signal handlers
        try:
            tasks = [[*others, *_of_slide(entry, region)] for entry in entries]
            for entry, outcome in _outcomes(entries, tasks, args, interruption):
                outcomes[entry] = outcome
                if "--overwrite" in others and outcome.code == 0:
                    # Segmenting this slide has ended, which deleted its journal; the list has not ended.
                    for path in model_folders(output / entry.folder) if several else [output / entry.folder]:
                        journals[entry].add(path)
                _report(entry, outcome, f"{len(outcomes)}/{len(entries)}", output, several)
        finally:
            batch_summary.write_table(output, entries, several)
    codes = [outcome.code for outcome in outcomes.values()]
    if Preempted.exit_code not in codes:
        for journal in journals.values():
            journal.delete()
    failed = [code for code in codes if code not in (0, Preempted.exit_code)]
    print(f"\n{codes.count(0)} of {len(entries)} slides done; {output / 'summary.csv'} lists them")
    if failed == [ConfigError.exit_code] * len(entries):
        raise ConfigError("every slide was refused because of the settings; correct them as stated above")
    if failed:
        raise PartialError(f"{len(failed)} of {len(entries)} slides failed; run the same command again to retry them")
    if any(codes):
        raise Preempted("some slides were stopped in every try; the same command resumes them")


def _split_options(others: list[str]) -> tuple[Path, bool, str | None, list[str]]:
    """Checks the options of segment.

    Returns:
      The output, whether several models write into it, the region to score, and the options without that region.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    of_one = ("slide", "slides", "shard", "mpp", "truth", "name")
    for name in ("output", "checkpoint", "tissue", *of_one):
        parser.add_argument(f"--{name}")
    scored = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scored.add_argument("--truth_region")
    try:
        found, _ = parser.parse_known_args(others)
        of_truth, remaining = scored.parse_known_args(others)
    except argparse.ArgumentError as error:
        raise ConfigError(f"options after --: {error}") from error
    for name in ("output", "checkpoint"):
        if not getattr(found, name):
            raise ConfigError(f"options after --: --{name} is missing; give it as for python -m bcss_jax.segment")
    for name in of_one:
        if getattr(found, name) is not None:
            raise ConfigError(
                f"options after --: --{name} applies to a single slide; give the slides with --slides before the --"
            )
    if found.tissue not in (None, "colour", "all"):
        raise ConfigError(
            f"options after --: --tissue={found.tissue}: applies to a single slide; use the column tissue of the "
            "list, or colour or all for every slide"
        )
    return Path(found.output), "," in found.checkpoint, of_truth.truth_region, remaining


@contextlib.contextmanager
def _cluster(args: argparse.Namespace) -> Iterator[None]:
    """Connects to Ray.

    A cluster that is started here listens on the loopback interface only, and is stopped at the end.
    """
    settings = {"logging_level": "ERROR", "log_to_driver": False}
    if args.workers is not None:
        settings |= {
            "address": "local",
            "num_cpus": args.workers * args.cpus,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
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
    """Yields each slide with its outcome when its task ends. Raises Preempted when asked to stop."""
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
            raise Preempted(f"stopped with {len(running)} slides not done; the same command resumes from there")
        for result in ray.wait(list(running), timeout=1)[0]:
            entry = running.pop(result)
            try:
                yield entry, Outcome(*ray.get(result))
            except InterruptedError as error:
                yield entry, Outcome(Preempted.exit_code, first_line(error))
            except ray.exceptions.RayError as error:
                yield entry, Outcome(1, f"its worker failed ({type(error).__name__}: {first_line(error)})")


def _of_slide(entry: Entry, region: str | None) -> list[str]:
    """Returns the options of one slide.

    They include the region to score only if the slide has a ground truth, as in a list of segment.
    """
    values = entry._asdict()
    values["truth_region"] = None if entry.truth is None else region
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def _segment(arguments: list[str], folder: str, on_gpu: bool) -> tuple[int, str]:
    """Segments one slide in a separate process; runs on a worker. Returns the exit code and what the process printed.

    Raises:
      InterruptedError: it was stopped, or another process is still working on the slide; the task is to be retried.
    """
    segment = [sys.executable, "-c", END_WITH_PARENT, str(os.getpid()), "-m", "bcss_jax.segment", *arguments]
    environment = (
        os.environ if on_gpu else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )  # otherwise all tasks share all GPUs
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
        print(f"{place} {outcome.output}", flush=True)
        return
    reason = outcome.output.removeprefix("error: ") or f"ended with exit code {outcome.code}"
    print(f"{place} {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr, flush=True)
    folder = output / entry.folder
    # A process that crashed wrote no failure. Folders that another try may resume are left as they are.
    is_recorded = several or status_of(folder).name != "pending" or outcome.code == Preempted.exit_code
    if not is_recorded:
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
        kinds = {kind.exit_code: kind for kind in (ConfigError, DataError, StorageError)}
        write_failure(folder, kinds.get(outcome.code, DataError)(reason))


if __name__ == "__main__":
    command.start(main)
