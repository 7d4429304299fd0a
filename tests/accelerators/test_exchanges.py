"""Exchanges between devices: what they are for, and how long a step takes with them."""

import pytest

from bcss_jax.accelerators.exchanges import COUNTS, GRADIENTS, STATISTICS, exchanges, timeline
from bcss_jax.accelerators.hlo_text import read_program
from bcss_jax.accelerators.links import LINKS, Links
from bcss_jax.accelerators.report import report_lines
from bcss_jax.accelerators.roofline import roofline
from bcss_jax.accelerators.steps import CompiledStep, Memory
from bcss_jax.accelerators.targets import TARGETS
from bcss_jax.accelerators.traffic import account

# The statistics wait; the gradients run beside a pass over `map`; the loss in the loop waits in each of ten rounds.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

FileNames
1 "/home/someone/bcss_jax/models/blocks/norms.py"
2 "/home/someone/bcss_jax/models/blocks/layers.py"
3 "/home/someone/bcss_jax/losses.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1}
2 {file_name_id=2 function_name_id=1 line=2}
3 {file_name_id=3 function_name_id=1 line=3}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}
3 {file_location_id=3 parent_frame_id=1}

%body (state: (s32[], f32[7])) -> (s32[], f32[7]) {
  %state = (s32[], f32[7]{0}) parameter(0)
  %round = s32[] get-tuple-element(%state), index=0
  %sums = f32[7]{0} get-tuple-element(%state), index=1
  %loss = f32[7]{0} all-reduce(%sums), to_apply=%add, metadata={op_name="a" stack_frame_id=3}
  ROOT %tuple.1 = (s32[], f32[7]{0}) tuple(%round, %loss)
}

%condition (state.1: (s32[], f32[7])) -> pred[] {
  %state.1 = (s32[], f32[7]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (map: f32[1000000,1000], sums.1: f32[7]) -> f32[7] {
  %map = f32[1000000,1000]{1,0} parameter(0)
  %sums.1 = f32[7]{0} parameter(1)
  %mean = f32[1000]{0} reduce(%map), to_apply=%add, metadata={op_name="b" stack_frame_id=1}
  %joined = f32[1000]{0} copy(%mean)
  %all-reduce-start = f32[1000]{0} all-reduce-start(%joined), to_apply=%add, backend_config={"collective_backend_config":{"is_sync":true}}
  %all-reduce-done = f32[1000]{0} all-reduce-done(%all-reduce-start)
  %kernel = f32[1000,1000]{1,0} slice(%map), slice={[0:1000], [0:1000]}, metadata={op_name="c" stack_frame_id=2}
  %all-reduce-start.1 = f32[1000,1000]{1,0} all-reduce-start(%kernel), to_apply=%add
  %backward = f32[1000000,1000]{1,0} negate(%map)
  %all-reduce-done.1 = f32[1000,1000]{1,0} all-reduce-done(%all-reduce-start.1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[7]{0}) tuple(%zero, %sums.1)
  %loop = (s32[], f32[7]{0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  ROOT %found = f32[7]{0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501
H100 = TARGETS["h100"]


def found():
    return account(read_program(PROGRAM))


def test_what_exchanges_are_for():
    assert [each[2:] for each in exchanges(found())] == [
        (COUNTS, 28, 10, True), (STATISTICS, 4000, 1, True), (GRADIENTS, 4_000_000, 1, False),
    ]  # fmt: skip


def test_exchanges_that_start_early_cost_only_what_outlasts_the_computation():
    links = Links("wire", 1e9, 1e-6, 1e9)
    at_once = 10 * links.seconds("all-reduce", 28, 2) + links.seconds("all-reduce", 4000, 2)
    gradients = links.seconds("all-reduce", 4e6, 2)
    backward = 8e9 / H100.bandwidth
    time = timeline(found(), H100, links, 2)
    assert time.exchanges == pytest.approx(at_once + gradients)
    assert time.total == pytest.approx(time.computation + at_once + max(gradients - backward, 0))
    slow = Links("wire", 1e8, 1e-6, 1e8)
    outlasting = slow.seconds("all-reduce", 4e6, 2) - backward
    assert outlasting > 0.01
    at_once = 10 * slow.seconds("all-reduce", 28, 2) + slow.seconds("all-reduce", 4000, 2)
    assert timeline(found(), H100, slow, 2).total == pytest.approx(time.computation + at_once + outlasting)


def test_the_computation_is_that_of_the_roofline_without_exchanges():
    done = found()
    traffic_of_exchanges = sum(work.total_bytes for work in done.collectives())
    expected = roofline(done, H100).total - traffic_of_exchanges / H100.bandwidth
    assert timeline(done, H100, LINKS["h100"], 8).computation == pytest.approx(expected)


def test_rings():
    h100 = LINKS["h100"]
    assert h100.seconds("all-reduce", 450e9, 1) == 0
    assert h100.seconds("all-reduce", 450e9, 2) == pytest.approx(1.0, rel=1e-4)
    assert h100.seconds("all-gather", 450e9, 2) == pytest.approx(0.5, rel=1e-4)
    assert h100.seconds("all-reduce", 0, 8) == pytest.approx(6.8e-6 + 14 * 0.6e-6)
    assert h100.seconds("all-reduce", 0, 64) == pytest.approx(6.8e-6 + 14 * 0.6e-6 + 6 * 5e-6)
    assert h100.seconds("all-reduce", 400e9, 64) == pytest.approx(2 * 63 / 64, rel=1e-3)
    assert "400 GB/s between hosts" in h100.describe(64) and "between" not in h100.describe(8)
    assert set(LINKS) == {name for name, target in TARGETS.items() if target.platform == "cuda"}


def test_the_report_says_what_is_exchanged_and_how_long_it_takes():
    lines = "\n".join(report_lines(CompiledStep("train", 1.0, Memory(1, 1, 1), PROGRAM), found(), H100, 8, 8))
    assert "losses and counts 0.00028 MB in 10 (the computation waits for 10); batch statistics" in lines
    assert "gradients 4 MB in 1\n" in lines and "by NVLink, 450 GB/s each way:" in lines
    assert "images/s of 8 devices" in lines
