"""Measures everything that needs a GPU, in one command and a limited time.

    benchmarks/gpu.sh [--minutes=8] [--out=FOLDER] [--only=speed] [--reference=FOLDER]
    benchmarks/gpu.sh --dry

It needs jax with CUDA, flax, optax and orbax; with PyTorch also the times beside it. Each part runs in a process of its
own with a time limit, and one that fails leaves the others. Several parts compile at once; a part that measures times
runs alone, while the others stand still. What does not fit into the minutes is named as skipped: the same command with
the same --out goes on with the parts that are not done.

With --dry every part is tried on the CPU with small networks, which takes some minutes and says nothing about speed.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import results
from benchmarks.gpu.parts import Part, environment, parts
from benchmarks.gpu.scheduler import ROOT, Outcome, Scheduler

MOST_AT_ONCE = 6  # parts that compile; all of them hold memory of the GPU
CORES_OF_A_PART = 2
REFERENCE = ROOT.parent / "shared/parity"
MINUTES = {False: 8, True: 40}  # by whether the run is dry
FAST_TO_COMPILE = "--xla_backend_optimization_level=0"
SKIPPED, FAILED = 2, 1  # exit codes
# A part takes the memory it needs instead of three quarters of the GPU, because JAX and PyTorch share it.
SHARED_MEMORY = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}


def main() -> int:
    """Runs the parts and prints where the results are. Returns the exit code."""
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.update(SHARED_MEMORY)
    if args.dry:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_TO_COMPILE}"
    minutes = args.minutes or MINUTES[args.dry]
    started = time.monotonic()
    folder = args.out or ROOT / time.strftime(f"runs/gpu{'-dry' if args.dry else ''}-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {outcome.name: outcome for outcome in results.read(folder)}
    about = {"started": time.strftime("%Y-%m-%d %H:%M:%S"), "minutes": minutes, "dry": args.dry}

    def finished(outcome: Outcome) -> None:
        # A part that was done before keeps its rows if there is no time to run it again.
        if outcome.state != "skipped" or outcome.name not in outcomes:
            outcomes[outcome.name] = outcome
        reason = f": {outcome.reason}" if outcome.reason else ""
        passed = time.monotonic() - started
        print(f"[{passed:4.0f} s] {outcome.name} {outcome.state}, {outcome.seconds:.0f} s{reason}", flush=True)
        results.write(folder, list(outcomes.values()), {**about, "seconds": round(passed)})

    at_once = max(1, min(MOST_AT_ONCE, len(os.sched_getaffinity(0)) // CORES_OF_A_PART))
    scheduler = Scheduler(folder.resolve(), started + 60 * minutes, at_once, finished)
    machine = environment(args.dry)
    scheduler.run([machine])
    if outcomes[machine.name].state != "done":
        print(f"stopped: {outcomes[machine.name].reason}", file=sys.stderr)
        return SKIPPED
    for row in outcomes[machine.name].rows:
        print(f"  {row['what']}: {row['value']}", flush=True)
    scheduler.run(_to_do(args, outcomes))
    print(f"{folder / results.MARKDOWN}\n{folder / results.JSON}")
    return FAILED if any(each.state == "failed" for each in outcomes.values()) else 0


def _to_do(args: argparse.Namespace, outcomes: dict[str, Outcome]) -> list[Part]:
    """Returns the parts that were asked for and are not done yet."""
    reference = args.reference or (REFERENCE if REFERENCE.is_dir() else None)
    chosen = [part for part in parts(args.dry, reference) if part.name.startswith(tuple(args.only.split(",")))]
    return [part for part in chosen if part.name not in outcomes or outcomes[part.name].state != "done"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("--minutes", type=float, help="after which everything ends (default 8; dry 40)")
    add("--out", type=Path, help="folder of the results (default: a new one in runs/)")
    add("--only", default="", help="parts whose names begin so, separated by commas: parity, training, resume, ...")
    add("--reference", type=Path, help="folder of reference values (default ../shared/parity, if it is there)")
    add("--dry", action="store_true", help="try every part on the CPU, with small networks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
