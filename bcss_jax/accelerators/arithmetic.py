"""Counts the floating-point operations of convolutions and matrix products in a compiled program.

A multiplication and an addition count as two. Positions that a convolution pads count like others, zeros between the
elements of a dilated input do not.
"""

import math
import re

from bcss_jax.accelerators.hlo_text import Instruction, Shape

CUDNN, CUBLAS = "__cudnn$conv", "__cublas$"


def is_convolution(instruction: Instruction) -> bool:
    """Returns whether an instruction is a convolution, of XLA or of cuDNN."""
    return instruction.opcode == "convolution" or instruction.attribute("custom_call_target").startswith(CUDNN)


def is_matrix_product(instruction: Instruction) -> bool:
    """Returns whether an instruction is a matrix product, of XLA or of cuBLAS."""
    return instruction.opcode == "dot" or instruction.attribute("custom_call_target").startswith(CUBLAS)


def operations(instruction: Instruction, operands: list[Shape]) -> float:
    """Returns the operations of a convolution or matrix product; 0 for other instructions.

    Args:
      instruction: any instruction.
      operands: its operands.
    """
    if is_convolution(instruction):
        return _of_convolution(instruction, operands)
    if is_matrix_product(instruction):
        return _of_matrix_product(instruction, operands)
    return 0.0


def _of_convolution(instruction: Instruction, operands: list[Shape]) -> float:
    """Each element of the forward convolution's output takes the kernel's elements for one output channel."""
    result, target = instruction.results[0], instruction.attribute("custom_call_target")
    # cuDNN's gradients are described by the labels of the forward convolution.
    if target.endswith("BackwardInput"):
        output, kernel = operands[0], operands[1]
    elif target.endswith("BackwardFilter"):
        output, kernel = operands[1], result
    else:
        output, kernel = result, operands[1]
    labels = re.search(r"\bdim_labels=\w+_(\w+)->", instruction.attributes)
    if not labels:
        return 0.0
    per_element = math.prod(kernel.sides) / kernel.sides[labels[1].index("o")]
    dilation = re.search(r"\blhs_dilate=([\dx]+)", instruction.attributes)
    zeros = math.prod(map(int, dilation[1].split("x"))) if dilation else 1
    return 2.0 * math.prod(output.sides) * per_element / zeros


def _of_matrix_product(instruction: Instruction, operands: list[Shape]) -> float:
    plain = re.search(r"\blhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    cublas = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
    found = plain or cublas
    if not found:
        return 0.0
    contracted = (operands[0].sides[int(axis)] for axis in re.findall(r"\d+", found[1]))
    return 2.0 * math.prod(instruction.results[0].sides) * math.prod(contracted)
