"""LoRA: low-rank products that are trained beside the frozen matrices of a transformer.

Source: Hu et al. 2021 (arXiv:2106.09685), with the initial values of Hugging Face's PEFT.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import check_counts
from bcss_jax.models.blocks import initializers, layers
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture


class HasKernel(Protocol):
    """A layer with a matrix (inputs, outputs)."""

    kernel: nnx.Param[Any]


class LowRank(nnx.Module):
    """The product of two thin matrices, times a factor: `scale` * (x A) B. It begins as zero."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, *, dtype: Dtype, rngs: nnx.Rngs):
        """Draws A (inputs, rank) as PyTorch's `Linear` does; B (rank, outputs) is zero."""
        self.a = initializers.torch_default(rngs, (inputs, rank))
        self.b = nnx.Param(jnp.zeros((rank, outputs)))
        self.scale, self.dtype = scale, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., inputs) -> (..., outputs)."""
        thin = layers.dense(x, self.a[...], None, self.dtype)
        return self.scale * layers.dense(thin, self.b[...], None, self.dtype)

    def product(self) -> jax.Array:
        """Returns what is to be added to the frozen matrix: float32 (inputs, outputs)."""
        return self.scale * jnp.matmul(self.a[...], self.b[...], precision="highest")


class BlockAdapter(nnx.Module):
    """The low-rank products of a block: of queries, keys and values, of the projection, and of the dense layers.

    Attributes:
      qkv: beside the matrix of queries, keys and values, and so on for the other three; None: there is none.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        rank: int,
        scale: float,
        matrices: Sequence[str],
        *,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the products of the chosen `matrices`; the arguments are those of `Adapters`."""
        by_name = {
            name: LowRank(*shapes[name], rank, scale, dtype=dtype, rngs=rngs) if name in matrices else None
            for name in shapes
        }
        self.qkv, self.proj, self.dense1, self.dense2 = by_name.values()

    def add_to(self, *matrices: HasKernel) -> None:
        """Adds the products to the four matrices that they are beside, in the order of the attributes."""
        products = (self.qkv, self.proj, self.dense1, self.dense2)
        for product, matrix in zip(products, matrices, strict=True):
            if product is not None:
                matrix.kernel.set_value(matrix.kernel[...] + product.product())


class Adapters(nnx.Module):
    """The low-rank products of all blocks of a transformer."""

    def __init__(
        self,
        blocks: Sequence[Mapping[str, tuple[int, int]]],
        *,
        rank: int,
        alpha: float,
        on: str,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the products; they change nothing before they are trained.

        Args:
          blocks: (inputs, outputs) of the four matrices of each block by name, in the order of `BlockAdapter`.
          rank: of each product.
          alpha: the products are multiplied by alpha / rank.
          on: names of the matrices, with commas between them: qkv, proj, fc1 and fc2, or w12 and w3 of a SwiGLU.
          dtype: type of the computation.
          rngs: random keys.

        Raises:
          ConfigError: an argument is invalid.
        """
        name = "LoRA"
        check_counts(name, most=min(min(shape) for block in blocks for shape in block.values()), lora_rank=rank)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
            raise ConfigError(f"{name}: lora_alpha must be a number above 0, not {alpha!r}")
        chosen, allowed = [each.strip() for each in str(on).split(",")], list(blocks[0])
        unknown = [each for each in chosen if each not in allowed]
        if unknown or len(set(chosen)) < len(chosen):
            raise ConfigError(
                f"{name}: lora_on must name some of {', '.join(allowed)}, each once, with commas between them, not "
                f"{on!r}"
            )
        self.blocks = nnx.List(
            BlockAdapter(shapes, rank, alpha / rank, chosen, dtype=dtype, rngs=rngs) for shapes in blocks
        )

    def clear(self) -> None:
        """Makes all products zero, as they begin."""
        for block in self.blocks:
            for product in (block.qkv, block.proj, block.dense1, block.dense2):
                if product is not None:
                    product.b.set_value(jnp.zeros(product.b.shape))


class AdaptedNetwork(nnx.Module):
    """A network that may have adapters beside its encoder; the encoder's `add_products` adds them to its matrices."""

    encoder: Any
    adapters: Adapters | None

    def merged(self) -> Self:
        """Returns the network with its adapters added to the encoder; itself if it has none."""
        if self.adapters is None:
            return self
        plain = nnx.clone(self)
        plain.encoder.add_products(self.adapters)
        plain.adapters = None
        return plain

    def clear_adapters(self) -> None:
        """Makes the adapters change nothing, as they begin; weights that are loaded have those of before in them."""
        if self.adapters is not None:
            self.adapters.clear()


def matrices_of(architecture: Architecture) -> list[dict[str, tuple[int, int]]]:
    """Returns (inputs, outputs) of the matrices of every block of a vision transformer, for `Adapters`."""
    width, hidden = architecture.width, architecture.hidden
    first, second = ("w12", "w3") if architecture.gated else ("fc1", "fc2")
    shapes = {
        "qkv": (width, 3 * width),
        "proj": (width, width),
        first: (width, 2 * hidden if architecture.gated else hidden),
        second: (hidden, width),
    }
    return [shapes] * architecture.depth


def with_product(y: jax.Array, x: jax.Array, product: LowRank | None) -> jax.Array:
    """Returns the result `y` of a frozen matrix for `x`, plus that of the product beside it, if there is one."""
    return y if product is None else y + product(x)
