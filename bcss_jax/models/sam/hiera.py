"""SAM 2.1's image encoder: Hiera, a vision transformer of four resolutions, and a feature pyramid on it.

Source: Ryali et al. 2023 (arXiv:2306.00989), `Hiera` and `FpnNeck` of github.com/facebookresearch/sam2.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.blocks import layers, norms
from bcss_jax.models.blocks.attention import attend
from bcss_jax.models.blocks.resampling import max_pool_2x2, upsample_nearest
from bcss_jax.models.encoders.vision_transformer.adapters import Adapters, BlockAdapter, with_product
from bcss_jax.models.encoders.vision_transformer.positions import Resizing, resized_table
from bcss_jax.models.sam.architecture import HieraForm
from bcss_jax.models.sam.mlp import MLP
from bcss_jax.models.sam.windows import from_windows, to_windows
from bcss_jax.models.weights.torch_layout import TorchEntries, TorchLayout, entries_of, prefixed

EPS = 1e-6
MULTIPLE = 32  # pixels of the image for one token of the last stage
_CHANNELS_LAST = TorchLayout((0, 2, 3, 1))  # (1, C, H, W) -> (1, H, W, C)


class Attention(nnx.Module):
    """Self-attention on a map; where a stage begins, queries are the maxima of 2x2 tokens."""

    def __init__(self, inputs: int, outputs: int, heads: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layer for tokens of `inputs` features."""
        self.qkv = layers.Linear(inputs, 3 * outputs, dtype=dtype, rngs=rngs)
        self.proj = layers.Linear(outputs, outputs, dtype=dtype, rngs=rngs)
        self.heads = heads

    def __call__(self, x: jax.Array, pool: bool, adapter: BlockAdapter | None = None) -> jax.Array:
        """(N, H, W, inputs) -> (N, H, W, outputs), or half of H and W with `pool`."""
        n, height, width, _ = x.shape
        query, key, value = jnp.split(with_product(self.qkv(x), x, adapter and adapter.qkv), 3, axis=-1)
        if pool:
            query = max_pool_2x2(query)
        size = query.shape
        query, key, value = (y.reshape(n, -1, self.heads, y.shape[-1] // self.heads) for y in (query, key, value))
        y = attend(query, key, value).reshape(size)
        return with_product(self.proj(y), y, adapter and adapter.proj)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM 2.1's `MultiScaleAttention`."""
        return entries_of({"qkv": self.qkv, "proj": self.proj})


class Block(nnx.Module):
    """Attention, then dense layers; a block that opens a stage halves the map and doubles the features."""

    def __init__(self, inputs: int, outputs: int, heads: int, window: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the block; a `window` of 0 is the whole map."""
        self.norm1 = norms.LayerNorm(inputs, eps=EPS)
        self.attn = Attention(inputs, outputs, heads, dtype=dtype, rngs=rngs)
        self.norm2 = norms.LayerNorm(outputs, eps=EPS)
        self.inputs, self.outputs = inputs, outputs
        self.mlp = MLP((outputs, 4 * outputs, outputs), activation=layers.gelu, dtype=dtype, rngs=rngs)
        self.opens = inputs != outputs
        self.proj = layers.Linear(inputs, outputs, dtype=dtype, rngs=rngs) if self.opens else None
        self.window = window

    def __call__(self, x: jax.Array, adapter: BlockAdapter | None = None) -> jax.Array:
        """(N, H, W, inputs) -> (N, H, W, outputs), or half of H and W if the block opens a stage."""
        y = self.norm1(x)
        if self.proj is not None:
            x = max_pool_2x2(self.proj(y))
        if self.window:
            # The zeros that fill up the windows are tokens as all others; no mask hides them.
            y = self.attn(to_windows(y, self.window), self.opens, adapter)
            y = from_windows(y, *x.shape[1:3])
        else:
            y = self.attn(y, self.opens, adapter)
        x = x + y
        return x + self.mlp(self.norm2(x), () if adapter is None else (adapter.dense1, adapter.dense2))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM 2.1's `MultiScaleBlock`."""
        modules = {"norm1": self.norm1, "attn": self.attn, "norm2": self.norm2, "mlp": self.mlp}
        return entries_of(modules if self.proj is None else {**modules, "proj": self.proj})


class Hiera(nnx.Module):
    """The transformer: images to maps of strides 4, 8, 16 and 32."""

    def __init__(self, form: HieraForm, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the network with random weights; position embeddings are zero, as in the reference."""
        form.check()
        self.form = form
        self.patch_embed = layers.Conv(3, form.width, 7, stride=4, use_bias=True, dtype=dtype, rngs=rngs)
        self.pos_embed = nnx.Param(jnp.zeros((1, form.table, form.table, form.width)))
        self.pos_embed_window = nnx.Param(jnp.zeros((1, form.windows[0], form.windows[0], form.width)))
        ends = list(itertools.accumulate(form.stages))
        self.ends = tuple(end - 1 for end in ends)
        blocks, inputs, heads = [], form.width, form.heads
        for i in range(ends[-1]):
            opens = i in ends
            outputs, heads = (2 * inputs, 2 * heads) if opens else (inputs, heads)
            # The block that opens a stage still has the windows of the stage before.
            stage = sum(i > end for end in ends)
            window = 0 if i in form.global_blocks else form.windows[stage]
            blocks.append(Block(inputs, outputs, heads, window, dtype=dtype, rngs=rngs))
            inputs = outputs
        self.blocks = nnx.List(blocks)
        self.dtype = dtype

    @property
    def channels(self) -> tuple[int, ...]:
        """Features of the four maps."""
        return tuple(self.form.width * 2**stage for stage in range(4))

    def positions(self, rows: int, columns: int) -> jax.Array:
        """Returns the position embeddings of the first map, float32 (1, rows, columns, width)."""
        whole = resized_table(self.pos_embed[0], rows, columns, Resizing.PLAIN)
        window = self.pos_embed_window[0]
        repeats = (-(-rows // len(window)), -(-columns // len(window)), 1)
        return (whole + jnp.tile(window, repeats)[:rows, :columns])[None]

    @property
    def multiple(self) -> int:
        """Number of pixels that height and width of the images must be a multiple of."""
        return MULTIPLE

    def __call__(self, images: jax.Array, adapters: Adapters | None = None) -> list[jax.Array]:
        """Returns the four maps of images, finest first.

        Args:
          images: normalized, float (N, H, W, 3); H and W are multiples of 32.
          adapters: what LoRA trains beside the matrices of the blocks; None: nothing.

        Raises:
          ConfigError: the images have another size.
        """
        height, width = images.shape[1:3]
        if height % MULTIPLE or width % MULTIPLE or not height or not width:
            raise ConfigError(
                f"SAM 2.1's encoder: the images are {height}x{width}, expected multiples of {MULTIPLE} pixels"
            )
        x = self.patch_embed(images.astype(self.dtype))
        x, maps = x + layers.spread(self.positions(*x.shape[1:3]), x), []
        for i, block in enumerate(self.blocks):
            x = block(x, adapters and adapters.blocks[i])
            if i in self.ends:
                maps.append(x)
        return maps

    def matrices(self) -> list[dict[str, tuple[int, int]]]:
        """Returns (inputs, outputs) of the matrices of every block, for `Adapters`."""
        return [
            {
                "qkv": (block.inputs, 3 * block.outputs),
                "proj": (block.outputs, block.outputs),
                "fc1": (block.outputs, 4 * block.outputs),
                "fc2": (4 * block.outputs, block.outputs),
            }
            for block in self.blocks
        ]

    def add_products(self, adapters: Adapters) -> None:
        """Adds the products of adapters to the matrices, which then give the same without them."""
        for block, adapter in zip(self.blocks, adapters.blocks, strict=True):
            adapter.add_to(block.attn.qkv, block.attn.proj, *block.mlp.layers)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM 2.1's `Hiera`."""
        entries: TorchEntries = {
            "pos_embed": (self.pos_embed, _CHANNELS_LAST),
            "pos_embed_window": (self.pos_embed_window, _CHANNELS_LAST),
        }
        entries |= prefixed("patch_embed.proj", self.patch_embed.torch_entries())
        return entries | entries_of({f"blocks.{i}": block for i, block in enumerate(self.blocks)})


class Pyramid(nnx.Module):
    """Hiera's maps with as many channels as the decoder has, and the coarsest one added to the one before it."""

    def __init__(self, channels_of_maps: tuple[int, ...], channels: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layers; all results have `channels` channels."""
        self.laterals = nnx.List(
            layers.Conv(inputs, channels, 1, use_bias=True, dtype=dtype, rngs=rngs) for inputs in channels_of_maps
        )

    def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
        """Returns the maps of strides 4, 8 and 16. The last one has that of stride 32 added."""
        *finer, middle, coarse = (layer(x) for layer, x in zip(self.laterals, maps, strict=True))
        return [*finer, middle + upsample_nearest(coarse, *middle.shape[1:3])]

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM 2.1's `ImageEncoder`."""
        # The reference counts from the coarsest map.
        names = [f"neck.convs.{i}.conv" for i in reversed(range(len(self.laterals)))]
        return entries_of(dict(zip(names, self.laterals, strict=True)))


class HieraEncoder(nnx.Module):
    """Hiera and the feature pyramid."""

    def __init__(self, form: HieraForm, channels: int, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs):
        """Builds the encoder with random weights; all its results have `channels` channels."""
        self.form = form
        self.trunk = Hiera(form, dtype=dtype, rngs=rngs)
        self.neck = Pyramid(self.trunk.channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Returns the maps of a batch.

        Args:
          images: normalized, float (N, H, W, 3); H and W are multiples of 32.

        Returns:
          (N, H / s, W / s, channels) for the strides s of 4, 8 and 16; see `Pyramid`.

        Raises:
          ConfigError: the images have another size.
        """
        return self.neck(self.trunk(images))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM 2.1's `ImageEncoder`."""
        return entries_of({"trunk": self.trunk}) | self.neck.torch_entries()
