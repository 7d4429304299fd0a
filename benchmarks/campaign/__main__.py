"""Tries to make the commands give a wrong result, crash, hang or lose a file, and writes a table of what was survived.

    python benchmarks/campaign [--rounds=100] [--parts=contract,links] [--seed=0] [--output=FOLDER]

Each part damages input, results, checkpoints or the surroundings of a command, runs the command as a user would, and
checks that it ends with a documented exit code and one line, without a traceback, in time, without harming a file that
it did not write, and, where it ends with 0, with the right result. `--rounds` is the number of random trials of each
kind; of the parts that are tables (contract, readings, links), so many rows are chosen if there are more.

FOLDER gets campaign.md (the table), campaign.csv (every trial) and, for every trial that was not survived, its folder.
The exit code is 1 if any was not.
"""

import argparse
import csv
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Networks this small need no optimized code, and most of the time is compiling.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import table  # noqa: E402
import trials  # noqa: E402
from inputs import Inputs  # noqa: E402

PARTS = ("contract", "readings", "links", "mutations", "checkpoints", "interrupted", "signals")


def main() -> int:
    """Runs the parts. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"default: {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=100, help="trials of each kind, and rows of each table, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="text that the names of the trials must contain")
    parser.add_argument("--output", type=Path, default=None, help="folder for the table and the failures")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    output = (args.output or Path(tempfile.mkdtemp(prefix="campaign-results-"))).resolve()
    (output / "failures").mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    trials.load()
    inputs = Inputs(output / "inputs")
    outcomes = []
    with open(output / "campaign.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("part", "trial", "exit code", "seconds", "faults", "line"))
        for part in parts:
            began = time.monotonic()
            for found in importlib.import_module(part).outcomes(
                inputs, args.rounds, args.seed, output / "failures", args.only
            ):
                outcomes.append(found)
                faults = "; ".join(found.faults)
                writer.writerow((found.part, found.name, found.code, f"{found.seconds:.1f}", faults, found.line))
                file.flush()
                if faults:
                    print(f"NOT SURVIVED {found.part}: {found.name}: {faults}\n    {found.line}", flush=True)
            print(f"{part}: {time.monotonic() - began:.0f} s", flush=True)
    text = table.markdown(outcomes)
    (output / "campaign.md").write_text(text)
    print(f"\n{text}\n{output}")
    return int(any(found.faults for found in outcomes))


if __name__ == "__main__":
    sys.exit(main())
