"""TransUNet: a U-Net whose encoder is a convolutional network followed by a transformer over its last map.

Source: Chen et al. 2021 (arXiv:2102.04306) in the form of github.com/Beckschen/TransUNet (R50-ViT-B_16), whose weights
load through `bcss_jax.models.weights.pretrained`.
"""

import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import MOST_LAYERS, check_counts, check_counts_in, check_fraction, is_count
from bcss_jax.models.blocks import layers, norms, resampling
from bcss_jax.models.encoders.resnet_v2 import GROUPS, ResNetV2
from bcss_jax.models.encoders.vit import Transformer
from bcss_jax.models.weights.torch_layout import SAME, TorchEntries, entries_of, prefixed

PATCH = 16  # pixels of a token, on each side
MOST_FACTOR = 16  # of the width; the ResNet then has 1024 channels after its root
DECODER_INPUTS = 512  # channels


class Encoder(nnx.Module):
    """Hybrid ResNet, position embeddings and transformer: the part for which Google has pretrained weights."""

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
        """Builds the encoder.

        Args:
          grid: rows and columns of tokens; kept as the attribute `grid`.
          in_channels: channels of the images.
          width: channels after the root of the ResNet.
          resnet_layers: see `TransUNet`.
          hidden_size: see `TransUNet`.
          mlp_size: see `TransUNet`.
          num_heads: see `TransUNet`.
          num_layers: see `TransUNet`.
          google: use the arithmetic that Google's weights were trained with; see `resnet_v2.ResNetV2`.
          dropout: probability.
          dtype: type of the computation.
          rngs: random keys.
        """
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
        x = self.dropout(x + layers.spread(self.positions[...], x), dropout_keys)
        return self.transformer(x, dropout_keys), skips

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of TransUNet's `Transformer`."""
        modules = {
            "embeddings.hybrid_model": self.hybrid,
            "embeddings.patch_embeddings": self.patches,
            "encoder": self.transformer,
        }
        return {"embeddings.position_embeddings": (self.positions, SAME)} | entries_of(modules)


class ConvNorm(nnx.Module):
    """3x3 convolution, BatchNorm and ReLU. It takes one map or several, which count as concatenated over channels."""

    def __init__(self, inputs: int, outputs: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layer for `inputs` channels, all maps together, and `outputs` channels of the result."""
        self.conv = layers.Conv(inputs, outputs, 3, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = norms.BatchNorm(outputs, relu=True)

    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ... -> (N, H, W, outputs)."""
        return self.norm(self.conv(*maps))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of TransUNet's `Conv2dReLU`."""
        return entries_of({"0": self.conv, "1": self.norm})


class TransUNet(nnx.Module):
    """TransUNet with 105,276,211 parameters for RGB, three classes and 224x224 pixels.

    Convolutions and attention are initialized with PyTorch's default, which the reference uses. Position embeddings are
    initialized with zeros.
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
          image_size: height and width of the images, one number or two; multiples of 16. Each position has its own
            embedding, so images of other sizes are refused.
          width_factor: 64 times this number is the channels after the root of the ResNet. It must be a multiple of 32,
            because the norms have 32 groups.
          resnet_layers: number of units in each of the three blocks of the ResNet.
          hidden_size: features of a token.
          mlp_size: features between the two dense layers of a transformer block.
          num_heads: number of attention heads; must divide `hidden_size`.
          num_layers: number of transformer blocks.
          decoder_channels: channels of the four decoder blocks, deepest first.
          skip_channels: channels of the skips from the ResNet to the decoder blocks, deepest first: the channels of the
            map there (8, 4 and 1 times those after the root), or 0 for no skip. The last block has none.
          in_channels: channels of the images.
          compat: "transunet" for the arithmetic of the published code, "google" for the arithmetic that Google's
            weights were trained with; see `resnet_v2.ResNetV2` and `vit.Transformer`. The parameters are the same.
          dropout: probability, in the transformer.
          dtype: type of the computation. Weights, batch statistics and logits are always float32.
          seed: of the initial weights.

        Raises:
          ConfigError: an argument is invalid.
        """
        size = _checked_size(image_size)
        check_counts("transunet", num_classes=num_classes, in_channels=in_channels)
        check_counts("transunet", most=MOST_LAYERS, num_layers=num_layers)
        check_counts("transunet", hidden_size=hidden_size, mlp_size=mlp_size, num_heads=num_heads)
        check_counts_in("transunet", 3, most=MOST_LAYERS, resnet_layers=resnet_layers)
        check_counts_in("transunet", 4, decoder_channels=decoder_channels)
        if hidden_size % num_heads:
            raise ConfigError(f"transunet: hidden_size {hidden_size} is not a multiple of num_heads {num_heads}")
        width = _checked_width(width_factor, skip_channels)
        if compat not in ("transunet", "google"):
            raise ConfigError(f'transunet: compat must be "transunet" or "google", not {compat!r}')
        check_fraction("transunet", allow_zero=True, allow_one=False, dropout=dropout)

        rngs = nnx.Rngs(seed)
        self.image_size, self.skip_channels, self.dtype = size, tuple(skip_channels), dtype
        resnet: dict[str, Any] = dict(in_channels=in_channels, width=width, resnet_layers=resnet_layers)
        transformer: dict[str, Any] = dict(
            hidden_size=hidden_size, mlp_size=mlp_size, num_heads=num_heads, num_layers=num_layers, dropout=dropout
        )
        grid, google = (size[0] // PATCH, size[1] // PATCH), compat == "google"
        self.encoder = Encoder(grid, **resnet, **transformer, google=google, dtype=dtype, rngs=rngs)
        self.conv_more = ConvNorm(hidden_size, DECODER_INPUTS, dtype=dtype, rngs=rngs)
        inputs = DECODER_INPUTS
        for i, (skip, outputs) in enumerate(zip(skip_channels, decoder_channels, strict=True)):
            setattr(self, f"up{i}_conv1", ConvNorm(inputs + skip, outputs, dtype=dtype, rngs=rngs))
            setattr(self, f"up{i}_conv2", ConvNorm(outputs, outputs, dtype=dtype, rngs=rngs))
            inputs = outputs
        self.head = layers.Conv(inputs, num_classes, 3, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Returns the logits of a batch.

        Args:
          images: (N, H, W, in_channels); H and W are the `image_size` that the network was built for.
          dropout_keys: JAX keys (N,), one per example; needed only in training with dropout.

        Returns:
          float32 (N, H, W, num_classes).

        Raises:
          ConfigError: the images have another size.
        """
        size = (images.shape[1], images.shape[2])
        if size != self.image_size:
            raise ConfigError(
                f"transunet: the images are {_times(size)} and the model was built for {_times(self.image_size)}; "
                f"use images of that size, or build the model with image_size={_argument(_nearest_valid(size))}"
                + (f", the nearest multiple of {PATCH}" if _nearest_valid(size) != size else "")
            )
        x, skips = self.encoder(images.astype(self.dtype), dropout_keys)
        x = self.conv_more(x.reshape(x.shape[0], size[0] // PATCH, size[1] // PATCH, -1))
        for i, skip_channels in enumerate(self.skip_channels):
            x = resampling.upsample_bilinear_2x(x)
            x = getattr(self, f"up{i}_conv1")(x, skips[i]) if skip_channels else getattr(self, f"up{i}_conv1")(x)
            x = getattr(self, f"up{i}_conv2")(x)
        return self.head(x).astype(jnp.float32)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of TransUNet's state_dict."""
        entries = prefixed("transformer", self.encoder.torch_entries())
        entries |= prefixed("decoder.conv_more", self.conv_more.torch_entries())
        for i in range(len(self.skip_channels)):
            for conv in ("conv1", "conv2"):
                entries |= prefixed(f"decoder.blocks.{i}.{conv}", getattr(self, f"up{i}_{conv}").torch_entries())
        return entries | prefixed("segmentation_head.0", self.head.torch_entries())


def _checked_size(image_size: Any) -> tuple[int, int]:
    """Returns height and width, or raises ConfigError."""
    sides: list[Any] = list(image_size) if isinstance(image_size, Sequence) else [image_size, image_size]
    if len(sides) != 2 or not all(map(is_count, sides)):
        raise ConfigError(f"transunet: image_size must be one or two positive integers, not {image_size!r}")
    size = (int(sides[0]), int(sides[1]))
    if any(side % PATCH for side in size):
        nearest = _times(_nearest_valid(size))
        raise ConfigError(
            f"transunet: image_size {_times(size)} is not a multiple of {PATCH}; the nearest is {nearest}"
        )
    return size


def _checked_width(width_factor: Any, skip_channels: Any) -> int:
    """Returns the channels after the root of the ResNet, or raises ConfigError."""
    factor = float(width_factor) if isinstance(width_factor, numbers.Real) else 0.0
    if not 0 < factor <= MOST_FACTOR or 64 * factor % GROUPS:
        raise ConfigError(
            f"transunet: width_factor must be a multiple of {GROUPS / 64} up to {MOST_FACTOR}, not {width_factor!r}"
        )
    width = int(64 * factor)
    maps = (8 * width, 4 * width, width, 0)
    skips = list(skip_channels) if isinstance(skip_channels, Sequence) else []
    if len(skips) != 4 or any(s not in (0, m) for s, m in zip(skips, maps, strict=True)):
        raise ConfigError(
            f"transunet: skip_channels must be {maps} for width_factor {width_factor}, with 0 for a skip to leave out, "
            f"not {skip_channels!r}"
        )
    return width


def _argument(size: tuple[int, int]) -> int | tuple[int, int]:
    return size[0] if size[0] == size[1] else size


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _nearest_valid(size: tuple[int, int]) -> tuple[int, int]:
    height, width = (max(PATCH, (side + PATCH // 2) // PATCH * PATCH) for side in size)
    return height, width
