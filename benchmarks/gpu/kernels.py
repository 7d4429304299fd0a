"""Profiles the training step of the U-Net and lists its slowest kernels."""

import collections
import tempfile
from pathlib import Path
from typing import Any

import jax

from bcss_jax import models
from benchmarks import train_step
from benchmarks.gpu.child import Report

STEPS, LISTED = 5, 10


def run(report: Report, *, width: int, batch: int, side: int, dtype: str) -> None:
    """Reports the kernels that take the most time in a step."""
    model = models.create("unet", num_classes=train_step.NUM_CLASSES, width=width, dtype=dtype)
    step = train_step.Jax(model, dtype, *train_step.random_batch(batch, side))
    with tempfile.TemporaryDirectory() as folder, report.quiet():
        step.train(2)
        with jax.profiler.trace(folder):
            step.train(STEPS)
        (trace,) = Path(folder).rglob("*.xplane.pb")
        seconds = kernel_seconds(jax.profiler.ProfileData.from_file(str(trace)))
    total = sum(time for time, _, _ in seconds.values())
    slowest = sorted(seconds.items(), key=lambda item: -item[1][0])[:LISTED]
    for (kernel, operation), (time, calls, source) in slowest:
        report.add(
            kernel=kernel[:80], operation=operation[:60], ms_a_step=1e3 * time / STEPS, share=time / total,
            calls_a_step=calls / STEPS, source=source[-100:],
        )  # fmt: skip
    report.add(kernel=f"all {len(seconds)}", operation="", ms_a_step=1e3 * total / STEPS, share=1.0)


def kernel_seconds(profile: Any) -> dict[tuple[str, str], tuple[float, int, str]]:
    """Returns (seconds, calls, place in the network) by (kernel, operation of the compiled program).

    Args:
      profile: jax.profiler.ProfileData. Of a GPU, the events of its streams count; of a CPU, those of XLA's operations.
    """
    found: dict[tuple[str, str], tuple[float, int, str]] = collections.defaultdict(lambda: (0.0, 0, ""))
    planes = list(profile.planes)
    gpu = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in gpu or planes:
        for line in plane.lines:
            if gpu and not line.name.startswith("Stream"):
                continue  # the other lines repeat the same kernels by module and by name in the source
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" not in stats and not gpu:
                    continue
                key = event.name, str(stats.get("hlo_op", ""))
                seconds, calls, _ = found[key]
                place = str(stats.get("tf_op", stats.get("name", "")))
                found[key] = seconds + event.duration_ns / 1e9, calls + 1, place
    return dict(found)
