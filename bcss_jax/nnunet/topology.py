"""The resolutions of a U-Net and the memory that training needs.

Source of the rules and the numbers: nnU-Net 2.8.1 (`get_pool_and_conv_props` and `compute_conv_feature_map_size` of
dynamic_network_architectures 0.4.4).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

Pair = tuple[int, int]

MIN_EDGE = 4  # smallest number of pixels along an axis at the lowest resolution
_BASE_FEATURES, _MAX_FEATURES = 32, 512
_RESIDUAL_BLOCKS = (1, 3, 4)  # at the first resolutions; 6 at each further one


class Topology(NamedTuple):
    """The resolutions of a network, full resolution first.

    Attributes:
      patch_size: height and width of the network's input, multiples of `divisor`.
      strides: stride of the step to each resolution from the one before; the first is (1, 1).
      kernel_sizes: sizes of the kernels at each resolution.
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
        """Channels at each resolution; they double at each step, up to a limit."""
        return [min(_BASE_FEATURES * 2**stage, _MAX_FEATURES) for stage in range(len(self.strides))]


def total_stride(strides: Sequence[Sequence[int]]) -> Pair:
    """Returns the product of the strides along height and width."""
    return math.prod(stride[0] for stride in strides), math.prod(stride[1] for stride in strides)


def make_topology(size: Sequence[float], spacing: Sequence[float]) -> Topology:
    """Returns the topology of a network for images of a given size.

    An axis is halved as long as `MIN_EDGE` pixels remain. If the axes have different spacings, the finer one is halved
    first, until the spacings are within a factor of two. An axis that is halved alone must keep 1.5 times `MIN_EDGE`
    pixels. The kernel size along an axis is 3 once its spacing is within a factor of two of the finest, and 1 before.

    Args:
      size: height and width, not necessarily integers (a median of image sizes).
      spacing: distance of neighboring pixels along height and width.

    Returns:
      The topology. Its patch size is `size`, rounded up to multiples of the strides. For tiny images it has only one
      resolution.
    """
    sizes, spacings = list(size), list(spacing)
    kernel, strides, kernels = [1, 1], [(1, 1)], []
    while True:
        axes = [axis for axis in (0, 1) if sizes[axis] >= 2 * MIN_EDGE]
        finest = min((spacings[axis] for axis in axes), default=1.0)
        axes = [axis for axis in axes if spacings[axis] / finest < 2]
        if not axes or (len(axes) == 1 and sizes[axes[0]] < 3 * MIN_EDGE):
            break
        kernel = [3 if k == 3 or s / min(spacings) < 2 else 1 for k, s in zip(kernel, spacings, strict=True)]
        kernels.append((kernel[0], kernel[1]))
        strides.append((2 if 0 in axes else 1, 2 if 1 in axes else 1))
        for axis in axes:
            sizes[axis], spacings[axis] = math.ceil(sizes[axis] / 2), spacings[axis] * 2
    kernels.append((3, 3))
    height, width = (math.ceil(s / by) * by for s, by in zip(size, total_stride(strides), strict=True))
    return Topology((height, width), tuple(strides), tuple(kernels))


def shrink(current: Topology, median: Sequence[float], spacing: Sequence[float]) -> Topology:
    """Returns the topology for the next smaller patch.

    The axis that is longest relative to the median image shrinks. It shrinks by the divisor of the *shrunk* patch,
    because the divisor of the current patch would skip sizes (from 256 with five halvings to 192, although 224 has five
    as well).
    """
    height, width = (patch / m for patch, m in zip(current.patch_size, median, strict=True))
    axis = int(width >= height)

    def shrunk(by):
        size = list(current.patch_size)
        size[axis] -= by
        return make_topology(size, spacing)

    return shrunk(shrunk(current.divisor[axis]).divisor[axis])


def blocks_per_stage(stages: int, residual: bool) -> tuple[list[int], list[int]]:
    """Returns the depth of the network at its resolutions.

    Args:
      stages: number of resolutions.
      residual: whether the encoder has residual blocks.

    Returns:
      Numbers of convolutions (or residual blocks) of the encoder at each resolution, and numbers of convolutions of the
      decoder, which has one resolution fewer.
    """
    if not residual:
        return [2] * stages, [2] * (stages - 1)
    return [*_RESIDUAL_BLOCKS, *[6] * stages][:stages], [1] * (stages - 1)


def memory_estimate(network: Topology, residual: bool, num_labels: int) -> int:
    """Returns the memory that training with one image needs, as the number of values that the convolutions produce.

    Args:
      network: the topology.
      residual: whether the encoder has residual blocks.
      num_labels: number of entries of the data set's `labels`; nnU-Net counts background and `ignore` here.
    """
    encoder, decoder = blocks_per_stage(len(network.strides), residual)
    height, width = network.patch_size
    total = num_labels * height * width  # the logits at full resolution
    for stage, (features, stride) in enumerate(zip(network.features, network.strides, strict=True)):
        height, width = height // stride[0], width // stride[1]
        # A residual block has two convolutions. The shortcut of a stage's first block, or the stem, is one more.
        convolutions = 2 * encoder[stage] + 1 if residual else encoder[stage]
        if stage < len(decoder):
            convolutions += decoder[stage] + 1  # one more for the transposed convolution
        total += convolutions * features * height * width
    return total
