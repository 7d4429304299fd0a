"""What devices exchange in a compiled program, and how long a step takes with it.

Exchanges that the compiler starts early run beside the computation; the others wait, and the computation with them.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

from bcss_jax.accelerators.hlo_text import Instruction, Program
from bcss_jax.accelerators.links import Links
from bcss_jax.accelerators.roofline import seconds
from bcss_jax.accelerators.targets import Target
from bcss_jax.accelerators.traffic import COLLECTIVES, Account

GRADIENTS, STATISTICS, COUNTS = "gradients", "batch statistics and their gradients", "losses and counts"
_SMALL = 65536  # bytes; sums of losses and counts are smaller


class Exchange(NamedTuple):
    """An exchange among all devices.

    Attributes:
      name: of the instruction that starts it.
      kind: such as "all-reduce".
      purpose: `GRADIENTS`, `STATISTICS` or `COUNTS`.
      size: bytes of the whole array.
      times: how often it runs.
      at_once: the computation waits for it.
    """

    name: str
    kind: str
    purpose: str
    size: int
    times: int
    at_once: bool


class Timeline(NamedTuple):
    """Seconds of a step on several devices.

    Attributes:
      computation: without exchanges, at the full bandwidth and peak.
      exchanges: all exchanges, one after another.
      total: of the step; exchanges that are started early run beside the computation.
    """

    computation: float
    exchanges: float
    total: float

    @property
    def efficiency(self) -> float:
        """Share of the speed that devices without exchanges would have together."""
        return self.computation / self.total if self.total else 1.0


def exchanges(account: Account) -> tuple[Exchange, ...]:
    """Returns the exchanges of a program in the order of execution."""
    times = {work.instruction.name: work.times for work in account.works}
    found = []
    for computation in account.program.computations.values():
        for instruction in computation.values():
            kind = _kind(account.program, instruction)
            if kind and instruction.name in times:
                size = _size(instruction)
                purpose = _purpose(account.program, computation, instruction, size)
                found.append(
                    Exchange(instruction.name, kind, purpose, size, times[instruction.name], _is_at_once(instruction))
                )
    return tuple(found)


def timeline(account: Account, target: Target, links: Links, devices: int) -> Timeline:
    """Returns the least time of a step on several devices, from the order of the program's instructions."""
    found = exchanges(account)
    costs = {each.name: links.seconds(each.kind, each.size, devices) for each in found}
    total = sum(costs[each.name] * each.times for each in found)
    return Timeline(_Clock(account, target, {}).run(), total, _Clock(account, target, costs).run())


@dataclasses.dataclass
class _Clock:
    """Follows the instructions of a program in their order; exchanges share one stream beside the computation."""

    account: Account
    target: Target
    costs: dict[str, float]
    now: float = 0.0
    stream: float = 0.0

    def run(self) -> float:
        """Returns the seconds of the whole program."""
        self._works = {work.instruction.name: work for work in self.account.works}
        self._ends: dict[str, float] = {}
        self._computation(self.account.program.entry)
        return max(self.now, self.stream)

    def _computation(self, name: str) -> None:
        program = self.account.program
        for instruction in program.computations[name].values():
            work = self._works.get(instruction.name)
            if instruction.name in self.costs:
                self._exchange(instruction)
            elif instruction.opcode.endswith("-done"):
                self.now = max(self.now, self._ends.get(instruction.operands[0], 0.0))
            elif instruction.opcode == "while":
                self._loop(instruction)
            elif instruction.opcode in ("call", "conditional"):
                for branch in instruction.called():
                    self._computation(branch)
            elif work and not _kind(program, instruction):
                self.now += seconds(work, self.target) / work.times

    def _exchange(self, instruction: Instruction) -> None:
        self.stream = max(self.stream, self.now) + self.costs[instruction.name]
        self._ends[instruction.name] = self.stream
        if _is_at_once(instruction):
            self.now = self.stream

    def _loop(self, instruction: Instruction) -> None:
        rounds = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.attributes)
        started = self.now
        self._computation(instruction.attribute("body"))
        self.now += (int(rounds[1]) - 1 if rounds else 0) * (self.now - started)


def _kind(program: Program, instruction: Instruction) -> str:
    """Returns which collective an instruction starts; "" for others."""
    opcode = instruction.opcode.removesuffix("-start")
    if opcode in COLLECTIVES:
        return opcode
    if instruction.opcode != "async-start":
        return ""
    inside = {each.opcode for name in instruction.called() for each in program.computations.get(name, {}).values()}
    return next(iter(sorted(inside & set(COLLECTIVES))), "")


def _is_at_once(instruction: Instruction) -> bool:
    return not instruction.opcode.endswith("-start") or '"is_sync":true' in instruction.attributes


def _size(instruction: Instruction) -> int:
    """Returns the bytes of the whole array. Results of some instructions begin with the operands."""
    results, operands = instruction.results, len(instruction.operands)
    if instruction.opcode.endswith("-start") and len(results) > operands:
        results = results[operands:]
    return sum(shape.bytes for shape in results)


def _purpose(program: Program, computation: dict[str, Instruction], instruction: Instruction, size: int) -> str:
    """Returns what an exchange is for, by the lines of the source whose results it adds up."""
    files = set(_sources(program, computation, instruction))
    if any(file.endswith("blocks/norms.py") for file in files):
        return STATISTICS
    return GRADIENTS if size > _SMALL or any("models/" in file for file in files) else COUNTS


def _sources(program: Program, computation: dict[str, Instruction], instruction: Instruction) -> Iterator[str]:
    """Yields the files of an instruction, or of those before it where the compiler has not kept its own."""
    waiting, seen = [instruction.name], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in computation:
            continue
        seen.add(name)
        stack = program.stack(computation[name])
        if stack:
            yield stack[0].file.replace("\\", "/")
        else:
            waiting += computation[name].operands
