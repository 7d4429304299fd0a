"""Times the training step and the forward pass of a network, in turn with PyTorch's, eager and compiled."""

import contextlib
import copy
import fcntl
import signal
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bcss_jax.accelerators.hlo_text import read_program
from bcss_jax.accelerators.roofline import roofline
from bcss_jax.accelerators.targets import TARGETS
from bcss_jax.accelerators.traffic import account
from bcss_jax.errors import first_line
from bcss_jax.models.weights.pretrained import load_torch_state
from benchmarks import train_step
from benchmarks.gpu import networks
from benchmarks.gpu.child import Report

COMPILE_SECONDS = 150  # that torch.compile may take
METHODS = {"train": "training", "forward": "inference"}


def run(
    report: Report,
    *,
    network: str,
    dtypes: list[str],
    batch: int,
    side: int,
    steps: int,
    rounds: int,
    small: bool,
    torch_compiler: str,
) -> None:
    """Measures a network.

    Args:
      report: gets two rows for each type.
      network: its name.
      dtypes: types of the computation.
      batch: images of a batch.
      side: of the images, in pixels.
      steps: that are timed in a round.
      rounds: number of rounds.
      small: see `networks.create`.
      torch_compiler: of `torch.compile`; "": PyTorch is timed without it.
    """
    images = train_step.random_batch(batch, side)
    for dtype in dtypes:
        model = networks.create(network, dtype, small=small)
        twin, reason = networks.create_twin(network, small=small)
        notes = [f"alone: {reason}"] if twin is None else []
        if twin is not None:
            load_torch_state(model, {name: value.numpy() for name, value in twin.state_dict().items()})
        ours = train_step.Jax(model, dtype, *images)
        contestants: dict[str, Any] = {"here": ours}
        if twin is not None:
            compiled, why_not = _compiled_torch(twin, torch_compiler, dtype, images) if torch_compiler else (None, "")
            contestants["pytorch"] = train_step.Torch(twin, dtype, *images)
            if compiled is not None:
                contestants["torch_compile"] = compiled
            notes += [why_not] if why_not else []
        facts = {method: _facts(ours, method) for method in METHODS}
        with report.quiet():
            differ = None if twin is None else _difference(ours.logits(), contestants["pytorch"].logits())
            for method, name in METHODS.items():
                seconds = train_step.in_turn(list(contestants.values()), method, steps, rounds)
                timed = _columns(dict(zip(contestants, seconds, strict=True)), batch)
                report.add(
                    network=network, type=dtype, step=name, batch=batch, **timed, **facts[method],
                    logits_differ=differ, note="; ".join(notes),
                )  # fmt: skip


def _columns(seconds: dict[str, list[float]], batch: int) -> dict[str, Any]:
    """Returns images per second, and how much faster this project is than the faster PyTorch."""
    found = {f"{name}_images_per_s": _rate(seconds.get(name), batch) for name in ("here", "pytorch", "torch_compile")}
    others = [column for name, column in seconds.items() if name != "here"]
    if not others:
        return found | {"ratio": None, "ratio_least": None, "ratio_most": None}
    fastest = min(others, key=statistics.median)
    ratios = [there / here for here, there in zip(seconds["here"], fastest, strict=True)]
    return found | {"ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)}


def _rate(seconds: list[float] | None, batch: int) -> float | None:
    return batch / statistics.median(seconds) if seconds else None


def _facts(ours: train_step.Jax, method: str) -> dict[str, Any]:
    """Returns what is known of a compiled program without running it."""
    program = ours.train_program if method == "train" else ours.forward_program
    memory, text = program.memory_analysis(), program.as_text()
    assert memory and text
    planned = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    device = jax.devices()[0].device_kind
    target = next((target for name, target in TARGETS.items() if name.upper() in device.upper()), None)
    least = None if target is None else 1e3 * roofline(account(read_program(text)), target).total
    return {
        "compiled_in_s": ours.compile_s if method == "train" else ours.compile_forward_s,
        "memory_gb": (planned + memory.temp_size_in_bytes) / 1e9,
        "least_ms": least,
    }


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the largest difference of logits in standard deviations of PyTorch's."""
    return float(np.abs(ours - theirs).max() / theirs.std())


def _compiled_torch(twin: Any, compiler: str, dtype: str, images: Any) -> tuple[train_step.Torch | None, str]:
    """Returns PyTorch with a compiled copy of the network, or why there is none."""
    import torch

    try:
        # A step in each mode compiles. It needs as much memory as measuring, so only one part compiles at a time.
        with _one_at_a_time(), _time_limit(COMPILE_SECONDS):
            compiled = train_step.Torch(torch.compile(copy.deepcopy(twin), backend=compiler), dtype, *images)
            compiled.train(1)
            compiled.forward(1)
    except Exception as error:  # the compiler raises many kinds
        return None, f"torch.compile: {type(error).__name__} {first_line(error)[:120]}"
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return compiled, ""


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / "bcss_jax-torch-compile.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
