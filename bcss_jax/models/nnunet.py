"""nnU-Net's networks, PlainConvUNet and ResidualEncoderUNet, in two dimensions.

Source: Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z) and 2024 (arXiv:2404.09556) in the form of the package
dynamic_network_architectures 0.4.4, from which nnU-Net 2.8 builds them and whose weights load through
`bcss_jax.models.weights.pretrained`. Arguments have the names of the `arch_kwargs` of an nnU-Net plan. The following is
fixed here, whatever the plan says: 2D convolutions, instance normalization (affine, eps 1e-5), LeakyReLU with slope
0.01, no dropout.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.common.ranges import Range
from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import MOST_LEVELS, check_counts, is_count
from bcss_jax.models.blocks import initializers, layers, norms, resampling
from bcss_jax.models.weights.torch_layout import HasTorchEntries, TorchEntries, entries_of, prefixed

Pair = tuple[int, int]
PerStage = int | Sequence[int]
PairPerStage = int | Sequence[int | Sequence[int]]

SLOPE = 0.01  # of LeakyReLU for negative values


def _he_normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    return initializers.normal(rngs, shape, (2 / (1 + SLOPE**2) / math.prod(shape[:-1])) ** 0.5)


class ConvNorm(nnx.Module):
    """Convolution, instance normalization, and LeakyReLU unless `activated` is False."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Pair,
        *,
        stride: Pair = (1, 1),
        use_bias: bool,
        activated: bool = True,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
          inputs: channels of the input, all maps together.
          outputs: channels of the result.
          size: height and width of the kernel.
          stride: of the kernel, along height and width.
          use_bias: whether the convolution has a bias.
          activated: whether LeakyReLU follows.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.conv = layers.Conv(
            inputs, outputs, size, stride=stride, use_bias=use_bias, zero_bias=True, init=_he_normal, dtype=dtype,
            rngs=rngs,
        )  # fmt: skip
        self.norm = norms.GroupNorm(outputs, outputs, negative_slope=SLOPE if activated else 1.0)

    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ... -> (N, H / stride, W / stride, outputs).

        Several maps count as concatenated over channels.
        """
        return self.norm(self.conv(*maps))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `ConvDropoutNormReLU`, which holds each layer twice."""
        modules = {"conv": self.conv, "norm": self.norm, "all_modules.0": self.conv, "all_modules.1": self.norm}
        return entries_of(modules)


class ConvStack(nnx.Module):
    """A sequence of `ConvNorm` layers with LeakyReLU. Only the first one has the stride."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Pair,
        *,
        count: int,
        stride: Pair = (1, 1),
        use_bias: bool,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds `count` layers; see `ConvNorm` for the other arguments."""
        self.convs = nnx.List(
            ConvNorm(
                inputs if i == 0 else outputs, outputs, size, stride=stride if i == 0 else (1, 1), use_bias=use_bias,
                dtype=dtype, rngs=rngs,
            )
            for i in range(count)
        )  # fmt: skip

    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Runs the layers; for the shapes see `ConvNorm`."""
        x = self.convs[0](*maps)
        for conv in self.convs[1:]:
            x = conv(x)
        return x

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `StackedConvBlocks`."""
        return entries_of({f"convs.{i}": conv for i, conv in enumerate(self.convs)})


class ResidualBlock(nnx.Module):
    """Two `ConvNorm` layers and a shortcut around them.

    The shortcut takes the mean over blocks of the stride's size and applies a 1x1 convolution if the channels change.
    The scale of the last norm is initialized with zeros, so that the block initially computes LeakyReLU of its
    shortcut.
    """

    def __init__(
        self, inputs: int, outputs: int, size: Pair, *, stride: Pair, use_bias: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        """Builds the block; see `ConvNorm` for the arguments."""
        self.conv1 = ConvNorm(inputs, outputs, size, stride=stride, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(outputs, outputs, size, use_bias=use_bias, activated=False, dtype=dtype, rngs=rngs)
        self.conv2.norm.scale[...] = jnp.zeros(outputs)
        skip: dict[str, Any] = dict(use_bias=False, activated=False, dtype=dtype, rngs=rngs)
        self.skip = None if inputs == outputs else ConvNorm(inputs, outputs, (1, 1), **skip)
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) -> (N, H / stride, W / stride, outputs)."""
        y = self.conv2(self.conv1(x))
        if self.stride != (1, 1):
            x = resampling.avg_pool(x, self.stride)
        return norms.leaky_relu(y + (x if self.skip is None else self.skip(x)), SLOPE)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `BasicBlockD`, whose shortcut has the pooling as its first module."""
        entries = entries_of({"conv1": self.conv1, "conv2": self.conv2})
        if self.skip is None:
            return entries
        return entries | prefixed(f"skip.{int(self.stride != (1, 1))}", self.skip.torch_entries())


class _Stage(NamedTuple):
    """One resolution of the network.

    Attributes:
      features: channels.
      kernel: height and width of the kernels.
      stride: of the step from the resolution above, along height and width.
    """

    features: int
    kernel: Pair
    stride: Pair


Stages = Sequence[_Stage]


class PlainEncoder(nnx.Module):
    """An encoder with one `ConvStack` for each resolution."""

    def __init__(
        self, inputs: int, stages: Stages, counts: Sequence[int], *, use_bias: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        """Builds the encoder.

        Args:
          inputs: channels of the images.
          stages: the resolutions, full resolution first.
          counts: number of convolutions at each resolution.
          use_bias: whether the convolutions have a bias.
          dtype: type of the computation.
          rngs: random keys.
        """
        widths = [inputs, *(stage.features for stage in stages)]
        self.stages = nnx.List(
            ConvStack(
                width, stage.features, stage.kernel, count=count, stride=stage.stride, use_bias=use_bias, dtype=dtype,
                rngs=rngs,
            )
            for width, stage, count in zip(widths, stages, counts)  # noqa: B905, the last width is not an input
        )  # fmt: skip

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """(N, H, W, inputs) -> the maps of all resolutions, full resolution first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `PlainConvEncoder`."""
        return entries_of({f"stages.{s}.0": stage for s, stage in enumerate(self.stages)})


class ResidualEncoder(nnx.Module):
    """An encoder with a convolution at full resolution (stem), then `ResidualBlock`s for each resolution."""

    def __init__(
        self, inputs: int, stages: Stages, counts: Sequence[int], *, use_bias: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        """Builds the encoder; `counts` are numbers of residual blocks. See `PlainEncoder` for the other arguments."""
        width = stages[0].features
        self.stem = ConvStack(inputs, width, stages[0].kernel, count=1, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.stages = nnx.List()
        for stage, count in zip(stages, counts, strict=True):
            blocks = nnx.List()
            for i in range(count):
                block = ResidualBlock(
                    width, stage.features, stage.kernel, stride=stage.stride if i == 0 else (1, 1), use_bias=use_bias,
                    dtype=dtype, rngs=rngs,
                )  # fmt: skip
                blocks.append(block)
                width = stage.features
            self.stages.append(blocks)

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """(N, H, W, inputs) -> the maps of all resolutions, full resolution first."""
        x = self.stem(x)
        maps = []
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
            maps.append(x)
        return maps

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the reference's `ResidualEncoder`."""
        blocks = {f"stages.{s}.blocks.{b}": block for s, row in enumerate(self.stages) for b, block in enumerate(row)}
        return entries_of({"stem": self.stem} | blocks)


class Decoder(nnx.Module):
    """Decoder: upsampling, concatenation with the skip, convolutions and logits at each resolution, deepest first.

    Upsampling is a transposed convolution; its result is concatenated before the skip. The convolutions are a
    `ConvStack`.
    """

    def __init__(
        self, num_classes: int, stages: Stages, counts: Sequence[int], *, use_bias: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        """Builds the decoder.

        Args:
          num_classes: channels of the logits.
          stages: the resolutions of the encoder, full resolution first.
          counts: number of convolutions at each resolution, deepest first.
          use_bias: whether the convolutions have a bias.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.transpconvs, self.stages, self.seg_layers = nnx.List(), nnx.List(), nnx.List()
        for (below, stage), count in zip(itertools.pairwise(reversed(stages)), counts, strict=True):
            width = stage.features
            up = layers.ConvTranspose(
                below.features, width, below.stride, use_bias=use_bias, zero_bias=True, init=_he_normal, dtype=dtype,
                rngs=rngs,
            )  # fmt: skip
            stack = ConvStack(2 * width, width, stage.kernel, count=count, use_bias=use_bias, dtype=dtype, rngs=rngs)
            head = layers.Conv(
                width, num_classes, 1, use_bias=True, zero_bias=True, init=_he_normal, dtype=dtype, rngs=rngs
            )
            self.transpconvs.append(up)
            self.stages.append(stack)
            self.seg_layers.append(head)

    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        """The maps of the encoder, full resolution first -> the inputs of the segmentation heads, deepest first."""
        x = maps[-1]
        decoded = []
        for up, stage, skip in zip(self.transpconvs, self.stages, reversed(maps[:-1]), strict=True):
            x = stage(up(x), skip)
            decoded.append(x)
        return decoded

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `UNetDecoder`, without those of the encoder that it holds as well."""
        lists: dict[str, Iterable[HasTorchEntries]] = {
            "stages": self.stages,
            "transpconvs": self.transpconvs,
            "seg_layers": self.seg_layers,
        }
        return entries_of({f"{name}.{s}": layer for name, row in lists.items() for s, layer in enumerate(row)})


class _NnUNet(nnx.Module):
    """The base class of both networks: an encoder, a decoder with segmentation heads, and deep supervision."""

    encoder: PlainEncoder | ResidualEncoder
    decoder: Decoder
    multiple: Pair  # height and width that one pixel of the deepest maps covers

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (N, H, W, in_channels) -> float32 logits (N, H, W, num_classes).

        Raises:
          ConfigError: height or width is not a multiple of the product of the strides, or the deepest maps would have
            a single pixel, which instance normalization would set to zero.
        """
        return self.decoder.seg_layers[-1](self._decoded(images)[-1]).astype(jnp.float32)

    @property
    def num_scales(self) -> int:
        """Number of resolutions for which `all_logits` returns logits."""
        return len(self.decoder.seg_layers)

    def all_logits(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Returns the logits of all resolutions except the deepest, for deep supervision.

        Args:
          images: (N, H, W, in_channels).

        Returns:
          float32 (N, H, W, num_classes), (N, H / stride, W / stride, num_classes), ...: the logits of `__call__` first,
          then those of lower and lower resolutions.

        Raises:
          ConfigError: see `__call__`.
        """
        heads, maps = self.decoder.seg_layers, self._decoded(images)
        return tuple(head(x).astype(jnp.float32) for head, x in zip(reversed(heads), reversed(maps), strict=True))

    def _decoded(self, images):
        height, width = images.shape[1:3]
        if not self._fits(height, width):
            options = itertools.product(*map(_multiples_near, (height, width), self.multiple))
            fitting = [size for size in options if self._fits(*size)]
            near = sorted(fitting, key=lambda size: abs(size[0] - height) + abs(size[1] - width))[:2]
            raise ConfigError(
                f"nnunet: images of {height}x{width} pixels do not fit; height and width must be multiples of "
                f"{self.multiple[0]} and {self.multiple[1]}, and larger than {self.multiple[0]}x{self.multiple[1]}; "
                f"the nearest sizes that fit are {' and '.join(f'{h}x{w}' for h, w in near)}"
            )
        return self.decoder(self.encoder(images))

    def _fits(self, height, width):
        return height % self.multiple[0] == width % self.multiple[1] == 0 and (height, width) != self.multiple

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under all names of the reference's state_dict.

        A variable has up to four names there; the most direct one comes first.
        """
        encoder = self.encoder.torch_entries()
        decoder = self.decoder.torch_entries()
        return prefixed("encoder", encoder) | prefixed("decoder", decoder) | prefixed("decoder.encoder", encoder)


class PlainConvUNet(_NnUNet):
    """nnU-Net's default network: 20,620,655 parameters for RGB and three classes, with the plan for 224x224 pixels.

    It has two 3x3 convolutions at each of six resolutions in the encoder and in the decoder, and strided convolutions
    to go down. Kernels are initialized with kaiming_normal(a=0.01), biases with zeros.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        n_stages: int = 6,
        features_per_stage: PerStage = (32, 64, 128, 256, 512, 512),
        kernel_sizes: PairPerStage = 3,
        strides: PairPerStage = (1, 2, 2, 2, 2, 2),
        n_conv_per_stage: PerStage = 2,
        n_conv_per_stage_decoder: PerStage = 2,
        conv_bias: bool = True,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights. One value in place of a list applies to all stages.

        Args:
          num_classes: channels of the logits.
          in_channels: channels of the images.
          n_stages: number of resolutions, at least two.
          features_per_stage: channels at each resolution, full resolution first.
          kernel_sizes: sizes of the kernels at each resolution: odd numbers, or pairs of them for height and width.
          strides: strides of the step down to each resolution: numbers or pairs; the first is one.
          n_conv_per_stage: number of convolutions of the encoder at each resolution.
          n_conv_per_stage_decoder: number of convolutions of the decoder: `n_stages - 1` numbers, lowest resolution
            first.
          conv_bias: whether convolutions and transposed convolutions have a bias; the heads always have one.
          dtype: type of the computation. Weights, statistics and logits are always float32.
          seed: of the initial weights.

        Raises:
          ConfigError: a value is invalid, or a list has the wrong length.
        """
        _check("nnunet", num_classes, in_channels, conv_bias)
        stages = _stages("nnunet", n_stages, features_per_stage, kernel_sizes, strides)
        convs = _per_stage("nnunet: n_conv_per_stage", n_conv_per_stage, n_stages)
        decoder_convs = _per_stage("nnunet: n_conv_per_stage_decoder", n_conv_per_stage_decoder, n_stages - 1)
        common: dict[str, Any] = dict(use_bias=conv_bias, dtype=dtype, rngs=nnx.Rngs(seed))
        self.encoder = PlainEncoder(in_channels, stages, convs, **common)
        self.decoder = Decoder(num_classes, stages, decoder_convs, **common)
        self.multiple = _total_stride(stages)


class ResidualEncoderUNet(_NnUNet):
    """nnU-Net's network with a residual encoder: 71,818,159 parameters in the setting of `PlainConvUNet`.

    The encoder has residual blocks with two 3x3 convolutions, the decoder one convolution at each resolution. Initial
    weights are as for `PlainConvUNet`; the scale of the last norm of each block is initialized with zeros.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        n_blocks_per_stage: PerStage = (1, 3, 4, 6, 6, 6),
        n_conv_per_stage_decoder: PerStage = 1,
        in_channels: int = 3,
        n_stages: int = 6,
        features_per_stage: PerStage = (32, 64, 128, 256, 512, 512),
        kernel_sizes: PairPerStage = 3,
        strides: PairPerStage = (1, 2, 2, 2, 2, 2),
        conv_bias: bool = True,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights. Errors and arguments not listed here are those of `PlainConvUNet`.

        Args:
          num_classes: channels of the logits.
          n_blocks_per_stage: number of residual blocks of the encoder at each resolution.
          n_conv_per_stage_decoder: see `PlainConvUNet`.
          in_channels: see `PlainConvUNet`.
          n_stages: see `PlainConvUNet`.
          features_per_stage: see `PlainConvUNet`.
          kernel_sizes: see `PlainConvUNet`.
          strides: see `PlainConvUNet`.
          conv_bias: see `PlainConvUNet`. The 1x1 convolutions of the shortcuts never have a bias.
          dtype: see `PlainConvUNet`.
          seed: see `PlainConvUNet`.

        Raises:
          ConfigError: a value is invalid, or a list has the wrong length.
        """
        name = "nnunet_resenc"
        _check(name, num_classes, in_channels, conv_bias)
        stages = _stages(name, n_stages, features_per_stage, kernel_sizes, strides)
        blocks = _per_stage(f"{name}: n_blocks_per_stage", n_blocks_per_stage, n_stages)
        convs = _per_stage(f"{name}: n_conv_per_stage_decoder", n_conv_per_stage_decoder, n_stages - 1)
        common: dict[str, Any] = dict(use_bias=conv_bias, dtype=dtype, rngs=nnx.Rngs(seed))
        self.encoder = ResidualEncoder(in_channels, stages, blocks, **common)
        self.decoder = Decoder(num_classes, stages, convs, **common)
        self.multiple = _total_stride(stages)


def _total_stride(stages: Sequence[_Stage]) -> Pair:
    return math.prod(stage.stride[0] for stage in stages), math.prod(stage.stride[1] for stage in stages)


def _multiples_near(size: int, multiple: int) -> Pair:
    """Returns the two multiples that enclose the size, or the smallest two."""
    lower = max(size // multiple, 1) * multiple
    return lower, lower + multiple


def _check(model: str, num_classes: Any, in_channels: Any, conv_bias: Any) -> None:
    check_counts(model, num_classes=num_classes, in_channels=in_channels)
    if not isinstance(conv_bias, bool):
        raise ConfigError(f"{model}: conv_bias must be True or False, not {conv_bias!r}")


def _per_stage(what: str, value: Any, length: int) -> list[int]:
    """Returns a list of positive integers, one for each stage."""
    values = value if isinstance(value, list | tuple) else [value] * length
    if len(values) != length or not all(map(is_count, values)):
        raise ConfigError(f"{what} must be a positive integer or {length} of them, not {value!r}")
    return list(values)


def _pair_per_stage(what: str, value: Any, length: int) -> list[Pair]:
    """Returns a list of pairs of positive integers, one for each stage."""
    values = value if isinstance(value, list | tuple) else [value] * length
    pairs: list[Any] = [tuple(v) if isinstance(v, list | tuple) else (v, v) for v in values]
    if len(pairs) != length or not all(len(pair) == 2 and all(map(is_count, pair)) for pair in pairs):
        raise ConfigError(f"{what} must be a positive integer, or {length} of them or of pairs of them, not {value!r}")
    return pairs


def _stages(model: str, n_stages: Any, features_per_stage: Any, kernel_sizes: Any, strides: Any) -> list[_Stage]:
    """Returns the resolutions, full resolution first, or raises ConfigError."""
    if n_stages not in Range(2, MOST_LEVELS, whole=True):
        raise ConfigError(
            f"{model}: n_stages must be an integer of at least 2 and at most {MOST_LEVELS}, not {str(n_stages)[:40]}"
        )
    features = _per_stage(f"{model}: features_per_stage", features_per_stage, n_stages)
    kernels = _pair_per_stage(f"{model}: kernel_sizes", kernel_sizes, n_stages)
    pairs = _pair_per_stage(f"{model}: strides", strides, n_stages)
    if any(size % 2 == 0 for kernel in kernels for size in kernel):
        raise ConfigError(f"{model}: kernel_sizes must be odd, not {kernel_sizes!r}")
    if pairs[0] != (1, 1):
        raise ConfigError(
            f"{model}: the first of strides must be 1, since logits have the images' size; not {strides!r}"
        )
    return [_Stage(*stage) for stage in zip(features, kernels, pairs, strict=True)]
