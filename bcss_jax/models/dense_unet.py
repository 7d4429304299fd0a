"""Dense U-Net: a U-Net of dense blocks.

Follows Cai et al. 2020 ("Dense-UNet: a novel multiphoton in vivo cellular image segmentation model based on a
convolutional neural network", Quantitative Imaging in Medicine and Surgery 10(6):1275). Only its abstract was
available: a U-shaped network, dense concatenation to reuse features, four modules of four layers each in the encoder,
and a symmetric decoder. No code by the authors was found. This project chose the remaining details, following DenseNet
(Huang et al. 2016) wherever DenseNet defines them:

- The first layer is a 3x3 convolution without a norm to `init_width` channels, as in DenseNet for small images.
- A dense layer is BatchNorm, ReLU and a 3x3 convolution to `growth` channels, without the 1x1 convolution of
  DenseNet-BC. Its norm covers all maps before it.
- An encoder module is a dense block followed by a transition: BatchNorm, ReLU, a 1x1 convolution that keeps the
  fraction `compression` of the channels, and a mean over 2x2 pixels. All maps of the dense block form the skip.
- The bottleneck is one more dense block.
- A decoder module is a 2x2 transposed convolution to half of the channels, concatenation of its result and the skip, a
  dense block, and a transition without the mean.
- BatchNorm, ReLU and a 1x1 convolution give the logits. No other convolution has a bias, because the norm that follows
  would remove it. There is no dropout.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.arguments import MOST_LAYERS, check_counts, check_counts_in, check_fraction, check_image_size
from bcss_jax.models.blocks import initializers, norms, resampling
from bcss_jax.models.blocks.dense_block import DenseBlock
from bcss_jax.models.blocks.layers import Conv, ConvTranspose
from bcss_jax.models.weights.torch_layout import HasTorchEntries, TorchEntries, entries_of


class NormConv(nnx.Module):
    """BatchNorm, ReLU and a convolution without a bias.

    It takes several maps, which count as concatenated over channels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        *,
        init: initializers.Initializer = initializers.kaiming_normal,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
          inputs: channels of the input, all maps together.
          outputs: channels of the result.
          size: height and width of the kernel.
          init: initializer of the kernel.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.norm = norms.BatchNorm(inputs, relu=True)
        self.conv = Conv(inputs, outputs, size, use_bias=False, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, *maps: norms.MapWithStatistics) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ... -> (N, H, W, outputs)."""
        return self.conv(self.norm(*maps))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names `norm` and `conv`."""
        return entries_of({"norm": self.norm, "conv": self.conv})


class DenseUNet(nnx.Module):
    """Dense U-Net with 3,771,743 parameters for RGB and three classes.

    That is with growth 32; it has 1,061,891 parameters with growth 16, 8,151,432 with 48 and 14,198,217 with 64.

    Convolutions are initialized from a normal distribution with variance 2 / fan_in, as in DenseNet. The transposed
    convolutions and the last convolution use PyTorch's default, uniform in +-1/sqrt(fan_in).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        growth: int = 32,
        layers: tuple[int, ...] = (4, 4, 4, 4),
        bottleneck_layers: int = 4,
        init_width: int = 64,
        compression: float = 0.5,
        in_channels: int = 3,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          num_classes: channels of the logits.
          growth: channels that each dense layer adds.
          layers: number of layers of each dense block of the encoder, starting at full resolution; the decoder has the
            same numbers in reverse order. Images need at least 2**len(layers) pixels on each side.
          bottleneck_layers: number of layers of the dense block at the bottom.
          init_width: channels of the first convolution.
          compression: fraction of the channels that a transition keeps, rounded down.
          in_channels: channels of the images.
          dtype: type of the computation. Weights, batch statistics and logits are always float32.
          seed: of the initial weights.

        Raises:
          ConfigError: a number is not positive, or the compression is above 1.
        """
        check_counts(
            "dense_unet",
            num_classes=num_classes,
            growth=growth,
            init_width=init_width,
            in_channels=in_channels,
        )
        check_counts("dense_unet", most=MOST_LAYERS, bottleneck_layers=bottleneck_layers)
        check_counts_in("dense_unet", None, most=MOST_LAYERS, layers=layers)
        check_fraction("dense_unet", allow_zero=False, allow_one=True, compression=compression)

        common: dict[str, Any] = dict(dtype=dtype, rngs=nnx.Rngs(seed))
        self.depth, self.dtype = len(layers), dtype
        self.stem = Conv(in_channels, init_width, 3, use_bias=False, init=initializers.kaiming_normal, **common)
        inputs, skips = init_width, []
        for level, count in enumerate(layers, 1):
            block = DenseBlock(inputs, growth, count, NormConv, joined=False, **common)
            skips.append(block.outputs)
            inputs = max(1, int(compression * block.outputs))
            setattr(self, f"down{level}", block)
            setattr(self, f"down{level}_transition", NormConv(block.outputs, inputs, 1, **common))
        self.bottleneck = DenseBlock(inputs, growth, bottleneck_layers, NormConv, joined=False, **common)
        inputs = self.bottleneck.outputs
        for step, count in enumerate(reversed(layers), 1):
            upsampled = max(1, inputs // 2)
            setattr(self, f"upsample{step}", ConvTranspose(inputs, upsampled, use_bias=False, **common))
            block = DenseBlock(upsampled + skips.pop(), growth, count, NormConv, joined=False, **common)
            inputs = max(1, int(compression * block.outputs))
            setattr(self, f"up{step}", block)
            setattr(self, f"up{step}_transition", NormConv(block.outputs, inputs, 1, **common))
        self.norm = norms.BatchNorm(inputs, relu=True)
        self.head = Conv(inputs, num_classes, 1, use_bias=True, **common)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (N, H, W, in_channels) -> float32 logits (N, H, W, num_classes); any H and W >= 2**len(layers).

        Raises:
          ConfigError: the images are smaller, so that no pixel would remain in the bottleneck.
        """
        check_image_size("dense_unet", images, 2**self.depth, f"{self.depth} modules", " or fewer layers")
        x = self.stem(images.astype(self.dtype))
        skips = []
        for level in range(1, self.depth + 1):
            maps = getattr(self, f"down{level}")(norms.with_batch_statistics(x))
            skips.append(maps)
            transition = getattr(self, f"down{level}_transition")
            # Taking the mean before the convolution gives the same result with a quarter of the work.
            x = transition.conv(resampling.avg_pool(transition.norm(*maps), (2, 2)))
        x = jnp.concatenate([m.values for m in self.bottleneck(norms.with_batch_statistics(x))], axis=-1)
        for step in range(1, self.depth + 1):
            skip = skips.pop()
            x = resampling.pad_to(getattr(self, f"upsample{step}")(x), skip[0].values.shape)
            maps = getattr(self, f"up{step}")(norms.with_batch_statistics(x), *skip)
            x = getattr(self, f"up{step}_transition")(*maps)
        return self.head(self.norm(x)).astype(jnp.float32)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `benchmarks/torch_dense_unet.py`; there is no public reference."""
        modules: dict[str, HasTorchEntries] = {"stem": self.stem}
        for level in range(1, self.depth + 1):
            modules[f"down{level}.block"] = getattr(self, f"down{level}")
            modules[f"down{level}.transition"] = getattr(self, f"down{level}_transition")
        modules["bottleneck"] = self.bottleneck
        for step in range(1, self.depth + 1):
            modules[f"up{step}.upsample"] = getattr(self, f"upsample{step}")
            modules[f"up{step}.block"] = getattr(self, f"up{step}")
            modules[f"up{step}.transition"] = getattr(self, f"up{step}_transition")
        modules |= {"norm": self.norm, "head": self.head}
        return entries_of(modules)
