"""The command `bcss-jax`: `bcss-jax segment ...` is `python -m bcss_jax.segment ...`.

Nothing heavy is imported here, so that a mistyped command ends at once.
"""

import difflib
import importlib
import sys
from typing import NoReturn

from bcss_jax import __version__
from bcss_jax.common import command, interruption
from bcss_jax.common.startup import start_clock

# Name -> (module with its `main`, what it does).
COMMANDS = {
    "train": ("bcss_jax.commands.train", "train a system; the same command resumes it"),
    "pretrain": ("bcss_jax.commands.pretrain", "pretrain a vision transformer on images without labels"),
    "evaluate": ("bcss_jax.commands.evaluate", "score trained runs, with intervals and a report"),
    "segment": ("bcss_jax.commands.segment", "segment whole slides"),
    "embed": ("bcss_jax.commands.embed", "write features of a slide's tiles with a foundation model"),
    "scribble": ("bcss_jax.commands.scribble", "segment a slide from a few strokes on it"),
    "annotate": ("bcss_jax.commands.annotate", "annotate a slide in the browser with prompts, brush and eraser"),
    "prompt": ("bcss_jax.commands.prompt", "outline what points and boxes on a slide mean, with Segment Anything"),
    "serve-sam": ("bcss_jax.commands.serve_sam", "serve Segment Anything to QuPath's extension"),
    "view": ("bcss_jax.commands.view", "show segmented slides in the browser"),
    "import-model": ("bcss_jax.commands.import_model", "make a run of weights that another program trained"),
    "export": ("bcss_jax.commands.export", "write a trained network as StableHLO"),
    "data": ("bcss_jax.data.__main__", "look at a data set, or prepare it"),
    "nnunet": ("bcss_jax.nnunet.__main__", "the steps of nnU-Net as a method"),
    "models": ("bcss_jax.models.__main__", "list the networks with parameters and memory"),
    "compile-for": ("bcss_jax.commands.compile_for", "what a training step needs on an accelerator that is not there"),
    "doctor": ("bcss_jax.commands.doctor", "check this installation and machine; what a bug report contains"),
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
    sys.argv = [f"bcss-jax {given}", *sys.argv[2:]]
    start(given)


def start(name: str) -> NoReturn:
    """Runs a command with the options in sys.argv, and ends the process with its exit code."""
    start_clock.begin()
    module, _ = COMMANDS[name]
    # Imported here, because it takes long.
    main = importlib.import_module(module).main
    command.start(main)


if __name__ == "__main__":
    main()
