"""The file of what was computed for the steps of all networks: `computed_steps.json` in this folder.

`python -m bcss_jax.compile_for --all --write` writes it, row by row.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from bcss_jax.accelerators.roofline import Roofline
from bcss_jax.accelerators.steps import Memory
from bcss_jax.common.files import write_text
from bcss_jax.errors import DataError

REMAT = "train with remat"  # name of the training step with `--config.remat=True` among the memory lines
FILE = Path(__file__).with_name("computed_steps.json")
# What decides the compiled steps.
_SOURCES = ("models/**/*.py", "training/step.py", "training/optimizer.py", "losses.py", "metrics.py")


@dataclasses.dataclass(frozen=True)
class Key:
    """What a row is about.

    Attributes:
      target: name of a target.
      devices: that share a batch.
      network: name of the network, with its default arguments.
      dtype: type of the computation.
      batch: images of a training batch, over all devices.
      side: of the images, in pixels.
    """

    target: str
    devices: int
    network: str
    dtype: str
    batch: int
    side: int


@dataclasses.dataclass(frozen=True)
class Line:
    """Memory of a step on a device, as a straight line over the number of images that it holds at once.

    Attributes:
      fixed: bytes without images.
      per_image: bytes an image.
    """

    fixed: float
    per_image: float


@dataclasses.dataclass(frozen=True)
class ComputedStep:
    """The training step of a network, as compiled.

    Attributes:
      micro_batches: parts of the batch, the fewest power of two that fit.
      memory: of each device.
      bytes: moved between a device and its memory.
      operations: of convolutions and matrix products of a device.
      least: time of a step.
      seconds: that compiling took.
      memory_lines: name of a step, or `REMAT` -> its memory; empty if only the training step was compiled. Rows of
        before have no `REMAT`, nor have networks that the compiler refuses with it.
    """

    micro_batches: int
    memory: Memory
    bytes: int
    operations: float
    least: Roofline
    seconds: float
    memory_lines: dict[str, Line] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the file.

    Attributes:
      key: what it is about.
      step: what was computed; None: nothing, for the reason.
      reason: why there is no step.
      jax: version whose compiler computed it.
      code: digest of the sources that decide the steps.
    """

    key: Key
    step: ComputedStep | None
    reason: str
    jax: str
    code: str

    def is_current(self) -> bool:
        """Returns whether the same code and compiler would compute the same."""
        return (self.jax, self.code) == (jax.__version__, code_digest())


def code_digest() -> str:
    """Returns a digest of the sources that decide the compiled steps."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in package.glob(pattern)):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def read_rows(file: Path = FILE) -> list[Row]:
    """Returns the rows of a file; none if it does not exist.

    Raises:
      DataError: the file is not one of this program.
    """
    try:
        return [_row(each) for each in json.loads(file.read_text())["rows"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: expected rows of compile_for --all --write, found something else ({type(error).__name__}); "
            "delete the file or name another"
        ) from error


def write_row(row: Row, file: Path = FILE) -> None:
    """Adds a row to a file, in the place of the one with the same key.

    Raises:
      StorageError: the file cannot be written.
      DataError: see `read_rows`.
    """
    rows = {each.key: each for each in read_rows(file)} | {row.key: row}
    ordered = sorted(rows.values(), key=lambda each: dataclasses.astuple(each.key))
    lines = ",\n".join(json.dumps(dataclasses.asdict(each)) for each in ordered)
    # Private, because `read_rows` has made sure that the file is one of this program.
    write_text(file, f'{{"rows": [\n{lines}\n]}}\n', private=True)


def _row(found: dict[str, Any]) -> Row:
    step = found["step"]
    if step is not None:
        lines = {name: Line(**line) for name, line in step["memory_lines"].items()}
        step = ComputedStep(
            **step | {"memory": Memory(**step["memory"]), "least": Roofline(*step["least"]), "memory_lines": lines}
        )
    return Row(Key(**found["key"]), step, found["reason"], found["jax"], found["code"])
