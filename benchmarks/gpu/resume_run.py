"""The run that `resume` kills: a small training that saves checkpoints, and goes on from the last one.

    python -m benchmarks.gpu.resume_run FOLDER SETTINGS

Prints "step N" after each step, and writes FOLDER/state.npz at the end.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.gpu.stand_ins import stand_in_for_pydantic

stand_in_for_pydantic()

from bcss_jax.training.checkpoint import Checkpoints  # noqa: E402
from benchmarks.gpu.small_training import Tiles, Training  # noqa: E402

SAVE_EVERY = 5


def main(argv: list[str]) -> None:
    """Trains to the end, from the last checkpoint if there is one."""
    folder, settings = Path(argv[0]), json.loads(argv[1])
    tiles = Tiles(settings["side"], 4)
    training = Training("bfloat16", settings["width"], settings["depth"], jax.local_devices()[0])
    checkpoints, first = Checkpoints(folder / "checkpoints"), 0
    if restored := checkpoints.restore(training.state):
        training.state, progress, _ = restored
        first = progress["steps"]
    print(f"from {first}", flush=True)
    for step in range(first, settings["steps"]):
        training.train(tiles, step)
        if (step + 1) % SAVE_EVERY == 0:
            checkpoints.save(training.state, {"steps": step + 1}, {})
        print(f"step {step + 1}", flush=True)
    checkpoints.close()
    arrays = jax.tree.leaves_with_path(jax.device_get((training.state.params, training.state.opt_state)))
    named: Any = {jax.tree_util.keystr(path): np.asarray(value) for path, value in arrays}
    np.savez(folder / "state.npz", **named)


if __name__ == "__main__":
    main(sys.argv[1:])
