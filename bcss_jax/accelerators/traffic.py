"""Adds up what a compiled program moves between an accelerator and its memory, and what it computes.

Each instruction of the program reads its operands from memory and writes its results to it; what a fusion computes
inside is not stored. Caches are not counted. The bodies of loops count as often as they run.
"""

import dataclasses
import math
import re
from collections import defaultdict
from typing import NamedTuple

from bcss_jax.accelerators.arithmetic import is_convolution, is_matrix_product, operations
from bcss_jax.accelerators.hlo_text import Instruction, Program, Shape

# These only name or regroup arrays. The results of `copy-start` and the like are counted at their end.
FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "iota", "async-update",
}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_ENDS = {f"{name}-done" for name in COLLECTIVES}
_TRANSFERS = {"copy-start", "copy-done", "slice-start", "slice-done"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_MOVES = {"copy", "transpose"}
_TRIVIAL = {"parameter", "bitcast", "convert", "reshape", "constant", "tuple"}


class Work(NamedTuple):
    """What one instruction of a program does.

    Attributes:
      instruction: the instruction.
      kind: "convolution", "matrix product", "copy", "transpose", "transfer" (between a TPU's memories), a collective
        such as "all-reduce", or the opcode.
      times: how often it runs.
      bytes: that it reads and writes, each time it runs.
      dense_bytes: the same without the padding of the arrays' layouts.
      operations: of convolutions and matrix products, each time it runs.
      type: of the inputs of its convolutions and matrix products; "" if it has none.
    """

    instruction: Instruction
    kind: str
    times: int
    bytes: int
    dense_bytes: int
    operations: float
    type: str

    @property
    def total_bytes(self) -> int:
        """Bytes, over all times it runs."""
        return self.times * self.bytes


@dataclasses.dataclass(frozen=True)
class Account:
    """What a program does.

    Attributes:
      program: the program.
      works: its instructions that do something.
      unknown_loops: names of loops whose number of rounds the compiler does not state; their body is counted once.
    """

    program: Program
    works: tuple[Work, ...]
    unknown_loops: tuple[str, ...]

    def bytes_by_kind(self) -> dict[str, int]:
        """Returns the bytes of each kind, the largest first."""
        total: dict[str, int] = defaultdict(int)
        for work in self.works:
            total[work.kind] += work.total_bytes
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def count_by_kind(self) -> dict[str, int]:
        """Returns how many instructions of each kind run."""
        total: dict[str, int] = defaultdict(int)
        for work in self.works:
            total[work.kind] += work.times
        return dict(total)

    def bytes(self) -> int:
        """Returns the bytes that are read and written."""
        return sum(work.total_bytes for work in self.works)

    def padding(self) -> int:
        """Returns the bytes that are moved only because layouts pad arrays."""
        return sum(work.times * (work.bytes - work.dense_bytes) for work in self.works)

    def operations(self) -> float:
        """Returns the floating-point operations of all convolutions and matrix products."""
        return sum(work.times * work.operations for work in self.works)

    def collectives(self) -> tuple[Work, ...]:
        """Returns what devices exchange, the largest first."""
        found = (work for work in self.works if work.kind in COLLECTIVES)
        return tuple(sorted(found, key=lambda work: -work.total_bytes))


def account(program: Program) -> Account:
    """Returns what a program does."""
    unknown: list[str] = []
    works = _works(program, program.entry, 1, unknown)
    return Account(program, tuple(works), tuple(unknown))


def _works(program: Program, name: str, times: int, unknown: list[str]) -> list[Work]:
    """Returns the works of a computation that runs `times` times, and of those that it calls."""
    computation, works = program.computations[name], []
    for instruction in computation.values():
        if instruction.opcode in FREE or instruction.opcode in _ENDS:
            continue  # a collective is counted at its start
        if instruction.opcode == "while":
            rounds = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.attributes)
            if not rounds:
                unknown.append(instruction.name)
            body = instruction.attribute("body")
            works += _works(program, body, times * (int(rounds[1]) if rounds else 1), unknown)
        elif instruction.opcode == "conditional":
            branches = [_works(program, branch, times, unknown) for branch in instruction.called()]
            works += max(branches, key=lambda found: sum(work.total_bytes for work in found), default=[])
        elif instruction.opcode == "call":
            works += [work for branch in instruction.called() for work in _works(program, branch, times, unknown)]
        else:
            works.append(_work(program, computation, instruction, times))
    return works


def _work(program: Program, computation: dict[str, Instruction], instruction: Instruction, times: int) -> Work:
    inner = _inside(program, instruction)
    products = [
        (each, operations(each, [shape for name in each.operands for shape in body[name].results[:1]]))
        for body in (inner or [computation])
        for each in (body.values() if inner else [instruction])
        if is_convolution(each) or is_matrix_product(each)
    ]
    of_body = inner[0] if inner and instruction.opcode == "fusion" else None
    read = _read(computation, instruction, of_body)
    written = _written(computation, instruction, of_body)
    moved = [*read, *written]
    kind = _kind(instruction, inner, [each for each, _ in products])
    body = inner[0] if inner else computation
    first = [body[each.operands[0]].results[0].type for each, _ in products[:1] if each.operands[0] in body]
    return Work(
        instruction,
        kind,
        times,
        sum(memory for memory, _ in moved),
        sum(dense for _, dense in moved),
        sum(count for _, count in products),
        first[0] if first else "",
    )


def _inside(program: Program, instruction: Instruction) -> list[dict[str, Instruction]]:
    """Returns the computations that a fusion or an asynchronous instruction computes, with those inside them."""
    if instruction.opcode not in ("fusion", "async-start"):
        return []
    found = [program.computations[name] for name in instruction.called() if name in program.computations]
    return found + [more for body in found for each in body.values() for more in _inside(program, each)]


def _kind(instruction: Instruction, inner: list[dict[str, Instruction]], products: list[Instruction]) -> str:
    if instruction.opcode in _TRANSFERS:
        return "transfer"
    opcode = re.sub(r"-(start|done)$", "", instruction.opcode)
    if any(map(is_convolution, products)):
        return "convolution"
    if products:
        return "matrix product"
    inside = {each.opcode for body in inner for each in body.values()} - _TRIVIAL
    if inside and inside <= _MOVES:
        return "transpose" if "transpose" in inside else "copy"
    if opcode == "async":
        return sorted(inside)[0] if inside else opcode
    return opcode


def _read(
    computation: dict[str, Instruction], instruction: Instruction, body: dict[str, Instruction] | None
) -> list[tuple[int, int]]:
    """Returns the bytes in memory and the dense bytes that are read of each operand."""
    if instruction.opcode.endswith("-done"):
        return []
    read = []
    for number, name in enumerate(instruction.operands):
        for shape in computation[name].results if name in computation else ():
            part = _part_that_is_read(body, number) if body else None
            if instruction.opcode in _SLICES and number == 0:
                part = instruction.results[0].bytes
            if instruction.opcode == "slice-start":  # its results begin with its operand
                part = instruction.results[1].bytes
            if instruction.opcode == "dynamic-update-slice" and number == 0:
                part = 0
            read.append(_scaled(shape, part))
    return read


def _part_that_is_read(body: dict[str, Instruction], number: int) -> int | None:
    """Returns the bytes that a fusion reads of an operand; None: all, at least."""
    operands = [each for each in body.values() if each.number == number]
    names, elements = {each.name for each in operands}, 0
    for each in body.values():
        if not names & set(each.operands):
            continue
        if each.opcode in ("bitcast", "convert"):
            names.add(each.name)
        elif each.opcode in _SLICES and each.operands[0] in names:
            elements += math.prod(each.results[0].sides)
        elif each.opcode != "dynamic-update-slice" or each.operands[0] not in names:
            return None
    if not operands:
        return 0
    whole = operands[0].results[0]
    return elements * whole.bytes // max(math.prod(whole.sides), 1)


def _written(
    computation: dict[str, Instruction], instruction: Instruction, body: dict[str, Instruction] | None
) -> list[tuple[int, int]]:
    """Returns the bytes in memory and the dense bytes that are written to each result."""
    if instruction.opcode.endswith("-start"):
        if instruction.opcode.removesuffix("-start") not in COLLECTIVES:
            return []
        behind = len(instruction.operands) if len(instruction.results) > len(instruction.operands) else 0
        return [_scaled(shape, None) for shape in instruction.results[behind:]]
    target = instruction.attribute("custom_call_target")
    if target:  # the second result of cuDNN and cuBLAS is room to compute in
        return [_scaled(shape, None) for shape in instruction.results[:1]]
    if body is None:
        return [_scaled(shape, _part_that_is_written(computation, instruction)) for shape in instruction.results]
    roots = [each for each in body.values() if each.root]
    ends = [body[name] for name in roots[0].operands] if roots[0].opcode == "tuple" else roots
    parts = [_part_that_is_written(body, end) for end in ends]
    return [_scaled(shape, part) for shape, part in zip(instruction.results, parts, strict=False)]


def _part_that_is_written(body: dict[str, Instruction], end: Instruction) -> int | None:
    """Returns the bytes that an instruction writes in place; None: all of its result."""
    while end.opcode == "bitcast" and end.operands[0] in body:
        end = body[end.operands[0]]
    return body[end.operands[1]].results[0].bytes if end.opcode == "dynamic-update-slice" else None


def _scaled(shape: Shape, part: int | None) -> tuple[int, int]:
    """Returns the bytes in memory and the dense bytes of a part of an array, given its dense bytes; None: all."""
    if part is None or part >= shape.bytes:
        return shape.memory_bytes, shape.bytes if shape.memory_bytes else 0
    return shape.memory_bytes * part // max(shape.bytes, 1), part if shape.memory_bytes else 0
