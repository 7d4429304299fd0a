"""nnU-Net's networks, PlainConvUNet and ResidualEncoderUNet, in two dimensions.

Source: Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z) and 2024 (arXiv:2404.09556) in the form of the package
dynamic_network_architectures 0.4.4, which nnU-Net 2.8 builds them from and whose weights load through
`bcss_jax.models.weights.pretrained`. Arguments are named as in the `arch_kwargs` of an nnU-Net plan. Not in the plan's hands here:
2D convolutions, instance normalization (affine, eps 1e-5), LeakyReLU of slope 0.01, no dropout.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import check_counts, is_count
from bcss_jax.models.blocks import initializers, layers, norms, resampling
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of, prefixed

Pair = tuple[int, int]
PerStage = int | Sequence[int]
PairPerStage = int | Sequence[int | Sequence[int]]

SLOPE = 0.01  # of LeakyReLU


def _leaky_relu(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, SLOPE * x)  # PyTorch's gradient at zero, too, which jax.nn's is not


def _he_normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    return initializers.normal(rngs, shape, (2 / (1 + SLOPE**2) / math.prod(shape[:-1])) ** 0.5)


class ConvNorm(nnx.Module):
    """Convolution, instance normalization, and LeakyReLU unless told otherwise."""

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
        """Channels in and out, size and stride of the kernel, whether there are a bias and LeakyReLU."""
        self.conv = layers.Conv(
            inputs, outputs, size, stride=stride, use_bias=use_bias, zero_bias=True, init=_he_normal, dtype=dtype,
            rngs=rngs,
        )  # fmt: skip
        self.norm = norms.GroupNorm(outputs, outputs, activation=_leaky_relu if activated else None)

    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Maps (N, H, W, C1), ..., read as if concatenated over channels -> (N, H / stride, W / stride, outputs)."""
        return self.norm(self.conv(*maps))

    def torch_entries(self) -> TorchEntries:
        """Names as in `ConvDropoutNormReLU`, which holds each layer twice."""
        parts = {"conv": self.conv, "norm": self.norm, "all_modules.0": self.conv, "all_modules.1": self.norm}
        return entries_of(parts)


class ConvStack(nnx.Module):
    """Several `ConvNorm` with LeakyReLU in a row, the first of them with the stride."""

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
        """Arguments as of `ConvNorm`, and how many."""
        self.convs = nnx.List(
            ConvNorm(
                inputs if i == 0 else outputs, outputs, size, stride=stride if i == 0 else (1, 1), use_bias=use_bias,
                dtype=dtype, rngs=rngs,
            )
            for i in range(count)
        )  # fmt: skip

    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Shapes as of `ConvNorm`."""
        x = self.convs[0](*maps)
        for conv in self.convs[1:]:
            x = conv(x)
        return x

    def torch_entries(self) -> TorchEntries:
        """Names as in `StackedConvBlocks`."""
        return entries_of({f"convs.{i}": conv for i, conv in enumerate(self.convs)})


class ResidualBlock(nnx.Module):
    """Two `ConvNorm` and a way around them: mean over the stride's blocks, 1x1 convolution if the channels change.

    The last norm starts with the scale zero, so that the block starts as LeakyReLU of its way around.
    """

    def __init__(
        self, inputs: int, outputs: int, size: Pair, *, stride: Pair, use_bias: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        """Arguments as of `ConvNorm`."""
        self.conv1 = ConvNorm(inputs, outputs, size, stride=stride, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(outputs, outputs, size, use_bias=use_bias, activated=False, dtype=dtype, rngs=rngs)
        self.conv2.norm.scale[...] = jnp.zeros(outputs)
        skip = dict(use_bias=False, activated=False, dtype=dtype, rngs=rngs)
        self.skip = None if inputs == outputs else ConvNorm(inputs, outputs, (1, 1), **skip)
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) -> (N, H / stride, W / stride, outputs)."""
        y = self.conv2(self.conv1(x))
        if self.stride != (1, 1):
            x = resampling.avg_pool(x, self.stride)
        return _leaky_relu(y + (x if self.skip is None else self.skip(x)))

    def torch_entries(self) -> TorchEntries:
        """Names as in `BasicBlockD`, where the pooling counts as the first module of the way around."""
        entries = entries_of({"conv1": self.conv1, "conv2": self.conv2})
        if self.skip is None:
            return entries
        return entries | prefixed(f"skip.{int(self.stride != (1, 1))}", self.skip.torch_entries())


class _Stage(NamedTuple):
    """A resolution of the network: channels, kernels, and the stride that leads to it."""

    features: int
    kernel: Pair
    stride: Pair


class PlainEncoder(nnx.Module):
    """A `ConvStack` for each resolution."""

    def __init__(
        self,
        inputs: int,
        stages: Sequence[_Stage],
        counts: Sequence[int],
        *,
        use_bias: bool,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Channels of the images, the resolutions and how many convolutions each has."""
        widths = [inputs, *(stage.features for stage in stages)]
        self.stages = nnx.List(
            ConvStack(
                width, stage.features, stage.kernel, count=count, stride=stage.stride, use_bias=use_bias, dtype=dtype,
                rngs=rngs,
            )
            for width, stage, count in zip(widths, stages, counts)  # noqa: B905, the last width is nobody's input
        )  # fmt: skip

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """(N, H, W, inputs) -> the map of every resolution, full resolution first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def torch_entries(self) -> TorchEntries:
        """Names as in `PlainConvEncoder`."""
        return entries_of({f"stages.{s}.0": stage for s, stage in enumerate(self.stages)})


class ResidualEncoder(nnx.Module):
    """A convolution at full resolution (stem), then a row of `ResidualBlock` for each resolution."""

    def __init__(
        self,
        inputs: int,
        stages: Sequence[_Stage],
        counts: Sequence[int],
        *,
        use_bias: bool,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Channels of the images, the resolutions and how many blocks each has."""
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
        """(N, H, W, inputs) -> the map of every resolution, full resolution first."""
        x = self.stem(x)
        maps = []
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
            maps.append(x)
        return maps

    def torch_entries(self) -> TorchEntries:
        """Names as in the reference's `ResidualEncoder`."""
        blocks = {f"stages.{s}.blocks.{b}": block for s, row in enumerate(self.stages) for b, block in enumerate(row)}
        return entries_of({"stem": self.stem} | blocks)


class Decoder(nnx.Module):
    """Learned upsampling, concatenation before the encoder's map, a `ConvStack`, and logits, from the deepest up."""

    def __init__(
        self,
        num_classes: int,
        stages: Sequence[_Stage],
        counts: Sequence[int],
        *,
        use_bias: bool,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Channels of the logits, the encoder's resolutions, and the number of convolutions, deepest first."""
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
        """The encoder's maps, full resolution first -> the maps that the heads take, deepest first."""
        x = maps[-1]
        decoded = []
        for up, stage, skip in zip(self.transpconvs, self.stages, reversed(maps[:-1]), strict=True):
            x = stage(up(x), skip)
            decoded.append(x)
        return decoded

    def torch_entries(self) -> TorchEntries:
        """Names as in `UNetDecoder`, but for the encoder that it holds as well."""
        lists = {"stages": self.stages, "transpconvs": self.transpconvs, "seg_layers": self.seg_layers}
        return entries_of({f"{name}.{s}": part for name, parts in lists.items() for s, part in enumerate(parts)})


class _NnUNet(nnx.Module):
    """An encoder and the decoder with its heads: what both networks do with images."""

    encoder: PlainEncoder | ResidualEncoder
    decoder: Decoder
    multiple: Pair  # height and width that one pixel of the deepest maps covers

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (N, H, W, in_channels) -> float32 logits (N, H, W, num_classes).

        Raises:
          ConfigError: height or width is not a multiple of the product of the strides, or the deepest maps would have
            one pixel, which instance normalization makes zero.
        """
        return self.decoder.seg_layers[-1](self._decoded(images)[-1]).astype(jnp.float32)

    @property
    def num_scales(self) -> int:
        """How many logits `all_logits` gives."""
        return len(self.decoder.seg_layers)

    def all_logits(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Logits of every resolution but the deepest, for deep supervision.

        Args:
          images: (N, H, W, in_channels).

        Returns:
          float32 (N, H, W, num_classes), (N, H / stride, W / stride, num_classes), ...: those of `__call__` first, then
          the next lower resolution's.

        Raises:
          ConfigError: as `__call__`.
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
                f"{self.multiple[0]} and {self.multiple[1]}, and not both of them these; "
                f"the nearest that fit are {' and '.join(f'{h}x{w}' for h, w in near)}"
            )
        return self.decoder(self.encoder(images))

    def _fits(self, height, width):
        return height % self.multiple[0] == width % self.multiple[1] == 0 and (height, width) != self.multiple

    def torch_entries(self) -> TorchEntries:
        """Every name of the reference's state_dict: up to four for one variable, the one without detours first."""
        encoder = self.encoder.torch_entries()
        decoder = self.decoder.torch_entries()
        return prefixed("encoder", encoder) | prefixed("decoder", decoder) | prefixed("decoder.encoder", encoder)


class PlainConvUNet(_NnUNet):
    """nnU-Net's default network: 20,620,655 parameters for RGB and three classes, with the plan for 224x224 pixels.

    Two 3x3 convolutions at each of six resolutions on both sides, strided ones to go down. Kernels start
    kaiming_normal(a=0.01), biases at zero.
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
        """Builds the network with random weights. One value in place of a list counts for all stages.

        Args:
          num_classes: channels of the logits.
          in_channels: channels of the images.
          n_stages: resolutions, at least two.
          features_per_stage: channels at each of them, full resolution first.
          kernel_sizes: of the convolutions at each of them, odd numbers or pairs of such for height and width.
          strides: of the step down to each of them, numbers or pairs; the first is one.
          n_conv_per_stage: convolutions of the encoder at each of them.
          n_conv_per_stage_decoder: convolutions of the decoder, `n_stages - 1` numbers, lowest resolution first.
          conv_bias: whether convolutions and transposed convolutions have a bias; the heads always have one.
          dtype: type of the arithmetic. Weights, statistics and logits are float32 whatever it is.
          seed: of the initial weights.

        Raises:
          ConfigError: a value is not what it should be, or a list has the wrong length.
        """
        _check("nnunet", num_classes, in_channels, conv_bias)
        stages = _stages("nnunet", n_stages, features_per_stage, kernel_sizes, strides)
        counts = _per_stage("nnunet: n_conv_per_stage", n_conv_per_stage, n_stages)
        decoder_counts = _per_stage("nnunet: n_conv_per_stage_decoder", n_conv_per_stage_decoder, n_stages - 1)
        rest = dict(use_bias=conv_bias, dtype=dtype, rngs=nnx.Rngs(seed))
        self.encoder = PlainEncoder(in_channels, stages, counts, **rest)
        self.decoder = Decoder(num_classes, stages, decoder_counts, **rest)
        self.multiple = _total_stride(stages)


class ResidualEncoderUNet(_NnUNet):
    """nnU-Net's network with a residual encoder: 71,818,159 parameters as `PlainConvUNet`.

    Residual blocks with two 3x3 convolutions in the encoder, one convolution at each resolution of the decoder.
    Initial weights as of `PlainConvUNet`; the last norm of each block starts with the scale zero.
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
        n_blocks_per_stage: PerStage = (1, 3, 4, 6, 6, 6),
        n_conv_per_stage_decoder: PerStage = 1,
        conv_bias: bool = True,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights. Arguments and errors as of `PlainConvUNet`, but for one.

        Args:
          num_classes: channels of the logits.
          in_channels: channels of the images.
          n_stages: resolutions, at least two.
          features_per_stage: channels at each of them, full resolution first.
          kernel_sizes: of the convolutions at each of them, odd numbers or pairs of such for height and width.
          strides: of the step down to each of them, numbers or pairs; the first is one.
          n_blocks_per_stage: residual blocks of the encoder at each of them.
          n_conv_per_stage_decoder: convolutions of the decoder, `n_stages - 1` numbers, lowest resolution first.
          conv_bias: whether convolutions and transposed convolutions have a bias; the heads always have one, the 1x1
            convolutions around the blocks never.
          dtype: type of the arithmetic. Weights, statistics and logits are float32 whatever it is.
          seed: of the initial weights.

        Raises:
          ConfigError: a value is not what it should be, or a list has the wrong length.
        """
        _check("nnunet_resenc", num_classes, in_channels, conv_bias)
        stages = _stages("nnunet_resenc", n_stages, features_per_stage, kernel_sizes, strides)
        counts = _per_stage("nnunet_resenc: n_blocks_per_stage", n_blocks_per_stage, n_stages)
        decoder_counts = _per_stage("nnunet_resenc: n_conv_per_stage_decoder", n_conv_per_stage_decoder, n_stages - 1)
        rest = dict(use_bias=conv_bias, dtype=dtype, rngs=nnx.Rngs(seed))
        self.encoder = ResidualEncoder(in_channels, stages, counts, **rest)
        self.decoder = Decoder(num_classes, stages, decoder_counts, **rest)
        self.multiple = _total_stride(stages)


def _total_stride(stages):
    return math.prod(stage.stride[0] for stage in stages), math.prod(stage.stride[1] for stage in stages)


def _multiples_near(size, multiple):
    """The two multiples that enclose the size, or the smallest two."""
    lower = max(size // multiple, 1) * multiple
    return lower, lower + multiple


def _check(model, num_classes, in_channels, conv_bias):
    check_counts(model, num_classes=num_classes, in_channels=in_channels)
    if not isinstance(conv_bias, bool):
        raise ConfigError(f"{model}: conv_bias must be True or False, not {conv_bias!r}")


def _per_stage(what, value, length):
    """A list of positive integers, one for each stage."""
    values = value if isinstance(value, list | tuple) else [value] * length
    if len(values) != length or not all(map(is_count, values)):
        raise ConfigError(f"{what} must be a positive integer or {length} of them, not {value!r}")
    return list(values)


def _pair_per_stage(what, value, length):
    """A list of pairs of positive integers, one for each stage."""
    values = value if isinstance(value, list | tuple) else [value] * length
    pairs = [tuple(v) if isinstance(v, list | tuple) else (v, v) for v in values]
    if len(pairs) != length or not all(len(pair) == 2 and all(map(is_count, pair)) for pair in pairs):
        raise ConfigError(f"{what} must be a positive integer or {length} of them or of pairs of them, not {value!r}")
    return pairs


def _stages(model, n_stages, features_per_stage, kernel_sizes, strides):
    """The checked resolutions, full resolution first."""
    if not is_count(n_stages) or n_stages < 2:
        raise ConfigError(f"{model}: n_stages must be an integer of at least 2, not {n_stages!r}")
    features = _per_stage(f"{model}: features_per_stage", features_per_stage, n_stages)
    kernels = _pair_per_stage(f"{model}: kernel_sizes", kernel_sizes, n_stages)
    pairs = _pair_per_stage(f"{model}: strides", strides, n_stages)
    if any(size % 2 == 0 for kernel in kernels for size in kernel):
        raise ConfigError(f"{model}: kernel_sizes must be odd, not {kernel_sizes!r}")
    if pairs[0] != (1, 1):
        raise ConfigError(f"{model}: the first of strides must be 1, as logits have the images' size; not {strides!r}")
    return [_Stage(*stage) for stage in zip(features, kernels, pairs, strict=True)]
