"""Training tiles that are held decoded in memory, and the rule by which they are."""

import dataclasses
from pathlib import Path

import numpy as np

# What limits the memory of a container, and what it uses: control groups of version 2 and 1.
_CONTAINER_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


@dataclasses.dataclass(frozen=True)
class DecodedTiles:
    """Decoded images and their labels.

    Attributes:
      images: uint8 [N, H, W, 3].
      labels: uint8 [N, H, W].
      indices: int64 [N], number of each example in its split.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


def decoded_bytes(count: int, size: tuple[int, int]) -> int:
    """Returns the bytes that decoded tiles of (height, width) take: three colors and a label for each pixel."""
    return count * size[0] * size[1] * 4


def free_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns the bytes that this process can still use, or None if the system does not tell.

    It is the memory that Linux says is available, or what is left to the container if that is less.

    Args:
      proc: folder of the kernel's files.
      groups: folder of the control groups.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        available = int(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    for limit_file, usage_file in _CONTAINER_FILES:
        try:
            limit, usage = ((groups / name).read_text().strip() for name in (limit_file, usage_file))
            available = min(available, max(int(limit) - int(usage), 0))
        except (OSError, ValueError):  # no such group, or the limit is "max"
            continue
    return available


def holds(needed: int, share: float, processes: int, free: int | None) -> tuple[bool, str]:
    """Decides whether tiles are held decoded in memory.

    They are if they take at most a share of the free memory. Processes of one run may be on one machine, so each of
    them gets an equal part of that share.

    Args:
      needed: bytes of the decoded tiles.
      share: of the free memory; 0: never.
      processes: number of processes of the run.
      free: bytes; None: unknown.

    Returns:
      The decision, and the reason for the log.
    """
    if not share:
        return False, "config.data.memory_share is 0"
    if free is None:
        return False, "the system does not tell how much memory is free"
    allowed = int(share * free / processes)
    fits = needed <= allowed
    each = f" / {processes} processes" if processes > 1 else ""
    return fits, (
        f"{_gigabytes(needed)}, {'at most' if fits else 'more than'} {_gigabytes(allowed)} = config.data.memory_share "
        f"{share:g} of {_gigabytes(free)} free memory{each}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
