"""Dense U-Net: a U-Net of dense blocks.

After Cai et al. 2020 ("Dense-UNet: a novel multiphoton in vivo cellular image segmentation model based on a
convolutional neural network", Quantitative Imaging in Medicine and Surgery 10(6):1275). Known of it is its abstract:
U-shaped, dense concatenation to reuse features, four modules of four layers each on the way down, a symmetric path up.
No code of the authors was found. What else a network needs is this project's choice, after DenseNet (Huang et al.
2016) wherever that has an answer:

- A 3x3 convolution without norm to `init_width` channels comes first, as in DenseNet for small images.
- A dense layer is BatchNorm, ReLU, 3x3 convolution to `growth` channels, without the 1x1 convolution of DenseNet-BC;
  its norm is over all maps before it.
- A module on the way down is a dense block, all of whose maps are the skip, and then a transition: BatchNorm, ReLU, 1x1
  convolution to the part `compression` of the channels, mean over 2x2 pixels.
- At the bottom there is one more dense block.
- A module on the way up is a 2x2 transposed convolution to half of the channels, concatenation of it and the skip, a
  dense block, and a transition without the mean.
- BatchNorm, ReLU and a 1x1 convolution give the logits. No other convolution has a bias, because a norm always follows
  that would take it out. There is no dropout.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import check_counts, check_counts_in, check_share
from bcss_jax.models.blocks import initializers, norms, resampling
from bcss_jax.models.blocks.dense_block import DenseBlock
from bcss_jax.models.blocks.layers import Conv, ConvTranspose
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of


class NormConv(nnx.Module):
    """BatchNorm, ReLU and a convolution without bias; takes several maps, read as if concatenated over channels."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, *, dtype: Dtype, rngs: nnx.Rngs):
        """Channels in (all maps together) and out, size of the kernel."""
        self.norm = norms.BatchNorm(inputs, relu=True)
        self.conv = Conv(
            inputs, outputs, size, use_bias=False, init=initializers.kaiming_normal, dtype=dtype, rngs=rngs
        )

    def __call__(self, *maps: norms.MapWithStatistics) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ... -> (N, H, W, outputs)."""
        return self.conv(self.norm(*maps))

    def torch_entries(self) -> TorchEntries:
        """Names `norm` and `conv`."""
        return entries_of({"norm": self.norm, "conv": self.conv})


class DenseUNet(nnx.Module):
    """Dense U-Net: for RGB and three classes 1,061,891 parameters with growth 16, 3,771,743 with 32,
    8,151,432 with 48 and 14,198,217 with 64.

    Convolutions start normal with variance 2 / fan_in as in DenseNet; the transposed ones and the last one as
    PyTorch's default leaves them, uniform in +-1/sqrt(fan_in).
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
          layers: of the dense blocks on the way down, from full resolution on; the way up has the same, reversed.
            Images need at least 2**len(layers) pixels a side.
          bottleneck_layers: of the dense block at the bottom.
          init_width: channels of the first convolution.
          compression: part of the channels that a transition leaves, rounded down.
          in_channels: channels of the images.
          dtype: type of the arithmetic. Weights, batch statistics and logits are float32 whatever it is.
          seed: of the initial weights.

        Raises:
          ConfigError: a number is not positive, or the compression above 1.
        """
        check_counts(
            "dense_unet",
            num_classes=num_classes,
            growth=growth,
            bottleneck_layers=bottleneck_layers,
            init_width=init_width,
            in_channels=in_channels,
        )
        check_counts_in("dense_unet", None, layers=layers)
        check_share("dense_unet", zero=False, one=True, compression=compression)

        common = dict(dtype=dtype, rngs=nnx.Rngs(seed))
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
          ConfigError: the images are smaller than that, so that nothing is left at the bottom.
        """
        least = 2**self.depth
        if min(images.shape[1:3]) < least:
            raise ConfigError(
                f"dense_unet: {images.shape[1]}x{images.shape[2]} pixels are too few for {self.depth} modules; "
                f"take images of at least {least} pixels a side or fewer layers"
            )
        x = self.stem(images.astype(self.dtype))
        skips = []
        for level in range(1, self.depth + 1):
            maps = getattr(self, f"down{level}")(norms.with_statistics(x))
            skips.append(maps)
            transition = getattr(self, f"down{level}_transition")
            # The mean before the convolution, not after it: the result is the same, and the work a quarter.
            x = transition.conv(resampling.avg_pool(transition.norm(*maps), (2, 2)))
        x = jnp.concatenate([m.values for m in self.bottleneck(norms.with_statistics(x))], axis=-1)
        for step in range(1, self.depth + 1):
            skip = skips.pop()
            x = resampling.pad_to(getattr(self, f"upsample{step}")(x), skip[0].values.shape)
            maps = getattr(self, f"up{step}")(norms.with_statistics(x), *skip)
            x = getattr(self, f"up{step}_transition")(*maps)
        return self.head(self.norm(x)).astype(jnp.float32)

    def torch_entries(self) -> TorchEntries:
        """Names as in `benchmarks/torch_dense_unet.py`; there is no reference that others share."""
        parts = {"stem": self.stem}
        for level in range(1, self.depth + 1):
            parts[f"down{level}.block"] = getattr(self, f"down{level}")
            parts[f"down{level}.transition"] = getattr(self, f"down{level}_transition")
        parts["bottleneck"] = self.bottleneck
        for step in range(1, self.depth + 1):
            parts[f"up{step}.upsample"] = getattr(self, f"upsample{step}")
            parts[f"up{step}.block"] = getattr(self, f"up{step}")
            parts[f"up{step}.transition"] = getattr(self, f"up{step}_transition")
        parts |= {"norm": self.norm, "head": self.head}
        return entries_of(parts)
