"""Measures what the digests of a checkpoint cost when it is loaded.

    python benchmarks/checkpoint_digests.py [--parameters=100] [--repeats=5] [--cold]

Saves a state of so many million random parameters with Adam's moments, as training does, and prints the seconds of
loading it without and with comparing digests: of the weights, as evaluation reads them, and of all, as a resumed run
does. The two are measured in turn, with the files in the memory of the file system or, with --cold, on the disk alone.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from bcss_jax.training import checkpoint, optimizer, sharding, step, step_folder

ARRAYS = 100


def main() -> None:
    """Saves, loads and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100, help="millions")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="take the files out of memory before each load")
    args = parser.parse_args()
    mesh, rng = sharding.make_mesh(jax.local_devices()[:1]), np.random.default_rng(0)
    side = args.parameters * 1_000_000 // ARRAYS // 1000
    params = {f"layer{n}": {"kernel": rng.standard_normal((side, 1000), np.float32)} for n in range(ARRAYS)}
    tx, plateau = optimizer.adamw(1e-3, 1e-4), optimizer.Plateau(0.5, 2).init()

    def moments(opt_state):  # random too, because the zeros of a new optimizer take no space
        return jax.tree.map(lambda x: np.roll(params["layer0"]["kernel"], 1) if x.ndim else x, opt_state)

    state = sharding.place_replicated(step.TrainState(np.int32(1), params, {}, moments(tx.init(params)), plateau), mesh)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = checkpoint.Checkpoints(Path(folder))
        checkpoints.save(state, {}, {}, 1)
        checkpoints.wait()
        saved = Path(folder) / "1"
        megabytes = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()) / 1e6
        print(f"{args.parameters} million parameters, {megabytes:.0f} MB with the optimizer, {jax.devices()[0]}")
        no_digests = mock.patch.object(step_folder, "damage", lambda *_: None)
        for name, items, load in (
            ("weights", step_folder.WEIGHTS, lambda: checkpoint.load_trained(Path(folder), mesh)),
            ("all", None, lambda: checkpoints.restore(state)),
        ):
            without, with_digests, alone = [], [], []
            for _ in range(args.repeats + 1):
                evicted = saved if args.cold else None
                with no_digests:
                    without.append(_seconds(load, evicted))
                with_digests.append(_seconds(load, evicted))
                alone.append(_seconds(lambda items=items: step_folder.damage(saved, items), evicted))
            before, now, comparing = (np.median(each[1:]) for each in (without, with_digests, alone))
            print(
                f"{name}: loading {before:.2f} s, with digests {now:.2f} s ({now / before - 1:+.1%}); "
                f"comparing them alone {comparing:.2f} s",
                flush=True,
            )
        checkpoints.close()


def _seconds(work, evicted: Path | None) -> float:
    for path in evicted.rglob("*") if evicted else ():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    jax.block_until_ready(jax.tree.leaves(work()))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
