"""How long a compiled program takes at least on an accelerator, from its traffic and its arithmetic."""

from typing import NamedTuple

from bcss_jax.accelerators.targets import Target
from bcss_jax.accelerators.traffic import Account, Work


class Roofline(NamedTuple):
    """Seconds of a program that reaches the device's bandwidth and peak.

    Attributes:
      memory: to move all bytes.
      arithmetic: to compute all convolutions and matrix products.
      total: instructions one after another, each as long as the slower of the two takes.
    """

    memory: float
    arithmetic: float
    total: float


def roofline(account: Account, target: Target) -> Roofline:
    """Returns the least time that a program takes on a target. What devices exchange is not included."""
    both = [(_memory_seconds(work, target), _arithmetic_seconds(work, target)) for work in account.works]
    return Roofline(sum(m for m, _ in both), sum(a for _, a in both), sum(max(pair) for pair in both))


def seconds(work: Work, target: Target) -> float:
    """Returns the least time of an instruction, over all times it runs."""
    return max(_memory_seconds(work, target), _arithmetic_seconds(work, target))


def _memory_seconds(work: Work, target: Target) -> float:
    return work.total_bytes / target.bandwidth


def _arithmetic_seconds(work: Work, target: Target) -> float:
    if not work.operations:
        return 0.0
    peaks = {"f16": "float16", "bf16": "bfloat16"}
    return work.times * work.operations / target.peaks[peaks.get(work.type, "float32")]
