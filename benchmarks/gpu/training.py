"""A short training on this device in every type, beside the same in float32 on the CPU: the loss falls alike."""

import statistics
import time

import jax

from benchmarks.gpu.child import Report
from benchmarks.gpu.small_training import Tiles, Training

LAST = 5  # steps whose mean loss counts as that of the end
MAY_DIFFER = 0.15  # of what the loss falls on the CPU
CASES = (
    ("float32, full precision", "float32", "highest"),
    ("float32, default precision", "float32", "default"),
    ("bfloat16", "bfloat16", "default"),
    ("float16", "float16", "default"),
)


def run(report: Report, *, width: int, depth: int, side: int, batch: int, steps: int) -> None:
    """Trains a U-Net of this width and depth with crops of this side, for so many steps."""
    tiles = Tiles(side, batch)
    host, device = jax.local_devices(backend="cpu")[0], jax.local_devices()[0]

    def losses(dtype, precision, where):
        start = time.perf_counter()
        with jax.default_matmul_precision(precision):
            training = Training(dtype, width, depth, where)
            found = [training.train(tiles, step) for step in range(steps)]
        return found[0], statistics.mean(found[-LAST:]), time.perf_counter() - start

    first, last, seconds = losses("float32", "highest", host)
    report.add(where="CPU", case="float32", first_loss=first, last_loss=last, seconds=seconds, fine=last < first)
    for name, dtype, precision in CASES:
        begun, ended, seconds = losses(dtype, precision, device)
        fine = abs(ended - last) <= MAY_DIFFER * (first - last)
        report.add(where=device.device_kind, case=name, first_loss=begun, last_loss=ended, seconds=seconds, fine=fine)
