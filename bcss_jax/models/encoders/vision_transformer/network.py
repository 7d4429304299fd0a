"""The vision transformer: images to tokens.

Source: Dosovitskiy et al. 2020 (arXiv:2010.11929) in the forms of github.com/facebookresearch/dino, dinov2 and dinov3
and of timm, whose weights load through `bcss_jax.models.weights.vision_transformer_names`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.blocks import initializers, layers, norms
from bcss_jax.models.encoders.vision_transformer.adapters import Adapters
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.block import Block, token_init
from bcss_jax.models.encoders.vision_transformer.positions import resized_table, rotary_angles
from bcss_jax.models.weights.torch_layout import CONV, SAME, TorchEntries, prefixed


class Features(NamedTuple):
    """What a vision transformer says of images.

    Attributes:
      cls: of the class token (N, C).
      registers: of the registers (N, R, C).
      patches: of the patches, as a map (N, rows, columns, C).
    """

    cls: jax.Array
    registers: jax.Array
    patches: jax.Array


class VisionTransformer(nnx.Module):
    """A vision transformer without a classifier."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        in_channels: int = 3,
        mask_token: bool = False,
        drop_path: float = 0,
        dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network with random weights, initialized as DINO's; scales of the residuals are one.

        Args:
          architecture: its form.
          in_channels: channels of the images.
          mask_token: have a token that replaces those of masked patches.
          drop_path: probability with which the results of the last block are dropped; it grows from 0 in the first.
          dtype: type of the computation. Weights are float32.
          rngs: random keys.

        Raises:
          ConfigError: no network has such a form.
        """
        architecture.check()
        width, patch = architecture.width, architecture.patch
        self.architecture, self.dtype = architecture, dtype
        self.patch_kernel = initializers.torch_default(rngs, (patch, patch, in_channels, width))
        self.patch_bias = initializers.uniform(rngs, (width,), (patch * patch * in_channels) ** -0.5)
        self.cls_token = token_init(rngs, (1, 1, width))
        self.register_tokens = token_init(rngs, (1, architecture.registers, width)) if architecture.registers else None
        self.mask_token = nnx.Param(jnp.zeros((1, width))) if mask_token else None
        rows = 0 if architecture.table is None else architecture.prefix_rows + architecture.table**2
        self.pos_embed = token_init(rngs, (1, rows, width)) if rows else None
        rates = np.linspace(0, drop_path, architecture.depth)
        self.blocks = nnx.List(
            Block(architecture, drop_path=float(rate), drop_number=2 * i, dtype=dtype, rngs=rngs)
            for i, rate in enumerate(rates)
        )
        self.norm = norms.LayerNorm(width, eps=architecture.eps)

    def grid(self, images: jax.Array) -> tuple[int, int]:
        """Returns rows and columns of the patches of images (N, H, W, C).

        Raises:
          ConfigError: height or width is not a multiple of the patch.
        """
        height, width = images.shape[1:3]
        patch = self.architecture.patch
        if height % patch or width % patch or not height or not width:
            raise ConfigError(
                f"vision transformer: the images are {height}x{width}, expected multiples of the patch of {patch} "
                "pixels"
            )
        return height // patch, width // patch

    def embed(self, images: jax.Array, masked: jax.Array | None = None) -> jax.Array:
        """Returns the tokens before the first block: class token, registers, patches row by row.

        Args:
          images: normalized, float (N, H, W, in_channels).
          masked: bool (N, rows * columns), patches that the mask token replaces; None: none.

        Returns:
          (N, 1 + registers + rows * columns, C).
        """
        rows, columns = self.grid(images)
        n, width, patch = images.shape[0], self.architecture.width, self.architecture.patch
        x = images.astype(self.dtype).reshape(n, rows, patch, columns, patch, -1).swapaxes(2, 3)
        kernel = self.patch_kernel[...].reshape(-1, width)
        x = layers.dense(x.reshape(n, rows * columns, -1), kernel, self.patch_bias[...], self.dtype)
        if masked is not None:
            assert self.mask_token is not None, "this network has no mask token"
            x = jnp.where(masked[..., None], self.mask_token[...].astype(x.dtype), x)
        positions = self.positions(rows, columns)
        prefix = [self.cls_token] if self.register_tokens is None else [self.cls_token, self.register_tokens]
        first = jnp.concatenate([token[...] for token in prefix], axis=1)
        if positions is not None:
            in_table = self.architecture.prefix_rows
            first = first + jnp.pad(positions[:, :in_table], ((0, 0), (0, first.shape[1] - in_table), (0, 0)))
            x = x + layers.spread(positions[:, in_table:], x)
        first = jnp.broadcast_to(first, (n, *first.shape[1:])).astype(x.dtype)
        return jnp.concatenate([first, x], axis=1)

    def positions(self, rows: int, columns: int) -> jax.Array | None:
        """Returns the position embeddings float32 (1, prefix_rows + rows * columns, C); None if they are rotary."""
        table, prefix_rows = self.architecture.table, self.architecture.prefix_rows
        if self.pos_embed is None or table is None:
            return None
        embedding = self.pos_embed[...]
        patches = embedding[0, prefix_rows:].reshape(table, table, -1)
        patches = resized_table(patches, rows, columns, self.architecture.resizing)
        return jnp.concatenate([embedding[:, :prefix_rows], patches.reshape(1, rows * columns, -1)], axis=1)

    def angles(self, rows: int, columns: int) -> np.ndarray | None:
        """Returns the angles of `positions.rotary_angles`; None if positions are in a table."""
        architecture = self.architecture
        if architecture.table is not None:
            return None
        return rotary_angles(rows, columns, architecture.width // architecture.heads)

    def block_outputs(
        self,
        images: jax.Array,
        masked: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        adapters: Adapters | None = None,
    ) -> list[jax.Array]:
        """Returns the tokens after every block, without the final norm.

        Args:
          images: as for `__call__`, and so are `masked` and `dropout_keys`.
          masked: see there.
          dropout_keys: see there.
          adapters: products that are added to those with the matrices of the blocks; None: none.
        """
        return self.tokens(images, masked, dropout_keys, adapters)[1:]

    def tokens(
        self,
        images: jax.Array,
        masked: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        adapters: Adapters | None = None,
        blocks: int | None = None,
    ) -> list[jax.Array]:
        """Returns the tokens before the first block and after each of the first `blocks`; None: of all.

        The other arguments are those of `block_outputs`.
        """
        x, angles = self.embed(images, masked), self.angles(*self.grid(images))
        outputs = [x]
        for i, block in enumerate(self.blocks[:blocks]):
            x = block(x, angles, dropout_keys, adapter=adapters and adapters.blocks[i])
            outputs.append(x)
        return outputs

    def add_products(self, adapters: Adapters) -> None:
        """Adds the products of adapters to the matrices, which then give the same without them."""
        for block, adapter in zip(self.blocks, adapters.blocks, strict=True):
            adapter.add_to(block.attn, block.attn.proj, block.mlp.dense1, block.mlp.dense2)

    def features(self, tokens: jax.Array, grid: tuple[int, int]) -> Features:
        """Applies the final norm to tokens after a block and divides them by what they stand for."""
        x, prefix = self.norm(tokens), self.architecture.prefix
        return Features(x[:, 0], x[:, 1:prefix], x[:, prefix:].reshape(x.shape[0], *grid, -1))

    def __call__(
        self, images: jax.Array, masked: jax.Array | None = None, dropout_keys: jax.Array | None = None
    ) -> Features:
        """Returns the features of a batch.

        Args:
          images: normalized, float (N, H, W, in_channels); H and W are multiples of the patch.
          masked: bool (N, rows * columns), patches that the mask token replaces; None: none.
          dropout_keys: JAX keys (N,), one per example; needed only in training with `drop_path`.

        Raises:
          ConfigError: the images have another size.
        """
        return self.features(self.block_outputs(images, masked, dropout_keys)[-1], self.grid(images))

    def class_features(self, images: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Returns the features of the class token alone (N, C): `cls` of `__call__`, without the last block's others.

        Args:
          images: as for `__call__`, and so are `dropout_keys`.
          dropout_keys: see there.
        """
        *_, x = self.tokens(images, dropout_keys=dropout_keys, blocks=len(self.blocks) - 1)
        return self.norm(self.blocks[-1].first(x, self.angles(*self.grid(images)), dropout_keys))[:, 0]

    def class_attention(self, images: jax.Array) -> jax.Array:
        """Returns where the class token looks in the last block: float32 (N, heads, T), with a sum of 1 over T."""
        x, angles = self.embed(images), self.angles(*self.grid(images))
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, angles)
        query, key, _ = last.attn.query_key_value(last.norm1(x), angles)
        scores = jnp.einsum("nhd,nthd->nht", query[:, 0].astype(jnp.float32), key.astype(jnp.float32))
        return jax.nn.softmax(scores / np.sqrt(query.shape[-1]))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of DINOv2's `DinoVisionTransformer`."""
        entries: TorchEntries = {
            "cls_token": (self.cls_token, SAME),
            "patch_embed.proj.weight": (self.patch_kernel, CONV),
            "patch_embed.proj.bias": (self.patch_bias, SAME),
        }
        optional = {"register_tokens": self.register_tokens, "mask_token": self.mask_token, "pos_embed": self.pos_embed}
        entries |= {name: (variable, SAME) for name, variable in optional.items() if variable is not None}
        for i, block in enumerate(self.blocks):
            entries |= prefixed(f"blocks.{i}", block.torch_entries())
        return entries | prefixed("norm", self.norm.torch_entries())
