"""How many images fit into the memory of a device, from what the compiler computed for each network.

The figures are those of `computed_steps.json`: computed, not measured on a device.
"""

import functools
from collections.abc import Mapping
from typing import Any

from bcss_jax import models
from bcss_jax.accelerators.computed_steps import Line, read_rows

MARGIN = 0.95  # of the memory is planned with; what is allocated and freed leaves gaps
_NOT_OF_THE_NETWORK = {"name", "num_classes", "dtype", "seed", "image_size"}  # these change its memory little


def memory_line(step: str, network: Mapping[str, Any], dtype: str, side: int) -> Line | None:
    """Returns the memory of a step, or None if it has not been computed.

    Args:
      step: a name of `steps.STEPS`, or `computed_steps.REMAT`.
      network: `name` and arguments.
      dtype: type of the computation.
      side: of the images, in pixels. What was computed for another side is scaled by the pixels.
    """
    name = network.get("name")
    if name not in models.MODELS or not _has_defaults(name, network):
        return None
    lines = _computed().get((step, name, dtype))
    if lines is None and dtype == "float16":
        lines = _computed().get((step, name, "bfloat16"))  # as many bytes
    if lines is None:
        return None
    scaled = [Line(line.fixed, line.per_image * (side / of_side) ** 2) for line, of_side in lines]
    return max(scaled, key=lambda line: line.per_image)


def images_that_fit(line: Line, memory: float) -> int:
    """Returns how many images fit at once into the memory that a program may take, in bytes; 0: none."""
    return max(int((MARGIN * memory - line.fixed) // line.per_image), 0)


def _has_defaults(name: str, network: Mapping[str, Any]) -> bool:
    """Returns whether a network has its default arguments, for which its memory was computed."""
    defaults = models.default_arguments(name)
    given = {key: value for key, value in network.items() if key not in _NOT_OF_THE_NETWORK}
    return all(key in defaults and _same(value, defaults[key]) for key, value in given.items())


def _same(value: Any, default: Any) -> bool:
    return list(value) == list(default) if isinstance(value, list | tuple) else value == default


@functools.cache
def _computed() -> dict[tuple[str, str, str], list[tuple[Line, int]]]:
    """Returns (step, network, type) -> lines, each with the side of the images, of rows for one device."""
    found: dict[tuple[str, str, str], list[tuple[Line, int]]] = {}
    for row in read_rows():
        if row.step and row.key.devices == 1:
            for name, line in row.step.memory_lines.items():
                found.setdefault((name, row.key.network, row.key.dtype), []).append((line, row.key.side))
    return found
