import textwrap

import jax
import jax.numpy as jnp
import pytest

from bcss_jax.accelerators.hlo_text import read_program, read_shapes
from bcss_jax.accelerators.report import report_lines, warnings
from bcss_jax.accelerators.roofline import roofline
from bcss_jax.accelerators.steps import CompiledStep, Memory
from bcss_jax.accelerators.targets import TARGETS
from bcss_jax.accelerators.traffic import account

# In the form in which XLA 0.10 writes programs for GPUs.
GPU = textwrap.dedent(
    """\
    HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[8,16,16,4]{3,2,1,0})->bf16[8,16,16,8]{3,2,1,0}}

    FileNames
    1 "/home/someone/bcss_jax/training/step.py"
    2 "/home/someone/bcss_jax/models/unet.py"
    3 "/home/someone/bcss_jax/models/blocks/layers.py"

    FunctionNames
    1 "make_train_step.<locals>.train_step"
    2 "UNet.__call__"
    3 "Conv.__call__"

    FileLocations
    1 {file_name_id=1 function_name_id=1 line=92 end_line=92 column=43 end_column=107}
    2 {file_name_id=2 function_name_id=2 line=110 end_line=110 column=4 end_column=10}
    3 {file_name_id=3 function_name_id=3 line=85 end_line=85 column=4 end_column=10}

    StackFrames
    1 {file_location_id=1 parent_frame_id=1}
    2 {file_location_id=2 parent_frame_id=2}
    3 {file_location_id=3 parent_frame_id=3}


    %fused_part (param_0.1: f32[10,100], param_1.1: s32[]) -> f32[1,100] {
      %param_0.1 = f32[10,100]{1,0} parameter(0)
      %param_1.1 = s32[] parameter(1)
      %zero = s32[] constant(0)
      %dynamic-slice.1 = f32[1,100]{1,0} dynamic-slice(%param_0.1, %param_1.1, %zero), dynamic_slice_sizes={1,100}
      ROOT %multiply.1 = f32[1,100]{1,0} multiply(%dynamic-slice.1, %dynamic-slice.1)
    }

    %fused_update (param_0.2: f32[10,100], param_1.2: f32[1,100], param_2.2: s32[]) -> f32[10,100] {
      %param_0.2 = f32[10,100]{1,0} parameter(0)
      %param_1.2 = f32[1,100]{1,0} parameter(1)
      %param_2.2 = s32[] parameter(2)
      %zero.2 = s32[] constant(0)
      ROOT %dynamic-update-slice.1 = f32[10,100]{1,0} dynamic-update-slice(%param_0.2, %param_1.2, %param_2.2, %zero.2)
    }

    %fused_transpose (param_0.3: bf16[3,3,4,8]) -> bf16[8,3,3,4] {
      %param_0.3 = bf16[3,3,4,8]{3,2,1,0} parameter(0)
      ROOT %transpose.1 = bf16[8,3,3,4]{3,2,1,0} transpose(%param_0.3), dimensions={3,0,1,2}
    }

    %body (state: (s32[], f32[10,100], f32[10,100])) -> (s32[], f32[10,100], f32[10,100]) {
      %state = (s32[], f32[10,100]{1,0}, f32[10,100]{1,0}) parameter(0)
      %round = s32[] get-tuple-element(%state), index=0
      %read = f32[10,100]{1,0} get-tuple-element(%state), index=1
      %kept = f32[10,100]{1,0} get-tuple-element(%state), index=2
      %part = f32[1,100]{1,0} fusion(%read, %round), kind=kLoop, calls=%fused_part
      %updated = f32[10,100]{1,0} fusion(%kept, %part, %round), kind=kLoop, calls=%fused_update
      ROOT %tuple.1 = (s32[], f32[10,100]{1,0}, f32[10,100]{1,0}) tuple(%round, %read, %updated)
    }

    %condition (state.1: (s32[], f32[10,100], f32[10,100])) -> pred[] {
      %state.1 = (s32[], f32[10,100]{1,0}, f32[10,100]{1,0}) parameter(0)
      ROOT %less = pred[] constant(true)
    }

    ENTRY %main (images.1: bf16[8,16,16,4], kernel.1: bf16[3,3,4,8], /*index=2*/table.1: f32[10,100]) -> bf16[8,16,16,8] {
      %images.1 = bf16[8,16,16,4]{3,2,1,0} parameter(0)
      %kernel.1 = bf16[3,3,4,8]{3,2,1,0} parameter(1)
      %table.1 = f32[10,100]{1,0} parameter(2)
      %turned = bf16[8,3,3,4]{3,2,1,0} fusion(%kernel.1), kind=kInput, calls=%fused_transpose
      %forward = (bf16[8,16,16,8]{3,2,1,0}, u8[1000]{0}) custom-call(%images.1, %turned), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/jvp()/conv" stack_frame_id=3}, backend_config={"a":"b"}
      %map = bf16[8,16,16,8]{3,2,1,0} get-tuple-element(%forward), index=0
      %backward = (bf16[8,16,16,4]{3,2,1,0}, u8[0]{0}) custom-call(%map, %turned), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
      %filter = (bf16[8,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%images.1, %map), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
      %flat = bf16[2048,8]{1,0} bitcast(%map)
      %weights = f32[8,8]{1,0} constant({...})
      %product = (f32[2048,8]{1,0}, s8[4194304]{0}) custom-call(%flat, %weights), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
      %zero.3 = s32[] constant(0)
      %start = (s32[], f32[10,100]{1,0}, f32[10,100]{1,0}) tuple(%zero.3, %table.1, %table.1)
      %loop = (s32[], f32[10,100]{1,0}, f32[10,100]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"},"known_init_step":{"init":"0"}}
      %sums = f32[10,100]{1,0} get-tuple-element(%loop), index=2
      %all-reduce-start = f32[10,100]{1,0} all-reduce-start(%sums), replica_groups={{0,1}}, to_apply=%add
      %all-reduce-done = f32[10,100]{1,0} all-reduce-done(%all-reduce-start)
      ROOT %copy.1 = bf16[8,16,16,8]{2,3,1,0} copy(%map)
    }
    """  # noqa: E501
)
IMAGES, MAP, KERNEL, TABLE, ROW = 8 * 16 * 16 * 4 * 2, 8 * 16 * 16 * 8 * 2, 3 * 3 * 4 * 8 * 2, 4000, 400


def test_traffic_by_kind():
    found = account(read_program(GPU))
    convolutions = (IMAGES + KERNEL + MAP) * 3
    assert found.bytes_by_kind() == {
        "convolution": convolutions,
        "matrix product": MAP + 8 * 8 * 4 + 2048 * 8 * 4,
        "copy": 2 * MAP,
        # A round reads one row and its number and writes the row; it reads that and writes it into its place.
        "fusion": 10 * (2 * ROW + 4 + 2 * ROW + 4),
        "all-reduce": 2 * TABLE,
        "transpose": 2 * KERNEL,
    }
    assert found.count_by_kind()["fusion"] == 20
    assert [work.instruction.name for work in found.collectives()] == ["all-reduce-start"]


def test_arithmetic_of_gradients_is_that_of_the_forward_convolution():
    found = {work.instruction.name: work.operations for work in account(read_program(GPU)).works}
    forward = 2 * 8 * 16 * 16 * 8 * 3 * 3 * 4
    assert found["forward"] == found["backward"] == found["filter"] == forward
    assert found["product"] == 2 * 2048 * 8 * 8


def test_the_place_in_the_source():
    program = read_program(GPU)
    stack = program.stack(program.computations["main"]["forward"])
    assert [(frame.file.split("/")[-1], frame.line, frame.function) for frame in stack] == [
        ("layers.py", 85, "Conv.__call__"),
        ("unet.py", 110, "UNet.__call__"),
        ("step.py", 92, "make_train_step.<locals>.train_step"),
    ]


def test_the_report_names_the_largest_instructions_and_their_place():
    step = CompiledStep("train", 1.0, Memory(10**9, 2 * 10**9, 3 * 10**9), GPU)
    text = "\n".join(report_lines(step, account(read_program(GPU)), TARGETS["h100"], 8))
    assert "memory 6 GB of 84.9 GB (state and batch 1 GB, temporary 3 GB, results 2 GB)" in text
    assert "forward bf16[8,16,16,8] conv, bcss_jax/models/blocks/layers.py:85 Conv.__call__" in text
    assert "bcss_jax/models/unet.py:110 UNet.__call__" in text and "someone" not in text
    assert "exchanges between devices: losses and counts 0.004 MB in 1\n    all-reduce 0.008 MB" in text


def test_warnings():
    found = list(warnings(account(read_program(GPU))))
    assert len(found) == 1 and "is a copy" in found[0] and "copy.1" in found[0]
    bad = GPU.replace("f32[1,100]{1,0} multiply", "f64[1,100]{1,0} multiply").replace('"known_trip_count"', '"unknown"')
    bad = bad.replace("__cublas$lt$matmul", "xla_ffi_python_gpu_callback")
    found = "\n".join(warnings(account(read_program(bad))))
    assert "1 instructions compute in float64, such as multiply.1" in found
    assert "product calls the host" in found and "the loop loop runs is not known" in found


def test_the_roofline_takes_the_slower_of_both_for_each_instruction():
    found, target = account(read_program(GPU)), TARGETS["h100"]
    least = roofline(found, target)
    assert least.memory == pytest.approx(found.bytes() / target.bandwidth)
    assert max(least.memory, least.arithmetic) <= least.total <= least.memory + least.arithmetic


def test_layouts_of_tpus_pad_and_leave_the_memory():
    padded, close = read_shapes("(bf16[8,30,64]{2,1,0:T(8,128)(2,1)}, f32[8,128]{1,0:T(8,128)S(1)})")
    assert (padded.bytes, padded.memory_bytes) == (8 * 30 * 64 * 2, 8 * 32 * 128 * 2)
    assert (close.bytes, close.memory_bytes) == (4096, 0)


def test_transfers_into_the_close_memory_of_a_tpu():
    program = read_program(
        """ENTRY %main (weights.1: f32[512,512]) -> f32[128,512] {
  %weights.1 = f32[512,512]{1,0:T(8,128)} parameter(0)
  %slice-start = ((f32[512,512]{1,0:T(8,128)}), f32[128,512]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%weights.1), slice={[0:128], [0:512]}
  %slice-done = f32[128,512]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %copy-start = (f32[512,512]{1,0:T(8,128)S(1)}, f32[512,512]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%weights.1)
  %copy-done = f32[512,512]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  ROOT %negate = f32[128,512]{1,0:T(8,128)S(1)} negate(%slice-done)
}"""  # noqa: E501
    )
    assert account(program).bytes_by_kind() == {"transfer": (128 + 512) * 512 * 4, "negate": 0}


def test_a_program_of_this_jax():
    """A change in how XLA writes programs shows here."""

    def run(x, kernels):
        def convolve(x, kernel):
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ), 0

        return jax.lax.scan(convolve, x, kernels)[0]

    x, kernels = jnp.zeros((2, 16, 16, 8)), jnp.zeros((5, 3, 3, 8, 8))
    found = account(read_program(jax.jit(run).lower(x, kernels).compile().as_text()))
    convolutions = [work for work in found.works if work.kind == "convolution"]
    assert sum(work.times for work in convolutions) == 5 and not found.unknown_loops
    assert found.operations() == 5 * 2 * 2 * 16 * 16 * 8 * 3 * 3 * 8
    files = [frame.file for frame in found.program.stack(convolutions[0].instruction)]
    assert any(file.endswith("test_traffic.py") for file in files)
