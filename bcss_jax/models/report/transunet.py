"""TransUNet of the report's own code: a vision transformer over patches of a convolutional stem, without skips."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import MOST_LAYERS, check_counts, check_fraction
from bcss_jax.models.blocks import layers, norms, resampling
from bcss_jax.models.report.stem import Stem
from bcss_jax.models.report.unet import ConvNorm
from bcss_jax.models.weights.torch_layout import SAME, TorchEntries, entries_of

STEM = 4  # factor by which the stem reduces the size
STEM_WIDTH = 64
DECODER_CHANNELS = (256, 128, 64, 32)
MLP_FACTOR = 4  # features between the two dense layers of a block, as a multiple of a token's
NORM_EPS = 1e-5


class Attention(nnx.Module):
    """Self-attention with several heads and dropout of the weights. The softmax is float32 for tokens of any type."""

    def __init__(self, features: int, heads: int, dropout: layers.Dropout, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layer for tokens of `features` features, which are divided among `heads` heads."""
        self.qkv = layers.Linear(features, 3 * features, dtype=dtype, rngs=rngs)
        self.dropout = dropout
        self.proj = layers.Linear(features, features, dtype=dtype, rngs=rngs)
        self.heads = heads

    def __call__(self, x: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        """(N, T, features) and one key per example (N,) -> the same shape as the tokens."""
        n, t, features = x.shape
        query, key, value = jnp.moveaxis(self.qkv(x).reshape(n, t, 3, self.heads, -1).astype(jnp.float32), 2, 0)
        scores = jnp.einsum("nqhd,nkhd->nhqk", query * (features // self.heads) ** -0.5, key)
        weights = self.dropout(jax.nn.softmax(scores), dropout_keys)
        return self.proj(jnp.einsum("nhqk,nkhd->nqhd", weights, value).astype(x.dtype).reshape(x.shape))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the code."""
        return entries_of({"qkv": self.qkv, "proj": self.proj})


class Block(nnx.Module):
    """Attention, and an MLP with an exact GELU, each with a LayerNorm before and a residual connection around it."""

    def __init__(self, features: int, heads: int, dropout: float, number: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the block; its four dropouts of probability `dropout` are numbered from `number`."""
        self.norm1 = norms.LayerNorm(features, eps=NORM_EPS)
        self.attention = Attention(features, heads, layers.Dropout(dropout, number), dtype=dtype, rngs=rngs)
        self.dropout1 = layers.Dropout(dropout, number + 1)
        self.norm2 = norms.LayerNorm(features, eps=NORM_EPS)
        self.dense1 = layers.Linear(features, MLP_FACTOR * features, dtype=dtype, rngs=rngs)
        self.dropout2 = layers.Dropout(dropout, number + 2)
        self.dense2 = layers.Linear(MLP_FACTOR * features, features, dtype=dtype, rngs=rngs)
        self.dropout3 = layers.Dropout(dropout, number + 3)

    def __call__(self, x: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        """(N, T, features) and one key per example (N,) -> the same shape as the tokens."""
        x = x + self.dropout1(self.attention(self.norm1(x), dropout_keys), dropout_keys)
        y = self.dropout2(jax.nn.gelu(self.dense1(self.norm2(x)), approximate=False), dropout_keys)
        return x + self.dropout3(self.dense2(y), dropout_keys)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the code."""
        modules = {"norm1": self.norm1, "attn": self.attention, "norm2": self.norm2}
        return entries_of({**modules, "mlp.fc1": self.dense1, "mlp.fc2": self.dense2})


class Up(nnx.Module):
    """Learned upsampling by two with a 2x2 kernel, and a 3x3 convolution, each with BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the block for `inputs` and `outputs` channels."""
        self.upsample = layers.ConvTranspose(inputs, outputs, dtype=dtype, rngs=rngs)
        self.norm = norms.BatchNorm(outputs, relu=True)
        self.conv = ConvNorm(outputs, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) -> (N, 2H, 2W, outputs)."""
        return self.conv(self.norm(self.upsample(x)))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the numbers of the code's `Sequential`."""
        return entries_of({"0": self.upsample, "1": self.norm}) | self.conv.torch_entries(3)


class ReportTransUNet(nnx.Module):
    """TransUNet with 99,413,283 parameters for RGB, three classes and 320x320 pixels.

    Layers are initialized with PyTorch's default, position embeddings with zeros.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: int = 320,
        patch_size: int = 16,
        hidden_size: int = 768,
        num_heads: int = 12,
        num_layers: int = 12,
        dropout: float = 0.1,
        in_channels: int = 3,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          num_classes: channels of the logits.
          image_size: height and width of the images. Each token has its own position embedding, so images of other
            sizes are refused.
          patch_size: height and width of a token in the map of the stem, so of 4 times as many pixels. What lies right
            of and below the last whole token is not seen, as in the code: with 224 pixels, the last 32.
          hidden_size: features of a token; `embed_dim` of the code.
          num_heads: number of attention heads; must divide `hidden_size`.
          num_layers: number of transformer blocks; `depth` of the code.
          dropout: probability, in the transformer.
          in_channels: channels of the images.
          dtype: type of the computation. Weights, batch statistics and logits are always float32.
          seed: of the initial weights.

        Raises:
          ConfigError: an argument is invalid.
        """
        name = "report_transunet"
        check_counts(name, num_classes=num_classes, in_channels=in_channels)
        check_counts(name, image_size=image_size, patch_size=patch_size)
        check_counts(name, hidden_size=hidden_size, num_heads=num_heads)
        check_counts(name, most=MOST_LAYERS, num_layers=num_layers)
        check_fraction(name, allow_zero=True, allow_one=False, dropout=dropout)
        if hidden_size % num_heads:
            raise ConfigError(f"{name}: hidden_size {hidden_size} is not a multiple of num_heads {num_heads}")
        self.grid = -(-image_size // STEM) // patch_size  # the stem rounds up, the patches round down
        if not self.grid:
            raise ConfigError(
                f"{name}: image_size {image_size} is smaller than a token; use at least {STEM * patch_size}"
            )
        self.image_size, self.patch_size = image_size, patch_size
        self.num_layers, self.dtype = num_layers, dtype
        common: dict[str, Any] = dict(dtype=dtype, rngs=nnx.Rngs(seed))
        self.stem = Stem(in_channels, STEM_WIDTH, use_bias=True, **common)
        self.patches = layers.Conv(
            STEM_WIDTH, hidden_size, patch_size, stride=patch_size, same=True, use_bias=True, **common
        )
        self.patches_norm = norms.LayerNorm(hidden_size, eps=NORM_EPS)
        self.positions = nnx.Param(jnp.zeros((1, self.grid**2, hidden_size)))
        self.dropout = layers.Dropout(dropout, 0)
        for i in range(num_layers):
            setattr(self, f"block{i}", Block(hidden_size, num_heads, dropout, 1 + 4 * i, **common))
        inputs = hidden_size
        for i, outputs in enumerate(DECODER_CHANNELS):
            setattr(self, f"up{i}", Up(inputs, outputs, **common))
            inputs = outputs
        self.head = layers.Conv(inputs, num_classes, 1, use_bias=True, **common)

    def __call__(self, images: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Returns the logits of a batch.

        Args:
          images: (N, H, W, in_channels); H and W are the `image_size` that the network was built for.
          dropout_keys: JAX keys (N,), one per example; needed only in training with dropout.

        Returns:
          float32 (N, H, W, num_classes). The code resizes to 320x320, whatever the input.

        Raises:
          ConfigError: the images have another size.
        """
        height, width = images.shape[1:3]
        if (height, width) != (self.image_size, self.image_size):
            raise ConfigError(
                f"report_transunet: the images are {height}x{width} and the model was built for "
                f"{self.image_size}x{self.image_size}; use square images of that size, or build the model with another "
                "image_size"
            )
        seen = self.patch_size * self.grid
        x = self.patches_norm(self.patches(self.stem(images.astype(self.dtype))[:, :seen, :seen]))
        x = x.reshape(x.shape[0], self.grid**2, -1)
        x = self.dropout(x + layers.spread(self.positions[...], x), dropout_keys)
        for i in range(self.num_layers):
            x = getattr(self, f"block{i}")(x, dropout_keys)
        x = x.reshape(x.shape[0], self.grid, self.grid, -1)
        for i in range(len(DECODER_CHANNELS)):
            x = getattr(self, f"up{i}")(x)
        return resampling.resize_bilinear(self.head(x).astype(jnp.float32), height, width)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the code's state_dict."""
        modules = {"cnn_encoder": self.stem, "patch_embed.0": self.patches, "patch_embed.2": self.patches_norm}
        modules |= {f"transformer_blocks.{i}": getattr(self, f"block{i}") for i in range(self.num_layers)}
        modules |= {f"decoder.{i}": getattr(self, f"up{i}") for i in range(len(DECODER_CHANNELS))}
        return {"pos_embed": (self.positions, SAME)} | entries_of(modules | {"final_conv": self.head})
