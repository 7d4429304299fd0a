"""The command `bcss-jax`: `bcss-jax segment ...` is `python -m bcss_jax.segment ...`.

Nothing heavy is imported here, so that a mistyped command ends at once.
"""

import difflib
import importlib.util
import runpy
import sys
from typing import NoReturn

from bcss_jax import __version__
from bcss_jax.common import interruption

# Name -> (module that is run, what it does).
COMMANDS = {
    "train": ("bcss_jax.main", "train a system; the same command resumes it"),
    "evaluate": ("bcss_jax.evaluate", "score trained runs, with intervals and a report"),
    "segment": ("bcss_jax.segment", "segment whole slides"),
    "view": ("bcss_jax.view", "show segmented slides in the browser"),
    "import-model": ("bcss_jax.import_model", "make a run of weights that another program trained"),
    "export": ("bcss_jax.export", "write a trained network as StableHLO"),
    "data": ("bcss_jax.data", "look at a data set, or prepare it"),
    "nnunet": ("bcss_jax.nnunet", "the steps of nnU-Net as a method"),
    "models": ("bcss_jax.models", "list the networks with parameters and memory"),
    "compile-for": ("bcss_jax.compile_for", "what a training step needs on an accelerator that is not there"),
    "doctor": ("bcss_jax.doctor", "check this installation and machine; what a bug report contains"),
}


def main() -> NoReturn:
    """Runs the command that the first argument names, and ends the process with its exit code (2: no such command)."""
    interruption.install()
    given = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if given in ("--help", "-h"):
        width = max(map(len, COMMANDS))
        print("usage: bcss-jax COMMAND [OPTIONS]; bcss-jax COMMAND --help lists the options\n")
        print("\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()))
        sys.exit(0)
    if given == "--version":
        print(f"bcss_jax {__version__}")
        sys.exit(0)
    if given not in COMMANDS:
        near = difflib.get_close_matches(given, COMMANDS, 1)
        hint = f"did you mean {near[0]}? See" if near else "see"
        print(f"error: {given!r}: no such command; {hint} bcss-jax --help", file=sys.stderr)
        sys.exit(2)
    module, _ = COMMANDS[given]
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    sys.argv = [spec.origin, *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
