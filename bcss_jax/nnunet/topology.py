"""How often a U-Net halves its images, and how much memory that takes.

Source of the rules and the numbers: nnU-Net 2.8.1 (`get_pool_and_conv_props` and `compute_conv_feature_map_size` of
dynamic_network_architectures 0.4.4).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

Pair = tuple[int, int]

MIN_EDGE = 4  # pixels that an axis keeps at the lowest resolution
_BASE_FEATURES, _MAX_FEATURES = 32, 512
_RESIDUAL_BLOCKS = (1, 3, 4)  # and 6 at each further resolution


class Topology(NamedTuple):
    """The resolutions of a network, full resolution first.

    Attributes:
      patch_size: height and width of what the network sees, multiples of `divisor`.
      strides: how the map of each resolution shrinks that of the one before, (1, 1) first.
      kernel_sizes: of the convolutions at each resolution.
    """

    patch_size: Pair
    strides: tuple[Pair, ...]
    kernel_sizes: tuple[Pair, ...]

    @property
    def divisor(self) -> Pair:
        """Height and width that one pixel of the lowest resolution covers."""
        return total_stride(self.strides)

    @property
    def features(self) -> list[int]:
        """Channels at each resolution: doubled each time, up to a limit."""
        return [min(_BASE_FEATURES * 2**stage, _MAX_FEATURES) for stage in range(len(self.strides))]


def total_stride(strides: Sequence[Sequence[int]]) -> Pair:
    """The product of the strides along height and width."""
    return math.prod(stride[0] for stride in strides), math.prod(stride[1] for stride in strides)


def make_topology(size: Sequence[float], spacing: Sequence[float]) -> Topology:
    """The network for images of a size.

    An axis is halved while it keeps `MIN_EDGE` pixels. Of axes with different spacing the finer goes first, until they
    are within a factor of two. An axis that is halved alone must keep half as much again. Kernels are 3 along an axis
    once its spacing is within a factor of two of the finest, 1 before.

    Args:
      size: height and width, not necessarily whole (a median of image sizes).
      spacing: distance of neighboring pixels along both.

    Returns:
      The topology; its patch is the size, rounded up to what the strides divide. With tiny images it has one
      resolution only.
    """
    sizes, spacings = list(size), list(spacing)
    kernel, strides, kernels = [1, 1], [(1, 1)], []
    while True:
        axes = [axis for axis in (0, 1) if sizes[axis] >= 2 * MIN_EDGE]
        finest = min((spacings[axis] for axis in axes), default=None)
        axes = [axis for axis in axes if spacings[axis] / finest < 2]
        if not axes or (len(axes) == 1 and sizes[axes[0]] < 3 * MIN_EDGE):
            break
        kernel = [3 if k == 3 or s / min(spacings) < 2 else 1 for k, s in zip(kernel, spacings, strict=True)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in axes else 1 for axis in (0, 1)))
        for axis in axes:
            sizes[axis], spacings[axis] = math.ceil(sizes[axis] / 2), spacings[axis] * 2
    kernels.append((3, 3))
    patch = tuple(math.ceil(s / by) * by for s, by in zip(size, total_stride(strides), strict=True))
    return Topology(patch, tuple(strides), tuple(kernels))


def shrink(current: Topology, median: Sequence[float], spacing: Sequence[float]) -> Topology:
    """The network for the next smaller patch: that axis shrinks which is longest compared to the median image.

    By as much as the strides of the *shrunk* patch ask for: those of the present one would jump over sizes (from 256
    with five halvings to 192, when 224 does with five as well).
    """
    height, width = (patch / m for patch, m in zip(current.patch_size, median, strict=True))
    axis = int(width >= height)

    def shrunk(by):
        size = list(current.patch_size)
        size[axis] -= by
        return make_topology(size, spacing)

    return shrunk(shrunk(current.divisor[axis]).divisor[axis])


def blocks_per_stage(stages: int, residual: bool) -> tuple[list[int], list[int]]:
    """Depth of the network at its resolutions.

    Args:
      stages: number of resolutions.
      residual: residual blocks in the encoder.

    Returns:
      Convolutions (or residual blocks) of the encoder per resolution; convolutions of the decoder, one number fewer.
    """
    if not residual:
        return [2] * stages, [2] * (stages - 1)
    return [*_RESIDUAL_BLOCKS, *[6] * stages][:stages], [1] * (stages - 1)


def memory_estimate(network: Topology, residual: bool, num_labels: int) -> int:
    """Memory that training with one image takes, as the number of values that the convolutions give.

    Args:
      network: the resolutions.
      residual: residual blocks in the encoder.
      num_labels: entries of the data set's `labels`; nnU-Net counts background and `ignore` here.
    """
    encoder, decoder = blocks_per_stage(len(network.strides), residual)
    height, width = network.patch_size
    total = num_labels * height * width  # the logits at full resolution
    for stage, (features, stride) in enumerate(zip(network.features, network.strides, strict=True)):
        height, width = height // stride[0], width // stride[1]
        # Residual blocks are two convolutions; one more leads around the first of each stage, or is the stem.
        convolutions = 2 * encoder[stage] + 1 if residual else encoder[stage]
        if stage < len(decoder):
            convolutions += decoder[stage] + 1  # and the transposed one
        total += convolutions * features * height * width
    return total
