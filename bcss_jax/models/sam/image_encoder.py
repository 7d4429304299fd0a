"""SAM's image encoder: a vision transformer whose blocks attend within windows, but for a few that attend globally.

Source: Kirillov et al. 2023 (arXiv:2304.02643), `ImageEncoderViT` of github.com/facebookresearch/segment-anything; the
encoder is that of ViTDet (Li et al. 2022, arXiv:2203.16527).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.blocks import layers, norms
from bcss_jax.models.blocks.attention import GridBias, attend
from bcss_jax.models.encoders.vision_transformer.adapters import Adapters, BlockAdapter, with_product
from bcss_jax.models.sam.architecture import ViTForm
from bcss_jax.models.sam.mlp import LIN, MLP
from bcss_jax.models.sam.patch_conv import PatchConv
from bcss_jax.models.sam.windows import from_windows, to_windows
from bcss_jax.models.weights.torch_layout import SAME, TorchEntries, entries_of, prefixed

EPS = 1e-6


class Attention(nnx.Module):
    """Self-attention on a map, with learned terms for the distances between rows and between columns.

    The terms are products of the query, which is not scaled for them, and of a vector for each distance.
    """

    def __init__(self, width: int, heads: int, size: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layer for maps of `size` rows and columns."""
        self.qkv = layers.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.proj = layers.Linear(width, width, dtype=dtype, rngs=rngs)
        self.rows = nnx.Param(jnp.zeros((2 * size - 1, width // heads)))
        self.columns = nnx.Param(jnp.zeros((2 * size - 1, width // heads)))
        self.heads = heads

    def __call__(self, x: jax.Array, adapter: BlockAdapter | None = None) -> jax.Array:
        """(N, H, W, width) -> the same shape."""
        n, height, width, channels = x.shape
        y = with_product(self.qkv(x), x, adapter and adapter.qkv).reshape(n, height * width, 3, self.heads, -1)
        query, key, value = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        on_map = query.reshape(n, height, width, self.heads, -1).astype(jnp.float32)
        by_row = jnp.einsum("nrchd,rkd->nrchk", on_map, _by_distance(self.rows[...], height))
        by_column = jnp.einsum("nrchd,ckd->nrchk", on_map, _by_distance(self.columns[...], width))
        terms = (term.reshape(n, height * width, self.heads, -1) for term in (by_row, by_column))
        y = attend(query, key, value, bias=GridBias(*terms)).reshape(x.shape)
        return with_product(self.proj(y), y, adapter and adapter.proj)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM's `Attention`."""
        tables: TorchEntries = {"rel_pos_h": (self.rows, SAME), "rel_pos_w": (self.columns, SAME)}
        return tables | entries_of({"qkv": self.qkv, "proj": self.proj})


def resized_positions(table: jax.Array, rows: int, columns: int) -> jax.Array:
    """Returns a table of positions (1, M, M, C), resized bilinearly to (1, rows, columns, C)."""
    if table.shape[1:3] == (rows, columns):
        return table
    return jax.image.resize(table, (1, rows, columns, table.shape[-1]), "linear", antialias=False)


def resized_distances(table: jax.Array, size: int) -> jax.Array:
    """Returns a table of distances (2 M - 1, D), resized linearly to those on a map of another size."""
    if len(table) == 2 * size - 1:
        return table
    return jax.image.resize(table, (2 * size - 1, table.shape[1]), "linear", antialias=False)


def _by_distance(table: jax.Array, size: int) -> jax.Array:
    """Returns the vectors of a table (2 M - 1, D) for places of query and key: float32 (size, size, D).

    A table for another size is resized linearly.
    """
    return resized_distances(table, size)[np.arange(size)[:, None] - np.arange(size)[None] + size - 1]


class Block(nnx.Module):
    """Attention, then dense layers, each with a norm before and a residual around it."""

    def __init__(self, form: ViTForm, *, window: int, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the block; a `window` of 0 is the whole map."""
        self.norm1 = norms.LayerNorm(form.width, eps=EPS)
        self.attn = Attention(form.width, form.heads, window or form.table, dtype=dtype, rngs=rngs)
        self.norm2 = norms.LayerNorm(form.width, eps=EPS)
        widths = (form.width, form.hidden, form.width)
        self.mlp = MLP(widths, activation=layers.gelu, names=LIN, dtype=dtype, rngs=rngs)
        self.window = window

    def __call__(self, x: jax.Array, adapter: BlockAdapter | None = None) -> jax.Array:
        """(N, H, W, width) -> the same shape; `adapter` is what LoRA trains beside the matrices."""
        y = self.norm1(x)
        if self.window:
            # The zeros that fill up the windows are tokens as all others; no mask hides them.
            y = from_windows(self.attn(to_windows(y, self.window), adapter), *x.shape[1:3])
        else:
            y = self.attn(y, adapter)
        x = x + y
        return x + self.mlp(self.norm2(x), () if adapter is None else (adapter.dense1, adapter.dense2))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM's `Block`."""
        return entries_of({"norm1": self.norm1, "attn": self.attn, "norm2": self.norm2, "mlp": self.mlp})


class Trunk(nnx.Module):
    """The transformer: images to a map of their patches."""

    def __init__(self, form: ViTForm, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the network with random weights, initialized as SAM's: position embeddings are zero.

        Raises:
          ConfigError: no network has such a form.
        """
        form.check()
        self.form, self.dtype = form, dtype
        self.patch_embed = PatchConv(3, form.width, form.patch, dtype=dtype, rngs=rngs)
        self.pos_embed = nnx.Param(jnp.zeros((1, form.table, form.table, form.width)))
        self.blocks = nnx.List(
            Block(form, window=0 if i in form.global_blocks else form.window, dtype=dtype, rngs=rngs)
            for i in range(form.depth)
        )

    @property
    def multiple(self) -> int:
        """Number of pixels that height and width of the images must be a multiple of."""
        return self.form.patch

    def positions(self, rows: int, columns: int) -> jax.Array:
        """Returns the position embeddings of a map, float32 (1, rows, columns, width).

        The table is resized bilinearly, as those who use SAM at other sizes than 1024 pixels do (SAMed, SAM-Med2D);
        Meta's code never resizes it.
        """
        return resized_positions(self.pos_embed[...], rows, columns)

    def block_outputs(self, images: jax.Array, adapters: Adapters | None = None) -> list[jax.Array]:
        """Returns the maps (N, H / patch, W / patch, width) after every block.

        Args:
          images: normalized, float (N, H, W, 3); H and W are multiples of the patch.
          adapters: what LoRA trains beside the matrices of the blocks; None: nothing.

        Raises:
          ConfigError: the images have another size.
        """
        height, width = images.shape[1:3]
        patch = self.form.patch
        if height % patch or width % patch or not height or not width:
            raise ConfigError(
                f"SAM's encoder: the images are {height}x{width}, expected multiples of the patch of {patch} pixels"
            )
        x = self.patch_embed(images.astype(self.dtype))
        x, outputs = x + layers.spread(self.positions(*x.shape[1:3]), x), []
        for i, block in enumerate(self.blocks):
            x = block(x, adapters and adapters.blocks[i])
            outputs.append(x)
        return outputs

    def __call__(self, images: jax.Array, adapters: Adapters | None = None) -> list[jax.Array]:
        """Returns what `Neck` takes: the map after the last block. The arguments are those of `block_outputs`."""
        return self.block_outputs(images, adapters)[-1:]

    def matrices(self) -> list[dict[str, tuple[int, int]]]:
        """Returns (inputs, outputs) of the matrices of every block, for `Adapters`."""
        width, hidden = self.form.width, self.form.hidden
        shapes = {"qkv": (width, 3 * width), "proj": (width, width), "fc1": (width, hidden), "fc2": (hidden, width)}
        return [shapes] * self.form.depth

    def add_products(self, adapters: Adapters) -> None:
        """Adds the products of adapters to the matrices, which then give the same without them."""
        for block, adapter in zip(self.blocks, adapters.blocks, strict=True):
            adapter.add_to(block.attn.qkv, block.attn.proj, *block.mlp.layers)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM's `ImageEncoderViT`."""
        entries: TorchEntries = {"pos_embed": (self.pos_embed, SAME)}
        entries |= prefixed("patch_embed.proj", self.patch_embed.torch_entries())
        return entries | entries_of({f"blocks.{i}": block for i, block in enumerate(self.blocks)})


class Neck(nnx.Module):
    """Two convolutions from the transformer's features to those of the decoder."""

    def __init__(self, form: ViTForm, channels: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layers; the result has so many channels."""
        common: dict[str, Any] = dict(use_bias=False, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [
                layers.Conv(form.width, channels, 1, **common),
                norms.LayerNorm(channels, eps=EPS),
                layers.Conv(channels, channels, 3, **common),
                norms.LayerNorm(channels, eps=EPS),
            ]
        )

    def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
        """[(N, h, w, width)] -> [(N, h, w, channels)]."""
        (x,) = maps
        for layer in self.layers:
            x = layer(x)
        return [x]

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM's `ImageEncoderViT`."""
        return entries_of({f"neck.{i}": layer for i, layer in enumerate(self.layers)})


class ImageEncoder(nnx.Module):
    """The encoder: images to a map of their patches, with as many channels as the decoder has."""

    def __init__(self, form: ViTForm, channels: int, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs):
        """Builds the encoder with random weights.

        Args:
          form: its form.
          channels: of the result.
          dtype: type of the computation. Weights are float32.
          rngs: random keys.

        Raises:
          ConfigError: no network has such a form.
        """
        self.form = form
        self.trunk = Trunk(form, dtype=dtype, rngs=rngs)
        self.neck = Neck(form, channels, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the embedding of a batch.

        Args:
          images: normalized, float (N, H, W, 3); H and W are multiples of the patch.

        Returns:
          (N, H / patch, W / patch, channels).

        Raises:
          ConfigError: the images have another size.
        """
        return self.neck(self.trunk(images))[0]

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM's `ImageEncoderViT`."""
        return self.trunk.torch_entries() | self.neck.torch_entries()
