"""Reads the text of a compiled program (HLO after all passes of XLA) into instructions."""

import dataclasses
import math
import re
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<= ]*)\](\{[^{}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.\-]+) = ")
_TABLE_ROW = re.compile(r"^(\d+) (.*)$")
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


class Shape(NamedTuple):
    """An array of a program.

    Attributes:
      type: of the elements, such as "bf16".
      sides: its shape.
      bytes: of the elements.
      memory_bytes: what it takes of the device's memory with the padding of its layout; 0 if it is in another memory.
    """

    type: str
    sides: tuple[int, ...]
    bytes: int
    memory_bytes: int


class Frame(NamedTuple):
    """A line of the source: file, line and function."""

    file: str
    line: int
    function: str


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction.

    Attributes:
      name: unique in the program.
      opcode: such as "fusion" or "custom-call".
      results: the array that it returns, or the arrays of the tuple.
      operands: names of instructions of the same computation.
      number: of a parameter; None for other instructions.
      attributes: the text behind the operands.
      root: it is the result of its computation.
    """

    name: str
    opcode: str
    results: tuple[Shape, ...]
    operands: tuple[str, ...]
    number: int | None
    attributes: str
    root: bool

    def attribute(self, name: str) -> str:
        """Returns the value of an attribute such as `calls`, without % and quotes; "" if there is none."""
        found = re.search(rf"\b{name}=" + r'(?:"([^"]*)"|%?([^\s,{}]+))', self.attributes)
        return (found[1] or found[2] or "") if found else ""

    def called(self) -> tuple[str, ...]:
        """Returns the names of the computations that it calls."""
        lists = re.findall(r"\b(?:calls|to_apply|body|branch_computations|true_computation|false_computation)="
                           r"(\{[^}]*\}|%?[\w.\-]+)", self.attributes)  # fmt: skip
        return tuple(name for found in lists for name in re.findall(r"[\w.\-]+", found))


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      entry: name of the computation that it starts with.
      computations: name -> name of the instruction -> instruction, in the order of execution.
      frames: number of a stack frame -> the lines of the source, innermost first.
    """

    entry: str
    computations: dict[str, dict[str, Instruction]]
    frames: dict[int, tuple[Frame, ...]]

    def stack(self, instruction: Instruction) -> tuple[Frame, ...]:
        """Returns where the source has an instruction, innermost first; empty if the compiler did not keep it."""
        frame = instruction.attribute("stack_frame_id")
        if frame:
            return self.frames.get(int(frame), ())
        file = instruction.attribute("source_file")
        return (Frame(file, int(instruction.attribute("source_line") or 0), ""),) if file else ()


def read_program(text: str) -> Program:
    """Reads what `jax.stages.Compiled.as_text` returns.

    Args:
      text: of the program.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
    entry, current, table = "", {}, None
    for line in text.splitlines():
        if line.strip() in _TABLES:
            table = tables[line.strip()]
        elif table is not None and (row := _TABLE_ROW.match(line)):
            table[int(row[1])] = row[2]
        elif _INSTRUCTION.match(line):
            instruction = _read_instruction(line)
            current[instruction.name] = instruction
        elif found := _COMPUTATION.match(line):
            table, current = None, computations.setdefault(found[2], {})
            entry = found[2] if found[1] else entry
        elif line.strip():
            table = None
    if not entry:
        raise ValueError("the text has no ENTRY computation")
    return Program(entry, computations, _read_frames(tables))


def _read_instruction(line: str) -> Instruction:
    found = _INSTRUCTION.match(line)
    assert found
    line = re.sub(r"/\*.*?\*/", "", line)
    start = line.index(" = ") + 3
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opened = line.index("(", end)
    closed = _closing(line, opened)
    opcode = line[end:opened].strip()
    return Instruction(
        name=found[2],
        opcode=opcode,
        results=read_shapes(line[start:end]),
        operands=tuple(re.findall(r"%([\w.\-]+)", line[opened:closed])),
        number=int(line[opened + 1 : closed - 1]) if opcode == "parameter" else None,
        attributes=line[closed:],
        root=bool(found[1]),
    )


def _closing(text: str, start: int) -> int:
    """Returns the position behind the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if depth == 0:
            return position + 1
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


def read_shapes(text: str) -> tuple[Shape, ...]:
    """Returns the arrays of a type such as `(bf16[8,128]{1,0:T(8,128)(2,1)}, u8[0]{0})`."""
    return tuple(_shape(*found) for found in _SHAPE.findall(text))


def _shape(kind: str, sides_text: str, layout: str) -> Shape:
    sides = tuple(int(side.strip("<= ")) for side in sides_text.split(",") if side.strip("<= "))
    bits = _BITS[kind] if kind in _BITS else int((re.search(r"\d+", kind) or ["0"])[0])
    stored = list(sides)
    order, _, tiles = layout.strip("{}").partition(":")
    tile = re.search(r"T\(([\d,]+)\)", tiles)
    if tile and sides and order:
        minor_first = [int(axis) for axis in order.split(",")]
        for axis, side in zip(minor_first, reversed(tile[1].split(",")), strict=False):
            stored[axis] = -(-stored[axis] // int(side)) * int(side)
    elsewhere = re.search(r"S\([1-9]\d*\)", tiles) is not None
    return Shape(kind, sides, math.prod(sides) * bits // 8, 0 if elsewhere else math.prod(stored) * bits // 8)


def _read_frames(tables: dict[str, dict[int, str]]) -> dict[int, tuple[Frame, ...]]:
    """Returns the stack of each frame, innermost first."""

    def numbers(row: str) -> dict[str, int]:
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", row)}

    locations = {}
    for number, row in tables["FileLocations"].items():
        at = numbers(row)
        file = tables["FileNames"].get(at.get("file_name_id", 0), "").strip('"')
        function = tables["FunctionNames"].get(at.get("function_name_id", 0), "").strip('"')
        locations[number] = Frame(file, at.get("line", 0), function)
    frames: dict[int, tuple[Frame, ...]] = {}
    for number, row in sorted(tables["StackFrames"].items()):
        at = numbers(row)
        parent = at.get("parent_frame_id", 0)
        above = frames.get(parent - 1, ())  # XLA writes the number of the parent plus one
        frames[number] = (locations.get(at.get("file_location_id", 0), Frame("", 0, "")), *above)
    return frames
