"""TransUNet: a convolutional network and a transformer over its last map as encoder, and a U-Net's decoder.

Source: Chen et al. 2021 (arXiv:2102.04306) in the form of github.com/Beckschen/TransUNet (R50-ViT-B_16), whose weights
load through `bcss_jax.models.weights.pretrained`.
"""

import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import check_counts, check_counts_in, check_share, is_count
from bcss_jax.models.blocks import layers, norms, resampling
from bcss_jax.models.encoders.resnet_v2 import GROUPS, ResNetV2
from bcss_jax.models.encoders.vit import Transformer
from bcss_jax.models.weights.torch_layout import SAME, TorchEntries, entries_of, prefixed

PATCH = 16
DECODER_INPUTS = 512


class Encoder(nnx.Module):
    """Hybrid ResNet, position embeddings and transformer: the part that Google's weights fill."""

    def __init__(
        self,
        grid: tuple[int, int],
        *,
        in_channels: int,
        width: int,
        resnet_layers: tuple[int, int, int],
        hidden_size: int,
        mlp_size: int,
        num_heads: int,
        num_layers: int,
        google: bool,
        dropout: float,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Rows and columns of tokens, kept as `grid`; channels after the root (`width`); the others as of `TransUNet`."""
        self.grid = tuple(grid)
        self.hybrid = ResNetV2(in_channels, width, resnet_layers, google=google, dtype=dtype, rngs=rngs)
        self.patches = layers.Conv(16 * width, hidden_size, 1, use_bias=True, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((1, grid[0] * grid[1], hidden_size)))
        self.dropout = layers.Dropout(dropout, 0)
        self.transformer = Transformer(
            hidden_size,
            num_heads,
            mlp_size,
            num_layers,
            google=google,
            dropout=dropout,
            dropout_number=1,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array, dropout_keys: jax.Array | None = None) -> tuple[jax.Array, list[jax.Array]]:
        """(N, H, W, in_channels) -> tokens (N, H/16 * W/16, hidden_size), and the skips of `ResNetV2`."""
        x, skips = self.hybrid(images)
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = self.dropout(x + self.positions[...].astype(x.dtype), dropout_keys)
        return self.transformer(x, dropout_keys), skips

    def torch_entries(self) -> TorchEntries:
        """Names as in TransUNet's `Transformer`."""
        parts = {
            "embeddings.hybrid_model": self.hybrid,
            "embeddings.patch_embeddings": self.patches,
            "encoder": self.transformer,
        }
        return {"embeddings.position_embeddings": (self.positions, SAME)} | entries_of(parts)


class ConvNorm(nnx.Module):
    """3x3 convolution, BatchNorm, ReLU; takes one map or several, read as if concatenated over channels."""

    def __init__(self, inputs: int, outputs: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Channels of the input (all maps together) and of the result."""
        self.conv = layers.Conv(inputs, outputs, 3, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = norms.BatchNorm(outputs, relu=True)

    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ... -> (N, H, W, outputs)."""
        return self.norm(self.conv(*maps))

    def torch_entries(self) -> TorchEntries:
        """Names as in TransUNet's `Conv2dReLU`."""
        return entries_of({"0": self.conv, "1": self.norm})


class TransUNet(nnx.Module):
    """TransUNet: 105,276,211 parameters for RGB, three classes and 224x224 pixels.

    Convolutions and attention start as PyTorch's default leaves them, which the reference uses; position embeddings
    start at zero.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: int | tuple[int, int] = 224,
        width_factor: float = 1,
        resnet_layers: tuple[int, int, int] = (3, 4, 9),
        hidden_size: int = 768,
        mlp_size: int = 3072,
        num_heads: int = 12,
        num_layers: int = 12,
        decoder_channels: tuple[int, int, int, int] = (256, 128, 64, 16),
        skip_channels: tuple[int, int, int, int] = (512, 256, 64, 0),
        in_channels: int = 3,
        compat: str = "transunet",
        dropout: float = 0.1,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          num_classes: channels of the logits.
          image_size: side of the images, or their height and width: multiples of 16. Each place has its embedding,
            so images of other sizes are refused.
          width_factor: times 64 gives the channels after the ResNet's root, a multiple of 32 for the norms' groups.
          resnet_layers: units in each of the ResNet's three blocks.
          hidden_size: features of a token.
          mlp_size: features between the two dense layers of a transformer block.
          num_heads: of the attention; they divide `hidden_size`.
          num_layers: transformer blocks.
          decoder_channels: of the four decoder blocks, deepest first.
          skip_channels: what the decoder blocks take from the ResNet, deepest first: the channels of the map there
            (8, 4 and 1 times those after the root), or 0 for no skip. The last block has none.
          in_channels: channels of the images.
          compat: "transunet" for the arithmetic of the published code, "google" for that under which Google's weights
            were trained; see `resnet_v2.ResNetV2` and `vit.Transformer`. The parameters are the same.
          dropout: probability, in the transformer.
          dtype: type of the arithmetic. Weights, batch statistics and logits are float32 whatever it is.
          seed: of the initial weights.

        Raises:
          ConfigError: an argument does not fit.
        """
        size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
        if len(size) != 2 or not all(map(is_count, size)):
            raise ConfigError(f"transunet: image_size must be a positive integer or two of them, not {image_size!r}")
        if any(side % PATCH for side in size):
            raise ConfigError(
                f"transunet: image_size {_times(size)} is no multiple of {PATCH}; the nearest is {_times(_fitting(size))}"
            )
        check_counts(
            "transunet",
            num_classes=num_classes,
            hidden_size=hidden_size,
            mlp_size=mlp_size,
            num_heads=num_heads,
            num_layers=num_layers,
            in_channels=in_channels,
        )
        check_counts_in("transunet", 3, resnet_layers=resnet_layers)
        check_counts_in("transunet", 4, decoder_channels=decoder_channels)
        if not isinstance(width_factor, numbers.Real) or width_factor <= 0 or 64 * width_factor % GROUPS:
            raise ConfigError(f"transunet: width_factor must be a multiple of {GROUPS / 64}, not {width_factor!r}")
        if hidden_size % num_heads:
            raise ConfigError(f"transunet: hidden_size {hidden_size} is no multiple of num_heads {num_heads}")
        width = int(64 * width_factor)
        maps = (8 * width, 4 * width, width, 0)
        skips = list(skip_channels) if isinstance(skip_channels, Sequence) else []
        if len(skips) != 4 or any(s not in (0, m) for s, m in zip(skips, maps, strict=True)):
            raise ConfigError(
                f"transunet: skip_channels must be {maps} for width_factor {width_factor}, or 0 for a skip to be left "
                f"out, not {skip_channels!r}"
            )
        if compat not in ("transunet", "google"):
            raise ConfigError(f'transunet: compat must be "transunet" or "google", not {compat!r}')
        check_share("transunet", zero=True, one=False, dropout=dropout)

        rngs = nnx.Rngs(seed)
        self.image_size, self.skip_channels, self.dtype = size, tuple(skip_channels), dtype
        self.encoder = Encoder(
            (size[0] // PATCH, size[1] // PATCH),
            in_channels=in_channels,
            width=width,
            resnet_layers=resnet_layers,
            hidden_size=hidden_size,
            mlp_size=mlp_size,
            num_heads=num_heads,
            num_layers=num_layers,
            google=compat == "google",
            dropout=dropout,
            dtype=dtype,
            rngs=rngs,
        )
        self.conv_more = ConvNorm(hidden_size, DECODER_INPUTS, dtype=dtype, rngs=rngs)
        inputs = DECODER_INPUTS
        for i, (skip, outputs) in enumerate(zip(skip_channels, decoder_channels, strict=True)):
            setattr(self, f"up{i}_conv1", ConvNorm(inputs + skip, outputs, dtype=dtype, rngs=rngs))
            setattr(self, f"up{i}_conv2", ConvNorm(outputs, outputs, dtype=dtype, rngs=rngs))
            inputs = outputs
        self.head = layers.Conv(inputs, num_classes, 3, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Images (N, H, W, in_channels) of the size built for -> float32 logits (N, H, W, num_classes).

        Args:
          images: the batch.
          dropout_keys: jax keys (N,), one per example, in training with dropout.

        Raises:
          ConfigError: the images have another size.
        """
        size = images.shape[1:3]
        if size != self.image_size:
            raise ConfigError(
                f"transunet: the images are {_times(size)} and the model was built for {_times(self.image_size)}; "
                f"take such images, or build it with image_size={_argument(_fitting(size))}"
                + (f", the nearest multiple of {PATCH}" if _fitting(size) != size else "")
            )
        x, skips = self.encoder(images.astype(self.dtype), dropout_keys)
        x = self.conv_more(x.reshape(x.shape[0], size[0] // PATCH, size[1] // PATCH, -1))
        for i, skip_channels in enumerate(self.skip_channels):
            x = resampling.upsample_bilinear_2x(x)
            x = getattr(self, f"up{i}_conv1")(x, skips[i]) if skip_channels else getattr(self, f"up{i}_conv1")(x)
            x = getattr(self, f"up{i}_conv2")(x)
        return self.head(x).astype(jnp.float32)

    def torch_entries(self) -> TorchEntries:
        """Names as in TransUNet's state_dict."""
        entries = prefixed("transformer", self.encoder.torch_entries())
        entries |= prefixed("decoder.conv_more", self.conv_more.torch_entries())
        for i in range(len(self.skip_channels)):
            for conv in ("conv1", "conv2"):
                entries |= prefixed(f"decoder.blocks.{i}.{conv}", getattr(self, f"up{i}_{conv}").torch_entries())
        return entries | prefixed("segmentation_head.0", self.head.torch_entries())


def _argument(size: tuple[int, int]) -> int | tuple[int, int]:
    return size[0] if size[0] == size[1] else size


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _fitting(size: tuple[int, int]) -> tuple[int, int]:
    return tuple(max(PATCH, (side + PATCH // 2) // PATCH * PATCH) for side in size)
