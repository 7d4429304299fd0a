"""U-Net with batch normalization and same-size convolutions.

Source: Ronneberger et al. 2015 (arXiv:1505.04597) in the form of github.com/milesial/Pytorch-UNet, whose weights load
through `bcss_jax.models.weights.pretrained`. Its 3x3 convolutions are padded by one pixel and have no bias. Each is
followed by BatchNorm and ReLU. The skip is concatenated before the upsampled map.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.arguments import MOST_LEVELS, check_counts, check_image_size
from bcss_jax.models.blocks import layers, norms, resampling
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of, prefixed


class DoubleConv(nnx.Module):
    """Two blocks of 3x3 convolution, BatchNorm and ReLU.

    It takes one map or several, which count as concatenated over channels.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the block.

        Args:
          inputs: channels of the input, all maps together.
          middle: channels between the convolutions.
          outputs: channels of the result.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.conv1 = layers.Conv(inputs, middle, 3, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm1 = norms.BatchNorm(middle, relu=True)
        self.conv2 = layers.Conv(middle, outputs, 3, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm2 = norms.BatchNorm(outputs, relu=True)

    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ... -> (N, H, W, outputs)."""
        return self.norm2(self.conv2(self.norm1(self.conv1(*maps))))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of milesial's `DoubleConv`."""
        modules = {"0": self.conv1, "1": self.norm1, "3": self.conv2, "4": self.norm2}
        return prefixed("double_conv", entries_of(modules))


class UNet(nnx.Module):
    """milesial's U-Net: 31,037,763 parameters for RGB and three classes, 17,263,107 with bilinear upsampling.

    Convolutions are initialized with PyTorch's default, which the reference uses: kernels and biases uniform in
    +-1/sqrt(fan_in), that is kaiming_uniform(a=sqrt(5)).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        width: int = 64,
        depth: int = 4,
        bilinear: bool = False,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          num_classes: channels of the logits.
          in_channels: channels of the images.
          width: channels at full resolution; they double with each downsampling.
          depth: number of downsamplings; images need at least 2**depth pixels on each side.
          bilinear: upsample bilinearly (corners aligned) instead of with a learned 2x2 transposed convolution.
          dtype: type of the computation. Weights, batch statistics and logits are always float32.
          seed: of the initial weights.

        Raises:
          ConfigError: a number is not positive.
        """
        check_counts("unet", num_classes=num_classes, in_channels=in_channels, width=width)
        check_counts("unet", most=MOST_LEVELS, depth=depth)
        rngs = nnx.Rngs(seed)
        self.depth, self.dtype = depth, dtype
        widths = [width * 2**level for level in range(depth + 1)]
        factor = 2 if bilinear else 1
        self.inc = DoubleConv(in_channels, width, width, dtype=dtype, rngs=rngs)
        for level in range(1, depth + 1):
            inputs, outputs = widths[level - 1], widths[level] // (factor if level == depth else 1)
            setattr(self, f"down{level}", DoubleConv(inputs, outputs, outputs, dtype=dtype, rngs=rngs))
        for step in range(1, depth + 1):
            inputs, skip = widths[depth + 1 - step], widths[depth - step]
            outputs = skip // (factor if step < depth else 1)
            if not bilinear:
                up = layers.ConvTranspose(inputs, skip, dtype=dtype, rngs=rngs)
                setattr(self, f"upsample{step}", up)
            middle = inputs // 2 if bilinear else outputs
            setattr(self, f"up{step}", DoubleConv(inputs, middle, outputs, dtype=dtype, rngs=rngs))
        self.outc = layers.Conv(width, num_classes, 1, use_bias=True, dtype=dtype, rngs=rngs)
        self.bilinear = bilinear

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (N, H, W, in_channels) -> float32 logits (N, H, W, num_classes); any H and W >= 2**depth.

        Raises:
          ConfigError: the images are smaller, so that no pixel would remain at the deepest level.
        """
        check_image_size("unet", images, 2**self.depth, f"depth {self.depth}", " or a smaller depth")
        x = self.inc(images.astype(self.dtype))
        skips = []
        for level in range(1, self.depth + 1):
            skips.append(x)
            x = getattr(self, f"down{level}")(resampling.max_pool_2x2(x))
        for step in range(1, self.depth + 1):
            skip = skips.pop()
            x = resampling.upsample_bilinear_2x(x) if self.bilinear else getattr(self, f"upsample{step}")(x)
            x = getattr(self, f"up{step}")(skip, resampling.pad_to(x, skip.shape))
        return self.outc(x).astype(jnp.float32)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of milesial's state_dict."""
        entries = prefixed("inc", self.inc.torch_entries())
        for level in range(1, self.depth + 1):
            entries |= prefixed(f"down{level}.maxpool_conv.1", getattr(self, f"down{level}").torch_entries())
        for step in range(1, self.depth + 1):
            if not self.bilinear:
                entries |= prefixed(f"up{step}.up", getattr(self, f"upsample{step}").torch_entries())
            entries |= prefixed(f"up{step}.conv", getattr(self, f"up{step}").torch_entries())
        return entries | prefixed("outc.conv", self.outc.torch_entries())
