"""The parts of the GPU measurements in the order of their value: what each one runs, and for how long it may run."""

import dataclasses
from pathlib import Path
from typing import Any

# The networks in the order of their value. Those with the longest compilation are last.
NETWORKS = (
    "unet", "nnunet", "unet_resnet101", "transunet", "dense_unet_121", "nnunet_resenc", "unet_resnet34",
    "unet_resnet50", "tiatoolbox_unet", "dense_unet", "report_unet", "report_transunet", "report_dense_unet", "vit",
    "sam",
)  # fmt: skip
DTYPES = ("bfloat16", "float32", "float16")
TITLES = {
    "environment": "Machine",
    "parity": "Parity: small networks on this device beside float32 on the CPU",
    "reference_values": "Parity: networks of full size beside values of the reference implementations",
    "training": "A short training on tiles in memory",
    "resume": "Killed with SIGKILL and resumed",
    "speed": "Steps of training and inference beside PyTorch",
    "slide": "A slide with pixels in memory",
    "kernels": "The slowest kernels of the training step",
    "largest_batch": "The largest batch of the training step",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the measurements, which runs in a child process of its own.

    Attributes:
      name: unique; of its files in the folder of results.
      module: of `benchmarks.gpu`, whose function `run` is called.
      settings: arguments of that function, JSON.
      seconds: that it may take.
      alone: whether no other part may run at the same time.
      environment: additional variables of its environment.
    """

    name: str
    module: str
    settings: dict[str, Any]
    seconds: float
    alone: bool = False
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def environment(dry: bool) -> Part:
    """Returns the part that runs before all others and looks at the machine."""
    return Part("environment", "environment", {"dry": dry}, 120)


def parts(dry: bool, reference: Path | None) -> list[Part]:
    """Returns all other parts, the most valuable first.

    Args:
      dry: small sizes, for a CPU.
      reference: folder of reference values.
    """
    # Much more time on a CPU, which may be shared with other programs: a dry run asks whether the parts work.
    found = _dry_parts(reference) if dry else _full_parts(reference)
    return [dataclasses.replace(part, seconds=5 * part.seconds) if dry else part for part in found]


def _full_parts(reference: Path | None) -> list[Part]:
    thirds = [NETWORKS[first::3] for first in range(3)]
    return [
        *(Part(f"parity-{n}", "parity", {"names": list(names)}, 200) for n, names in enumerate(thirds, 1)),
        Part("training", "training", {"width": 16, "depth": 3, "side": 128, "batch": 8, "steps": 60}, 150),
        *(_speed(network, DTYPES[0]) for network in NETWORKS[:3]),
        Part("resume", "resume", {"width": 16, "depth": 3, "side": 96, "steps": 40}, 150),
        *(_speed(network, DTYPES[0]) for network in NETWORKS[3:]),
        Part("kernels", "kernels", {"width": 64, "batch": 64, "side": 224, "dtype": "bfloat16"}, 150),
        Part("slide", "slide", {"width": 64, "side": 8192, "batch": 64, "dtype": "bfloat16"}, 120),
        Part("largest_batch", "largest_batch", {"width": 64, "side": 224, "batch": 128, "dtype": "bfloat16"}, 200, True,
             {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}),
        *(_speed(network, dtype) for dtype in DTYPES[1:] for network in NETWORKS),
        _reference_values(reference),
    ]  # fmt: skip


def _speed(network: str, dtype: str) -> Part:
    settings = {"network": network, "dtypes": [dtype], "batch": 64, "side": 224, "steps": 5, "rounds": 5}
    return Part(f"speed-{network}-{dtype}", "speed", {**settings, "small": False, "torch_compiler": "inductor"}, 280)


def _dry_parts(reference: Path | None) -> list[Part]:
    return [
        Part("parity-1", "parity", {"names": ["unet"]}, 120),
        Part("training", "training", {"width": 4, "depth": 2, "side": 64, "batch": 4, "steps": 30}, 120),
        Part("resume", "resume", {"width": 4, "depth": 2, "side": 32, "steps": 20}, 120),
        *(
            Part(f"speed-{network}", "speed", {
                "network": network, "dtypes": [DTYPES[number % len(DTYPES)]], "batch": 2, "side": 32, "steps": 1,
                "rounds": 2, "small": True, "torch_compiler": "" if number else "aot_eager",
            }, 150)
            for number, network in enumerate(NETWORKS)
        ),
        Part("kernels", "kernels", {"width": 4, "batch": 2, "side": 64, "dtype": "float32"}, 90),
        Part("slide", "slide", {"width": 4, "side": 600, "batch": 4, "dtype": "float32"}, 90),
        Part("largest_batch", "largest_batch", {"width": 4, "side": 32, "batch": 2, "dtype": "float32"}, 90, True),
        _reference_values(reference),
    ]  # fmt: skip


def _reference_values(reference: Path | None) -> Part:
    return Part("reference_values", "reference_values", {"folder": reference and str(reference)}, 250)
