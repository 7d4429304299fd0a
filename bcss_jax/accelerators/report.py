"""The report of `python -m bcss_jax.compile_for` on one compiled step."""

import re
from collections.abc import Iterator

from bcss_jax.accelerators.exchanges import exchanges, timeline
from bcss_jax.accelerators.hlo_text import Frame, Program
from bcss_jax.accelerators.links import LINKS
from bcss_jax.accelerators.roofline import roofline, seconds
from bcss_jax.accelerators.steps import CompiledStep
from bcss_jax.accelerators.targets import Target
from bcss_jax.accelerators.traffic import Account, Work

LARGEST = 12  # instructions that are listed
SHOWN = 0.001  # share of the traffic from which a kind is listed
LARGEST_EXCHANGES = 6  # that are listed
NOTABLE = 0.01  # share of the traffic from which a copy or transpose is a warning
PADDED = 0.1  # share of the traffic from which the padding of layouts is a warning
_PACKAGE = re.compile(r".*[/\\](?=bcss_jax[/\\])")


def report_lines(
    step: CompiledStep, account: Account, target: Target, images: int, devices: int = 1, unit: str = "images"
) -> Iterator[str]:
    """Yields the lines of the report.

    Args:
      step: the compiled step.
      account: of its program.
      target: that it was compiled for.
      images: of a batch on one device.
      devices: that share a batch.
      unit: what the images are.
    """
    memory, least = step.memory, roofline(account, target)
    yield (
        f"{step.name} step: compiled in {step.seconds:.0f} s; memory {_gb(memory.total())} of {_gb(target.memory)} "
        f"(state and batch {_gb(memory.arguments)}, temporary {_gb(memory.temporary)}, results {_gb(memory.results)})"
    )
    if memory.total() > target.usable:
        yield f"  does not fit: a program may take {_gb(target.usable)}; use more micro-batches or a smaller batch"
    counts = account.count_by_kind()
    shown = {kind: size for kind, size in account.bytes_by_kind().items() if size > SHOWN * account.bytes()}
    kinds = ", ".join(f"{kind} {_gb(size)} ({counts[kind]})" for kind, size in shown.items())
    yield f"  traffic {_gb(account.bytes())}: {kinds}"
    yield (
        f"  arithmetic {account.operations() / 1e12:.3g} TFLOP; at least {1e3 * least.total:.3g} ms "
        f"(memory {1e3 * least.memory:.3g}, arithmetic {1e3 * least.arithmetic:.3g}), at most "
        f"{images / max(least.total, 1e-12):.0f} {unit}/s a device"
    )
    yield from _exchange_lines(account, target, images, devices)
    yield "  largest instructions:"
    largest = sorted(account.works, key=lambda work: -seconds(work, target))[:LARGEST]
    for work in largest:
        yield f"    {1e3 * seconds(work, target):8.3f} ms {_work_line(work, account)}"
    for warning in warnings(account):
        yield f"  warning: {warning}"


def _exchange_lines(account: Account, target: Target, images: int, devices: int) -> Iterator[str]:
    found = exchanges(account)
    if not found:
        return
    groups = []
    for purpose in dict.fromkeys(each.purpose for each in found):
        own = [each for each in found if each.purpose == purpose]
        size, waits = sum(each.times * each.size for each in own), sum(each.times for each in own if each.at_once)
        count = sum(each.times for each in own)
        groups.append(f"{purpose} {_gb(size)} in {count}" + (f" (the computation waits for {waits})" if waits else ""))
    yield f"  exchanges between devices: {'; '.join(groups)}"
    links = LINKS.get(target.name)
    if links and devices > 1:
        time = timeline(account, target, links, devices)
        yield (
            f"    by {links.describe(devices)}: {1e3 * time.exchanges:.3g} ms of exchanges; with them at least "
            f"{1e3 * time.total:.3g} ms, at most {devices * images / time.total:.0f} images/s of {devices} devices, "
            f"{100 * time.efficiency:.1f} % of what they do without exchanges"
        )
    for work in account.collectives()[:LARGEST_EXCHANGES]:
        yield f"    {_work_line(work, account)}"


def warnings(account: Account) -> Iterator[str]:
    """Yields what a program should not have, one line each."""
    instructions = [each for body in account.program.computations.values() for each in body.values()]
    double = [each for each in instructions if any(shape.type == "f64" for shape in each.results)]
    if double:
        yield f"{len(double)} instructions compute in float64, such as {double[0].name}"
    for each in instructions:
        target = each.attribute("custom_call_target")
        if "callback" in target or each.opcode in ("infeed", "outfeed"):
            yield f"{each.name} calls the host ({target or each.opcode}){_place(account.program, each)}"
    total = max(account.bytes(), 1)
    for work in sorted(account.works, key=lambda work: -work.total_bytes):
        if work.kind in ("copy", "transpose") and work.total_bytes > NOTABLE * total:
            yield f"{100 * work.total_bytes / total:.1f} % of the traffic is a {_work_line(work, account)}"
    if account.padding() > PADDED * total:
        yield f"{_gb(account.padding())} of the traffic is padding of layouts, as of maps with few channels"
    for name in account.unknown_loops:
        yield f"how often the loop {name} runs is not known; its body is counted once"


def _work_line(work: Work, account: Account) -> str:
    operations = f", {work.times * work.operations / 1e9:.3g} GFLOP" if work.operations else ""
    times = f", {work.times} times" if work.times > 1 else ""
    shape = max(work.instruction.results, key=lambda shape: shape.bytes)
    sides = ",".join(map(str, shape.sides))
    return (
        f"{work.kind} {_gb(work.total_bytes)}{operations}{times}: {work.instruction.name} {shape.type}[{sides}]"
        f"{_place(account.program, work.instruction)}"
    )


def _place(program: Program, instruction) -> str:
    """Returns the line of the source and, if that is in a block, the line of the network that calls it."""
    stack = [frame for frame in program.stack(instruction) if _PACKAGE.match(frame.file)]
    outside = [frame for frame in stack if "blocks" not in re.split(r"[/\\]", frame.file)]
    chosen = dict.fromkeys([*stack[:1], *outside[:1]])
    operation = instruction.attribute("op_name")
    name = f" {operation.rsplit('/', 1)[-1]}" if operation else ""
    return name + "".join(f", {_line(frame)}" for frame in chosen)


def _line(frame: Frame) -> str:
    return f"{_PACKAGE.sub('', frame.file)}:{frame.line} {frame.function.rsplit('.<locals>.', 1)[-1]}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
