"""The settings in which vision transformers differ."""

import dataclasses

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import MOST_LAYERS, check_counts
from bcss_jax.models.encoders.vision_transformer.positions import Resizing


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Form of a vision transformer.

    Attributes:
      width: features of a token.
      depth: number of blocks.
      heads: of the attention; must divide `width`.
      patch: pixels of a token on each side.
      hidden: features between the two dense layers of a block; of each half if `gated`.
      gated: the dense layers are a SwiGLU, silu(a) * b, instead of a GELU.
      layer_scale: the result of attention and of the dense layers is scaled by a learned vector.
      registers: learned tokens behind the class token.
      table: rows (and columns) of the table of position embeddings; None: positions are rotary, as in DINOv3.
      prefix_rows: rows of the table for the class token and registers, which come first: 0, 1, or 1 + registers.
      resizing: how the table is resized to other sizes of images.
      key_bias: the keys of the attention have a bias, as queries and values do.
      eps: added to the variance in every LayerNorm.
    """

    width: int
    depth: int
    heads: int
    patch: int
    hidden: int
    gated: bool = False
    layer_scale: bool = False
    registers: int = 0
    table: int | None = 14
    prefix_rows: int = 1
    resizing: Resizing = Resizing.ANTIALIAS
    key_bias: bool = True
    eps: float = 1e-6

    @property
    def prefix(self) -> int:
        """Number of tokens before those of the patches."""
        return 1 + self.registers

    def check(self) -> None:
        """Raises ConfigError if no network has such settings."""
        name = "vision transformer"
        check_counts(name, width=self.width, heads=self.heads, patch=self.patch, hidden=self.hidden)
        check_counts(name, most=MOST_LAYERS, depth=self.depth)
        if self.width % self.heads:
            raise ConfigError(f"{name}: width {self.width} is not a multiple of heads {self.heads}")
        if self.table is None and self.width // self.heads % 4:
            raise ConfigError(
                f"{name}: rotary positions need heads of a multiple of 4 features, not {self.width // self.heads}"
            )
        if self.prefix_rows not in (0, 1, self.prefix):
            raise ConfigError(f"{name}: prefix_rows must be 0, 1 or {self.prefix}, not {self.prefix_rows}")
